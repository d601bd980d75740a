//! Slabs: spans cut into persistent blocks of one class.
//!
//! - **A1** Of a slab's blocks, `counts.free` are on its own list, `counts.out` are out in magazines,
//!   in bins or in use, and the others are *uncut*: in its range, or in pages of the system that are
//!   marked as uncut. A block is of the page that its header is in.

use crate::base::os;
use crate::base::size_class::Class;
use crate::base::sync::{Lock, Ordering, step};
use crate::blocks::memory::Raw;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Header, Memory, NONE, linked};
use crate::lockfree::uncut::{FreePages, Hand, purge_free_pages};
use crate::pages::span::Span;
use crate::persistent::slab_lists::{Place, SlabLists, idle_blocks, is_worth_a_look, uncut_blocks};
use crate::persistent::slab_order::{in_order, is_worth_ordering};
use crate::persistent::slab_pages::SlabPages;
use crate::persistent::slab_purge::{free_pages, has_candidates, keep, purge};
use core::cell::Cell;

/// Most slabs that blocks are taken from at once, while there are few.
const MAX_SLABS_AT_ONCE: u32 = 4;
/// The part of what is wanted that is not few.
const ENOUGH_DIVISOR: u32 = 4;
/// At how many ticks a slab must be found unchanged before its free pages are purged.
const LOOKS_BEFORE_PURGE: u8 = 2;

/// The slabs of one class.
pub struct Slabs {
    lists: Lock<SlabLists>,
}

/// What `take_listed` took under the lock; the blocks are linked outside it, where page faults keep
/// nobody waiting.
struct Cut {
    recycled: Magazine,
    /// The first of the blocks that are cut.
    first: Block,
    count: u32,
}

/// Bytes that are purged with as much work as one block is looked at.
const PURGED_BYTES_PER_BLOCK: usize = 128;

/// What was looked through, and what came of it.
#[derive(Clone, Copy)]
pub struct Looked {
    /// Blocks that were looked at, and what purging costs beside that, in blocks.
    pub blocks: u32,
    /// Bytes that were purged.
    pub bytes: usize,
}

impl Slabs {
    /// Creates an empty list of slabs.
    pub const fn new() -> Self {
        Self { lists: Lock::new(SlabLists::new()) }
    }

    /// Takes up to `want` free blocks from slabs that have some. `Magazine::EMPTY`: none has. Passes a
    /// slab that was put in order, and became whole meanwhile, to `release`.
    pub fn take<'h>(
        &self,
        class: Class,
        want: u32,
        free_header: Header,
        release: impl Fn(&'h Span),
    ) -> Magazine {
        self.order_one(class, release);
        let mut taken = Magazine::EMPTY;
        for _ in 0..MAX_SLABS_AT_ONCE {
            if taken.count * ENOUGH_DIVISOR >= want {
                break;
            }
            let Some(cut) = self.take_listed(class, want - taken.count) else { break };
            taken = link(class, cut, taken, free_header);
        }
        taken
    }

    /// Takes up to `want` blocks of a new slab, and lists that.
    pub fn take_first(
        &self,
        class: Class,
        span: &Span,
        want: u32,
        free_header: Header,
    ) -> Magazine {
        let count = class.slab_count();
        let taken = want.min(count);
        span.counts.out.set(taken as u16);
        span.slab.uncut.set_range(taken..count);
        if taken < count {
            let mut lists = self.lists.lock();
            lists.touch(span);
            lists.relist(span, count, false);
            lists.idle_count += (count - taken) as usize;
            lists.let_go();
        }
        let first = pages_of(class, span).block(0);
        let cut = Cut { recycled: Magazine::EMPTY, first, count: taken };
        link(class, cut, Magazine::EMPTY, free_header)
    }

