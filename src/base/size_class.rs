//! Size classes: one labelled literal table, everything else computed from it.
//!
//! A *class* is a payload size. The payloads are 8 bytes more than a multiple of 16, so that with
//! the 8-byte header every stride is a multiple of 16, and 8 bytes more than every power of two, so
//! that a doubling `Vec` never loses a quarter of a block to the header.
#![forbid(unsafe_code)]

/// Length of the header word before every payload.
pub const HEADER_BYTES: usize = 8;

/// Alignment of every payload.
pub const PAYLOAD_ALIGN: usize = 16;

/// Bytes from the base of a span to its first payload: the first aligned address with room for a
/// header before it.
pub const FIRST_PAYLOAD_OFFSET: usize = 2 * HEADER_BYTES;

/// Length of a page of a chunk.
pub const PAGE_BYTES: usize = 16 * 1024;

/// The number of size classes.
pub const CLASS_COUNT: usize = 61;

/// Payload bytes of each class; the label is the distance from one class of its row to the next.
#[rustfmt::skip]
pub const PAYLOAD_BYTES: [u32; CLASS_COUNT] = [
    /*     16 */ 8, 24, 40, 56, 72, 88, 104, 120,
    /*     32 */ 136, 168, 200, 232,
    /*     64 */ 264, 328, 392, 456,
    /*    128 */ 520, 648, 776, 904,
    /*    256 */ 1_032, 1_288, 1_544, 1_800,
    /*    512 */ 2_056, 2_568, 3_080, 3_592,
    /*   1024 */ 4_104, 5_128, 6_152, 7_176,
    /*   2048 */ 8_200, 10_248, 12_296, 14_344,
    /*   4096 */ 16_392, 20_488, 24_584, 28_680,
    /*   8192 */ 32_776, 40_968, 49_160, 57_352,
    /*  16384 */ 65_544, 81_928, 98_312, 114_696,
    /*  32768 */ 131_080, 163_848, 196_616, 229_384,
    /*  65536 */ 262_152, 327_688, 393_224, 458_760,
    /* 131072 */ 524_296, 655_368, 786_440, 917_512,
    /*        */ 1_048_584,
];

/// The largest size that has a class; larger blocks have a mapping of their own.
pub const MAX_CLASS_BYTES: usize = PAYLOAD_BYTES[CLASS_COUNT - 1] as usize;

/// The largest size whose class is looked up; above it, the class is computed.
pub const MAX_TABLE_BYTES: usize = 1_032;

/// The first class whose blocks have a span of their own; smaller ones share slabs and regions.
pub const FIRST_LARGE_CLASS: usize = 41;

/// Most blocks that move between a thread and the process at once.
const MAX_MAGAZINE_COUNT: u32 = 256;

/// Most bytes that move between a thread and the process at once, unless one block is longer.
const MAX_MAGAZINE_BYTES: u32 = 32 * 1024;

/// Most pages of a slab.
pub const MAX_SLAB_PAGES: usize = 24;

/// A slab that wastes at most one part in this many is not made longer.
const SLAB_WASTE_DIVISOR: usize = 32;

const TABLE_COUNT: usize = (MAX_TABLE_BYTES - HEADER_BYTES) / PAYLOAD_ALIGN + 1;

/// The class of every size up to `MAX_TABLE_BYTES`, in steps of 16 bytes.
const CLASS_BY_SIXTEENTH: [u8; TABLE_COUNT] = {
    let mut table = [0u8; TABLE_COUNT];
    let mut class = 0;
    let mut index = 0;
    while index < TABLE_COUNT {
        while (PAYLOAD_BYTES[class] as usize) < index * PAYLOAD_ALIGN + HEADER_BYTES {
            class += 1;
        }
        table[index] = class as u8;
        index += 1;
    }
    table
};

/// Stride of each class: payload and header.
const STRIDE_BYTES: [u32; CLASS_COUNT] = {
    let mut table = [0; CLASS_COUNT];
    let mut class = 0;
    while class < CLASS_COUNT {
        table[class] = PAYLOAD_BYTES[class] + HEADER_BYTES as u32;
        class += 1;
    }
    table
};

/// A class that exists: `index() < CLASS_COUNT`, always (C1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Class(u8);

impl Class {
    /// The largest class whose blocks share spans.
    pub const LAST_SHARED: Self = Self(FIRST_LARGE_CLASS as u8 - 1);

