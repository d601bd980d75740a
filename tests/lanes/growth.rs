//! How much memory a request holds beyond what is live in it.

use crate::support::{Held, PAGE, REGION, Random, close_empty, persistent_vec, together};
use rqmalloc::{Request, persistent};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Barrier};

/// The live bytes, as the test counts them.
#[derive(Default)]
struct Live {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Live {
    fn add(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

type Batch = Vec<Vec<u8>>;

fn bytes_of(batch: &Batch) -> usize {
    batch.iter().map(|item| item.capacity() + 8).sum::<usize>() + batch.capacity() * 24 + 8
}

const DEPTH: usize = 100;

fn produce(live: &Live, sender: &SyncSender<Batch>, batches: u64, size: impl Fn(u64) -> usize) {
    for number in 0..batches {
        let batch: Batch = (0..100)
            .map(|index| {
                let mut item = Vec::with_capacity(size(number * 100 + index));
                item.push(index as u8);
                item
            })
            .collect();
        live.add(bytes_of(&batch));
        persistent(|| sender.send(batch)).unwrap();
    }
}

fn consume(live: &Live, receiver: &Receiver<Batch>) {
    while let Ok(batch) = persistent(|| receiver.recv()) {
        let bytes = bytes_of(&batch);
        assert!(batch.iter().enumerate().all(|(index, item)| item[0] == index as u8));
        drop(batch);
        live.sub(bytes);
    }
}

/// Runs a producer and a consumer in threads of their own, both inside; the consumer begins when
/// the channel is full.
fn produce_and_consume(batches: u64, size: fn(u64) -> usize) {
    let request = Request::new();
    let live = Arc::new(Live::default());
    let barrier = Arc::new(Barrier::new(2));
    let (sender, receiver) = sync_channel(DEPTH);
    let producer = {
        let (request, live, barrier) = (request.clone(), live.clone(), barrier.clone());
        std::thread::spawn(move || {
            request.run(|| {
                produce(&live, &sender, DEPTH as u64, size);
                barrier.wait();
                produce(&live, &sender, batches, size);
                persistent(|| drop(sender));
            });
        })
    };
    let consumer = {
        let (request, live) = (request.clone(), live.clone());
        std::thread::spawn(move || {
            request.run(|| {
                barrier.wait();
                consume(&live, &receiver);
                persistent(|| drop(receiver));
            });
        })
    };
    producer.join().unwrap();
    consumer.join().unwrap();
    let peak = live.peak.load(Ordering::Relaxed);
    let usage = request.usage();
    eprintln!("live peak {peak}, {usage:?}");
    assert!(peak > 2 << 20, "a live peak of {peak} says little");
    assert!(
        usage.peak_bytes >= peak / 2 && usage.peak_bytes <= 2 * peak + REGION,
        "{peak}, {usage:?}"
    );
    close_empty(request);
}

const BATCHES: u64 = if cfg!(debug_assertions) { 3_000 } else { 10_000 };

#[test]
fn a_producer_and_a_consumer_of_one_size() {
    let _together = together();
    produce_and_consume(BATCHES, |_| 300);
}

#[test]
fn a_producer_and_a_consumer_of_many_sizes() {
    let _together = together();
    produce_and_consume(BATCHES, |number| 16 + (number * 7919 % 1000) as usize);
}

/// The sizes shift but the live bytes of a phase do not: what the last phase freed serves the next.
#[test]
fn a_producer_and_a_consumer_whose_sizes_shift() {
    let _together = together();
    const BASES: [u64; 8] = [128, 2048, 64, 1024, 256, 4096, 512, 128];
    const BATCH_BYTES: u64 = 50_000;
    let request = Request::new();
    let live = Arc::new(Live::default());
    let barrier = Arc::new(Barrier::new(2));
    let (sender, receiver) = sync_channel::<Batch>(DEPTH);
    let consumer = {
        let (request, live, barrier) = (request.clone(), live.clone(), barrier.clone());
        std::thread::spawn(move || {
            request.run(|| {
                for _ in BASES {
                    barrier.wait();
                    for _ in 0..5 * DEPTH {
                        let batch = persistent(|| receiver.recv()).unwrap();
                        live.sub(bytes_of(&batch));
                    }
                    barrier.wait();
                }
                persistent(|| drop(receiver));
            });
        })
    };
    request.run(|| {
        let mut random = Random::new(12);
        for base in BASES {
            for number in 0..5 * DEPTH {
                if number == DEPTH {
                    barrier.wait();
                }
                let count = BATCH_BYTES / (base * 3 / 2);
                let size = |random: &mut Random| base as usize + random.below(base as usize);
                let batch: Batch =
                    (0..count).map(|_| Vec::with_capacity(size(&mut random))).collect();
                live.add(bytes_of(&batch));
                persistent(|| sender.send(batch)).unwrap();
            }
            barrier.wait();
            assert_eq!(live.now.load(Ordering::Relaxed), 0);
        }
        persistent(|| drop(sender));
    });
    persistent(|| consumer.join()).unwrap();
    let peak = live.peak.load(Ordering::Relaxed);
    let usage = request.usage();
    eprintln!("live peak {peak}, {usage:?}");
    assert!(peak > 4 << 20, "a live peak of {peak} says little");
    assert!(usage.peak_bytes <= 2 * peak + REGION, "{peak}, {usage:?}");
    close_empty(request);
}

/// Producer, worker, consumer: what the last one frees gets back to the first.
#[test]
fn a_pipeline_of_three() {
    let _together = together();
    let request = Request::new();
    let live = Arc::new(Live::default());
    let (first, middle) = sync_channel(DEPTH);
    let (second, last) = sync_channel::<Batch>(DEPTH);
    let producer = {
        let (request, live) = (request.clone(), live.clone());
        std::thread::spawn(move || {
            request.run(|| {
                produce(&live, &first, BATCHES, |number| 100 + (number % 300) as usize);
                persistent(|| drop(first));
            });
        })
    };
    let worker = {
        let (request, live) = (request.clone(), live.clone());
        std::thread::spawn(move || {
            request.run(|| {
                while let Ok(mut batch) = persistent(|| middle.recv()) {
                    let before = bytes_of(&batch);
                    // Half of the batch grows here.
                    batch.iter_mut().step_by(2).for_each(|item| item.reserve(500));
                    live.add(bytes_of(&batch));
                    live.sub(before);
                    persistent(|| second.send(batch)).unwrap();
                }
                persistent(|| drop((middle, second)));
            });
        })
    };
    let consumer = {
        let (request, live) = (request.clone(), live.clone());
        std::thread::spawn(move || {
            request.run(|| {
                consume(&live, &last);
                persistent(|| drop(last));
            });
        })
    };
    for thread in [producer, worker, consumer] {
        thread.join().unwrap();
    }
    let peak = live.peak.load(Ordering::Relaxed);
    let usage = request.usage();
    eprintln!("live peak {peak}, {usage:?}");
    // What is on its way counts for little when the queues run empty, hence three regions of slack.
    assert!(usage.peak_bytes <= 2 * peak.max(1 << 20) + 3 * REGION, "{peak}, {usage:?}");
    close_empty(request);
}

/// The live bytes stay about the same; the sizes do not.
#[test]
fn a_long_request_whose_sizes_shift() {
    let _together = together();
    const TARGET: usize = 4 << 20;
    let mut random = Random::new(88_172);
    let mut slots: Vec<Vec<u8>> = Vec::with_capacity(600_000);
    let request = Request::new();
    let (mut live, mut live_peak) = (0, 0);
    request.run(|| {
        for phase in 0..40 {
            let base = 16usize << (phase % 9);
            for _ in 0..(4 * TARGET / base).min(100_000) {
                let item = Vec::<u8>::with_capacity(base / 2 + random.below(base));
                live += item.capacity() + 8;
                slots.push(item);
                while live > TARGET {
                    let item = slots.swap_remove(random.below(slots.len()));
                    live -= item.capacity() + 8;
                }
            }
            live_peak = live_peak.max(request.usage().live_bytes);
        }
        rqmalloc::check_structures();
    });
    assert!(slots.capacity() == 600_000, "the slots are outside");
    let usage = request.usage();
    eprintln!("live peak {live_peak}, {usage:?}");
    assert!(live_peak >= TARGET);
    assert_eq!(usage.live_blocks, slots.len() as u64);
    assert!(2 * usage.peak_bytes <= 3 * live_peak, "{live_peak}, {usage:?}");
    drop(slots);
    close_empty(request);
}

#[test]
fn a_small_survivor_pins_one_page() {
    let _together = together();
    let request = Request::new();
    let mut held = persistent_vec();
    let survivor = request.run(|| {
        held.extend((0..10_000).map(|seed| Held::new(300, seed)));
        let survivor = Held::new(50, 77);
        held.extend((0..10_000).map(|seed| Held::new(300, seed)));
        held.extend((0..5).map(|seed| Held::new(100_000, seed)));
        survivor
    });
    assert!(request.usage().footprint_bytes > 6 << 20);
    held.into_iter().for_each(Held::free);
    let report = request.close().unwrap();
    assert_eq!(
        (report.surviving_blocks, report.surviving_bytes, report.span_bytes),
        (1, 64, PAGE),
        "{report}"
    );
    survivor.free();
}

/// The thread with the only handle can close at any time, while others grow blocks of the request;
/// and callbacks of the request do not run in the middle of somebody's `Vec::push`.
#[test]
fn growth_from_outside_keeps_nobody_from_closing_and_runs_nothing() {
    let _together = together();
    static HELD_WHILE_GROWING: std::sync::Mutex<u64> = std::sync::Mutex::new(0);
    for round in 0..3_000_u64 {
        let request =
            Request::builder().on_end(|| *HELD_WHILE_GROWING.lock().unwrap() += 1).build();
        let mut grown: Vec<u8> = request.run(|| Vec::with_capacity(16));
        let is_growing = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let is_growing = &is_growing;
            let grower = scope.spawn(move || {
                is_growing.store(true, std::sync::atomic::Ordering::Relaxed);
                for size in (0..40).map(|step| 20 << (step % 11)) {
                    let mut held = HELD_WHILE_GROWING.lock().unwrap();
                    grown.reserve_exact(size);
                    grown.shrink_to(16);
                    *held += 1;
                }
                grown
            });
            while !is_growing.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            (0..round % 600).for_each(|_| std::hint::spin_loop());
            let report = request.close().expect("a visitor is no holder");
            assert!(report.surviving_blocks <= 2, "{report}");
            drop(grower.join().unwrap());
        });
    }
}
