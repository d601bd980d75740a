//! Where the memory of the process is, as a list.

use rqmalloc::Stats;

/// A part of what is mapped. All parts together are all of it.
pub struct Part {
    /// Its name in metrics.
    pub key: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// What it is.
    pub what: &'static str,
    /// How large it is.
    pub bytes: usize,
}

/// How many parts there are.
pub const PART_COUNT: usize = 9;

/// Returns the parts, what is in use first.
pub fn parts(stats: &Stats) -> [Part; PART_COUNT] {
    let part = |key, title, what, bytes| Part { key, title, what, bytes };
    let blocks = "blocks, and the pages of open requests";
    let adopted = "pages of what outlived its request, with their holes";
    let caches = "free blocks that threads keep for themselves";
    [
        part("live", "live", blocks, stats.live_bytes),
        part("adopted", "adopted", adopted, stats.adopted_bytes),
        part("descriptors", "descriptors", "the allocator's records", stats.descriptor_bytes),
        part("thread_caches", "thread caches", caches, stats.thread_cache_bytes),
        part("depots", "depots", "free blocks that threads handed over", stats.depot_bytes),
        part("slabs", "slabs", "free blocks beside live ones", stats.slab_bytes),
        part("warm", "warm", "empty regions for the next requests", stats.warm_bytes),
        part("mappings", "mappings", "freed blocks above 1 MiB", stats.cached_mapping_bytes),
        part("free", "free pages", "some of them resident", stats.free_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        let stats = rqmalloc::stats();
        let sum: usize = parts(&stats).iter().map(|part| part.bytes).sum();
        assert_eq!(sum, stats.mapped_bytes);
        // The crate's own text has a line for the whole, and one for each part.
        assert_eq!(stats.to_string().lines().count(), 1 + PART_COUNT);
    }
}
