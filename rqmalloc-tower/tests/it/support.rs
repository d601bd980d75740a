//! Servers, clients, and what layers report.

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rqmalloc::{Outcome, Report};
use rqmalloc_tower::RequestLayer;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How long a test waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Requests of a test that sends many.
pub const MANY: usize = if cfg!(debug_assertions) { 1_000 } else { 10_000 };

/// A server on a port of its own.
pub struct Server {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
            let _ = stopped.await;
        });
        Self { address, stop, task: tokio::spawn(async move { serving.await }) }
    }

    /// Asks it to stop, and returns what is ready when it has.
    pub fn stop(self) -> impl Future<Output = ()> {
        self.stop.send(()).unwrap();
        async { tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap() }
    }
}

/// A connection of HTTP/1 that is kept alive.
pub struct Client(http1::SendRequest<Full<Bytes>>);

impl Client {
    pub async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        self.0.ready().await?;
        self.0.send_request(request).await
    }

    /// Returns the status and the whole body.
    pub async fn get(&mut self, path: &str) -> (u16, Result<Bytes, hyper::Error>) {
        let response = self.send(get(path)).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.map(|body| body.to_bytes()))
    }
}

/// A connection of HTTP/2, without a negotiation.
pub async fn connect_http2(server: &Server) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let connected = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = connected.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    request("GET", path, Bytes::new())
}

pub fn request(method: &str, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    let builder = Request::builder().method(method).header("host", "test");
    builder.uri(format!("http://test{path}")).body(Full::new(body)).unwrap()
}

/// What a layer's requests reported, in the order of their ends.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Vec<Report>>>);

impl Reports {
    pub fn layer(&self) -> RequestLayer {
        let reports = self.clone();
        RequestLayer::new().on_close(move |report| reports.0.lock().unwrap().push(*report))
    }

    /// Returns them when there are so many.
    pub async fn wait(&self, count: usize) -> Vec<Report> {
        wait_until(|| self.0.lock().unwrap().len() >= count).await;
        let reports = self.0.lock().unwrap().clone();
        assert_eq!(reports.len(), count);
        reports
    }

    /// The same, of requests that all went so and left nothing behind.
    pub async fn wait_clean(&self, count: usize, outcome: Outcome) -> Vec<Report> {
        let reports = self.wait(count).await;
        for report in &reports {
            assert_eq!((report.outcome, report.surviving_blocks), (outcome, 0), "{report}");
        }
        reports
    }
}

/// Waits for what must become true.
pub async fn wait_until(is_true: impl Fn() -> bool) {
    let wait = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it never became true");
}

/// How many requests are open that are called so.
pub fn open_count(name: &str) -> usize {
    let open = rqmalloc::open_requests();
    open.iter().filter(|info| info.name.is_some_and(|found| found == *name)).count()
}

/// Waits until no request is open that is called so.
pub async fn wait_none_open(name: &str) {
    wait_until(|| open_count(name) == 0).await;
}

/// A body of frames that a test sends.
pub struct Channel(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl Channel {
    pub fn new() -> (mpsc::UnboundedSender<Frame<Bytes>>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Self(receiver))
    }
}

impl Body for Channel {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// A body that a closure makes, frame by frame.
pub struct Made<F>(pub F);

impl<F: FnMut() -> Option<Vec<u8>> + Unpin> Body for Made<F> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready((self.0)().map(|data| Ok(Frame::data(data.into()))))
    }
}

/// Lets others run, as tokio's does, which keeps memory for it with the thread.
pub async fn yield_now() {
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

/// Allocates and never ends, but lets others run.
pub async fn endless() -> String {
    let mut rows = Vec::new();
    loop {
        rows.extend((0..100).map(|_| vec![1u8; 1000]));
        yield_now().await;
    }
}
