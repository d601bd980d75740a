//! Requests: their control block, and what becomes of their memory when they are over.

pub mod lane;
pub mod close;
pub mod control;
mod large;
pub mod leaks;
mod limit;
pub mod sweep;
mod walk;

pub use crate::pages::supply::Supply;

/// Why a request gets no block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// It is at its limit.
    Limit,
    /// The system has no more memory.
    Memory,
}
