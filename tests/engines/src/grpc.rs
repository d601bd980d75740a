//! gRPC (tonic) in the layer of rqmalloc-tower: unary calls and streams, each a request until its
//! last message is sent, or its client is gone. The service is that of tonic-health, with a handler
//! in front of it that keeps what it is told to.

mod support;

use rqmalloc::{LimitKind, Outcome, Report};
use rqmalloc_tower::RequestLayer;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::stays_flat;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, yield_now};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService, WatchStream};

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// How long the program waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Plain calls, and calls of each other kind at a time.
const MANY: usize = 10_000;
const FEW: usize = 50;

/// How often each kind but the first is done so many times.
const ROUNDS: usize = 60;

/// Threads of the first runtime.
const WORKER_COUNT: usize = 2;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// What a call may hold, in bytes.
const LIMIT_BYTES: usize = 4 << 20;

/// tonic-health's service. A check of `greedy` keeps more and more; one of `panic` panics.
struct Service(HealthService);

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = WatchStream;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "greedy" => {
                let mut kept = Vec::new();
                loop {
                    kept.push(vec![1u8; 10_000]);
                    yield_now().await;
                }
            }
            // Without a message on standard error.
            "panic" => std::panic::resume_unwind(Box::new(7)),
            _ => self.0.check(request).await,
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        self.0.watch(request).await
    }
}

/// What the calls reported since it was last asked for.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<Report>>>);

impl Reports {
    /// Waits until so many calls are over and none is open, and returns their reports.
    async fn take(&self, count: usize) -> Vec<Report> {
        wait_until(|| self.0.lock().unwrap().len() >= count).await;
        wait_until(|| rqmalloc::open_requests().is_empty()).await;
        let reports = std::mem::take(&mut *self.0.lock().unwrap());
        assert_eq!(reports.len(), count, "one report a call");
        reports
    }

    /// The same, of calls of one kind that all went so and left nothing behind.
    async fn take_clean(&self, count: usize, path: &str, outcome: Outcome) -> Vec<Report> {
        let reports = self.take(count).await;
        for report in &reports {
            assert!(report.name.is_some_and(|name| name == *path), "{report}");
            assert_eq!((report.outcome, report.surviving_blocks), (outcome, 0), "{report}");
        }
        reports
    }
}

