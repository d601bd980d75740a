//! What a process holds after many requests: as much as after some, except what leaks or is cached.
//!
//! A test for each kind of route, in a process of its own: `cargo test` runs this file's tests one
//! after the other where a child is the same program with the kind in its environment.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http_body_util::BodyExt;
use rqmalloc_tower::RequestLayer;
use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

const KIND: &str = "RQMALLOC_TOWER_TEST_KIND";
/// Requests before the first look, and before the second.
const WARM: usize = 10_000;
const MANY: usize = 40_000;
/// What may be more by chance: pages of caches that fill.
const SLACK_BYTES: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Leaking,
    Caching,
    OverLimit,
    Watched,
}

const KINDS: [Kind; 5] =
    [Kind::Plain, Kind::Leaking, Kind::Caching, Kind::OverLimit, Kind::Watched];

/// Keys of the cache that is filled from inside requests, and the bytes of each value.
const CACHED_COUNT: usize = 1000;
const CACHED_BYTES: usize = 2000;
/// What a request of the leaking route leaves.
const LEAKED_BYTES: usize = 100;
/// With its header, and what is reserved beside it, as a bound.
const LEAKED_WITH_OVERHEAD_BYTES: usize = 2 * LEAKED_BYTES;

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    // As long as pages are here.
    pages * 4096
}

fn app(kind: Kind) -> Router {
    let cache = Arc::new(Mutex::new(HashMap::<usize, Vec<u8>>::new()));
    let count = Arc::new(Mutex::new(0usize));
    let handler = async move || {
        let lines: Vec<String> = (0..50).map(|line| format!("line {line}")).collect();
        let number = {
            let mut count = count.lock().unwrap();
            *count += 1;
            *count
        };
        match kind {
            Kind::Leaking => std::mem::forget(vec![1u8; LEAKED_BYTES]),
            Kind::Caching => {
                cache.lock().unwrap().insert(number % CACHED_COUNT, vec![1; CACHED_BYTES]);
            }
            Kind::OverLimit if number % 2 == 0 => drop(vec![vec![1u8; 30_000]; 100]),
            _ => {}
        }
        lines.concat()
    };
    let layer = RequestLayer::new().soft_limit(2 << 20);
    let layer = match kind {
        Kind::Watched => layer.watch_leaks(std::time::Duration::from_millis(10)),
        _ => layer,
    };
    Router::new().route("/", get(handler)).layer(layer)
}

/// Runs one kind, and fails if resident memory grew by more than it may.
fn run(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let app = app(kind);
        let mut is_over_count = 0;
        let mut after = async |count: usize| {
            for _ in 0..count {
                let request = http::Request::new(Body::empty());
                let response = app.clone().oneshot(request).await.unwrap();
                is_over_count += usize::from(response.status() == 503);
                response.into_body().collect().await.unwrap();
            }
            resident_bytes()
        };
        let before = after(WARM).await;
        let grown = after(MANY - WARM).await.saturating_sub(before);
        let leaked = if kind == Kind::Leaking { MANY - WARM } else { 0 };
        let allowed = SLACK_BYTES + leaked * LEAKED_WITH_OVERHEAD_BYTES;
        eprintln!("{kind:?}: {before} bytes after {WARM} requests, {grown} more after {MANY}");
        assert!(grown <= allowed, "{kind:?} grew by {grown} bytes, {allowed} are allowed");
        assert_eq!(is_over_count, if kind == Kind::OverLimit { MANY / 2 } else { 0 });
        if kind != Kind::Watched {
            assert_eq!(rqmalloc::stats().open_request_count, 0);
        }
    });
}

#[test]
fn resident_memory_is_flat() {
    if let Ok(kind) = std::env::var(KIND) {
        return run(KINDS[kind.parse::<usize>().unwrap()]);
    }
    for (index, kind) in KINDS.iter().enumerate() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "resident_memory_is_flat", "--nocapture"])
            .env(KIND, index.to_string())
            .status();
        assert!(child.unwrap().success(), "{kind:?}");
    }
}
