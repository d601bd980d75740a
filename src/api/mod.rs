//! What a Rust program calls.

pub mod global;
pub mod idle;
pub mod limit;
pub mod report;

pub mod finish;
pub mod request;
pub mod builder;

pub mod bailout;
pub mod alloc_error;
pub mod hooks;
pub mod prewarm;
#[cfg(feature = "async")]
pub mod scope;
