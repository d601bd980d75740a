//! A server's mix, for as long as you have.

use super::{in_request, mark};
use crate::Context;
use crate::rng::Rng;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What all threads share: at most `ENTRIES` texts, which are replaced.
struct Cache {
    map: Mutex<HashMap<u32, Arc<str>, BuildHasherDefault<DefaultHasher>>>,
}

const ENTRIES: usize = 200_000;
const CONNECTIONS: usize = 200;
const THREADS: u64 = 3;
/// A thread's turns are this far apart, so that a machine of two cores is half busy.
const PAUSE: Duration = Duration::from_millis(1);
/// A burst comes every so many turns of a thread.
const BURST_TURNS: u32 = 4000;
const BURST_REQUESTS: usize = 60;

impl Cache {
    fn get(&self, key: u32, make: impl FnOnce() -> Arc<str>) -> Arc<str> {
        let mut map = self.map.lock().expect("nobody panics");
        map.entry(key).or_insert_with(make).clone()
    }

    fn forget(&self, key: u32) {
        let old = self.map.lock().expect("nobody panics").remove(&key);
        drop(old);
    }
}

/// What a connection keeps from request to request.
#[derive(Default)]
struct Connection {
    buffer: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Connection {
    fn read(&mut self, rng: &mut Rng) {
        let length = rng.between(100, 4000);
        self.buffer.clear();
        self.buffer.resize(length, b'x');
        if self.buffer.capacity() > 2 * length {
            self.buffer.shrink_to_fit();
        }
        self.headers.clear();
        for index in 0..rng.between(3, 12) {
            let value = "v".repeat(rng.between(4, 80));
            self.headers.push((format!("header-{index}"), value));
        }
    }
}

/// Answers one request with what is in the cache; makes what is not.
fn answer(context: Context, rng: &mut Rng, cache: &Cache, connection: &mut Connection) -> usize {
    connection.read(rng);
    let keys: Vec<u32> = (0..8).map(|_| rng.below(ENTRIES * 5 / 4) as u32).collect();
    let mut length = 0;
    let mut missing = Vec::new();
    in_request(context, || {
        let rows: Vec<Vec<u8>> =
            (0..rng.between(20, 300)).map(|_| vec![1; rng.between(8, 400)]).collect();
        let mut text = String::new();
        for (name, value) in &connection.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        length = rows.iter().map(Vec::len).sum::<usize>() + text.len();
        black_box((&rows, &text));
    });
    for key in keys {
        let text = cache.get(key, || {
            missing.push(key);
            "t".repeat(rng.between(10, 500)).into()
        });
        length += text.len();
    }
    // As many go as came.
    for _ in missing {
        cache.forget(rng.below(ENTRIES * 5 / 4) as u32);
    }
    length
}

fn burst(context: Context, rng: &mut Rng) {
    let sizes: Vec<usize> = (0..BURST_REQUESTS * 1000).map(|_| rng.between(16, 1000)).collect();
    if context.hooks.is_some() {
        let requests: Vec<_> = sizes
            .chunks(1000)
            .map(|sizes| {
                let request = rqmalloc::Request::new();
                request
                    .run(|| black_box(sizes.iter().map(|&n| vec![1; n]).collect::<Vec<Vec<u8>>>()));
                request
            })
            .collect();
        drop(requests);
    } else {
        black_box(sizes.iter().map(|&n| vec![1; n]).collect::<Vec<Vec<u8>>>());
    }
}

pub fn soak(context: Context) {
    let cache = Cache { map: Mutex::default() };
    for key in 0..ENTRIES as u32 {
        cache.get(key, || "t".repeat(10 + key as usize * 7919 % 490).into());
    }
    mark("start");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 1..=THREADS {
            let (cache, stop) = (&cache, &stop);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                let mut connections: Vec<Connection> = Vec::new();
                connections.resize_with(CONNECTIONS, Connection::default);
                let mut turn = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    for _ in 0..4 {
                        let index = rng.below(CONNECTIONS);
                        if rng.below(50) == 0 {
                            connections[index] = Connection::default();
                        }
                        black_box(answer(context, &mut rng, cache, &mut connections[index]));
                    }
                    if turn.is_multiple_of(BURST_TURNS) {
                        burst(context, &mut rng);
                    }
                    thread::sleep(PAUSE);
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < context.soak {
            thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, Ordering::Relaxed);
    });
    mark("end");
}
