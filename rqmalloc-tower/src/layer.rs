//! The layer, and how it is set up.

use crate::answer::IntoAnswer;
use crate::service::RequestService;
use crate::settings::Settings;
use crate::watch::Watch;
use http::Request;
use rqmalloc::{Bailout, LimitExceeded, Report};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tower_layer::Layer;

/// A layer that gives every request of a service its own memory: an [`rqmalloc::Request`], which
/// spans the handler and the body of its response. A clone has the same settings, and counts
/// together with it.
///
/// ```
/// use axum::{Router, extract::Path, http::StatusCode, routing::get};
/// use rqmalloc_tower::RequestLayer;
///
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// async fn item(Path(id): Path<u32>) -> String {
///     format!("item {id}")
/// }
///
/// let app = Router::new().route("/items/{id}", get(item))
///     .layer(RequestLayer::new().soft_limit(16 << 20).on_limit(|_| StatusCode::SERVICE_UNAVAILABLE));
/// # let _: Router = app;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a layer does nothing until a service is made with it"]
pub struct RequestLayer {
    settings: Arc<Settings>,
}

impl RequestLayer {
    /// Returns a layer without limits, whose requests are called as axum's routes are: `GET
    /// /items/{id}`; only `GET` without the feature `axum`, or where axum matched no route.
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new();
    /// # let _ = layer;
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Sets how many bytes of pages a request should hold. At the end of the poll that went above
    /// it, the request is given up: [`on_limit`](Self::on_limit) answers, or the body ends with an
    /// error. Nothing is refused, so that code lives that cannot handle a failed allocation: see
    /// [`RequestBuilder::soft_limit`](rqmalloc::RequestBuilder::soft_limit).
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new().soft_limit(16 << 20);
    /// # let _ = layer;
    /// ```
    pub fn soft_limit(self, bytes: usize) -> Self {
        self.with(|settings| settings.soft_limit_bytes = Some(bytes))
    }

    /// Sets how many bytes of pages a request may hold. It is given up at the
    /// [`reserve`](Self::reserve) before that; at the limit itself an allocation returns null, which
    /// `try_reserve` makes an error of, and most other code the end of the process: see
    /// [`RequestBuilder::memory_limit`](rqmalloc::RequestBuilder::memory_limit).
    ///
    /// Below 64 KiB no request has room: all of them are answered by [`on_limit`](Self::on_limit),
    /// and the inner service is not called.
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new().soft_limit(16 << 20).memory_limit(256 << 20);
    /// # let _ = layer;
    /// ```
    pub fn memory_limit(self, bytes: usize) -> Self {
        self.with(|settings| settings.memory_limit_bytes = Some(bytes))
    }

    /// Sets how many bytes below the memory limit a request is given up: see
    /// [`RequestBuilder::reserve`](rqmalloc::RequestBuilder::reserve).
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new().memory_limit(64 << 20).reserve(16 << 20);
    /// # let _ = layer;
    /// ```
    pub fn reserve(self, bytes: usize) -> Self {
        self.with(|settings| settings.reserve_bytes = Some(bytes))
    }

    /// Sets what a request is called. The name is also its route in metrics and in [`leaks`], so it
    /// should have few values, not those that clients make up: 1000 are told apart, what comes later
    /// is `other`. Names are cut after 64 bytes; control characters become `?`.
    ///
    /// ```
    /// // The methods of a gRPC service.
    /// let layer = rqmalloc_tower::RequestLayer::new().name(|request| request.uri().path().into());
    /// # let _ = layer;
    /// ```
    ///
    /// [`leaks`]: crate::leaks
    pub fn name<F>(self, name: F) -> Self
    where
        F: Fn(&Request<()>) -> Cow<'_, str> + Send + Sync + 'static,
    {
        self.with(|settings| settings.name = Some(Arc::new(name)))
    }

    /// Sets whether each request lists on standard error what is live when it is over: see
    /// [`RequestBuilder::report_leaks`](rqmalloc::RequestBuilder::report_leaks). For a search by
    /// hand: [`watch_leaks`](Self::watch_leaks) is for production.
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new().report_leaks(true);
    /// # let _ = layer;
    /// ```
    pub fn report_leaks(self, report: bool) -> Self {
        self.with(|settings| settings.reports_leaks = report)
    }

