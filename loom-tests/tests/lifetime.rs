//! `lifetime` and `stray`: a block comes back from outside while its request closes and adopts it,
//! or another thread persists it; and the stub's next request.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU64, Ordering, fence};
use rqmalloc_loom_tests::lockfree::header::{FREED, Header, LATE, LIVE, Memory};
use rqmalloc_loom_tests::lockfree::lifetime::{
    Adoption, FreeOutside, adopt_at_close, free_outside, persist, settle_stray,
};
use rqmalloc_loom_tests::lockfree::state::State;
use rqmalloc_loom_tests::lockfree::stray::StrayList;
use rqmalloc_loom_tests::lockfree::token::AdoptedCount;
use rqmalloc_loom_tests::model::{Blocks, NoCallbacks, Plain, explore};

const PERSISTENT: Header = Header::tag(0xfff, LIVE);

const fn tag_of(generation: u32) -> Header {
    Header::tag(generation as u64, LIVE)
}

/// A request whose blocks share one span, as far as closing goes.
struct Model {
    list: StrayList,
    blocks: Blocks,
    /// What the closer writes into the span before it adopts, and whoever gives it back reads.
    span: Plain<u32>,
    /// The count of the adopted span, without a token: the closer keeps one.
    count: AdoptedCount,
    given_back: AtomicU64,
}

impl Model {
    fn open(generation: u32, count: usize) -> Arc<Self> {
        let list = StrayList(AtomicU64::new(0));
        list.open(generation);
        Arc::new(Self {
            list,
            blocks: Blocks::new(count, tag_of(generation)),
            span: Plain::new(0),
            count: AdoptedCount(AtomicU64::new(0)),
            given_back: AtomicU64::new(0),
        })
    }

    /// A free by a thread that is not in a lane of the request, judged by the header alone.
    fn free(&self, index: usize, generation: u32) -> bool {
        let block = self.blocks.block(index);
        self.blocks.use_payload(block);
        loop {
            let header = self.blocks.look(block);
            if header.id() == PERSISTENT.id() {
                assert!(header.has(LIVE) && !header.has(FREED | LATE), "persistent: {header:?}");
                self.free_persistent(index);
                return true;
            }
            if header.has(FREED) || !header.has(LIVE) {
                return false;
            }
            match free_outside(&self.blocks, block, header, &self.list, generation) {
                FreeOutside::Pushed | FreeOutside::Left => return true,
                FreeOutside::Adopted => {
                    self.free_persistent(index);
                    return true;
                }
                FreeOutside::Changed => {}
                FreeOutside::Ended => panic!("a valid free is taken for one of an ended request"),
            }
        }
    }

    /// Frees an adopted block, and reaps it at once.
    fn free_persistent(&self, index: usize) {
        let block = self.blocks.block(index);
        self.blocks.use_payload(block);
        self.blocks.header(block).store(PERSISTENT.without(LIVE).0, Ordering::Relaxed);
        if self.count.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.give_back();
        }
    }

    fn give_back(&self) {
        assert_eq!(self.given_back.fetch_add(1, Ordering::Relaxed), 0, "given back once");
        self.span.read(|written| assert_eq!(*written, 1, "given back before it was adopted"));
    }

    /// Closes the request: drains, then adopts. Which blocks were adopted, and which became holes.
    fn close(&self, generation: u32, count: usize) -> (usize, usize) {
        for block in self.list.close(generation).blocks(&self.blocks) {
            settle_stray(&self.blocks, block);
            self.blocks.use_payload(block);
        }
        self.span.write(|written| *written = 1);
        let (mut adopted, mut holes) = (0, 0);
        for block in (0..count).map(|index| self.blocks.block(index)) {
            match adopt_at_close(&self.blocks, block, PERSISTENT) {
                Adoption::NotLive => {}
                Adoption::Adopted => adopted += 1,
                Adoption::Hole => {
                    self.blocks.use_payload(block);
                    holes += 1;
                }
            }
        }
        let before = self.count.0.fetch_add(adopted as u64, Ordering::AcqRel);
        if before.wrapping_add(adopted as u64) == 0 {
            self.give_back();
        }
        (adopted, holes)
    }
}

