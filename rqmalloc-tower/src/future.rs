//! The future of a response.

use crate::body::ResponseBody;
use crate::out::{self, Strings};
use crate::settings::Settings;
use crate::watch::Watched;
use bytes::Bytes;
use http::Response;
use pin_project_lite::pin_project;
use rqmalloc::{CatchScope, Request};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

pin_project! {
    /// The future that [`RequestService`](crate::RequestService) returns: that of the inner service,
    /// which is polled, and dropped, inside the request.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Running {
            #[pin]
            scope: CatchScope<F>,
            running: Option<Running>,
        },
        Answered {
            answer: Option<Response<Bytes>>,
        },
    }
}

/// What goes on when the future is done.
pub(crate) struct Running {
    pub(crate) request: Request,
    pub(crate) watched: Option<Watched>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) strings: Strings,
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(running: Running, future: F) -> Self {
        let scope = running.request.scope(future).catch();
        Self { state: State::Running { scope, running: Some(running) } }
    }

    pub(crate) fn answered(answer: Response<Bytes>) -> Self {
        Self { state: State::Answered { answer: Some(answer) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    /// # Panics
    /// If the future panics, or was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (scope, running) = match self.project().state.project() {
            Projected::Running { scope, running } => (scope, running),
            Projected::Answered { answer } => {
                let answer = answer.take().expect("ResponseFuture polled after it was ready");
                return Poll::Ready(Ok(answer.map(ResponseBody::given)));
            }
        };
        let polled = ready!(scope.poll(context));
        let running = running.take().expect("a scope is ready once");
        let response = match polled {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Poll::Ready(Err(error)),
            Err(bailout) => {
                let Running { request, watched, settings, .. } = running;
                // The request is over before its answer is made.
                drop((request, watched));
                return Poll::Ready(Ok(settings.answer(&bailout).map(ResponseBody::given)));
            }
        };
        let (mut head, body) = response.into_parts();
        let rest = out::head(&mut head, running.strings);
        let body = ResponseBody::new(&running.request, running.watched, body, rest);
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = match &self.state {
            State::Running { running, .. } => running.as_ref().map(|running| &running.request),
            State::Answered { .. } => None,
        };
        f.debug_struct("ResponseFuture").field("request", &request).finish_non_exhaustive()
    }
}
