//! A service on rqmalloc, with the page that shows its memory:
//!
//! ```sh
//! cargo run --release -p rqmalloc-inspect --example service
//! ```
//!
//! then open <http://127.0.0.1:3000/>. With `-- --load 30` it runs three services beside one
//! another, this one and the same on mimalloc and on the system's allocator, and puts load on each
//! for thirty seconds, in turns of one.

mod app;
mod load;
mod options;
mod serve;

use axum::http::StatusCode;
use options::Options;
use rqmalloc::RqMalloc;
use rqmalloc_tower::RequestLayer;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// Bytes above which a request is given up.
const SOFT_LIMIT: usize = 16 << 20;

fn main() {
    let options = Options::from_arguments();
    if options.load_seconds > 0 {
        return load::run(&options);
    }
    let mut app = app::router();
    if options.has_layer {
        // Each request of HTTP is one of rqmalloc, from the handler's call to the last frame.
        let layer = RequestLayer::new().soft_limit(SOFT_LIMIT);
        app = app.layer(layer.on_limit(|_| StatusCode::SERVICE_UNAVAILABLE));
    }
    if options.has_page {
        app = app.nest("/debug/rqmalloc", rqmalloc_inspect::router());
    }
    serve::run(app, &options);
}
