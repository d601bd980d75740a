//! What a request may hold: charged in pages before memory is taken, up to a mark and to a limit.
//! A request may have a parent, to which everything it is charged counts, too.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `budget`, `mark` | see `budget` | |
//! | `peak_bytes` | the thread that takes memory, by read-modify-write | any thread |
//! | `limits` | see `limits` | |
//! | `refusal_is_told` | the thread that is refused memory at the limit | the same |
//! | `above` | who opens the request, before others know it; who finishes it | anybody in the request, or visiting it |
//! | `of_children_units` | who charges or refunds a request below, by read-modify-write | any thread |
//!
//! - **Q2** The *footprint*, what `budget` has in use, is the sum of the request's regions, of what
//!   its large blocks need, and of its children's footprints; it is charged before the memory is
//!   taken. `peak_bytes` is its largest value since the request was opened or the peak was reset.
//! - **Q3** Until a child is finished it has a handle of its parent, so what is `above` is open; and
//!   what it still holds is taken off its parent's footprint before the handle is dropped.
//! - **Q4** A block that becomes shorter leaves the footprint no larger, whatever the limit is. One in
//!   a region does so in place. One with pages of its own may move: the limit is suspended for the new
//!   one, which has no more pages than the old one gives back.

use crate::base::symbolizing::is_symbolizing;
use crate::base::sync::{AtomicBool, AtomicUsize, Ordering};
use crate::lockfree::budget::{Budget, Limit, MAX_LEVELS, Mark, Marked, Reason, charge_each};
#[cfg(feature = "async")]
use crate::request::growth::POLL_GROWTH;
use crate::request::lane::Lane;
use crate::request::limits::{Limits, LimitsNow, UNIT_BYTES, limit_of, units_of};
use core::cell::Cell;
use core::ptr::null;

/// How often a charge to a chain is tried that is refused although it fits: others come first.
const MOST_CHARGES: usize = 8;

/// How far a charge may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// To the mark, as long as it is not set.
    Soft,
    /// To the limit.
    Hard,
}

/// What a request holds, and how much it may hold.
pub struct Footprint {
    budget: Budget,
    peak_bytes: AtomicUsize,
    limits: LimitsNow,
    mark: Mark,
    /// Whether a refusal at the limit was already reported, or is never to be.
    refusal_is_told: AtomicBool,
    /// Its parent's; null: it has none.
    above: Cell<*const Footprint>,
    /// What of the footprint its children are charged.
    of_children_units: AtomicUsize,
}

impl Footprint {
    /// Creates an empty footprint, of no request.
    pub const fn new() -> Self {
        Self {
            budget: Budget::new(),
            peak_bytes: AtomicUsize::new(0),
            limits: LimitsNow::new(),
            mark: Mark::new(),
            refusal_is_told: AtomicBool::new(false),
            above: Cell::new(null()),
            of_children_units: AtomicUsize::new(0),
        }
    }

    /// Opens it for a new request that no other thread knows yet and that holds nothing; it has a
    /// handle of its parent. (`of_children_units` is 0 again once every child is finished.)
    #[inline]
    pub fn open(&self, limits: &Limits, hides_limit: bool, parent: Option<&Self>) {
        self.budget.open(self.limits.open(limits));
        self.mark.clear();
        self.peak_bytes.store(0, Ordering::Relaxed);
        self.refusal_is_told.store(hides_limit, Ordering::Relaxed);
        self.above.set(parent.map_or(null(), |parent| parent));
    }

    // ---- the chain -----------------------------------------------------------------------------

    /// The parent's.
    #[inline]
    pub fn above(&self) -> Option<&Self> {
        // SAFETY: null, or in a control block (M1), whose request is open until this one is over
        // (Q3).
        unsafe { self.above.get().as_ref() }
    }

    /// This one, its parent's, and so on.
    #[inline]
    pub fn levels(&self) -> impl Iterator<Item = &Self> + Clone {
        core::iter::successors(Some(self), |level| level.above())
    }