    /// If there is plenty, puts the list of the slab in order that blocks are taken from next, unless
    /// it is. Nobody else takes from it meanwhile.
    fn order_one<'h>(&self, class: Class, release: impl Fn(&'h Span)) {
        let count = class.slab_count();
        let mut lists = self.lists.lock();
        let next = lists.fullest().filter(|span| is_worth_ordering(span, count));
        let Some(span) = next.filter(|_| lists.has_plenty(count)) else { return };
        lists.touch(span);
        lists.take_in_hand(span, count);
        lists.let_go();
        drop(lists);
        let ordered = in_order(span, self.take_all(span));
        if self.put_back(class, span, ordered, &pages_of(class, span)) {
            release(span);
        }
    }

    /// So many blocks of a slab that is touched are out, which were not.
    fn note_taken(&self, lists: &mut SlabLists, class: Class, span: &Span, count: u32) {
        span.counts.out.set(span.counts.out.get() + count as u16);
        step();
        lists.idle_count -= count as usize;
        step();
        lists.taken_count += count as usize;
        span.slab.changed_at.set(lists.now);
        let is_settled = SlabLists::place(span) == Place::Listed { is_settled: true };
        lists.relist(span, class.slab_count(), is_settled);
        lists.let_go();
    }

    fn take_listed(&self, class: Class, want: u32) -> Option<Cut> {
        let mut lists = self.lists.lock();
        let span = lists.fullest()?;
        lists.touch(span);
        let pages = pages_of(class, span);
        let recycled = take_recycled(span, want);
        let fresh = span.slab.uncut.cut(want - recycled.count, &pages);
        let count = recycled.count + fresh.len() as u32;
        self.note_taken(&mut lists, class, span, count);
        let first = pages.block(fresh.start);
        Some(Cut { recycled, first, count: fresh.len() as u32 })
    }

    /// Takes blocks back, each with its slab, and passes slabs that are whole again to `release`.
    pub fn take_back<'h>(
        &self,
        class: Class,
        blocks: &[Option<(Block, &'h Span)>],
        release: impl Fn(&'h Span),
    ) {
        let count = class.slab_count();
        let mut left = blocks.iter().flatten().peekable();
        while left.peek().is_some() {
            let mut lists = self.lists.lock();
            let whole = left.find(|(block, span)| take_back_one(&mut lists, count, span, *block));
            drop(lists);
            if let Some((_, span)) = whole {
                release(span);
            }
        }
    }

    /// A tick has come.
    pub fn tick(&self) {
        self.lists.lock().tick();
    }

    /// Every slab to which anything has come back is to be looked through. Returns how many.
    pub fn unsettle(&self, class: Class) -> usize {
        self.lists.lock().unsettle(class.slab_count())
    }

    /// Looks through the slab that has been unchanged for longest, and purges its free pages: their
    /// blocks are uncut then. `at_once`: however long it has been. `None`: there is no such slab.
    pub fn purge_one<'h>(
        &self,
        class: Class,
        at_once: bool,
        release: impl Fn(&'h Span),
    ) -> Option<Looked> {
        let page_bytes = os::page_bytes();
        let span = self.take_in_hand(class, if at_once { 0 } else { LOOKS_BEFORE_PURGE })?;
        let pages = SlabPages::new(class, span.base(), span.end(), page_bytes);
        let looked = Looked { blocks: 0, bytes: 0 };
        let mut hand = SlabInHand {
            slabs: self,
            class,
            span,
            pages,
            looked: Cell::new(looked),
            is_whole: Cell::new(false),
        };
        if has_candidates(span, &hand.pages, &mut hand.looked.get_mut().blocks) {
            purge_free_pages(&hand, &span.slab.uncut);
        } else {
            hand.put_back(Magazine::EMPTY);
        }
        if hand.is_whole.get() {
            release(span);
        }
        Some(hand.looked.get())
    }

    fn take_in_hand<'h>(&self, class: Class, least_ticks: u8) -> Option<&'h Span> {
        let mut lists = self.lists.lock();
        let span = lists.oldest(least_ticks)?;
        lists.touch(span);
        lists.take_in_hand(span, class.slab_count());
        span.counts.returned.set(0);
        lists.let_go();
        Some(span)
    }

    /// Takes all that is on the list of a slab in hand.
    fn take_all(&self, span: &Span) -> Magazine {
        let mut lists = self.lists.lock();
        lists.touch(span);
        let taken = take_recycled(span, u32::MAX);
        lists.let_go();
        taken
    }

    /// Puts a slab that was in hand back, with what is left of its list behind what has come back
    /// meanwhile. Returns whether it is whole.
    fn put_back(&self, class: Class, span: &Span, kept: Magazine, pages: &SlabPages) -> bool {
        let count = class.slab_count();
        let uncut_count = uncut_blocks(span, pages);
        let mut lists = self.lists.lock();
        lists.touch(span);
        if SlabLists::place(span) != Place::InHand {
            // A signal handler has forked meanwhile, and this is the child.
            lists.idle_count -= idle_blocks(span, count);
        }
        if !kept.is_empty() {
            match linked(&Raw, span.free()).last() {
                Some(last) => Raw.set_link(last, kept.head),
                None => span.set_free(kept.head),
            }
            step();
        }
        let free_count = u32::from(span.counts.free.get()) + kept.count;
        span.counts.free.set(free_count as u16);
        step();
        span.counts.out.set((count - free_count - uncut_count) as u16);
        step();
        let is_whole = lists.relist(span, count, !is_worth_a_look(span));
        if !is_whole {
            lists.idle_count += idle_blocks(span, count);
        }
        lists.let_go();
        is_whole
    }

    /// Makes the lists whole in a process that was just forked (A3).
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self, class: Class) {
        let page_bytes = os::page_bytes();
        // SAFETY: the caller's contract.
        unsafe {
            self.lists.recover(|lists, is_torn| lists.repair(class, page_bytes, is_torn));
        }
    }

    /// Returns how many blocks lie in slabs.
    pub fn idle_count(&self) -> usize {
        self.lists.lock().idle_count
    }

    /// Walks the lists; fatal if a slab contradicts A1, A2 or A7.
    pub fn check(&self, class: Class) {
        let page_bytes = os::page_bytes();
        self.lists.lock().check(class, page_bytes);
    }
}

