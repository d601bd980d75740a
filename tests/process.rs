//! What needs a process of its own: allocations before `main` and after it, in destructors of
//! threads, and figures that nobody else may change. There is no test harness, because its threads
//! would change them.

use rqmalloc::{Request, RqMalloc, stats, trim};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

#[path = "support/children.rs"]
mod children;

use children::cases;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// A child that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 120;
const MIB: usize = 1 << 20;

cases! {
    the_first_allocation_is_a_constructor_s;
    a_constructor_s_request_is_closed_in_main;
    exit_handlers_allocate prints "handler 2\nhandler 1\n";
    exit_handlers_end_requests prints "ended 3\n";
    thread_locals_with_destructors;
    thread_locals_keep_a_request_open;
    destructors_after_the_allocator_s;
    requests_after_the_allocator_s_destructor;
    hooks_after_the_allocator_s_destructor;
    mappings_have_a_name;
    standard_output_is_first_used_inside_a_request prints "inside\nin a thread\nafter\n";
    a_panic_hook_works_inside_a_request prints "hook: of this test\n";
    thread_storm;
    threads_are_used_again;
    threads_leave_nothing_behind;
    memory_falls_after_a_spike;
    memory_falls_after_a_spike_of_requests;
    memory_falls_after_a_spike_of_mappings;
    memory_falls_without_trim;
    memory_falls_while_a_thread_uses_one_block;
    memory_falls_by_the_background_thread;
    a_fork_starts_its_own_background_thread;
    sleeping_threads_are_asked_by_trim;
    open_requests_leave_nothing;
    open_requests_leave_nothing_without_trim;
    many_threads_in_a_request_leave_nothing;
    mappings_that_cannot_move_leave_no_addresses;
    steady_state_asks_for_nothing;
    steady_state_of_threads_asks_for_nothing;
    a_producer_and_a_consumer_ask_for_nothing;
    figures_add_up;
    survivors_pin_pages_and_no_more;
    what_is_between_survivors_is_used;
    what_is_between_survivors_is_not_used_where_the_environment_says_so;
    ten_thousand_open_requests;
    a_limit_of_addresses_is_null;
    guards_that_take_each_other_s_place_leave_nothing;
    leaks_beside_a_mapping_that_moves;
    an_absurd_length_empties_nothing;
    an_absurd_growth_of_a_mapping_takes_nothing;
    refusals_at_a_limit_are_cheap;
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

// ---- helpers ---------------------------------------------------------------------------------

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Leaves a value's blocks to the end of their request, without the compiler knowing.
fn leak<T>(value: T) {
    std::mem::forget(black_box(value));
}

/// A structure of many blocks of many sizes, and the sum it must have.
type Tree = (BTreeMap<usize, Vec<u8>>, usize);

fn build(count: usize) -> Tree {
    let tree: BTreeMap<_, _> = (0..count)
        .map(|number| (number * 7919 % count, vec![number as u8; number % 700]))
        .collect();
    let sum = sum(&tree);
    (tree, sum)
}

fn sum(tree: &BTreeMap<usize, Vec<u8>>) -> usize {
    tree.values().flatten().map(|&byte| usize::from(byte)).sum()
}

/// Returns the resident memory of this process in bytes; an upper bound if the system does not
/// tell.
fn resident() -> usize {
    if cfg!(not(target_os = "linux")) {
        return stats().mapped_bytes;
    }
    // The buffer is on the stack, so that asking does not change the figure.
    let mut text = [0; 128];
    let length = {
        use std::io::Read;
        std::fs::File::open("/proc/self/statm").unwrap().read(&mut text).unwrap()
    };
    let text = std::str::from_utf8(&text[..length]).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn expect_sum() -> rqmalloc::Stats {
    let stats = stats();
    assert_eq!(
        stats.mapped_bytes,
        stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
        "{stats}"
    );
    let in_use = stats.live_bytes + stats.adopted_bytes + stats.descriptor_bytes;
    assert_eq!(stats.in_use_bytes, in_use, "{stats}");
    let in_blocks = stats.thread_cache_bytes + stats.depot_bytes + stats.slab_bytes;
    let cached = in_blocks + stats.warm_bytes + stats.cached_mapping_bytes;
    assert_eq!(stats.cached_bytes, cached, "{stats}");
    assert!(stats.free_resident_bytes <= stats.free_bytes, "{stats}");
    stats
}

/// Writes to standard output without a buffer that might be gone.
fn print(text: &str) {
    // SAFETY: the text's own bytes.
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
}

fn end() -> rqmalloc::Report {
    // SAFETY: the callers in this file use nothing of the request any more.
    unsafe { rqmalloc::end_request() }
}

// ---- before main -----------------------------------------------------------------------------

/// What the constructor allocated, before anything else in the process.
static EARLY: Mutex<Option<Tree>> = Mutex::new(None);
static EARLY_MAPPED: AtomicUsize = AtomicUsize::new(usize::MAX);

#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static CONSTRUCTOR: extern "C" fn() = {
    extern "C" fn construct() {
        EARLY_MAPPED.store(stats().mapped_bytes, Ordering::Relaxed);
        let early = build(2000);
        *EARLY.lock().unwrap() = Some(early);
        if std::env::var_os(children::CASE)
            .is_some_and(|case| case == "a_constructor_s_request_is_closed_in_main")
        {
            rqmalloc::begin_request();
            leak(build(500));
        }
    }
    construct
};

fn the_first_allocation_is_a_constructor_s() {
    assert_eq!(EARLY_MAPPED.load(Ordering::Relaxed), 0, "something allocated before");
    let (tree, expected) = EARLY.lock().unwrap().take().unwrap();
    assert_eq!(sum(&tree), expected);
    assert_eq!(
        // SAFETY: the block is live.
        unsafe {
            rqmalloc::owner_of(tree.values().find(|bytes| !bytes.is_empty()).unwrap().as_ptr())
        },
        None
    );
    std::thread::spawn(move || drop(tree)).join().unwrap();
    expect_sum();
}

fn a_constructor_s_request_is_closed_in_main() {
    let usage = Request::current().unwrap().usage();
    assert!(usage.live_blocks > 500);
    // What the standard library allocated before `main` is the request's, too: this must be a
    // close.
    let report = rqmalloc::close_request();
    assert_eq!((report.freed_blocks, report.surviving_blocks), (0, usage.live_blocks));
    assert!(Request::current().is_none());
    assert!(std::env::args().count() > 0 && std::thread::current().name() == Some("main"));
}

// ---- after main ------------------------------------------------------------------------------

fn exit_handlers_allocate() {
    extern "C" fn first() {
        let (tree, expected) = build(1000);
        assert_eq!(sum(&tree), expected);
        drop(tree);
        let handler = String::from("handler ") + &1.to_string() + "\n";
        print(&handler);
    }
    extern "C" fn second() {
        std::thread::spawn(|| drop(build(1000))).join().unwrap();
        let _kept = std::mem::ManuallyDrop::new(build(10));
        print(&format!("handler {}\n", 2));
    }
    // SAFETY: the handlers are functions for that.
    unsafe {
        libc::atexit(first);
        libc::atexit(second);
    }
}

fn exit_handlers_end_requests() {
    extern "C" fn handler() {
        // The request that `main` left open, then one of its own.
        let left_open = end();
        assert_eq!(left_open.freed_blocks, 3);
        rqmalloc::begin_request();
        let own = [vec![1_u8; 100], vec![2; 100_000]];
        assert_eq!(own.len(), 2);
        drop(own);
        assert_eq!(end().freed_blocks, 0);
        let mut text = *b"ended 0\n";
        text[6] += left_open.freed_blocks as u8;
        print(std::str::from_utf8(&text).unwrap());
    }
    // SAFETY: the handler is a function for that.
    unsafe { libc::atexit(handler) };
    rqmalloc::begin_request();
    for size in [10, 1000, 100_000] {
        leak(vec![0_u8; size]);
    }
}

// ---- destructors of threads ------------------------------------------------------------------

static DROPPED_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Frees what it has, and allocates and frees more, when its thread exits.
struct AtExit(Option<Tree>);

impl Drop for AtExit {
    fn drop(&mut self) {
        let (tree, expected) = self.0.take().unwrap();
        assert_eq!(sum(&tree), expected);
        let (more, expected) = build(300);
        drop(tree);
        assert_eq!(sum(&more), expected);
        drop(more);
        drop(black_box(vec![7_u8; 3 * MIB]));
        DROPPED_COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

thread_local! {
    static LOCAL: RefCell<Vec<AtExit>> = const { RefCell::new(Vec::new()) };
}

fn thread_locals_with_destructors() {
    for _ in 0..20 {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| {
                    LOCAL.with_borrow_mut(|local| local.push(AtExit(Some(build(2000)))));
                    // One that was allocated inside a request and outlives it.
                    rqmalloc::begin_request();
                    LOCAL.with_borrow_mut(|local| {
                        local.push(AtExit(Some(build(500))));
                    });
                    assert!(rqmalloc::close_request().surviving_blocks > 500);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    assert_eq!(DROPPED_COUNT.load(Ordering::Relaxed), 320);
    expect_sum();
}

fn thread_locals_keep_a_request_open() {
    thread_local! {
        static HANDLE: RefCell<Option<(Request, Vec<u8>)>> = const { RefCell::new(None) };
    }
    let before = stats().open_request_count;
    for _ in 0..50 {
        std::thread::spawn(|| {
            let request = Request::new();
            let bytes = request.run(|| vec![1; 1000]);
            HANDLE.set(Some((request, bytes)));
            rqmalloc::begin_request();
        })
        .join()
        .unwrap();
    }
    assert_eq!(stats().open_request_count, before);
}

static LATE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Registers a destructor that runs over and over, until long after the allocator's own; in the
/// last round it does `work`.
fn late(work: fn(*mut libc::c_void)) {
    static KEY: AtomicUsize = AtomicUsize::new(0);
    static WORK: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static ROUND: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    extern "C" fn destroy(value: *mut libc::c_void) {
        let round = ROUND.get() + 1;
        ROUND.set(round);
        // The C library makes four rounds; the allocator's destructor runs in the first.
        if round < 3 {
            // SAFETY: the key exists.
            unsafe {
                libc::pthread_setspecific(KEY.load(Ordering::Relaxed) as libc::pthread_key_t, value)
            };
            return;
        }
        // SAFETY: a function of this type was stored.
        let work: fn(*mut libc::c_void) = unsafe {
            std::mem::transmute(std::ptr::with_exposed_provenance::<()>(
                WORK.load(Ordering::Relaxed),
            ))
        };
        work(value);
        LATE_COUNT.fetch_add(1, Ordering::Relaxed);
    }
    WORK.store((work as *const ()).expose_provenance(), Ordering::Relaxed);
    let mut key = 0;
    // SAFETY: the key is writable, and the destructor takes what is set below.
    unsafe { libc::pthread_key_create(&raw mut key, Some(destroy)) };
    KEY.store(key as usize, Ordering::Relaxed);
    for _ in 0..50 {
        std::thread::spawn(move || {
            let block = Box::into_raw(Box::new(build(200)));
            // SAFETY: the key exists.
            unsafe { libc::pthread_setspecific(key, block.cast()) };
        })
        .join()
        .unwrap();
    }
    assert_eq!(LATE_COUNT.load(Ordering::Relaxed), 50);
}

fn destructors_after_the_allocator_s() {
    late(|value| {
        // SAFETY: the box that the thread left.
        let tree = unsafe { Box::from_raw(value.cast::<Tree>()) };
        assert_eq!(sum(&tree.0), tree.1);
        let (mut more, expected) = build(400);
        drop(tree);
        assert_eq!(sum(&more), expected);
        more.retain(|key, _| key % 2 == 0);
        more.values_mut().for_each(|bytes| bytes.resize(bytes.len() * 3 + 1, 7));
        for size in [1, 100, 5_000, 70_000, 900_000, 3 * MIB] {
            for align in [8, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout's size is not 0; the block is freed with the layout it has.
                unsafe {
                    let block = RqMalloc.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr() % align == 0);
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == 0));
                    block.write_bytes(9, size);
                    let block = RqMalloc.realloc(block, layout, size * 2);
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == 9));
                    RqMalloc.dealloc(block, Layout::from_size_align(size * 2, align).unwrap());
                }
            }
        }
        trim();
        expect_sum();
    });
    // Without a cache, blocks still go back.
    let before = stats().in_use_bytes;
    for _ in 0..500 {
        drop(build(400));
    }
    trim();
    assert!(stats().in_use_bytes < before + MIB);
}

