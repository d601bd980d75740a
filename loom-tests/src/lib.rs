//! The lock-free wing of `rqmalloc`, compiled from the shipped text against loom's types.
//!
//! The models are in `tests/`, a file for each subject; `README.md` says for every ordering which
//! model fails without it.

pub mod model;

/// What the wing knows of the one below it: here, loom's types.
pub mod base {
    pub mod sync;
}

#[path = "../../src/lockfree/mod.rs"]
pub mod lockfree;
