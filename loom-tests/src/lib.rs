//! The lock-free wing of `rqmalloc`, compiled from the shipped text against loom's types.
//!
//! The models are in `tests/`, one file per subject; for every ordering, `README.md` lists the
//! models that fail without it.

pub mod model;

/// What the wing uses of the one below it: here, loom's types.
pub mod base {
    pub mod sync;
}

#[path = "../../src/lockfree/mod.rs"]
pub mod lockfree;
