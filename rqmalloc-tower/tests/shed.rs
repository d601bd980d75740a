//! A process that is above its limit begins no request.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::StatusCode;
use http_body_util::BodyExt;
use rqmalloc::{LimitKind, set_process_limit};
use rqmalloc_tower::RequestLayer;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tower::ServiceExt;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// Both tests in one, as the limit is the process's.
#[tokio::test]
async fn load_is_shed_while_the_process_is_above_its_limit() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let handler = async move || {
        count.fetch_add(1, Relaxed);
        "fine"
    };
    let layer = RequestLayer::new().shed_load().on_limit(|limit| {
        assert_eq!(limit.kind, LimitKind::Process);
        (StatusCode::TOO_MANY_REQUESTS, "later")
    });
    let app = Router::new().route("/", get(handler)).layer(layer);
    let status = async || {
        let request = http::Request::new(Body::empty());
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, if status == 200 { "fine" } else { "later" });
        status
    };
    // The figure is some milliseconds old.
    let wait = async |expected| {
        while status().await != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert_eq!(status().await, 200);
    set_process_limit(Some(1));
    wait(429).await;
    let before = calls.load(Relaxed);
    for _ in 0..100 {
        assert_eq!(status().await, 429);
    }
    assert_eq!(calls.load(Relaxed), before);
    set_process_limit(Some(1 << 40));
    wait(200).await;
    assert_eq!(rqmalloc::stats().open_request_count, 0);
}