fn requests_after_the_allocator_s_destructor() {
    let before = stats().open_request_count;
    late(|value| {
        // SAFETY: the box that the thread left.
        drop(unsafe { Box::from_raw(value.cast::<Tree>()) });
        let request = Request::new();
        // This thread can no longer be inside a request: what it allocates is persistent.
        let bytes = request.run(|| vec![3_u8; 1000]);
        // SAFETY: the block is live.
        assert_eq!(unsafe { rqmalloc::owner_of(bytes.as_ptr()) }, None);
        assert_eq!(rqmalloc::persistent(|| vec![3_u8; 1000]), bytes);
        assert!(Request::current().is_none());
        assert!(!request.close().unwrap().still_open);
    });
    assert_eq!(stats().open_request_count, before);
}

fn hooks_after_the_allocator_s_destructor() {
    let before = stats().open_request_count;
    late(|value| {
        // SAFETY: the box that the thread left.
        drop(unsafe { Box::from_raw(value.cast::<Tree>()) });
        let outer = rqmalloc::begin_request();
        let inner = rqmalloc::begin_request();
        let bytes = vec![3_u8; 1000];
        // SAFETY: the block is live.
        assert_eq!(unsafe { rqmalloc::owner_of(bytes.as_ptr()) }, None);
        let report = rqmalloc::close_request();
        assert!(report.id == inner && report.surviving_blocks == 0 && !report.still_open);
        let report = end();
        assert!(report.id == outer && report.freed_blocks == 0, "{report}");
        assert_eq!(bytes, [3; 1000]);
        // Left open; the C library runs destructors once more.
        rqmalloc::begin_request();
        rqmalloc::begin_request();
    });
    assert_eq!(stats().open_request_count, before);
}

