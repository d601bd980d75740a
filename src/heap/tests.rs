//! What the tests of the heap share, and a fork at every step of every critical section.

use super::Heap;
use crate::base::size_class::{Class, FIRST_LARGE_CLASS, PAYLOAD_ALIGN};
use crate::base::sync::Ordering;
use crate::base::sync::paused::{Pause, has_come, stop_at};
use crate::blocks::identity::Serial;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Block, Memory, NONE};
use crate::lockfree::state::Callbacks;
use crate::pages::chunk::CHUNK_BYTES;
use crate::pages::registry::Backing;
use crate::persistent::cache::Cache;
use crate::request::control::Control;
use crate::request::control::Opening;
use crate::request::finish::{Left, Survivors};
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

pub fn new_heap() -> &'static Heap {
    // SAFETY: a heap of zeros is a new one, as its documentation says.
    let heap = unsafe { Box::<Heap>::new_zeroed().assume_init() };
    Box::leak(heap)
}

pub fn new_cache(heap: &Heap) -> Box<Cache> {
    // SAFETY: a cache of zeros is one that is not open.
    let cache = unsafe { Box::<Cache>::new_zeroed().assume_init() };
    cache.open(heap.persistent_tag(), 1);
    cache
}

pub struct NoCallbacks;

impl Callbacks for NoCallbacks {
    fn is_empty(&self) -> bool {
        true
    }

    fn run(&self) {}
}

pub fn free(heap: &Heap, cache: &Cache, block: Block) {
    heap.free(&heap.find(block), Some(cache), None);
}

/// Allocates one of everything; what was refused is `NONE`.
pub fn one_of_everything(heap: &'static Heap, cache: &Cache) -> Vec<Block> {
    let mut blocks: Vec<Block> = Class::all()
        .step_by(5)
        .map(|class| heap.alloc_persistent(Some(cache), class).block)
        .collect();
    blocks.push(heap.alloc_persistent(None, Class::from_index(3).unwrap()).block);
    blocks.push(heap.alloc_persistent_mapped(3 << 20, 16).block);
    blocks.push(heap.alloc_persistent_mapped(1 << 20, 8 << 20).block);
    blocks
}

