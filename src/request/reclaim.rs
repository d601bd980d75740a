//! Reclaiming: before a request is marked at its limit's reserve, and again before it is refused
//! memory at its limit, what is free inside it goes back. If that got nothing back, it is not tried
//! again soon (W3).

use super::Host;
use crate::base::size_class::PAGE_BYTES;
use crate::request::control::Control;
use crate::request::footprint::Bound;
use crate::request::lane::Lane;
use crate::request::sweep::sweep;

impl Control {
    /// Charges (Q2), reclaiming first if the request has come to its mark or limit.
    pub fn charge_or_reclaim<S: Host>(
        &self,
        lane: &Lane,
        bytes: usize,
        asked_bytes: usize,
        supply: &S,
    ) -> bool {
        if self.footprint.charge(Some(lane), bytes, Bound::Soft) {
            return true;
        }
        // No less than is missing, so that a length beyond all limits is refused without a walk.
        let missing_bytes = self.footprint.missing_bytes(bytes);
        self.reclaim_at_bound(lane, missing_bytes.max(PAGE_BYTES), supply);
        self.footprint.charge(Some(lane), bytes, Bound::Hard) || {
            // Somebody may have given back what was missing meanwhile.
            let level = self.footprint.level_over_limit(bytes);
            if let Some(level) = level.or_else(|| self.footprint.level_with_limit()) {
                self.footprint.note_refusal(level, asked_bytes);
            }
            false
        }
    }

    /// Charges for a block that grows, whichever thread resizes it. A caller outside has no lane to
    /// reclaim in, so it stops at the soft bound: it can visit and try again.
    pub fn charge_growth<S: Host>(
        &self,
        lane: Option<&Lane>,
        bytes: usize,
        asked_bytes: usize,
        supply: &S,
    ) -> bool {
        match lane {
            Some(lane) => self.charge_or_reclaim(lane, bytes, asked_bytes, supply),
            None => self.footprint.charge(None, bytes, Bound::Soft),
        }
    }

    /// Sets the limit, `usize::MAX` for none, reclaiming first if need be. `false`: more is in use,
    /// and the limit has not changed.
    pub fn set_limit<S: Host>(&self, lane: Option<&Lane>, bytes: usize, supply: &S) -> bool {
        self.footprint.set_limit(bytes)
            || lane.is_some_and(|lane| {
                self.reclaim(lane, PAGE_BYTES, supply);
                self.footprint.set_limit(bytes)
            })
    }

    /// Sets the soft limit, `usize::MAX` for none, reclaiming first if more is in use.
    pub fn set_soft_limit<S: Host>(&self, lane: Option<&Lane>, bytes: usize, supply: &S) {
        if let Some(lane) = lane.filter(|_| self.footprint_bytes() > bytes) {
            self.reclaim(lane, PAGE_BYTES, supply);
        }
        self.footprint.set_soft_limit(bytes);
    }

    /// Gives back the regions that contain only free blocks, and makes room in the others, if there
    /// are at least `worth_bytes` of free blocks. Returns the bytes of pages that went; `None`: it
    /// was not worth it.
    pub fn reclaim<S: Host>(&self, lane: &Lane, worth_bytes: usize, supply: &S) -> Option<usize> {
        let free_bytes = self.free_bytes(lane);
        let is_worth = free_bytes > 0 && free_bytes >= worth_bytes;
        is_worth.then(|| self.sweep_and_note(lane, supply))
    }

    /// Reclaims before the request is marked or refused memory, unless that was in vain the last
    /// time and too little has been freed since (W3).
    pub(super) fn reclaim_at_bound<S: Host>(
        &self,
        lane: &Lane,
        worth_bytes: usize,
        supply: &S,
    ) -> Option<usize> {
        let free_bytes = self.free_bytes(lane);
        let is_due = self.pace.is_reclaim_due(self.region_bytes(), free_bytes, worth_bytes);
        is_due.then(|| self.sweep_and_note(lane, supply))
    }

    /// Returns the bytes of the request's free blocks, as far as is known, once strays are drained.
    fn free_bytes(&self, lane: &Lane) -> usize {
        self.stub().drain_into(lane);
        self.lanes().map(|lane| lane.free_figures().1).sum()
    }

    fn sweep_and_note<S: Host>(&self, lane: &Lane, supply: &S) -> usize {
        let before_bytes = self.footprint_bytes();
        sweep(self, lane, supply);
        let went_bytes = before_bytes.saturating_sub(self.footprint_bytes());
        self.pace.note_reclaim(went_bytes, self.free_bytes(lane));
        went_bytes
    }
}
