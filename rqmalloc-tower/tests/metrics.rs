//! The figures that a recorder of the crate `metrics` gets.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http_body_util::BodyExt;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use rqmalloc_tower::RequestLayer;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// Every figure by name and labels: the values that were recorded.
#[derive(Clone, Default)]
struct Recorded {
    values: Arc<Mutex<BTreeMap<String, Vec<f64>>>>,
    described: Arc<Mutex<BTreeSet<String>>>,
}

struct Figure {
    key: String,
    recorded: Recorded,
}

impl Figure {
    fn put(&self, value: f64) {
        // The allocator records outside of requests.
        assert!(rqmalloc::Request::current().is_none());
        self.recorded.values.lock().unwrap().entry(self.key.clone()).or_default().push(value);
    }
}

impl CounterFn for Figure {
    fn increment(&self, value: u64) {
        self.put(value as f64);
    }

    fn absolute(&self, _value: u64) {
        unreachable!("no counter is set");
    }
}

impl GaugeFn for Figure {
    fn increment(&self, _value: f64) {
        unreachable!("every gauge is set");
    }

    fn decrement(&self, _value: f64) {
        unreachable!("every gauge is set");
    }

    fn set(&self, value: f64) {
        self.put(value);
    }
}

impl HistogramFn for Figure {
    fn record(&self, value: f64) {
        self.put(value);
    }
}

impl Recorded {
    fn figure(&self, key: &Key) -> Arc<Figure> {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let key = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Figure { key, recorded: self.clone() })
    }

    fn describe(&self, name: &KeyName) {
        self.described.lock().unwrap().insert(name.as_str().to_owned());
    }

    fn of(&self, key: &str) -> Vec<f64> {
        self.values.lock().unwrap().get(key).cloned().unwrap_or_default()
    }

    fn sum(&self, key: &str) -> f64 {
        self.of(key).iter().sum()
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&key);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&key);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&key);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.figure(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.figure(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.figure(key))
    }
}

async fn call(app: &Router, path: &str) {
    let request = http::Request::get(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
}

/// All in one, as the recorder is the process's.
#[tokio::test]
async fn figures_by_route_and_of_the_process() {
    let recorded = Recorded::default();
    metrics::set_global_recorder(recorded.clone()).ok().unwrap();
    let greedy = async || drop(vec![vec![1u8; 30_000]; 100]);
    let leaks = async || std::mem::forget(vec![1u8; 100]);
    let routes = Router::new()
        .route("/fine/{id}", get(async || vec![1u8; 1000]))
        .route("/greedy", get(greedy))
        .route("/leaks", get(leaks));
    let app = routes.clone().layer(RequestLayer::new().soft_limit(1 << 20));
    for _ in 0..10 {
        call(&app, "/fine/7").await;
        call(&app, "/greedy").await;
    }
    call(&app, "/leaks").await;

    assert_eq!(recorded.sum("rqmalloc_requests_total{route=GET /fine/{id},outcome=closed}"), 10.0);
    assert_eq!(recorded.sum("rqmalloc_requests_total{route=GET /greedy,outcome=over_limit}"), 10.0);
    let peaks = recorded.of("rqmalloc_request_peak_bytes{route=GET /greedy}");
    assert_eq!(peaks.len(), 10);
    assert!(peaks.iter().all(|&peak| peak > 1e6), "{peaks:?}");
    let durations = recorded.of("rqmalloc_request_duration_seconds{route=GET /fine/{id}}");
    assert_eq!(durations.len(), 10);
    assert!(durations.iter().all(|&seconds| seconds > 0.0));
    assert_eq!(recorded.sum("rqmalloc_surviving_blocks_total{route=GET /fine/{id}}"), 0.0);
    assert_eq!(recorded.sum("rqmalloc_surviving_blocks_total{route=GET /leaks}"), 1.0);
    assert_eq!(recorded.sum("rqmalloc_surviving_bytes_total{route=GET /leaks}"), 112.0);
    assert!(!recorded.of("rqmalloc_mapped_bytes{}").is_empty(), "a request measured the process");

    let watching = routes.layer(RequestLayer::new().watch_leaks(Duration::ZERO));
    call(&watching, "/leaks").await;
    assert_eq!(recorded.sum("rqmalloc_leaked_blocks_total{route=GET /leaks}"), 1.0);
    assert_eq!(recorded.sum("rqmalloc_leaked_bytes_total{route=GET /leaks}"), 112.0);

    rqmalloc_tower::measure_process();
    assert_eq!(recorded.of("rqmalloc_open_requests{}").last(), Some(&0.0));
    let mapped = *recorded.of("rqmalloc_mapped_bytes{}").last().unwrap();
    assert!(mapped >= *recorded.of("rqmalloc_in_use_bytes{}").last().unwrap());

    // Routes that clients make up: the figures have a bound.
    let app = Router::new().fallback(async || "any");
    let app = app.layer(RequestLayer::new().name(|request| request.uri().path().into()));
    let count = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
    for index in 0..count {
        call(&app, &format!("/{index}")).await;
    }
    let values = recorded.values.lock().unwrap();
    let routes = values.keys().filter(|key| key.starts_with("rqmalloc_request_peak_bytes"));
    assert_eq!(routes.count(), 1001);
    let others = values["rqmalloc_requests_total{route=other,outcome=closed}"].len();
    assert_eq!(others, count - (1000 - 3));

    // Each has a text that says what it is.
    let described = recorded.described.lock().unwrap();
    for key in values.keys() {
        let name = key.split('{').next().unwrap();
        assert!(described.contains(name), "{name}");
    }
}
