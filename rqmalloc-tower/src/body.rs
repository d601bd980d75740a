//! The body of a response, which is polled after the handler is done.

use crate::out::{self, Leaving, Rest};
use crate::watch::Watched;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use rqmalloc::{Request, Scope};
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Any error, as hyper, axum and tonic take one from a body.
pub type BoxError = Box<dyn Error + Send + Sync>;

pin_project! {
    /// The body of a response of [`RequestService`](crate::RequestService): that of the inner
    /// service, which is polled, and dropped, inside the request. It keeps the request open until
    /// its last frame, or until it is dropped.
    ///
    /// If the request comes to its limit meanwhile, or bails out, the body ends with an error, which
    /// is an [`rqmalloc::Bailout`].
    #[must_use = "a body does nothing unless polled"]
    pub struct ResponseBody<B> {
        #[pin]
        state: State<B>,
        // After the body: see `Watched`.
        watched: Option<Watched>,
    }
}

/// What a body was found to be.
type Polled<E> = Poll<Option<Result<Leaving, E>>>;

pin_project! {
    /// What is dropped inside the request.
    struct Inside<B> {
        #[pin]
        body: B,
        // What is left of the head.
        _rest: Rest,
    }
}

pin_project! {
    #[project = Projected]
    enum State<B> {
        Inside {
            #[pin]
            scope: Scope<Inside<B>>,
        },
        Given {
            data: Option<Bytes>,
        },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn new(request: &Request, watched: Option<Watched>, body: B, rest: Rest) -> Self {
        let inside = Inside { body, _rest: rest };
        Self { state: State::Inside { scope: request.scope(inside) }, watched }
    }

    /// An answer that needs no request.
    pub(crate) fn given(data: Bytes) -> Self {
        Self {
            state: State::Given { data: Some(data).filter(|data| !data.is_empty()) },
            watched: None,
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let mut scope = match this.state.project() {
            Projected::Inside { scope } => scope,
            Projected::Given { data } => {
                return Poll::Ready(data.take().map(|data| Ok(Frame::data(data))));
            }
        };
        let Some(inside) = scope.get() else { return Poll::Ready(None) };
        let room = out::room_for(&inside.body.size_hint());
        let poll = |inside: Pin<&mut Inside<B>>| {
            let mut body = inside.project().body;
            let polled = body.as_mut().poll_frame(context);
            let is_over = match polled {
                Poll::Ready(Some(Ok(_))) => body.is_end_stream(),
                Poll::Ready(None | Some(Err(_))) => true,
                Poll::Pending => false,
            };
            let take = |frame| out::take(frame, room);
            (polled.map(|frame| frame.map(|result| result.map(take))), is_over)
        };
        // What still has memory of the request leaves before the request is over.
        let may_close = |&(ref polled, is_over): &(Polled<B::Error>, bool)| {
            is_over && !matches!(polled, Poll::Ready(Some(Ok(leaving))) if !leaving.is_out())
        };
        let (polled, is_over) = match scope.as_mut().poll_in_until(poll, may_close) {
            Ok((polled, is_over)) => {
                let frame = |result: Result<Leaving, B::Error>| {
                    result.map(Leaving::frame).map_err(Into::into)
                };
                (polled.map(|result| result.map(frame)), is_over)
            }
            Err(bailout) => (Poll::Ready(Some(Err(bailout.into()))), true),
        };
        if is_over {
            scope.drop_in();
            this.watched.take();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Inside { scope } => scope.get().is_none_or(|inside| inside.body.is_end_stream()),
            State::Given { data } => data.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Inside { scope } => {
                scope.get().map_or(SizeHint::with_exact(0), |inside| inside.body.size_hint())
            }
            State::Given { data } => {
                SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
            }
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = match &self.state {
            State::Inside { scope } => scope.request(),
            State::Given { .. } => None,
        };
        f.debug_struct("ResponseBody").field("request", &request).finish_non_exhaustive()
    }
}
