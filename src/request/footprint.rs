//! What a request may hold: charged in pages before memory is taken, up to a mark and to a limit.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `budget`, `mark` | see `budget` | |
//! | `peak_bytes` | the thread that takes memory, by read-modify-write | any thread |
//! | `limit_bytes`, `reserve_bytes` | the thread that sets the limit | any thread, for the mark and for texts |
//! | `refusal_is_told` | the thread that is refused memory at the limit | the same |
//!
//! - **Q2** The *footprint*, what `budget` has in use, is the sum of the request's regions and of
//!   what its large blocks need; it is charged before the memory is taken. `peak_bytes` is its
//!   largest value since the request was opened or the peak was reset.
//! - **Q3** A block that becomes shorter leaves the footprint no larger, whatever the limit is. One in
//!   a region does so in place. One with pages of its own may move: the limit is suspended for the new
//!   one, which has no more pages than the old one gives back.

use crate::base::size_class::PAGE_BYTES;
use crate::base::symbolizing::is_symbolizing;
use crate::base::sync::{AtomicBool, AtomicUsize, Ordering};
use crate::lockfree::budget::{Budget, Limit, Mark, Marked};
use crate::request::lane::Lane;

/// How far below its limit a request is marked by default: this part of the limit, up to a maximum.
const RESERVE_DIVISOR: usize = 8;
const MAX_DEFAULT_RESERVE_BYTES: usize = 4 * 1024 * 1024;
/// The `reserve_bytes` of a request whose opener did not set any.
const DEFAULT_RESERVE: usize = usize::MAX;

/// How far a charge may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// To the mark, as long as it is not set.
    Soft,
    /// To the limit.
    Hard,
}

/// What is charged is a multiple of this: pages, and the holes of adopted spans.
const UNIT_BYTES: usize = 256;

const _: () = assert!(PAGE_BYTES % UNIT_BYTES == 0, "pages are charged exactly");

/// The units of so many bytes.
fn units_of(bytes: usize) -> u64 {
    bytes.div_ceil(UNIT_BYTES) as u64
}

/// The units of a limit of so many bytes: down, where a charge goes up.
fn limit_units(bytes: usize) -> u64 {
    (bytes / UNIT_BYTES) as u64
}

/// A limit of so many bytes; `usize::MAX`: none.
fn limit_of(bytes: usize) -> Limit {
    if bytes == usize::MAX { Limit::NONE } else { Limit::of(limit_units(bytes)) }
}

/// What a request holds, and how much it may hold.
pub struct Footprint {
    budget: Budget,
    peak_bytes: AtomicUsize,
    limit_bytes: AtomicUsize,
    reserve_bytes: AtomicUsize,
    mark: Mark,
    /// Whether a refusal at the limit was already reported, or is never to be.
    refusal_is_told: AtomicBool,
}

impl Footprint {
    /// Creates an empty footprint, of no request.
    pub const fn new() -> Self {
        Self {
            budget: Budget::new(),
            peak_bytes: AtomicUsize::new(0),
            limit_bytes: AtomicUsize::new(0),
            reserve_bytes: AtomicUsize::new(0),
            mark: Mark::new(),
            refusal_is_told: AtomicBool::new(false),
        }
    }

    /// Opens it for a new request that no other thread knows yet and that holds nothing.
    #[inline]
    pub fn open(
        &self,
        limit_bytes: Option<usize>,
        reserve_bytes: Option<usize>,
        hides_limit: bool,
    ) {
        let limit_bytes = limit_bytes.unwrap_or(usize::MAX);
        self.budget.open(limit_of(limit_bytes));
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
        let reserve_bytes = match reserve_bytes {
            Some(bytes) => bytes.min(DEFAULT_RESERVE - 1),
            None => DEFAULT_RESERVE,
        };
        self.reserve_bytes.store(reserve_bytes, Ordering::Relaxed);
        self.mark.clear();
        self.peak_bytes.store(0, Ordering::Relaxed);
        self.refusal_is_told.store(hides_limit, Ordering::Relaxed);
    }

    /// Charges `bytes` of pages before they are taken (Q2). `false`: they are over the bound.
    ///
    /// At the soft bound a request that is not marked yet is refused, so that the caller reclaims
    /// first; at the hard bound it may go on to its limit. Once it has the memory, `note_taken`
    /// marks it. The hard bound is suspended while the thread panics or makes a backtrace, and in a
    /// lane that says so.
    ///
    /// `lane` is the lane that the caller is in; a caller outside has none.
    pub fn charge(&self, lane: Option<&Lane>, bytes: usize, bound: Bound) -> bool {
        let is_suspended = || {
            lane.is_some_and(|lane| lane.limit_is_suspended.get())
                || std::thread::panicking()
                || is_symbolizing()
        };
        self.charge_within(bytes, bound)
            || (bound == Bound::Hard
                && is_suspended()
                && self.budget.charge_beyond(units_of(bytes)).is_some())
    }

