//! What callers learn about the limits of a request and of the process.

use crate::base::failure;
use crate::base::line::Line;
use crate::blocks::request_id::RequestId;
use crate::lockfree::budget::{Marked, Reason};
use crate::request::control::Control;
use core::fmt;

/// Which limit was reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LimitKind {
    /// The [`soft_limit`](crate::RequestBuilder::soft_limit) of a request, which only marks it.
    Soft,
    /// The [`memory_limit`](crate::RequestBuilder::memory_limit) of a request, or the mark below it.
    Memory,
    /// That of the process: see [`set_process_limit`](crate::set_process_limit).
    Process,
}

/// A request has reached a limit, or the mark below it: it should be given up, by returning or by
/// [`bailout`](crate::bailout), while allocation still goes on into the reserve. Or the process is
/// above its limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LimitExceeded {
    /// Which limit it is.
    pub kind: LimitKind,
    /// The request above this one whose limit or mark it is, because it is a child of it; `None`:
    /// the request's own, or the process as such.
    pub parent: Option<RequestId>,
    /// The limit in bytes of pages.
    pub limit_bytes: usize,
    /// What was in use at that moment, in bytes of pages: by the request with the limit and its
    /// children, or by the process.
    pub in_use_bytes: usize,
    /// The size of the block that was asked for then; 0 if none was, as of a process.
    pub asked_bytes: usize,
}

impl LimitExceeded {
    /// Returns why this request is marked, or was refused memory, or why one above it is marked;
    /// `None`: none of that.
    #[inline]
    pub(crate) fn of(control: &Control) -> Option<Self> {
        if let Some((reason, marked)) = control.marked() {
            return Some(Self::described(control, None, reason, marked));
        }
        Self::above(control)
    }

    /// Returns why the first request above this one is marked that is.
    fn above(control: &Control) -> Option<Self> {
        let parent = control.marked_parent()?;
        let (reason, marked) = parent.marked()?;
        Some(Self::described(parent, Some(parent.request_id()), reason, marked))
    }

    #[cold]
    fn described(
        control: &Control,
        parent: Option<RequestId>,
        reason: Reason,
        marked: Marked,
    ) -> Self {
        let Marked { in_use_bytes, asked_bytes } = marked;
        let memory = |refuser: &Control, parent| Self {
            kind: LimitKind::Memory,
            parent,
            limit_bytes: refuser.limit().unwrap_or(usize::MAX),
            in_use_bytes,
            asked_bytes,
        };
        match reason {
            Reason::Near | Reason::Refused(0) => memory(control, parent),
            Reason::Refused(level) => {
                let refuser = control.level(level).unwrap_or(control);
                memory(refuser, Some(refuser.request_id()))
            }
            Reason::Soft => Self {
                kind: LimitKind::Soft,
                parent,
                limit_bytes: control.soft_limit().unwrap_or(usize::MAX),
                in_use_bytes,
                asked_bytes,
            },
            Reason::Process => {
                Self { parent, ..Self::of_process(marked.asked_bytes, in_use_bytes) }
            }
        }
    }

    /// The process holds so much, more than this limit.
    pub(crate) fn of_process(limit_bytes: usize, in_use_bytes: usize) -> Self {
        let kind = LimitKind::Process;
        Self { kind, parent: None, limit_bytes, in_use_bytes, asked_bytes: 0 }
    }

    pub(crate) fn line(&self) -> Line {
        let Self { kind, parent, limit_bytes, in_use_bytes, asked_bytes } = *self;
        let parent = parent.map(|id| id.0);
        match kind {
            LimitKind::Memory => {
                failure::memory_limit(parent, limit_bytes, in_use_bytes, asked_bytes)
            }
            LimitKind::Soft => failure::soft_limit(parent, limit_bytes, in_use_bytes, asked_bytes),
            LimitKind::Process => failure::process_limit(parent, limit_bytes, in_use_bytes),
        }
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