async fn wait_until(is_true: impl Fn() -> bool) {
    let wait = async {
        while !is_true() {
            yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it never became true");
}

/// A server, its clients, and what it reports.
struct Program {
    client: HealthClient<Channel>,
    reporter: HealthReporter,
    reports: Reports,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Program {
    async fn start() -> Self {
        let (reports, reporter) = (Reports::default(), HealthReporter::new());
        let told = reports.clone();
        let layer = RequestLayer::new()
            .soft_limit(LIMIT_BYTES)
            .name(|request| request.uri().path().into())
            .on_limit(|limit| Status::resource_exhausted(limit.to_string()).into_http::<Vec<u8>>())
            .on_close(move |report| told.0.lock().unwrap().push(*report));
        let service = Service(HealthService::from_health_reporter(reporter.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder().layer(layer).add_service(HealthServer::new(service));
        let incoming = TcpListenerStream::new(listener);
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, async move {
            let _ = stopped.await;
        }));
        let client = Self::connect(address).await;
        Self { client, reporter, reports, address, stop, serving }
    }

    async fn connect(address: SocketAddr) -> HealthClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        HealthClient::new(endpoint.connect().await.unwrap())
    }

    async fn check(&self, service: &str) -> Result<ServingStatus, Status> {
        let request = HealthCheckRequest { service: service.into() };
        let response = self.client.clone().check(request).await?.into_inner();
        Ok(if response.status == 1 { ServingStatus::Serving } else { ServingStatus::Unknown })
    }

    /// Watches a service that is serving, until its first message.
    async fn watch(
        client: &HealthClient<Channel>,
        service: &str,
    ) -> Streaming<HealthCheckResponse> {
        let request = HealthCheckRequest { service: service.into() };
        let mut stream = client.clone().watch(request).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().status, 1);
        stream
    }

    async fn unary(&self) {
        assert_eq!(self.check("").await.unwrap(), ServingStatus::Serving);
        self.reports.take_clean(1, CHECK, Outcome::Closed).await;
    }

    /// Errors of the handler, a panic in it, and calls over their limit, beside others.
    async fn failing(&self) {
        for _ in 0..FEW {
            assert_eq!(self.check("unknown").await.unwrap_err().code(), Code::NotFound);
        }
        self.reports.take_clean(FEW, CHECK, Outcome::Closed).await;

        let (greedy, plain) = tokio::join!(self.many("greedy"), self.many(""));
        for error in greedy {
            let error = error.unwrap_err();
            assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        }
        assert!(plain.iter().all(Result::is_ok));
        let reports = self.reports.take(2 * FEW).await;
        let over: Vec<_> = reports.iter().filter_map(|report| report.limit_exceeded).collect();
        assert_eq!(over.len(), FEW);
        assert!(over.iter().all(|limit| limit.kind == LimitKind::Soft));
        // Each worker has a list of what yielded, made in the first call that does.
        let left: u64 = reports.iter().map(|report| report.surviving_blocks).sum();
        assert!(left <= WORKER_COUNT as u64, "{left} blocks survive");

        // Its connection goes with it, so it has one of its own.
        let mut client = Self::connect(self.address).await;
        let request = HealthCheckRequest { service: "panic".into() };
        client.check(request).await.unwrap_err();
        let reports = self.reports.take(1).await;
        assert_eq!(reports[0].outcome, Outcome::Panicked);
        assert_eq!(self.check("").await.unwrap(), ServingStatus::Serving);
        self.reports.take_clean(1, CHECK, Outcome::Closed).await;
    }

    async fn many(&self, service: &str) -> Vec<Result<ServingStatus, Status>> {
        let mut results = Vec::new();
        for _ in 0..FEW {
            results.push(self.check(service).await);
        }
        results
    }

    async fn streams(&self) {
        let mut reporter = self.reporter.clone();
        let mut streams = Vec::new();
        reporter.set_service_status("watched", ServingStatus::Serving).await;
        for number in 0..FEW {
            streams.push(Self::watch(&self.client, "watched").await);
            assert_eq!(rqmalloc::open_requests().len(), number + 1);
        }
        // Every one has the next message, and is over when the service goes.
        reporter.set_service_status("watched", ServingStatus::NotServing).await;
        for stream in &mut streams {
            assert_eq!(stream.message().await.unwrap().unwrap().status, 2);
        }
        assert_eq!(rqmalloc::open_requests().len(), FEW);
        reporter.clear_service_status("watched").await;
        for stream in &mut streams {
            assert!(stream.message().await.unwrap().is_none());
        }
        self.reports.take_clean(FEW, WATCH, Outcome::Closed).await;
    }

    /// Clients that drop their streams, and clients that are gone, with all of their streams.
    async fn cut_streams(&self) {
        for _ in 0..FEW {
            drop(Self::watch(&self.client, "").await);
        }
        self.reports.take(FEW).await;
        let client = Self::connect(self.address).await;
        let mut streams = Vec::new();
        for _ in 0..FEW {
            streams.push(Self::watch(&client, "").await);
        }
        assert_eq!(rqmalloc::open_requests().len(), FEW);
        drop((client, streams));
        let reports = self.reports.take(FEW).await;
        assert!(reports.iter().all(|report| report.outcome == Outcome::Closed));
    }

    /// A server that stops waits for its calls.
    async fn stop(self) {
        let mut stream = Self::watch(&self.client, "").await;
        self.stop.send(()).unwrap();
        assert_eq!(rqmalloc::open_requests().len(), 1);
        self.reporter.clone().clear_service_status("").await;
        assert!(stream.message().await.unwrap().is_none());
        drop((stream, self.client));
        tokio::time::timeout(PATIENCE, self.serving).await.unwrap().unwrap().unwrap();
        self.reports.take_clean(1, WATCH, Outcome::Closed).await;
    }
}

fn run(builder: &mut Builder) {
    let runtime = builder.enable_all().build().unwrap();
    let program = runtime.block_on(Program::start());
    stays_flat("a unary call", MANY, |_| runtime.block_on(program.unary()));
    stays_flat("calls that fail", ROUNDS, |_| runtime.block_on(program.failing()));
    stays_flat("streams to their ends", ROUNDS, |_| runtime.block_on(program.streams()));
    stays_flat("streams that are cut", ROUNDS, |_| runtime.block_on(program.cut_streams()));
    runtime.block_on(program.stop());
}

fn main() {
    println!("a runtime of two threads");
    run(Builder::new_multi_thread().worker_threads(WORKER_COUNT));
    println!("a runtime of one thread");
    run(&mut Builder::new_current_thread());
    assert!(rqmalloc::open_requests().is_empty());
    println!("ok");
}
