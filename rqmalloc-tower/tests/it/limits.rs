//! Requests at their limits.

use super::support::{Client, MANY, Made, Reports, Server, endless, wait_none_open};
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::StatusCode;
use rqmalloc::{LimitKind, Outcome};
use rqmalloc_tower::RequestLayer;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[tokio::test(flavor = "multi_thread")]
async fn a_route_without_end_is_answered_503_and_the_others_200() {
    let app = Router::new()
        .route("/endless/{id}", get(endless))
        .route("/fine/{id}", get(async || "fine"))
        .layer(
            RequestLayer::new().soft_limit(1 << 20).on_limit(|_| StatusCode::SERVICE_UNAVAILABLE),
        );
    let server = Server::start(app).await;
    let greedy = async {
        let mut client = Client::connect(&server).await;
        for _ in 0..MANY {
            let (status, body) = client.get("/endless/7").await;
            assert_eq!((status, body.unwrap().len()), (503, 0));
        }
    };
    let modest = async {
        let mut client = Client::connect(&server).await;
        for _ in 0..MANY {
            let (status, body) = client.get("/fine/8").await;
            assert_eq!((status, &body.unwrap()[..]), (200, &b"fine"[..]));
        }
    };
    tokio::join!(greedy, modest);
    server.stop().await;
    wait_none_open("GET /endless/{id}").await;
    wait_none_open("GET /fine/{id}").await;
}

#[tokio::test]
async fn what_is_given_up_says_why_and_leaves_nothing() {
    let reports = Reports::default();
    let layer = reports.layer().soft_limit(1 << 20).on_limit(|limit| {
        (StatusCode::PAYLOAD_TOO_LARGE, format!("{:?} {}", limit.kind, limit.limit_bytes))
    });
    let server = Server::start(Router::new().route("/soft", get(endless)).layer(layer)).await;
    let (status, body) = Client::connect(&server).await.get("/soft").await;
    assert_eq!((status, &body.unwrap()[..]), (413, &b"Soft 1048576"[..]));
    let report = reports.wait_clean(1, Outcome::OverLimit).await[0];
    assert_eq!(report.name.unwrap().as_str(), "GET /soft");
    assert!(report.peak_bytes > 1 << 20, "{report}");
}

#[tokio::test]
async fn a_refusal_that_the_handler_handles_is_its_own_answer() {
    let reports = Reports::default();
    let layer = reports.layer().memory_limit(4 << 20).reserve(1 << 20);
    let handler = async || match Vec::<u8>::new().try_reserve_exact(5 << 20) {
        Ok(()) => (StatusCode::OK, "there was memory"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the handler says so"),
    };
    let server = Server::start(Router::new().route("/hard", get(handler)).layer(layer)).await;
    let mut client = Client::connect(&server).await;
    for _ in 0..10 {
        let (status, body) = client.get("/hard").await;
        assert_eq!((status, &body.unwrap()[..]), (503, &b"the handler says so"[..]));
    }
    for report in reports.wait_clean(10, Outcome::Closed).await {
        assert_eq!(report.limit_exceeded.unwrap().kind, LimitKind::Memory);
    }
}

#[tokio::test]
async fn before_the_hard_limit_there_is_a_reserve() {
    let reports = Reports::default();
    let layer = reports.layer().memory_limit(8 << 20).reserve(4 << 20);
    let server = Server::start(Router::new().route("/near", get(endless)).layer(layer)).await;
    assert_eq!(Client::connect(&server).await.get("/near").await.0, 503);
    let report = reports.wait_clean(1, Outcome::OverLimit).await[0];
    assert!((4 << 20..8 << 20).contains(&report.peak_bytes), "{report}");
}

#[tokio::test]
async fn a_bailout_is_answered_500_or_as_the_layer_is_told() {
    let handler = async || -> &'static str { rqmalloc::bailout("no more of this") };
    let reports = Reports::default();
    let route = Router::new().route("/bail", get(handler));
    let server = Server::start(route.clone().layer(reports.layer())).await;
    assert_eq!(Client::connect(&server).await.get("/bail").await.0, 500);
    reports.wait_clean(1, Outcome::BailedOut).await;

    let layer = reports.layer().on_bailout(|why| (StatusCode::IM_A_TEAPOT, why.to_string()));
    let server = Server::start(route.layer(layer)).await;
    let (status, body) = Client::connect(&server).await.get("/bail").await;
    assert_eq!(status, 418);
    assert!(body.unwrap().ends_with(b"no more of this"));
    reports.wait_clean(2, Outcome::BailedOut).await;
}

#[tokio::test]
async fn after_the_first_byte_the_body_ends_with_an_error() {
    let handler = async || {
        let mut kept = Vec::with_capacity(1000);
        Body::new(Made(move || {
            kept.push(vec![0u8; 30_000]);
            Some(vec![b'x'; 1000])
        }))
    };
    let reports = Reports::default();
    let layer = reports.layer().soft_limit(1 << 20);
    let server = Server::start(Router::new().route("/stream", get(handler)).layer(layer)).await;
    let (status, body) = Client::connect(&server).await.get("/stream").await;
    assert_eq!(status, 200);
    assert!(body.is_err(), "the client saw that it was cut");
    reports.wait_clean(1, Outcome::OverLimit).await;
}

#[tokio::test]
async fn a_limit_of_nothing_is_a_limit() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let handler = async move || {
        count.fetch_add(1, Relaxed);
        "never"
    };
    let route = Router::new().route("/nothing", get(handler));
    for bytes in [0, 1, 20_000, (64 << 10) - 1] {
        let reports = Reports::default();
        let layer = reports.layer().memory_limit(bytes).on_limit(move |limit| {
            assert_eq!((limit.kind, limit.limit_bytes), (LimitKind::Memory, bytes));
            StatusCode::SERVICE_UNAVAILABLE
        });
        let server = Server::start(route.clone().layer(layer)).await;
        assert_eq!(Client::connect(&server).await.get("/nothing").await.0, 503);
        reports.wait_clean(1, Outcome::OverLimit).await;
    }
    assert_eq!(calls.load(Relaxed), 0);

    let reports = Reports::default();
    let server = Server::start(route.layer(reports.layer().soft_limit(0))).await;
    assert_eq!(Client::connect(&server).await.get("/nothing").await.0, 503);
    reports.wait_clean(1, Outcome::OverLimit).await;
}
