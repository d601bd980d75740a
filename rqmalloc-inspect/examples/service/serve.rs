//! Serving, on whatever allocator the program has.

use super::options::Options;
use axum::Router;
use std::io::Read;
use tokio::net::TcpListener;

/// What stands before the address on the standard output.
#[allow(dead_code, reason = "the services that are compared do not look for it")]
pub const LISTENING: &str = "listening on ";

/// Serves until the process is killed, or until the standard input of a child ends.
pub fn run(app: Router, options: &Options) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", options.port)).await;
        let listener = listener.unwrap_or_else(|error| {
            eprintln!("port {}: {error}", options.port);
            std::process::exit(1);
        });
        println!("{LISTENING}http://{}/", listener.local_addr().expect("an address"));
        if options.is_child {
            std::thread::spawn(|| {
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                std::process::exit(0);
            });
        }
        axum::serve(listener, app).await.expect("serving");
    });
}
