//! Large Rust programs with rqmalloc as their global allocator. Each binary runs its work twice:
//! unchanged, and in slices, each in a request that is closed before the next begins. Both times it
//! checks the results. The last line is `ok`, the program's name and figures.
//!
//! These libraries know nothing of requests. They keep things in caches, thread-locals and pools
//! that are filled in a request and used and freed after it: the survivors of `close`.

use rqmalloc::Request;
use std::fmt;
use std::time::Instant;

/// The run of one program.
pub struct Program {
    name: &'static str,
    start: Instant,
    requests: u64,
    surviving_blocks: u64,
    surviving_bytes: usize,
    peak_bytes: usize,
}

impl Program {
    pub fn start(name: &'static str) -> Self {
        assert!(rqmalloc::is_installed(), "{name} runs without rqmalloc");
        Program {
            name,
            start: Instant::now(),
            requests: 0,
            surviving_blocks: 0,
            surviving_bytes: 0,
            peak_bytes: 0,
        }
    }

    /// Runs `slice` in a request of its own and closes it. What `slice` returns is used after that.
    pub fn request<R>(&mut self, slice: impl FnOnce() -> R) -> R {
        self.shared_request(|request| request.run(slice))
    }

    /// Gives `body` a request, which other threads may enter too, and closes it. `body` drops the
    /// handles it creates.
    pub fn shared_request<R>(&mut self, body: impl FnOnce(&Request) -> R) -> R {
        let request = Request::builder().name(self.name).build();
        let id = request.id();
        let result = body(&request);
        let report = request.close().unwrap_or_else(|_| panic!("{id} has another handle"));
        assert_eq!(report.id, id);
        assert_eq!(report.name, Some(self.name));
        assert!(!report.still_open);
        self.requests += 1;
        self.surviving_blocks += report.surviving_blocks;
        self.surviving_bytes += report.surviving_bytes;
        self.peak_bytes = self.peak_bytes.max(report.peak_bytes);
        result
    }

    /// Prints the last line.
    pub fn finish(self, figures: impl fmt::Display) {
        println!("{}", rqmalloc::stats());
        println!(
            "ok {}: {figures}; {} requests closed, largest {} KiB, {} survivors of {} KiB; {:.1} s",
            self.name,
            self.requests,
            self.peak_bytes / 1024,
            self.surviving_blocks,
            self.surviving_bytes / 1024,
            self.start.elapsed().as_secs_f64()
        );
    }
}

/// Random numbers that are the same in every run.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}
