//! Panics go on, and their request closes.

use super::support::{Client, Made, Reports, Server, get, wait_none_open};
use axum::Router;
use axum::body::Body;
use axum::routing::get as route_get;
use http_body_util::BodyExt;
use rqmalloc::Outcome;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;

#[tokio::test(flavor = "multi_thread")]
async fn in_a_handler() {
    let handler = async || -> &'static str {
        let _kept = vec![1u8; 10_000];
        panic!("a handler of the tests panics")
    };
    let reports = Reports::default();
    let app = Router::new()
        .route("/panics", route_get(handler))
        .route("/fine", route_get(async || "fine"))
        .layer(reports.layer());
    let server = Server::start(app).await;
    for _ in 0..10 {
        let mut client = Client::connect(&server).await;
        assert!(client.send(get("/panics")).await.is_err(), "the panic took the connection along");
    }
    for report in reports.wait(10).await {
        assert_eq!(report.outcome, Outcome::Panicked, "{report}");
    }
    assert_eq!(Client::connect(&server).await.get("/fine").await.0, 200);
    wait_none_open("GET /panics").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_body() {
    let handler = async || {
        let mut parts = 0;
        Body::new(Made(move || {
            parts += 1;
            assert!(parts < 10, "a body of the tests panics");
            Some(vec![b'p'; 100])
        }))
    };
    let reports = Reports::default();
    let app = Router::new().route("/body-panics", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    let mut client = Client::connect(&server).await;
    if let Ok(response) = client.send(get("/body-panics")).await {
        assert!(response.into_body().collect().await.is_err());
    }
    let report = reports.wait(1).await[0];
    assert_eq!(report.outcome, Outcome::Panicked, "{report}");
    wait_none_open("GET /body-panics").await;
}

#[tokio::test]
async fn in_the_call_of_a_service() {
    let reports = Reports::default();
    let service = service_fn(
        |_: http::Request<Body>| -> std::future::Ready<Result<http::Response<Body>, ()>> {
            panic!("a service of the tests panics")
        },
    );
    let mut service = reports.layer().layer(service);
    let task = tokio::spawn(async move {
        service.ready().await.unwrap().call(http::Request::new(Body::empty())).await.map(drop)
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(reports.wait(1).await[0].outcome, Outcome::Panicked);
}

#[tokio::test]
async fn in_what_the_layer_was_told() {
    let reports = Reports::default();
    let layer = reports.layer().name(|_| panic!("a name of the tests panics"));
    let app = Router::new().route("/unnamed", route_get(async || "fine")).layer(layer);
    let task = tokio::spawn(app.oneshot(http::Request::new(Body::empty())));
    assert!(task.await.unwrap_err().is_panic());
    assert!(rqmalloc::Request::current().is_none());

    let layer =
        rqmalloc_tower::RequestLayer::new().on_close(|_| panic!("a report of the tests panics"));
    let app = Router::new().route("/", route_get(async || "fine")).layer(layer);
    let response = app.oneshot(http::Request::new(Body::empty())).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "fine");
}
