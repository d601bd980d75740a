//! Looks from any thread at any time, at requests that others are inside, grow blocks of, and
//! close.

use crate::blocks::TRACED_REMAINDER;
use crate::model::{Tracked, lock};
use crate::options::with;
use crate::worker::Worker;
use rqmalloc::{Request, persistent, stats};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Worker {
    pub fn look(&mut self) {
        self.shared.count("looks");
        let place = self.below(self.shared.requests.len() + self.shared.soles.len());
        let sole = place.checked_sub(self.shared.requests.len());
        let tracked = match sole {
            None => Some(lock(&self.shared.requests[place]).clone()),
            Some(place) => lock(&self.shared.soles[place]).clone(),
        };
        let Some(tracked) = tracked else { return };
        if sole.is_none() && self.below(2) == 0 {
            // A thread that closes it meanwhile is told that there is another handle.
            if let Some(request) = tracked.clone_handle() {
                self.look_at(&request, &tracked);
            }
            return;
        }
        let handle = lock(&tracked.handle);
        if let Some(request) = handle.as_ref() {
            self.look_at(request, &tracked);
        }
    }

    fn look_at(&mut self, request: &Request, tracked: &Arc<Tracked>) {
        assert_eq!(request.id(), tracked.id);
        match self.below(8) {
            0..3 => {
                let usage = request.usage();
                assert!(
                    usage.footprint_bytes <= usage.peak_bytes || usage.limit_bytes.is_some(),
                    "{usage:?}"
                );
                let bound = usage.live_bytes / 16;
                assert!(usage.live_blocks <= bound.max(1 << 20) as u64, "{usage:?}");
            }
            3 | 4 => expect_leaks(request, tracked),
            5 => {
                let text = persistent(|| format!("{request} {request:?} {}", stats()));
                assert!(text.starts_with("request "), "{text}");
                persistent(|| drop(text));
            }
            6 => {
                let stats = stats();
                assert_eq!(
                    stats.mapped_bytes,
                    stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
                    "{stats}"
                );
                assert!(stats.open_request_count < 1 << 20, "{stats}");
            }
            _ if with("limits") => self.set_limit(request, tracked),
            _ => drop(request.reclaim()),
        }
    }

    /// Sets the limit only of a request whose allocations may be refused anyway.
    fn set_limit(&mut self, request: &Request, tracked: &Arc<Tracked>) {
        if !tracked.is_limited.load(Ordering::Relaxed) {
            return assert!(request.check().is_ok());
        }
        let limit = (self.below(3) > 0).then(|| self.random.below(16 << 20));
        if let Err(below) = request.set_memory_limit(limit) {
            assert!(limit.is_some(), "{below}");
        }
        request.reset_peak();
        request.reclaim();
    }
}

fn expect_leaks(request: &Request, tracked: &Arc<Tracked>) {
    let leaks = request.leaks();
    assert_eq!(leaks.id, tracked.id);
    if !leaks.classes.is_empty() {
        let sum: u64 = leaks.classes.iter().map(|class| class.blocks).sum();
        assert_eq!(sum, leaks.blocks, "{leaks}");
    }
    assert!(tracked.is_traced || leaks.sites.is_empty(), "{leaks}");
    for site in &leaks.sites {
        let rest = site.asked_bytes % 16;
        assert_eq!(rest, TRACED_REMAINDER, "nobody asked for {} bytes: {leaks}", site.asked_bytes);
    }
    persistent(|| drop(leaks));
}
