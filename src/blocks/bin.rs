//! A bin: a thread's or a lane's list of free blocks of one class. The table of its fields and the
//! invariants are in `bins`.

use super::memory::Raw;
use crate::base::sync::{AtomicU32, Gauge, Ordering};
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Memory, NONE};
use core::cell::Cell;

/// A LIFO list of free blocks of one class, and how many frees it takes until its owner looks at
/// it. How many blocks there are follows from two numbers (F3), so that an allocation and a free
/// change one number each, and every so many frees take the slow path, however they alternate with
/// allocations.
#[repr(C)]
pub(super) struct Bin {
    pub(super) head: Cell<Block>,
    /// How many more frees take the fast path.
    room: AtomicU32,
    /// What is missing to 0, with the room and the number of blocks: one more when a block is
    /// taken.
    taken: AtomicU32,
}

const _: () = assert!(size_of::<Bin>() == 16, "a bin is found by a shift of its class's index");
const _: () = assert!(NONE == 0, "an empty list is zeros");

/// Frees that a bin takes before its first look, after all blocks were forgotten.
pub(super) const ROOM_AFTER_RESET: u32 = 256;

impl Bin {
    /// Without blocks (F3).
    pub(super) const fn after_reset() -> Self {
        Self {
            head: Cell::new(NONE),
            room: AtomicU32::new(ROOM_AFTER_RESET),
            taken: AtomicU32::new(ROOM_AFTER_RESET.wrapping_neg()),
        }
    }

    pub(super) const fn new() -> Self {
        Self { head: Cell::new(NONE), room: AtomicU32::new(0), taken: AtomicU32::new(0) }
    }

    /// Puts in a block that is no longer live; returns whether the owner must look at the bin, and
    /// renew its room.
    #[inline(always)]
    pub(super) fn push(&self, block: Block) -> bool {
        Raw.set_link(block, self.head.get());
        self.head.set(block);
        let (left, is_due) = self.room.load(Ordering::Relaxed).overflowing_sub(1);
        self.room.store(left, Ordering::Relaxed);
        is_due
    }

    /// What is missing to 0 with the blocks that are there (F3): 0 if there are none.
    #[inline(always)]
    pub(super) fn missing(&self) -> u32 {
        self.room.load(Ordering::Relaxed).wrapping_add(self.taken.load(Ordering::Relaxed))
    }

    /// Returns how many blocks there are.
    #[inline(always)]
    pub(super) fn count(&self) -> u32 {
        (self.missing().wrapping_neg() as i32).max(0) as u32
    }

    /// How many more frees take the fast path; -1: the one that did not was counted.
    pub(super) fn room_left(&self) -> isize {
        self.room.load(Ordering::Relaxed) as i32 as isize
    }

    #[inline(always)]
    pub(super) fn note_taken(&self, count: u32) {
        let taken = self.taken.load(Ordering::Relaxed).wrapping_add(count);
        self.taken.store(taken, Ordering::Relaxed);
    }
}

/// A bin with what is not needed on the fast path.
#[derive(Clone, Copy)]
pub struct BinOf<'b> {
    pub(super) bin: &'b Bin,
    pub(super) cap: &'b AtomicU32,
    pub(super) granted: &'b Gauge,
}

/// A room is below this, so that one that is used up, -1, can be told from it.
const MAX_ROOM: u32 = i32::MAX as u32;

impl BinOf<'_> {
    /// Returns how many blocks there are. Read by another thread, it may be off while the owner
    /// works; it is never negative.
    #[inline]
    pub fn count(self) -> u32 {
        self.bin.count()
    }

    /// Returns the cap, by which its owner tells whether blocks leave the bin when it looks at it.
    #[inline]
    pub fn cap(self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Changes the cap.
    pub fn set_cap(self, cap: u32) {
        self.cap.store(cap, Ordering::Relaxed);
    }

    /// Makes the owner look at the bin again after `room` more frees.
    pub fn renew(self, room: u32) {
        let room = room.min(MAX_ROOM);
        let count = self.count();
        self.granted.add((room as usize).wrapping_sub(self.bin.room_left() as usize));
        self.settle(count, room);
    }

    fn settle(self, count: u32, room: u32) {
        self.bin.room.store(room, Ordering::Relaxed);
        self.bin.taken.store(count.wrapping_add(room).wrapping_neg(), Ordering::Relaxed);
    }

    /// Returns what a later look is compared with: it differs if blocks came or went meanwhile.
    pub fn look(self) -> Look {
        let (room, taken) = (&self.bin.room, &self.bin.taken);
        Look(self.head(), room.load(Ordering::Relaxed), taken.load(Ordering::Relaxed))
    }

    /// Returns the block that would be allocated next.
    pub fn head(self) -> Block {
        self.bin.head.get()
    }

    /// Puts in a block that is no longer live; returns whether the owner must look at the bin, and
    /// renew its room.
    pub fn push(self, block: Block) -> bool {
        self.bin.push(block)
    }

    /// Takes all blocks.
    pub fn take_all(self) -> Magazine {
        let magazine = Magazine { head: self.head(), count: self.count() };
        self.bin.head.set(NONE);
        self.bin.note_taken(magazine.count);
        magazine
    }

    /// Takes all blocks but the `kept` latest. The bin has that many, at least one.
    pub fn take_rest(self, kept: u32) -> Magazine {
        let last = (1..kept).fold(self.head(), |block, _| Raw.link(block));
        let rest = Magazine { head: Raw.link(last), count: self.count() - kept };
        Raw.set_link(last, NONE);
        self.bin.note_taken(rest.count);
        rest
    }

    /// Takes the `count` latest blocks; returns the first and the last of them. The bin has more.
    pub fn take_top(self, count: u32) -> (Block, Block) {
        let first = self.head();
        let last = Raw.last_of(first, count);
        self.bin.head.set(Raw.link(last));
        self.bin.note_taken(count);
        (first, last)
    }

    /// Fills an empty bin.
    pub fn fill(self, magazine: Magazine) {
        self.bin.head.set(magazine.head);
        self.settle(magazine.count, self.bin.room.load(Ordering::Relaxed));
    }
}

/// What a bin looked like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Look(Block, u32, u32);
