//! Streams that are polled inside a request.

use crate::api::bailout::Bailout;
use crate::api::request::Request;
use crate::api::scope::{CatchScope, Scope};
use core::pin::Pin;
use core::task::{Context, Poll};
use futures_core::{FusedStream, Stream};

impl Request {
    /// What [`scope`](Self::scope) does, for a stream: each item is made inside this request, and
    /// leaves it. The scope is over when the stream has ended, or when the request is given up.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// use futures_core::Stream;
    /// use std::{future::poll_fn, pin::pin};
    ///
    /// let request = rqmalloc::Request::new();
    /// # let lines = Lines(2);
    /// let mut lines = pin!(request.scope_stream(lines).catch());
    /// while let Some(line) = poll_fn(|context| lines.as_mut().poll_next(context)).await {
    ///     assert_eq!(line.unwrap(), "a line");
    /// }
    /// assert_eq!(request.close().unwrap().surviving_blocks, 0);
    /// # });
    /// # struct Lines(u32);
    /// # impl futures_core::Stream for Lines {
    /// #     type Item = String;
    /// #     fn poll_next(
    /// #         mut self: std::pin::Pin<&mut Self>,
    /// #         _context: &mut std::task::Context<'_>,
    /// #     ) -> std::task::Poll<Option<String>> {
    /// #         let is_left = self.0 > 0;
    /// #         self.0 = self.0.saturating_sub(1);
    /// #         std::task::Poll::Ready(is_left.then(|| "a line".to_owned()))
    /// #     }
    /// # }
    /// ```
    pub fn scope_stream<S: Stream>(&self, stream: S) -> Scope<S> {
        self.scope(stream)
    }
}

impl<S: Stream> Stream for Scope<S> {
    type Item = S::Item;

    /// `None` once the scope is over.
    ///
    /// # Panics
    /// As [`Request::enter`] does. Unwinds with a [`Bailout`] if the request is given up.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.is_terminated() {
            return Poll::Ready(None);
        }
        self.poll_through(|stream| stream.poll_next(context), is_ended)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.get().map_or((0, Some(0)), S::size_hint)
    }
}

impl<S: Stream> FusedStream for Scope<S> {
    fn is_terminated(&self) -> bool {
        self.get().is_none()
    }
}

impl<S: Stream> Stream for CatchScope<S> {
    type Item = Result<S::Item, Bailout>;

    /// `None` once the scope is over.
    ///
    /// # Panics
    /// If the stream panics, or as [`Request::enter`] does.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_terminated() {
            return Poll::Ready(None);
        }
        match self.scope().poll_caught(|stream| stream.poll_next(context), is_ended) {
            Ok(item) => item.map(|item| item.map(Ok)),
            Err(bailout) => Poll::Ready(Some(Err(bailout))),
        }
    }

    /// The error may come before the first item.
    fn size_hint(&self) -> (usize, Option<usize>) {
        match self.as_scope().size_hint() {
            (_, Some(0)) if self.is_terminated() => (0, Some(0)),
            (_, most) => (0, most.and_then(|most| most.checked_add(1))),
        }
    }
}

impl<S: Stream> FusedStream for CatchScope<S> {
    fn is_terminated(&self) -> bool {
        self.as_scope().is_terminated()
    }
}

fn is_ended<I>(polled: &Poll<Option<I>>) -> bool {
    matches!(polled, Poll::Ready(None))
}
