//! What must not grow: many names, many requests, many pages. A process of its own for each file:
//! these look at all of it.
#![allow(missing_docs)]

mod support;

use axum::Router;
use rqmalloc::{Request, RqMalloc, open_requests, stats};
use std::sync::{Mutex, MutexGuard, PoisonError};
use support::{ask, metrics, total};

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn app() -> Router {
    Router::new().nest("/debug/rqmalloc", rqmalloc_inspect::router())
}

fn text(app: &Router, path: &str) -> String {
    ask(app, &format!("/debug/rqmalloc{path}"), &[]).text
}

/// A million in release.
const NAME_COUNT: u64 = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };

#[test]
fn a_million_names_stay_bounded() {
    let _alone = alone();
    let app = app();
    let many = |range: std::ops::Range<u64>| {
        for number in range {
            drop(Request::builder().name(format!("GET /{number}")).build());
        }
    };
    many(0..5_000);
    let before = stats().in_use_bytes;
    many(5_000..NAME_COUNT);
    let after = stats().in_use_bytes;
    assert!(after < before + (1 << 20), "{before} bytes were in use, now {after} are");
    let metrics_text = text(&app, "/metrics");
    let samples = metrics(&metrics_text).1;
    let counted: f64 =
        samples.iter().filter(|s| s.name == "rqmalloc_requests_total").map(|s| s.value).sum();
    assert!(counted >= NAME_COUNT as f64, "{counted} of {NAME_COUNT} requests were counted");
    assert!(total("rqmalloc_requests_total", "other", &metrics_text) >= (NAME_COUNT - 1001) as f64);
    let routes: Vec<serde_json::Value> = serde_json::from_str(&text(&app, "/routes.json")).unwrap();
    assert!((1000..=1002).contains(&routes.len()), "{} routes", routes.len());
    // The page shows a part of them, and says so.
    let page = text(&app, "");
    assert!(page.len() < 200_000, "{} bytes", page.len());
    let more = format!("and {} more", routes.len() - 100);
    assert!(page.contains(&more), "no '{more}'");
}

#[test]
fn no_request_and_thousands_of_them() {
    let _alone = alone();
    let app = app();
    assert!(open_requests().is_empty());
    assert!(text(&app, "").contains("No request is open."));
    assert_eq!(text(&app, "/requests.json"), "[]");
    let requests: Vec<Request> = (0..3_000)
        .map(|number| Request::builder().name(format!("open {number}")).build())
        .collect();
    let page = text(&app, "?sort=id");
    assert_eq!(page.matches("<td><a href=\"./rqmalloc/requests/").count(), 100);
    assert!(page.contains("and 2\u{202f}900 more"));
    let data: Vec<serde_json::Value> = serde_json::from_str(&text(&app, "/requests.json")).unwrap();
    assert_eq!(data.len(), 3_000);
    drop(requests);
    assert!(text(&app, "").contains("No request is open."));
}

#[test]
fn pages_leave_nothing_behind() {
    let _alone = alone();
    let app = app();
    let look = |count| {
        for _ in 0..count {
            for path in
                ["", "?fragment", "/metrics", "/stats.json", "/requests.json", "/routes.json"]
            {
                assert!(!text(&app, path).is_empty());
            }
            drop(rqmalloc_inspect::router::<()>());
        }
    };
    look(20);
    let before = stats().in_use_bytes;
    look(200);
    let after = stats().in_use_bytes;
    assert!(after < before + (256 << 10), "{before} bytes were in use, now {after} are");
}

#[test]
fn threads_that_open_and_close_while_pages_are_made() {
    let _alone = alone();
    let app = app();
    let count = if cfg!(debug_assertions) { 5_000 } else { 50_000 };
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                for number in 0..count {
                    let name = format!("thread {thread} {}", number % 7);
                    let request = Request::builder().name(name).build();
                    request.run(|| drop(vec![1u8; number % 3000]));
                }
            });
        }
        for _ in 0..50 {
            let data = text(&app, "/requests.json");
            let open: Vec<serde_json::Value> = serde_json::from_str(&data).unwrap();
            for id in open.iter().filter_map(|info| info["id"].as_u64()) {
                // It may have just gone.
                let status = ask(&app, &format!("/debug/rqmalloc/requests/{id}"), &[]).status;
                assert!(status == 200 || status == 404, "{status}");
            }
            assert!(text(&app, "").ends_with("</html>"));
        }
    });
    assert!(text(&app, "").contains("No request is open."));
}
