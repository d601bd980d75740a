//! A count and the bytes of what is counted, in one word that knows the request it is of.
//!
//! Compiled by `loom-tests`.
//!
//! - **Y4** Whoever sees a block counted sees what was done before.
//! - **Y5** What comes too late for a request changes nothing of the next one.

use crate::base::sync::{AtomicU64, Ordering};

/// `generation : 8 | count : 24 | bytes : 32`, the bytes in units. Beyond 16 million blocks or 64
/// GiB the figure stays where it is.
pub struct CountedBytes(pub AtomicU64);

/// Every stride is a multiple of it.
const UNIT_BYTES: usize = 16;
const BYTES_BITS: u32 = 32;
const COUNT_BITS: u32 = 24;
const GENERATION_SHIFT: u32 = BYTES_BITS + COUNT_BITS;

const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

const _: () = assert!(GENERATION_SHIFT < u64::BITS, "some bits of the generation are left");

const fn of_generation(generation: u32) -> u64 {
    (generation as u64) << GENERATION_SHIFT
}

impl CountedBytes {
    /// Nothing, of the request with this generation. The word is the caller's.
    #[inline]
    pub fn open(&self, generation: u32) {
        self.0.store(of_generation(generation), Ordering::Relaxed);
    }

    fn change(&self, generation: u32, step: impl Fn(u64, u64) -> Option<(u64, u64)>) {
        let _ = self.0.fetch_update(Ordering::Release, Ordering::Relaxed, |word| {
            if word >> GENERATION_SHIFT != of_generation(generation) >> GENERATION_SHIFT {
                return None;
            }
            let (count, units) = step(word >> BYTES_BITS & COUNT_MASK, word & BYTES_MASK)?;
            Some(of_generation(generation) | count << BYTES_BITS | units)
        });
    }

    /// Counts blocks in.
    pub fn add(&self, generation: u32, blocks: usize, bytes: usize) {
        let (blocks, more) = (blocks as u64, (bytes / UNIT_BYTES) as u64);
        self.change(generation, |count, units| {
            let (count, units) = (count + blocks, units + more);
            (count <= COUNT_MASK && units <= BYTES_MASK).then_some((count, units))
        });
    }

    /// Counts blocks out.
    pub fn take(&self, generation: u32, blocks: usize, bytes: usize) {
        let (blocks, fewer) = (blocks as u64, (bytes / UNIT_BYTES) as u64);
        self.change(generation, |count, units| {
            Some((count.saturating_sub(blocks), units.saturating_sub(fewer)))
        });
    }

    /// The blocks and their bytes.
    pub fn figures(&self) -> (isize, isize) {
        let word = self.0.load(Ordering::Acquire);
        let count = word >> BYTES_BITS & COUNT_MASK;
        (count as isize, ((word & BYTES_MASK) as usize * UNIT_BYTES) as isize)
    }
}
