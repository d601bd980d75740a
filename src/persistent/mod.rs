//! The persistent lifetime: blocks of the process.

pub mod slab;
pub mod cache;
pub mod from_holes;
pub mod store;
