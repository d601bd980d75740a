//! `chunk_slots`: chunks that come, become longer and go while their pages are taken, and while
//! others come to the same slot or the same addresses.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU32, AtomicU64, AtomicUsize, Lock, Ordering};
use rqmalloc_loom_tests::lockfree::bitmap::{PageBitmap, longest_run};
use rqmalloc_loom_tests::lockfree::chunk_slots::{
    ChunkSlots, Chunks, Reach, extend, open, release,
};
use rqmalloc_loom_tests::lockfree::run_index::RunIndex;
use rqmalloc_loom_tests::model::{Plain, explore};

const SLOTS: usize = 2;
/// Addresses are 1 and 2; 0 is none.
const BASES: usize = 3;
const PAGES: usize = 64;

struct Chunk {
    base: AtomicUsize,
    /// What only the owner of all pages may touch.
    plain: Plain<usize>,
    pages: PageBitmap<1>,
    reach: Reach,
}

struct Model {
    /// Whether nothing can be mapped behind a chunk.
    is_walled: bool,
    slots: ChunkSlots,
    index: RunIndex<1>,
    chunks: [Chunk; SLOTS],
    /// How many pages are mapped there; the system's own.
    mapped: Lock<[usize; BASES]>,
    /// Of the first page, and of the others.
    memory: [[Plain<u32>; 2]; BASES],
    /// The registry: slot + 1.
    registry: [AtomicUsize; BASES],
}

impl Model {
    fn new() -> Arc<Self> {
        Self::with_wall(false)
    }

    fn with_wall(is_walled: bool) -> Arc<Self> {
        let chunk = |_| Chunk {
            base: AtomicUsize::new(0),
            plain: Plain::new(0),
            pages: PageBitmap { free: [AtomicU64::new(0)] },
            reach: Reach(AtomicU32::new(0)),
        };
        Arc::new(Self {
            is_walled,
            slots: ChunkSlots(AtomicU64::new(0)),
            index: RunIndex { words: [AtomicU64::new(0)] },
            chunks: std::array::from_fn(chunk),
            mapped: Lock::new([PAGES, 0, 0]),
            memory: std::array::from_fn(|_| [Plain::new(0), Plain::new(0)]),
            registry: std::array::from_fn(|_| AtomicUsize::new(0)),
        })
    }

    /// Maps a chunk and opens it. `false`: there are no addresses, or no slot.
    fn grow(&self) -> bool {
        self.grow_by(PAGES)
    }

    fn grow_by(&self, pages: usize) -> bool {
        let mut mapped = self.mapped.lock();
        let Some(base) = mapped.iter().position(|&mapped| mapped == 0) else { return false };
        mapped[base] = pages;
        drop(mapped);
        let Some(slot) = self.slots.claim().filter(|slot| (*slot as usize) < SLOTS) else {
            return false;
        };
        open(self, slot, base, pages);
        true
    }

    /// Takes a page where a hint leads, and uses it.
    fn take_page(&self) -> Option<(u32, usize)> {
        let mut candidates = self.index.candidates(0);
        while candidates != 0 {
            let slot = candidates.trailing_zeros();
            candidates &= candidates - 1;
            let chunk = &self.chunks[slot as usize];
            if let Some(page) = chunk.pages.take(1, || self.publish(slot)) {
                self.use_page(slot, page);
                return Some((slot, page));
            }
            self.publish(slot);
        }
        None
    }

    /// What the owner of a page may rely on.
    fn use_page(&self, slot: u32, page: usize) {
        let base = self.base(slot);
        assert!(base != 0, "B8: a page is free, so its chunk is described");
        let there = self.registry[base].load(Ordering::Relaxed);
        assert_eq!(there, slot as usize + 1, "B8: {base} is registered");
        self.memory[base][page.min(1)].write(|uses| *uses += 1);
    }

    fn give_page(&self, (slot, page): (u32, usize)) {
        self.use_page(slot, page);
        self.chunks[slot as usize].pages.give(page, 1);
        self.publish(slot);
    }

    /// What must hold when nobody is at it: as many chunks, all free.
    fn assert_whole(&self, count: usize) {
        let mut claimed = self.slots.claimed();
        assert_eq!(claimed.count_ones() as usize, count, "B7: claimed slots");
        while claimed != 0 {
            let slot = claimed.trailing_zeros();
            claimed &= claimed - 1;
            assert_eq!(self.index.candidates(0) >> slot & 1, 1, "R1");
            let pages = self.reach(slot).claim().expect("no claim is left");
            assert!(self.take_all(slot, pages), "no page is lost");
            (0..pages.min(2)).for_each(|page| self.use_page(slot, page));
            let mapped = self.mapped.lock()[self.base(slot)];
            assert_eq!(mapped, pages, "B8, B9: what is registered is mapped");
        }
        let registered = self.registry.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0);
        assert_eq!(registered.count(), count, "B8: what is not mapped is not registered");
        assert_eq!(self.mapped.lock().iter().filter(|mapped| **mapped > 0).count(), count + 1);
    }
}