/// Each block is drained, a hole, or adopted and freed as a persistent one; the span goes once.
#[test]
fn close_against_two_frees() {
    explore(3, || {
        let model = Model::open(5, 2);
        let freers = [0, 1].map(|index| {
            let model = model.clone();
            thread::spawn(move || assert!(model.free(index, 5)))
        });
        model.close(5, 2);
        freers.into_iter().for_each(|freer| freer.join().unwrap());
        assert_eq!(model.given_back.load(Ordering::Relaxed), 1, "the span is not lost");
    });
}

/// A free that slept through the close does not reach the stub's next request.
#[test]
fn the_next_request_of_a_stub_gets_no_block_of_the_one_before() {
    explore(3, || {
        let model = Model::open(5, 2);
        let other = model.clone();
        let freer = thread::spawn(move || assert!(other.free(0, 5)));
        model.close(5, 2);
        model.list.open(6);
        freer.join().unwrap();
        assert!(model.free(1, 5), "adopted, or left to nobody");
        assert!(model.list.is_empty(), "a block of one request on the list of the next");
        assert_eq!(model.given_back.load(Ordering::Relaxed), 1, "the span is not lost");
    });
}

/// Neither does one that slept until the stub was wiped, and opened anew.
#[test]
fn a_wiped_stub_gets_no_block() {
    explore(3, || {
        let model = Model::open(5, 2);
        let other = model.clone();
        let freer = thread::spawn(move || assert!(other.free(0, 5)));
        model.close(5, 2);
        // The system orders what was done before it wiped a page before the zeros.
        fence(Ordering::Release);
        model.list.0.store(0, Ordering::Relaxed);
        model.list.open(6);
        freer.join().unwrap();
        assert!(model.free(1, 5));
        assert!(model.list.is_empty(), "a block of one request on the list of the next");
        assert_eq!(model.given_back.load(Ordering::Relaxed), 1, "the span is not lost");
    });
}

/// The same when another thread has the stub's next request.
#[test]
fn the_next_request_of_a_stub_in_another_thread() {
    explore(3, || {
        let model = Model::open(5, 2);
        let is_retired = Arc::new(AtomicU64::new(0));
        let other = model.clone();
        let freer = thread::spawn(move || assert!(other.free(0, 5)));
        let (next, has_come) = (model.clone(), is_retired.clone());
        let opener = thread::spawn(move || {
            if has_come.load(Ordering::Acquire) == 1 {
                next.list.open(6);
            }
        });
        model.close(5, 2);
        is_retired.store(1, Ordering::Release);
        freer.join().unwrap();
        opener.join().unwrap();
        assert!(model.free(1, 5));
        assert_eq!(model.given_back.load(Ordering::Relaxed), 1, "the span is not lost");
    });
}

