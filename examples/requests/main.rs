//! A small server: every line of a file is one request, and every request's memory goes in one
//! call.
//!
//! ```sh
//! cargo run --release --example requests -- examples/requests.jsonl
//! ```
//!
//! Each line is a JSON document: an order, a batch of events, a search, an article to render. It is
//! handled with ordinary crates (`serde_json`, `minijinja`) and ordinary collections, which know
//! nothing of requests. Some handlers leak on purpose, with `Rc` cycles and `mem::forget`: the end
//! of the request frees that too. What is meant to stay, a shared cache, is built inside
//! [`rqmalloc::persistent`].
//!
//! The same binary also runs as a child process on the system allocator, round by round in turn, so
//! that the table at the end has something to compare with.
//!
//! Where to look:
//!
//! | file | what it shows |
//! |---|---|
//! | `rounds.rs` | `begin_request`, `end_request`, and why the unsafe call is sound here |
//! | `service.rs` | what must exist before the first request, and the shared cache |
//! | `handlers.rs` | the work; nothing in it knows of the allocator |
//! | `counting.rs` | the counters in front of the allocator |
//! | `peer.rs` | the child process on the system allocator |

mod args;
mod counting;
mod handlers;
mod memory;
mod peer;
mod rounds;
mod service;
mod table;

use std::borrow::Cow;
use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use rqmalloc::RqMalloc;

use crate::args::{Args, Command};
use crate::counting::{Counting, Side};
use crate::peer::Peer;
use crate::rounds::{Line, Malformed, Round, Rounds};
use crate::table::Table;

/// In your own program this is `static GLOBAL: RqMalloc = RqMalloc;`. Here two counters are in
/// front of it, because the table shows how many blocks were served.
#[global_allocator]
static GLOBAL: Counting<RqMalloc> = Counting::new(RqMalloc);

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    if counting::side() == Side::System {
        return finish(peer::serve(), 1);
    }
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => finish(show(&args::help()), 1),
        Ok(Command::Run(args)) => finish(run(&args), 1),
        Err(usage) => finish(Err(usage.into()), 2),
    }
}

fn finish(result: Result<(), Failure>, failed: u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("requests: {error}");
            ExitCode::from(failed)
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    if !rqmalloc::is_installed() {
        return Err("RqMalloc is not the global allocator of this program".into());
    }
    // The input is read outside requests: it serves all of them, so it is persistent.
    let name = input_name(&args.input);
    let input = read(&args.input).map_err(|error| format!("cannot read {name}: {error}"))?;
    let lines = Line::split(&input);
    if lines.is_empty() {
        return Err(format!("{name}: no request in it").into());
    }

    let (mut rounds, malformed) = Rounds::rehearse(lines, args.leaks)?;
    for Malformed { number, reason } in &malformed {
        eprintln!("{name}:{number}: malformed, skipped: {reason}");
    }
    if rounds.lines().is_empty() {
        return Err(format!("{name}: every line is malformed").into());
    }

    let mut peer = Peer::start(rounds.lines(), args.leaks)?;
    let mut ours = Vec::with_capacity(args.rounds);
    let mut theirs = Vec::with_capacity(args.rounds);
    for index in 0..args.rounds {
        // Alternating, and taking turns at going first, so that other load on the machine hits both
        // alike.
        if index % 2 == 0 {
            ours.push(rounds.run()?);
            theirs.push(peer.run()?);
        } else {
            theirs.push(peer.run()?);
            ours.push(rounds.run()?);
        }
    }
    peer.stop()?;
    check(&ours, &theirs)?;

    let table = Table {
        ours: &ours,
        theirs: &theirs,
        peaks: rounds.peaks(),
        malformed: malformed.len(),
        cache_entries: rounds.cache_entries(),
    };
    show(&table.to_string())
}

/// Fails unless both sides did the same work and every block is accounted for: only then is the
/// table worth reading.
fn check(ours: &[Round], theirs: &[Round]) -> Result<(), Failure> {
    for (index, (our, their)) in ours.iter().zip(theirs).enumerate() {
        let round = index + 1;
        if our.digest != their.digest {
            return Err(format!("round {round}: the two allocators' answers differ").into());
        }
        if our.leaked() != 0 {
            return Err(format!(
                "round {round}: the requests left {} blocks behind, their ends account for {}",
                our.left_behind(),
                our.freed_by_end + our.survivors
            )
            .into());
        }
    }
    Ok(())
}

fn input_name(input: &Path) -> Cow<'_, str> {
    if args::is_stdin(input) { Cow::Borrowed("<stdin>") } else { input.to_string_lossy() }
}

fn read(input: &Path) -> io::Result<Vec<u8>> {
    if args::is_stdin(input) {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    } else {
        fs::read(input)
    }
}

/// Writes to standard output. `print!` would panic if the reader has gone (`| head`), which is not
/// a failure of ours.
fn show(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