// ---- the standard library inside a request -----------------------------------------------------

fn standard_output_is_first_used_inside_a_request() {
    rqmalloc::begin_request();
    println!("inside");
    let report = rqmalloc::close_request();
    assert!(report.surviving_blocks >= 1, "the buffer: {report}");
    // What reuses the request's pages must not overlap the buffer.
    rqmalloc::begin_request();
    leak(vec![1_u8; 10_000]);
    let _ = end();
    std::thread::spawn(|| println!("in a thread")).join().unwrap();
    println!("after");
}

fn a_panic_hook_works_inside_a_request() {
    std::panic::set_hook(Box::new(|information| {
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        assert!(!trace.is_empty());
        println!("hook: {}", information.payload().downcast_ref::<String>().unwrap());
    }));
    for _ in 0..2 {
        let request = Request::new();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            request.run(|| {
                if request.id().get() % 2 == 1 {
                    panic!("of {} test", black_box("this"));
                }
            })
        }));
        // The payload belongs to the request and survives it.
        let _ = request.close().unwrap();
        if let Err(payload) = result {
            assert_eq!(*payload.downcast::<String>().unwrap(), "of this test");
        }
    }
}

/// If the kernel can name a mapping, the memory of a process shows whose it is.
fn mappings_have_a_name() {
    drop(build(500));
    let page = 1 << 16;
    // SAFETY: this test's own mapping, named by a text and given back.
    let can_name = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let address = libc::mmap(std::ptr::null_mut(), page, access, kind, -1, 0);
        let name = c"test".as_ptr();
        let named =
            libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, address, page, name) == 0;
        libc::munmap(address, page);
        named
    };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert_eq!(maps.contains("[anon:rqmalloc]"), can_name, "{maps}");
}

// ---- threads ---------------------------------------------------------------------------------

fn thread_storm() {
    let mut after_warm_up = 0;
    for round in 0..250 {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                std::thread::spawn(move || {
                    rqmalloc::begin_request();
                    let (tree, expected) = build(60 + thread);
                    assert_eq!(sum(&tree), expected);
                    drop(tree);
                    assert_eq!(end().freed_blocks, 0);
                    build(20)
                })
            })
            .collect();
        for thread in threads {
            let (tree, expected) = thread.join().unwrap();
            assert_eq!(sum(&tree), expected);
        }
        if round == 20 {
            after_warm_up = stats().mapped_bytes;
        }
    }
    let mapped = expect_sum().mapped_bytes;
    assert!(
        mapped <= after_warm_up + 8 * MIB,
        "{after_warm_up} bytes were mapped, and now {mapped}"
    );
}

