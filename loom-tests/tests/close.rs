//! Scenarios: closing a request while its blocks come back from outside, in the order that
//! `src/request/finish.rs` documents.
//!
//! The types are the shipped ones; the functions that join them here (`finish`,
//! `free_from_outside`, ..) follow those of the same name in `src/request` (`finish.rs`,
//! `control.rs`, `strays.rs`, `large_list.rs`) and in `src/heap/free.rs` line by line, without
//! figures.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicBool, AtomicU64, Lock, Ordering};
use rqmalloc_loom_tests::lockfree::header::{
    Block, Claim, Header, LIVE, Memory, claim_stray, settle_stray,
};
use rqmalloc_loom_tests::lockfree::lifecycle::{Handles, Holds, LargeCount, Occupancy, SpanCount};
use rqmalloc_loom_tests::lockfree::pool::{ALIGN, Pool, Successors};
use rqmalloc_loom_tests::lockfree::stray::StrayList;
use rqmalloc_loom_tests::model::{Blocks, Plain, explore};

const CONTROL: usize = ALIGN;
const BLOCKS_PER_REGION: usize = 2;
const REGION_COUNT: usize = 3;
const NO_ID: u64 = u64::MAX;

/// What the lanes know: which regions are the request's, which blocks are cut, which came back.
#[derive(Default)]
struct Lanes {
    regions: Vec<usize>,
    carved: Vec<Block>,
    bins: Vec<Block>,
}

/// The control block. A `Plain` field may be touched only by the threads that the table in
/// `control.rs` allows, so recycling it too early stops the model.
struct Control {
    successor: AtomicU64,
    /// The request's id, which is in the headers of its blocks.
    id: Plain<u64>,
    handles: Handles,
    holds: Holds,
    stray: StrayList,
    /// Bytes of the strays; here every block has one.
    stray_bytes: AtomicU64,
    occupancy: Occupancy,
    lanes: Plain<Lanes>,
    /// Whether the one large block is on the list; under the large lock.
    large: Plain<bool>,
    large_count: LargeCount,
    footprint: AtomicU64,
}

impl Successors for Control {
    fn successor(&self, address: usize) -> &AtomicU64 {
        assert_eq!(address, CONTROL, "only the control block is pooled");
        &self.successor
    }
}

/// A region's descriptor.
struct Region {
    count: SpanCount,
    held: Plain<usize>,
    returned: Plain<u32>,
}

/// The large block's descriptor and its memory.
struct Large {
    detached: Plain<bool>,
    payload: Plain<u32>,
    returned: Plain<u32>,
}

struct System {
    control: Control,
    pool: Pool,
    memory: Blocks,
    regions: [Region; REGION_COUNT],
    large: Large,
    large_lock: Lock<()>,
    recycled: Plain<u32>,
}

impl System {
    /// A system whose control block is the caller's, as if just taken from the pool.
    fn new() -> Arc<Self> {
        let region = |_| Region {
            count: SpanCount(AtomicU64::new(0)),
            held: Plain::new(0),
            returned: Plain::new(0),
        };
        Arc::new(Self {
            control: Control {
                successor: AtomicU64::new(0),
                id: Plain::new(0),
                handles: Handles::new(),
                holds: Holds::new(),
                stray: StrayList::new(),
                stray_bytes: AtomicU64::new(0),
                occupancy: Occupancy(AtomicBool::new(false)),
                lanes: Plain::new(Lanes::default()),
                large: Plain::new(false),
                large_count: LargeCount::new(),
                footprint: AtomicU64::new(0),
            },
            pool: Pool::new(),
            memory: Blocks::new(REGION_COUNT * BLOCKS_PER_REGION, Header(0)),
            regions: std::array::from_fn(region),
            large: Large {
                detached: Plain::new(false),
                payload: Plain::new(0),
                returned: Plain::new(0),
            },
            large_lock: Lock::new(()),
            recycled: Plain::new(0),
        })
    }

    fn block(&self, region: usize, index: usize) -> Block {
        self.memory.block(region * BLOCKS_PER_REGION + index)
    }

    fn region_of(&self, block: Block) -> usize {
        self.memory.index(block) / BLOCKS_PER_REGION
    }

