//! What requests are called.

use super::support::Reports;
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http_body_util::BodyExt;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;

async fn name_of(app: Router, reports: &Reports, path: &str) -> String {
    let request = http::Request::get(path).body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
    reports.wait(1).await[0].name.map_or_else(String::new, |name| name.to_string())
}

fn app(layer: rqmalloc_tower::RequestLayer) -> Router {
    let items = Router::new().route("/items/{id}", get(async || "item"));
    Router::new().nest("/shop", items).layer(layer)
}

#[tokio::test]
async fn the_route_that_axum_matched() {
    let reports = Reports::default();
    let name = name_of(app(reports.layer()), &reports, "/shop/items/7").await;
    assert_eq!(name, "GET /shop/items/{id}");
    let reports = Reports::default();
    assert_eq!(name_of(app(reports.layer()), &reports, "/no/such/path").await, "GET");
}

#[tokio::test]
async fn what_a_closure_says() {
    let reports = Reports::default();
    let layer = reports.layer().name(|request| request.uri().path().into());
    assert_eq!(name_of(app(layer), &reports, "/shop/items/7").await, "/shop/items/7");
    let reports = Reports::default();
    let layer = reports.layer().name(|request| format!("a\nb {}\x1b[1m", request.method()).into());
    assert_eq!(name_of(app(layer), &reports, "/shop/items/7").await, "a?b GET?[1m");
    let reports = Reports::default();
    let layer = reports.layer().name(|_| "\u{e9}".repeat(1000).into());
    assert_eq!(name_of(app(layer), &reports, "/shop/items/7").await, "\u{e9}".repeat(32));
    let reports = Reports::default();
    assert_eq!(
        name_of(app(reports.layer().name(|_| "".into())), &reports, "/shop/items/7").await,
        ""
    );
}

/// The head and the body are what they were.
#[tokio::test]
async fn a_closure_sees_the_request_and_does_not_change_it() {
    let layer = rqmalloc_tower::RequestLayer::new().name(|request| {
        assert_eq!(request.extensions().get(), Some(&7u32));
        "named".into()
    });
    let service = service_fn(async |request: http::Request<Body>| {
        assert_eq!(rqmalloc::Request::current().unwrap().name().unwrap().as_str(), "named");
        let (head, body) = request.into_parts();
        assert_eq!((head.method.as_str(), head.uri.path()), ("PUT", "/x"));
        assert_eq!(
            (head.headers["x-a"].as_bytes(), head.extensions.get()),
            (&b"b"[..], Some(&7u32))
        );
        Ok::<_, axum::Error>(http::Response::new(Body::from(body.collect().await?.to_bytes())))
    });
    let request = http::Request::put("/x").header("x-a", "b").extension(7u32);
    let mut service = layer.layer(service);
    let request = request.body(Body::from("body")).unwrap();
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
}
