//! Clients that go, timeouts, and a server that stops.

use super::support::{
    Channel, Client, Reports, Server, get, open_count, wait_none_open, wait_until,
};
use axum::Router;
use axum::body::Body;
use axum::routing::get as route_get;
use http_body::Frame;
use http_body_util::BodyExt;
use rqmalloc::Outcome;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request and returns the connection.
async fn begin(server: &Server, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_while_the_handler_works() {
    let reports = Reports::default();
    let handler = async || {
        let _kept = vec![1u8; 10_000];
        std::future::pending::<&str>().await
    };
    let app = Router::new().route("/gone-early", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    let stream = begin(&server, "/gone-early").await;
    wait_until(|| open_count("GET /gone-early") == 1).await;
    drop(stream);
    reports.wait_clean(1, Outcome::Closed).await;
    wait_none_open("GET /gone-early").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_in_the_middle_of_the_body() {
    let reports = Reports::default();
    let (sender, body) = Channel::new();
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = async move || Body::new(body.lock().unwrap().take().unwrap());
    let app = Router::new().route("/gone-late", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    let mut stream = begin(&server, "/gone-late").await;
    sender.send(Frame::data("the first part".into())).unwrap();
    stream.read_exact(&mut [0; 20]).await.unwrap();
    assert_eq!(open_count("GET /gone-late"), 1);
    drop(stream);
    wait_until(|| sender.is_closed()).await;
    reports.wait(1).await;
    wait_none_open("GET /gone-late").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_whose_client_goes() {
    let reports = Reports::default();
    let handler = async || Body::new(super::support::Made(|| Some(vec![b'x'; 10_000])));
    let app = Router::new().route("/torrent", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    for count in 1..=20 {
        let mut stream = begin(&server, "/torrent").await;
        stream.read_exact(&mut vec![0; 100_000]).await.unwrap();
        drop(stream);
        reports.wait(count).await;
    }
    wait_none_open("GET /torrent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_finishes_what_is_open() {
    let reports = Reports::default();
    let (sender, body) = Channel::new();
    let body = Arc::new(Mutex::new(Some(body)));
    let handler = async move || Body::new(body.lock().unwrap().take().unwrap());
    let app = Router::new().route("/stopping", route_get(handler)).layer(reports.layer());
    let server = Server::start(app).await;
    let mut client = Client::connect(&server).await;
    let response = client.send(get("/stopping")).await.unwrap();
    let stopping = server.stop();
    assert_eq!(open_count("GET /stopping"), 1);
    sender.send(Frame::data("the end".into())).unwrap();
    drop(sender);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "the end");
    stopping.await;
    reports.wait_clean(1, Outcome::Closed).await;
    assert_eq!(open_count("GET /stopping"), 0);
}
