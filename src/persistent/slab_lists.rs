//! The lists that the slabs of one class are on.
//!
//! - **A2** A slab is on one list while it has a block to give, or while it is in hand: being
//!   looked through, or put in order, by one thread. When all of its blocks are back it is nobody's,
//!   and its pages go.
//! - **A3** Every list is whole from its first slab on at every step, and all else but `touched`
//!   follows from that, so a process that is forked meanwhile can rebuild the rest.
//! - **A7** A slab with blocks to give is on the list for how full it is, and *settled* while too
//!   little has come back for another look. Those that are not settled are listed with the one that
//!   was changed last at the front.

use crate::base::fatal;
use crate::base::size_class::Class;
use crate::base::sync::step;
use crate::blocks::memory::Raw;
use crate::lockfree::header::linked;
use crate::lockfree::uncut::Pages;
use crate::pages::span::{Span, SpanKind};
use crate::persistent::slab_pages::{SlabPages, runs_in};
use core::ptr::null;

/// By how full they are, slabs with blocks to give are on so many lists: the fullest give first.
const FULLNESS_COUNT: usize = 4;
/// The list of the slabs in hand.
const IN_HAND: usize = 2 * FULLNESS_COUNT;
const LIST_COUNT: usize = IN_HAND + 1;
/// What is taken between two ticks is much if it is this part of what there is: all of it would be
/// needed before long.
const MUCH_DIVISOR: usize = 16;
/// How many slabs' worth of blocks are plenty: many were freed.
const PLENTY_SLABS: usize = 64;
/// What has come back to a settled slab must be this part of what it has to give, or of what is out:
/// when little is out, a few blocks more make many pages free.
const WORTH_A_LOOK_DIVISOR: u32 = 8;

#[derive(Clone, Copy)]
struct List {
    first: *const Span,
    last: *const Span,
}

/// The slabs of one class that are on a list.
pub struct SlabLists {
    lists: [List; LIST_COUNT],
    /// Blocks that the slabs have to give, but for those in hand: a figure for `stats`.
    pub idle_count: usize,
    /// Blocks that were taken since the last tick.
    pub taken_count: usize,
    /// The slab being changed.
    touched: *const Span,
    /// The low bits of the number of ticks that have come while little was taken.
    pub now: u8,
}

// SAFETY: the pointers are to descriptors (M1), whose lists the lock of the class guards.
unsafe impl Send for SlabLists {}

/// The number of a list in a descriptor, where 0 is none.
fn name_of(list: usize) -> u8 {
    list as u8 + 1
}

impl SlabLists {
    /// Empty lists.
    pub const fn new() -> Self {
        Self {
            lists: [List { first: null(), last: null() }; LIST_COUNT],
            idle_count: 0,
            taken_count: 0,
            touched: null(),
            now: 0,
        }
    }

    /// A slab is about to be changed.
    pub fn touch(&mut self, span: &Span) {
        self.touched = span;
        step();
    }

    /// No slab is.
    pub fn let_go(&mut self) {
        self.touched = null();
    }

    /// Returns the fullest slab that has a block to give, one that is not settled if there is one:
    /// its pages are there.
    pub fn fullest<'s>(&self) -> Option<&'s Span> {
        let first = self.lists[..IN_HAND].iter().find(|list| !list.first.is_null())?.first;
        // SAFETY: a descriptor (M1): a slab of this class, on a list that the lock guards.
        unsafe { first.as_ref() }
    }

    /// Whether there is plenty of blocks, where a slab has so many.
    pub fn has_plenty(&self, count: u32) -> bool {
        self.idle_count >= PLENTY_SLABS * count as usize
    }

    /// A tick has come.
    pub fn tick(&mut self) {
        if core::mem::take(&mut self.taken_count) * MUCH_DIVISOR <= self.idle_count {
            self.now = self.now.wrapping_add(1);
        }
    }

    /// Returns, of all slabs that are not settled, one that was changed at least so many ticks ago:
    /// of those that are alike, the oldest.
    pub fn oldest<'s>(&self, least_ticks: u8) -> Option<&'s Span> {
        self.lists[..IN_HAND].iter().step_by(2).rev().find_map(|list| {
            // SAFETY: as in `fullest`.
            let span = unsafe { list.last.as_ref()? };
            (self.now.wrapping_sub(span.slab.changed_at.get()) >= least_ticks).then_some(span)
        })
    }

