//! Tower's own middlewares, around the layer and inside it.

use super::support::{Reports, wait_none_open};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use rqmalloc::Outcome;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, retry, service_fn};

/// Ten times until one answers with success.
#[derive(Clone)]
struct Again(usize);

impl<B> retry::Policy<Request<Full<Bytes>>, Response<B>, BoxError> for Again {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _request: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Self::Future> {
        let is_done = result.as_ref().is_ok_and(|response| response.status().is_success());
        self.0 += 1;
        (!is_done && self.0 < 10).then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}

fn request() -> Request<Full<Bytes>> {
    Request::new(Full::new(Bytes::from(vec![b'q'; 1000])))
}

async fn handler(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = request.into_body().collect().await?.to_bytes();
    super::support::yield_now().await;
    Ok(Response::new(Full::new(text.to_vec().into())))
}

/// Calls a service so many times, some at a time.
async fn call<S, B>(service: S, count: usize)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Debug,
{
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move {
                let response = service.oneshot(request()).await.unwrap();
                assert_eq!(response.status(), 200);
                let Ok(body) = response.into_body().collect().await else { panic!("no body") };
                assert_eq!(body.to_bytes().len(), 1000);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn around_the_layer() {
    let reports = Reports::default();
    let service = ServiceBuilder::new()
        .buffer(16)
        .retry(Again(0))
        .concurrency_limit(3)
        .timeout(Duration::from_secs(100))
        .layer(reports.layer().name(|_| "around".into()))
        .service_fn(handler);
    call(service, 100).await;
    reports.wait_clean(100, Outcome::Closed).await;
    wait_none_open("around").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_the_layer() {
    let reports = Reports::default();
    let service = ServiceBuilder::new()
        .layer(reports.layer().name(|_| "inside".into()))
        .buffer(16)
        .retry(Again(0))
        .concurrency_limit(3)
        .timeout(Duration::from_secs(100))
        .service_fn(handler);
    call(service, 100).await;
    let reports = reports.wait(100).await;
    assert!(reports.iter().all(|report| report.outcome == Outcome::Closed));
    // What survives is the buffer's channel, which a request made longer.
    let survivors: u64 = reports.iter().map(|report| report.surviving_blocks).sum();
    assert!(survivors <= 100, "{survivors}");
    wait_none_open("inside").await;
}

#[tokio::test]
async fn each_try_is_a_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    let reports = Reports::default();
    let count = calls.clone();
    let greedy_twice = move |request: Request<Full<Bytes>>| {
        let is_greedy = count.fetch_add(1, Relaxed) < 2;
        async move {
            if is_greedy {
                super::support::endless().await;
            }
            handler(request).await.map_err(BoxError::from)
        }
    };
    let service = ServiceBuilder::new()
        .retry(Again(0))
        .layer(reports.layer().soft_limit(1 << 20))
        .service_fn(greedy_twice);
    call(service, 1).await;
    let reports = reports.wait(3).await;
    let outcomes: Vec<_> = reports.iter().map(|report| report.outcome).collect();
    assert_eq!(outcomes, [Outcome::OverLimit, Outcome::OverLimit, Outcome::Closed]);
    assert_eq!(calls.load(Relaxed), 3);
}

#[tokio::test]
async fn a_timeout_outside_closes_the_request() {
    let reports = Reports::default();
    let never = service_fn(async |_: Request<Full<Bytes>>| {
        let _kept = vec![1u8; 10_000];
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
    });
    let service = ServiceBuilder::new()
        .timeout(Duration::from_millis(1))
        .layer(reports.layer().name(|_| "too slow".into()))
        .service(never);
    assert!(service.oneshot(request()).await.is_err());
    reports.wait_clean(1, Outcome::Closed).await;
    wait_none_open("too slow").await;
}

#[tokio::test]
async fn a_timeout_inside_is_an_error_of_the_service() {
    let reports = Reports::default();
    let never = service_fn(async |_: Request<Full<Bytes>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
    });
    let service = ServiceBuilder::new()
        .layer(reports.layer())
        .timeout(Duration::from_millis(1))
        .service(never);
    let error = service.oneshot(request()).await.unwrap_err();
    assert!(error.is::<tower::timeout::error::Elapsed>());
    drop(error);
    let report = reports.wait(1).await[0];
    assert_eq!(report.outcome, Outcome::Closed);
}

/// What a service prepares is for any call.
#[tokio::test]
async fn readiness_is_outside_of_requests() {
    #[derive(Clone)]
    struct Ready;
    impl Service<Request<Full<Bytes>>> for Ready {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(
            &mut self,
            _context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), Infallible>> {
            let block = Box::new(1u8);
            // SAFETY: the block is live.
            assert_eq!(unsafe { rqmalloc::owner_of(&*block) }, None);
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request<Full<Bytes>>) -> Self::Future {
            assert!(rqmalloc::Request::current().is_some());
            std::future::ready(Ok(Response::new(Full::default())))
        }
    }
    let layer = rqmalloc_tower::RequestLayer::new();
    let service = ServiceBuilder::new().layer(layer).service(Ready);
    service.clone().oneshot(request()).await.unwrap();
    // Under a layer that polls it inside its own request.
    let outer = rqmalloc::Request::new();
    outer.scope(service.oneshot(request())).await.unwrap();
}
