//! Fields on spans, and warnings, by the crate `tracing`.

use crate::routes::Route;
use http::Request;
use rqmalloc::Report;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use tracing::Span;
use tracing::field::{Empty, display};

/// A route is warned of once in this time.
const WARNING_PERIOD: Duration = Duration::from_secs(60);

/// Returns a span for a request with the fields that the layer records at its end: those on the
/// span that is current when the layer is called, if that has them.
///
/// | field | what |
/// |---|---|
/// | `rqmalloc.peak_bytes` | the most memory the request held |
/// | `rqmalloc.freed_blocks`, `rqmalloc.freed_bytes` | what it had not freed itself |
/// | `rqmalloc.surviving_blocks`, `rqmalloc.surviving_bytes` | what was live when it was over |
/// | `rqmalloc.outcome` | `closed`, `over_limit`, `bailed_out`, `panicked` |
///
/// ```
/// // With tower-http: TraceLayer::new_for_http().make_span_with(rqmalloc_tower::request_span::<Body>)
/// let span = rqmalloc_tower::request_span(&http::Request::new(()));
/// # let _ = span;
/// ```
pub fn request_span<B>(request: &Request<B>) -> Span {
    tracing::info_span!(
        "request",
        method = %request.method(),
        uri = %request.uri(),
        version = ?request.version(),
        rqmalloc.peak_bytes = Empty,
        rqmalloc.freed_blocks = Empty,
        rqmalloc.freed_bytes = Empty,
        rqmalloc.surviving_blocks = Empty,
        rqmalloc.surviving_bytes = Empty,
        rqmalloc.outcome = Empty,
    )
}

/// Records that a request is over.
pub(crate) fn record(span: &Span, route: &'static Route, report: &Report, is_watch_on: bool) {
    if !span.is_disabled() {
        span.record("rqmalloc.peak_bytes", report.peak_bytes);
        span.record("rqmalloc.freed_blocks", report.freed_blocks);
        span.record("rqmalloc.freed_bytes", report.freed_bytes);
        span.record("rqmalloc.surviving_blocks", report.surviving_blocks);
        span.record("rqmalloc.surviving_bytes", report.surviving_bytes);
        span.record("rqmalloc.outcome", display(report.outcome.as_str()));
    }
    // What is watched knows better.
    if report.surviving_blocks > 0 && !is_watch_on {
        warn(route, report.surviving_blocks, report.surviving_bytes);
    }
}

/// Warns of what a request of a route left, if it is time to, and of what others left since the
/// last warning.
pub(crate) fn warn(route: &'static Route, blocks: u64, bytes: usize) {
    let due = {
        let mut warning = route.warning.lock().unwrap_or_else(PoisonError::into_inner);
        warning.add(blocks, bytes, Instant::now())
    };
    if let Some(Left { requests, blocks, bytes }) = due {
        let route = route.name.as_str();
        tracing::warn!(route, requests, blocks, bytes, "what requests allocated outlives them");
    }
}

/// What requests left.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Left {
    requests: u64,
    blocks: u64,
    bytes: usize,
}

/// What a route was not warned of yet.
#[derive(Default)]
pub(crate) struct Warning {
    last: Option<Instant>,
    left: Left,
}

impl Warning {
    /// Returns what is to be said now.
    fn add(&mut self, blocks: u64, bytes: usize, now: Instant) -> Option<Left> {
        self.left.requests += 1;
        self.left.blocks += blocks;
        self.left.bytes += bytes;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < WARNING_PERIOD) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_in_a_minute_says_all() {
        let mut warning = Warning::default();
        let start = Instant::now();
        let second = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(warning.add(1, 10, start), Some(Left { requests: 1, blocks: 1, bytes: 10 }));
        assert_eq!(warning.add(2, 20, second(1)), None);
        assert_eq!(warning.add(3, 30, second(59)), None);
        let sum = Left { requests: 3, blocks: 6, bytes: 60 };
        assert_eq!(warning.add(1, 10, second(60)), Some(sum));
        assert_eq!(warning.add(1, 10, second(61)), None);
    }
}
