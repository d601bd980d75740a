//! What answers: each handler runs outside of any request, whatever layer is around it.

use crate::metrics::metrics;
use crate::page;
use crate::requests;
use crate::routes;
use crate::view::{View, link_up};
use crate::watch::data;
use axum::Router;
use axum::extract::{OriginalUri, Path};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rqmalloc::{open_requests, persistent, stats, trim};

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// What Prometheus asks for.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns the routes of the page, to be nested where it is wanted:
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// use axum::{Router, routing::get};
///
/// let app: Router = Router::new()
///     .route("/", get("hello"))
///     .nest("/debug/rqmalloc", rqmalloc_inspect::router());
/// ```
///
/// The first call begins to watch: it sets an [`Observer`](rqmalloc::Observer), and starts a thread
/// that takes a sample each second. Both are there for the life of the process.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    persistent(|| {
        data();
        Router::new()
            .route("/", get(page))
            .route("/requests/{id}", get(request))
            .route("/metrics", get(async || answer(METRICS, || metrics(&data().table))))
            .route("/stats.json", get(async || answer(JSON, || serde_json::to_string(&stats()))))
            .route("/requests.json", get(async || answer(JSON, all_requests)))
            .route("/routes.json", get(async || answer(JSON, || routes::json(&data().table))))
            .route("/trim", post(trim_now))
    })
}

/// Returns an answer with this content. Nobody may keep it.
fn with_type(status: StatusCode, content_type: &'static str, content: String) -> Response {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, content).into_response()
}

/// Answers with what `content` makes outside of any request.
fn answer<E>(content_type: &'static str, content: impl FnOnce() -> Result<String, E>) -> Response {
    persistent(|| match content() {
        Ok(content) => with_type(StatusCode::OK, content_type, content),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    })
}

fn not_found(what: &str) -> Response {
    persistent(|| with_type(StatusCode::NOT_FOUND, TEXT, format!("{what}\n")))
}

fn all_requests() -> serde_json::Result<String> {
    serde_json::to_string(&open_requests())
}

/// Adds what a page may do: run its own script, and fetch from where it came from.
fn guarded(mut page: Response, nonce: &str) -> Response {
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'; script-src 'nonce-{nonce}'"
    );
    if let Ok(policy) = policy.try_into() {
        page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    page
}

async fn page(OriginalUri(uri): OriginalUri) -> Response {
    persistent(|| {
        let query = uri.query().unwrap_or_default();
        let view = View::new(uri.path(), query);
        let is_fragment = query.split('&').any(|pair| pair == "fragment");
        let content = || {
            if !is_fragment {
                return page::page(data(), &view);
            }
            let mut fragment = String::new();
            page::fragment(&mut fragment, data(), &view).map(|()| fragment)
        };
        guarded(answer(HTML, content), &view.nonce)
    })
}

async fn request(OriginalUri(uri): OriginalUri, Path(id): Path<String>) -> Response {
    persistent(|| {
        let (number, is_data) = match id.strip_suffix(".json") {
            Some(number) => (number, true),
            None => (id.as_str(), false),
        };
        match requests::look(number) {
            None => not_found("No such request is open."),
            Some(snapshot) if is_data => answer(JSON, || serde_json::to_string(&snapshot)),
            Some(snapshot) => {
                let content = || requests::page(&snapshot, &link_up(uri.path(), 2));
                guarded(answer(HTML, content), "none")
            }
        }
    })
}

/// Gives memory back and says how much: a browser is sent back to the page.
async fn trim_now(OriginalUri(uri): OriginalUri, headers: HeaderMap) -> Response {
    let has = |name: &str, part: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.contains(part))
    };
    persistent(|| {
        if has("sec-fetch-site", "cross-site") {
            let refusal = "Only from this page.\n";
            return with_type(StatusCode::FORBIDDEN, TEXT, refusal.into());
        }
        let bytes = trim();
        let content = format!("{bytes} bytes went back to the system\n");
        if !has("accept", "text/html") {
            return with_type(StatusCode::OK, TEXT, content);
        }
        let mut answer = with_type(StatusCode::SEE_OTHER, TEXT, content);
        let back = format!("{}?trimmed={bytes}", link_up(uri.path(), 1));
        if let Ok(back) = back.try_into() {
            answer.headers_mut().insert(header::LOCATION, back);
        }
        answer
    })
}
