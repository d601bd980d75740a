//! The persistent lifetime: blocks of the process.

pub mod slab;
pub mod cache;
pub mod holes;
pub mod store;
