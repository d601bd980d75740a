//! What a request may hold: charged in pages before memory is taken, up to a mark and to a limit.
//!
//! At the mark, and again at the limit, what is free inside the request is reclaimed first; then the
//! request is marked, or refused. See `budget` for the words that decide.

use super::Supply;
use super::control::Control;
use super::sweep;
use crate::budget::{Marked, NO_LIMIT};
use crate::lane::Lane;
use crate::size_class::PAGE_BYTES;
use crate::symbolizing::is_symbolizing;
use crate::sync::Ordering;

/// Bytes below the limit at which a request is marked: a part of the limit, within bounds.
const RESERVE_DIVISOR: usize = 8;
const MAX_DEFAULT_RESERVE_BYTES: usize = 4 * 1024 * 1024;
/// `reserve_bytes` of a request whose opener did not say.
pub(super) const DEFAULT_RESERVE: usize = usize::MAX;

/// How far a charge may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// To the mark, while it is not set.
    Soft,
    /// To the limit.
    Hard,
}

/// Whole pages of so many bytes.
fn pages_of(bytes: usize) -> u32 {
    u32::try_from(bytes / PAGE_BYTES).unwrap_or(NO_LIMIT)
}

/// The pages of a limit of so many bytes.
pub(super) fn limit_pages(bytes: usize) -> u32 {
    if bytes == usize::MAX { NO_LIMIT } else { pages_of(bytes) }
}

impl Control {
    /// Counts bytes of pages in before they are taken (Q2). `false`: they are over the bound.
    ///
    /// At the soft bound a request that has no mark yet is refused, so that the caller reclaims first; at
    /// the hard bound it is marked and goes on, to its limit. The limit is suspended while the thread
    /// panics or makes a backtrace, and in a lane that says so.
    pub(super) fn charge(
        &self,
        lane: &Lane,
        bytes: usize,
        asked_bytes: usize,
        bound: Bound,
    ) -> bool {
        let pages = pages_of(bytes);
        let headroom = self.headroom_pages();
        let soft = (bound == Bound::Soft && self.mark.get().is_none()).then_some(headroom);
        let granted = self.budget.charge(pages, soft.unwrap_or(0)).or_else(|| {
            let is_suspended = lane.limit_is_suspended.get()
                || std::thread::panicking()
                || (bound == Bound::Hard && is_symbolizing());
            is_suspended.then(|| self.budget.charge_beyond(pages)).flatten()
        });
        let Some(used) = granted else {
            return false;
        };
        self.peak_bytes.fetch_max(used as usize * PAGE_BYTES, Ordering::Relaxed);
        let limit = self.budget.limit();
        if limit != NO_LIMIT && used > limit.saturating_sub(headroom) && self.mark.get().is_none() {
            self.set_mark(used as usize * PAGE_BYTES, asked_bytes);
        }
        true
    }

    /// Whether so many pages more are over the limit, rather than more than the system has.
    pub(super) fn is_over_limit(&self, pages: usize) -> bool {
        self.budget.used() as usize + pages > self.budget.limit() as usize
    }

    /// Charges, and reclaims first where the request has come to its mark or limit.
    pub fn charge_or_reclaim<S: Supply>(
        &self,
        lane: &Lane,
        bytes: usize,
        asked_bytes: usize,
        supply: &S,
    ) -> bool {
        if self.charge(lane, bytes, asked_bytes, Bound::Soft) {
            return true;
        }
        self.reclaim(lane, PAGE_BYTES, supply);
        self.charge(lane, bytes, asked_bytes, Bound::Hard) || {
            if self.limit().is_some() {
                self.set_mark(self.footprint_bytes(), asked_bytes);
            }
            false
        }
    }

    /// Charges for a block that grows, whoever resizes it: there may be no lane to reclaim in.
    pub fn charge_growth<S: Supply>(
        &self,
        lane: Option<&Lane>,
        bytes: usize,
        asked_bytes: usize,
        supply: &S,
    ) -> bool {
        match lane {
            Some(lane) => self.charge_or_reclaim(lane, bytes, asked_bytes, supply),
            // The first lane is the request's in any case; only its flag is looked at.
            None => self.charge(&self.first, bytes, asked_bytes, Bound::Soft),
        }
    }

    /// Counts bytes of pages out (Q2).
    pub fn refund(&self, bytes: usize) {
        self.budget.refund(pages_of(bytes));
    }

    /// Pages below the limit from which on the request is marked; 0 without a limit.
    fn headroom_pages(&self) -> u32 {
        if self.budget.limit() == NO_LIMIT {
            return 0;
        }
        pages_of(match self.reserve_bytes.load(Ordering::Relaxed) {
            DEFAULT_RESERVE => {
                let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
                (limit_bytes / RESERVE_DIVISOR).min(MAX_DEFAULT_RESERVE_BYTES)
            }
            bytes => bytes,
        })
    }

    pub(super) fn set_mark(&self, in_use_bytes: usize, asked_bytes: usize) {
        self.mark.set(Marked { in_use_bytes, asked_bytes });
    }

    /// Why the request is marked, if it is.
    #[inline]
    pub fn marked(&self) -> Option<Marked> {
        self.mark.get()
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<usize> {
        (self.budget.limit() != NO_LIMIT).then(|| self.limit_bytes.load(Ordering::Relaxed))
    }

    /// Sets the limit, `usize::MAX` for none, after reclaiming if need be. `false`: more is in use, and
    /// nothing has changed.
    pub fn set_limit<S: Supply>(&self, lane: Option<&Lane>, bytes: usize, supply: &S) -> bool {
        let pages = limit_pages(bytes);
        if !self.budget.set_limit(pages) {
            let Some(lane) = lane else { return false };
            self.reclaim(lane, PAGE_BYTES, supply);
            if !self.budget.set_limit(pages) {
                return false;
            }
        }
        self.limit_bytes.store(bytes, Ordering::Relaxed);
        if self.budget.used() <= pages.saturating_sub(self.headroom_pages()) {
            self.mark.clear();
        }
        true
    }

    /// Bytes of the pages it holds.
    pub fn footprint_bytes(&self) -> usize {
        self.budget.used() as usize * PAGE_BYTES
    }

    /// The peak is measured anew from now on.
    pub fn reset_peak(&self) {
        self.peak_bytes.store(self.footprint_bytes(), Ordering::Relaxed);
    }

    /// Gives back the regions that only free blocks are in, and makes room in the others, if the free
    /// blocks are worth so many bytes together. Returns the bytes of pages that went; `None`: it was not
    /// worth it.
    pub fn reclaim<S: Supply>(&self, lane: &Lane, worth_bytes: usize, supply: &S) -> Option<usize> {
        let before = self.footprint_bytes();
        if !self.strays.list.is_empty() {
            self.drain_into(lane);
        }
        let held_bytes: usize = self.lanes().map(|lane| lane.held().1).sum();
        if held_bytes == 0 || held_bytes < worth_bytes {
            return None;
        }
        sweep::sweep(self, lane, supply);
        Some(before.saturating_sub(self.footprint_bytes()))
    }
}
