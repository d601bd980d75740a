//! Everything at once, against a model of what must live.
//!
//! The program supervises itself: each seed is a process of its own, so that a fault that kills or
//! hangs the process is a failure with a seed like any other. In the process, threads allocate,
//! enter, leave, pass blocks on, end and fork as the seed says; the model (`model`) knows every
//! block, every entry and every callback, and `rounds` compares it with what the allocator says
//! whenever all threads stand still.
//!
//! ```text
//! --seconds N       how long in all (60)
//! --seed N          one process, with this seed
//! --threads N       workers (4); one worker repeats itself exactly
//! --rounds N        rounds of a process (as many as fit into 6 s)
//! --without NAME,.. leaves families of actions out, or --no-NAME: see `options::FAMILIES`
//! --break NAME      plants a fault that must be found: see `options::BREAKS`
//! --self-test       plants each of them in turn, and looks whether one thread repeats itself
//! ```
#![allow(missing_docs)]

mod blocks;
mod callbacks;
mod closures;
mod failure;
mod forks;
mod looks;
mod model;
mod options;
#[path = "../support/random.rs"]
mod random;
mod requests;
mod rounds;
mod scopes;
mod supervisor;
mod threads;
mod worker;

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

fn main() -> ExitCode {
    let options = options::Options::from_arguments();
    if options.is_child {
        rounds::run(&options);
        ExitCode::SUCCESS
    } else if options.is_self_test {
        supervisor::self_test(&options)
    } else {
        supervisor::run(&options)
    }
}
