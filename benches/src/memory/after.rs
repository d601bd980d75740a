//! What stays after a burst.

use super::{glance, in_request, mark, traffic, trimmed, value};
use crate::Context;
use crate::rng::Rng;
use rqmalloc::Request;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Reached by ordinary traffic, and by a thread that allocates now and then.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(10);

/// Marks at two and at ten seconds of a thread that allocates now and then.
fn glances() {
    glance(SOON);
    mark("2s");
    glance(LATER - SOON);
    mark("10s");
}

pub fn requests(context: Context) {
    const REQUESTS: usize = 1_000_000;
    let mut open: Vec<Request> = Vec::with_capacity(REQUESTS);
    mark("start");
    for _ in 0..REQUESTS {
        open.push(Request::new());
    }
    mark("open");
    drop(open);
    mark("closed");
    traffic(context, SOON);
    mark("2s");
    trimmed(context);
}

/// One thread after the other fills its caches and then sleeps.
pub fn threads(context: Context) {
    const THREADS: usize = 150;
    // Sizes up to 1 MiB, four a doubling; what is live at once of each is some 400 KB.
    const STEPS: usize = 60;
    const LIVE_BYTES: usize = 400_000;
    fn work() {
        for step in 0..STEPS {
            let base = 1 << (step / 4 + 5);
            let size = (base + base / 4 * (step % 4)).min(MIB);
            let count = (LIVE_BYTES / size).clamp(3, 2000);
            let blocks: Vec<Vec<u8>> = (0..count).map(|_| vec![1; size]).collect();
            black_box(&blocks);
        }
    }
    mark("start");
    let passes = if context.quick { 2 } else { 6 };
    let barrier = Arc::new(Barrier::new(THREADS + 1));
    let (done, is_done) = mpsc::channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (done, barrier) = (done.clone(), barrier.clone());
            let builder = thread::Builder::new().stack_size(128 << 10);
            let body = move || {
                for _ in 0..passes {
                    work();
                }
                done.send(()).expect("the receiver waits");
                barrier.wait();
            };
            let thread = builder.spawn(body).expect("a thread");
            is_done.recv().expect("the thread sends");
            thread
        })
        .collect();
    mark("idle");
    traffic(context, SOON);
    mark("2s");
    trimmed(context);
    barrier.wait();
    for thread in threads {
        thread.join().expect("no panic");
    }
    mark("joined");
}

pub fn warm(context: Context) {
    const BURST: usize = 100;
    let one = || {
        for _ in 0..20 {
            in_request(context, || {
                let blocks: Vec<Vec<u8>> = (0..500).map(|_| Vec::with_capacity(500)).collect();
                black_box(&blocks);
            });
        }
        let boxes: Vec<Box<[u8; 3000]>> = (0..100).map(|_| Box::new([0; 3000])).collect();
        black_box(&boxes);
    };
    one();
    mark("start");
    let blocks = || (0..2000).map(|_| vec![1_u8; 500]).collect::<Vec<_>>();
    if context.hooks.is_some() {
        let open: Vec<Request> = (0..BURST)
            .map(|_| {
                let request = Request::new();
                request.run(|| drop(black_box(blocks())));
                request
            })
            .collect();
        mark("open");
        for request in open {
            let _ = request.close();
        }
    } else {
        let open: Vec<_> = (0..BURST).map(|_| blocks()).collect();
        mark("open");
        drop(open);
    }
    mark("closed");
    super::every_millisecond(SOON, one);
    mark("2s");
    super::every_millisecond(LATER, one);
    mark("12s");
    trimmed(context);
}

pub fn light(context: Context) {
    let mut rng = Rng::new(1);
    mark("start");
    let mut bytes = 0;
    let mut blocks = Vec::new();
    while bytes < 400 * MIB {
        let size = rng.between(16, 512);
        bytes += size;
        blocks.push(vec![1_u8; size]);
    }
    mark("full");
    drop(blocks);
    mark("freed");
    glances();
    trimmed(context);
}

/// Blocks that come and go, of small and of large sizes.
struct Slots {
    rng: Rng,
    slots: Vec<Vec<u8>>,
}

impl Slots {
    fn new(seed: u64, count: usize) -> Self {
        Self { rng: Rng::new(seed), slots: (0..count).map(|_| Vec::new()).collect() }
    }

    fn replace(&mut self, count: usize) {
        const MOST: [usize; 8] = [32, 64, 100, 200, 400, 1000, 4000, 30_000];
        for _ in 0..count {
            let most = MOST[self.rng.below(MOST.len())];
            let size = self.rng.between(8, most);
            let index = self.rng.below(self.slots.len());
            self.slots[index] = vec![1; size];
        }
    }
}