    /// The same for what is no more than convenient: never beyond a bound.
    pub fn charge_within(&self, bytes: usize, bound: Bound) -> bool {
        let is_soft = bound == Bound::Soft && !self.mark.is_near();
        let most = if is_soft { self.mark_units() } else { u64::MAX };
        self.budget.charge(units_of(bytes), most).is_some()
    }

    /// Notes that the memory that was charged for is there: it counts towards the peak, and the
    /// request is marked if it has come near its limit.
    pub fn note_taken(&self, asked_bytes: usize) {
        let used = self.budget.used();
        let used_bytes = used as usize * UNIT_BYTES;
        self.peak_bytes.fetch_max(used_bytes, Ordering::Relaxed);
        if used > self.mark_units() && !self.mark.is_near() {
            self.mark.set(Marked { in_use_bytes: used_bytes, asked_bytes });
        }
    }

    /// Takes `bytes` of pages off the footprint (Q2).
    pub fn refund(&self, bytes: usize) {
        self.budget.refund(units_of(bytes));
    }

    /// Returns the bytes of pages it holds.
    pub fn bytes(&self) -> usize {
        self.budget.used() as usize * UNIT_BYTES
    }

    /// Returns the largest footprint so far.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// Starts to measure the peak anew.
    pub fn reset_peak(&self) {
        self.peak_bytes.store(self.bytes(), Ordering::Relaxed);
    }

    /// Returns the limit in bytes, if there is one.
    pub fn limit_bytes(&self) -> Option<usize> {
        (self.budget.limit() != Limit::NONE).then(|| self.limit_bytes.load(Ordering::Relaxed))
    }

    /// Whether `pages` more are over the limit, rather than more than the system has.
    pub fn is_over_limit(&self, pages: usize) -> bool {
        self.budget.used() as usize + pages * (PAGE_BYTES / UNIT_BYTES)
            > self.budget.limit().units() as usize
    }

    /// How much may be charged up to a bound.
    pub fn room_bytes(&self, bound: Bound) -> usize {
        let is_soft = bound == Bound::Soft && !self.mark.is_near();
        let most = if is_soft { self.mark_units() } else { u64::MAX };
        let most = most.min(self.budget.limit().units());
        most.saturating_sub(self.budget.used()) as usize * UNIT_BYTES
    }

    /// Returns by how much `bytes` more are over the limit.
    pub fn missing_bytes(&self, bytes: usize) -> usize {
        let limit_bytes = self.budget.limit().units() as usize * UNIT_BYTES;
        (self.bytes() + bytes).saturating_sub(limit_bytes)
    }

    /// Sets the limit, `usize::MAX` for none. `false`: more is in use, and nothing has changed.
    pub fn set_limit(&self, bytes: usize) -> bool {
        if !self.budget.set_limit(limit_of(bytes)) {
            return false;
        }
        self.limit_bytes.store(bytes, Ordering::Relaxed);
        if self.budget.used() <= self.mark_units() {
            self.mark.clear();
        }
        true
    }

    /// How many units may be in use before the request is marked.
    fn mark_units(&self) -> u64 {
        let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
        if limit_bytes == usize::MAX {
            return u64::MAX;
        }
        let reserve_bytes = match self.reserve_bytes.load(Ordering::Relaxed) {
            DEFAULT_RESERVE => (limit_bytes / RESERVE_DIVISOR).min(MAX_DEFAULT_RESERVE_BYTES),
            bytes => bytes,
        };
        limit_units(limit_bytes.saturating_sub(reserve_bytes))
    }

    /// Returns why the request is marked, or was refused memory, if so.
    #[inline]
    pub fn marked(&self) -> Option<Marked> {
        self.mark.get()
    }

    /// Whether the request is marked; a refusal alone does not count.
    #[inline]
    pub fn is_near_limit(&self) -> bool {
        self.mark.is_near()
    }

    /// Notes that an allocation was refused at the limit.
    pub fn note_refusal(&self, asked_bytes: usize) {
        self.mark.note_refusal(Marked { in_use_bytes: self.bytes(), asked_bytes });
    }

