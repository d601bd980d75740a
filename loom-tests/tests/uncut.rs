//! `uncut`: pages of a slab that go, while others take its blocks, bring them back, or free one
//! twice. The lists, which a lock guards, are the model's own: one list, and whether the slab is in
//! hand.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU32, Lock, Ordering, fence};
use rqmalloc_loom_tests::lockfree::header::{Block, Header, LIVE, Memory, NONE, linked};
use rqmalloc_loom_tests::lockfree::uncut::{FreePages, Hand, Pages, Uncut, purge_free_pages};
use rqmalloc_loom_tests::model::{Blocks, explore};
use std::ops::Range;

const BLOCK_COUNT: u32 = 3;

/// The first page has two blocks, the second has one.
struct Geometry;

impl Geometry {
    fn mask(numbers: impl Iterator<Item = u32>) -> u128 {
        let full =
            |page: &usize, count: u32| Geometry.blocks_in(*page..*page + 1).len() as u32 == count;
        let mut counts = [0; 2];
        numbers.for_each(|number| counts[Geometry.page_of_number(number)] += 1);
        (0..2).filter(|page| full(page, counts[*page])).map(|page| 1 << page).sum()
    }
}

impl Pages for Geometry {
    fn page_of_number(&self, number: u32) -> usize {
        number as usize / 2
    }

    fn blocks_in(&self, pages: Range<usize>) -> Range<u32> {
        let first = |page: usize| BLOCK_COUNT.min(2 * page as u32);
        first(pages.start)..first(pages.end)
    }
}

/// What the lock of the class guards.
struct Listed {
    head: Block,
    out_count: u32,
    is_in_hand: bool,
    /// All blocks were back, and the slab went.
    is_gone: bool,
}

impl Listed {
    /// Whether the slab is whole and nobody's; then it is on no list any more.
    fn goes(&mut self) -> bool {
        assert!(!self.is_gone, "A2: it goes once");
        self.is_gone = self.out_count == 0 && !self.is_in_hand;
        self.is_gone
    }
}

struct Slab {
    uncut: Uncut,
    listed: Lock<Listed>,
    blocks: Blocks,
}

/// A free block, and one in use.
const FREE: Header = Header::tag(0xabc, 0);
const USED: Header = Header::tag(0xabc, LIVE);

impl Slab {
    /// Those `free` are on the list, those of the range were never cut, all others are out.
    fn new(free: &[u32], range: Range<u32>) -> Arc<Self> {
        let out_count = BLOCK_COUNT - free.len() as u32 - range.len() as u32;
        let listed = Listed { head: NONE, out_count, is_in_hand: false, is_gone: false };
        let slab = Self {
            // As an earlier slab has left it.
            uncut: Uncut {
                range: AtomicU32::new(u32::MAX),
                pages: [0, 1, 2].map(|_| AtomicU32::new(u32::MAX)),
            },
            listed: Lock::new(listed),
            blocks: Blocks::new(BLOCK_COUNT as usize, FREE),
        };
        slab.uncut.open();
        slab.uncut.set_range(range.clone());
        for number in range {
            slab.blocks.header(slab.block(number)).store(0, Ordering::Relaxed);
        }
        for &number in free {
            let block = slab.block(number);
            let mut listed = slab.listed.lock();
            slab.blocks.set_link(block, listed.head);
            listed.head = block;
        }
        Arc::new(slab)
    }

    fn block(&self, number: u32) -> Block {
        self.blocks.block(number as usize)
    }

    fn number(&self, block: Block) -> u32 {
        self.blocks.index(block) as u32
    }

    /// Takes a block and uses it, unless the slab has none to give or is in hand.
    fn take(&self) -> Option<u32> {
        let mut listed = self.listed.lock();
        if listed.is_in_hand || listed.is_gone {
            return None;
        }
        let number = if listed.head == NONE {
            let number = self.uncut.cut(1, &Geometry).next()?;
            assert_eq!(self.blocks.look(self.block(number)), Header(0), "it was purged");
            number
        } else {
            let block = listed.head;
            listed.head = self.blocks.link(block);
            self.number(block)
        };
        listed.out_count += 1;
        drop(listed);
        self.blocks.header(self.block(number)).store(USED.0, Ordering::Relaxed);
        self.blocks.use_payload(self.block(number));
        Some(number)
    }

    /// Frees a block that is out, whose magazine is reaped.
    fn take_back(&self, number: u32) {
        let block = self.block(number);
        self.blocks.header(block).store(FREE.0, Ordering::Relaxed);
        let mut listed = self.listed.lock();
        self.blocks.set_link(block, listed.head);
        listed.head = block;
        listed.out_count -= 1;
        let goes = listed.goes();
        drop(listed);
        self.release_if(goes);
    }

    /// Its pages are somebody else's.
    fn release_if(&self, goes: bool) {
        if goes {
            (0..BLOCK_COUNT).for_each(|number| self.blocks.use_payload(self.block(number)));
        }
    }

    /// Purges what is free.
    fn look_through(&self) {
        let mut listed = self.listed.lock();
        if listed.is_in_hand || listed.is_gone {
            return;
        }
        listed.is_in_hand = true;
        drop(listed);
        purge_free_pages(self, &self.uncut);
    }