    /// Returns the smallest class whose payload has room for `size` bytes; `None` above
    /// `MAX_CLASS_BYTES`.
    #[inline(always)]
    pub fn of(size: usize) -> Option<Self> {
        if size <= MAX_TABLE_BYTES {
            Some(Self(CLASS_BY_SIXTEENTH[(size + HEADER_BYTES - 1) / PAYLOAD_ALIGN]))
        } else {
            Self::of_slow(size)
        }
    }

    /// Computes the classes above the table: four per doubling.
    #[inline]
    fn of_slow(size: usize) -> Option<Self> {
        if size > MAX_CLASS_BYTES {
            return None;
        }
        // Eight classes up to 120 bytes, then the quarter of its doubling that the last byte's
        // offset is in.
        let last = size - HEADER_BYTES - 1;
        let doubling = last.ilog2() as usize;
        let step = (last >> (doubling - 2)) & 3;
        Some(Self((8 + (doubling - 7) * 4 + step + 1) as u8))
    }

    /// Returns the class with this index, for an index that was read from memory.
    #[inline]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < CLASS_COUNT { Some(Self(index as u8)) } else { None }
    }

    /// Returns the largest class whose stride is at most `bytes`.
    pub fn fitting(bytes: usize) -> Option<Self> {
        let payload = bytes.checked_sub(HEADER_BYTES)?;
        let holds = Self::of(payload.min(MAX_CLASS_BYTES))?;
        if holds.payload_bytes() <= payload {
            Some(holds)
        } else {
            Self::from_index(holds.index().checked_sub(1)?)
        }
    }

    /// Every class, smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CLASS_COUNT).map(|index| Self(index as u8))
    }

    /// The classes whose blocks share spans, smallest first.
    pub fn all_shared() -> impl Iterator<Item = Self> {
        (0..FIRST_LARGE_CLASS).map(|index| Self(index as u8))
    }

    /// Returns its position in every per-class array.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the payload bytes of a block of this class.
    #[inline]
    pub const fn payload_bytes(self) -> usize {
        PAYLOAD_BYTES[self.index()] as usize
    }

    /// Returns the bytes from one block of this class to the next.
    #[inline(always)]
    pub const fn stride_bytes(self) -> usize {
        STRIDE_BYTES[self.index()] as usize
    }

    /// Returns whether a block of this class has a span of its own.
    #[inline]
    pub const fn is_large(self) -> bool {
        self.index() >= FIRST_LARGE_CLASS
    }

    /// Returns how many blocks a magazine of this class has at most.
    pub const fn magazine_count(self) -> u32 {
        MAGAZINE_COUNTS[self.index()] as u32
    }

    /// Returns how many pages a slab of this class has: the fewest with room for eight blocks and
    /// little waste.
    pub const fn slab_pages(self) -> usize {
        SLAB_PAGES[self.index()] as usize
    }

    /// Returns the bytes that a free block of this class keeps from other uses: its pages, if it
    /// has a span of its own, else its stride.
    pub const fn kept_bytes(self) -> usize {
        if self.is_large() { self.slab_pages() * PAGE_BYTES } else { self.stride_bytes() }
    }

    /// Returns how many blocks a slab of this class has.
    pub const fn slab_count(self) -> u32 {
        SLAB_COUNTS[self.index()] as u32
    }
}

static MAGAZINE_COUNTS: [u16; CLASS_COUNT] = {
    let mut table = [1; CLASS_COUNT];
    let mut class = 0;
    while class < CLASS_COUNT {
        let count = MAX_MAGAZINE_BYTES / STRIDE_BYTES[class];
        if count > MAX_MAGAZINE_COUNT {
            table[class] = MAX_MAGAZINE_COUNT as u16;
        } else if count > 0 {
            table[class] = count as u16;
        }
        class += 1;
    }
    table
};

static SLAB_COUNTS: [u16; CLASS_COUNT] = {
    let mut table = [0; CLASS_COUNT];
    let mut class = 0;
    while class < CLASS_COUNT {
        let bytes = SLAB_PAGES[class] as usize * PAGE_BYTES - HEADER_BYTES;
        table[class] = (bytes / STRIDE_BYTES[class] as usize) as u16;
        class += 1;
    }
    table
};

static SLAB_PAGES: [u8; CLASS_COUNT] = {
    let mut table = [0; CLASS_COUNT];
    let mut class = 0;
    while class < CLASS_COUNT {
        table[class] = slab_pages(STRIDE_BYTES[class] as usize, class >= FIRST_LARGE_CLASS) as u8;
        class += 1;
    }
    table
};