    // ---- a request's life --------------------------------------------------------------------

    /// `Control::open`.
    fn open(&self, id: u64) {
        self.control.id.write(|word| *word = id);
        self.control.large_count.open();
        self.control.footprint.store(0, Ordering::Relaxed);
        self.control.lanes.write(|lanes| assert!(lanes.regions.is_empty(), "a closer left it"));
        self.control.stray_bytes.store(0, Ordering::Relaxed);
        self.control.stray.open();
        self.control.handles.open();
    }

    /// Cuts a block in the lane, making its region if it is new.
    fn allocate(&self, region: usize, index: usize) -> Block {
        let block = self.block(region, index);
        let id = self.control.id.read(|id| *id);
        self.control.lanes.write(|lanes| {
            if !lanes.regions.contains(&region) {
                self.regions[region].count.arm();
                lanes.regions.push(region);
            }
            lanes.carved.push(block);
        });
        self.memory.header(block).store(Header::tag(id, LIVE).0, Ordering::Relaxed);
        block
    }

    /// `LargeList::link`, under the lock.
    fn allocate_large(&self) {
        let guard = self.large_lock.lock();
        self.control.large.write(|listed| *listed = true);
        self.control.large_count.add();
        self.control.footprint.fetch_add(1, Ordering::Relaxed);
        drop(guard);
    }

    /// Frees a block in the lane, as its occupant.
    fn free_in_lane(&self, block: Block) {
        let header = self.memory.look(block).without(LIVE);
        self.memory.header(block).store(header.0, Ordering::Relaxed);
        self.control.lanes.write(|lanes| lanes.bins.push(block));
    }

    /// `thread::drop_handle`.
    fn drop_handle(&self) {
        if self.control.handles.drop_one() {
            while self.control.handles.try_own().is_none() {
                thread::yield_now();
            }
            if self.finish() {
                self.recycle();
            }
        }
    }

    /// `Control::retire` and `Heap::recycle`.
    fn recycle(&self) {
        self.control.id.write(|id| *id = NO_ID);
        self.recycled.write(|times| *times += 1);
        self.pool.put(&self.control, CONTROL);
    }

    // ---- close -------------------------------------------------------------------------------

    /// `finish::finish` and `keep_survivors`; returns whether the control block is the caller's to
    /// recycle.
    fn finish(&self) -> bool {
        let control = &self.control;
        let strays = control.stray.close();
        let live = control.lanes.write(|lanes| {
            for block in strays.blocks(&self.memory) {
                settle_stray(&self.memory, block);
                lanes.bins.push(block);
                control.stray_bytes.fetch_sub(1, Ordering::Relaxed);
            }
            lanes.carved.len() - lanes.bins.len()
        });
        let large_count = control.large_count.count();
        let lanes = control.lanes.write(std::mem::take);
        if live as u64 + large_count == 0 {
            control.large.read(|listed| assert!(!*listed, "a list without blocks is empty"));
            lanes.regions.into_iter().for_each(|region| self.give_region(region));
            return true;
        }
        control.holds.begin();
        let mut left = live;
        for region in lanes.regions {
            let in_region = lanes.carved.iter().filter(|&&block| self.region_of(block) == region);
            let survivors =
                in_region.filter(|&&block| self.memory.look(block).has(LIVE)).take(left).count();
            left -= survivors;
            self.keep_region(region, survivors);
        }
        assert_eq!(left, 0, "S2: a block that is not in the chain is found live");
        self.keep_large();
        control.holds.drop_one()
    }

    fn keep_region(&self, region: usize, survivors: usize) {
        let span = &self.regions[region];
        if survivors == 0 {
            span.count.settle(0);
            self.give_region(region);
            return;
        }
        span.held.write(|held| *held = survivors);
        self.control.holds.add();
        if span.count.settle(survivors as u64) {
            assert!(!self.release_survivor_span(region), "the closer still holds it");
        }
    }

    fn keep_large(&self) {
        let _guard = self.large_lock.lock();
        if self.control.large.write(std::mem::take) {
            self.control.holds.add();
            self.large.detached.write(|detached| *detached = true);
        }
    }

