//! What a request holds and may hold, as its control block tells: with the requests above it.

use crate::base::sync::Ordering;
use crate::lockfree::budget::{MAX_LEVELS, Marked, Reason};
use crate::lockfree::state::Phase;
use crate::request::control::Control;
use crate::request::footprint::Footprint;
use core::mem::offset_of;

impl Control {
    // ---- the requests above it ---------------------------------------------------------------

    /// Its parent.
    #[inline]
    pub fn parent(&self) -> Option<&Self> {
        let footprint: *const Footprint = self.footprint.above()?;
        // SAFETY: it is that of a control block (M1).
        Some(unsafe { Self::at(footprint.addr() - offset_of!(Self, footprint)) })
    }

    /// The request so many levels above it.
    pub fn level(&self, level: usize) -> Option<&Self> {
        core::iter::successors(Some(self), |control| control.parent()).nth(level)
    }

    /// Whether it can have children.
    pub fn may_be_parent(&self) -> bool {
        self.level(MAX_LEVELS - 1).is_none()
    }

    /// Whether every request above it is open, and they are not too many. The caller visits it, or
    /// has a handle.
    pub fn has_open_parents(&self) -> bool {
        let mut parents = core::iter::successors(self.parent(), |control| control.parent());
        self.level(MAX_LEVELS).is_none()
            && parents.all(|parent| parent.stub().state.look().phase() == Phase::Open)
    }

    /// Leaves its parent, whose handle is the caller's then (Q3); nothing is charged any more.
    pub fn leave_parent(&self) {
        self.footprint.leave();
    }

    // ---- the footprint -----------------------------------------------------------------------

    /// Returns the limit in bytes, if there is one.
    pub fn limit(&self) -> Option<usize> {
        self.footprint.limit_bytes()
    }

    /// Returns the lowest limit in bytes of the request and those above it.
    pub fn lowest_limit(&self) -> Option<usize> {
        self.footprint.lowest_limit_bytes()
    }

    /// Returns the soft limit in bytes, if there is one.
    pub fn soft_limit(&self) -> Option<usize> {
        self.footprint.soft_limit_bytes()
    }

    /// Returns why the request is marked, or was refused memory, if so.
    #[inline]
    pub fn marked(&self) -> Option<(Reason, Marked)> {
        self.footprint.marked()
    }

    /// Whether anything has happened that a report says more of.
    #[inline]
    pub fn is_remarkable(&self) -> bool {
        self.bailed_out.load(Ordering::Relaxed)
            || self.panicked.load(Ordering::Relaxed)
            || self.footprint.may_be_marked()
    }

    /// Whether the request is marked, or one above it, so that it should be given up. A refusal
    /// alone is no reason: the caller that asked may do without.
    #[inline]
    pub fn is_to_be_given_up(&self) -> bool {
        self.footprint.is_to_be_given_up()
    }

    /// Returns the first request above this one that is to be given up.
    pub fn marked_parent(&self) -> Option<&Self> {
        self.level(self.footprint.marked_above()?)
    }

    /// Returns the request at whose limit this one was refused memory, and how many levels above it
    /// that is.
    pub fn refuser(&self) -> (&Self, usize) {
        let level = match self.marked() {
            Some((Reason::Refused(level), _)) => level,
            _ => 0,
        };
        self.level(level).map_or((self, 0), |refuser| (refuser, level))
    }

    /// Marks the request because of what the process holds; by a visitor.
    pub fn mark_for_process(&self, limit_bytes: usize, in_use_bytes: usize) -> bool {
        self.footprint.mark_for_process(limit_bytes, in_use_bytes)
    }

    /// Whether it is marked because of what the process holds. Any thread may ask.
    pub fn is_marked_for_process(&self) -> bool {
        self.footprint.is_marked_for_process()
    }

    /// Whether it must be reported now that the request was refused memory at its limit: once.
    pub fn tells_refusal(&self) -> bool {
        self.footprint.tells_refusal()
    }

    /// A poll begins: returns what `poll_ends` needs.
    #[cfg(feature = "async")]
    #[inline]
    pub fn poll_begins(&self) -> Option<usize> {
        self.lowest_limit().map(|_| self.own_bytes())
    }

    /// A poll ends that began at so many bytes, where the request has a limit: notes by how much it
    /// grew, for the reserves of others. A request that was refused memory is no measure.
    #[cfg(feature = "async")]
    #[inline]
    pub fn poll_ends(&self, before: Option<usize>) {
        if let Some(before_bytes) = before {
            self.footprint.note_poll(before_bytes);
        }
    }

    /// Notes that the memory that was charged for is there.
    pub fn note_taken(&self, asked_bytes: usize) {
        self.footprint.note_taken(asked_bytes);
    }

    /// Takes `bytes` of pages off the footprint (Q2).
    pub fn refund(&self, bytes: usize) {
        self.footprint.refund(bytes);
    }

    /// Returns the bytes of pages it holds.
    pub fn footprint_bytes(&self) -> usize {
        self.footprint.bytes()
    }

    /// Returns the bytes of pages it holds without its children.
    pub fn own_bytes(&self) -> usize {
        self.footprint.own_bytes()
    }

    /// Returns the bytes of regions it holds.
    pub(super) fn region_bytes(&self) -> usize {
        self.own_bytes().saturating_sub(self.large.bytes())
    }

    /// Returns the largest footprint so far.
    pub fn peak_bytes(&self) -> usize {
        self.footprint.peak_bytes()
    }

    /// Starts to measure the peak anew.
    pub fn reset_peak(&self) {
        self.footprint.reset_peak();
    }
}
