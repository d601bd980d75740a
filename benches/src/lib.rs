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
//!
//! `NAME memory ROW` is another use of them: `ci/memory` compares what the allocators hold. What
//! a row asks for, by size, and what size classes add, prints `asked memory ROW`.

mod json;
pub mod memory;
mod rng;
pub mod workloads;

use std::process::ExitCode;
use std::time::Duration;

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
    /// How long a soak takes.
    pub soak: Duration,
}

/// The `main` of an allocator's binary: `NAME [--quick]`, or `memory [ROW] [--quick]
/// [--seconds N]`.
pub fn main(hooks: Option<Hooks>) -> ExitCode {
    let mut names = Vec::new();
    let mut context = Context { hooks, quick: false, soak: Duration::from_secs(60) };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => context.quick = true,
            "--seconds" => match arguments.next().and_then(|number| number.parse().ok()) {
                Some(seconds) => context.soak = Duration::from_secs(seconds),
                None => return usage(),
            },
            _ => names.push(argument),
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match names[..] {
        ["memory"] if memory::main(None, context) => return ExitCode::SUCCESS,
        ["memory", row] if memory::main(Some(row), context) => return ExitCode::SUCCESS,
        [name] => match workloads::find(name).map(|workload| (workload.run)(context)) {
            Some(Some(ns)) => println!("{ns:.3}"),
            Some(None) => println!("n/a"),
            None => return usage(),
        },
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: NAME [--quick], or memory [ROW] [--quick] [--seconds N]; NAME is one of");
    for workload in workloads::ALL {
        eprintln!("  {:<20} ns per {}", workload.name, workload.unit);
    }
    ExitCode::FAILURE
}
