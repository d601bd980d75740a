//! The lock-free files of `rqmalloc`, compiled from the shipped text against loom's types.
//!
//! The models are in `tests/`, a file for each subject; `README.md` says for every ordering which
//! model fails without it.

pub mod model;
pub mod sync;

#[path = "../../src/bitmap.rs"]
pub mod bitmap;
#[path = "../../src/block.rs"]
pub mod block;
#[path = "../../src/budget.rs"]
pub mod budget;
#[path = "../../src/depot.rs"]
pub mod depot;
#[path = "../../src/lifecycle.rs"]
pub mod lifecycle;
#[path = "../../src/looseness.rs"]
pub mod looseness;
#[path = "../../src/pool.rs"]
pub mod pool;
#[path = "../../src/run_index.rs"]
pub mod run_index;
#[path = "../../src/stray.rs"]
pub mod stray;
#[path = "../../src/versioned.rs"]
pub mod versioned;
