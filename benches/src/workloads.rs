//! The workloads. Each is timed after an untimed pass and returns nanoseconds per operation;
//! [`ALL`] says for each what an operation is. "Block" always means one allocation together with
//! its free.

use crate::rng::Rng;
use crate::{Context, Hooks, json};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::mem;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Instant;

pub struct Workload {
    pub name: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    /// Returns nanoseconds per operation; `None` if the allocator has no requests and needs them.
    pub run: fn(Context) -> Option<f64>,
}

const fn workload(
    name: &'static str,
    unit: &'static str,
    run: fn(Context) -> Option<f64>,
) -> Workload {
    Workload { name, unit, run }
}

pub const ALL: &[Workload] = &[
    workload("same_size", "block", same_size),
    workload("alloc_free_batch", "block", alloc_free_batch),
    workload("box_tree", "node", box_tree),
    workload("churn_1000", "block", churn_1000),
    workload("churn_large_mixed", "block", churn_large_mixed),
    workload("multi_mb", "block", multi_mb),
    workload("vec_growth", "vector", vec_growth),
    workload("string_building", "string", string_building),
    workload("hashmap", "insert+remove", hashmap),
    workload("json_drop", "document", json_drop),
    workload("json_request", "document", json_request),
    workload("box_tree_request", "node", box_tree_request),
    workload("producer_consumer", "block", producer_consumer),
    workload("threads_churn", "block", threads_churn),
    workload("thread_storm", "thread", thread_storm),
    workload("empty_request", "begin+end", empty_request),
];

pub fn find(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}

const PAGE: usize = 4096;

/// Runs `pass` once untimed, then `passes` times timed (a tenth of them if quick). A pass is
/// `operations` operations.
fn timed(context: Context, passes: usize, operations: usize, mut pass: impl FnMut()) -> f64 {
    let passes = if context.quick { passes.div_ceil(10) } else { passes };
    pass();
    let start = Instant::now();
    for _ in 0..passes {
        pass();
    }
    start.elapsed().as_nanos() as f64 / (passes * operations) as f64
}

/// Runs `body` in a request that ends with all its blocks at once, or, without `hooks`, just runs
/// it. `body` passes what it wants freed to `discard` with the same hooks.
///
/// # Safety
///
/// Nothing that `body` allocates is used after it returns.
unsafe fn in_request<R: Copy>(hooks: Option<Hooks>, body: impl FnOnce() -> R) -> R {
    let Some(hooks) = hooks else {
        return body();
    };
    (hooks.begin)();
    let result = body();
    // SAFETY: the caller's promise.
    unsafe { (hooks.end)() };
    result
}

/// Forgets what the end of a request will free, or drops it if there are no requests.
fn discard<T>(hooks: Option<Hooks>, value: T) {
    match hooks {
        Some(_) => mem::forget(value),
        None => drop(value),
    }
}

fn same_size(context: Context) -> Option<f64> {
    const BLOCKS: usize = 1_000_000;
    Some(timed(context, 40, BLOCKS, || {
        for _ in 0..BLOCKS {
            drop(black_box(Box::<[u8; 64]>::new_uninit()));
        }
    }))
}

/// Allocates 256 blocks and frees them in reverse order, then again in order.
fn alloc_free_batch(context: Context) -> Option<f64> {
    const BATCH: usize = 256;
    const BATCHES: usize = 1000;
    let mut blocks = Vec::with_capacity(BATCH);
    Some(timed(context, 50, BATCHES * BATCH * 2, || {
        for _ in 0..BATCHES {
            for _ in 0..BATCH {
                blocks.push(black_box(Box::<[u8; 48]>::new_uninit()));
            }
            while let Some(block) = blocks.pop() {
                drop(block);
            }
            for _ in 0..BATCH {
                blocks.push(black_box(Box::<[u8; 48]>::new_uninit()));
            }
            for block in blocks.drain(..) {
                drop(block);
            }
        }
    }))
}

struct Node {
    value: u64,
    children: Option<[Box<Node>; 2]>,
}

impl Node {
    /// Builds a full tree of 2^(depth + 1) - 1 nodes.
    fn build(depth: u32, value: u64) -> Box<Node> {
        Box::new(Node {
            value,
            children: (depth > 0).then(|| {
                [Node::build(depth - 1, 2 * value), Node::build(depth - 1, 2 * value + 1)]
            }),
        })
    }

