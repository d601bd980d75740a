//! Bins: what a thread allocates from and frees to without looking at anything else.
//!
//! | field of `Bins` | written by | read by |
//! |---|---|---|
//! | `bins[..].head` | the thread the bins are active in | the same |
//! | `bins[..].room`, `.taken`, `bump`, `cut_count`, `granted` | the same | any thread, for figures |
//! | `caps` | the same; of a lane, also a thread that enters another lane of its request | the same |
//! | `tag`, `kind`, `cache` | the thread that makes or opens the bins | the thread they are active in |
//!
//! - **F1** A block in `bins[c]` has class `c`, is not live, and is in no other list.
//! - **F2** `bump..end` is memory of the lane's region that belongs to no block; `bump` is 8 modulo
//!   16. (Both are 0 if there is no range.)
//! - **F3** The number of blocks in `bins[c]`, `bins[c].room` and `bins[c].taken` add up to 0, modulo
//!   2^32.
//! - **F4** `granted` less the sum of all rooms is how many blocks were freed to these bins since
//!   they were reset.

use super::bin::{Bin, ROOM_AFTER_RESET};
pub use super::bin::{BinOf, Look};
use super::list::check_list;
use super::memory::Raw;
use crate::base::size_class::{CLASS_COUNT, Class, HEADER_BYTES};
use crate::base::sync::{AtomicU32, Gauge, Ordering};
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{ALIGNED, Block, FREED, Header, LARGE, LIVE, Memory, NONE};
use core::cell::Cell;
use core::mem::offset_of;

const _: () = assert!(Kind::Unused as u8 == 0, "zeroed bins are nobody's");
const _: () =
    assert!(offset_of!(Bins, bins) % size_of::<Bin>() == 0, "no bin is in two cache lines");

/// Bins that are asked together whether they have blocks.
const HELD_AT_ONCE: usize = 4;

/// Whose bins these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Nobody's: this thread has not allocated yet.
    Unused,
    /// Nobody's: this thread has given everything back.
    Exited,
    /// A thread cache's.
    Cache,
    /// A lane's.
    Lane,
    /// Nobody's: the thread is in a lane whose request traces every block.
    Traced,
}

/// A bin for each class, and the range that new blocks are cut from.
#[repr(C)]
pub struct Bins {
    tag: Cell<u64>,
    bump: Gauge,
    end: Cell<usize>,
    cut_count: Gauge,
    /// The bins of the thread cache of the thread that these are active in.
    cache: Cell<*const Bins>,
    kind: Cell<Kind>,
    bins: [Bin; CLASS_COUNT],
    caps: [AtomicU32; CLASS_COUNT],
    granted: Gauge,
}

// SAFETY: see the table at the head of the module. What other threads than the active one read is
// atomic; bins pass from thread to thread by `Occupancy` or by the pool of threads, which both
// order it.
unsafe impl Sync for Bins {}

impl Bins {
    /// Empty bins. Their tag has flags that neither any word of this allocator nor zeroed memory
    /// has together, so no header equals it.
    pub const fn new(kind: Kind) -> Self {
        Self {
            tag: Cell::new(Header::tag(0, FREED | LARGE | ALIGNED).0),
            bump: Gauge::new(0),
            end: Cell::new(0),
            cut_count: Gauge::new(0),
            cache: Cell::new(core::ptr::null()),
            kind: Cell::new(kind),
            bins: [const { Bin::new() }; CLASS_COUNT],
            caps: [const { AtomicU32::new(0) }; CLASS_COUNT],
            granted: Gauge::new(0),
        }
    }

    /// Returns whose bins these are.
    pub fn kind(&self) -> Kind {
        self.kind.get()
    }

    /// Sets whose bins these are, and the header of the live blocks they hand out.
    pub fn open(&self, kind: Kind, tag: Header) {
        self.kind.set(kind);
        self.tag.set(tag.0);
    }

    /// Returns the header of a live block of class 0 from these bins.
    #[inline]
    pub fn tag(&self) -> Header {
        Header(self.tag.get())
    }

    /// Returns the bins of the thread cache beside these.
    #[inline(always)]
    pub fn cache(&self) -> *const Bins {
        self.cache.get()
    }