fn threads_are_used_again() {
    let one = || {
        std::thread::spawn(|| {
            let held: Vec<Vec<u8>> = (0..1000).map(|size| vec![1; size]).collect();
            assert!(held.iter().enumerate().all(|(size, bytes)| bytes.len() == size));
        })
        .join()
        .unwrap();
    };
    (0..20).for_each(|_| one());
    let before = stats().mapped_bytes;
    (0..500).for_each(|_| one());
    assert_eq!(stats().mapped_bytes, before);
}

fn threads_leave_nothing_behind() {
    // All at once, so that none gets what another left; each fills its cache with every small
    // class.
    const COUNT: usize = 16;
    trim();
    let before = stats();
    let barrier = Arc::new(Barrier::new(COUNT));
    let threads: Vec<_> = (0..COUNT)
        .map(|_| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                barrier.wait();
                for size in (0..2000).map(|step| 8 + step * 16) {
                    drop((0..20).map(|_| vec![1_u8; size]).collect::<Vec<_>>());
                }
                barrier.wait();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    trim();
    let after = expect_sum();
    // A live block may keep a chunk or two, and descriptors stay.
    assert!(after.mapped_bytes <= before.mapped_bytes + 9 * MIB, "{before} before, {after} after");
    assert!(after.cached_bytes <= before.cached_bytes + MIB, "{before} before, {after} after");
}

// ---- memory goes back ------------------------------------------------------------------------

/// Runs `spike`, which has 200 MiB at its peak; after it and a trim, they are gone.
fn falls_after(spike: impl Fn()) {
    trim();
    let (resident_before, before) = (resident(), stats());
    spike();
    trim();
    let (resident_after, after) = (resident(), stats());
    assert!(
        resident_after < resident_before + 8 * MIB,
        "{resident_before} before, {resident_after} after"
    );
    assert!(after.mapped_bytes < before.mapped_bytes + 24 * MIB, "{before} before, {after} after");
    assert!(after.in_use_bytes < before.in_use_bytes + 4 * MIB, "{before} before, {after} after");
}

fn expect_spike() {
    assert!(resident() > 200 * MIB);
}

fn memory_falls_after_a_spike() {
    for size in [24, 500, 10_000, 100_000] {
        falls_after(|| {
            let held: Vec<Vec<u8>> = (0..200 * MIB / size).map(|_| vec![1; size]).collect();
            expect_spike();
            drop(held);
        });
    }
}

fn memory_falls_after_a_spike_of_requests() {
    for size in [24, 500, 10_000, 100_000] {
        falls_after(|| {
            rqmalloc::begin_request();
            (0..200 * MIB / size).for_each(|_| leak(vec![1_u8; size]));
            expect_spike();
            assert_eq!(end().freed_blocks, (200 * MIB / size) as u64);
        });
    }
    // And of many at once.
    falls_after(|| {
        let requests: Vec<Request> = (0..200).map(|_| Request::new()).collect();
        for request in &requests {
            request.run(|| (0..1000).for_each(|_| leak(vec![1_u8; 1100])));
        }
        expect_spike();
        for request in requests {
            // SAFETY: the blocks are forgotten.
            assert_eq!(unsafe { request.end() }.unwrap().freed_blocks, 1000);
        }
    });
}

fn memory_falls_after_a_spike_of_mappings() {
    for size in [2 * MIB, 7 * MIB, 100 * MIB] {
        falls_after(|| {
            let mut held: Vec<Vec<u8>> = (0..200 * MIB / size + 1).map(|_| vec![1; size]).collect();
            held[0].resize(2 * size, 2);
            expect_spike();
            drop(held);
        });
    }
}

fn memory_falls_without_trim() {
    let held: Vec<Vec<u8>> = (0..200_000).map(|_| vec![1; 1000]).collect();
    let mappings: Vec<Vec<u8>> = (0..8).map(|_| vec![1; 4 * MIB]).collect();
    expect_spike();
    drop((held, mappings));
    // A process that goes on working gives back what it does not need for that.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while resident() > 64 * MIB {
        assert!(
            std::time::Instant::now() < until,
            "{} bytes are still resident: {}",
            resident(),
            stats()
        );
        for _ in 0..50 {
            drop(build(300));
            drop(black_box(vec![1_u8; 50_000]));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Waits until no more than `most` bytes are resident, in a thread that does `work` now and then.
fn until_resident_below(most: usize, mut work: impl FnMut()) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while resident() > most {
        let now = std::time::Instant::now();
        assert!(now < until, "{} bytes are still resident: {}", resident(), stats());
        work();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn memory_falls_while_a_thread_uses_one_block() {
    drop((0..2_000_000).map(|index| vec![1_u8; 40 + index % 100]).collect::<Vec<_>>());
    expect_spike();
    until_resident_below(32 * MIB, || drop(black_box(Box::new([1_u8; 64]))));
}

fn memory_falls_by_the_background_thread() {
    rqmalloc::start_background_thread().unwrap();
    rqmalloc::start_background_thread().unwrap();
    let spike =
        || drop((0..2_000_000).map(|index| vec![1_u8; 40 + index % 100]).collect::<Vec<_>>());
    std::thread::spawn(spike).join().unwrap();
    expect_spike();
    until_resident_below(32 * MIB, || ());
}

fn a_fork_starts_its_own_background_thread() {
    let thread_count = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    rqmalloc::start_background_thread().unwrap();
    let before = thread_count();
    // SAFETY: the child only does what a process with one thread may.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let without = thread_count();
        let started = rqmalloc::start_background_thread();
        let with = thread_count();
        let is_right = started.is_ok() && (before == 0 || (without == 1 && with == 2));
        std::process::exit(i32::from(!is_right));
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
}

fn sleeping_threads_are_asked_by_trim() {
    let (full, asked) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (there, then) = (full.clone(), asked.clone());
    let thread = std::thread::spawn(move || {
        drop((0..3000).map(|index| vec![1_u8; 40 + index % 1000]).collect::<Vec<_>>());
        there.wait();
        then.wait();
        // Of its next frees one looks.
        (0..1000).for_each(|_| drop(black_box(Box::new([1_u8; 3000]))));
        there.wait();
        then.wait();
    });
    full.wait();
    trim();
    let kept = stats().cached_bytes;
    asked.wait();
    full.wait();
    // What it gave is in the depots, which this empties.
    trim();
    let given = stats().cached_bytes;
    assert!(given + 512 * 1024 < kept, "{kept} bytes, {given} when it had answered");
    asked.wait();
    thread.join().unwrap();
}

/// Opens many requests at once, some with a second lane, and closes them.
fn open_and_close(count: usize) {
    let mut open: Vec<Request> = Vec::with_capacity(count);
    open.extend((0..count).map(|_| Request::new()));
    for requests in open.chunks(1000) {
        let (first, second) = (&requests[0], &requests[1]);
        std::thread::scope(|scope| {
            let _inside = (first.enter(), second.enter());
            scope.spawn(|| drop((first.enter(), second.enter())));
        });
    }
    drop(open);
}

fn open_requests_leave_nothing() {
    open_and_close(1000);
    trim();
    let (resident_before, before) = (resident(), expect_sum());
    let mut mapped = 0;
    for round in 0..3 {
        open_and_close(50_000);
        assert!(resident() > resident_before + 80 * MIB);
        trim();
        let (resident_after, after) = (resident(), expect_sum());
        assert!(
            resident_after < resident_before + MIB,
            "{resident_before} before, {resident_after} after"
        );
        assert!(after.in_use_bytes < before.in_use_bytes + 4 * MIB, "{before}, {after}");
        if round == 0 {
            mapped = after.mapped_bytes;
        }
        assert!(after.mapped_bytes < mapped + 4 * MIB, "addresses are used again: {after}");
    }
}

fn open_requests_leave_nothing_without_trim() {
    let before = resident();
    open_and_close(50_000);
    assert!(resident() > before + 80 * MIB);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while resident() > before + 16 * MIB {
        assert!(std::time::Instant::now() < until, "{} are resident: {}", resident(), stats());
        for _ in 0..50 {
            drop(build(300));
            // Not from the thread's cache, so that it looks at the clock.
            drop(black_box(vec![1_u8; 50_000]));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn many_threads_in_a_request_leave_nothing() {
    const THREADS: usize = 300;
    let two_lanes = || {
        let request = Request::new();
        request.run(|| {
            let inside = request.clone();
            let work = move || inside.run(|| leak(vec![1_u8; 3000]));
            std::thread::scope(|scope| scope.spawn(work).join().unwrap());
            leak(vec![1_u8; 3000]);
        });
        assert_eq!(request.usage().live_blocks, 2);
        request
    };
    let crowd = || {
        let request = two_lanes();
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    request.run(|| {
                        leak(vec![1_u8; 10_000]);
                        barrier.wait();
                    });
                });
            }
        });
        assert_eq!(request.usage().live_blocks, 2 + THREADS as u64);
        // SAFETY: the blocks are forgotten.
        assert_eq!(unsafe { request.end() }.unwrap().freed_blocks, 2 + THREADS as u64);
    };
    // Twice, because the records of threads stay.
    crowd();
    trim();
    let (resident_before, before) = (resident(), expect_sum());
    for _ in 0..3 {
        crowd();
        // SAFETY: the blocks are forgotten.
        assert_eq!(unsafe { two_lanes().end() }.unwrap().freed_blocks, 2);
        trim();
    }
    let (resident_after, after) = (resident(), expect_sum());
    assert!(after.in_use_bytes < before.in_use_bytes + MIB, "{before}, {after}");
    assert!(resident_after < resident_before + 2 * MIB, "{resident_before}, {resident_after}");
}

/// Returns the bytes of addresses that are mapped.
fn addresses() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').next().and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn mappings_that_cannot_move_leave_no_addresses() {
    let grow = || {
        let mut held = vec![1_u8; 20 * MIB];
        // A part of its own keeps the system from moving it.
        #[cfg(target_os = "linux")]
        // SAFETY: a page of the block, which the advice does not change.
        unsafe {
            let page = held.as_mut_ptr().add(MIB).map_addr(|address| address & !0xffff);
            assert_eq!(libc::madvise(page.cast(), 1 << 16, libc::MADV_DONTFORK), 0);
        }
        // What lies behind it keeps it from growing where it is.
        let beside = vec![1_u8; 8 * MIB];
        held.resize(90 * MIB, 2);
        assert!(held[20 * MIB - 1] == 1 && held[90 * MIB - 1] == 2);
        drop((held, beside));
        trim();
    };
    grow();
    let before = addresses();
    (0..20).for_each(|_| grow());
    assert!(addresses() < before + 100 * MIB, "{before} bytes, then {}", addresses());
}

// ---- steady state ----------------------------------------------------------------------------

/// Does a request's work: small blocks, blocks with spans of their own, now and then a mapping.
fn request_work(number: usize) {
    let (tree, expected) = build(200 + number % 50);
    assert_eq!(sum(&tree), expected);
    if number % 3 == 0 {
        drop(tree);
    } else {
        leak(tree);
    }
    leak(vec![1_u8; 100_000]);
    if number % 10 == 0 {
        leak(vec![1_u8; 3 * MIB]);
    }
}

fn steady_state_asks_for_nothing() {
    let request = |number| {
        rqmalloc::begin_request();
        request_work(number);
        assert!(end().freed_blocks > 0);
    };
    (0..200).for_each(request);
    let before = expect_sum().mapped_bytes;
    for number in 0..3_000 {
        request(number);
        assert_eq!(stats().mapped_bytes.max(before), before, "at request {number}: {}", stats());
    }
}

fn steady_state_of_threads_asks_for_nothing() {
    const COUNT: usize = 8;
    let barrier = Arc::new(Barrier::new(COUNT + 1));
    let threads: Vec<_> = (0..COUNT)
        .map(|_| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                for number in 0..600 {
                    if number % 200 == 0 {
                        barrier.wait();
                        barrier.wait();
                    }
                    rqmalloc::begin_request();
                    // No mappings: how many there are at once is up to chance.
                    request_work(number * 10 + 1);
                    let _ = end();
                }
                barrier.wait();
            })
        })
        .collect();
    let mut mapped = Vec::new();
    for _ in 0..3 {
        barrier.wait();
        mapped.push(stats().mapped_bytes);
        barrier.wait();
    }
    barrier.wait();
    mapped.push(stats().mapped_bytes);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // All threads may reach their peaks at once only late: that is a chunk, not growth.
    assert!(mapped[3] <= mapped[1] + 8 * MIB, "{mapped:?}");
}

