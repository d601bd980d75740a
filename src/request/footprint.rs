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

use crate::base::size_class::PAGE_BYTES;
use crate::base::symbolizing::is_symbolizing;
use crate::base::sync::{AtomicBool, AtomicUsize, Ordering};
use crate::lockfree::budget::{Budget, Mark, Marked, NO_LIMIT};
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
fn units_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(NO_LIMIT)
}

/// The pages of a limit of so many bytes.
fn limit_units(bytes: usize) -> u32 {
    if bytes == usize::MAX {
        return NO_LIMIT;
    }
    // Down, where a charge goes up.
    u32::try_from(bytes / UNIT_BYTES).unwrap_or(NO_LIMIT).min(NO_LIMIT - 1)
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
        self.budget.open(limit_units(limit_bytes));
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
    /// marks it. The limit is suspended while the thread panics or makes a backtrace, and in a lane
    /// that says so.
    ///
    /// `lane` is the lane that the caller is in; a caller outside has none.
    pub fn charge(&self, lane: Option<&Lane>, bytes: usize, bound: Bound) -> bool {
        let pages = units_of(bytes);
        let headroom = self.headroom_units();
        let soft = (bound == Bound::Soft && !self.mark.is_near()).then_some(headroom);
        let granted = self.budget.charge(pages, soft.unwrap_or(0)).or_else(|| {
            let is_suspended = lane.is_some_and(|lane| lane.limit_is_suspended.get())
                || std::thread::panicking()
                || (bound == Bound::Hard && is_symbolizing());
            is_suspended.then(|| self.budget.charge_beyond(pages)).flatten()
        });
        granted.is_some()
    }

    /// Notes that the memory that was charged for is there: it counts towards the peak, and the
    /// request is marked if it has come near its limit.
    pub fn note_taken(&self, asked_bytes: usize) {
        let used = self.budget.used();
        let used_bytes = used as usize * UNIT_BYTES;
        self.peak_bytes.fetch_max(used_bytes, Ordering::Relaxed);
        let limit = self.budget.limit();
        if limit != NO_LIMIT
            && used > limit.saturating_sub(self.headroom_units())
            && !self.mark.is_near()
        {
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
        (self.budget.limit() != NO_LIMIT).then(|| self.limit_bytes.load(Ordering::Relaxed))
    }

    /// Whether `pages` more are over the limit, rather than more than the system has.
    pub fn is_over_limit(&self, pages: usize) -> bool {
        self.budget.used() as usize + pages * (PAGE_BYTES / UNIT_BYTES)
            > self.budget.limit() as usize
    }

    /// How much may be charged up to a bound.
    pub fn room_bytes(&self, bound: Bound) -> usize {
        let headroom =
            if bound == Bound::Soft && !self.mark.is_near() { self.headroom_units() } else { 0 };
        let most = self.budget.limit().saturating_sub(headroom);
        most.saturating_sub(self.budget.used()) as usize * UNIT_BYTES
    }

    /// Returns by how much `bytes` more are over the limit.
    pub fn missing_bytes(&self, bytes: usize) -> usize {
        let limit_bytes = self.budget.limit() as usize * UNIT_BYTES;
        (self.bytes() + bytes).saturating_sub(limit_bytes)
    }

    /// Sets the limit, `usize::MAX` for none. `false`: more is in use, and nothing has changed.
    pub fn set_limit(&self, bytes: usize) -> bool {
        let pages = limit_units(bytes);
        if !self.budget.set_limit(pages) {
            return false;
        }
        self.limit_bytes.store(bytes, Ordering::Relaxed);
        if self.budget.used() <= pages.saturating_sub(self.headroom_units()) {
            self.mark.clear();
        }
        true
    }

    /// Pages below the limit from which on the request is marked; 0 without a limit.
    fn headroom_units(&self) -> u32 {
        if self.budget.limit() == NO_LIMIT {
            return 0;
        }
        let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
        let reserve_bytes = match self.reserve_bytes.load(Ordering::Relaxed) {
            DEFAULT_RESERVE => (limit_bytes / RESERVE_DIVISOR).min(MAX_DEFAULT_RESERVE_BYTES),
            bytes => bytes,
        };
        // By the bytes: a limit may be more than units can count.
        let mark_units = limit_units(limit_bytes.saturating_sub(reserve_bytes));
        self.budget.limit().saturating_sub(mark_units)
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