/// A slab that is being looked through.
struct SlabInHand<'h> {
    slabs: &'h Slabs,
    class: Class,
    span: &'h Span,
    pages: SlabPages,
    looked: Cell<Looked>,
    /// Whether all of its blocks were back when it was put back.
    is_whole: Cell<bool>,
}

impl Hand for SlabInHand<'_> {
    type List = Magazine;

    fn take_list(&self) -> Magazine {
        let listed = self.slabs.take_all(self.span);
        self.note(listed.count, 0);
        listed
    }

    fn free_pages(&self, list: &mut Magazine) -> FreePages {
        let free = free_pages(self.span, &self.pages, list.head);
        *list = keep(list.head, |block| free.uncut >> self.pages.page_of(block) & 1 == 0);
        free
    }

    fn purge(&self, pages: u128) {
        // SAFETY: these are whole pages of the slab, and no block that is partly in one is out or
        // listed with its header or its link in it (A6).
        let bytes = unsafe { purge(&self.pages, pages) };
        self.note((bytes / PURGED_BYTES_PER_BLOCK) as u32, bytes);
    }

    fn put_back(&self, list: Magazine) {
        self.is_whole.set(self.slabs.put_back(self.class, self.span, list, &self.pages));
    }
}

impl SlabInHand<'_> {
    fn note(&self, blocks: u32, bytes: usize) {
        let before = self.looked.get();
        self.looked.set(Looked { blocks: before.blocks + blocks, bytes: before.bytes + bytes });
    }
}

fn pages_of(class: Class, span: &Span) -> SlabPages {
    SlabPages::new(class, span.base(), span.end(), os::page_bytes())
}

/// Takes up to `want` blocks off a slab's own list.
fn take_recycled(span: &Span, want: u32) -> Magazine {
    let (head, available) = (span.free(), u32::from(span.counts.free.get()));
    if available <= want {
        span.set_free(NONE);
        step();
        span.counts.free.set(0);
        step();
        return Magazine { head, count: available };
    }
    let last = Raw.last_of(head, want);
    split(span, last, want);
    Raw.set_link(last, NONE);
    Magazine { head, count: want }
}

/// Takes the first `count` blocks off a slab's own list, up to `last`, which stays linked to the
/// others. Returns the first.
fn split(span: &Span, last: Block, count: u32) -> Block {
    let first = span.free();
    span.set_free(Raw.link(last));
    step();
    span.counts.free.set(span.counts.free.get() - count as u16);
    step();
    first
}

/// Writes the headers and links of the blocks just cut, in address order, before the recycled ones
/// and those that were `taken` before.
fn link(class: Class, cut: Cut, taken: Magazine, free_header: Header) -> Magazine {
    let stride = class.stride_bytes();
    let mut head = cut.recycled.head;
    if taken.count > 0 {
        match linked(&Raw, head).last() {
            Some(last) => Raw.set_link(last, taken.head),
            None => head = taken.head,
        }
    }
    for number in (0..cut.count as usize).rev() {
        let block = cut.first + number * stride;
        Raw.header(block).store(free_header.0, Ordering::Relaxed);
        Raw.set_link(block, head);
        head = block;
    }
    Magazine { head, count: cut.recycled.count + cut.count + taken.count }
}

/// Puts a block on the list of its slab, which has `count`. Returns whether all are back: the slab
/// is on no list then.
#[inline]
fn take_back_one(lists: &mut SlabLists, count: u32, span: &Span, block: Block) -> bool {
    lists.touch(span);
    Raw.set_link(block, span.free());
    step();
    span.set_free(block);
    step();
    span.counts.free.set(span.counts.free.get() + 1);
    span.counts.returned.set(span.counts.returned.get() + 1);
    span.counts.out.set(span.counts.out.get() - 1);
    step();
    let is_settled = match SlabLists::place(span) {
        Place::InHand => {
            lists.let_go();
            return false;
        }
        Place::Listed { is_settled } => is_settled && !is_worth_a_look(span),
        Place::None => false,
    };
    lists.idle_count += 1;
    let is_whole = lists.relist(span, count, is_settled);
    if is_whole {
        lists.idle_count -= count as usize;
    }
    lists.let_go();
    is_whole
}
