//! What a request spans, and what leaves it.

use super::support::{
    Channel, Client, Made, Reports, Server, connect_http2, get, open_count, request, wait_none_open,
};
use axum::body::{Body, to_bytes};
use axum::response::IntoResponse;
use axum::routing::{get as route_get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use rqmalloc::Outcome;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// A response as services make them: a type, headers of its own, a text.
async fn json() -> impl IntoResponse {
    let name = HeaderName::from_bytes(format!("x-made-{}", 7).as_bytes()).unwrap();
    let value = HeaderValue::from_str(&format!("value {}", "of some length".repeat(3))).unwrap();
    let lines: Vec<String> = (0..50).map(|line| format!("line {line}")).collect();
    ([(name, value)], Json(lines))
}

fn app(reports: &Reports) -> Router {
    let streamed = async || {
        let mut lines = (0..100).map(|line| format!("line {line}\n").into_bytes());
        Body::new(Made(move || lines.next()))
    };
    Router::new()
        .route("/json", route_get(json))
        .route("/empty", route_get(async || ()))
        .route("/static", route_get(async || "a text of the program"))
        .route("/streamed", route_get(streamed))
        .route("/echo", post(async |body: Bytes| body.to_vec()))
        .layer(reports.layer())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http1_nothing_survives() {
    let reports = Reports::default();
    let server = Server::start(app(&reports)).await;
    let mut client = Client::connect(&server).await;
    for _ in 0..20 {
        let response = client.send(get("/json")).await.unwrap();
        assert!(response.headers()["x-made-7"].as_bytes().starts_with(b"value"));
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(response.into_body().collect().await.unwrap().to_bytes().ends_with(b"line 49\"]"));
        for path in ["/empty", "/static", "/streamed", "/no-such-route"] {
            client.get(path).await.1.unwrap();
        }
        let echoed =
            client.send(request("POST", "/echo", vec![b'e'; 20_000].into())).await.unwrap();
        assert_eq!(echoed.into_body().collect().await.unwrap().to_bytes().len(), 20_000);
        client.send(request("HEAD", "/json", Bytes::new())).await.unwrap();
    }
    let reports = reports.wait_clean(20 * 7, Outcome::Closed).await;
    assert!(reports[0].peak_bytes > 0, "the handler ran inside: {}", reports[0]);
    server.stop().await;
}

/// What a handler tells the middlewares around the layer.
#[tokio::test(flavor = "multi_thread")]
async fn extensions_leave() {
    #[derive(Clone)]
    struct Told(String);
    let handler = async || (Extension(Told("told".repeat(20))), "a text");
    let seen = Arc::new(Mutex::new(0));
    let count = seen.clone();
    let look = move |response: http::Response<Body>| {
        assert_eq!(response.extensions().get::<Told>().unwrap().0, "told".repeat(20));
        *count.lock().unwrap() += 1;
        response
    };
    let reports = Reports::default();
    let app = Router::new().route("/told", route_get(handler)).layer(reports.layer());
    let server = Server::start(app.layer(tower::util::MapResponseLayer::new(look))).await;
    let mut client = Client::connect(&server).await;
    for _ in 0..20 {
        client.get("/told").await.1.unwrap();
    }
    reports.wait_clean(20, Outcome::Closed).await;
    assert_eq!(*seen.lock().unwrap(), 20);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_nothing_survives() {
    let reports = Reports::default();
    let server = Server::start(app(&reports)).await;
    let sender = connect_http2(&server).await;
    let paths = ["/json", "/empty", "/static", "/streamed"];
    let tasks: Vec<_> = (0..80)
        .map(|index| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                sender.ready().await.unwrap();
                let response = sender.send_request(get(paths[index % 4])).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap().to_bytes().len()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    reports.wait_clean(80, Outcome::Closed).await;
    drop(sender);
    server.stop().await;
    for path in paths {
        wait_none_open(&format!("GET {path}")).await;
    }
}

#[tokio::test]
async fn long_data_that_is_on_its_way_survives_and_nothing_else() {
    const BYTES: usize = 1_000_000;
    let reports = Reports::default();
    let handler = async || vec![b'x'; BYTES];
    let app = Router::new().route("/long", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    let (_, body) = Client::connect(&server).await.get("/long").await;
    assert_eq!(body.unwrap().len(), BYTES);
    let report = reports.wait(1).await[0];
    assert!(report.surviving_blocks <= 1, "{report}");
}

#[tokio::test]
async fn a_request_is_open_as_long_as_its_body() {
    let reports = Reports::default();
    let (sender, body) = Channel::new();
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = async move || Body::new(body.lock().unwrap().take().unwrap());
    let app = Router::new().route("/slow-body", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;

    let mut client = Client::connect(&server).await;
    let mut body = client.send(get("/slow-body")).await.unwrap().into_body();
    for part in ["one", "two"] {
        sender.send(Frame::data(part.into())).unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
        assert_eq!(open_count("GET /slow-body"), 1);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
    reports.wait_clean(1, Outcome::Closed).await;
    wait_none_open("GET /slow-body").await;
}

/// The layer without a connection around it.
async fn body_of(layer: rqmalloc_tower::RequestLayer, body: Body) -> Body {
    use tower::ServiceExt;
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = async move || body.lock().unwrap().take().unwrap();
    let app = Router::new().route("/", route_get(handler)).layer(layer);
    let response = app.oneshot(http::Request::new(Body::empty())).await.unwrap();
    response.into_body()
}

#[tokio::test]
async fn the_last_frame_closes_the_request_while_the_body_is_still_there() {
    let reports = Reports::default();
    let mut body = body_of(reports.layer(), Body::from("all of it")).await;
    assert_eq!(body.size_hint().exact(), Some(9));
    assert!(!body.is_end_stream());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "all of it");
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    reports.wait_clean(1, Outcome::Closed).await;
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn trailers_leave_too() {
    let reports = Reports::default();
    let (sender, body) = Channel::new();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_str(&"0".repeat(20)).unwrap());
    sender.send(Frame::data("data".into())).unwrap();
    sender.send(Frame::trailers(trailers.clone())).unwrap();
    drop(sender);
    let collected = body_of(reports.layer(), Body::new(body)).await.collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), "data");
    reports.wait_clean(1, Outcome::Closed).await;
}

/// Data and trailers, as an encoder makes them: it keeps the buffer that it cuts frames from until its
/// end, and knows that the trailers are it.
struct Encoder {
    buffer: bytes::BytesMut,
    left: usize,
}

impl http_body::Body for Encoder {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        if left == 0 {
            let mut trailers = HeaderMap::with_capacity(3);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        self.buffer.reserve(8192);
        self.buffer.extend_from_slice(&[b'e'; 1000]);
        Poll::Ready(Some(Ok(Frame::data(self.buffer.split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_and_trailers_of_an_encoder_leave() {
    let reports = Reports::default();
    let handler = async || Body::new(Encoder { buffer: bytes::BytesMut::new(), left: 5 });
    let app = Router::new().route("/encoded", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    let mut sender = connect_http2(&server).await;
    for count in 1..=20 {
        sender.ready().await.unwrap();
        let body = sender.send_request(get("/encoded")).await.unwrap().into_body();
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes().len(), 4000);
        reports.wait_clean(count, Outcome::Closed).await;
    }
    // The last frame of a body whose length is not known, with the connection left out.
    for left in [1, 2, 5] {
        let reports = Reports::default();
        let body = Encoder { buffer: bytes::BytesMut::new(), left };
        let mut body = body_of(reports.layer(), Body::new(body)).await;
        while !body.is_end_stream() {
            body.frame().await.unwrap().unwrap();
        }
        reports.wait_clean(1, Outcome::Closed).await;
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_the_request() {
    let reports = Reports::default();
    let (_sender, body) = Channel::new();
    let body = body_of(reports.layer(), Body::new(body)).await;
    assert!(format!("{body:?}").contains("Body"));
    drop(body);
    reports.wait(1).await;
}

#[tokio::test]
async fn layers_nest() {
    let (inner, outer) = (Reports::default(), Reports::default());
    let handler = async || vec![b'n'; 10_000];
    let app = Router::new().route("/nested", route_get(handler)).layer(inner.layer());
    let app = app.layer(outer.layer().name(|_| "outer".into()));
    let server = Server::start(app).await;
    assert_eq!(Client::connect(&server).await.get("/nested").await.1.unwrap().len(), 10_000);
    let inner = inner.wait_clean(1, Outcome::Closed).await[0];
    let outer = outer.wait_clean(1, Outcome::Closed).await[0];
    assert_eq!(inner.name.unwrap().as_str(), "GET /nested");
    assert_eq!(outer.name.unwrap().as_str(), "outer");
}

#[tokio::test]
async fn the_error_of_a_body_comes_through() {
    use http_body_util::StreamBody;
    let error = || Err::<Frame<Bytes>, _>(std::io::Error::other("the disk is gone"));
    let body = StreamBody::new(stream_of(vec![Ok(Frame::data(Bytes::from("part"))), error()]));
    let reports = Reports::default();
    let result = to_bytes(body_of(reports.layer(), Body::new(body)).await, usize::MAX).await;
    assert_eq!(result.unwrap_err().to_string(), "the disk is gone");
    let report = reports.wait(1).await[0];
    assert_eq!(report.outcome, Outcome::Closed);
}

/// A stream of these.
fn stream_of<T: Unpin>(items: Vec<T>) -> impl futures_core::Stream<Item = T> {
    struct Items<T>(std::vec::IntoIter<T>);
    impl<T: Unpin> futures_core::Stream for Items<T> {
        type Item = T;

        fn poll_next(
            mut self: std::pin::Pin<&mut Self>,
            _context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<T>> {
            std::task::Poll::Ready(self.0.next())
        }
    }
    Items(items.into_iter())
}
