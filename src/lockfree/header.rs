//! The block header: one 64-bit word just before the payload, `flags : 8 | class : 8 | id : 48`
//! from the top.
//!
//! - **H1** Every access to a header is a relaxed atomic load or store (plain moves on the
//!   machine), because a closer or a sweeper on another thread may read it. What is more than that
//!   is in `lifetime` and `hole`; besides, `TRACED` is set by a release, after the record.
//! - **H2** The class in a live header is `Class::of` the size that its `Layout` has now; a
//!   `realloc` in place that changes the class rewrites it.
//! - **H3** Freeing clears `LIVE`. A stray's free first sets `FREED`; the drain clears `LIVE`.
//! - **H4** An `ALIGNED` word is marked `FREED` when its block is freed.
//!
//! This file is compiled by `loom-tests`: it has no statics and reaches memory through `Memory`.

use crate::base::sync::AtomicU64;

/// The block is handed out.
pub const LIVE: u64 = 1 << 56;
/// The block is on its way back from outside the request it belongs to.
pub const FREED: u64 = 1 << 57;
/// A free from outside that came too late for its request's list has let go of the block.
pub const LATE: u64 = 1 << 58;
/// The block has a span or a mapping of its own, and its descriptor knows whose it is.
pub const LARGE: u64 = 1 << 59;
/// Not a header: the word before an over-aligned payload, which leads back to the header.
pub const ALIGNED: u64 = 1 << 60;

/// The block is in a bin of a lane that is being swept.
pub const SWEPT: u64 = 1 << 61;
/// The block is longer than its layout, by a `Trace`.
pub const TRACED: u64 = 1 << 62;
/// The block is persistent because a request's block was asked for while no request was open.
pub const EARLY: u64 = 1 << 63;

/// The flags that only live blocks have.
pub const OF_LIVE: u64 = LIVE | FREED | LATE | TRACED | EARLY;
/// The flags that a block keeps when it is adopted.
pub const OF_ADOPTED: u64 = FREED | TRACED;

/// How many bits of a header the id takes.
pub const ID_BITS: u32 = 48;
/// The bits of a header that the id takes.
pub const ID_MASK: u64 = (1 << ID_BITS) - 1;
const CLASS_SHIFT: u32 = ID_BITS;
const CLASS_MASK: u64 = 0xff << CLASS_SHIFT;
const ALL_FLAGS: u64 = LIVE | FREED | LATE | LARGE | ALIGNED | SWEPT | TRACED | EARLY;

const _: () = assert!(
    ALL_FLAGS == !(CLASS_MASK | ID_MASK),
    "flags, class and id are the whole word and do not overlap"
);

/// Makes the class field of an `ALIGNED` word a function of the distance, so that a word in a
/// payload hardly ever passes for one by chance.
const ALIGNED_CHECK_MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A header's 64 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header(pub u64);

impl Header {
    /// The header of a block of class 0 with this id and these flags: a *tag*.
    #[inline]
    pub const fn tag(id: u64, flags: u64) -> Self {
        Self((id & ID_MASK) | flags)
    }

    /// Returns the header with this class instead.
    #[inline(always)]
    pub const fn with_class(self, class: usize) -> Self {
        Self((self.0 & !CLASS_MASK) | ((class as u64) << CLASS_SHIFT))
    }

    /// Returns the header without these flags.
    #[inline(always)]
    pub const fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    /// Returns the header with these flags too.
    #[inline]
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// Returns whether any of these flags is set.
    #[inline]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// Returns the id field.
    #[inline]
    pub const fn id(self) -> u64 {
        self.0 & ID_MASK
    }

    /// Returns the class field, which may not be a class if the word was overwritten.
    #[inline]
    pub const fn class_index(self) -> usize {
        ((self.0 & CLASS_MASK) >> CLASS_SHIFT) as usize
    }

    /// The word before an over-aligned payload that begins `distance` bytes after its block's.
    pub const fn aligned(distance: usize) -> Self {
        Self(ALIGNED | Self::aligned_check(distance) | distance as u64)
    }

    /// Returns how far back the block's payload is, if this is an intact `ALIGNED` word.
    pub fn aligned_distance(self) -> Option<usize> {
        let distance = self.id() as usize;
        (distance != 0 && self.without(FREED) == Self::aligned(distance)).then_some(distance)
    }

    const fn aligned_check(distance: usize) -> u64 {
        (ALIGNED_CHECK_MULTIPLIER.wrapping_mul(distance as u64) >> 8) & CLASS_MASK
    }
}

impl core::fmt::Debug for Header {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "id {:#x} class {}", self.id(), self.class_index())?;
        let names = [
            (LIVE, " live"),
            (FREED, " freed"),
            (LATE, " late"),
            (LARGE, " large"),
            (ALIGNED, " aligned"),
            (SWEPT, " swept"),
            (TRACED, " traced"),
            (EARLY, " early"),
        ];
        names.iter().filter(|(flag, _)| self.has(*flag)).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// The address of a payload; 0 means no block. Payloads are 16-byte aligned and below 2^48.
pub type Block = usize;

/// No block.
pub const NONE: Block = 0;

/// How the files that loom checks reach the words of a block. The heap's implementation is raw
/// memory, a model's an array of loom types.
pub trait Memory {
    /// Returns the header of `block`.
    fn header(&self, block: Block) -> &AtomicU64;
    /// Returns the first payload word of a free block: the next block in its list.
    fn link(&self, block: Block) -> Block;
    /// Sets the first payload word of a free block.
    fn set_link(&self, block: Block, next: Block);
    /// Returns the last of the first `count` blocks of a list, which has as many, and at least one.
    fn last_of(&self, first: Block, count: u32) -> Block {
        (1..count).fold(first, |block, _| self.link(block))
    }
}

/// The blocks of a list from this one on. Each link is read before its block is handed out, so the
/// caller may overwrite it.
pub fn linked<'m, M: Memory>(
    memory: &'m M,
    first: Block,
) -> impl Iterator<Item = Block> + use<'m, M> {
    let mut next = first;
    core::iter::from_fn(move || {
        (next != NONE).then(|| {
            let block = next;
            next = memory.link(block);
            block
        })
    })
}
