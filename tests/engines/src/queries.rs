//! DataFusion, whose queries run in tasks of its own: what part of what a query asks for is its
//! request's, with the query's future alone in scope and with a tracer that has every task inherit;
//! and a query over its limit beside others, round after round.

mod support;

use datafusion::common::runtime::{JoinSetTracer, set_join_set_tracer};
use datafusion::error::Result;
use datafusion::prelude::{SessionConfig, SessionContext};
use rqmalloc::{Bailout, Outcome, Report, Request, RqMalloc, inherit, inherit_fn, owner_of};
use std::alloc::{GlobalAlloc, Layout};
use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::grows_less;
use tokio::runtime::{Builder, Runtime};

/// The recipe: every task and every blocking closure of DataFusion's takes its request along.
struct Inherits;

type Output = Box<dyn Any + Send>;

impl JoinSetTracer for Inherits {
    fn trace_future(
        &self,
        future: Pin<Box<dyn Future<Output = Output> + Send>>,
    ) -> Pin<Box<dyn Future<Output = Output> + Send>> {
        Box::pin(inherit(future))
    }

    fn trace_block(
        &self,
        block: Box<dyn FnOnce() -> Output + Send>,
    ) -> Box<dyn FnOnce() -> Output + Send> {
        Box::new(inherit_fn(block))
    }
}

/// Counts the bytes that are asked for, and those that a request's blocks are asked for.
struct Counting;

static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);
static REQUEST_BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(payload: *mut u8, bytes: usize) {
    ALL_BYTES.fetch_add(bytes, Relaxed);
    // SAFETY: null, or a block that was just allocated.
    if unsafe { owner_of(payload) }.is_some() {
        REQUEST_BYTES.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: `RqMalloc`'s own answers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let payload = unsafe { RqMalloc.alloc(layout) };
        count(payload, layout.size());
        payload
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let payload = unsafe { RqMalloc.alloc_zeroed(layout) };
        count(payload, layout.size());
        payload
    }

    unsafe fn dealloc(&self, payload: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { RqMalloc.dealloc(payload, layout) };
    }

    unsafe fn realloc(&self, payload: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        let payload = unsafe { RqMalloc.realloc(payload, layout, size) };
        count(payload, size.saturating_sub(layout.size()));
        payload
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// The soft limit of the sort, which needs five times as much, in bytes.
const LIMIT_BYTES: usize = 16 << 20;

/// What resident memory may differ by, since not all queries have their peaks at once in each round,
/// in bytes. A round holds 80 MB, if they do.
const GROWTH_BYTES: usize = 40 << 20;

/// How often the queries run at once.
const ROUNDS: usize = 20;

const QUERIES: [(&str, &str); 4] = [
    ("sort", "SELECT value % 1009 AS k, value FROM range(0, 1000000) ORDER BY k, value DESC"),
    (
        "groups",
        "SELECT value % 200000 AS k, count(*), sum(value) FROM range(0, 1000000) GROUP BY k",
    ),
    (
        "join",
        "SELECT a.value AS v, b.value FROM range(0, 300000) a JOIN range(100000, 400000) b \
         ON a.value = b.value ORDER BY v",
    ),
    ("distinct", "SELECT count(DISTINCT value % 300007) FROM range(0, 1000000)"),
];

/// Opens a session with more partitions than the machine has processors.
fn session() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(4))
}

/// Runs a query, and returns how many rows it has.
async fn rows(query: &str) -> Result<usize> {
    let batches = session().sql(query).await?.collect().await?;
    Ok(batches.iter().map(|batch| batch.num_rows()).sum())
}

/// Runs a query in a request, and returns what part of what it asked for was the request's, per
/// cent.
fn share(runtime: &Runtime, name: &str, query: &str) -> f64 {
    let counted = || (REQUEST_BYTES.load(Relaxed) as f64, ALL_BYTES.load(Relaxed) as f64);
    let before = counted();
    let request = Request::builder().name("query").build();
    let count = runtime.block_on(request.scope(rows(query))).unwrap();
    let after = counted();
    let _ = closed(request);
    let (inside, all) = (after.0 - before.0, after.1 - before.1);
    println!("{name}: {count} rows, {:.2} % of {:.0} MB", 100.0 * inside / all, all / 1e6);
    assert!(count > 0 && all > 1e6, "{name} did nothing");
    100.0 * inside / all
}

/// Closes a request whose tasks are aborted and not joined: their handles go a little later.
fn closed(mut request: Request) -> Report {
    let start = Instant::now();
    loop {
        match request.close() {
            Ok(report) => return report,
            Err(open) if start.elapsed() < Duration::from_secs(60) => request = open,
            Err(open) => panic!("{open}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the queries at once, the sort with a soft limit: it alone is given up.
fn one_over_its_limit(runtime: &Runtime) {
    let requests = QUERIES.map(|(name, _)| {
        let limit = if name == "sort" { LIMIT_BYTES } else { usize::MAX };
        Request::builder().name(name).soft_limit(limit).build()
    });
    let tasks = std::array::from_fn::<_, { QUERIES.len() }, _>(|index| {
        runtime.spawn(requests[index].scope(rows(QUERIES[index].1)).catch())
    });
    for ((name, _), task) in QUERIES.iter().zip(tasks) {
        match runtime.block_on(task).unwrap() {
            Ok(count) => assert!(count.unwrap() > 0 && *name != "sort", "{name}"),
            Err(bailout) => {
                assert!(matches!(bailout, Bailout::Limit(_)) && *name == "sort", "{bailout}");
            }
        }
    }
    for request in requests {
        let report = closed(request);
        if report.outcome == Outcome::OverLimit {
            // One poll sorts what it has.
            assert!(report.peak_bytes < 8 * LIMIT_BYTES, "{report}");
        }
        println!("{report}");
    }
}

fn main() {
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    // What is created once is created now.
    runtime.block_on(rows("SELECT count(*) FROM range(0, 1000)")).unwrap();
    println!("the query's future alone in scope:");
    let alone = QUERIES.map(|(name, query)| share(&runtime, name, query));
    assert!(alone.iter().any(|&share| share < 90.0), "DataFusion has no tasks of its own any more");
    set_join_set_tracer(&Inherits).unwrap();
    println!("with a JoinSetTracer that inherits:");
    let traced = QUERIES.map(|(name, query)| share(&runtime, name, query));
    assert!(traced.iter().all(|&share| share > 99.0), "{traced:?}");
    let rounds = |_| one_over_its_limit(&runtime);
    grows_less("at once, the sort over its limit", ROUNDS, GROWTH_BYTES, rounds);
    println!("ok");
}