    fn leftmost(&self) -> u64 {
        match &self.children {
            Some([left, _]) => left.leftmost(),
            None => self.value,
        }
    }
}

fn tree(context: Context, hooks: Option<Hooks>) -> f64 {
    let depth = if context.quick { 16 } else { 19 };
    let nodes = (1 << (depth + 1)) - 1;
    timed(context, 10, nodes, || {
        let build = || {
            let root = Node::build(depth, 1);
            assert_eq!(black_box(&root).leftmost(), 1 << depth);
            discard(hooks, root);
        };
        // SAFETY: the tree is all that is allocated, and it is dropped or forgotten.
        unsafe { in_request(hooks, build) }
    })
}

fn box_tree(context: Context) -> Option<f64> {
    Some(tree(context, None))
}

fn box_tree_request(context: Context) -> Option<f64> {
    Some(tree(context, context.hooks))
}

/// Allocates a block of `size` bytes and writes its first and last byte.
fn small_block(size: usize) -> Vec<u8> {
    let mut block = Vec::with_capacity(size);
    let spare = block.spare_capacity_mut();
    spare[0].write(1);
    spare[size - 1].write(2);
    black_box(block)
}

/// Allocates a block of `size` bytes and writes one byte of each of its pages.
fn large_block(size: usize) -> Vec<u8> {
    let mut block = Vec::with_capacity(size);
    for byte in block.spare_capacity_mut().iter_mut().step_by(PAGE) {
        byte.write(1);
    }
    black_box(block)
}

/// Slots whose blocks are replaced in random order.
struct Churn {
    rng: Rng,
    slots: Vec<Vec<u8>>,
}

impl Churn {
    fn new(seed: u64, slots: usize) -> Self {
        Churn { rng: Rng::new(seed), slots: vec![Vec::new(); slots] }
    }

    fn replace(&mut self, blocks: usize, block: impl Fn(&mut Rng) -> Vec<u8>) {
        for _ in 0..blocks {
            let slot = self.rng.below(self.slots.len());
            self.slots[slot] = block(&mut self.rng);
        }
    }

    fn replace_small(&mut self, blocks: usize) {
        self.replace(blocks, |rng| small_block(rng.between(8, 1024)));
    }
}

fn churn_1000(context: Context) -> Option<f64> {
    const BLOCKS: usize = 100_000;
    let mut churn = Churn::new(1, 1000);
    Some(timed(context, 100, BLOCKS, || churn.replace_small(BLOCKS)))
}

/// Sizes from 16 bytes to 512 KiB, equally many in each doubling.
fn churn_large_mixed(context: Context) -> Option<f64> {
    const BLOCKS: usize = 20_000;
    let mut churn = Churn::new(2, 500);
    Some(timed(context, 20, BLOCKS, || {
        churn.replace(BLOCKS, |rng| {
            let floor = 1 << rng.between(4, 18);
            large_block(rng.between(floor, 2 * floor))
        });
    }))
}

fn multi_mb(context: Context) -> Option<f64> {
    const BLOCKS: usize = 200;
    const MIB: usize = 1 << 20;
    let mut churn = Churn::new(3, 6);
    Some(timed(context, 20, BLOCKS, || {
        churn.replace(BLOCKS, |rng| large_block(rng.between(MIB, 8 * MIB)));
    }))
}

/// Pushes 100,000 numbers to an empty vector.
fn vec_growth(context: Context) -> Option<f64> {
    const VECTORS: usize = 100;
    Some(timed(context, 20, VECTORS, || {
        for _ in 0..VECTORS {
            let mut numbers = Vec::new();
            for number in 0..100_000u64 {
                numbers.push(black_box(number));
            }
            black_box(&numbers);
        }
    }))
}

/// Strings that grow by formatting and are split, changed and joined.
fn string_building(context: Context) -> Option<f64> {
    const STRINGS: usize = 2000;
    let mut rng = Rng::new(4);
    Some(timed(context, 30, STRINGS, || {
        for _ in 0..STRINGS {
            let mut line = String::new();
            for field in 0..rng.between(4, 16) {
                write!(line, "field{field}={} ", rng.below(1_000_000)).unwrap();
            }
            let words: Vec<String> = line.split(' ').map(str::to_uppercase).collect();
            black_box(words.join(", "));
        }
    }))
}

