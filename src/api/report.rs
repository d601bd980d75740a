//! What is said about requests and about the process.

use crate::base::quantity::{Blocks, Bytes};
use core::fmt;

/// The number of a request, never reused in a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What became of a request's memory. Its `Display` is one line for a person.
///
/// Bytes of blocks include each block's header and what its size class adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[must_use = "the report says what survived, and whether the request is still open"]
pub struct Report {
    /// The request.
    pub id: RequestId,
    /// What its builder called it.
    pub name: Option<&'static str>,
    /// The most memory the request held at a time, in bytes of whole pages.
    pub peak_bytes: usize,
    /// Blocks that were live and are freed now.
    pub freed_blocks: u64,
    /// Their bytes.
    pub freed_bytes: usize,
    /// Blocks that stay valid until they are freed, by whoever: what was live when the request was
    /// closed, or kept by [`persist`](crate::persist).
    pub surviving_blocks: u64,
    /// Their bytes.
    pub surviving_bytes: usize,
    /// Bytes of the pages that the survivors keep.
    pub pinned_bytes: usize,
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
            write!(f, ", {blocks} {verb} ({bytes}, pinning {})", Bytes(self.pinned_bytes))?;
        }
        if self.freed_blocks == 0 && self.surviving_blocks == 0 {
            f.write_str(", nothing left behind")?;
        }
        Ok(())
    }
}

/// What a request uses just now. Exact while nobody allocates or frees in it; never negative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Usage {
    /// Blocks that are handed out and not freed.
    pub live_blocks: usize,
    /// Their bytes, headers and what size classes add included.
    pub live_bytes: usize,
    /// Bytes of the pages the request holds.
    pub footprint: usize,
    /// The largest footprint so far.
    pub peak: usize,
    /// The memory limit in bytes of footprint, if there is one.
    pub limit: Option<usize>,
}

/// What the process uses: `mapped = in_use + cached + free`, all in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Mapped from the operating system.
    pub mapped: usize,
    /// Live blocks, the pages of open requests, and the allocator's own descriptors.
    pub in_use: usize,
    /// Free blocks and mappings kept for the next allocation.
    pub cached: usize,
    /// Free pages, resident or not.
    pub free: usize,
    /// Requests that are open.
    pub open_requests: usize,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mapped {} = in use {} + cached {} + free {}, {} open requests",
            Bytes(self.mapped),
            Bytes(self.in_use),
            Bytes(self.cached),
            Bytes(self.free),
            self.open_requests
        )
    }
}

/// What the process uses just now. Walks the stores of free blocks: for a look now and then, not
/// for every request.
pub fn stats() -> Stats {
    let heap = crate::thread::HEAP.figures();
    let mut cached = heap.cached;
    crate::thread::each_cache(|cache| cached += cache.held_bytes());
    // The parts are read one after the other while other threads work: none may seem larger than
    // what is left of the whole.
    let free = heap.free.min(heap.mapped);
    let cached = cached.min(heap.mapped - free);
    Stats {
        mapped: heap.mapped,
        in_use: heap.mapped - free - cached,
        cached,
        free,
        open_requests: crate::thread::open_count(),
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
        pinned_bytes: 0,
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
            pinned_bytes: 32_768,
            ..REPORT
        };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB, 2 blocks survive (2.3 MiB, pinning 32.0 KiB)"
        );
        let report = Report { still_open: true, ..REPORT };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB, still open: other handles are alive"
        );
    }
}
