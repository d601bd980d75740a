//! The service of the layer.

use crate::body::ResponseBody;
use crate::future::{ResponseFuture, Running};
use crate::out::Strings;
use crate::settings::Settings;
use http::{Method, Request, Response, Version};
use http_body::Body;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_service::Service;

/// A service whose calls run inside requests: see [`RequestLayer`](crate::RequestLayer).
///
/// ```
/// use http::{Request, Response};
/// use rqmalloc_tower::RequestLayer;
/// use std::convert::Infallible;
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let service = ServiceBuilder::new().layer(RequestLayer::new()).service_fn(
///     async |_: Request<()>| Ok::<_, Infallible>(Response::new(axum::body::Body::from("hello"))),
/// );
/// let response = service.oneshot(Request::new(())).await.unwrap();
/// assert_eq!(response.status(), 200);
/// # }
/// ```
#[derive(Clone)]
pub struct RequestService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> RequestService<S> {
    pub(crate) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }

    /// Returns the inner service.
    ///
    /// ```
    /// use rqmalloc_tower::RequestLayer;
    /// use tower_layer::Layer;
    ///
    /// assert_eq!(*RequestLayer::new().layer("a service").get_ref(), "a service");
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, Q, B> Service<Request<Q>> for RequestService<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    /// What a service prepares belongs to no request: it may be for any call.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match rqmalloc::Request::current() {
            None => self.inner.poll_ready(context),
            Some(_) => rqmalloc::persistent(|| self.inner.poll_ready(context)),
        }
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        if let Err(limit) = self.settings.check_process() {
            return ResponseFuture::answered(self.settings.answer_limit(&limit));
        }
        let (opened, watched) = match self.settings.open(&mut request) {
            Ok(opened) => opened,
            Err(limit) => return ResponseFuture::answered(self.settings.answer_limit(&limit)),
        };
        let is_written_late =
            request.version() > Version::HTTP_11 || request.method() == Method::HEAD;
        let strings = if is_written_late { Strings::Copied } else { Strings::Moved };
        match opened.catch(|| self.inner.call(request)) {
            Ok(future) => {
                let settings = self.settings.clone();
                let running = Running { request: opened, watched, settings, strings };
                ResponseFuture::new(running, future)
            }
            Err(bailout) => {
                drop((opened, watched));
                ResponseFuture::answered(self.settings.answer(&bailout))
            }
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for RequestService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, settings } = self;
        f.debug_struct("RequestService").field("inner", inner).field("settings", settings).finish()
    }
}