    /// `finish::release_survivor_span`.
    fn release_survivor_span(&self, region: usize) -> bool {
        self.regions[region].held.read(|held| assert!(*held > 0, "the closer noted its count"));
        self.give_region(region);
        self.control.holds.drop_one()
    }

    /// Gives the pages to somebody else, who writes to them.
    fn give_region(&self, region: usize) {
        for index in 0..BLOCKS_PER_REGION {
            self.memory.use_payload(self.block(region, index));
        }
        self.regions[region].returned.write(|times| *times += 1);
    }

    // ---- frees from outside ------------------------------------------------------------------

    /// `Heap::free_in_region` in a thread outside the request.
    fn free_from_outside(&self, block: Block) {
        self.memory.use_payload(block);
        let id = self.memory.look(block).id();
        self.control.id.read(|now| {
            assert_eq!(*now, id, "Q1: a live block keeps its request's control block");
        });
        assert_eq!(claim_stray(&self.memory, block), Claim::Taken);
        self.control.stray_bytes.fetch_add(1, Ordering::Relaxed);
        if self.control.stray.push(&self.memory, block, block).is_ok() {
            return;
        }
        let region = self.region_of(block);
        if self.regions[region].count.drop_one() && self.release_survivor_span(region) {
            self.recycle();
        }
    }

    /// `Heap::free_large`.
    fn free_large(&self) {
        self.large.payload.write(|word| *word += 1);
        let unlinked = self.unlink_large();
        self.large.payload.write(|word| *word = 0);
        self.large.returned.write(|times| *times += 1);
        if !unlinked && self.control.holds.drop_one() {
            self.recycle();
        }
    }

    /// `LargeList::unlink`, under the lock. The block keeps the control block until it is off the
    /// count, so that comes last, and a closer that reads a count of zero sees the list without it.
    fn unlink_large(&self) -> bool {
        let _guard = self.large_lock.lock();
        if self.large.detached.read(|detached| *detached) {
            return false;
        }
        self.control.large.write(|listed| *listed = false);
        self.control.footprint.fetch_sub(1, Ordering::Relaxed);
        self.control.large_count.drop_one();
        true
    }

    // ---- what must be true after all threads were joined --------------------------------------

    fn assert_over(&self, regions: usize) {
        for (index, region) in self.regions.iter().enumerate() {
            let times = region.returned.read(|times| *times);
            assert_eq!(times, u32::from(index < regions), "region {index} is returned once");
        }
        let recycled = self.recycled.read(|times| *times);
        assert_eq!(recycled, 1, "the control block is recycled once");
        assert_eq!(self.pool.take(&self.control), Some(CONTROL), "and is in the pool");
        assert_eq!(self.pool.take(&self.control), None, "once");
    }
}

/// Spawns a thread for each of these blocks, to free it.
fn free_all<const COUNT: usize>(
    system: &Arc<System>,
    blocks: [Block; COUNT],
) -> [thread::JoinHandle<()>; COUNT] {
    blocks.map(|block| {
        let system = system.clone();
        thread::spawn(move || system.free_from_outside(block))
    })
}

fn join<const COUNT: usize>(threads: [thread::JoinHandle<()>; COUNT]) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// The free comes before the close, in the middle of it or after: the region and the control block
/// each go back once, after everybody's last access.
#[test]
fn close_against_stray_free() {
    explore(4, || {
        let system = System::new();
        system.open(1);
        let block = system.allocate(0, 0);
        let freers = free_all(&system, [block]);
        system.drop_handle();
        join(freers);
        system.assert_over(1);
    });
}

/// Two frees against the closer, of blocks of one region or of two.
#[test]
fn close_against_two_stray_frees() {
    for second in [(0, 1), (1, 0)] {
        explore(4, move || {
            let system = System::new();
            system.open(1);
            let blocks = [system.allocate(0, 0), system.allocate(second.0, second.1)];
            let freers = free_all(&system, blocks);
            system.drop_handle();
            join(freers);
            system.assert_over(second.0 + 1);
        });
    }
}