/// Of two frees of one block one is right and the other is found out, while the request closes or
/// not.
#[test]
fn double_free_against_close() {
    explore(3, || {
        let model = Model::open(5, 1);
        let free = |model: &Model| {
            let block = model.blocks.block(0);
            let header = model.blocks.look(block);
            if !header.has(LIVE) || header.has(FREED) {
                return false;
            }
            if header.id() == PERSISTENT.id() {
                let free = header.without(LIVE).0;
                let word = model.blocks.header(block);
                return word
                    .compare_exchange(header.0, free, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            }
            free_outside(&model.blocks, block, header, &model.list, 5) != FreeOutside::Changed
        };
        let other = model.clone();
        let freer = thread::spawn(move || free(&other));
        let freed = [free(&model), freer.join().unwrap()];
        assert_eq!(freed.iter().filter(|&&freed| freed).count(), 1, "{freed:?}");
    });
}

/// A block is persisted by one thread while another one frees it, which is a fault: whoever is
/// second sees it.
#[test]
fn persist_against_free() {
    explore(3, || {
        let model = Model::open(5, 1);
        model.span.write(|written| *written = 1);
        let other = model.clone();
        let freer = thread::spawn(move || assert!(other.free(0, 5)));
        let block = model.blocks.block(0);
        let is_adopted = persist(&model.blocks, &model.count, block, tag_of(5), PERSISTENT);
        freer.join().unwrap();
        let given_back = model.given_back.load(Ordering::Relaxed);
        assert_eq!(given_back, u64::from(is_adopted), "freed as what it is");
        assert_eq!(model.list.is_empty(), is_adopted, "freed as what it is");
    });
}

/// A block is persisted and handed to a thread that frees it by its header alone: it was counted
/// before.
#[test]
fn persist_before_free() {
    explore(3, || {
        let model = Model::open(5, 1);
        let other = model.clone();
        let freer = thread::spawn(move || {
            // The fast path: one relaxed compare. It is reaped at once.
            if other.blocks.look(other.blocks.block(0)) == PERSISTENT {
                let header = other.blocks.header(other.blocks.block(0));
                header.store(PERSISTENT.without(LIVE).0, Ordering::Relaxed);
                let before = other.count.0.fetch_sub(1, Ordering::Release);
                assert_eq!(before, 1, "counted before it was persistent");
            }
        });
        let block = model.blocks.block(0);
        assert!(persist(&model.blocks, &model.count, block, tag_of(5), PERSISTENT));
        freer.join().unwrap();
    });
}

/// The stub has another request: a block that was freed with the one before is not freed again.
#[test]
fn a_free_after_the_end() {
    explore(1, || {
        let model = Model::open(5, 1);
        let block = model.blocks.block(0);
        let free = || free_outside(&model.blocks, block, tag_of(5), &model.list, 5);
        assert_eq!(model.list.close(5).blocks(&model.blocks).count(), 0);
        model.list.open(6);
        assert_eq!(free(), FreeOutside::Ended);
        assert!(model.list.is_empty());
        assert_eq!(free(), FreeOutside::Changed);
    });
}

/// A block is persisted by a thread without a handle, as `src/thread/route.rs` does it, and then
/// freed and reaped, while its request closes: it is counted once, and no hole while somebody has
/// it.
#[test]
fn persist_against_close() {
    explore(3, || {
        let model = Model::open(5, 1);
        let state = Arc::new(State(AtomicU64::new(0)));
        state.open(5);
        let block = model.blocks.block(0);
        let (other, visited) = (model.clone(), state.clone());
        let persister = thread::spawn(move || {
            let adopt = || {
                assert!(persist(&other.blocks, &other.count, block, tag_of(5), PERSISTENT));
                // What the finisher reads to know whether it must look: plain for it.
                other.span.write(|has_persisted| *has_persisted = 1);
            };
            let is_persisted = visited.visit(5, thread::yield_now, adopt).is_some();
            if is_persisted {
                // Its free, into a bin: not reaped yet.
                other.blocks.header(block).store(PERSISTENT.without(LIVE).0, Ordering::Relaxed);
            }
            is_persisted
        });
        assert!(state.drop_only_handle(&NoCallbacks));
        while state.try_own().is_none() {
            thread::yield_now();
        }
        let has_persisted = model.span.read(|has_persisted| *has_persisted == 1);
        // What `settle_run` does with a block whose header is the request's.
        let was_own = model.blocks.look(block).id() == tag_of(5).id();
        let closed = was_own.then(|| adopt_at_close(&model.blocks, block, PERSISTENT));
        let is_persisted = persister.join().unwrap();
        assert_eq!(closed, (!is_persisted).then_some(Adoption::Adopted), "counted once");
        assert_eq!(has_persisted, is_persisted);
    });
}
