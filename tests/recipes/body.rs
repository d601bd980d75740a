//! The body of an answer, which is polled frame by frame after the handler is done: `poll_in`, and
//! no unsafe code.

use super::{Alone, PARTS, work};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use rqmalloc::{Bailout, Request, Scope};
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

pin_project! {
    /// A body that is polled inside its request. At its limit it ends with an error.
    struct InRequest<B> {
        #[pin]
        scope: Scope<B>,
    }
}

impl<B> InRequest<B> {
    fn new(request: &Request, body: B) -> Self {
        Self { scope: request.scope(body) }
    }
}

impl<B: Body> Body for InRequest<B> {
    type Data = B::Data;
    type Error = Result<B::Error, Bailout>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let mut scope = self.project().scope;
        if scope.get().is_none() {
            return Poll::Ready(None);
        }
        let polled = match scope.as_mut().poll_in(|body| body.poll_frame(context)) {
            Ok(polled) => polled.map_err(Ok),
            Err(bailout) => Poll::Ready(Some(Err(Err(bailout)))),
        };
        if let Poll::Ready(None | Some(Err(_))) = polled {
            scope.drop_in();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.scope.get().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.scope.get().map_or(SizeHint::with_exact(0), B::size_hint)
    }
}

/// A body whose frames are made when they are asked for.
struct Parts(std::ops::Range<u64>);

impl Body for Parts {
    type Data = std::io::Cursor<Vec<u8>>;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
        let text = self.0.next().map(|number| work(number).to_string().into_bytes());
        Poll::Ready(text.map(|text| Ok(Frame::data(std::io::Cursor::new(text)))))
    }
}

#[test]
fn a_body() {
    let alone = Alone::new();
    alone.counts_all("Body::poll_frame in Scope::poll_in", |request| {
        let mut body = pin!(InRequest::new(request, Parts(0..PARTS)));
        let mut sum = 0;
        while let Poll::Ready(Some(frame)) =
            body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()))
        {
            let data = frame.unwrap().into_data().unwrap().into_inner();
            sum += std::str::from_utf8(&data).unwrap().parse::<usize>().unwrap();
        }
        assert!(body.is_end_stream());
        // The scope is over: its handle is gone.
        assert_eq!(request.to_string().matches("no other handle").count(), 1, "{request}");
        sum
    });
}

/// A body that keeps what it made.
struct Greedy(Vec<Vec<u8>>);

impl Body for Greedy {
    type Data = std::io::Cursor<Vec<u8>>;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
        self.0.push(vec![1; 30_000]);
        Poll::Ready(Some(Ok(Frame::data(std::io::Cursor::new(vec![1; 100])))))
    }
}

#[test]
fn a_body_over_its_limit_ends_with_an_error() {
    let _alone = Alone::new();
    let request = Request::builder().memory_limit(1 << 20).reserve(256 << 10).build();
    let body = InRequest::new(&request, request.run(|| Greedy(Vec::with_capacity(1_000))));
    let mut body = pin!(body);
    let mut poll = || body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
    let error = loop {
        match poll() {
            Poll::Ready(Some(Ok(frame))) => drop(frame),
            Poll::Ready(Some(Err(error))) => break error,
            _ => panic!("no frame"),
        }
    };
    assert!(matches!(error, Err(Bailout::Limit(limit)) if limit.limit_bytes == 1 << 20));
    assert!(matches!(poll(), Poll::Ready(None)));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 0, "{report}");
}