/// Opens a request. `None`: there is no memory for it.
pub fn open(heap: &'static Heap) -> Option<&'static Control> {
    let control = heap.take_control()?;
    heap.open_request(control, heap.draw_numbers(), &Opening::default());
    Some(control)
}

/// Finishes a request that nobody is inside.
pub fn finish(heap: &'static Heap, control: &Control, survivors: Survivors) -> Left {
    assert!(control.stub().state.drop_only_handle(&NoCallbacks));
    let outcome = heap.finish_request(control, survivors);
    heap.recycle(control);
    outcome
}

/// Runs a request that allocates from regions and large spans, and closes it with every block live.
/// Returns these survivors.
pub fn one_request(heap: &'static Heap) -> Vec<Block> {
    let Some(control) = open(heap) else { return Vec::new() };
    let mut blocks = Vec::new();
    if let Some(lane) = control.enter(heap) {
        for class in [0, 20, 40, 50].map(|index| Class::from_index(index).unwrap()) {
            blocks.push(heap.alloc_of_request(control, lane, class, class.payload_bytes()).block);
        }
        blocks.push(heap.alloc_of_request_mapped(control, lane, 2 << 20, 16).block);
        control.enter(heap).inspect(|second| second.occupancy.leave());
        lane.occupancy.leave();
    }
    blocks.retain(|&block| block != NONE);
    assert_eq!(finish(heap, control, Survivors::Live).surviving_blocks, blocks.len());
    blocks
}

type Action = fn(&'static Heap, &Cache);

/// What the thread does that is forked at every step; together these take every lock there is.
const FORKED_AT: [(&str, Action); 11] = [
    ("set up", |heap, _| {
        heap.set_up();
        heap.provide_slots();
    }),
    ("magazines", |heap, cache| {
        use_class(heap, cache, 2, 40);
        use_class(heap, cache, 2, 40);
    }),
    ("slabs", |heap, cache| {
        use_class(heap, cache, FIRST_LARGE_CLASS - 1, 20);
        heap.release_all_idle();
        use_class(heap, cache, FIRST_LARGE_CLASS - 1, 20);
    }),
    ("slabs in part", |heap, cache| {
        let class = Class::from_index(28).unwrap();
        let alloc = || heap.alloc_persistent(Some(cache), class).block;
        let blocks: Vec<Block> = (0..40).map(|_| alloc()).collect();
        let (kept, freed): (Vec<_>, Vec<_>) = (0..40).partition(|index| index % 8 == 3);
        freed.iter().for_each(|&index| free(heap, cache, blocks[index]));
        heap.flush(cache);
        heap.release_all_idle();
        let again: Vec<Block> = (0..40).map(|_| alloc()).collect();
        kept.iter().for_each(|&index| free(heap, cache, blocks[index]));
        again.iter().for_each(|&block| free(heap, cache, block));
        heap.flush(cache);
        heap.release_all_idle();
    }),
    ("mappings", |heap, cache| {
        let first = heap.alloc_persistent_mapped(16 << 20, 16).block;
        free(heap, cache, first);
        let loose = heap.alloc_persistent_mapped(2 << 20, 16).block;
        heap.mappings.decay(&heap.pages, None);
        let other = heap.alloc_persistent_mapped(3 << 20, 16).block;
        [loose, other].iter().for_each(|&block| free(heap, cache, block));
        heap.mappings.decay(&heap.pages, None);
    }),
    ("vacancies", |heap, cache| {
        let take = || heap.alloc_persistent_mapped(3 << 20, PAYLOAD_ALIGN).block;
        let mut blocks: [Block; 9] = core::array::from_fn(|_| take());
        [3, 5, 4].iter().for_each(|&index| free(heap, cache, blocks[index]));
        heap.mappings.decay(&heap.pages, None);
        [3, 5, 4].iter().for_each(|&index| blocks[index] = take());
        blocks.iter().for_each(|&block| free(heap, cache, block));
        heap.mappings.decay(&heap.pages, None);
    }),
    ("requests", |heap, cache| {
        one_request(heap).iter().for_each(|&block| free(heap, cache, block));
    }),
    ("idle control blocks", |heap, cache| {
        one_request(heap).iter().for_each(|&block| free(heap, cache, block));
        heap.controls.purge(true, heap);
        one_request(heap).iter().for_each(|&block| free(heap, cache, block));
        heap.flush(cache);
    }),
    ("adopted spans", |heap, cache| {
        let survivors = [one_request(heap), one_request(heap)];
        use_class(heap, cache, 2, 300);
        heap.release_all_idle();
        survivors.iter().flatten().for_each(|&block| free(heap, cache, block));
        heap.flush(cache);
    }),
    ("large blocks", |heap, cache| large_blocks(heap, cache)),
    ("descriptors", |heap, _| {
        [300 << 10, 64, 200 << 10, 128].iter().for_each(|&bytes| {
            heap.take_descriptor_memory(bytes);
        });
    }),
];

/// Allocates blocks of one class; all are back in their slabs or depot afterwards.
pub fn use_class(heap: &'static Heap, cache: &Cache, index: usize, count: usize) {
    let class = Class::from_index(index).unwrap();
    let blocks: Vec<Block> =
        (0..count).map(|_| heap.alloc_persistent(Some(cache), class).block).collect();
    blocks.iter().for_each(|&block| free(heap, cache, block));
    heap.flush(cache);
}

#[test]
fn a_long_block_takes_a_warm_region_behind_shorter_ones() {
    let heap = new_heap();
    heap.set_up();
    let one = |class: Class, count: usize| {
        let control = open(heap).unwrap();
        let lane = control.enter(heap).unwrap();
        for _ in 0..count {
            heap.alloc_of_request(control, lane, class, class.payload_bytes());
        }
        lane.occupancy.leave();
        control
    };
    let first = one(Class::of(1000).unwrap(), 60);
    finish(heap, first, Survivors::None);
    let free_bytes = heap.figures().free;
    let second = one(Class::of(28_000).unwrap(), 1);
    assert_eq!(heap.figures().free, free_bytes, "no page was taken");
    finish(heap, second, Survivors::None);
}

/// Allocates large blocks in one request and frees them in another order, while others stay on its
/// list.
fn large_blocks(heap: &'static Heap, cache: &Cache) {
    let control = open(heap).unwrap();
    let lane = control.enter(heap).unwrap();
    let class = Class::from_index(FIRST_LARGE_CLASS).unwrap();
    let blocks: Vec<Block> =
        (0..3).map(|_| heap.alloc_of_request(control, lane, class, 1).block).collect();
    lane.occupancy.leave();
    [1, 0, 2].iter().for_each(|&index| free(heap, cache, blocks[index]));
    finish(heap, control, Survivors::Live);
}

/// Does all that a process does with a heap it got by a fork; `live` are blocks that it has.
fn use_after_fork(heap: &'static Heap, live: &[Block]) {
    // SAFETY: the process has one thread.
    unsafe { heap.recover(core::ptr::null(), 0) };
    heap.check();
    heap.set_up();
    let cache = new_cache(heap);
    let mut blocks = one_of_everything(heap, &cache);
    for index in [2, FIRST_LARGE_CLASS - 1] {
        let class = Class::from_index(index).unwrap();
        blocks.extend((0..200).map(|_| heap.alloc_persistent(Some(&cache), class).block));
    }
    blocks.extend_from_slice(live);
    let mut unique = blocks.clone();
    unique.sort_unstable();
    unique.dedup();
    assert!(unique.len() == blocks.len() && !blocks.contains(&NONE), "every block is distinct");
    blocks.iter().for_each(|&block| free(heap, &cache, block));
    one_request(heap).iter().for_each(|&block| free(heap, &cache, block));
    large_blocks(heap, &cache);
    heap.flush(&cache);
    heap.check();
    for control in heap.controls.stubs_in_use().map(Control::of) {
        control.repair_large();
        assert!(control.large_figures().0 <= 3);
    }
    heap.release_all_idle();
    // What was in the other thread's hand, at most a chunk that it was about to open, and a region.
    let left_bytes = heap.pages.chunk_bytes() - heap.pages.free_bytes().0;
    assert!(left_bytes <= 2 * CHUNK_BYTES, "{left_bytes} bytes: more is lost than was in hand");
}

/// Forks. Returns the status that the child ended with: 0 if it ran to its end.
fn status_of_a_child(run: impl FnOnce()) -> i32 {
    // SAFETY: the child uses nothing that another thread of this process could hold.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: always callable.
            unsafe { libc::alarm(20) };
            let run = std::panic::AssertUnwindSafe(run);
            let code = i32::from(std::panic::catch_unwind(run).is_err());
            // SAFETY: always callable.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` is writable.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            if child > 0 { status } else { child }
        }
    }
}

