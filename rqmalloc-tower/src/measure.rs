//! Figures for the crate `metrics`, recorded outside of requests.

use crate::routes::Route;
use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_gauge, gauge};
use metrics::{describe_histogram, histogram};
use rqmalloc::{Outcome, Report};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Once};
use std::time::Instant;

/// How often requests that end measure the process, in seconds.
const PROCESS_PERIOD_SECONDS: u64 = 10;

const REQUESTS: &str = "rqmalloc_requests_total";
const PEAK: &str = "rqmalloc_request_peak_bytes";
const DURATION: &str = "rqmalloc_request_duration_seconds";
const SURVIVING_BLOCKS: &str = "rqmalloc_surviving_blocks_total";
const SURVIVING_BYTES: &str = "rqmalloc_surviving_bytes_total";
const LEAKED_BLOCKS: &str = "rqmalloc_leaked_blocks_total";
const LEAKED_BYTES: &str = "rqmalloc_leaked_bytes_total";

/// The outcomes of a request that its last handle closes.
const OUTCOMES: [Outcome; 4] =
    [Outcome::Closed, Outcome::OverLimit, Outcome::BailedOut, Outcome::Panicked];

/// What a recorder has for one route.
pub(crate) struct Measures {
    outcomes: [Counter; OUTCOMES.len()],
    peak: Histogram,
    duration: Histogram,
    surviving_blocks: Counter,
    surviving_bytes: Counter,
}

impl Measures {
    fn new(route: &'static Route) -> Self {
        describe();
        let route = route.name.as_str();
        Self {
            outcomes: OUTCOMES
                .map(|outcome| counter!(REQUESTS, "route" => route, "outcome" => outcome.as_str())),
            peak: histogram!(PEAK, "route" => route),
            duration: histogram!(DURATION, "route" => route),
            surviving_blocks: counter!(SURVIVING_BLOCKS, "route" => route),
            surviving_bytes: counter!(SURVIVING_BYTES, "route" => route),
        }
    }
}

/// Records that a request is over, and its duration, if that is known from when it was `begun`.
pub(crate) fn measure(route: &'static Route, report: &Report, begun: Option<Instant>) {
    let measures = route.measures.get_or_init(|| Measures::new(route));
    if let Some(index) = OUTCOMES.iter().position(|&outcome| outcome == report.outcome) {
        measures.outcomes[index].increment(1);
    }
    measures.peak.record(report.peak_bytes as f64);
    if let Some(begun) = begun {
        measures.duration.record(begun.elapsed());
    }
    if report.surviving_blocks > 0 {
        measures.surviving_blocks.increment(report.surviving_blocks);
        measures.surviving_bytes.increment(report.surviving_bytes as u64);
    }
    if is_due() {
        measure_process();
    }
}

/// Records what a watched request left.
pub(crate) fn measure_leaks(route: &'static Route, blocks: u64, bytes: usize) {
    let route = route.name.as_str();
    counter!(LEAKED_BLOCKS, "route" => route).increment(blocks);
    counter!(LEAKED_BYTES, "route" => route).increment(bytes as u64);
}

/// Whether it is time to measure the process; `true` to one of those that ask.
fn is_due() -> bool {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    static NEXT_SECONDS: AtomicU64 = AtomicU64::new(0);
    let now = START.elapsed().as_secs();
    let next = NEXT_SECONDS.load(Relaxed);
    let after = now + PROCESS_PERIOD_SECONDS;
    next <= now && NEXT_SECONDS.compare_exchange(next, after, Relaxed, Relaxed).is_ok()
}

/// Records the gauges of the process, from [`rqmalloc::stats()`]. Requests that end do it every ten
/// seconds; what renders the metrics may do it for fresh ones.
///
/// ```
/// rqmalloc_tower::measure_process();
/// ```
pub fn measure_process() {
    describe();
    let stats = rqmalloc::stats();
    for (name, bytes) in [
        ("rqmalloc_mapped_bytes", stats.mapped_bytes),
        ("rqmalloc_in_use_bytes", stats.in_use_bytes),
        ("rqmalloc_live_bytes", stats.live_bytes),
        ("rqmalloc_adopted_bytes", stats.adopted_bytes),
        ("rqmalloc_descriptor_bytes", stats.descriptor_bytes),
        ("rqmalloc_cached_bytes", stats.cached_bytes),
        ("rqmalloc_free_bytes", stats.free_bytes),
        ("rqmalloc_free_resident_bytes", stats.free_resident_bytes),
    ] {
        gauge!(name).set(bytes as f64);
    }
    gauge!("rqmalloc_open_requests").set(stats.open_request_count as f64);
}

/// Says what each figure is.
fn describe() {
    static DESCRIBED: Once = Once::new();
    DESCRIBED.call_once(|| {
        describe_counter!(REQUESTS, "Requests that are over, by route and outcome");
        describe_histogram!(PEAK, Unit::Bytes, "The most memory a request held at any one time");
        describe_histogram!(DURATION, Unit::Seconds, "From a request to the end of its body");
        describe_counter!(SURVIVING_BLOCKS, "Blocks that were live when their request was over");
        describe_counter!(SURVIVING_BYTES, Unit::Bytes, "The bytes of those blocks");
        describe_counter!(LEAKED_BLOCKS, "Blocks that watched requests left behind");
        describe_counter!(LEAKED_BYTES, Unit::Bytes, "The bytes of those blocks");
        for (name, what) in [
            ("rqmalloc_mapped_bytes", "Mapped from the system: in use, cached and free"),
            ("rqmalloc_in_use_bytes", "Live, adopted, and the allocator's records"),
            ("rqmalloc_live_bytes", "Live blocks, and the pages of open requests"),
            ("rqmalloc_adopted_bytes", "Pages that survivors of closed requests are in"),
            ("rqmalloc_descriptor_bytes", "The allocator's own records"),
            ("rqmalloc_cached_bytes", "Kept for the next allocations"),
            ("rqmalloc_free_bytes", "Free pages"),
            ("rqmalloc_free_resident_bytes", "Free pages that are still resident"),
        ] {
            describe_gauge!(name, Unit::Bytes, what);
        }
        describe_gauge!("rqmalloc_open_requests", "Requests that are open");
    });
}
