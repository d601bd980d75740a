//! Words that several threads change without a lock, and the order of steps that joins them.
//! `loom-tests` compiles this folder as it is: its files name `core`, `base::sync` and one another,
//! and have no statics.

pub mod grow_list;
pub mod once;
pub mod table;
pub mod bitmap;
pub mod chunk_pages;
pub mod chunk_slots;
pub mod budget;
pub mod asked;
pub mod credit;
pub mod header;
pub mod hole;
pub mod counted;
pub mod judged;
pub mod said;
pub mod traced;
pub mod uncut;
pub mod depot;
pub mod large;
pub mod lifecycle;
pub mod looseness;
pub mod mapping;
pub mod pool;
pub mod refusals;
pub mod run_index;
pub mod state;
pub mod slots;
pub mod stray;
pub mod stack;
pub mod token;
pub mod lifetime;
pub mod versioned;
