//! Each request of HTTP is one of rqmalloc, from the handler's call to the last frame of the body.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use rqmalloc::{CatchScope, Scope};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// The layer.
#[derive(Clone, Copy)]
pub struct RequestLayer {
    soft_limit: usize,
}

impl RequestLayer {
    /// Returns one without a limit.
    pub fn new() -> Self {
        Self { soft_limit: usize::MAX }
    }

    /// Sets above how many bytes a request is given up.
    pub fn soft_limit(self, bytes: usize) -> Self {
        Self { soft_limit: bytes }
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = InRequests<S>;

    fn layer(&self, inner: S) -> InRequests<S> {
        InRequests { inner, layer: *self }
    }
}

/// A service whose requests are those of rqmalloc.
#[derive(Clone)]
pub struct InRequests<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S: Service<Request, Response = Response>> Service<Request> for InRequests<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, http: Request) -> Self::Future {
        let route = http.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let builder = rqmalloc::Request::builder().name(format!("{} {route}", http.method()));
        let request = builder.soft_limit(self.layer.soft_limit).build();
        let future = request.run(|| self.inner.call(http));
        Answer { scope: request.scope(future).catch(), request }
    }
}

pin_project! {
    /// The future of an answer.
    pub struct Answer<F> {
        #[pin]
        scope: CatchScope<F>,
        request: rqmalloc::Request,
    }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for Answer<F> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match ready!(this.scope.poll(context)) {
            Ok(Ok(answer)) => {
                Ok(answer.map(|body| Body::new(InRequest { scope: this.request.scope(body) })))
            }
            Ok(Err(error)) => Err(error),
            Err(bailout) => {
                Ok((StatusCode::SERVICE_UNAVAILABLE, format!("{bailout}\n")).into_response())
            }
        })
    }
}

pin_project! {
    /// A body that is made inside its request, and closes it at its end.
    struct InRequest {
        #[pin]
        scope: Scope<Body>,
    }
}

impl HttpBody for InRequest {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut scope = self.project().scope;
        if scope.get().is_none() {
            return Poll::Ready(None);
        }
        let polled = match scope.as_mut().poll_in(|body| body.poll_frame(context)) {
            Ok(polled) => polled,
            Err(bailout) => Poll::Ready(Some(Err(axum::Error::new(bailout.to_string())))),
        };
        let is_over = matches!(polled, Poll::Ready(None | Some(Err(_))));
        if is_over || scope.get().is_some_and(HttpBody::is_end_stream) {
            scope.drop_in();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.scope.get().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.scope.get().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