fn a_producer_and_a_consumer_ask_for_nothing() {
    for inside in [false, true] {
        let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<Vec<u8>>>(8);
        let request = Request::new();
        // Outside the request: its blocks come back as strays.
        let consumer = std::thread::spawn(|| receiver.into_iter().for_each(drop));
        let batch = || (0..200).map(|size| vec![1_u8; 20 + size]).collect();
        let mut before = 0;
        for number in 0..4_000 {
            let batch = if inside { request.run(batch) } else { batch() };
            sender.send(batch).unwrap();
            if number == 500 {
                before = stats().mapped_bytes;
            }
        }
        drop(sender);
        consumer.join().unwrap();
        let after = expect_sum().mapped_bytes;
        assert!(
            after <= before + 16 * MIB,
            "inside a request: {inside}; {before} before, {after} after"
        );
    }
}

// ---- figures ---------------------------------------------------------------------------------

fn figures_add_up() {
    // Descriptor memory is mapped in steps, and what is left of one seems in use.
    drop(Request::new());
    let start = expect_sum();
    assert!(start.mapped_bytes > 0 && start.in_use_bytes > 0);
    assert_eq!(start.open_request_count, 0);
    // One live block of each kind shows when it comes and when it goes, to the byte if nothing else
    // changes. Of a span that is kept for the next block, what the block left over may seem in use.
    for (size, rise) in [(100_000, 131_072), (900_000, 933_888)] {
        let before = expect_sum();
        // SAFETY: the layout's size is not 0.
        let block = unsafe { RqMalloc.alloc(layout(size)) };
        let during = expect_sum();
        assert_eq!(
            during.in_use_bytes - before.in_use_bytes,
            rise,
            "{before} before, {during} during"
        );
        // SAFETY: a live block of this layout.
        unsafe { RqMalloc.dealloc(block, layout(size)) };
        assert!(expect_sum().in_use_bytes.abs_diff(before.in_use_bytes) < 16 * 1024);
    }
    let before = expect_sum();
    // SAFETY: the layout's size is not 0.
    let block = unsafe { RqMalloc.alloc(layout(100)) };
    assert_eq!(expect_sum().in_use_bytes, before.in_use_bytes + 112);
    // SAFETY: a live block of this layout.
    unsafe { RqMalloc.dealloc(block, layout(100)) };
    assert_eq!(expect_sum().in_use_bytes, before.in_use_bytes);
    // What a request holds is in use, live or not, until the request has ended.
    let request = Request::new();
    assert_eq!(expect_sum().open_request_count, 1);
    request.run(|| (0..10_000).for_each(|_| drop(black_box(vec![1_u8; 100]))));
    request.run(|| (0..10_000).for_each(|_| leak(vec![1_u8; 100])));
    let during = expect_sum();
    let footprint = request.usage().footprint_bytes;
    assert!(
        during.in_use_bytes >= before.in_use_bytes + footprint,
        "{before} before, {during} during"
    );
    // SAFETY: the blocks are forgotten.
    let _ = unsafe { request.end() }.unwrap();
    trim();
    let after = expect_sum();
    assert!(after.in_use_bytes < before.in_use_bytes + 65_536, "{before} before, {after} after");
    assert_eq!(after.open_request_count, 0);
    // Slabs with a live block keep their other blocks.
    assert!(after.cached_bytes < 2 * MIB, "after a trim: {after}");
}

