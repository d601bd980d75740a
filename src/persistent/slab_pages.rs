//! Where the blocks of a slab lie in the pages of the system, which may be shorter or longer than
//! ours. They are counted from the one that the slab begins in.
#![forbid(unsafe_code)]

use crate::base::size_class::{Class, HEADER_BYTES};
use crate::lockfree::header::Block;
use crate::lockfree::uncut::Pages;
use core::ops::Range;

/// Most pages of the system that a slab is in.
pub const MAX_PAGES: usize = u128::BITS as usize;

/// The geometry of a slab. Its blocks are numbered from the first on.
pub struct SlabPages {
    base: usize,
    end: usize,
    stride_bytes: usize,
    count: u32,
    page_shift: u32,
}

impl SlabPages {
    /// That of a slab from `base` to `end`, where the system's pages have `page_bytes`.
    pub fn new(class: Class, base: usize, end: usize, page_bytes: usize) -> Self {
        let (stride_bytes, count) = (class.stride_bytes(), class.slab_count());
        Self { base, end, stride_bytes, count, page_shift: page_bytes.trailing_zeros() }
    }

    /// Returns how many pages it is in.
    pub fn page_count(&self) -> usize {
        ((self.end - 1) >> self.page_shift) - (self.base >> self.page_shift) + 1
    }

    /// Returns the first address of a page.
    pub fn address(&self, page: usize) -> usize {
        ((self.base >> self.page_shift) + page) << self.page_shift
    }

    /// Whether all of a page is in the slab.
    pub fn is_inside(&self, page: usize) -> bool {
        self.address(page) >= self.base && self.address(page + 1) <= self.end
    }

    /// Returns a block.
    pub fn block(&self, number: u32) -> Block {
        self.base + 2 * HEADER_BYTES + number as usize * self.stride_bytes
    }

    /// Returns the number of the block that an address from the first header on is in.
    pub fn number(&self, address: usize) -> u32 {
        ((address - self.base - HEADER_BYTES) / self.stride_bytes) as u32
    }

    /// Returns the page that a block's header is in.
    pub fn page_of(&self, block: Block) -> usize {
        ((block - HEADER_BYTES) >> self.page_shift) - (self.base >> self.page_shift)
    }

    /// Returns the pages that a block is in, its header too.
    pub fn pages_of(&self, block: Block) -> Range<usize> {
        let first = self.base >> self.page_shift;
        let start = block - HEADER_BYTES;
        let last = (start + self.stride_bytes - 1) >> self.page_shift;
        (start >> self.page_shift) - first..last + 1 - first
    }

    /// How far a page begins behind the first header; `None`: not behind it.
    fn offset(&self, page: usize) -> Option<usize> {
        let offset = self.address(page).checked_sub(self.base + HEADER_BYTES)?;
        (offset > 0).then_some(offset)
    }

    /// Returns the first block whose header is in this page or a later one.
    pub fn first_in(&self, page: usize) -> u32 {
        let number = self.offset(page).map_or(0, |offset| offset.div_ceil(self.stride_bytes));
        self.count.min(number as u32)
    }

    /// Returns the blocks that are partly in a page.
    pub fn blocks_across(&self, page: usize) -> Range<u32> {
        let first = self.offset(page).map_or(0, |offset| offset / self.stride_bytes);
        self.count.min(first as u32)..self.first_in(page + 1)
    }

    /// Whether the first block in a page has its header, but not its link, in the page before.
    pub fn splits_a_block(&self, page: usize) -> bool {
        let first = self.blocks_across(page);
        !first.is_empty() && self.block(first.start) == self.address(page)
    }
}

impl Pages for SlabPages {
    fn page_of_number(&self, number: u32) -> usize {
        self.page_of(self.block(number))
    }

    fn blocks_in(&self, pages: Range<usize>) -> Range<u32> {
        self.first_in(pages.start)..self.first_in(pages.end)
    }
}

/// The runs of pages of a mask, lowest first.
pub fn runs_in(mask: u128) -> impl Iterator<Item = Range<usize>> {
    let mut left = mask;
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let first = left.trailing_zeros();
        let length = (left >> first).trailing_ones();
        let run = u128::MAX.checked_shr(u128::BITS - length).unwrap_or(0) << first;
        left &= !run;
        Some(first as usize..(first + length) as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::size_class::PAGE_BYTES;
    use std::vec::Vec;

    #[test]
    fn every_block_is_where_its_bytes_are() {
        for class in Class::all_shared() {
            for (page_bytes, base_page) in [(4096, 7), (16 * 1024, 5), (64 * 1024, 3)] {
                let base = (1 << 22) + base_page * PAGE_BYTES;
                let end = base + class.slab_pages() * PAGE_BYTES;
                let slab = SlabPages::new(class, base, end, page_bytes);
                assert!(slab.page_count() <= MAX_PAGES);
                let mut across: Vec<Vec<u32>> = std::vec![Vec::new(); slab.page_count()];
                let mut inside = across.clone();
                for number in 0..class.slab_count() {
                    let block = slab.block(number);
                    let (start, last) = (block - 8, block + class.payload_bytes() - 1);
                    assert!(start >= base && last < end);
                    assert_eq!((slab.number(start), slab.number(last)), (number, number));
                    let pages = slab.pages_of(block);
                    assert!((slab.address(pages.start)..slab.address(pages.end)).contains(&start));
                    assert!(slab.address(pages.end - 1) <= last && last < slab.address(pages.end));
                    assert_eq!(slab.page_of(block), pages.start);
                    pages.clone().for_each(|page| across[page].push(number));
                    inside[pages.start].push(number);
                    let link_page = block / page_bytes - base / page_bytes;
                    assert_eq!(
                        (0..slab.page_count()).find(|&page| slab.splits_a_block(page)
                            && slab.blocks_across(page).start == number),
                        (link_page != pages.start).then_some(link_page)
                    );
                }
                for page in 0..slab.page_count() {
                    assert!(slab.blocks_across(page).eq(across[page].iter().copied()));
                    assert!(slab.blocks_in(page..page + 1).eq(inside[page].iter().copied()));
                }
            }
        }
    }

    #[test]
    fn runs_are_those_of_the_bits() {
        assert_eq!(runs_in(0).next(), None);
        assert_eq!(runs_in(u128::MAX).next(), Some(0..128));
        let mask = 0b1011 | 7 << 62 | 1 << 127;
        assert_eq!(runs_in(mask).collect::<Vec<_>>(), [0..2, 3..4, 62..65, 127..128]);
    }
}