#[test]
fn a_fork_at_every_step_of_every_critical_section_loses_nothing_else() {
    for (name, action) in FORKED_AT {
        let mut heap = new_heap();
        let mut live = Vec::new();
        if name != "set up" {
            heap.set_up();
            let cache = new_cache(heap);
            use_class(heap, &cache, 2, 100);
            live = one_of_everything(heap, &cache);
            heap.flush(&cache);
        }
        let mut steps = 0;
        while fork_at(heap, &live, name, action, steps) {
            steps += 1;
            if name == "set up" {
                heap = new_heap();
            }
        }
        assert!(steps > 4, "{name} has {steps} steps");
    }
}

/// Forks while a thread is at this step of an action; `false`: the action has fewer steps.
fn fork_at(heap: &'static Heap, live: &[Block], name: &str, action: Action, step: u64) -> bool {
    let pause: &'static Pause = Box::leak(Box::default());
    let thread = std::thread::spawn(move || {
        let cache = new_cache(heap);
        stop_at(step, pause);
        action(heap, &cache);
        has_come()
    });
    while !pause.has_stopped.load(Ordering::Acquire) && !thread.is_finished() {
        std::thread::yield_now();
    }
    if pause.has_stopped.load(Ordering::Acquire) {
        let status = status_of_a_child(|| use_after_fork(heap, live));
        pause.may_go_on.store(true, Ordering::Release);
        assert_eq!(status, 0, "forked at step {step} of {name}");
    }
    thread.join().unwrap()
}