fn survivors_pin_pages_and_no_more() {
    trim();
    let before = stats().in_use_bytes;
    // 64 MiB of requests, each of which leaves one small survivor.
    let mut survivors = Vec::with_capacity(256);
    let mut pinned = 0;
    for _ in 0..256 {
        let request = Request::new();
        request.run(|| {
            let garbage: Vec<Vec<u8>> = (0..250).map(|_| vec![1; 1000]).collect();
            survivors.push(vec![2_u8; 40]);
            drop(garbage);
        });
        let report = request.close().unwrap();
        assert_eq!(report.surviving_blocks, 1);
        pinned += report.span_bytes;
    }
    assert!(pinned <= 256 * 16 * 1024, "a page each, if no other survivor is in it: {pinned}");
    trim();
    // Each keeps its control block, too.
    let during = stats().in_use_bytes;
    assert!(during < before + pinned + 4 * MIB, "{before} before, {during} with survivors");
    assert!(survivors.iter().all(|bytes| bytes.iter().all(|&byte| byte == 2)));
    drop(survivors);
    trim();
    let after = expect_sum();
    assert!(after.in_use_bytes < before + 2 * MIB, "{before} before, {after} after");
}

/// What becomes of the memory between the survivors of a request.
struct Between {
    /// Blocks of a later request that lie there, of `LATER_COUNT`.
    of_request: usize,
    /// Persistent blocks that do, of as many.
    persistent: usize,
    /// Bytes that the survivors hold, and those that a few of them hold.
    held_bytes: [usize; 2],
}

