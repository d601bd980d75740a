//! What callers learn about a request's memory limit.

use crate::base::failure;
use crate::base::line::Line;
use crate::request::control::Control;
use core::fmt;

/// A request has reached its memory limit, or the mark below it: it should be given up, by
/// returning or by [`bailout`](crate::bailout), while allocation still goes on into the reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LimitExceeded {
    /// The limit in bytes of pages.
    pub limit_bytes: usize,
    /// What was in use when the request reached the mark or the limit, in bytes of pages.
    pub in_use_bytes: usize,
    /// The size of the block that was asked for then.
    pub asked_bytes: usize,
}

impl LimitExceeded {
    /// Returns why this request is marked, or was refused memory; `None`: it was neither.
    pub(crate) fn of(control: &Control) -> Option<Self> {
        let marked = control.marked()?;
        Some(Self {
            limit_bytes: control.limit().unwrap_or(usize::MAX),
            in_use_bytes: marked.in_use_bytes,
            asked_bytes: marked.asked_bytes,
        })
    }

    pub(crate) fn line(&self) -> Line {
        failure::memory_limit(self.limit_bytes, self.in_use_bytes, self.asked_bytes)
    }
}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line().as_str())
    }
}

impl core::error::Error for LimitExceeded {}

/// A new memory limit was refused because the request already holds more. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LimitBelowUse {
    /// The limit that was refused, in bytes of pages.
    pub limit_bytes: usize,
    /// What is in use, in bytes of pages, after everything reclaimable was reclaimed.
    pub in_use_bytes: usize,
}

impl fmt::Display for LimitBelowUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(failure::limit_below_use(self.limit_bytes, self.in_use_bytes).as_str())
    }
}

impl core::error::Error for LimitBelowUse {}