    /// Every block that is not out can be taken, each once, when nobody does anything else.
    fn settle(&self, mut out: Vec<u32>) {
        let is_gone = self.listed.lock().is_gone;
        if is_gone {
            return assert!(out.is_empty(), "A2");
        }
        assert!(!out.is_empty(), "it is not gone, though all are back");
        out.extend(std::iter::from_fn(|| self.take()));
        out.sort_unstable();
        assert_eq!(out, [0, 1, 2], "A1: each is somewhere, once");
    }
}

impl Hand for Slab {
    type List = Vec<Block>;

    fn take_list(&self) -> Vec<Block> {
        let head = std::mem::replace(&mut self.listed.lock().head, NONE);
        linked(&self.blocks, head).collect()
    }

    fn free_pages(&self, list: &mut Vec<Block>) -> FreePages {
        let range = self.uncut.range();
        let before = runs(self.uncut.pages());
        let listed = list.iter().map(|&block| self.number(block));
        let purged = Geometry::mask(listed.chain(range.clone()).chain(before));
        list.retain(|&block| purged >> Geometry.page_of_number(self.number(block)) & 1 == 0);
        let is_left = |number: &u32| purged >> Geometry.page_of_number(*number) & 1 == 0;
        let left = range.clone().filter(is_left).count() as u32;
        FreePages { purged, uncut: purged, range: range.start..range.start + left }
    }

    fn purge(&self, pages: u128) {
        // The system orders what was done before the zeros.
        fence(Ordering::Release);
        for block in runs(pages).map(|number| self.block(number)) {
            self.blocks.header(block).store(0, Ordering::Relaxed);
            self.blocks.use_payload(block);
        }
    }

    fn put_back(&self, kept: Vec<Block>) {
        let mut listed = self.listed.lock();
        for block in kept {
            self.blocks.set_link(block, listed.head);
            listed.head = block;
        }
        listed.is_in_hand = false;
        let goes = listed.goes();
        drop(listed);
        self.release_if(goes);
    }
}

/// The blocks of some pages.
fn runs(pages: u128) -> impl Iterator<Item = u32> {
    (0..BLOCK_COUNT).filter(move |&number| pages >> Geometry.page_of_number(number) & 1 == 1)
}

fn spawn<R: 'static>(
    slab: &Arc<Slab>,
    f: impl FnOnce(&Slab) -> R + 'static,
) -> thread::JoinHandle<R> {
    let slab = slab.clone();
    thread::spawn(move || f(&slab))
}

/// A2: the last block comes back while a page goes, and the slab goes once.
#[test]
fn purged_against_the_last_block_that_comes_back() {
    explore(3, || {
        let slab = Slab::new(&[0, 2], 0..0);
        let looker = spawn(&slab, Slab::look_through);
        slab.blocks.use_payload(slab.block(1));
        slab.take_back(1);
        looker.join().unwrap();
        slab.settle(Vec::new());
    });
}

/// A6: blocks are taken while pages go: from the list, or of a page that was purged.
#[test]
fn purged_against_taken() {
    explore(3, || {
        let slab = Slab::new(&[0, 2], 0..0);
        let looker = spawn(&slab, Slab::look_through);
        let out: Vec<u32> = [1].into_iter().chain(slab.take()).chain(slab.take()).collect();
        looker.join().unwrap();
        slab.settle(out);
    });
}

/// A6: the same where a page was never cut.
#[test]
fn purged_against_cut() {
    explore(3, || {
        let slab = Slab::new(&[0], 2..3);
        let looker = spawn(&slab, Slab::look_through);
        let out: Vec<u32> = [1].into_iter().chain(slab.take()).chain(slab.take()).collect();
        looker.join().unwrap();
        slab.settle(out);
    });
}

/// A1, A6: one thread takes and another brings back while a third looks through the slab.
#[test]
fn purged_against_taken_and_brought_back() {
    explore(2, || {
        let slab = Slab::new(&[2], 0..0);
        let looker = spawn(&slab, Slab::look_through);
        let reaper = spawn(&slab, |slab| slab.take_back(0));
        let out: Vec<u32> = [1].into_iter().chain(slab.take()).collect();
        looker.join().unwrap();
        reaper.join().unwrap();
        slab.settle(out);
    });
}

/// A6: two threads look at once, and a page that was purged is looked at again after it was cut.
#[test]
fn purged_by_two_against_taken() {
    explore(2, || {
        let slab = Slab::new(&[0, 2], 0..0);
        let lookers = [0, 1].map(|_| spawn(&slab, Slab::look_through));
        let out: Vec<u32> = [1].into_iter().chain(slab.take()).collect();
        lookers.into_iter().for_each(|looker| looker.join().unwrap());
        slab.settle(out);
    });
}

/// A8: who frees a block a second time, in a page that goes meanwhile, finds a free block or a
/// purged one.
#[test]
fn purged_against_freed_twice() {
    explore(3, || {
        let slab = Slab::new(&[0, 2], 0..0);
        let culprit = spawn(&slab, |slab| {
            let header = slab.blocks.look(slab.block(2));
            assert!(header == FREE || header == Header(0), "it is not live");
            if header == Header(0) {
                assert!(slab.uncut.was_purged(2, &Geometry), "A8");
            }
            assert!(!slab.uncut.was_purged(1, &Geometry), "it is in use");
        });
        let is_flagged = slab.uncut.range.load(Ordering::Relaxed) != 0;
        assert!(!is_flagged, "no page was purged yet");
        slab.look_through();
        culprit.join().unwrap();
    });
}
