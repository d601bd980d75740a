//! What the service does: it knows nothing of the allocator but how to hand on a request's work.

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body::Frame;
use minijinja::{Environment, context};
use rayon::prelude::*;
use rqmalloc::{inherit_each, inherit_fn, persistent};
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

/// Entries that the cache keeps.
const CACHE_ENTRIES: u64 = 10_000;
/// Bytes that a request leaks where the service leaks.
const LEAKED_BYTES: usize = 100;
/// What a request eats that nobody stops, and how much at a time.
const MEALS: usize = 1_000;
const MEAL_BYTES: usize = 64 << 10;

/// Returns the routes.
pub fn router() -> Router {
    Router::new()
        .route("/", get(index))
        .route("/items/{id}", get(item))
        .route("/pages/{id}", get(page))
        .route("/cached/{key}", get(cached))
        .route("/streams/{count}", get(stream))
        .route("/blocking/{seed}", get(blocking))
        .route("/rayon/{seed}", get(rayon))
        .route("/leaks", get(leak))
        .route("/eats", get(eat))
        .route("/slow/{seconds}", get(slow))
}

async fn index() -> Html<&'static str> {
    Html(include_str!("index.html"))
}

/// An item of a shop.
#[derive(Serialize)]
struct Item {
    id: u64,
    name: String,
    tags: Vec<String>,
    prices: BTreeMap<String, u64>,
}

impl Item {
    fn new(id: u64) -> Self {
        Self {
            id,
            name: format!("item {id}"),
            tags: (0..8).map(|tag| format!("tag-{}", id % 97 + tag)).collect(),
            prices: ["eur", "usd", "yen"].map(|unit| (unit.to_owned(), id * 7)).into(),
        }
    }
}

/// JSON: everything that it takes is gone when it is sent.
async fn item(Path(id): Path<u64>) -> Json<Item> {
    Json(Item::new(id))
}

/// A template. The environment is made by whoever comes first, and stays: it is not the request's.
async fn page(Path(id): Path<u64>) -> Response {
    static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
        persistent(|| {
            let mut templates = Environment::new();
            let page = include_str!("page.jinja");
            templates.add_template("page.html", page).expect("a template");
            templates
        })
    });
    let items: Vec<Item> = (id..id + 10).map(Item::new).collect();
    let items = minijinja::Value::from(minijinja::value::Serde(&items));
    let template = TEMPLATES.get_template("page.html");
    match template.and_then(|template| template.render(context! { id, items })) {
        Ok(page) => Html(page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A cache. An entry is made inside the request that misses it, and outlives it: it survives, and is
/// freed by whichever request evicts it.
async fn cached(Path(key): Path<u64>) -> String {
    static CACHE: LazyLock<moka::sync::Cache<u64, Arc<str>>> =
        LazyLock::new(|| persistent(|| moka::sync::Cache::new(CACHE_ENTRIES)));
    let entry = CACHE.get_with(key, || format!("{key} ").repeat(100).into());
    entry.len().to_string()
}

/// Work on a thread for blocking work, inside the request.
async fn blocking(Path(seed): Path<u64>) -> String {
    let work = inherit_fn(move || {
        let mut words: Vec<String> = (0..1000).map(|n| (n * seed % 1009).to_string()).collect();
        words.sort_unstable();
        words.concat().len()
    });
    tokio::task::spawn_blocking(work).await.unwrap_or(0).to_string()
}

/// Work on rayon's threads, inside the request.
async fn rayon(Path(seed): Path<u64>) -> String {
    let work = inherit_fn(move || {
        let line = inherit_each(move |n: u64| format!("line {}", n * seed));
        let lines: Vec<String> = (0..256).into_par_iter().map(line).collect();
        lines.concat().len()
    });
    tokio::task::spawn_blocking(work).await.unwrap_or(0).to_string()
}

/// Frames that are made when they are asked for.
struct Frames(u64);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.0.checked_sub(1);
        Poll::Ready(left.map(|left| {
            self.0 = left;
            Ok(Frame::data(format!("{left} frames are left\n").repeat(50).into()))
        }))
    }
}

/// A body that is made while it is sent.
async fn stream(Path(count): Path<u64>) -> Body {
    Body::new(Frames(count))
}

/// A leak.
async fn leak() -> &'static str {
    std::hint::black_box(Box::leak(vec![7u8; LEAKED_BYTES].into_boxed_slice()));
    "leaked\n"
}

/// Eats memory without an end in sight. At its soft limit the request is given up, here or at
/// another `await`.
async fn eat() -> String {
    let mut eaten = Vec::new();
    for _ in 0..MEALS {
        eaten.push(vec![1u8; MEAL_BYTES]);
        tokio::task::yield_now().await;
    }
    format!("ate {} bytes\n", eaten.len() * MEAL_BYTES)
}

/// Stays open for a while, to be looked at.
async fn slow(Path(seconds): Path<u64>) -> String {
    let held: Vec<Item> = (0..1000).map(Item::new).collect();
    tokio::time::sleep(Duration::from_secs(seconds.min(60))).await;
    format!("held {} items\n", held.len())
}
