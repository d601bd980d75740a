//! The service of `examples/service` on the system's allocator, to be compared with: see there.

#[path = "service/app.rs"]
mod app;
#[path = "service/options.rs"]
mod options;
#[path = "service/serve.rs"]
mod serve;

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() {
    serve::run(app::router(), &options::Options::from_arguments());
}