const LATER_COUNT: usize = 1000;

fn use_between_survivors() -> Between {
    const ALLOCATOR_PAGE: usize = 16 * 1024;
    type Block = Box<[u64; 25]>;
    let page_of = |block: &Block| std::ptr::from_ref(&**block).addr() / ALLOCATOR_PAGE;
    let request = Request::new();
    // Most, so that what is freed later is worth a look; the others are neighbours.
    let survives = |number: &u64| number % 8 < 5;
    let mut survivors: Vec<Block> = Vec::with_capacity(20 * LATER_COUNT);
    let mut others: Vec<Block> = Vec::with_capacity(20 * LATER_COUNT);
    request.run(|| {
        for number in 0..20 * LATER_COUNT as u64 {
            let of_these = if survives(&number) { &mut survivors } else { &mut others };
            of_these.push(Box::new([number; 25]));
        }
        others.clear();
    });
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, survivors.len() as u64);
    let first_bytes = stats().adopted_bytes;
    let pages: std::collections::BTreeSet<usize> = survivors.iter().map(page_of).collect();
    let count_between =
        |blocks: &[Block]| blocks.iter().filter(|block| pages.contains(&page_of(block))).count();
    let mut later: Vec<Block> = Vec::with_capacity(LATER_COUNT);
    let request = Request::new();
    request.run(|| later.extend((0..LATER_COUNT).map(|_| Box::new([0; 25]))));
    let of_request = count_between(&later);
    request.run(|| later.clear());
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
    later.extend((0..LATER_COUNT).map(|_| Box::new([0; 25])));
    let persistent = count_between(&later);
    drop(later);
    let numbers = (0..20 * LATER_COUNT as u64).filter(survives).map(|number| [number; 25]);
    assert!(survivors.iter().map(|block| **block).eq(numbers), "nobody else wrote there");
    let mut number = 0;
    survivors.retain(|_| {
        number += 1;
        number % 500 == 0
    });
    trim();
    Between { of_request, persistent, held_bytes: [first_bytes, stats().adopted_bytes] }
}

fn what_is_between_survivors_is_used() {
    let between = use_between_survivors();
    assert!(between.of_request > LATER_COUNT / 2, "{}", between.of_request);
    assert!(between.persistent > LATER_COUNT / 2, "{}", between.persistent);
    let [many, few] = between.held_bytes;
    assert!(0 < few && few < many / 4, "{few} of {many} bytes");
}

fn what_is_between_survivors_is_not_used_where_the_environment_says_so() {
    // SAFETY: this process has one thread, and has opened no request yet.
    unsafe { std::env::set_var("RQMALLOC_ADOPT", "0") };
    let between = use_between_survivors();
    assert_eq!((between.of_request, between.persistent), (0, 0));
    let [many, few] = between.held_bytes;
    assert!(few > many / 10 * 9, "only whole spans of {many} bytes go back: {few} are left");
}

fn ten_thousand_open_requests() {
    let mut open: Vec<(Request, Vec<u8>)> = Vec::with_capacity(10_000);
    for number in 0..10_000 {
        let request = Request::new();
        let bytes = request.run(|| vec![number as u8; 100]);
        open.push((request, bytes));
    }
    assert_eq!(stats().open_request_count, 10_000);
    let mut ids: Vec<_> = open.iter().map(|(request, _)| request.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 10_000);
    for (number, (request, bytes)) in open.into_iter().enumerate() {
        // SAFETY: the block is live.
        assert_eq!(unsafe { rqmalloc::owner_of(bytes.as_ptr()) }, Some(request.id()));
        assert!(bytes.iter().all(|&byte| byte == number as u8));
        let is_freed = number % 2 == 0;
        if is_freed {
            drop(bytes);
        } else {
            std::mem::forget(bytes);
        }
        // SAFETY: the block is freed or forgotten.
        let report = unsafe { request.end() }.unwrap();
        assert_eq!(report.freed_blocks, u64::from(!is_freed));
    }
    assert_eq!(expect_sum().open_request_count, 0);
}

