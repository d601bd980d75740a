//! `chunk_pages`: what is known of a page when it changes hands.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicPtr, AtomicU64, AtomicUsize, Lock, Ordering};
use rqmalloc_loom_tests::lockfree::bitmap::{PageBitmap, longest_run};
use rqmalloc_loom_tests::lockfree::chunk_pages::{ChunkPages, PageMask};
use rqmalloc_loom_tests::lockfree::run_index::RunIndex;
use rqmalloc_loom_tests::model::{Plain, explore};
use std::ptr::null_mut;

/// Pages that a model uses; there are names for these only.
const PAGES: usize = 2;
const LENGTHS: [u8; 2] = [1, 2];

/// What page a descriptor describes, as its owner and as anybody sees it.
struct Descriptor {
    page: AtomicUsize,
    plain: Plain<usize>,
}

struct Model {
    pages: ChunkPages<Descriptor, 1, PAGES>,
    index: RunIndex<2>,
    /// What is written on each page; 0: it reads as zero.
    memory: [Plain<u32>; PAGES],
    descriptors: [Descriptor; 2],
    pooled: Lock<Vec<usize>>,
}

impl Model {
    /// Two pages that are nobody's yet.
    fn new() -> Arc<Self> {
        let mask = || PageMask([AtomicU64::new(0)]);
        let descriptor = |_| Descriptor { page: AtomicUsize::new(PAGES), plain: Plain::new(PAGES) };
        Arc::new(Self {
            pages: ChunkPages {
                free: PageBitmap { free: [AtomicU64::new(0)] },
                dirty: mask(),
                aged: mask(),
                names: std::array::from_fn(|_| AtomicPtr::new(null_mut())),
            },
            index: RunIndex { words: std::array::from_fn(|_| AtomicU64::new(0)) },
            memory: std::array::from_fn(|_| Plain::new(0)),
            descriptors: std::array::from_fn(descriptor),
            pooled: Lock::new(vec![1, 0]),
        })
    }

    /// Opens the pages that are not in use.
    fn open(&self, first: usize) {
        self.pages.free.give(first, PAGES - first);
        self.publish();
    }

    fn publish(&self) {
        self.index.publish(0, &LENGTHS, || longest_run(&self.pages.free.snapshot()));
    }

    /// Takes a page, and writes to it. Its descriptor and number.
    fn take(&self) -> Option<(usize, usize)> {
        let id = self.pooled.lock().pop()?;
        let descriptor = &self.descriptors[id];
        let mut page = PAGES;
        let describe = |first| {
            page = first;
            descriptor.plain.write(|page| *page = first);
            descriptor.page.store(first, Ordering::Relaxed);
            (1, descriptor)
        };
        let Some(is_zero) = self.pages.take(1, describe, || self.publish()) else {
            self.pooled.lock().push(id);
            return None;
        };
        if is_zero {
            self.memory[page].read(|written| assert_eq!(*written, 0, "B4"));
        }
        self.memory[page].write(|written| *written = 1);
        self.assert_named(id, page);
        Some((id, page))
    }

    /// B5: this page names the descriptor, and no other does.
    fn assert_named(&self, id: usize, page: usize) {
        for other in 0..PAGES {
            let is_named = self.pages.name(other).is_some_and(|named| self.is(named, id));
            assert_eq!(is_named, other == page, "B5: page {other}, descriptor {id} of {page}");
        }
    }

    fn is(&self, descriptor: &Descriptor, id: usize) -> bool {
        std::ptr::eq(descriptor, &self.descriptors[id])
    }

    fn give(&self, (id, page): (usize, usize)) {
        let let_go = || self.pooled.lock().push(id);
        self.pages.give(page, 1, 1, let_go, || self.publish());
    }

    fn purge(&self, aged_only: bool) -> usize {
        let wipe = |first: usize, count: usize| {
            self.memory[first..first + count].iter().for_each(|page| page.write(|page| *page = 0));
        };
        self.pages.purge(aged_only, |first, count| (first, count), wipe, || self.publish())
    }

    /// What must hold when nobody is at it, of so many pages.
    fn assert_whole(&self, count: usize, used: &[(usize, usize)]) {
        used.iter().for_each(|&(id, page)| self.assert_named(id, page));
        let run = longest_run(&self.pages.free.snapshot());
        assert_eq!(self.pages.free.free_count(), count - used.len(), "no page is lost");
        for (index, &length) in LENGTHS.iter().enumerate() {
            let has_hint = self.index.candidates(index) & 1 != 0;
            assert!(has_hint || usize::from(length) > run, "B6: a run of {run}");
        }
        assert_eq!(self.pooled.lock().len(), self.descriptors.len() - used.len());
        let dirty = (0..PAGES).filter(|page| {
            let is_free = used.iter().all(|(_, other)| other != page);
            is_free && self.memory[*page].read(|written| *written != 0)
        });
        assert_eq!(
            self.pages.dirty_count(),
            dirty.count(),
            "what is dirty, and only that, is known"
        );
    }
}

/// B4: a page that was written to goes while another thread takes one.
#[test]
fn dirty_page_given_against_taken() {
    explore(3, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        let other = model.clone();
        let taker = thread::spawn(move || other.take());
        model.give(used);
        let taken = taker.join().unwrap();
        model.assert_whole(1, taken.as_slice());
    });
}

/// B5: a descriptor goes with its page, and describes another page.
#[test]
fn page_given_against_taken_with_its_descriptor() {
    explore(3, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        model.open(0);
        let kept = model.pooled.lock().pop();
        let other = model.clone();
        let taker = thread::spawn(move || other.take());
        model.give(used);
        let taken = taker.join().unwrap();
        model.pooled.lock().extend(kept);
        model.assert_whole(2, taken.as_slice());
    });
}

