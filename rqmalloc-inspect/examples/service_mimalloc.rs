//! The service of `examples/service` on mimalloc, to be compared with: see there.

#[path = "service/app.rs"]
mod app;
#[path = "service/options.rs"]
mod options;
#[path = "service/serve.rs"]
mod serve;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    serve::run(app::router(), &options::Options::from_arguments());
}
