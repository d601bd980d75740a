//! What spans and subscribers of the crate `tracing` get.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http_body_util::BodyExt;
use rqmalloc_tower::{RequestLayer, request_span};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Instrument, Level, Metadata, Subscriber};

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

type Fields = BTreeMap<String, String>;

/// The fields of all spans, and the warnings.
#[derive(Clone, Default)]
struct Recorded {
    next: Arc<AtomicU64>,
    inside: Arc<Mutex<Vec<Id>>>,
    spans: Arc<Mutex<BTreeMap<u64, Fields>>>,
    metadata: Arc<Mutex<BTreeMap<u64, &'static Metadata<'static>>>>,
    warnings: Arc<Mutex<Vec<Fields>>>,
}

struct Into<'a>(&'a mut Fields);

impl Visit for Into<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl Subscriber for Recorded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.name() == "request" || *metadata.level() == Level::WARN
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Relaxed) + 1;
        let mut fields = Fields::new();
        span.record(&mut Into(&mut fields));
        self.spans.lock().unwrap().insert(id, fields);
        self.metadata.lock().unwrap().insert(id, span.metadata());
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut spans = self.spans.lock().unwrap();
        values.record(&mut Into(spans.get_mut(&span.into_u64()).unwrap()));
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        assert!(rqmalloc::Request::current().is_none());
        let mut fields = Fields::new();
        event.record(&mut Into(&mut fields));
        self.warnings.lock().unwrap().push(fields);
    }

    fn enter(&self, span: &Id) {
        self.inside.lock().unwrap().push(span.clone());
    }

    fn exit(&self, _span: &Id) {
        self.inside.lock().unwrap().pop();
    }

    fn current_span(&self) -> tracing_core::span::Current {
        let inside = self.inside.lock().unwrap();
        match inside.last() {
            None => tracing_core::span::Current::none(),
            Some(id) => {
                let metadata = self.metadata.lock().unwrap()[&id.into_u64()];
                tracing_core::span::Current::new(id.clone(), metadata)
            }
        }
    }
}

/// All in one, as the subscriber is the thread's and routes are the process's.
#[tokio::test]
async fn fields_of_the_span_and_one_warning_a_minute() {
    let recorded = Recorded::default();
    let _default = tracing::subscriber::set_default(recorded.clone());
    let app = Router::new()
        .route("/fine", get(async || vec![1u8; 1000]))
        .route("/greedy", get(async || drop(vec![vec![1u8; 30_000]; 100])))
        .route("/leaks", get(async || std::mem::forget(vec![1u8; 100])))
        .layer(RequestLayer::new().soft_limit(1 << 20));
    let call = async |path: &str| {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let span = request_span(&request);
        let id = span.id().unwrap().into_u64();
        let response = app.clone().oneshot(request).instrument(span).await.unwrap();
        // The span is not the current one any more when the request is over.
        response.into_body().collect().await.unwrap();
        recorded.spans.lock().unwrap()[&id].clone()
    };
    let fields = call("/fine").await;
    assert_eq!((&fields["method"][..], &fields["uri"][..]), ("GET", "/fine"));
    assert_eq!(fields["rqmalloc.outcome"], "closed");
    assert_eq!(fields["rqmalloc.surviving_blocks"], "0");
    assert!(fields["rqmalloc.peak_bytes"].parse::<usize>().unwrap() >= 16 << 10);
    let fields = call("/greedy").await;
    assert_eq!(fields["rqmalloc.outcome"], "over_limit");
    assert!(fields["rqmalloc.peak_bytes"].parse::<usize>().unwrap() > 1 << 20);
    assert!(recorded.warnings.lock().unwrap().is_empty());

    for _ in 0..20 {
        let fields = call("/leaks").await;
        assert_eq!(fields["rqmalloc.surviving_blocks"], "1");
        assert_eq!(fields["rqmalloc.surviving_bytes"], "112");
    }
    let warnings = recorded.warnings.lock().unwrap().clone();
    let warning = &warnings[0];
    assert_eq!(warning["route"], "\"GET /leaks\"");
    assert_eq!((&warning["requests"][..], &warning["blocks"][..]), ("1", "1"));
    // One a minute: a second one only on a machine that needs minutes for this.
    assert!(warnings.len() < 20, "{warnings:?}");

    // Without a span, and in one without the fields.
    let request = || http::Request::get("/fine").body(Body::empty()).unwrap();
    app.clone().oneshot(request()).await.unwrap();
    let bare = tracing::info_span!("request", other = 1);
    app.clone().oneshot(request()).instrument(bare).await.unwrap();
}