impl Chunks for Model {
    fn base(&self, slot: u32) -> usize {
        self.chunks[slot as usize].base.load(Ordering::Relaxed)
    }

    fn place(&self, slot: u32, base: usize) {
        let chunk = &self.chunks[slot as usize];
        chunk.plain.write(|plain| *plain = base);
        chunk.base.store(base, Ordering::Relaxed);
    }

    fn register(&self, slot: u32) {
        self.registry[self.base(slot)].store(slot as usize + 1, Ordering::Relaxed);
    }

    fn forget(&self, base: usize) {
        // The chunk that is found there is still this one.
        let slot = self.registry[base].load(Ordering::Relaxed) - 1;
        self.chunks[slot].plain.read(|plain| assert_eq!(*plain, base, "B7"));
        self.registry[base].store(0, Ordering::Relaxed);
    }

    fn unmap(&self, base: usize, pages: usize) {
        let mut mapped = self.mapped.lock();
        assert_eq!(mapped[base], pages, "{base} is unmapped as it was mapped");
        mapped[base] = 0;
        self.memory[base].iter().for_each(|memory| memory.write(|uses| *uses = 0));
    }

    fn map_behind(&self, base: usize, pages: usize, more: usize) -> bool {
        let mut mapped = self.mapped.lock();
        assert_eq!(mapped[base], pages, "B9: the chunk is there, and as long");
        if self.is_walled {
            return false;
        }
        mapped[base] += more;
        self.memory[base][1].write(|uses| *uses = 0);
        true
    }

    fn reach(&self, slot: u32) -> &Reach {
        &self.chunks[slot as usize].reach
    }

    fn take_all(&self, slot: u32, pages: usize) -> bool {
        let chunk = &self.chunks[slot as usize];
        let is_taken = chunk.pages.take_at(0, pages);
        if is_taken {
            chunk.plain.read(|plain| assert_eq!(*plain, self.base(slot), "B7"));
        }
        is_taken
    }

    fn give(&self, slot: u32, first: usize, count: usize) {
        self.chunks[slot as usize].pages.give(first, count);
    }

    fn publish(&self, slot: u32) {
        let run = || longest_run(&self.chunks[slot as usize].pages.snapshot());
        self.index.publish(slot, &[1], run);
    }
}

/// Releases a chunk if it is free; whether it was.
fn release_or_publish(model: &Model, slot: u32) -> bool {
    let is_released = release(model, &model.slots, slot);
    if !is_released {
        model.publish(slot);
    }
    is_released
}

/// B8: a chunk goes, or a page of it is taken.
#[test]
fn chunk_released_against_page_taken() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow());
        let other = model.clone();
        let taker = thread::spawn(move || {
            let taken = other.take_page();
            taken.inspect(|&taken| other.give_page(taken));
        });
        let is_released = release_or_publish(&model, 0);
        taker.join().unwrap();
        model.assert_whole(usize::from(!is_released));
    });
}

/// B7: a chunk goes, and another one comes to its slot or its addresses.
#[test]
fn chunk_released_against_another_opened() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow());
        let other = model.clone();
        let opener = thread::spawn(move || {
            assert!(other.grow(), "there are addresses for two, and slots");
            other.take_page().inspect(|&taken| other.give_page(taken));
        });
        let is_released = release_or_publish(&model, 0);
        opener.join().unwrap();
        model.assert_whole(2 - usize::from(is_released));
    });
}

/// B7: a chunk that is being looked at goes and comes again elsewhere.
#[test]
fn chunk_released_against_released_and_opened_anew() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow());
        let other = model.clone();
        let opener = thread::spawn(move || {
            other.mapped.lock()[2] = PAGES;
            let is_released = release_or_publish(&other, 0);
            other.mapped.lock()[2] = 0;
            if is_released {
                other.mapped.lock()[1] = PAGES;
                assert!(other.grow());
                other.mapped.lock()[1] = 0;
            }
            is_released
        });
        let here = release_or_publish(&model, 0);
        let opened = opener.join().unwrap();
        model.assert_whole(1 + usize::from(opened) - usize::from(opened) - usize::from(here));
    });
}

/// B8: a page of a chunk is taken as soon as there is one.
#[test]
fn chunk_opened_against_page_taken() {
    explore(3, || {
        let model = Model::new();
        let other = model.clone();
        let taker = thread::spawn(move || {
            let taken = other.take_page();
            taken.inspect(|&taken| other.give_page(taken));
        });
        assert!(model.grow());
        taker.join().unwrap();
        model.assert_whole(1);
    });
}

/// Makes the chunk of the first slot longer by a page; whether it is.
fn extend_by_one(model: &Model) -> bool {
    extend(model, 0, |_| Some(1)).is_some()
}