    /// Takes it out of its chain, once nothing is charged or refunded any more: what it still holds
    /// is taken off its parent's (Q3).
    pub fn leave(&self) {
        let units = self.budget.take_all();
        self.parents().for_each(|above| {
            above.refund_child(units);
            if above.mark.is_set() {
                above.clear_marks();
            }
        });
        self.above.set(null());
    }

    /// Clears the marks below which it is again, because a child is finished.
    #[cold]
    fn clear_marks(&self) {
        let used = self.budget.used();
        if used <= self.limits.near_units() {
            self.mark.clear_limit();
        }
        if used <= self.limits.soft_units() {
            self.mark.clear_soft();
        }
    }

    fn parents(&self) -> impl Iterator<Item = &Self> + Clone {
        self.levels().skip(1)
    }

    fn refund_child(&self, units: u64) {
        self.budget.refund(units);
        self.of_children_units.fetch_sub(units as usize, Ordering::Relaxed);
    }

    // ---- charges -------------------------------------------------------------------------------

    /// Charges `bytes` of pages before they are taken (Q2), here and to the parents (G3). `false`:
    /// they are over a bound.
    ///
    /// At the soft bound a request that is not marked yet is refused, so that the caller reclaims
    /// first; at the hard bound it may go on to its limit. Once it has the memory, `note_taken`
    /// marks it. The hard bound is suspended while the thread panics or makes a backtrace, and in a
    /// lane that says so.
    ///
    /// `lane` is the lane that the caller is in; a caller outside has none.
    pub fn charge(&self, lane: Option<&Lane>, bytes: usize, bound: Bound) -> bool {
        let units = units_of(bytes);
        let is_suspended = || {
            bound == Bound::Hard
                && (lane.is_some_and(|lane| lane.limit_is_suspended.get())
                    || std::thread::panicking()
                    || is_symbolizing())
        };
        self.charge_levels(units, bound, is_suspended)
    }

    /// The same for what is no more than convenient: never beyond a bound.
    pub fn charge_within(&self, bytes: usize, bound: Bound) -> bool {
        self.charge_levels(units_of(bytes), bound, || false)
    }

    #[inline]
    fn charge_levels(&self, units: u64, bound: Bound, is_suspended: impl Fn() -> bool) -> bool {
        if self.above().is_none() {
            return self.charge_alone(units, bound, &is_suspended);
        }
        self.charge_chain(units, bound, &is_suspended)
    }

    #[cold]
    fn charge_chain(&self, units: u64, bound: Bound, is_suspended: &impl Fn() -> bool) -> bool {
        let charge = |level: &Self| {
            if core::ptr::eq(level, self) {
                return level.charge_alone(units, bound, is_suspended);
            }
            // First: what is a child's never counts as the parent's own.
            level.of_children_units.fetch_add(units as usize, Ordering::Relaxed);
            let is_granted = level.charge_alone(units, bound, is_suspended);
            if !is_granted {
                level.of_children_units.fetch_sub(units as usize, Ordering::Relaxed);
            }
            is_granted
        };
        let undo = |level: &Self| match core::ptr::eq(level, self) {
            true => level.budget.refund(units),
            false => level.refund_child(units),
        };
        for _ in 0..MOST_CHARGES {
            // A charge that must be refused had better not be seen by others, which it would keep
            // from what they may have.
            let fits = self.levels().all(|level| level.fits(units, bound));
            if !(fits || is_suspended()) {
                return false;
            }
            if charge_each(self.levels(), charge, undo).is_ok() {
                return true;
            }
        }
        false
    }

    fn charge_alone(&self, units: u64, bound: Bound, is_suspended: &impl Fn() -> bool) -> bool {
        self.budget.charge(units, self.most_units(bound)).is_some()
            || (is_suspended() && self.budget.charge_beyond(units).is_some())
    }

    /// Whether so many units more would be granted now.
    fn fits(&self, units: u64, bound: Bound) -> bool {
        let most = self.most_units(bound).min(self.budget.limit().units());
        self.budget.used().checked_add(units).is_some_and(|sum| sum <= most)
    }

