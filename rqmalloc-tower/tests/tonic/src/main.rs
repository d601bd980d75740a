//! The layer around a tonic server: unary calls and streams of both directions' kinds, clients that
//! go, limits. Without generated code: messages are bytes.
//!
//! A workspace of its own: tonic and what it brings are not in the lock file of the allocator.

mod echo;

use bytes::Bytes;
use echo::{Echo, client};
use rqmalloc::{Outcome, Report};
use rqmalloc_tower::RequestLayer;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// How long to wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(120);
/// Calls of each kind.
const MANY: usize = 1000;

type Reports = Arc<Mutex<Vec<Report>>>;

async fn start(reports: &Reports) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reports = reports.clone();
    let layer = RequestLayer::new()
        .name(|request| request.uri().path().into())
        .soft_limit(2 << 20)
        .on_limit(|_| http::StatusCode::SERVICE_UNAVAILABLE)
        .on_close(move |report| reports.lock().unwrap().push(*report));
    let serving = Server::builder().layer(layer).add_service(Echo);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(serving.serve_with_incoming(incoming));
    address
}

/// Waits for reports of a method, and takes them.
async fn take(reports: &Reports, method: &str, count: usize) -> Vec<Report> {
    let is_of = |report: &Report| report.name.is_some_and(|name| name.ends_with(method));
    let wait = async {
        while reports.lock().unwrap().iter().filter(|report| is_of(report)).count() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("requests stay open");
    let mut all = reports.lock().unwrap();
    let (taken, rest) = all.drain(..).partition(is_of);
    *all = rest;
    taken
}

fn assert_clean(reports: &[Report], count: usize, outcome: Outcome) {
    assert_eq!(reports.len(), count);
    for report in reports {
        assert_eq!((report.outcome, report.surviving_blocks), (outcome, 0), "{report}");
        assert!(report.peak_bytes > 0, "{report}");
    }
}

#[tokio::main]
async fn main() {
    let reports = Reports::default();
    let address = start(&reports).await;
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel = channel.connect().await.unwrap();

    let message = Bytes::from(vec![b'm'; 1000]);
    for _ in 0..MANY {
        assert_eq!(client::unary(&channel, "/echo.Echo/Unary", &message).await.unwrap(), message);
    }
    assert_clean(&take(&reports, "/Unary", MANY).await, MANY, Outcome::Closed);
    println!("tonic: {MANY} unary calls leave nothing");

    for _ in 0..MANY / 10 {
        let mut stream = client::stream(&channel, "/echo.Echo/Stream", &message).await.unwrap();
        let mut count = 0;
        while let Some(part) = stream.message().await.unwrap() {
            assert_eq!(part, message);
            count += 1;
        }
        assert_eq!(count, echo::PARTS);
    }
    assert_clean(&take(&reports, "/Stream", MANY / 10).await, MANY / 10, Outcome::Closed);
    println!("tonic: {} streams leave nothing", MANY / 10);

    for _ in 0..MANY / 10 {
        let mut stream = client::stream(&channel, "/echo.Echo/Torrent", &message).await.unwrap();
        assert_eq!(stream.message().await.unwrap().unwrap(), message);
        drop(stream);
    }
    let gone = take(&reports, "/Torrent", MANY / 10).await;
    assert!(gone.iter().all(|report| report.outcome == Outcome::Closed));
    println!("tonic: {} streams whose client goes close", MANY / 10);

    for _ in 0..MANY / 10 {
        let refused = client::unary(&channel, "/echo.Echo/Greedy", &message).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        client::unary(&channel, "/echo.Echo/Unary", &message).await.unwrap();
    }
    assert_clean(&take(&reports, "/Greedy", MANY / 10).await, MANY / 10, Outcome::OverLimit);
    assert_clean(&take(&reports, "/Unary", MANY / 10).await, MANY / 10, Outcome::Closed);
    println!("tonic: {} calls over the limit are unavailable", MANY / 10);
    assert_eq!(rqmalloc::open_requests(), []);
}
