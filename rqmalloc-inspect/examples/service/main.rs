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
mod layer;
mod load;
mod options;
mod serve;

use layer::RequestLayer;
use options::Options;
use rqmalloc::RqMalloc;

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
        // One request of rqmalloc for each of HTTP, from the handler's call to the last frame.
        app = app.layer(RequestLayer::new().soft_limit(SOFT_LIMIT));
    }
    serve::run(app.nest("/debug/rqmalloc", rqmalloc_inspect::router()), &options);
}