/// When the system has no more memory, allocation returns null, everything that is there stays as
/// it is, and what is freed is used again.
fn a_limit_of_addresses_is_null() {
    const LIMIT: u64 = 512 << 20;
    let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
    // SAFETY: the limit is a valid structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    for round in 0..3 {
        for size in [100, 3_000, 60_000, 700_000, 5 * MIB] {
            let mut counts = [0; 2];
            for (count, inside) in counts.iter_mut().zip([false, true]) {
                let request = Request::new();
                let mut last: *mut u8 = std::ptr::null_mut();
                // A list linked through the blocks themselves, because a vector would need memory,
                // too.
                let mut take_all = || loop {
                    // SAFETY: the layout's size is not 0.
                    let block = unsafe { RqMalloc.alloc(layout(size)) };
                    if block.is_null() {
                        break;
                    }
                    // SAFETY: the block is longer than a pointer.
                    unsafe { block.cast::<*mut u8>().write(last) };
                    last = block;
                    *count += 1;
                };
                if inside {
                    request.run(&mut take_all)
                } else {
                    take_all()
                }
                assert!(*count * size > 200 * MIB, "{count} blocks of {size} in round {round}");
                let mut give_all = || {
                    while !last.is_null() {
                        // SAFETY: a live block of this layout, with the next one in its first word.
                        unsafe {
                            let next = last.cast::<*mut u8>().read();
                            RqMalloc.dealloc(last, layout(size));
                            last = next;
                        }
                    }
                };
                if inside {
                    request.run(give_all)
                } else {
                    give_all()
                }
                assert_eq!(request.usage().live_blocks, 0);
            }
        }
    }
    expect_sum();
}

// ---- what once cost too much -----------------------------------------------------------------

/// A loop that enters the next request before it leaves the last one is never more than two deep.
fn guards_that_take_each_other_s_place_leave_nothing() {
    const SWAPS: usize = 20_000;
    let mut guard = Request::new().enter();
    for _ in 0..1000 {
        guard = Request::new().enter();
    }
    let before = stats();
    for _ in 0..SWAPS {
        guard = Request::new().enter();
    }
    let after = stats();
    assert_eq!(after.open_request_count, 1, "{after}");
    let grown = after.in_use_bytes.saturating_sub(before.in_use_bytes);
    // Entries that stayed would be dozens of bytes each.
    assert!(grown < SWAPS, "{grown} bytes more in use: {before}, then {after}");
    drop(guard);
    assert_eq!(stats().open_request_count, 0);
}

/// The header of a block with a mapping of its own is in its pages, and those move while a thread
/// looks at it.
fn leaks_beside_a_mapping_that_moves() {
    let request = Request::new();
    let is_over = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..60 {
                let mut moving: Vec<u8> = request.run(|| Vec::with_capacity(2 * MIB));
                let mut in_the_way: Vec<Vec<u8>> = Vec::with_capacity(24);
                for size in 2..24 {
                    moving.reserve_exact(size * MIB);
                    in_the_way.push(Vec::with_capacity(3 * MIB));
                }
            }
            is_over.store(1, Ordering::Release);
        });
        let mut looks = 0;
        while is_over.load(Ordering::Acquire) == 0 {
            let leaks = black_box(request.leaks());
            assert!(leaks.blocks <= 2, "{leaks}");
            looks += 1;
        }
        assert!(looks > 0);
    });
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
}

/// A length that a client sent: giving everything back first would not help.
fn an_absurd_length_empties_nothing() {
    let blocks: Vec<Vec<u8>> = (0..20_000).map(|number| vec![1; 100 + number % 1000]).collect();
    let mapped: Vec<Vec<u8>> = (0..4).map(|_| vec![1; 3 * MIB]).collect();
    drop((blocks, mapped));
    let before = stats();
    assert!(before.cached_bytes > 4 * MIB, "{before}");
    for shift in [43, 46, 50, 60] {
        for inside in [false, true] {
            let refused = || Vec::<u8>::new().try_reserve_exact(black_box(1 << shift)).is_err();
            let request = Request::new();
            assert!(if inside { request.run(refused) } else { refused() }, "1 << {shift} bytes");
        }
    }
    let after = stats();
    let lost = before.cached_bytes.saturating_sub(after.cached_bytes);
    assert!(lost < 128 * 1024, "{lost} bytes of {before} are gone: {after}");
}

/// The same for a block that has a mapping: nothing is recorded for the addresses that it would get
/// before it has them.
fn an_absurd_growth_of_a_mapping_takes_nothing() {
    let request = Request::new();
    for inside in [false, true] {
        let make = || Vec::<u8>::with_capacity(2 * MIB);
        let mut vector = if inside { request.run(make) } else { make() };
        let before = stats();
        for shift in [43, 46, 50, 60] {
            assert!(vector.try_reserve_exact(black_box(1 << shift)).is_err(), "1 << {shift} bytes");
        }
        let after = stats();
        let grown = after.mapped_bytes.saturating_sub(before.mapped_bytes);
        assert!(grown < MIB, "{grown} bytes more are mapped: {before}, then {after}");
    }
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
}

/// Once reclaiming has found nothing, and nothing was freed since, the next refusal need not look
/// again. If each looked at a million blocks, this would take minutes.
fn refusals_at_a_limit_are_cheap() {
    const REFUSALS: usize = 5_000;
    let start = std::time::Instant::now();
    let request = Request::builder().memory_limit(128 * MIB).build();
    let mut rows: Vec<Vec<u8>> = Vec::with_capacity(6 << 20);
    request.run(|| {
        let reserve = |size| {
            let mut row: Vec<u8> = Vec::new();
            row.try_reserve_exact(size).map(|()| row)
        };
        while let Ok(row) = reserve(24) {
            rows.push(row);
        }
        // A free block in every page, and no free page.
        rows.iter_mut().step_by(16).for_each(|row| *row = Vec::new());
        for refusal in 0..REFUSALS {
            assert!(reserve(3000).is_err());
            let elapsed = start.elapsed().as_secs();
            assert!(elapsed < 20, "{refusal} refusals in {elapsed} s");
        }
        // That free blocks are left is not forgotten.
        assert!(reserve(24).is_ok());
    });
    drop(rows);
    assert!(request.run(|| Vec::<u8>::new().try_reserve_exact(100 * MIB).is_ok()));
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
}
