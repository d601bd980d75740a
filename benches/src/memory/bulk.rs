//! Many blocks at once.

use super::{glance, in_request, mark, value};
use crate::Context;
use crate::rng::Rng;
use rqmalloc::Request;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::thread;
use std::time::Duration;

pub fn empty(_: Context) {
    mark("start");
}

pub fn small(_: Context) {
    let strings: Vec<String> = (0..10_000).map(|index| format!("line {index}")).collect();
    mark("start");
    black_box(&strings);
}

/// One size after the other; of each, one block in 64 stays.
pub fn phases(context: Context) {
    const SIZES: [usize; 13] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
    const PHASE_BYTES: usize = 64 << 20;
    mark("start");
    let mut kept = Vec::new();
    for size in SIZES {
        let blocks: Vec<Vec<u8>> = (0..PHASE_BYTES / size).map(|_| vec![1; size]).collect();
        for (index, block) in blocks.into_iter().enumerate() {
            if index % 64 == 0 {
                kept.push(block);
            }
        }
    }
    mark("end");
    glance(Duration::from_secs(10));
    mark("10s");
    super::trimmed(context);
    black_box(&kept);
}

const SURVIVORS: usize = 100_000;

fn leave_one(index: usize) -> Box<[u64; 3]> {
    let blocks: Vec<Vec<u8>> = (0..20).map(|_| vec![1; 100]).collect();
    let survivor = Box::new([index as u64; 3]);
    black_box(&blocks);
    survivor
}

pub fn survivors(context: Context) {
    let mut survivors = vec![None; SURVIVORS];
    mark("start");
    for (index, survivor) in survivors.iter_mut().enumerate() {
        *survivor = Some(in_request(context, || leave_one(index)));
    }
    mark("closed");
    drop(survivors);
    mark("dropped");
    super::trimmed(context);
}

/// Elsewhere the same work is done, and nothing stays open.
pub fn at_once(context: Context) {
    let mut survivors = vec![None; SURVIVORS];
    let fill = |survivors: &mut Vec<_>, offset| {
        if context.hooks.is_some() {
            let mut open = Vec::with_capacity(SURVIVORS);
            for (index, survivor) in survivors.iter_mut().enumerate() {
                let request = Request::new();
                *survivor = Some(request.run(|| leave_one(index + offset)));
                open.push(request);
            }
            for request in open {
                let _ = request.close();
            }
        } else {
            for (index, survivor) in survivors.iter_mut().enumerate() {
                *survivor = Some(leave_one(index + offset));
            }
        }
    };
    mark("start");
    fill(&mut survivors, 0);
    mark("closed");
    let mut more = vec![None; SURVIVORS];
    for (index, survivor) in more.iter_mut().enumerate() {
        *survivor = Some(in_request(context, || leave_one(index)));
    }
    mark("as_many");
    drop((survivors, more));
    mark("dropped");
    super::trimmed(context);
}

pub fn boxes(context: Context) {
    let count = if context.quick { 2_000_000 } else { 20_000_000 };
    let mut rng = Rng::new(3);
    let mut boxes: Vec<Box<u64>> = Vec::with_capacity(count);
    boxes.extend((0..count as u64).map(Box::new));
    mark("made");
    for index in (1..count).rev() {
        boxes.swap(index, rng.below(index + 1));
    }
    mark("shuffled");
    boxes.clear();
    mark("freed");
    boxes.extend((0..count as u64).map(Box::new));
    mark("again");
    boxes.clear();
    mark("end");
}

pub fn mapped(context: Context) {
    let count = if context.quick { 10_000 } else { 100_000 };
    let mut rng = Rng::new(4);
    mark("start");
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut block = Vec::with_capacity(rng.between((1 << 20) + 1, (1 << 20) + (1 << 18)));
        block.push(1);
        blocks.push(block);
    }
    mark("live");
    let maps = std::fs::read("/proc/self/maps").expect("Linux");
    value("mappings", maps.iter().filter(|&&byte| byte == b'\n').count() as f64);
    let thread = thread::Builder::new().spawn(|| ());
    value("threads", f64::from(u8::from(thread.is_ok_and(|thread| thread.join().is_ok()))));
    for index in (1..count).rev() {
        blocks.swap(index, rng.below(index + 1));
    }
    mark("shuffled");
    drop(blocks);
    mark("freed");
    super::trimmed(context);
}

/// Tables above 1 MiB are a group-by's: they double until they have 256 thousand groups.
pub fn tables(context: Context) {
    const GROUPS: u64 = 1 << 18;
    let passes = if context.quick { 4 } else { 40 };
    mark("start");
    thread::scope(|scope| {
        for thread in 0..2_u64 {
            scope.spawn(move || {
                for pass in 0..passes {
                    let mut table: HashMap<u64, [u64; 3], BuildHasherDefault<DefaultHasher>> =
                        HashMap::default();
                    for group in 0..GROUPS {
                        table.insert(group * 8 + thread, [pass; 3]);
                    }
                    black_box(&table);
                }
            });
        }
    });
    mark("end");
    super::trimmed(context);
}
