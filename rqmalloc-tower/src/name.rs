//! What a request is called if nobody says it.

use http::Request;

/// Returns the method, and the route that axum matched, if it did: `GET /items/{id}`. The path
/// itself is no name: it has as many values as clients like.
pub(crate) fn default_name<B>(request: &Request<B>) -> String {
    let (method, route) = (request.method().as_str(), route(request));
    let mut name = String::with_capacity(method.len() + 1 + route.len());
    name.push_str(method);
    if !route.is_empty() {
        name.push(' ');
        name.push_str(route);
    }
    name
}

#[cfg(feature = "axum")]
fn route<B>(request: &Request<B>) -> &str {
    request.extensions().get().map_or("", axum::extract::MatchedPath::as_str)
}

#[cfg(not(feature = "axum"))]
fn route<B>(_request: &Request<B>) -> &str {
    ""
}
