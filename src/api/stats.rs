//! What the process uses.

use crate::base::quantity::Bytes;
use crate::heap::MAX_WARM_BYTES;
use crate::persistent::cache::{CREDIT_BYTES, FREE_BYTES};
use crate::thread;
use core::fmt;

/// What the process uses and where it is, in bytes. Every figure that is not named "of those" is
/// disjoint from the others:
/// `mapped = live + adopted + descriptors + thread caches + depots + slabs + warm + cached mappings
/// + free`.
///
/// Displayed, it is ten lines that say how large each part is, what it is, and its bound if it has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Mapped from the operating system: `in_use + cached + free`.
    pub mapped_bytes: usize,
    /// `live + adopted + descriptors`.
    pub in_use_bytes: usize,
    /// Live blocks, and the pages of open requests.
    pub live_bytes: usize,
    /// The pages that survivors of closed requests share with holes, which later requests and
    /// persistent blocks fill.
    pub adopted_bytes: usize,
    /// The allocator's own records: of spans, chunks, mappings, threads, and requests that are open.
    pub descriptor_bytes: usize,
    /// `thread caches + depots + slabs + warm + cached mappings`: kept for the next allocation.
    pub cached_bytes: usize,
    /// Free blocks in the caches of running threads.
    pub thread_cache_bytes: usize,
    /// How much those caches may keep now, beside a small part that each has for itself.
    pub thread_cache_credit_bytes: usize,
    /// Free blocks that threads handed over.
    pub depot_bytes: usize,
    /// Free blocks in slabs whose other blocks are out. Pages of them that were given back, or never
    /// used, count too.
    pub slab_bytes: usize,
    /// Empty regions that are kept for the next requests, with the control blocks that have them.
    pub warm_bytes: usize,
    /// Freed blocks above 1 MiB.
    pub cached_mapping_bytes: usize,
    /// Free pages, and memory that was mapped for records and is not used.
    pub free_bytes: usize,
    /// Of those, what is still resident.
    pub free_resident_bytes: usize,
    /// Requests that are open.
    pub open_request_count: u64,
}

/// Lines of displayed figures.
const LINE_COUNT: usize = 10;

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.open_request_count;
        let (drawn, credit) = (Bytes(self.thread_cache_credit_bytes), Bytes(CREDIT_BYTES));
        let (own, warm) = (Bytes(FREE_BYTES), Bytes(MAX_WARM_BYTES));
        let resident = Bytes(self.free_resident_bytes);
        let lines = [
            ("mapped", self.mapped_bytes, format_args!("from the system: the sum of these")),
            (
                "live",
                self.live_bytes,
                format_args!("blocks, and the pages of {open} open requests"),
            ),
            ("adopted", self.adopted_bytes, format_args!("pages of survivors, with their holes")),
            ("descriptors", self.descriptor_bytes, format_args!("the allocator's own records")),
            (
                "thread caches",
                self.thread_cache_bytes,
                format_args!("may keep {drawn} now, {credit} at most, and {own} each"),
            ),
            ("depots", self.depot_bytes, format_args!("free blocks that threads handed over")),
            ("slabs", self.slab_bytes, format_args!("free beside live ones, resident or not")),
            ("warm", self.warm_bytes, format_args!("for the next requests, {warm} at most")),
            ("mappings", self.cached_mapping_bytes, format_args!("freed blocks above 1 MiB")),
            ("free pages", self.free_bytes, format_args!("{resident} of them resident")),
        ];
        for (index, (name, bytes, what)) in lines.into_iter().enumerate() {
            let end = if index + 1 < LINE_COUNT { "\n" } else { "" };
            write!(f, "{name:<13} {:>10}  {what}{end}", Bytes(bytes))?;
        }
        Ok(())
    }
}

/// Returns what the process uses now. Walks the stores of free blocks: meant for a look now and
/// then, not for every request.
///
/// ```
/// let stats = rqmalloc::stats();
/// let sum = stats.in_use_bytes + stats.cached_bytes + stats.free_bytes;
/// assert_eq!(stats.mapped_bytes, sum);
/// ```
pub fn stats() -> Stats {
    let heap = thread::HEAP.figures();
    let mut in_caches = 0;
    thread::each_cache(|cache| in_caches += cache.held_bytes());
    // The parts are read one after the other while other threads work: none may seem larger than
    // what is left of the whole.
    let mut left = heap.mapped;
    let mut part = |bytes: usize| {
        let bytes = bytes.min(left);
        left -= bytes;
        bytes
    };
    let free_bytes = part(heap.free);
    let thread_cache_bytes = part(in_caches);
    let [depot_bytes, slab_bytes] = [part(heap.depots), part(heap.slabs)];
    let [warm_bytes, cached_mapping_bytes] = [part(heap.warm), part(heap.mappings)];
    let [adopted_bytes, descriptor_bytes] = [part(heap.adopted), part(heap.descriptors)];
    let live_bytes = left;
    Stats {
        mapped_bytes: heap.mapped,
        in_use_bytes: live_bytes + adopted_bytes + descriptor_bytes,
        live_bytes,
        adopted_bytes,
        descriptor_bytes,
        cached_bytes: thread_cache_bytes
            + depot_bytes
            + slab_bytes
            + warm_bytes
            + cached_mapping_bytes,
        thread_cache_bytes,
        thread_cache_credit_bytes: heap.drawn,
        depot_bytes,
        slab_bytes,
        warm_bytes,
        cached_mapping_bytes,
        free_bytes,
        free_resident_bytes: heap.free_resident.min(free_bytes),
        open_request_count: thread::open::open_count() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn figures_of_the_process_are_ten_lines_that_add_up() {
        let stats = Stats {
            mapped_bytes: 1023,
            in_use_bytes: 7,
            live_bytes: 1,
            adopted_bytes: 2,
            descriptor_bytes: 4,
            cached_bytes: 248,
            thread_cache_bytes: 8,
            thread_cache_credit_bytes: 9,
            depot_bytes: 16,
            slab_bytes: 32,
            warm_bytes: 64,
            cached_mapping_bytes: 128,
            free_bytes: 768,
            free_resident_bytes: 5,
            open_request_count: 3,
        };
        let text = stats.to_string();
        assert_eq!(text.lines().count(), LINE_COUNT);
        let bytes_of = |line: &str| line[13..24].trim().strip_suffix(" B")?.parse::<usize>().ok();
        let bytes: std::vec::Vec<usize> =
            text.lines().map(|line| bytes_of(line).unwrap()).collect();
        assert_eq!(bytes[0], bytes[1..].iter().sum::<usize>());
        assert!(text.contains("the pages of 3 open requests"));
        assert!(text.ends_with("5 B of them resident"));
    }
}
