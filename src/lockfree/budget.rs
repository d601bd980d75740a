//! What a request may hold: the pages it uses and its limit in one word, so that one
//! compare-and-swap decides both.
//!
//! Compiled by `loom-tests`. Everything is in pages, whose length only the caller knows.
//!
//! - **G1** A granted charge leaves `used <= limit` (less the headroom it was given); an accepted
//!   limit is not below `used`. Only `charge_beyond` exceeds it.
//! - **G2** A thread that sees a mark sees what was in use and what was asked for when it was set.

use crate::base::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, const_fn};

/// No limit: more pages than any address space has.
pub const NO_LIMIT: u32 = u32::MAX;

const USED_SHIFT: u32 = 32;

const fn used_of(word: u64) -> u32 {
    (word >> USED_SHIFT) as u32
}

const fn limit_of(word: u64) -> u32 {
    word as u32
}

const fn word_of(used: u32, limit: u32) -> u64 {
    (used as u64) << USED_SHIFT | limit as u64
}

/// Used pages in the upper half, the limit in the lower.
pub struct Budget(AtomicU64);

impl Budget {
    const_fn! {
        /// A budget without charges or a limit.
        pub const fn new() -> Self {
            Self(AtomicU64::new(word_of(0, NO_LIMIT)))
        }
    }

    /// Sets up the budget of a new request, which no other thread knows yet.
    #[inline]
    pub fn open(&self, limit: u32) {
        self.0.store(word_of(0, limit), Ordering::Relaxed);
    }

    /// Charges `pages`, unless fewer than `headroom` pages would be left below the limit. Returns
    /// the pages in use afterwards.
    #[inline]
    pub fn charge(&self, pages: u32, headroom: u32) -> Option<u32> {
        self.change(|used, limit| {
            let sum = used.checked_add(pages)?;
            (sum <= limit.saturating_sub(headroom)).then_some((sum, limit))
        })
        .map(used_of)
    }

    /// Charges `pages` whatever the limit is. Returns the pages in use afterwards.
    pub fn charge_beyond(&self, pages: u32) -> Option<u32> {
        self.change(|used, limit| Some((used.checked_add(pages)?, limit))).map(used_of)
    }

    /// Takes `pages` off the charge.
    #[inline]
    pub fn refund(&self, pages: u32) {
        self.0.fetch_sub(word_of(pages, 0), Ordering::Relaxed);
    }

    /// Sets the limit, unless more is in use: then nothing changes.
    pub fn set_limit(&self, limit: u32) -> bool {
        self.change(|used, _| (used <= limit).then_some((used, limit))).is_some()
    }

    /// Sets used and limit to what `step` makes of them, and returns the new word.
    #[inline]
    fn change(&self, step: impl Fn(u32, u32) -> Option<(u32, u32)>) -> Option<u64> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let (used, limit) = step(used_of(seen), limit_of(seen))?;
            let next = word_of(used, limit);
            match self.0.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => seen = now,
            }
        }
    }

    /// Returns the pages in use now.
    pub fn used(&self) -> u32 {
        used_of(self.0.load(Ordering::Relaxed))
    }

    /// Returns the limit in pages.
    #[inline]
    pub fn limit(&self) -> u32 {
        limit_of(self.0.load(Ordering::Relaxed))
    }
}

/// What a mark records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marked {
    /// Bytes that were in use.
    pub in_use_bytes: usize,
    /// Bytes that were asked for.
    pub asked_bytes: usize,
}

/// A note that a request has come near its limit, or was refused memory at it.
pub struct Mark {
    reasons: AtomicU32,
    in_use_bytes: AtomicUsize,
    asked_bytes: AtomicUsize,
}

/// The request holds more than its limit less its reserve.
const NEAR: u32 = 1;
/// The request was refused memory; only its program knows whether it can do without.
const REFUSED: u32 = 2;

impl Mark {
    const_fn! {
        /// A mark that is not set.
        pub const fn new() -> Self {
            Self {
                reasons: AtomicU32::new(0),
                in_use_bytes: AtomicUsize::new(0),
                asked_bytes: AtomicUsize::new(0),
            }
        }
    }

    /// Marks the request as near its limit, or records anew why it is.
    pub fn set(&self, marked: Marked) {
        self.say(NEAR, marked);
    }

    /// Marks the request as having been refused memory.
    pub fn note_refusal(&self, marked: Marked) {
        self.say(REFUSED, marked);
    }

    fn say(&self, reason: u32, marked: Marked) {
        self.in_use_bytes.store(marked.in_use_bytes, Ordering::Relaxed);
        self.asked_bytes.store(marked.asked_bytes, Ordering::Relaxed);
        self.reasons.fetch_or(reason, Ordering::Release);
    }

    /// Clears the mark.
    #[inline]
    pub fn clear(&self) {
        self.reasons.store(0, Ordering::Relaxed);
    }

    /// Returns whether the request is marked as near its limit.
    #[inline]
    pub fn is_near(&self) -> bool {
        self.reasons.load(Ordering::Relaxed) & NEAR != 0
    }

    /// Returns why the mark is set, if it is.
    #[inline]
    pub fn get(&self) -> Option<Marked> {
        if self.reasons.load(Ordering::Acquire) == 0 {
            return None;
        }
        Some(Marked {
            in_use_bytes: self.in_use_bytes.load(Ordering::Relaxed),
            asked_bytes: self.asked_bytes.load(Ordering::Relaxed),
        })
    }
}
