//! The persistent lifetime: blocks of the process.

pub mod chains;
pub mod slab_pages;
pub mod slab_lists;
pub mod slab_purge;
pub mod slab_order;
pub mod slab;
pub mod cache;
pub mod from_holes;
pub mod reap;
pub mod store;