    /// Sets the thread cache beside these, for the thread they become active in.
    #[inline]
    pub fn set_cache(&self, cache: *const Bins) {
        self.cache.set(cache);
    }

    /// Returns the bin of a class.
    #[inline]
    pub fn bin(&self, class: Class) -> BinOf<'_> {
        let index = class.index();
        BinOf { bin: &self.bins[index], cap: &self.caps[index], granted: &self.granted }
    }

    #[inline(always)]
    fn fast_bin(&self, class: Class) -> &Bin {
        // SAFETY: a class is always below `CLASS_COUNT` (C1).
        unsafe { self.bins.get_unchecked(class.index()) }
    }

    /// Returns a live block of `class`: popped, else cut from the range; `NONE` if neither can be.
    #[inline(always)]
    pub fn alloc(&self, class: Class) -> Block {
        let bin = self.fast_bin(class);
        let block = bin.head.get();
        if block != NONE {
            bin.head.set(Raw.link(block));
            bin.note_taken(1);
            self.make_live(block, class);
            return block;
        }
        self.cut(class)
    }

    /// Cuts a live block of `class` from the range (F2); `NONE` if what is left is too short.
    #[inline(always)]
    pub fn cut(&self, class: Class) -> Block {
        let (bump, stride) = (self.bump.get(), class.stride_bytes());
        if self.end.get().wrapping_sub(bump) < stride {
            return NONE;
        }
        self.bump.set(bump + stride);
        self.cut_count.add(1);
        let block = bump + HEADER_BYTES;
        self.make_live(block, class);
        block
    }

    /// Makes a live block of memory that follows `start`, in a region that the caller cuts itself.
    pub fn cut_at(&self, start: usize, class: Class) -> Block {
        self.cut_count.add(1);
        let block = start + HEADER_BYTES;
        self.make_live(block, class);
        block
    }

    #[inline(always)]
    fn make_live(&self, block: Block, class: Class) {
        let header = self.tag.get() | Header(0).with_class(class.index()).0;
        Raw.header(block).store(header, Ordering::Relaxed);
    }

    /// Frees a block if its header is the one that live blocks of `class` have here (H2). This one
    /// compare finds double frees, wrong layouts, foreign pointers, stale requests and overruns.
    #[inline(always)]
    pub fn free(&self, block: Block, class: Class) -> Freed {
        let expected = self.tag.get() | Header(0).with_class(class.index()).0;
        let header = Raw.header(block);
        if header.load(Ordering::Relaxed) != expected {
            return Freed::Refused;
        }
        header.store(expected & !LIVE, Ordering::Relaxed);
        if self.fast_bin(class).push(block) { Freed::LookDue } else { Freed::Done }
    }

    /// Frees a block whose class only its header knows, and returns that class too.
    #[inline(always)]
    pub fn free_unsized(&self, block: Block) -> (Freed, Option<Class>) {
        let word = Raw.header(block);
        let header = Header(word.load(Ordering::Relaxed));
        let class = Class::from_index(header.class_index());
        let Some(known) = class.filter(|_| header.with_class(0) == self.tag()) else {
            return (Freed::Refused, None);
        };
        word.store(header.without(LIVE).0, Ordering::Relaxed);
        (if self.fast_bin(known).push(block) { Freed::LookDue } else { Freed::Done }, class)
    }

    /// Puts a free block into its bin, for a caller that has checked it. The block is not live, and
    /// no look at the bin is due for it.
    pub fn put(&self, block: Block, class: Class) {
        let bin = self.fast_bin(class);
        Raw.set_link(block, bin.head.get());
        bin.head.set(block);
        bin.note_taken(1_u32.wrapping_neg());
    }

    /// Returns whether the block's header is the one that live blocks of `class` have here.
    #[inline(always)]
    pub fn has_live(&self, block: Block, class: Class) -> bool {
        let expected = self.tag.get() | Header(0).with_class(class.index()).0;
        Raw.header(block).load(Ordering::Relaxed) == expected
    }

    /// Makes the block that was cut last longer or shorter, and rewrites its header (H2), if
    /// `block` is that one and the range has room (F2). The block is live here, of class `old`.
    pub fn stretch(&self, block: Block, old: Class, new: Class) -> bool {
        let start = block - HEADER_BYTES;
        if start + old.stride_bytes() != self.bump.get()
            || self.end.get() - start < new.stride_bytes()
        {
            return false;
        }
        self.bump.set(start + new.stride_bytes());
        self.make_live(block, new);
        true
    }

    /// Returns the address where the next block will be cut.
    pub fn bump(&self) -> usize {
        self.bump.get()
    }

    /// Returns how many bytes of the range are not cut yet.
    pub fn left_bytes(&self) -> usize {
        self.end.get() - self.bump.get()
    }

    /// Makes `bump..end` the range (F2).
    #[inline]
    pub fn set_region(&self, bump: usize, end: usize) {
        self.bump.set(bump);
        self.end.set(end);
    }

    /// Cuts a block that is free from the start and puts it into its bin (F1).
    pub fn cut_free(&self, class: Class) {
        let block = self.cut(class);
        if block != NONE {
            Raw.header(block).store(self.free_header(class).0, Ordering::Relaxed);
            self.put(block, class);
        }
    }

    /// Returns the header of a free block of `class` here.
    pub fn free_header(&self, class: Class) -> Header {
        self.tag().without(LIVE).with_class(class.index())
    }

    /// Counts `change` more blocks as cut, or fewer: free memory was divided anew.
    pub fn recount(&self, change: isize) {
        self.cut_count.add(change as usize);
    }

    /// Returns how many blocks were cut here since `reset`.
    pub fn cut_count(&self) -> usize {
        self.cut_count.get()
    }

    /// Returns how many blocks were freed here since `reset` (F4). Walks the bins.
    pub fn freed_count(&self) -> usize {
        let left: isize = self.bins.iter().map(Bin::room_left).sum();
        self.granted.get().wrapping_sub(left as usize)
    }

    /// Counts a block as freed that came into its bin by `put`.
    pub fn note_freed(&self) {
        self.granted.add(1);
    }

    /// Returns how many blocks are in the bins, and their bytes of stride.
    pub fn held(&self) -> (usize, usize) {
        let (mut blocks, mut bytes) = (0, 0);
        let mut add = |index: usize| {
            let Some(class) = Class::from_index(index) else { return };
            let count = self.fast_bin(class).count() as usize;
            blocks += count;
            bytes += count * class.stride_bytes();
        };
        // Most are empty, which is found out for several together: every request that ends is asked.
        let several = self.bins.chunks_exact(HELD_AT_ONCE);
        let rest = CLASS_COUNT - several.remainder().len()..CLASS_COUNT;
        for (number, bins) in several.enumerate() {
            if bins.iter().fold(0, |missing, bin| missing | bin.missing()) != 0 {
                (0..HELD_AT_ONCE).for_each(|index| add(number * HELD_AT_ONCE + index));
            }
        }
        rest.for_each(add);
        (blocks, bytes)
    }

    /// Forgets all blocks and the range.
    ///
    /// # Safety
    /// The caller has the bins alone: nobody reads figures either.
    #[inline]
    pub unsafe fn reset(&self) {
        for bin in &self.bins {
            // SAFETY: the caller's contract; every part of a bin may be changed behind a reference.
            unsafe { core::ptr::from_ref(bin).cast_mut().write(Bin::after_reset()) };
        }
        self.cut_count.set(0);
        self.granted.set(CLASS_COUNT * ROOM_AFTER_RESET as usize);
        self.set_region(0, 0);
    }

    /// Walks every list; fatal if a count or a header contradicts it (F1).
    pub fn check(&self) {
        for class in Class::all() {
            let bin = self.bin(class);
            let listed = Magazine { head: bin.head(), count: bin.count() };
            check_list("bin count", listed, self.free_header(class));
        }
    }
}

/// The outcome of a free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freed {
    /// The block is in its bin.
    Done,
    /// The block is in its bin, and the owner must look at that and renew its room.
    LookDue,
    /// The header is not that of a live block of these bins; nothing has changed.
    Refused,
}
