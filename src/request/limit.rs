//! What a request may hold: charged in pages before memory is taken, up to a mark and to a limit.
//!
//! At the mark, and again at the limit, what is free inside the request is reclaimed first; then the
//! request is marked, or refused. Reclaiming that was in vain is not tried again before enough was freed
//! that it may be worth it. See `budget` for the words that decide.

use super::Host;
use super::control::Control;
use super::sweep;
use crate::base::size_class::PAGE_BYTES;
use crate::base::symbolizing::is_symbolizing;
use crate::base::sync::Ordering;
use crate::lockfree::budget::{Marked, NO_LIMIT};
use crate::request::lane::Lane;

/// Bytes below the limit at which a request is marked: a part of the limit, within bounds.
const RESERVE_DIVISOR: usize = 8;
const MAX_DEFAULT_RESERVE_BYTES: usize = 4 * 1024 * 1024;
/// `reserve_bytes` of a request whose opener did not say.
pub(super) const DEFAULT_RESERVE: usize = usize::MAX;

/// Reclaiming at a bound is worth it again once the first part of the regions was freed since, and later
/// each time it is in vain, up to the second part.
const FREED_DIVISORS: [usize; 2] = [1024, 32];

/// From the shortest interval to the longest.
const MAX_DOUBLINGS: u32 = (FREED_DIVISORS[0] / FREED_DIVISORS[1]).ilog2();

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
    /// the hard bound it goes on, to its limit. Once it has the memory, `note_taken` marks it. The limit is suspended while the thread
    /// panics or makes a backtrace, and in a lane that says so.
    ///
    /// `lane` is the lane that the caller is in; a caller outside has none.
    pub(super) fn charge(&self, lane: Option<&Lane>, bytes: usize, bound: Bound) -> bool {
        let pages = pages_of(bytes);
        let headroom = self.headroom_pages();
        let soft = (bound == Bound::Soft && !self.mark.is_near()).then_some(headroom);
        let granted = self.budget.charge(pages, soft.unwrap_or(0)).or_else(|| {
            let is_suspended = lane.is_some_and(|lane| lane.limit_is_suspended.get())
                || std::thread::panicking()
                || (bound == Bound::Hard && is_symbolizing());
            is_suspended.then(|| self.budget.charge_beyond(pages)).flatten()
        });
        granted.is_some()
    }

    /// The memory that was charged for is there: it counts to the peak, and the request is marked if it
    /// has come near its limit.
    pub fn note_taken(&self, asked_bytes: usize) {
        let used = self.budget.used();
        let used_bytes = used as usize * PAGE_BYTES;
        self.peak_bytes.fetch_max(used_bytes, Ordering::Relaxed);
        let limit = self.budget.limit();
        if limit != NO_LIMIT
            && used > limit.saturating_sub(self.headroom_pages())
            && !self.mark.is_near()
        {
            self.mark.set(Marked { in_use_bytes: used_bytes, asked_bytes });
        }
    }

    /// Whether so many pages more are over the limit, rather than more than the system has.
    pub(super) fn is_over_limit(&self, pages: usize) -> bool {
        self.budget.used() as usize + pages > self.budget.limit() as usize
    }

    /// Charges, and reclaims first where the request has come to its mark or limit.
    pub fn charge_or_reclaim<S: Host>(
        &self,
        lane: &Lane,
        bytes: usize,
        asked_bytes: usize,
        supply: &S,
    ) -> bool {
        if self.charge(Some(lane), bytes, Bound::Soft) {
            return true;
        }
        // No less than is missing: a length beyond all limits is refused as it is.
        let limit_bytes = self.budget.limit() as usize * PAGE_BYTES;
        let missing_bytes = (self.footprint_bytes() + bytes).saturating_sub(limit_bytes);
        self.reclaim_at_bound(lane, missing_bytes.max(PAGE_BYTES), supply);
        self.charge(Some(lane), bytes, Bound::Hard) || {
            if self.limit().is_some() {
                self.note_refusal(asked_bytes);
            }
            false
        }
    }

    /// Charges for a block that grows, whoever resizes it. A caller outside has no lane to reclaim in, so
    /// it comes to the mark at most: it can visit and try again.
    pub fn charge_growth<S: Host>(
        &self,
        lane: Option<&Lane>,
        bytes: usize,
        asked_bytes: usize,
        supply: &S,
    ) -> bool {
        match lane {
            Some(lane) => self.charge_or_reclaim(lane, bytes, asked_bytes, supply),
            None => self.charge(None, bytes, Bound::Soft),
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

    /// An allocation was refused at the limit.
    pub(super) fn note_refusal(&self, asked_bytes: usize) {
        self.mark.note_refusal(Marked { in_use_bytes: self.footprint_bytes(), asked_bytes });
    }

    /// Why the request is marked, or was refused memory, if so.
    #[inline]
    pub fn marked(&self) -> Option<Marked> {
        self.mark.get()
    }

    /// Whether the request is marked, so that it should be given up. A refusal alone is no reason: who
    /// asked may do without.
    #[inline]
    pub fn is_to_be_given_up(&self) -> bool {
        self.mark.is_near()
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<usize> {
        (self.budget.limit() != NO_LIMIT).then(|| self.limit_bytes.load(Ordering::Relaxed))
    }

    /// Sets the limit, `usize::MAX` for none, after reclaiming if need be. `false`: more is in use, and
    /// nothing has changed.
    pub fn set_limit<S: Host>(&self, lane: Option<&Lane>, bytes: usize, supply: &S) -> bool {
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
    pub fn reclaim<S: Host>(&self, lane: &Lane, worth_bytes: usize, supply: &S) -> Option<usize> {
        let held_bytes = self.held_bytes(lane);
        (held_bytes > 0 && held_bytes >= worth_bytes).then(|| self.sweep(lane, supply))
    }

    /// The same before the request is marked or refused memory: unless it was in vain, and too little
    /// was freed since.
    pub(super) fn reclaim_at_bound<S: Host>(
        &self,
        lane: &Lane,
        worth_bytes: usize,
        supply: &S,
    ) -> Option<usize> {
        let held_bytes = self.held_bytes(lane);
        let left_bytes = self.left_by_reclaim.load(Ordering::Relaxed).min(held_bytes);
        self.left_by_reclaim.store(left_bytes, Ordering::Relaxed);
        let region_bytes = self.region_bytes();
        let doubled = (region_bytes / FREED_DIVISORS[0])
            .saturating_mul(1 << self.reclaims_in_vain.load(Ordering::Relaxed));
        let wanted_bytes = doubled.min(region_bytes / FREED_DIVISORS[1]).max(worth_bytes);
        let is_worth = held_bytes >= worth_bytes && held_bytes - left_bytes >= wanted_bytes;
        is_worth.then(|| self.sweep(lane, supply))
    }

    /// Bytes of the request's free blocks, as far as is known; strays among them now.
    fn held_bytes(&self, lane: &Lane) -> usize {
        if !self.strays.list.is_empty() {
            self.drain_into(lane);
        }
        self.lanes().map(|lane| lane.held().1).sum()
    }

    fn sweep<S: Host>(&self, lane: &Lane, supply: &S) -> usize {
        let before = self.footprint_bytes();
        sweep::sweep(self, lane, supply);
        let went_bytes = before.saturating_sub(self.footprint_bytes());
        self.left_by_reclaim.store(self.held_bytes(lane), Ordering::Relaxed);
        let in_vain = self.reclaims_in_vain.load(Ordering::Relaxed);
        let is_in_vain = went_bytes == 0;
        let in_vain = if is_in_vain { (in_vain + 1).min(MAX_DOUBLINGS) } else { 0 };
        self.reclaims_in_vain.store(in_vain, Ordering::Relaxed);
        went_bytes
    }
}