    /// Whether it must be reported now that the request was refused memory at its limit: once.
    pub fn tells_refusal(&self) -> bool {
        !self.refusal_is_told.load(Ordering::Relaxed)
            && !self.refusal_is_told.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_BYTES: usize = 64 * PAGE_BYTES;
    const RESERVE_BYTES: usize = 8 * PAGE_BYTES;

    fn limited() -> Footprint {
        let footprint = Footprint::new();
        footprint.open(Some(LIMIT_BYTES), Some(RESERVE_BYTES), false);
        footprint
    }

    fn take(footprint: &Footprint, bytes: usize, bound: Bound) -> bool {
        let is_granted = footprint.charge(None, bytes, bound);
        if is_granted {
            footprint.note_taken(bytes);
        }
        is_granted
    }

    #[test]
    fn the_soft_bound_is_the_mark_until_it_is_set() {
        let footprint = limited();
        assert!(take(&footprint, LIMIT_BYTES - RESERVE_BYTES, Bound::Soft));
        assert!(!footprint.is_near_limit() && footprint.marked().is_none());
        assert!(!take(&footprint, PAGE_BYTES, Bound::Soft), "the caller reclaims first");
        assert!(take(&footprint, PAGE_BYTES, Bound::Hard));
        assert!(footprint.is_near_limit(), "the memory is there, above the mark");
        assert!(
            take(&footprint, RESERVE_BYTES - PAGE_BYTES, Bound::Soft),
            "marked, so up to the limit"
        );
        assert!(!take(&footprint, PAGE_BYTES, Bound::Hard));
        assert!(footprint.is_over_limit(1) && !footprint.is_over_limit(0));
        assert_eq!(footprint.missing_bytes(3 * PAGE_BYTES), 3 * PAGE_BYTES);
    }

    #[test]
    fn a_limit_is_not_below_what_is_in_use_and_a_higher_one_takes_the_mark_back() {
        let footprint = limited();
        assert!(take(&footprint, LIMIT_BYTES, Bound::Hard) && footprint.is_near_limit());
        assert!(!footprint.set_limit(LIMIT_BYTES - PAGE_BYTES));
        assert_eq!(footprint.limit_bytes(), Some(LIMIT_BYTES), "nothing has changed");
        assert!(footprint.set_limit(usize::MAX));
        assert!(footprint.limit_bytes().is_none() && !footprint.is_near_limit());
    }

    #[test]
    fn a_limit_may_be_as_long_as_addresses() {
        const TIB: usize = 1 << 40;
        let footprint = Footprint::new();
        footprint.open(Some(5 * TIB), None, false);
        assert!(take(&footprint, 4 * TIB, Bound::Soft) && !footprint.is_near_limit());
        assert!(take(&footprint, TIB - MAX_DEFAULT_RESERVE_BYTES, Bound::Soft));
        assert!(!take(&footprint, PAGE_BYTES, Bound::Soft), "the mark is where it was asked for");
        assert_eq!(footprint.room_bytes(Bound::Hard), MAX_DEFAULT_RESERVE_BYTES);
        assert!(take(&footprint, MAX_DEFAULT_RESERVE_BYTES, Bound::Hard));
        assert!(!footprint.charge(None, PAGE_BYTES, Bound::Hard) && footprint.is_over_limit(1));
        assert_eq!((footprint.bytes(), footprint.limit_bytes()), (5 * TIB, Some(5 * TIB)));
        assert!(!footprint.set_limit(5 * TIB - PAGE_BYTES - TIB));
        assert!(footprint.set_limit(7 * TIB + 1) && footprint.limit_bytes() == Some(7 * TIB + 1));
        assert!(take(&footprint, 2 * TIB, Bound::Hard) && footprint.is_near_limit());
        assert!(footprint.set_limit(usize::MAX) && !footprint.is_near_limit());
        assert!(take(&footprint, 100 * TIB, Bound::Soft), "without a limit, too");
        assert!(!take(&footprint, isize::MAX as usize, Bound::Hard));
        footprint.refund(107 * TIB);
        assert_eq!((footprint.bytes(), footprint.peak_bytes()), (0, 107 * TIB));
    }

    #[test]
    fn the_peak_stays_until_it_is_measured_anew() {
        let footprint = limited();
        assert!(take(&footprint, 5 * PAGE_BYTES, Bound::Soft));
        footprint.refund(3 * PAGE_BYTES);
        assert_eq!((footprint.bytes(), footprint.peak_bytes()), (2 * PAGE_BYTES, 5 * PAGE_BYTES));
        footprint.reset_peak();
        assert_eq!(footprint.peak_bytes(), 2 * PAGE_BYTES);
    }

    #[test]
    fn a_refusal_is_told_once_and_is_no_mark() {
        let footprint = limited();
        footprint.note_refusal(PAGE_BYTES);
        assert!(footprint.marked().is_some() && !footprint.is_near_limit());
        assert!(footprint.tells_refusal() && !footprint.tells_refusal());
        footprint.open(None, None, true);
        assert!(!footprint.tells_refusal(), "its opener wants no report");
    }
}
