//! Requests: their control block, and what becomes of their memory when they are over.

// The parts of a control block, which do not know it.
mod span_list;
pub mod lane;
mod strays;
mod exchange;
mod footprint;
mod warm;
mod pace;
mod lanes;
mod large_list;
// Their sum.
pub mod control;
// What is done with it.
mod walk;
mod sweep;
mod reclaim;
mod alloc;
pub mod finish;
pub mod leaks;

use crate::lockfree::header::Block;
use crate::pages::page_heap::Taken;
use crate::pages::span::{Span, SpanKind};

/// Why a request gets no block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// It is at its limit.
    Limit,
    /// The system has no more memory.
    Memory,
}

/// Where a request gets its spans from and gives them back to.
pub trait Supply {
    /// A span, from what is free, else reaped, else new. `None`: the system has no more memory.
    fn take_span(
        &self,
        kind: SpanKind,
        class: usize,
        pages: usize,
        owner: usize,
    ) -> Option<Taken<'_>>;
    /// The region of a block that lies in a lane's bin.
    fn region_of(&self, block: Block) -> &Span;
    /// Gives a span of a chunk back.
    fn give_span(&self, span: &Span);
    /// Gives some pages of a span back.
    fn give_pages(&self, base: usize, pages: usize);
    /// Gives a descriptor back whose pages are gone.
    fn give_descriptor(&self, span: &Span);
    /// Gives the mapping of a mapped block back.
    fn give_mapping(&self, span: &Span);
    /// Whether `bytes` more may stay with pooled control blocks.
    fn charge_warm(&self, bytes: usize) -> bool;
    /// So much less stays with pooled control blocks.
    fn refund_warm(&self, bytes: usize);
    /// Runs `change` on the lists of large blocks of a request, alone.
    fn with_large_lock<R>(&self, control: usize, change: impl FnOnce() -> R) -> R;
}