#[test]
fn a_fork_by_who_holds_a_lock_leaves_it_held() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let held = heap.controls.large_lock(Serial::new(3, 1)).lock();
    let status = status_of_a_child(|| {
        // SAFETY: the process has one thread.
        unsafe { heap.recover(core::ptr::null(), 0) };
        drop(held);
        use_after_fork(heap, &one_of_everything(heap, &cache));
    });
    assert_eq!(status, 0);
}

/// Returns the last words of a child that is ended by what it does.
pub fn last_words(run: impl FnOnce()) -> String {
    let mut pipe = [0; 2];
    // SAFETY: `pipe` is writable.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let status = status_of_a_child(|| {
        // SAFETY: the descriptors are open.
        unsafe { libc::dup2(pipe[1], libc::STDERR_FILENO) };
        run();
    });
    let mut text = [0_u8; 300];
    // SAFETY: the descriptors are open, and `text` is writable.
    let length = unsafe {
        libc::close(pipe[1]);
        let length = libc::read(pipe[0], text.as_mut_ptr().cast(), text.len());
        libc::close(pipe[0]);
        length
    };
    let said = String::from_utf8_lossy(&text[..length.unsigned_abs()]).into_owned();
    assert_eq!(libc::WTERMSIG(status), libc::SIGABRT, "status {status}: {said}");
    said
}

#[test]
fn walkers_find_what_contradicts_itself() {
    let heap = new_heap();
    heap.set_up();
    let cache = new_cache(heap);
    let class = Class::from_index(2).unwrap();
    let alloc = || heap.alloc_persistent(Some(&cache), class).block;
    let blocks: Vec<Block> = (0..1000).map(|_| alloc()).collect();
    let of_page = blocks[0];
    blocks.iter().skip(1).for_each(|&block| free(heap, &cache, block));
    let mapping = heap.alloc_persistent_mapped(3 << 20, PAYLOAD_ALIGN).block;
    let mapped = heap.find(mapping).span;
    free(heap, &cache, mapping);
    let overwrite = || {
        blocks.iter().skip(1).for_each(|&block| Raw.header(block).store(0, Ordering::Relaxed));
    };
    heap.check();
    cache.check();
    assert!(cache.has_previous(class));

    let said = last_words(|| {
        cache.bins.bin(class).take_all();
        overwrite();
        cache.check();
    });
    assert!(said.starts_with("rqmalloc: header overwritten"), "previous magazine: {said}");
    let said = last_words(|| {
        overwrite();
        heap.check();
    });
    assert!(said.starts_with("rqmalloc: header overwritten"), "depot: {said}");
    let broken = |name: &str, run: &dyn Fn()| {
        let said = last_words(|| {
            run();
            heap.check();
        });
        assert!(
            said.starts_with(&std::format!("rqmalloc: broken invariant (name {name},")),
            "{said}"
        );
    };
    broken("span that a page names", &|| heap.find(of_page).span.set_bytes(0));
    broken("span that a page names", &|| {
        heap.pages.space.registry.remove(of_page & !(CHUNK_BYTES - 1), CHUNK_BYTES);
    });
    broken("registration of a cached mapping", &|| {
        heap.pages.space.registry.remove(mapped.base(), CHUNK_BYTES);
    });
    broken("registered address", &|| match heap.pages.space.registry.find(of_page) {
        Some(Backing::Chunk(chunk)) => chunk.place(chunk.base() + CHUNK_BYTES, chunk.number()),
        _ => unreachable!(),
    });
}
