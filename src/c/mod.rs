//! What a C program calls, and what those who know ZendMM do.

pub mod family;
pub mod zend;

#[cfg(feature = "capi")]
pub mod capi;
#[cfg(all(feature = "preload", target_os = "linux"))]
pub mod preload;
