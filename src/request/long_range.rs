//! Where a lane cuts its long blocks, beside the range for all others.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | all | the occupant of the lane, else the closer | the same |
//!
//! Most survivors of a request are short. If long blocks had the same regions, each survivor would lie
//! in one of its own, and what is between them would be too short for the next request's long blocks.

use crate::base::size_class::{Class, HEADER_BYTES};
use crate::pages::span::Span;
use core::cell::Cell;
use core::ptr::null;

/// Blocks with longer strides are long.
const LONG_STRIDE: usize = 2048 + 16;

/// Whether blocks of a class are long.
pub fn is_long(class: Class) -> bool {
    class.stride_bytes() > LONG_STRIDE
}

/// The rest of the region that long blocks are cut from. Zeros: there is none.
pub struct LongRange {
    bump: Cell<usize>,
    end: Cell<usize>,
    region: Cell<*const Span>,
}

impl LongRange {
    /// Cuts from this empty region from now on.
    pub fn open(&self, span: &Span) {
        self.bump.set(span.base() + HEADER_BYTES);
        self.end.set(span.end());
        self.region.set(span);
    }

    /// Cuts no more.
    pub fn leave(&self) {
        self.bump.set(0);
        self.end.set(0);
        self.region.set(null());
    }

    /// Returns where a block with this stride begins, which `make` makes there. `None`: what is left
    /// is too short.
    pub fn cut<R>(&self, stride: usize, make: impl FnOnce(usize) -> R) -> Option<R> {
        let start = self.bump.get();
        // SAFETY: null, or the descriptor of a region of the lane (M1).
        let span = unsafe { self.region.get().as_ref() }?;
        if self.end.get() - start < stride {
            return None;
        }
        let made = make(start);
        self.bump.set(start + stride);
        // A walk ends there at any time (N1).
        span.region.cut_end.set(start + stride);
        Some(made)
    }
}