    /// No slab to which anything has come back is settled any more. Returns how many slabs are not.
    pub fn unsettle(&mut self, count: u32) -> usize {
        for list in (1..IN_HAND).step_by(2) {
            let mut at = self.lists[list].first;
            // SAFETY: as in `fullest`.
            while let Some(span) = unsafe { at.as_ref() } {
                at = span.next.get();
                if span.counts.returned.get() > 0 {
                    self.touch(span);
                    self.relist(span, count, false);
                    self.let_go();
                }
            }
        }
        self.lists[..IN_HAND].iter().step_by(2).map(|list| self.walk(list).count()).sum()
    }

    /// Takes a slab in hand, which is touched.
    pub fn take_in_hand(&mut self, span: &Span, count: u32) {
        self.idle_count -= idle_blocks(span, count);
        self.move_to(span, IN_HAND);
    }

    /// Lists a slab, which is touched and of so many blocks, where it belongs after blocks of it were
    /// taken, or came back. Returns whether all are back: it is on no list then.
    #[inline]
    pub fn relist(&mut self, span: &Span, count: u32, is_settled: bool) -> bool {
        let out = u32::from(span.counts.out.get());
        if out == 0 || out == count {
            self.remove(span);
            return out == 0;
        }
        let idle = (count - out) as usize * FULLNESS_COUNT;
        let fullness = (1..FULLNESS_COUNT).filter(|part| idle >= part * count as usize).count();
        let list = 2 * fullness + usize::from(is_settled);
        if span.slab.list.get() != name_of(list) {
            if name_of(list) > span.slab.list.get() {
                // It has more on its own list than it had there.
                span.slab.is_ordered.set(false);
            }
            span.slab.changed_at.set(self.now);
            self.move_to(span, list);
        }
        false
    }

    /// Whether a slab is on a list, and whether it is settled there.
    pub fn place(span: &Span) -> Place {
        match usize::from(span.slab.list.get()) {
            0 => Place::None,
            name if name == usize::from(name_of(IN_HAND)) => Place::InHand,
            name => Place::Listed { is_settled: (name - 1) % 2 == 1 },
        }
    }

    fn move_to(&mut self, span: &Span, list: usize) {
        self.remove(span);
        self.push(span, list);
    }

    fn push(&mut self, span: &Span, list: usize) {
        let second = self.lists[list].first;
        span.previous.set(null());
        step();
        span.next.set(second);
        step();
        self.lists[list].first = span;
        step();
        // SAFETY: null, or a descriptor (M1), on the list that the lock guards.
        match unsafe { second.as_ref() } {
            Some(second) => second.previous.set(span),
            None => self.lists[list].last = span,
        }
        step();
        span.slab.list.set(name_of(list));
        step();
    }

    /// Takes a slab, which is touched, off its list, if it is on one.
    fn remove(&mut self, span: &Span) {
        let Some(list) = usize::from(span.slab.list.get()).checked_sub(1) else { return };
        let (previous, next) = (span.previous.get(), span.next.get());
        // SAFETY: null, or a neighbour on the list, which the lock guards.
        match unsafe { previous.as_ref() } {
            Some(previous) => previous.next.set(next),
            None => self.lists[list].first = next,
        }
        step();
        // SAFETY: as above.
        match unsafe { next.as_ref() } {
            Some(next) => next.previous.set(previous),
            None => self.lists[list].last = previous,
        }
        step();
        span.slab.list.set(0);
        step();
    }

