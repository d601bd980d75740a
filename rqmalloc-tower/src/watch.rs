//! Watched requests: some that stay open for a while after they are over, so that what they left
//! behind can be told from what was only on its way.

use crate::routes::route;
use rqmalloc::Request;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One request of so many is watched, a power of two.
const EVERY_BITS: u32 = 5;
/// Most requests of a layer that wait at a time.
const MOST_WAITING: usize = 64;
/// What a request may hold to be watched when it is over, in bytes of pages.
const MOST_HELD_BYTES: usize = 1 << 20;
/// Odd, and near the golden ratio's part of 2^64: its multiples are spread evenly.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The requests of a layer that wait for their time.
pub(crate) struct Watch {
    after: Duration,
    request_count: AtomicU64,
    /// With the time that each was over, the oldest first.
    waiting: Mutex<VecDeque<(Instant, Request)>>,
}

impl Watch {
    pub(crate) fn new(after: Duration) -> Self {
        Self { after, request_count: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// Whether the next request is to be watched. Those that are do not keep step with anything.
    fn takes_next(&self) -> bool {
        let index = self.request_count.fetch_add(1, Relaxed);
        index.wrapping_mul(SPREAD) >> (u64::BITS - EVERY_BITS) == 0
    }

    /// Has a request that is over wait, and closes those that have.
    fn put(&self, request: Request) {
        let _ = request.reclaim();
        let is_kept = request.usage().footprint_bytes <= MOST_HELD_BYTES;
        let now = Instant::now();
        let over = rqmalloc::persistent(|| {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let mut over = Vec::new();
            if is_kept && waiting.len() < MOST_WAITING {
                waiting.push_back((now, request));
            }
            while let Some((since, _)) = waiting.front() {
                if now.saturating_duration_since(*since) < self.after {
                    break;
                }
                over.extend(waiting.pop_front().map(|(_, request)| request));
            }
            over
        });
        // A report may run code of the program's.
        over.into_iter().for_each(close);
    }
}

/// Closes a request that has waited, and counts what it left. What other handles keep open is no
/// leak yet.
fn close(request: Request) {
    if let Ok(report) = request.close() {
        route(report.name).count_leaks(report.surviving_blocks, report.surviving_bytes);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("after", &self.after).finish_non_exhaustive()
    }
}

/// Keeps a request open after what it spans was dropped.
pub(crate) struct Watched {
    request: Option<Request>,
    watch: Arc<Watch>,
}

impl Watched {
    /// `None`: this one is not watched.
    pub(crate) fn new(watch: &Arc<Watch>, request: &Request) -> Option<Self> {
        let is_watched = watch.takes_next();
        is_watched.then(|| Self { request: Some(request.clone()), watch: watch.clone() })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.watch.put(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_watched_whatever_the_step() {
        for step in [1, 2, 3, 7, 10, 32] {
            let watch = Watch::new(Duration::ZERO);
            let is_watched: Vec<bool> = (0..32_000).map(|_| watch.takes_next()).collect();
            assert!(is_watched[0]);
            let of_step = is_watched.iter().step_by(step);
            let (asked, watched) = (of_step.len(), of_step.filter(|&&is| is).count());
            assert!((asked / 40..=asked / 25).contains(&watched), "{watched} of {asked} by {step}");
        }
    }

    #[test]
    fn few_wait_at_a_time() {
        let watch = Watch::new(Duration::MAX);
        for _ in 0..MOST_WAITING + 10 {
            watch.put(Request::new());
        }
        assert_eq!(watch.waiting.lock().unwrap().len(), MOST_WAITING);
    }
}