/// Computes the pages of a slab. Blocks begin at 8 modulo 16, so the first 8 bytes are never used.
const fn slab_pages(stride: usize, is_large: bool) -> usize {
    if is_large {
        return pages_for(stride + HEADER_BYTES);
    }
    let mut pages = 4;
    while pages < MAX_SLAB_PAGES {
        let bytes = pages * PAGE_BYTES - HEADER_BYTES;
        if bytes / stride >= 8 && (bytes % stride) * SLAB_WASTE_DIVISOR <= bytes {
            break;
        }
        pages += 1;
    }
    pages
}

/// Returns the size of a block in which `size` bytes at `align` fit wherever it lies: at most
/// `align - PAYLOAD_ALIGN` bytes come before them.
pub fn padded_size(size: usize, align: usize) -> Option<usize> {
    if align <= PAYLOAD_ALIGN { Some(size) } else { size.checked_add(align - PAYLOAD_ALIGN) }
}

/// Returns the fewest pages with room for `bytes`.
pub const fn pages_for(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES)
}

const _: () = {
    let mut class = 0;
    while class < CLASS_COUNT {
        assert!(
            STRIDE_BYTES[class] as usize % PAYLOAD_ALIGN == 0,
            "the payload after an aligned one is aligned"
        );
        assert!(class == 0 || PAYLOAD_BYTES[class] > PAYLOAD_BYTES[class - 1], "the table ascends");
        class += 1;
    }
    assert!(
        FIRST_PAYLOAD_OFFSET % PAYLOAD_ALIGN == 0 && FIRST_PAYLOAD_OFFSET >= HEADER_BYTES,
        "the first payload of a span is aligned, and its header is in the span"
    );
    assert!(PAGE_BYTES % PAYLOAD_ALIGN == 0, "spans begin where a payload could");
    assert!(CLASS_COUNT <= 64, "a header's class field and masks of classes cover every class");
    assert!(MAX_CLASS_BYTES == (1 << 20) + HEADER_BYTES, "classes go to 1 MiB");
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 0..=MAX_CLASS_BYTES {
            let class = Class::of(size).unwrap();
            assert!(class.payload_bytes() >= size, "{size} does not fit into {class:?}");
            if class.index() > 0 {
                assert!(
                    (PAYLOAD_BYTES[class.index() - 1] as usize) < size.max(1),
                    "{size}: {class:?}"
                );
            }
        }
        assert_eq!(Class::of(MAX_CLASS_BYTES + 1), None);
        assert_eq!(Class::of(usize::MAX), None);
    }

    #[test]
    fn payload_and_class_are_inverse() {
        for class in Class::all() {
            assert_eq!(Class::of(class.payload_bytes()), Some(class));
        }
    }

    #[test]
    fn powers_of_two_fit_with_the_header_to_spare() {
        for power in 3..=20 {
            let class = Class::of(1 << power).unwrap();
            assert!(class.payload_bytes() - (1 << power) <= 8);
        }
    }

    #[test]
    fn fitting_is_the_largest_that_fits() {
        for bytes in 0..200_000 {
            let expected = Class::all().filter(|c| c.stride_bytes() <= bytes).last();
            assert_eq!(Class::fitting(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn the_readme_has_this_table() {
        let readme = include_str!("../../README.md");
        let (_, rest) = readme.split_once("<!-- size classes -->").unwrap();
        let (table, _) = rest.split_once("<!-- end of size classes -->").unwrap();
        let listed: Vec<u32> = table
            .lines()
            .filter_map(|line| line.split('|').nth(2))
            .flat_map(|cell| cell.split(','))
            .filter_map(|number| number.trim().parse().ok())
            .collect();
        assert_eq!(listed, PAYLOAD_BYTES, "the table in README.md is stale");
    }

    #[test]
    fn slabs_waste_little() {
        for class in Class::all().filter(|class| !class.is_large()) {
            let bytes = class.slab_pages() * PAGE_BYTES;
            let used = class.slab_count() as usize * class.stride_bytes();
            assert!(class.slab_pages() <= MAX_SLAB_PAGES);
            assert!(used * 12 >= bytes * 11, "{class:?} wastes {}", bytes - used);
        }
    }

    #[test]
    fn large_spans_hold_their_block() {
        for class in Class::all().filter(|class| class.is_large()) {
            assert!(class.slab_pages() * PAGE_BYTES >= class.stride_bytes() + HEADER_BYTES);
            assert_eq!(class.slab_count(), 1);
        }
    }
}
