//! What a request may hold: what it uses and its limit in one word, so that one compare-and-swap
//! decides both. A request may be below another one, to which its charges count, too.
//!
//! Compiled by `loom-tests`. Everything is in units, whose length only the caller knows.
//!
//! - **G1** A granted charge leaves `used` no higher than the limit and than the bound it was given;
//!   an accepted limit is not below `used`. Only `charge_beyond` exceeds it.
//! - **G2** A thread that sees a mark sees what was in use and what was asked for when it was set.
//!   Marks of one kind may be set and cleared while one of another kind is set: neither is lost.
//! - **G3** What goes up a chain of budgets is charged to all of them, or in the end to none. While
//!   it is refused, those below the one that refuses have it for a moment.

use crate::base::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, const_fn};

/// `used : 40 | limit : 24`.
const LIMIT_BITS: u32 = 24;
const LIMIT_MASK: u64 = (1 << LIMIT_BITS) - 1;

/// A limit has one significant bit more than these: the first is not written. The other bits are
/// an exponent. So one of fewer than 2^20 units is exact, and a higher one is rounded up by less
/// than its 2^19th part.
const FRACTION_BITS: u32 = 19;
const FIRST_BIT: u64 = 1 << FRACTION_BITS;

/// Most units that can be in use.
const MAX_USED: u64 = (1 << (u64::BITS - LIMIT_BITS)) - 1;

const _: () = assert!(Limit::NONE.units() > 2 * MAX_USED, "no limit is above any rounded one");

/// How much may be in use, as it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit(u64);

impl Limit {
    /// No limit: more than can be in use.
    pub const NONE: Self = Self(LIMIT_MASK);

    /// A limit of so many units, rounded up; of `MAX_USED` if that is less.
    pub const fn of(units: u64) -> Self {
        let units = if units < MAX_USED { units } else { MAX_USED };
        if units < FIRST_BIT {
            return Self(units);
        }
        let shift = units.ilog2() - FRACTION_BITS;
        // If rounding makes it one bit longer, that carries into the exponent.
        let fraction = units.div_ceil(1 << shift) - FIRST_BIT;
        Self(((shift as u64 + 1) << FRACTION_BITS) + fraction)
    }

    /// Returns the limit.
    #[inline]
    pub const fn units(self) -> u64 {
        let (fraction, exponent) = (self.0 & (FIRST_BIT - 1), self.0 >> FRACTION_BITS);
        if exponent == 0 { fraction } else { (FIRST_BIT | fraction) << (exponent - 1) }
    }
}

const fn used_of(word: u64) -> u64 {
    word >> LIMIT_BITS
}

const fn limit_of(word: u64) -> Limit {
    Limit(word & LIMIT_MASK)
}

const fn word_of(used: u64, limit: Limit) -> u64 {
    used << LIMIT_BITS | limit.0
}

/// What is in use, and the limit.
pub struct Budget(AtomicU64);

impl Budget {
    const_fn! {
        /// A budget without charges or a limit.
        pub const fn new() -> Self {
            Self(AtomicU64::new(word_of(0, Limit::NONE)))
        }
    }

    /// Sets up the budget of a new request, which no other thread knows yet.
    #[inline]
    pub fn open(&self, limit: Limit) {
        self.0.store(word_of(0, limit), Ordering::Relaxed);
    }

    /// Charges `units`, unless more than `most` or than the limit would be in use. Returns what is
    /// in use afterwards.
    #[inline]
    pub fn charge(&self, units: u64, most: u64) -> Option<u64> {
        self.change(|used, limit| {
            let sum = used.checked_add(units)?;
            (sum <= most && sum <= limit.units()).then_some((sum, limit))
        })
        .map(used_of)
    }

    /// Charges `units` whatever the limit is. Returns what is in use afterwards.
    pub fn charge_beyond(&self, units: u64) -> Option<u64> {
        self.change(|used, limit| Some((used.checked_add(units)?, limit))).map(used_of)
    }

    /// Takes `units` off the charge.
    #[inline]
    pub fn refund(&self, units: u64) {
        self.0.fetch_sub(units << LIMIT_BITS, Ordering::Relaxed);
    }

    /// Takes everything off the charge, by a thread that has the request to itself. Returns it.
    pub fn take_all(&self) -> u64 {
        let used = self.used();
        self.refund(used);
        used
    }

    /// Sets the limit, unless more is in use: then nothing changes.
    pub fn set_limit(&self, limit: Limit) -> bool {
        self.change(|used, _| (used <= limit.units()).then_some((used, limit))).is_some()
    }

    /// Sets used and limit to what `step` makes of them, and returns the new word. `None`: it makes
    /// nothing of them, or more than can be in use.
    #[inline]
    fn change(&self, step: impl Fn(u64, Limit) -> Option<(u64, Limit)>) -> Option<u64> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let (used, limit) = step(used_of(seen), limit_of(seen))?;
            if used > MAX_USED {
                return None;
            }
            let next = word_of(used, limit);
            match self.0.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => seen = now,
            }
        }
    }

    /// Returns what is in use now.
    pub fn used(&self) -> u64 {
        used_of(self.0.load(Ordering::Relaxed))
    }

    /// Returns the limit.
    #[inline]
    pub fn limit(&self) -> Limit {
        limit_of(self.0.load(Ordering::Relaxed))
    }
}

/// Charges every level of a chain, from the lowest up (G3). `Err`: how many levels were charged
/// before one refused; `undo` has been called on these.
#[inline]
pub fn charge_each<L>(
    levels: impl Iterator<Item = L> + Clone,
    charge: impl Fn(L) -> bool,
    undo: impl Fn(L),
) -> Result<(), usize> {
    for (number, level) in levels.clone().enumerate() {
        if !charge(level) {
            levels.take(number).for_each(undo);
            return Err(number);
        }
    }
    Ok(())
}

