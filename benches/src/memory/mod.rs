//! Rows of `ci/memory`: what a program holds, and what it still holds when the work is over.
//!
//! A row is a process of its own. At its *marks* it prints a line of figures; between them `ci/memory`
//! looks from outside, so that nothing in the process disturbs what is measured:
//!
//! ```text
//! mark NAME seconds, processor seconds, resident bytes, their peak, mapped bytes, page faults
//! value NAME number
//! ```
//!
//! `rqmalloc` also runs the requests; elsewhere the same work is done without them.

mod after;
mod bulk;
mod php;
mod programs;
mod soak;

use crate::Context;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a row needs, and so beside what it may run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Mostly sleeps: others may run at the same time. Not less if quick.
    Waits,
    /// Its processor time counts.
    Works,
    /// One of the six programs: its time counts, and its marks are `peak`, `freed` and `final`.
    Program,
    /// Runs until it is told to stop.
    Soak,
}

pub struct Row {
    pub name: &'static str,
    pub kind: Kind,
    /// Whether it makes sense only with an allocator that has requests.
    pub of_requests: bool,
    pub what: &'static str,
    run: fn(Context),
}

const fn row(name: &'static str, kind: Kind, run: fn(Context), what: &'static str) -> Row {
    Row { name, kind, of_requests: false, what, run }
}

const fn of_requests(row: Row) -> Row {
    Row { of_requests: true, ..row }
}

pub const ALL: &[Row] = &[
    row("empty", Kind::Works, bulk::empty, "a program that does nothing"),
    row("small", Kind::Works, bulk::small, "ten thousand strings"),
    of_requests(row("requests", Kind::Works, after::requests, "a million requests open at once")),
    row("threads", Kind::Works, after::threads, "150 threads that worked and are idle"),
    row("warm", Kind::Waits, after::warm, "100 requests at once, then one after the other"),
    row("light", Kind::Waits, after::light, "small blocks, then a few at a time"),
    row("mixed", Kind::Waits, after::mixed, "blocks of every size, then mixed traffic"),
    row("engine", Kind::Waits, after::engine, "queries on four threads, then almost none"),
    row("phases", Kind::Waits, bulk::phases, "one size after the other, one block in 64 stays"),
    of_requests(row("lanes", Kind::Works, after::lanes, "one request with 1500 threads inside")),
    row("survivors", Kind::Works, bulk::survivors, "100 000 requests each leave 24 bytes"),
    row("at_once", Kind::Works, bulk::at_once, "the same, all open at once"),
    row("boxes", Kind::Works, bulk::boxes, "20 million boxes freed in random order, made again"),
    row("mapped", Kind::Works, bulk::mapped, "100 000 blocks above 1 MiB"),
    row("tables", Kind::Works, bulk::tables, "hash tables that double, on two threads"),
    row("json", Kind::Program, programs::json, "JSON documents, held and replaced"),
    row("syntax", Kind::Program, programs::syntax, "syntax trees of Rust files"),
    row("interpreter", Kind::Program, programs::interpreter, "a Rhai script's values"),
    row("index", Kind::Program, programs::index, "a search index, built in segments and merged"),
    row("php", Kind::Program, php::php, "objects and hash tables as PHP makes them"),
    row("strings", Kind::Program, programs::strings, "a map of strings that come and go"),
    row("soak", Kind::Soak, soak::soak, "a server's mix"),
];

/// The `memory [NAME] [--quick] [--seconds N]` of an allocator's binary. Without a name it lists
/// the rows. Returns whether there is such a row.
pub fn main(name: Option<&str>, context: Context) -> bool {
    let Some(name) = name else {
        for row in ALL {
            let kind = match row.kind {
                Kind::Waits => "waits",
                Kind::Works => "works",
                Kind::Program => "program",
                Kind::Soak => "soak",
            };
            let who = if row.of_requests { "requests" } else { "all" };
            println!("{} {kind} {who} {}", row.name, row.what);
        }
        return true;
    };
    let Some(row) = ALL.iter().find(|row| row.name == name) else {
        return false;
    };
    let _ = START.set(Instant::now());
    (row.run)(context);
    true
}