/// The request is closed; of the two threads that free its last survivors, one returns the span and
/// one recycles the control block.
#[test]
fn last_survivor_freed_by_two_threads() {
    for second in [(0, 1), (1, 0)] {
        explore(4, move || {
            let system = System::new();
            system.open(1);
            let blocks = [system.allocate(0, 0), system.allocate(second.0, second.1)];
            system.drop_handle();
            join(free_all(&system, blocks));
            system.assert_over(second.0 + 1);
        });
    }
}

/// A new request takes the control block as soon as it is pooled, while the old one's last survivor
/// is still on its way: the new request sees nothing of it, and the rest of the free touches
/// nothing of the new request.
#[test]
fn begin_reuses_control_block_while_old_survivor_is_freed() {
    explore(4, || {
        let system = System::new();
        system.open(1);
        let old = system.allocate(0, 0);
        let freers = free_all(&system, [old]);
        system.drop_handle();
        let Some(_control) = system.pool.take(&system.control) else {
            join(freers);
            return system.assert_over(1);
        };
        system.open(2);
        let new = system.allocate(1, 0);
        let more = free_all(&system, [new]);
        system.drop_handle();
        join(more);
        join(freers);
        assert_eq!(system.recycled.write(std::mem::take), 2, "recycled once for each request");
        system.recycled.write(|times| *times = 1);
        system.assert_over(2);
    });
}

/// As above, with the new request opened by a third thread.
#[test]
fn another_thread_begins_while_old_survivor_is_freed() {
    explore(4, || {
        let system = System::new();
        system.open(1);
        let old = system.allocate(0, 0);
        let freers = free_all(&system, [old]);
        let other = system.clone();
        let beginner = thread::spawn(move || {
            let Some(_control) = other.pool.take(&other.control) else { return false };
            other.open(2);
            let new = other.allocate(1, 0);
            other.free_in_lane(new);
            other.drop_handle();
            true
        });
        system.drop_handle();
        join(freers);
        let reused = usize::from(beginner.join().unwrap());
        let stray_bytes = system.control.stray_bytes.load(Ordering::Relaxed);
        assert!(reused == 0 || stray_bytes == 0, "the new request had no strays: {stray_bytes}");
        let recycled = system.recycled.write(|times| std::mem::replace(times, 1));
        assert_eq!(recycled as usize, 1 + reused, "recycled once for each request");
        system.assert_over(1 + reused);
    });
}

/// A thread outside grows a block of the request: it visits a lane and leaves a new block there, or
/// comes too late; then it frees what it has.
#[test]
fn foreign_block_grown_against_last_drop() {
    explore(4, || {
        let system = System::new();
        system.open(1);
        let old = system.allocate(0, 0);
        let other = system.clone();
        let grower = thread::spawn(move || {
            let mut new = None;
            if other.control.handles.try_visit() {
                assert!(other.control.occupancy.try_enter(), "nobody else is in the lane");
                new = Some(other.allocate(0, 1));
                other.control.occupancy.leave();
                other.control.handles.end_visit();
            }
            other.free_from_outside(old);
            new.into_iter().for_each(|block| other.free_from_outside(block));
        });
        system.drop_handle();
        grower.join().unwrap();
        system.assert_over(1);
    });
}

/// A large block is freed from outside while its request is closed and its control block reused: it
/// is unlinked by the one or detached by the other, and its memory goes back once.
#[test]
fn large_block_freed_against_close() {
    explore(4, || {
        let system = System::new();
        system.open(1);
        system.allocate_large();
        let other = system.clone();
        let freer = thread::spawn(move || other.free_large());
        system.drop_handle();
        let reused = system.pool.take(&system.control).is_some();
        if reused {
            system.open(2);
        }
        freer.join().unwrap();
        if reused {
            let footprint = system.control.footprint.load(Ordering::Relaxed);
            let figures = [system.control.large_count.count(), footprint];
            assert_eq!(figures, [0, 0], "Q1: freeing an old block touches no new request");
            system.recycled.write(|times| *times = 0);
            system.drop_handle();
        }
        system.large.returned.read(|times| assert_eq!(*times, 1, "the memory goes back once"));
        system.assert_over(0);
    });
}
