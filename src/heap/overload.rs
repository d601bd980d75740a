//! What is done while the process is above its limit: see `process`.

use super::Heap;
use super::process::{Candidate, MOST_MARKED};
use crate::base::os;
use crate::base::sync::{Ordering, Patience};
use crate::request::control::Control;
use core::cell::Cell;

/// The pause after a round that found nothing to mark.
const PAUSE_MILLISECONDS: u64 = 100;
/// How many leaves of 64 control blocks are looked at in one portion.
const PORTION_LEAVES: usize = 16;

impl Heap {
    /// Sets the limit of the process in bytes, and looks at once.
    pub fn set_process_limit(&self, bytes: Option<usize>) {
        self.process.limit.store(bytes.map_or(0, |bytes| !bytes), Ordering::Relaxed);
        self.process.next_look.store(0, Ordering::Relaxed);
        self.look_at_process(os::coarse_milliseconds());
    }

    /// Returns the limit of the process in bytes.
    pub fn process_limit(&self) -> Option<usize> {
        self.process.get()
    }

    /// Returns the limit of the process and what it has in use, if that is more, as of a few
    /// milliseconds ago.
    pub fn process_excess(&self) -> Option<(usize, usize)> {
        let limit_bytes = self.process.get()?;
        if self.most_in_use_bytes() <= limit_bytes {
            return None;
        }
        self.look_at_process(os::coarse_milliseconds());
        let in_use_bytes = self.process.in_use_bytes.load(Ordering::Relaxed);
        (in_use_bytes > limit_bytes).then_some((limit_bytes, in_use_bytes))
    }

    /// The process has grown: looks whether it is above its limit.
    #[inline]
    pub(super) fn note_growth(&self) {
        if self.process.get().is_some() {
            self.look_at_process(os::coarse_milliseconds());
        }
    }

    /// Looks whether the process is above its limit, if that is due; then begins a round, or goes on
    /// with one.
    #[cold]
    pub(super) fn look_at_process(&self, now: u64) {
        let process = &self.process;
        let Some(limit_bytes) = process.get() else { return };
        if process.next_leaf.load(Ordering::Relaxed) == 0 {
            let mapped_bytes = self.most_in_use_bytes();
            if mapped_bytes <= limit_bytes {
                process.seen_bytes.store(mapped_bytes, Ordering::Relaxed);
                process.in_use_bytes.store(mapped_bytes, Ordering::Relaxed);
                return;
            }
            if !process.claim(now, mapped_bytes, limit_bytes) {
                return;
            }
            process.seen_bytes.store(mapped_bytes, Ordering::Relaxed);
            if self.measure_process() <= limit_bytes {
                return;
            }
            let (none, first) = (0, 1);
            let _ = process.next_leaf.compare_exchange(
                none,
                first,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        if process.turn.try_enter() {
            self.go_on_with_round(limit_bytes, now);
            process.turn.leave();
        }
    }

    /// Returns what the process has in use at most, without a walk.
    fn most_in_use_bytes(&self) -> usize {
        let (mapped_bytes, kept_bytes) = self.mappings.figures();
        let descriptors = self.pages.space.descriptors.mapped_bytes();
        (self.pages.chunk_bytes() + mapped_bytes + descriptors).saturating_sub(kept_bytes)
    }

    /// Measures what the process has in use: what is mapped, less what could go back now. Free
    /// blocks in the caches of threads are in use.
    fn measure_process(&self) -> usize {
        let controls = self.controls.figures();
        let idle_bytes = self.store.most_bytes()
            + self.pages.free_bytes().0
            + controls.idle_bytes
            + controls.empty_bytes
            + controls.warm_bytes
            + self.pages.space.descriptors.untaken_bytes();
        let in_use_bytes = self.most_in_use_bytes().saturating_sub(idle_bytes);
        self.process.in_use_bytes.store(in_use_bytes, Ordering::Relaxed);
        in_use_bytes
    }

    /// Does a portion of a round, and at its end marks who must go. The caller has the turn.
    fn go_on_with_round(&self, limit_bytes: usize, now: u64) {
        let (process, round) = (&self.process, &self.process.round);
        let Some(leaf) = process.next_leaf.load(Ordering::Relaxed).checked_sub(1) else { return };
        if leaf == 0 {
            round.begin();
        }
        let leaves = leaf..leaf + PORTION_LEAVES;
        let seen = leaves.clone().map_while(|leaf| self.controls.stubs_of(leaf));
        if seen.map(|stubs| stubs.for_each(|stub| round.note_stub(stub))).count() == leaves.len() {
            return process.next_leaf.store(leaves.end + 1, Ordering::Relaxed);
        }
        let in_use_bytes = self.measure_process();
        let excess_bytes = in_use_bytes.saturating_sub(limit_bytes);
        let mut missing_bytes = excess_bytes.saturating_sub(round.marked_bytes.get());
        let mut marked_count = 0;
        for candidate in round.largest[..round.count.get()].iter().map(Cell::get) {
            if missing_bytes == 0 {
                break;
            }
            if let Some(bytes) = self.mark(candidate, limit_bytes, in_use_bytes) {
                missing_bytes = missing_bytes.saturating_sub(bytes);
                marked_count += 1;
            }
        }
        // Those that were marked may not have been enough.
        let goes_on = missing_bytes > 0 && marked_count == MOST_MARKED;
        process.next_leaf.store(usize::from(goes_on), Ordering::Relaxed);
        if marked_count == 0 {
            process.next_look.store(now + PAUSE_MILLISECONDS, Ordering::Relaxed);
        }
    }

    /// Marks a request, if it is still open and not marked. Returns what it holds.
    fn mark(&self, who: Candidate, limit_bytes: usize, in_use_bytes: usize) -> Option<usize> {
        let stub = self.controls.stub(who.index)?;
        let mut patience = Patience::new();
        let mark = || {
            let control = Control::of(stub);
            control.mark_for_process(limit_bytes, in_use_bytes).then(|| control.own_bytes())
        };
        stub.state.visit(who.generation, || patience.wait(), mark)?
    }
}