/// B8: a page behind those that a chunk had is taken as soon as it is mapped.
#[test]
fn chunk_extended_against_page_taken() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow_by(1));
        let other = model.clone();
        let taker = thread::spawn(move || {
            let taken = [other.take_page(), other.take_page()];
            taken.into_iter().flatten().for_each(|taken| other.give_page(taken));
        });
        assert!(extend_by_one(&model), "nobody else has claimed its reach");
        taker.join().unwrap();
        assert_eq!(model.reach(0).pages(), 2);
        model.assert_whole(1);
    });
}

/// B9: a chunk becomes longer, or goes, or goes as long as it has become.
#[test]
fn chunk_extended_against_released() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow_by(1));
        let other = model.clone();
        let extender = thread::spawn(move || extend_by_one(&other));
        let is_released = release_or_publish(&model, 0);
        let is_extended = extender.join().unwrap();
        assert!(is_released || is_extended, "one of them has claimed it first");
        model.assert_whole(usize::from(!is_released));
    });
}

/// B9: a chunk cannot become longer: it stays as it is, or goes.
#[test]
fn chunk_extended_in_vain_against_released() {
    explore(3, || {
        let model = Model::with_wall(true);
        assert!(model.grow_by(1));
        let other = model.clone();
        let extender = thread::spawn(move || extend_by_one(&other));
        let is_released = release_or_publish(&model, 0);
        assert!(!extender.join().unwrap(), "something is behind it");
        assert!(is_released || release_or_publish(&model, 0), "B9: the claim has ended");
        model.assert_whole(0);
    });
}

/// R1: the only free page of a chunk is one by which it became longer: the hint leads there.
#[test]
fn full_chunk_extended_against_page_given() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow_by(1));
        let taken = model.take_page().expect("it is free");
        assert_eq!(model.take_page(), None);
        assert_eq!(model.index.candidates(0), 0);
        let other = model.clone();
        let giver = thread::spawn(move || {
            other.use_page(taken.0, taken.1);
            taken
        });
        assert!(extend_by_one(&model), "nobody else has claimed its reach");
        assert_eq!(model.index.candidates(0), 1, "R1");
        let taken = giver.join().unwrap();
        model.give_page(taken);
        model.assert_whole(1);
    });
}

/// B9: a chunk goes and another one comes to its slot while it would become longer.
#[test]
fn chunk_extended_against_released_and_opened_anew() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow_by(1));
        let other = model.clone();
        let opener = thread::spawn(move || {
            let is_released = release_or_publish(&other, 0);
            if is_released {
                other.mapped.lock()[1] = PAGES;
                assert!(other.grow_by(1), "at other addresses");
                other.mapped.lock()[1] = 0;
            }
        });
        let is_extended = extend_by_one(&model);
        opener.join().unwrap();
        assert_eq!(model.reach(0).pages() == 2, is_extended && model.mapped.lock().contains(&2));
        model.assert_whole(1);
    });
}

/// B9: the same, and the new chunk becomes longer twice.
#[test]
fn chunk_extended_against_opened_anew_and_extended() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow_by(1));
        let others = [model.clone(), model.clone()];
        let extenders = others.map(|other| thread::spawn(move || extend_by_one(&other)));
        if release_or_publish(&model, 0) {
            model.mapped.lock()[1] = PAGES;
            assert!(model.grow_by(1), "at other addresses");
            model.mapped.lock()[1] = 0;
        }
        let extended = extenders.into_iter().map(|extender| extender.join().unwrap());
        let count = extended.filter(|is_extended| *is_extended).count();
        assert!(model.reach(0).pages() <= 1 + count, "B9: by one each");
        model.assert_whole(1);
    });
}

/// B9: two make a chunk longer, one after the other or one of them not at all.
#[test]
fn chunk_extended_against_extended() {
    explore(3, || {
        let model = Model::new();
        assert!(model.grow_by(1));
        let other = model.clone();
        let extender = thread::spawn(move || extend_by_one(&other));
        let here = extend_by_one(&model);
        let there = extender.join().unwrap();
        assert!(here || there, "one of them has claimed it first");
        assert_eq!(model.reach(0).pages(), 1 + usize::from(here) + usize::from(there));
        model.assert_whole(1);
    });
}

/// B7: two that open a chunk have two slots.
#[test]
fn two_chunks_opened() {
    explore(3, || {
        let model = Model::new();
        let other = model.clone();
        let opener = thread::spawn(move || {
            let base = 2;
            other.mapped.lock()[base] = PAGES;
            other.slots.claim().inspect(|&slot| open(&*other, slot, base, PAGES))
        });
        let base = 1;
        model.mapped.lock()[base] = PAGES;
        let here = model.slots.claim().inspect(|&slot| open(&*model, slot, base, PAGES));
        let there = opener.join().unwrap();
        assert!(here.is_some() || there.is_some(), "one of them has it");
        assert_ne!(here, there, "B7");
    });
}
