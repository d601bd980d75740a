//! By how much requests with a memory limit were seen to grow in one poll: their default reserve is
//! no less than that, because a mark is looked at between polls.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `lately_bytes` | the thread that ends a poll, by read-modify-write; the thread that ticks | any thread |
//! | `before_bytes`, `next_fade` | the thread that ticks, which claims it by `next_fade` | any thread |

use crate::base::sync::{AtomicU64, AtomicUsize, Ordering};

/// After how many milliseconds a growth that was not seen again counts half.
const FADE_MILLISECONDS: u64 = 60_000;

/// The largest growth, of the whole process.
pub static POLL_GROWTH: PollGrowth = PollGrowth::new();

/// The largest growth that was seen, fading.
pub struct PollGrowth {
    lately_bytes: AtomicUsize,
    before_bytes: AtomicUsize,
    next_fade: AtomicU64,
}

impl PollGrowth {
    const fn new() -> Self {
        Self {
            lately_bytes: AtomicUsize::new(0),
            before_bytes: AtomicUsize::new(0),
            next_fade: AtomicU64::new(0),
        }
    }

    /// Returns the largest growth in bytes.
    pub fn bytes(&self) -> usize {
        let before_bytes = self.before_bytes.load(Ordering::Relaxed);
        self.lately_bytes.load(Ordering::Relaxed).max(before_bytes)
    }

    /// Notes by how much a request grew in one poll.
    #[cfg(any(test, feature = "async"))]
    pub fn note(&self, bytes: usize) {
        if bytes > self.lately_bytes.load(Ordering::Relaxed) {
            self.lately_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    /// Lets it fade, if that is due.
    pub fn tick(&self, now: u64) {
        let due = self.next_fade.load(Ordering::Relaxed);
        let next = now + FADE_MILLISECONDS;
        let is_mine = now >= due
            && self
                .next_fade
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            let lately_bytes = self.lately_bytes.swap(0, Ordering::Relaxed);
            let halved_bytes = self.before_bytes.load(Ordering::Relaxed) / 2;
            self.before_bytes.store(lately_bytes.max(halved_bytes), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_counts_half_after_each_time_that_it_was_not_seen() {
        let growth = PollGrowth::new();
        growth.tick(1_000);
        [5, 800, 20].into_iter().for_each(|bytes| growth.note(bytes));
        let mut now = 1_000;
        for expected in [800, 800, 400, 200, 100] {
            assert_eq!(growth.bytes(), expected);
            growth.tick(now + FADE_MILLISECONDS - 1);
            assert_eq!(growth.bytes(), expected, "not due");
            now += FADE_MILLISECONDS;
            growth.tick(now);
        }
        growth.note(300);
        growth.tick(now + FADE_MILLISECONDS);
        assert_eq!(growth.bytes(), 300);
    }
}
