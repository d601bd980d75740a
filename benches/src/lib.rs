//! Workloads that compare rqmalloc with other allocators. In this directory:
//!
//! ```text
//! cargo run --release                                   all workloads, 7 rounds
//! cargo run --release -- --quick                        a tenth of the work, 3 rounds
//! cargo run --release -- --workload json_request --rounds 15
//! cargo run --release -- --list                         what there is
//! ```
//!
//! Each allocator has a binary of its own: a `#[global_allocator]` and a call of [`main`]. Given
//! the name of a workload, it prints nanoseconds per operation, or `n/a`, on one line. The driver,
//! `compare`, builds these binaries, runs every workload with every allocator in a process of its
//! own, round after round, and prints the medians.

mod json;
mod rng;
pub mod workloads;

use std::process::ExitCode;

/// How a workload begins and ends a request, if the allocator has such a thing.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Begins a request that this thread allocates from.
    pub begin: fn(),
    /// Frees every block of the request that `begin` opened.
    ///
    /// # Safety
    ///
    /// Nothing uses or frees a block of that request any more.
    pub end: unsafe fn(),
}

/// The settings of a run.
#[derive(Clone, Copy)]
pub struct Context {
    pub hooks: Option<Hooks>,
    /// Whether to do only a tenth of the work.
    pub quick: bool,
}

/// The `main` of an allocator's binary: `NAME [--quick]`.
pub fn main(hooks: Option<Hooks>) -> ExitCode {
    let mut name = None;
    let mut quick = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => quick = true,
            _ => name = Some(argument),
        }
    }
    let Some(workload) = name.as_deref().and_then(workloads::find) else {
        eprintln!("usage: NAME [--quick], where NAME is one of");
        for workload in workloads::ALL {
            eprintln!("  {:<20} ns per {}", workload.name, workload.unit);
        }
        return ExitCode::FAILURE;
    };
    match (workload.run)(Context { hooks, quick }) {
        Some(ns) => println!("{ns:.3}"),
        None => println!("n/a"),
    }
    ExitCode::SUCCESS
}
