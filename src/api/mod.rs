//! What a Rust program calls.

pub mod global;
pub mod idle;
pub mod process;
pub mod stats;

pub mod request;
pub mod builder;

pub mod bailout;
pub mod alloc_error;
pub mod hooks;
pub mod observe;
pub mod closed;
pub mod prewarm;
pub mod inherit;
#[cfg(feature = "async")]
pub mod scope;
#[cfg(feature = "stream")]
pub mod stream;
