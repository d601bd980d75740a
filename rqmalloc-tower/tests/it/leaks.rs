//! What requests leave behind, by route.

use super::support::{Client, Reports, Server};
use axum::Router;
use axum::routing::get;
use rqmalloc_tower::RouteLeaks;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn of_route(name: &str) -> Option<RouteLeaks> {
    rqmalloc_tower::leaks().into_iter().find(|leaks| leaks.route == *name)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_lives_later_is_counted_by_route() {
    let cache = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let fills = async move || {
        let mut cache = cache.lock().unwrap();
        if cache.len() < 10 {
            cache.push(vec![2; 1000]);
        }
        "filled"
    };
    let leaks = async || {
        std::mem::forget(vec![1u8; 100]);
        "leaked"
    };
    let long = async || vec![b'x'; 100_000];
    let reports = Reports::default();
    let app = Router::new()
        .route("/leaking", get(leaks))
        .route("/filling", get(fills))
        .route("/long", get(long))
        .layer(reports.layer().watch_leaks(Duration::ZERO));
    let server = Server::start(app).await;
    let mut client = Client::connect(&server).await;
    for _ in 0..1000 {
        for path in ["/leaking", "/filling", "/long"] {
            assert_eq!(client.get(path).await.0, 200);
        }
    }
    server.stop().await;
    reports.wait(3000).await;

    let leaking = of_route("GET /leaking").unwrap();
    assert!((20..50).contains(&leaking.watched_requests), "{leaking:?}");
    assert_eq!(leaking.leaking_requests, leaking.watched_requests);
    assert_eq!(leaking.leaked_blocks, leaking.watched_requests);
    assert_eq!(leaking.leaked_bytes, 112 * leaking.watched_requests, "{leaking:?}");

    let filling = of_route("GET /filling").unwrap();
    assert!(filling.watched_requests >= 20, "{filling:?}");
    assert!(filling.leaking_requests <= 10, "{filling:?}");
    let long = of_route("GET /long").unwrap();
    assert!(long.watched_requests >= 20, "{long:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_request_is_open_until_its_time() {
    let reports = Reports::default();
    let layer = reports.layer().watch_leaks(Duration::MAX);
    let app = Router::new().route("/watched", get(async || "fine")).layer(layer);
    let server = Server::start(app).await;
    let mut client = Client::connect(&server).await;
    for _ in 0..5 {
        client.get("/watched").await.1.unwrap();
    }
    // The first one is watched.
    reports.wait(4).await;
    assert_eq!(super::support::open_count("GET /watched"), 1);
    drop(client);
    server.stop().await;
    // The layer is gone with its server.
    reports.wait(5).await;
    assert_eq!(super::support::open_count("GET /watched"), 0);
}
