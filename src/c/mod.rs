//! What a C program calls through `include/rqmalloc.h`, and ZendMM's functions for Rust.

pub mod family;
pub mod zend;

#[cfg(feature = "capi")]
mod tries;
#[cfg(feature = "capi")]
mod state;
#[cfg(feature = "capi")]
mod bailouts;
#[cfg(feature = "capi")]
mod requests;
#[cfg(feature = "capi")]
mod handles;
#[cfg(feature = "capi")]
mod blocks;
#[cfg(feature = "capi")]
mod figures;

#[cfg(all(feature = "preload", target_os = "linux"))]
mod preload_charge;
#[cfg(all(feature = "preload", target_os = "linux"))]
mod preload_libraries;
#[cfg(all(feature = "preload", target_os = "linux"))]
mod preload;
#[cfg(all(feature = "preload", target_os = "linux"))]
mod preload_glibc;
