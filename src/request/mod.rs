//! Requests: their control block, and what becomes of their memory when they are over.

// The parts of a control block, which do not know it.
mod span_list;
mod long_range;
pub mod lane;
mod figures;
pub mod lists;
pub mod stub;
mod strays;
mod exchange;
pub mod growth;
pub mod limits;
mod footprint;
#[cfg(test)]
mod footprint_tests;
mod warm;
mod pace;
mod name;
pub mod lanes;
mod large_list;
// Their sum.
pub mod control;
mod budgets;
// What is done with it.
mod walk;
mod sweep;
mod reclaim;
mod alloc;
mod adopt;
pub mod finish;
pub mod leaks;
// What others are told.
pub mod limit;
pub mod info;
pub mod report;

use crate::base::sync::Lock;
use crate::blocks::identity::Serial;
use crate::pages::supply::Supply;
use lane::Lane;
use lists::Lists;

/// Why a request gets no block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// It is at its limit.
    Limit,
    /// The system has no more memory.
    Memory,
}

/// The heap as its requests know it: where their spans come from, and what they share.
pub trait Host: Supply {
    /// Charges for `bytes` more that stay with pooled control blocks; `false`: they are over the
    /// cap.
    fn charge_warm(&self, bytes: usize) -> bool;
    /// Notes that `bytes` less stay with pooled control blocks.
    fn refund_warm(&self, bytes: usize);
    /// Takes an idle lane, which is the caller's alone. `None`: the system has no more memory.
    fn take_lane(&self) -> Option<&'static Lane>;
    /// Gives back a lane without regions, which was idle for long if `is_old`.
    fn give_lane(&self, lane: &Lane, is_old: bool);
    /// Takes empty lists, which are the caller's alone. `None`: the system has no more memory.
    fn take_lists(&self) -> Option<&'static Lists>;
    /// Gives back empty lists, which were idle for long.
    fn give_lists(&self, lists: &Lists);
    /// Returns the lock of the list of large blocks of the request with this serial.
    fn large_lock(&self, owner: Serial) -> &Lock<()>;
}