/// Why a request is marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It was refused memory at the limit of the request so many levels above it; only its program
    /// knows whether it can do without.
    Refused(usize),
    /// It holds more than its limit less its reserve.
    Near,
    /// It holds more than its soft limit.
    Soft,
    /// The process holds more than its limit, and this request much of it.
    Process,
}

/// Most requests in a chain: one, its parent, that one's parent and so on.
pub const MAX_LEVELS: usize = 8;

const NEAR: u32 = 1 << MAX_LEVELS;
const SOFT: u32 = NEAR << 1;
const PROCESS: u32 = NEAR << 2;
/// One bit for each level that may refuse.
const REFUSED: u32 = NEAR - 1;

impl Reason {
    const fn bit(self) -> u32 {
        match self {
            Self::Near => NEAR,
            Self::Refused(level) => 1 << level,
            Self::Soft => SOFT,
            Self::Process => PROCESS,
        }
    }
}

/// What a mark records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marked {
    /// Bytes that were in use, by the request or by the process.
    pub in_use_bytes: usize,
    /// Bytes that were asked for; of the process, its limit.
    pub asked_bytes: usize,
}

/// The two values of a mark.
struct Record {
    in_use_bytes: AtomicUsize,
    asked_bytes: AtomicUsize,
}

impl Record {
    const_fn! {
        const fn new() -> Self {
            Self { in_use_bytes: AtomicUsize::new(0), asked_bytes: AtomicUsize::new(0) }
        }
    }

    fn get(&self) -> Marked {
        Marked {
            in_use_bytes: self.in_use_bytes.load(Ordering::Relaxed),
            asked_bytes: self.asked_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Notes that a request has come near a limit, or was refused memory at one.
pub struct Mark {
    reasons: AtomicU32,
    /// Of what the request's own threads say.
    own: Record,
    /// Of what any thread says because of the process.
    process: Record,
}

impl Mark {
    const_fn! {
        /// A mark that is not set.
        pub const fn new() -> Self {
            Self { reasons: AtomicU32::new(0), own: Record::new(), process: Record::new() }
        }
    }

    /// Marks the request, or records anew why it is marked.
    pub fn say(&self, reason: Reason, marked: Marked) {
        let record = if reason == Reason::Process { &self.process } else { &self.own };
        record.in_use_bytes.store(marked.in_use_bytes, Ordering::Relaxed);
        record.asked_bytes.store(marked.asked_bytes, Ordering::Relaxed);
        self.reasons.fetch_or(reason.bit(), Ordering::Release);
    }

    /// Clears the mark of a new request, which no other thread knows yet.
    #[inline]
    pub fn clear(&self) {
        self.reasons.store(0, Ordering::Relaxed);
    }

    /// The request has room below its limit again: it is not near it, nor refused memory.
    pub fn clear_limit(&self) {
        self.reasons.fetch_and(!(NEAR | REFUSED), Ordering::Relaxed);
    }

    /// The request has room below its soft limit again.
    pub fn clear_soft(&self) {
        self.reasons.fetch_and(!SOFT, Ordering::Relaxed);
    }

    /// Returns whether the request is marked for this reason.
    #[inline]
    pub fn has(&self, reason: Reason) -> bool {
        self.reasons.load(Ordering::Relaxed) & reason.bit() != 0
    }

    /// Returns whether the request is to be given up: it was marked for more than a refusal.
    #[inline]
    pub fn is_to_be_given_up(&self) -> bool {
        self.reasons.load(Ordering::Relaxed) & !REFUSED != 0
    }

    /// Returns why the mark is set, if it is. Of several reasons, the first in the order of
    /// `Reason`.
    #[inline]
    pub fn get(&self) -> Option<(Reason, Marked)> {
        let reasons = self.reasons.load(Ordering::Acquire);
        if reasons == 0 { None } else { Some(self.described(reasons)) }
    }

    /// Whether there is any reason.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.reasons.load(Ordering::Relaxed) != 0
    }

    #[cold]
    fn described(&self, reasons: u32) -> (Reason, Marked) {
        let reason = if reasons & REFUSED != 0 {
            Reason::Refused(reasons.trailing_zeros() as usize)
        } else if reasons & NEAR != 0 {
            Reason::Near
        } else if reasons & SOFT != 0 {
            Reason::Soft
        } else {
            return (Reason::Process, self.process.get());
        };
        (reason, self.own.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_rounded_up_a_little() {
        let near = |units: u64| [units - 1, units, units + 1];
        let around = (0..40).flat_map(|bits| near(1 << bits)).chain((0..38).map(|bits| 5 << bits));
        for units in around.chain([MAX_USED - 1, MAX_USED]) {
            let limit = Limit::of(units);
            let most = if units < 2 * FIRST_BIT { units } else { units + units / FIRST_BIT };
            assert!((units..=most).contains(&limit.units()), "{units} is {limit:?}");
            assert!(limit != Limit::NONE && limit_of(word_of(MAX_USED, limit)) == limit);
        }
        assert_eq!(Limit::of(u64::MAX), Limit::of(MAX_USED));
    }

    #[test]
    fn without_a_limit_more_than_all_addresses_are_refused() {
        let budget = Budget::new();
        assert_eq!(budget.charge(MAX_USED, u64::MAX), Some(MAX_USED));
        assert_eq!((budget.charge(1, u64::MAX), budget.charge_beyond(u64::MAX)), (None, None));
        assert_eq!((budget.used(), budget.limit()), (MAX_USED, Limit::NONE));
    }
}