/// B5: whoever sees a name, for whatever address, sees what the descriptor describes.
#[test]
fn page_taken_against_looked_at() {
    explore(3, || {
        let model = Model::new();
        let other = model.clone();
        let looker = thread::spawn(move || {
            if let Some(descriptor) = other.pages.name(1) {
                descriptor.plain.read(|page| assert_eq!(*page, 1, "B5"));
            }
        });
        model.open(1);
        let used = model.take().expect("there is one");
        looker.join().unwrap();
        model.assert_whole(1, &[used]);
    });
}

/// B5: a name that goes tells of what its descriptor did before.
#[test]
fn page_given_against_looked_at() {
    explore(3, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        let other = model.clone();
        let looker = thread::spawn(move || {
            if other.pages.name(1).is_none() {
                other.memory[1].read(|written| assert_eq!(*written, 2));
            }
        });
        model.memory[1].write(|written| *written = 2);
        model.give(used);
        looker.join().unwrap();
        model.assert_whole(1, &[]);
    });
}

/// B4: free pages are purged while one of them is taken, given and taken again.
#[test]
fn page_purged_against_taken_and_given() {
    explore(2, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        model.give(used);
        let other = model.clone();
        let user = thread::spawn(move || {
            if let Some(used) = other.take() {
                other.give(used);
            }
            other.take()
        });
        model.purge(false);
        let taken = user.join().unwrap();
        match taken {
            Some(used) => model.give(used),
            None => assert!(model.take().is_some(), "the purge gives it back"),
        }
    });
}

/// B6: a search that came while the page was purged has taken its hint away, and the purge brings
/// it back.
#[test]
fn page_purged_against_search() {
    explore(3, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        model.give(used);
        let other = model.clone();
        let searcher = thread::spawn(move || other.take());
        model.purge(false);
        let taken = searcher.join().unwrap();
        model.assert_whole(1, taken.as_slice());
    });
}

/// B6: a search in vain takes the hint away.
#[test]
fn search_in_vain_clears_the_hint() {
    explore(1, || {
        let model = Model::new();
        model.index.words.iter().for_each(|word| word.store(1, Ordering::Relaxed));
        assert!(model.take().is_none());
        assert_eq!([0, 1].map(|length| model.index.candidates(length)), [0, 0]);
    });
}

/// B6: pages claimed by number and rolled back were missing meanwhile.
#[test]
fn pages_taken_by_number_in_vain_against_search() {
    /// The last of one word and the first of the next.
    const FIRST: usize = 63;
    explore(3, || {
        let words = || std::array::from_fn(|_| AtomicU64::new(0));
        let pages = Arc::new(ChunkPages::<Descriptor, 2, { FIRST + 1 }> {
            free: PageBitmap { free: words() },
            dirty: PageMask(words()),
            aged: PageMask(words()),
            names: std::array::from_fn(|_| AtomicPtr::new(null_mut())),
        });
        let index = Arc::new(RunIndex { words: [AtomicU64::new(1)] });
        let publish = |pages: &ChunkPages<_, 2, { FIRST + 1 }>, index: &RunIndex<1>| {
            index.publish(0, &[1], || longest_run(&pages.free.snapshot()));
        };
        pages.free.give(FIRST, 1);
        let (other, others) = (pages.clone(), index.clone());
        let grower = thread::spawn(move || {
            assert!(!other.take_at(FIRST, 2, || publish(&other, &others)));
        });
        let descriptor = Descriptor { page: AtomicUsize::new(0), plain: Plain::new(0) };
        let taken = pages.take(1, |_| (0, &descriptor), || publish(&pages, &index));
        grower.join().unwrap();
        assert!(taken.is_some() || index.candidates(0) == 1, "B6");
    });
}

/// B4: a chunk comes where another one was, whose pages were dirty.
#[test]
fn reset_forgets_what_was_dirty() {
    explore(1, || {
        let model = Model::new();
        model.open(0);
        let used = [model.take(), model.take()].map(|used| used.expect("there are two"));
        used.into_iter().for_each(|used| model.give(used));
        assert!(model.pages.free.take_at(0, PAGES), "all are free");
        model.pages.reset();
        model.memory.iter().for_each(|page| page.write(|written| *written = 0));
        model.open(0);
        model.assert_whole(PAGES, &[]);
    });
}

/// Two that purge: what they have purged is known to be clean.
#[test]
fn purged_against_purged() {
    explore(2, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        model.give(used);
        let other = model.clone();
        let purger = thread::spawn(move || other.purge(false));
        let here = model.purge(false);
        // The second one may have looked before the first was done.
        assert!(here + purger.join().unwrap() > 0, "it is purged");
        model.pages.free.take_at(0, 1);
        assert_eq!(model.pages.dirty_count(), 0);
        model.memory[1].read(|written| assert_eq!(*written, 0));
        let used = model.take().expect("there is one");
        model.give(used);
        assert_eq!(model.purge(true), 0, "not before the next tick");
        assert!(!model.pages.is_idle(PAGES), "page 0 is not free");
        assert_eq!(model.purge(true), 1, "now it is old");
    });
}

/// A span grows into the page behind it while that is given, taken or purged.
#[test]
fn page_taken_by_number_against_given() {
    explore(3, || {
        let model = Model::new();
        model.open(1);
        let used = model.take().expect("there is one");
        let other = model.clone();
        let grower = thread::spawn(move || {
            let is_taken = other.pages.take_at(1, 1, || other.publish());
            if is_taken {
                other.memory[1].write(|written| *written = 3);
                other.pages.give(1, 1, 0, || (), || other.publish());
            }
        });
        model.memory[1].write(|written| *written = 2);
        model.give(used);
        grower.join().unwrap();
        assert_eq!(model.purge(false), 1, "it is dirty");
    });
}
