//! Reports on requests and on the process.

use crate::base::quantity::{Blocks, Bytes};
use crate::blocks::request_id::RequestId;
use crate::thread;
use core::fmt;

/// What became of a request's memory. Displayed, it is one line for people to read.
///
/// Bytes of blocks include each block's header and what its size class adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[must_use = "the report says what survived, and whether the request is still open"]
pub struct Report {
    /// The request's number.
    pub id: RequestId,
    /// What its builder called the request.
    pub name: Option<&'static str>,
    /// The most memory the request held at any one time, in bytes of whole pages.
    pub peak_bytes: usize,
    /// Blocks that were live and have been freed.
    pub freed_blocks: u64,
    /// Their bytes.
    pub freed_bytes: usize,
    /// Blocks that were live when the request was closed. They are persistent now, and stay valid
    /// until they are freed, by any thread. (What [`persist`](crate::persist) was called on is not
    /// counted.)
    pub surviving_blocks: u64,
    /// Their bytes.
    pub surviving_bytes: usize,
    /// Bytes of the pages and mappings that survivors are in, or of what the request was given of
    /// pages that others survive in.
    pub span_bytes: usize,
    /// Bytes of those between the survivors: later requests allocate from them.
    pub reusable_bytes: usize,
    /// Other handles are alive: the request was only left, and nothing was freed.
    pub still_open: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.id)?;
        if let Some(name) = self.name {
            write!(f, " ({name})")?;
        }
        write!(f, ": peak {}", Bytes(self.peak_bytes))?;
        if self.still_open {
            return f.write_str(", still open: other handles are alive");
        }
        if self.freed_blocks > 0 {
            write!(f, ", freed {} ({})", Blocks(self.freed_blocks), Bytes(self.freed_bytes))?;
        }
        if self.surviving_blocks > 0 {
            let (blocks, bytes) = (Blocks(self.surviving_blocks), Bytes(self.surviving_bytes));
            let verb = if self.surviving_blocks == 1 { "survives" } else { "survive" };
            write!(f, ", {blocks} {verb} ({bytes} in spans of {})", Bytes(self.span_bytes))?;
        }
        if self.freed_blocks == 0 && self.surviving_blocks == 0 {
            f.write_str(", nothing left behind")?;
        }
        Ok(())
    }
}

/// What a request uses now. Exact while nobody allocates or frees in it; never negative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Usage {
    /// Blocks that are handed out and not freed.
    pub live_blocks: u64,
    /// Their bytes, including headers and what size classes add.
    pub live_bytes: usize,
    /// Bytes of the pages the request holds.
    pub footprint_bytes: usize,
    /// The largest footprint so far.
    pub peak_bytes: usize,
    /// The memory limit in bytes of footprint, if there is one.
    pub limit_bytes: Option<usize>,
}

/// What the process uses, in bytes: `mapped = in use + cached + free`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Mapped from the operating system.
    pub mapped_bytes: usize,
    /// Live blocks, the pages of open requests, and the allocator's own descriptors.
    pub in_use_bytes: usize,
    /// Of those, the pages that survivors of closed requests share with holes, which later requests
    /// and persistent blocks fill.
    pub adopted_bytes: usize,
    /// Free blocks and mappings kept for the next allocation.
    pub cached_bytes: usize,
    /// Free pages, resident or not.
    pub free_bytes: usize,
    /// Requests that are open.
    pub open_request_count: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mapped {} = in use {} ({} in adopted spans) + cached {} + free {}, {} open requests",
            Bytes(self.mapped_bytes),
            Bytes(self.in_use_bytes),
            Bytes(self.adopted_bytes),
            Bytes(self.cached_bytes),
            Bytes(self.free_bytes),
            self.open_request_count
        )
    }
}

/// Returns what the process uses now. Walks the stores of free blocks: meant for a look now and
/// then, not for every request.
pub fn stats() -> Stats {
    let heap = thread::HEAP.figures();
    let mut cached = heap.cached;
    thread::each_cache(|cache| cached += cache.held_bytes());
    // The parts are read one after the other while other threads work: none may seem larger than
    // what is left of the whole.
    let free = heap.free.min(heap.mapped);
    let cached = cached.min(heap.mapped - free);
    let in_use = heap.mapped - free - cached;
    Stats {
        mapped_bytes: heap.mapped,
        in_use_bytes: in_use,
        adopted_bytes: heap.adopted.min(in_use),
        cached_bytes: cached,
        free_bytes: free,
        open_request_count: thread::open::open_count() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const REPORT: Report = Report {
        id: RequestId(7),
        name: None,
        peak_bytes: 16 * 1024,
        freed_blocks: 0,
        freed_bytes: 0,
        surviving_blocks: 0,
        surviving_bytes: 0,
        span_bytes: 0,
        reusable_bytes: 0,
        still_open: false,
    };

    #[test]
    fn a_person_can_read_it() {
        assert_eq!(REPORT.to_string(), "request 7: peak 16.0 KiB, nothing left behind");
        let report = Report { name: Some("GET /"), freed_blocks: 1, freed_bytes: 48, ..REPORT };
        assert_eq!(report.to_string(), "request 7 (GET /): peak 16.0 KiB, freed 1 block (48 B)");
        let report = Report {
            surviving_blocks: 2,
            surviving_bytes: 2_500_000,
            span_bytes: 32_768,
            ..REPORT
        };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB, 2 blocks survive (2.3 MiB in spans of 32.0 KiB)"
        );
        let report = Report { still_open: true, ..REPORT };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB, still open: other handles are alive"
        );
    }
}