    /// Notes that the memory that was charged for is there: it counts towards the peaks, and each
    /// request that has come near its limit, or above its soft one, is marked.
    pub fn note_taken(&self, asked_bytes: usize) {
        self.levels().for_each(|level| level.note_taken_alone(asked_bytes));
    }

    #[inline]
    fn note_taken_alone(&self, asked_bytes: usize) {
        let used = self.budget.used();
        self.peak_bytes.fetch_max(used as usize * UNIT_BYTES, Ordering::Relaxed);
        if used > self.limits.near_units().min(self.limits.soft_units()) {
            self.set_marks(used, asked_bytes);
        }
    }

    #[cold]
    fn set_marks(&self, used: u64, asked_bytes: usize) {
        for (reason, mark_units) in self.marks_at() {
            if used > mark_units && !self.mark.has(reason) {
                let in_use_bytes = used as usize * UNIT_BYTES;
                self.mark.say(reason, Marked { in_use_bytes, asked_bytes });
            }
        }
    }

    /// Takes `bytes` of pages off the footprint (Q2) and off those of the parents.
    pub fn refund(&self, bytes: usize) {
        let units = units_of(bytes);
        self.budget.refund(units);
        self.parents().for_each(|above| above.refund_child(units));
    }

    /// Returns the bytes of pages it holds, with those of its children.
    pub fn bytes(&self) -> usize {
        self.budget.used() as usize * UNIT_BYTES
    }

    /// Returns the bytes of pages it holds without those of its children. Exact while nobody
    /// charges or refunds.
    #[inline]
    pub fn own_bytes(&self) -> usize {
        let of_children = self.of_children_units.load(Ordering::Relaxed);
        (self.budget.used() as usize).saturating_sub(of_children) * UNIT_BYTES
    }

    /// Returns the largest footprint so far.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// Starts to measure the peak anew.
    pub fn reset_peak(&self) {
        self.peak_bytes.store(self.bytes(), Ordering::Relaxed);
    }

    // ---- limits --------------------------------------------------------------------------------

    /// Returns the limit in bytes, if there is one.
    pub fn limit_bytes(&self) -> Option<usize> {
        (self.budget.limit() != Limit::NONE).then(|| self.limits.limit_bytes())
    }

    /// Returns the soft limit in bytes, if there is one.
    pub fn soft_limit_bytes(&self) -> Option<usize> {
        self.limits.soft_limit_bytes()
    }

    /// Returns at which level `bytes` more are over the limit; `None`: at none, so the system has
    /// no more.
    pub fn level_over_limit(&self, bytes: usize) -> Option<usize> {
        self.levels().position(|level| level.missing_alone(bytes) > 0)
    }

    /// Returns at which level there is a limit.
    pub fn level_with_limit(&self) -> Option<usize> {
        self.levels().position(|level| level.budget.limit() != Limit::NONE)
    }

    /// Returns the lowest limit of the chain in bytes.
    pub fn lowest_limit_bytes(&self) -> Option<usize> {
        self.levels().filter_map(Self::limit_bytes).min()
    }

    /// How much may be charged up to a bound.
    pub fn room_bytes(&self, bound: Bound) -> usize {
        let room = |level: &Self| {
            let most = level.most_units(bound).min(level.budget.limit().units());
            most.saturating_sub(level.budget.used()) as usize * UNIT_BYTES
        };
        self.levels().map(room).min().unwrap_or(0)
    }

    /// Returns by how much `bytes` more are over a limit.
    pub fn missing_bytes(&self, bytes: usize) -> usize {
        self.levels().map(|level| level.missing_alone(bytes)).max().unwrap_or(0)
    }

    fn missing_alone(&self, bytes: usize) -> usize {
        let limit = self.budget.limit();
        self.bytes().saturating_add(bytes).saturating_sub(limit.units() as usize * UNIT_BYTES)
    }

