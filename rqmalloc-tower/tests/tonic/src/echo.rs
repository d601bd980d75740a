//! A service and its client, as tonic's generated code would have them.

use bytes::{Buf, BufMut, Bytes};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_stream::{Stream, StreamExt, iter};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tower_service::Service;

/// Messages of one stream.
pub const PARTS: usize = 20;

/// Messages as they are.
#[derive(Clone, Default)]
pub struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Four methods: `Unary`, `Stream`, `Torrent`, which never ends, and `Greedy`, which allocates
/// without end.
#[derive(Clone)]
pub struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.Echo";
}

struct Unary;

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = Boxed<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        // Made anew: blocks of the request.
        Box::pin(async move { Ok(Response::new(request.into_inner().to_vec().into())) })
    }
}

struct Greedy;

impl UnaryService<Bytes> for Greedy {
    type Response = Bytes;
    type Future = Boxed<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            let mut rows = Vec::new();
            while rows.len() < 1 << 20 {
                rows.extend((0..100).map(|_| request.get_ref().to_vec()));
                yield_now().await;
            }
            unreachable!("a gigabyte")
        })
    }
}

struct Streaming(usize);

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl ServerStreamingService<Bytes> for Streaming {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Boxed<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let parts = 0..self.0;
        Box::pin(async move {
            let message = request.into_inner();
            let messages = iter(parts).map(move |_| Ok(message.to_vec().into()));
            Ok(Response::new(Box::pin(messages) as Messages))
        })
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(Plain);
            Ok(match request.uri().path() {
                "/echo.Echo/Unary" => grpc.unary(Unary, request).await,
                "/echo.Echo/Greedy" => grpc.unary(Greedy, request).await,
                "/echo.Echo/Stream" => grpc.server_streaming(Streaming(PARTS), request).await,
                "/echo.Echo/Torrent" => grpc.server_streaming(Streaming(usize::MAX), request).await,
                path => Status::unimplemented(path.to_owned()).into_http(),
            })
        })
    }
}

/// Lets others run, as tokio's does, which keeps memory for it with the thread.
async fn yield_now() {
    let mut has_yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub mod client {
    //! Calls.

    use super::Plain;
    use bytes::Bytes;
    use http::uri::PathAndQuery;
    use tonic::client::Grpc;
    use tonic::transport::Channel;
    use tonic::{Request, Status, Streaming};

    async fn ready(channel: &Channel) -> Grpc<Channel> {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.expect("the server is there");
        grpc
    }

    pub async fn unary(
        channel: &Channel,
        path: &'static str,
        message: &Bytes,
    ) -> Result<Bytes, Status> {
        let request = Request::new(message.clone());
        let path = PathAndQuery::from_static(path);
        ready(channel).await.unary(request, path, Plain).await.map(tonic::Response::into_inner)
    }

    pub async fn stream(
        channel: &Channel,
        path: &'static str,
        message: &Bytes,
    ) -> Result<Streaming<Bytes>, Status> {
        let request = Request::new(message.clone());
        let path = PathAndQuery::from_static(path);
        let response = ready(channel).await.server_streaming(request, path, Plain).await;
        response.map(tonic::Response::into_inner)
    }
}