/// A map of 20,000 `String` keys: each step inserts a new one and removes the oldest.
fn hashmap(context: Context) -> Option<f64> {
    const STEPS: usize = 20_000;
    const KEYS: u64 = 20_000;
    let mut map = HashMap::<String, u64, BuildHasherDefault<DefaultHasher>>::default();
    let mut next = 0;
    Some(timed(context, 40, STEPS, || {
        for _ in 0..STEPS {
            map.insert(format!("customer/{next:010}"), next);
            if let Some(oldest) = next.checked_sub(KEYS) {
                let removed = map.remove(&format!("customer/{oldest:010}"));
                assert_eq!(removed, Some(oldest));
            }
            next += 1;
        }
    }))
}

fn documents(context: Context, hooks: Option<Hooks>) -> f64 {
    const DOCUMENTS: usize = 100;
    let text = json::document();
    let expected = json::walk(&serde_json::from_str(&text).unwrap());
    timed(context, 15, DOCUMENTS, || {
        for _ in 0..DOCUMENTS {
            let handle = || {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                let seen = json::walk(&value);
                let output = serde_json::to_string(&value).unwrap();
                let length = black_box(&output).len();
                discard(hooks, (value, output));
                (seen, length)
            };
            // SAFETY: two numbers are all that leaves the closure.
            let (seen, length) = unsafe { in_request(hooks, handle) };
            assert_eq!(seen, expected);
            assert!(length > text.len() / 2);
        }
    })
}

fn json_drop(context: Context) -> Option<f64> {
    Some(documents(context, None))
}

fn json_request(context: Context) -> Option<f64> {
    Some(documents(context, context.hooks))
}

/// One thread allocates, another frees; batches of blocks go through a bounded channel.
fn producer_consumer(context: Context) -> Option<f64> {
    const BATCH: usize = 128;
    const WARM_UP: usize = 200;
    let batches = if context.quick { 2000 } else { 20_000 };
    let (sender, receiver) = mpsc::sync_channel::<Vec<Vec<u8>>>(32);
    let producer = thread::spawn(move || {
        let mut rng = Rng::new(5);
        for _ in 0..WARM_UP + batches {
            let batch = (0..BATCH).map(|_| small_block(rng.between(8, 256)));
            sender.send(batch.collect()).unwrap();
        }
    });
    receiver.iter().take(WARM_UP).for_each(drop);
    let start = Instant::now();
    let mut received = 0;
    for batch in receiver {
        received += batch.len();
        drop(batch);
    }
    let elapsed = start.elapsed();
    producer.join().unwrap();
    assert_eq!(received, batches * BATCH);
    Some(elapsed.as_nanos() as f64 / received as f64)
}

/// `churn_1000` in two threads at once: wall time divided by the blocks of both.
fn threads_churn(context: Context) -> Option<f64> {
    const THREADS: usize = 2;
    const BLOCKS: usize = 100_000;
    let passes = if context.quick { 5 } else { 50 };
    let barrier = Barrier::new(THREADS + 1);
    let elapsed = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut churn = Churn::new(seed as u64 + 6, 1000);
                    churn.replace_small(BLOCKS);
                    barrier.wait();
                    churn.replace_small(passes * BLOCKS);
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        for thread in threads {
            thread.join().unwrap();
        }
        start.elapsed()
    });
    Some(elapsed.as_nanos() as f64 / (THREADS * passes * BLOCKS) as f64)
}

/// Threads that live for a hundred allocations; the thread that joins them frees half of the
/// blocks.
fn thread_storm(context: Context) -> Option<f64> {
    const GROUPS: usize = 25;
    const GROUP: usize = 8;
    const BLOCKS: usize = 100;
    Some(timed(context, 20, GROUPS * GROUP, || {
        for group in 0..GROUPS {
            let threads: [_; GROUP] = std::array::from_fn(|index| {
                thread::spawn(move || {
                    let mut rng = Rng::new((group * GROUP + index) as u64);
                    let mut blocks: Vec<_> =
                        (0..BLOCKS).map(|_| small_block(rng.between(8, 512))).collect();
                    blocks.truncate(BLOCKS / 2);
                    blocks
                })
            });
            for thread in threads {
                assert_eq!(thread.join().unwrap().len(), BLOCKS / 2);
            }
        }
    }))
}

fn empty_request(context: Context) -> Option<f64> {
    const REQUESTS: usize = 100_000;
    let hooks = context.hooks?;
    Some(timed(context, 50, REQUESTS, || {
        for _ in 0..REQUESTS {
            // SAFETY: nothing is allocated.
            unsafe { in_request(Some(hooks), || ()) };
        }
    }))
}