    /// Sets whether every block of a request remembers where it was allocated, for that list: see
    /// [`RequestBuilder::trace_leaks`](rqmalloc::RequestBuilder::trace_leaks). Slow.
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new().trace_leaks(true);
    /// # let _ = layer;
    /// ```
    pub fn trace_leaks(self, trace: bool) -> Self {
        self.with(|settings| settings.traces_leaks = trace)
    }

    /// Counts, by route, what some of the requests leave behind that still lives so long after them:
    /// see [`leaks`](crate::leaks). What is live when a request is over may just be on its way to
    /// the client; what lives some seconds later is kept by somebody: a cache, or a leak if it grows
    /// and grows.
    ///
    /// One request of 32 is watched: it stays open, with the pages it holds, until a later request of
    /// this layer finds its time is up; it is in [`rqmalloc::open_requests`] until then, and its
    /// report comes then. At most 64 of a layer are watched at a time, and none that holds
    /// more than 1 MiB when it is over.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let layer = rqmalloc_tower::RequestLayer::new().watch_leaks(Duration::from_secs(5));
    /// # let _ = layer;
    /// ```
    pub fn watch_leaks(self, after: Duration) -> Self {
        self.with(|settings| settings.watch = Some(Arc::new(Watch::new(after))))
    }

    /// Has the layer answer by [`on_limit`](Self::on_limit) at once, without a request and without
    /// the inner service, while the process is above its limit:
    /// [`set_process_limit`](rqmalloc::set_process_limit).
    ///
    /// ```
    /// rqmalloc::set_process_limit(Some(2 << 30));
    /// let layer = rqmalloc_tower::RequestLayer::new().shed_load();
    /// # let _ = layer;
    /// ```
    pub fn shed_load(self) -> Self {
        self.with(|settings| settings.sheds_load = true)
    }

    /// Sets what is answered for a request that has come to a limit before the first byte of its
    /// response: by default 503 without a text.
    ///
    /// ```
    /// use http::StatusCode;
    ///
    /// let layer = rqmalloc_tower::RequestLayer::new().soft_limit(16 << 20).on_limit(|limit| {
    ///     (StatusCode::SERVICE_UNAVAILABLE, format!("{limit}\n"))
    /// });
    /// # let _ = layer;
    /// ```
    pub fn on_limit<F, A>(self, answer: F) -> Self
    where
        F: Fn(&LimitExceeded) -> A + Send + Sync + 'static,
        A: IntoAnswer,
    {
        let answer = move |limit: &_| answer(limit).into_answer();
        self.with(|settings| settings.on_limit = Some(Arc::new(answer)))
    }

    /// Sets what is answered for a request that was given up by [`rqmalloc::bailout`] or its kin
    /// before the first byte of its response: by default 500 without a text.
    ///
    /// ```
    /// use http::StatusCode;
    ///
    /// let layer = rqmalloc_tower::RequestLayer::new()
    ///     .on_bailout(|bailout| (StatusCode::INTERNAL_SERVER_ERROR, bailout.to_string()));
    /// # let _ = layer;
    /// ```
    pub fn on_bailout<F, A>(self, answer: F) -> Self
    where
        F: Fn(&Bailout) -> A + Send + Sync + 'static,
        A: IntoAnswer,
    {
        let answer = move |bailout: &_| answer(bailout).into_answer();
        self.with(|settings| settings.on_bailout = Some(Arc::new(answer)))
    }

    /// Sets what is called when a request is over, with its report, by whichever thread drops the
    /// last of it; outside of it. A panic is printed and goes no further.
    ///
    /// ```
    /// let layer = rqmalloc_tower::RequestLayer::new().on_close(|report| println!("{report}"));
    /// # let _ = layer;
    /// ```
    pub fn on_close<F>(self, closed: F) -> Self
    where
        F: Fn(&Report) + Send + Sync + 'static,
    {
        self.with(|settings| settings.on_close = Some(Arc::new(closed)))
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> RequestService<S> {
        RequestService::new(inner, self.settings.clone())
    }
}
