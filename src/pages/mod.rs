//! Pages: where they come from, what they are used for, and how an address leads to that.

pub mod slab_blocks;
pub mod span;
pub mod descriptors;
pub mod slots;
pub mod chunk;
pub mod registry;
pub mod by_length;
pub mod address_space;
pub mod page_heap;
pub mod adopted;
pub mod mapping_store;
pub mod mapper;
pub mod mappings;
pub mod supply;
pub mod shelf;