    /// Sets the limit, `usize::MAX` for none. `false`: more is in use, and nothing has changed.
    pub fn set_limit(&self, bytes: usize) -> bool {
        if !self.budget.set_limit(limit_of(bytes)) {
            return false;
        }
        self.limits.set_limit(bytes);
        if self.budget.used() <= self.limits.near_units() {
            self.mark.clear_limit();
        }
        true
    }

    /// Sets the soft limit, `usize::MAX` for none: the request is marked at once if it is above.
    pub fn set_soft_limit(&self, bytes: usize) {
        self.limits.set_soft_limit(bytes);
        let used = self.budget.used();
        if used <= self.limits.soft_units() {
            self.mark.clear_soft();
        } else if !self.mark.has(Reason::Soft) {
            let in_use_bytes = used as usize * UNIT_BYTES;
            self.mark.say(Reason::Soft, Marked { in_use_bytes, asked_bytes: 0 });
        }
    }

    /// How many units may be in use up to a bound: at the soft one to the lowest mark that is not
    /// set.
    fn most_units(&self, bound: Bound) -> u64 {
        if bound == Bound::Hard || self.limits.are_none() {
            return u64::MAX;
        }
        let [near, soft] = self
            .marks_at()
            .map(|(reason, units)| if self.mark.has(reason) { u64::MAX } else { units });
        near.min(soft)
    }

    /// How many units may be in use before the request is marked, and for what.
    fn marks_at(&self) -> [(Reason, u64); 2] {
        [(Reason::Near, self.limits.near_units()), (Reason::Soft, self.limits.soft_units())]
    }

    /// Notes by how much it grew in a poll that began at so many bytes, unless it was refused
    /// memory: that one is no measure.
    #[cfg(feature = "async")]
    pub fn note_poll(&self, before_bytes: usize) {
        let was_refused = matches!(self.mark.get(), Some((Reason::Refused(_), _)));
        if !was_refused {
            POLL_GROWTH.note(self.own_bytes().saturating_sub(before_bytes));
        }
    }

    // ---- marks ---------------------------------------------------------------------------------

    /// Returns why the request is marked, or was refused memory, if so.
    #[inline]
    pub fn marked(&self) -> Option<(Reason, Marked)> {
        self.mark.get()
    }

    /// Whether anything may be known of a limit that was reached.
    #[inline]
    pub fn may_be_marked(&self) -> bool {
        self.mark.is_set() || !self.above.get().is_null()
    }

    /// Whether the request is to be given up, because it or one above it is marked; a refusal alone
    /// does not count.
    #[inline]
    pub fn is_to_be_given_up(&self) -> bool {
        self.mark.is_to_be_given_up() || self.marked_above().is_some()
    }

    /// Returns how many levels above this one the first request stands that is to be given up.
    #[inline]
    pub fn marked_above(&self) -> Option<usize> {
        self.parents().position(|above| above.mark.is_to_be_given_up()).map(|index| index + 1)
    }

    /// Notes that an allocation was refused at the limit of the request so many levels above.
    pub fn note_refusal(&self, level: usize, asked_bytes: usize) {
        let Some(refuser) = self.levels().nth(level.min(MAX_LEVELS - 1)) else { return };
        self.mark
            .say(Reason::Refused(level), Marked { in_use_bytes: refuser.bytes(), asked_bytes });
    }

    /// Marks the request because the process holds `in_use_bytes`, more than its limit. Any thread
    /// may, as a visitor. `false`: it is marked for that already.
    pub fn mark_for_process(&self, limit_bytes: usize, in_use_bytes: usize) -> bool {
        !self.is_marked_for_process() && {
            self.mark.say(Reason::Process, Marked { in_use_bytes, asked_bytes: limit_bytes });
            true
        }
    }

    /// Whether the request is marked because of what the process holds.
    #[inline]
    pub fn is_marked_for_process(&self) -> bool {
        self.mark.has(Reason::Process)
    }

    /// Whether it must be reported now that the request was refused memory at its limit: once.
    pub fn tells_refusal(&self) -> bool {
        !self.refusal_is_told.load(Ordering::Relaxed)
            && !self.refusal_is_told.swap(true, Ordering::Relaxed)
    }
}