pub fn mixed(context: Context) {
    const THREADS: usize = 2;
    mark("start");
    let stage = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for seed in 0..THREADS as u64 {
            let stage = &stage;
            scope.spawn(move || {
                // Some 200 MiB of the burst, and 2 MiB of what goes on.
                let mut burst = Slots::new(seed + 1, 80_000);
                burst.replace(200_000);
                stage.wait();
                stage.wait();
                drop(burst);
                stage.wait();
                let mut slots = Slots::new(seed + 3, 800);
                for _ in 0..2 {
                    super::every_millisecond(LATER, || slots.replace(100));
                    stage.wait();
                    stage.wait();
                }
            });
        }
        stage.wait();
        mark("full");
        stage.wait();
        stage.wait();
        mark("freed");
        for name in ["10s", "20s"] {
            stage.wait();
            mark(name);
            stage.wait();
        }
    });
    trimmed(context);
}

/// A group-by: rows are made, grouped by a string, sorted, and a part goes to the caller.
fn query(rng: &mut Rng, rows: usize) -> Vec<(String, u64)> {
    let keys: Vec<String> =
        (0..rows).map(|_| format!("customer {:07}", rng.below(rows / 2))).collect();
    let column: Vec<u64> = (0..rows).map(|_| rng.next() >> 40).collect();
    let mut groups: HashMap<&str, Vec<u64>, BuildHasherDefault<DefaultHasher>> = HashMap::default();
    for (key, &number) in keys.iter().zip(&column) {
        groups.entry(key).or_default().push(number);
    }
    let mut sums: Vec<(String, u64)> =
        groups.iter().map(|(key, numbers)| ((*key).to_owned(), numbers.iter().sum())).collect();
    sums.sort_unstable_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    sums.truncate(rows / 20);
    sums
}

pub fn engine(context: Context) {
    const THREADS: usize = 4;
    const QUERIES: usize = 6;
    const ROWS: usize = 200_000;
    mark("start");
    let (results, received) = mpsc::channel();
    // Who holds a sender lets its thread sleep.
    let (threads, sleepers): (Vec<_>, Vec<_>) = (0..THREADS as u64)
        .map(|seed| {
            let results = results.clone();
            let (sleeper, sleeping) = mpsc::channel::<()>();
            let thread = thread::spawn(move || {
                let mut rng = Rng::new(seed + 1);
                for _ in 0..QUERIES {
                    let rows = rng.between(ROWS / 4, ROWS);
                    results.send(query(&mut rng, rows)).expect("it is received");
                }
                drop(results);
                let _ = sleeping.recv();
            });
            (thread, sleeper)
        })
        .unzip();
    drop(results);
    for result in received {
        black_box(&result);
    }
    mark("idle");
    glances();
    trimmed(context);
    drop(sleepers);
    for thread in threads {
        thread.join().expect("no panic");
    }
    mark("joined");
}

/// Requests with two threads inside, before and after one with many.
pub fn lanes(context: Context) {
    const MANY: usize = 1500;
    // Enough that what counts is not the change of threads.
    const BATCH: usize = 10;
    const BATCHES: usize = 600;
    let work = || {
        let blocks: Vec<Vec<u8>> = (0..50).map(|_| vec![1; 100]).collect();
        black_box(&blocks);
    };
    // The other thread is inside while this one still is: each request has two lanes.
    let (send, receive) = mpsc::channel::<Vec<Request>>();
    let (reply, replied) = mpsc::channel();
    let other = thread::spawn(move || {
        for requests in receive {
            for request in &requests {
                request.run(work);
            }
            drop(requests);
            reply.send(()).expect("it is received");
        }
    });
    let microseconds = || {
        let start = super::Figures::read().processor;
        for _ in 0..BATCHES {
            let requests: Vec<Request> = (0..BATCH).map(|_| Request::new()).collect();
            send.send(requests.clone()).expect("it is received");
            fn nested(requests: &[Request], work: &dyn Fn(), inside: &dyn Fn()) {
                match requests.split_first() {
                    Some((request, rest)) => request.run(|| {
                        work();
                        nested(rest, work, inside);
                    }),
                    None => inside(),
                }
            }
            nested(&requests, &work, &|| replied.recv().expect("it replies"));
            for request in requests {
                black_box(request.usage());
                let _ = request.close();
            }
        }
        (super::Figures::read().processor - start) * 1e6 / (BATCH * BATCHES) as f64
    };
    microseconds();
    mark("start");
    let before = microseconds();
    let request = Request::new();
    let barrier = Barrier::new(MANY);
    thread::scope(|scope| {
        for _ in 0..MANY {
            let builder = thread::Builder::new().stack_size(64 << 10);
            let body = || {
                request.run(|| {
                    work();
                    barrier.wait();
                });
            };
            builder.spawn_scoped(scope, body).expect("a thread");
        }
    });
    mark("many");
    let _ = request.close();
    mark("closed");
    let after = microseconds();
    value("microseconds_before", before);
    value("microseconds_after", after);
    traffic(context, SOON);
    mark("2s");
    trimmed(context);
    drop(send);
    other.join().expect("no panic");
}