static START: OnceLock<Instant> = OnceLock::new();

/// What is also called at each mark, with the mark's name.
pub static AT_MARK: OnceLock<fn(&str)> = OnceLock::new();

/// Prints what the process uses now.
fn mark(name: &str) {
    let figures = Figures::read();
    if let Some(also) = AT_MARK.get() {
        also(name);
    }
    let seconds = START.get().map_or(0.0, |start| start.elapsed().as_secs_f64());
    let Figures { resident, peak, mapped, processor, faults } = figures;
    let mut out = std::io::stdout().lock();
    writeln!(out, "mark {name} {seconds:.3} {processor:.3} {resident} {peak} {mapped} {faults}")
        .and_then(|()| out.flush())
        .expect("ci/memory reads the figures");
}

/// Prints a figure that only this row has.
fn value(name: &str, number: f64) {
    println!("value {name} {number:.3}");
}

struct Figures {
    resident: usize,
    peak: usize,
    mapped: usize,
    /// Seconds of all threads.
    processor: f64,
    faults: u64,
}

impl Figures {
    /// Allocates nothing.
    fn read() -> Self {
        let mut buffer = [0; 4096];
        let mut status = File::open("/proc/self/status").expect("Linux");
        let length = status.read(&mut buffer).expect("a file of the kernel");
        let text = std::str::from_utf8(&buffer[..length]).expect("it is ASCII up to here");
        let bytes = |field: &str| {
            let line = text.lines().find(|line| line.starts_with(field)).expect("a known field");
            let number = line.split_ascii_whitespace().nth(1).expect("a number");
            number.parse::<usize>().expect("kilobytes") * 1024
        };
        // SAFETY: all-zero bytes are a valid value of this struct of integers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a struct of the type that the call fills.
        let failed = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        assert_eq!(failed, 0, "it fails for unknown arguments only");
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
        Self {
            resident: bytes("VmRSS:"),
            peak: bytes("VmHWM:"),
            mapped: bytes("VmSize:"),
            processor: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            faults: usage.ru_minflt as u64,
        }
    }
}

/// Runs `body` in a request, which is closed then, if the allocator has requests.
fn in_request<R>(context: Context, body: impl FnOnce() -> R) -> R {
    if context.hooks.is_none() {
        return body();
    }
    let request = rqmalloc::Request::new();
    let result = request.run(body);
    let _ = request.close();
    result
}

/// Gives back what is idle, if the allocator is asked for that; marks it.
fn trimmed(context: Context) {
    if context.hooks.is_some() {
        rqmalloc::trim();
        mark("trimmed");
    }
}

/// Calls `work` every millisecond or two, for as long.
fn every_millisecond(duration: Duration, mut work: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < duration {
        work();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The least that a thread does: one block or a few, freed at once.
fn glance(duration: Duration) {
    let mut turn = 0;
    every_millisecond(duration, || {
        turn += 1;
        let blocks: [Vec<u8>; 3] =
            [20, 60, 150].map(|size| vec![1; if turn % 3 == 0 { size } else { 40 }]);
        std::hint::black_box(&blocks);
    });
}

/// What a server's thread does: a request of some hundred blocks of mixed sizes at a time.
fn traffic(context: Context, duration: Duration) {
    let mut rng = crate::rng::Rng::new(5);
    every_millisecond(duration, || {
        in_request(context, || {
            let sizes = [16, 32, 48, 100, 200, 500, 1000, 3000];
            let mut size = || {
                let most = sizes[rng.below(sizes.len())];
                rng.between(8, most)
            };
            let blocks: Vec<Vec<u8>> = (0..200).map(|_| vec![1; size()]).collect();
            std::hint::black_box(&blocks);
        });
    });
}

/// Marks the end of a program's work, and what it holds after a second of ordinary traffic.
fn settled(context: Context) {
    mark("freed");
    traffic(context, Duration::from_secs(1));
    mark("final");
}