    fn walk<'s>(&self, list: &List) -> impl Iterator<Item = &'s Span> + use<'s> {
        let mut at = list.first;
        core::iter::from_fn(move || {
            // SAFETY: null, or a descriptor (M1) on a list that the lock guards.
            let span = unsafe { at.as_ref()? };
            at = span.next.get();
            Some(span)
        })
    }

    /// Rebuilds what follows from the lists (A3), in a process that was just forked. `is_torn`: a
    /// thread that is not there was changing them. Slabs that such threads had in hand have lost
    /// what those had.
    pub fn repair(&mut self, class: Class, page_bytes: usize, is_torn: bool) {
        if is_torn {
            self.repair_lists(class, page_bytes);
        }
        // SAFETY: null, or a descriptor (M1) on a list that the lock guards.
        while let Some(span) = unsafe { self.lists[IN_HAND].first.as_ref() } {
            self.recover_slab(span, class, page_bytes);
        }
    }

    fn repair_lists(&mut self, class: Class, page_bytes: usize) {
        let count = class.slab_count();
        // SAFETY: null, or the descriptor (M1) of a slab that the thread with the lock was changing.
        let touched = unsafe { self.touched.as_ref() };
        if let Some(touched) = touched {
            touched.slab.list.set(0);
        }
        self.idle_count = 0;
        for list in 0..LIST_COUNT {
            let (mut previous, mut at) = (null(), self.lists[list].first);
            // SAFETY: as in `repair`.
            while let Some(span) = unsafe { at.as_ref() } {
                span.previous.set(previous);
                span.slab.list.set(name_of(list));
                if list != IN_HAND {
                    self.idle_count += idle_blocks(span, count);
                }
                previous = at;
                at = span.next.get();
            }
            self.lists[list].last = previous;
        }
        if let Some(touched) = touched {
            if matches!(Self::place(touched), Place::Listed { .. }) {
                self.idle_count -= idle_blocks(touched, count);
            }
            self.recover_slab(touched, class, page_bytes);
        }
        self.touched = null();
    }

    /// Counts anew what a slab has, and lists it where it belongs. It is not in `idle_count`.
    fn recover_slab(&mut self, span: &Span, class: Class, page_bytes: usize) {
        recount(span, class, page_bytes);
        if !self.relist(span, class.slab_count(), false) {
            self.idle_count += idle_blocks(span, class.slab_count());
        }
    }

    /// Walks the lists; fatal if a slab contradicts A1, A2 or A7.
    pub fn check(&self, class: Class, page_bytes: usize) {
        let mut idle = 0;
        for (number, list) in self.lists.iter().enumerate() {
            let mut previous: *const Span = null();
            for span in self.walk(list) {
                let expected = (name_of(number), previous.addr());
                let found = (span.slab.list.get(), span.previous.get().addr());
                if found != expected {
                    fatal::broken("neighbour of a slab", found.1, expected.1);
                }
                check_slab(span, class, page_bytes, number == IN_HAND);
                if number != IN_HAND {
                    idle += idle_blocks(span, class.slab_count());
                }
                previous = span;
            }
            if previous != list.last {
                fatal::broken("last slab of a list", previous.addr(), list.last.addr());
            }
        }
        if idle != self.idle_count {
            fatal::broken("idle blocks of a class", idle, self.idle_count);
        }
    }
}

/// Where a slab is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Nowhere: it has nothing to give.
    None,
    /// With those that have.
    Listed {
        /// Whether it has been looked through, and too little has come back since.
        is_settled: bool,
    },
    /// A thread looks through it, or puts its list in order.
    InHand,
}

/// Whether so much has come back to a settled slab that another look is worth while.
pub fn is_worth_a_look(span: &Span) -> bool {
    let returned = u32::from(span.counts.returned.get());
    let (free, out) = (u32::from(span.counts.free.get()), u32::from(span.counts.out.get()));
    returned > 0 && returned * WORTH_A_LOOK_DIVISOR >= free.min(out)
}

/// Returns how many of its `count` blocks a slab has to give.
pub fn idle_blocks(span: &Span, count: u32) -> usize {
    count as usize - usize::from(span.counts.out.get())
}

/// Returns how many blocks of a slab were not cut, or are to be cut anew.
pub fn uncut_blocks(span: &Span, pages: &SlabPages) -> u32 {
    let of_pages: usize =
        runs_in(span.slab.uncut.pages()).map(|run| pages.blocks_in(run).len()).sum();
    (of_pages + span.slab.uncut.range().len()) as u32
}

/// Counts the blocks of a slab that are on its own list, and says that all others are out that were
/// cut (A1).
fn recount(span: &Span, class: Class, page_bytes: usize) {
    let pages = SlabPages::new(class, span.base(), span.end(), page_bytes);
    let free_count = linked(&Raw, span.free()).count() as u32;
    span.counts.free.set(free_count as u16);
    span.counts.out.set((class.slab_count() - free_count - uncut_blocks(span, &pages)) as u16);
}

fn check_slab(span: &Span, class: Class, page_bytes: usize, is_in_hand: bool) {
    if span.kind() != SpanKind::Slab || span.class_index() != class.index() {
        fatal::broken("class of a listed slab", span.class_index(), class.index());
    }
    let free_count = linked(&Raw, span.free()).count();
    if free_count != usize::from(span.counts.free.get()) {
        fatal::broken("free blocks of a slab", free_count, span.counts.free.get().into());
    }
    if is_in_hand {
        return;
    }
    let pages = SlabPages::new(class, span.base(), span.end(), page_bytes);
    for block in linked(&Raw, span.free()) {
        if span.slab.uncut.has(pages.number(block), &pages) {
            fatal::broken("free block of an uncut page", block, pages.page_of(block));
        }
    }
    let idle = free_count + uncut_blocks(span, &pages) as usize;
    let expected = idle_blocks(span, class.slab_count());
    if idle != expected || idle == 0 || span.counts.out.get() == 0 {
        fatal::broken("blocks that a slab has to give", idle, expected);
    }
}
