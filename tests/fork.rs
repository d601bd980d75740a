//! `fork` while other threads are in the middle of things, and what a process does once: its
//! standard output, its panic hook, its backtraces. Every case is a process of its own, without the
//! test harness.

use rqmalloc::{Report, Request, RqMalloc, persistent};
use std::backtrace::Backtrace;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[path = "support/children.rs"]
mod children;

use children::cases;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// A case that hangs dies of SIGALRM; a process that it forked, sooner.
const PATIENCE_SECONDS: u32 = 60;
const PATIENCE_OF_A_FORK_SECONDS: u32 = 20;
/// How often a case forks.
const FORK_COUNT: u64 = 200;

cases! {
    fork_while_threads_do_everything;
    fork_while_requests_end;
    fork_while_lanes_change;
    fork_while_idle_control_blocks_go;
    fork_while_threads_come_and_go;
    fork_inside_a_request;
    fork_in_a_fork;
    fork_while_other_threads_fork;
    handlers_registered_before_the_first_allocation_allocate;
    a_handler_waits_for_a_thread_that_allocates;
    a_child_without_handlers;
    a_signal_handler_forks_in_the_middle_of_things;
    a_leak_report_in_a_fork_waits_for_nobody;
    a_leak_report_is_no_cancellation_point;
    standard_output_s_buffer prints "inside\nafter\n";
    standard_output_kept_out prints "persistent\nafter\n";
    a_panic_hook_allocates_inside_a_request;
    a_backtrace_inside_a_request;
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

// ---- before the first allocation -------------------------------------------------------------

static PREPARED: AtomicU64 = AtomicU64::new(0);
static IN_PARENT: AtomicU64 = AtomicU64::new(0);
static IN_CHILD: AtomicU64 = AtomicU64::new(0);

#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static EARLY: extern "C" fn() = register_handlers;

/// Runs before `main`, before the allocator registers its own handlers, so these run between them.
/// Only if the case wants it.
extern "C" fn register_handlers() {
    extern "C" fn prepare() {
        in_handler(&PREPARED);
    }
    extern "C" fn parent() {
        in_handler(&IN_PARENT);
    }
    extern "C" fn child() {
        in_handler(&IN_CHILD);
    }
    // SAFETY: the name has its final zero, and nobody changes the environment yet.
    let case = unsafe { libc::getenv(c"RQMALLOC_TEST_CASE".as_ptr()) };
    if case.is_null() {
        return;
    }
    // SAFETY: a string of the environment.
    let case = unsafe { std::ffi::CStr::from_ptr(case) };
    let handlers: Option<[extern "C" fn(); 3]> = match case.to_bytes() {
        b"handlers_registered_before_the_first_allocation_allocate" => {
            Some([prepare, parent, child])
        }
        b"a_handler_waits_for_a_thread_that_allocates" => {
            Some([wait_for_stream, release_stream, release_stream])
        }
        _ => None,
    };
    if let Some([prepare, parent, child]) = handlers {
        // SAFETY: the handlers are functions for the life of the process.
        let result = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        assert_eq!(result, 0);
    }
}

/// Takes every slow path there is.
fn in_handler(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
    exercise(7);
    rqmalloc::trim();
    exercise(8);
}

/// The lock of a stream. The C library waits for its streams before a fork, after all handlers, and
/// a thread that is allocating may have locked one. The handler here waits in the same way; the
/// last one registered runs first, so this one is registered first.
static STREAM_IS_HELD: AtomicBool = AtomicBool::new(false);
static STREAM_IS_WAITED_FOR: AtomicBool = AtomicBool::new(false);

fn hold_stream() {
    while STREAM_IS_HELD.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
}

extern "C" fn wait_for_stream() {
    STREAM_IS_WAITED_FOR.store(true, Ordering::Relaxed);
    hold_stream();
    STREAM_IS_WAITED_FOR.store(false, Ordering::Relaxed);
}

extern "C" fn release_stream() {
    STREAM_IS_HELD.store(false, Ordering::Release);
}

fn a_handler_waits_for_a_thread_that_allocates() {
    let busy = Busy::start(2, |random| {
        while STREAM_IS_WAITED_FOR.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        hold_stream();
        for _ in 0..200 {
            // Once more after the wait has begun.
            let is_waited_for = STREAM_IS_WAITED_FOR.load(Ordering::Relaxed);
            drop((0..20).map(|_| random.block()).collect::<Vec<_>>());
            rqmalloc::trim();
            if is_waited_for {
                break;
            }
        }
        release_stream();
    });
    fork_repeatedly(FORK_COUNT / 4, exercise);
    busy.stop();
}

/// Not every process is created by the C library's `fork`: in this one no handler opens the locks
/// of threads that it does not have.
fn a_child_without_handlers() {
    let shared = Arc::new(Mutex::new(Vec::new()));
    let request = Request::new();
    let busy = Busy::start(2, move |random| everything(random, &shared, &request));
    for round in 0..FORK_COUNT {
        // SAFETY: as in `fork`; the child's stack is its copy of this one.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t };
        if pid == 0 {
            // SAFETY: always callable.
            unsafe { libc::alarm(PATIENCE_OF_A_FORK_SECONDS) };
            let run = AssertUnwindSafe(|| {
                exercise(round);
                rqmalloc::trim();
                exercise(round + 1);
            });
            let code = i32::from(catch_unwind(run).is_err());
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(code) };
        }
        expect_success(pid);
        std::thread::sleep(Duration::from_micros(round * 37 % 500));
    }
    busy.stop();
}

static FORKED_IN_A_HANDLER: AtomicU64 = AtomicU64::new(0);

/// A process with one thread may fork in a signal handler, whatever that interrupted; the child
/// goes on with that, too.
fn a_signal_handler_forks_in_the_middle_of_things() {
    extern "C" fn handler(_signal: libc::c_int) {
        // SAFETY: plain system calls.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                // Goes on with what was interrupted, until it ends, and not for long.
                libc::signal(libc::SIGALRM, libc::SIG_DFL);
                libc::alarm(PATIENCE_OF_A_FORK_SECONDS);
                IS_CHILD.store(true, Ordering::Relaxed);
                return;
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
            FAILED_CHILDREN.fetch_add(u64::from(status != 0), Ordering::Relaxed);
        }
        if FORKED_IN_A_HANDLER.fetch_add(1, Ordering::Relaxed) < FORK_COUNT {
            set_timer();
        }
    }
    /// Sets a timer that fires once, a little later; a handler takes longer than that.
    fn set_timer() {
        let once = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let soon = libc::timeval { tv_sec: 0, tv_usec: 300 };
        let timer = libc::itimerval { it_interval: once, it_value: soon };
        // SAFETY: the timer is a valid structure.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    }
    exercise(1);
    // SAFETY: the handler only makes system calls.
    unsafe { libc::signal(libc::SIGALRM, handler as *const () as libc::sighandler_t) };
    set_timer();
    let mut seed = 0;
    while FORKED_IN_A_HANDLER.load(Ordering::Relaxed) <= FORK_COUNT {
        seed += 1;
        exercise(seed);
        rqmalloc::trim();
        if IS_CHILD.load(Ordering::Relaxed) {
            exercise(seed + 1);
            exercise_a_thread(seed);
            rqmalloc::check_structures();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) };
        }
    }
    assert_eq!(FAILED_CHILDREN.load(Ordering::Relaxed), 0, "children that did not go on");
}

static IS_CHILD: AtomicBool = AtomicBool::new(false);
static FAILED_CHILDREN: AtomicU64 = AtomicU64::new(0);

// ---- helpers ---------------------------------------------------------------------------------

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn size(&mut self) -> usize {
        match self.below(40) {
            0 => 1 + self.below(200_000),
            1..8 => 1 + self.below(8_000),
            _ => 1 + self.below(500),
        }
    }

    fn block(&mut self) -> Vec<u8> {
        let size = self.size();
        vec![size as u8; size]
    }
}

fn expect_block(block: &[u8]) {
    let byte = block.len() as u8;
    assert!(block[0] == byte && block[block.len() - 1] == byte && block[block.len() / 2] == byte);
}

/// Uses blocks of every kind, and requests that are ended, closed and dropped, each counted.
fn exercise(seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks: Vec<_> = persistent(|| (0..60).map(|_| random.block()).collect());
    blocks.push(persistent(|| vec![(3 << 20) as u8; 3 << 20]));
    blocks.iter().for_each(|block| expect_block(block));

    rqmalloc::begin_request();
    let inside: Vec<_> = (0..40).map(|_| random.block()).collect();
    inside.iter().for_each(|block| expect_block(block));
    std::mem::forget(black_box(inside));
    drop(blocks.split_off(20));
    // SAFETY: the blocks are forgotten.
    let report = unsafe { rqmalloc::end_request() };
    assert_eq!((report.freed_blocks, report.surviving_blocks), (41, 0));

    rqmalloc::begin_request();
    let inside: Vec<_> = (0..40).map(|_| random.block()).collect();
    let report = rqmalloc::close_request();
    assert_eq!((report.freed_blocks, report.surviving_blocks), (0, 41));
    inside.iter().for_each(|block| expect_block(block));
    drop(inside);

    let request = Request::new();
    let mut grown = request.run(|| random.block());
    grown.reserve(10_000);
    drop(grown);
    assert_eq!(request.usage().live_blocks, 0);
    drop(request);
    blocks.iter().for_each(|block| expect_block(block));
}

/// Uses a thread of the system's: those of the standard library take a lock of their own when they
/// start and exit, which may have been held by a thread that is not in this process.
fn exercise_a_thread(seed: u64) {
    extern "C" fn run(seed: *mut libc::c_void) -> *mut libc::c_void {
        let seed = seed.expose_provenance() as u64;
        exercise(seed + 1);
        // A block that this thread does not free.
        Box::into_raw(Box::new(seed)).cast()
    }
    // SAFETY: zeros are a valid thread name, which is overwritten before it is used.
    let mut thread: libc::pthread_t = unsafe { std::mem::zeroed() };
    let mut result = std::ptr::null_mut();
    let argument = std::ptr::without_provenance_mut(seed as usize);
    // SAFETY: `thread` and `result` are writable; a panic in `run` ends the process.
    unsafe {
        assert_eq!(libc::pthread_create(&raw mut thread, std::ptr::null(), run, argument), 0);
        assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
    }
    // SAFETY: what `run` returned.
    assert_eq!(unsafe { *Box::from_raw(result.cast::<u64>()) }, seed);
}

/// What a forked process does: everything, on this thread and another one; then it exits with
/// success.
fn exercise_a_process(seed: u64) {
    exercise(seed);
    exercise_a_thread(seed);
    rqmalloc::trim();
    let stats = rqmalloc::stats();
    assert_eq!(
        stats.mapped_bytes,
        stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
        "{stats}"
    );
    rqmalloc::check_structures();
    exercise(seed + 2);
}

/// Forks; the child runs `f` and exits, with 0 if nothing panicked. Returns the child's process id.
fn fork(f: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child uses nothing that another thread of this process may hold except the
    // allocator, which is what is tested.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid > 0 {
        return pid;
    }
    // SAFETY: a plain system call. Alarms are not inherited.
    unsafe { libc::alarm(PATIENCE_OF_A_FORK_SECONDS) };
    let result = catch_unwind(AssertUnwindSafe(f));
    // SAFETY: ends the process at once, whatever its other threads did.
    unsafe { libc::_exit(i32::from(result.is_err())) }
}

#[track_caller]
fn expect_success(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    assert_eq!(signal, None, "the forked process died of a signal (14: it hung)");
    assert_eq!(libc::WEXITSTATUS(status), 0, "the forked process failed");
}

/// Threads that do something over and over until this is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    rounds: Arc<Vec<AtomicUsize>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start(count: usize, work: impl Fn(&mut Random) + Send + Sync + 'static) -> Self {
        let (stop, work) = (Arc::new(AtomicBool::new(false)), Arc::new(work));
        let rounds: Arc<Vec<_>> = Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect());
        let threads = (0..count)
            .map(|index| {
                let (stop, work, rounds) = (stop.clone(), work.clone(), rounds.clone());
                std::thread::spawn(move || {
                    let mut random = Random::new(index as u64 + 1);
                    while !stop.load(Ordering::Relaxed) {
                        work(&mut random);
                        rounds[index].fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let busy = Self { stop, rounds, threads };
        // Once started, they hold none of the standard library's locks.
        busy.wait(1);
        busy
    }

    /// Waits until every thread has done this many rounds.
    fn wait(&self, count: usize) {
        while self.rounds.iter().any(|rounds| rounds.load(Ordering::Relaxed) < count) {
            std::thread::yield_now();
        }
    }

    /// Checks that every thread was working while the forks went on.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        for rounds in self.rounds.iter() {
            let rounds = rounds.load(Ordering::Relaxed);
            assert!(rounds > 5, "a thread did only {rounds} rounds while the others forked");
        }
    }
}

/// Forks over and over, one child after the other, and at different moments.
fn fork_repeatedly(count: u64, in_child: impl Fn(u64)) {
    let start = Instant::now();
    for round in 0..count {
        expect_success(fork(|| in_child(round)));
        std::thread::sleep(Duration::from_micros(round * 37 % 500));
    }
    let elapsed = start.elapsed();
    eprintln!("{count} forks in {elapsed:?}");
    assert!(elapsed < Duration::from_secs(40), "{count} forks took {elapsed:?}");
}

fn everything(random: &mut Random, shared: &Mutex<Vec<Vec<u8>>>, request: &Request) {
    match random.below(20) {
        0..6 => {
            let blocks: Vec<_> = (0..random.below(300)).map(|_| random.block()).collect();
            blocks.iter().for_each(|block| expect_block(block));
        }
        6..10 => exercise(random.next()),
        10..14 => {
            // Goes to whichever thread comes next.
            let block = random.block();
            let mut shared = shared.lock().unwrap();
            shared.push(block);
            if shared.len() > 100 {
                let index = random.below(100);
                let freed = shared.swap_remove(index);
                drop(shared);
                expect_block(&freed);
            }
        }
        14..18 => request.run(|| {
            let blocks: Vec<_> = (0..random.below(200)).map(|_| random.block()).collect();
            blocks.iter().for_each(|block| expect_block(block));
        }),
        18 => drop(vec![1u8; 1_000_000 + random.below(3_000_000)]),
        _ => drop(rqmalloc::trim()),
    }
}

// ---- fork ------------------------------------------------------------------------------------

fn fork_while_threads_do_everything() {
    let shared = Arc::new(Mutex::new(Vec::with_capacity(200)));
    let request = Request::new();
    let busy = {
        let (shared, request) = (shared.clone(), request.clone());
        Busy::start(4, move |random| everything(random, &shared, &request))
    };
    let mut random = Random::new(77);
    // Blocks and requests from before the fork: the child frees and ends them, and so does this
    // process.
    let blocks: Vec<_> = (0..50).map(|_| random.block()).collect();
    let closed = Request::new();
    let survivors: Vec<_> = closed.run(|| (0..50).map(|_| random.block()).collect());
    assert_eq!(closed.close().unwrap().surviving_blocks, 51);
    fork_repeatedly(FORK_COUNT, |round| {
        let open = Request::new();
        let inside = open.run(|| Random::new(round).block());
        exercise_a_process(round);
        blocks.iter().chain(&survivors).for_each(|block| expect_block(block));
        // SAFETY: this process has its own copies, and never returns to what owns them.
        unsafe {
            drop(std::ptr::read(&raw const blocks));
            drop(std::ptr::read(&raw const survivors));
        }
        drop(inside);
        assert_eq!(open.close().unwrap().surviving_blocks, 0);
        // The others' request never closes here; it can still be entered.
        let inside = request.run(|| Random::new(round).block());
        expect_block(&inside);
        drop(inside);
        let request = request.clone().close().unwrap_err();
        assert!(request.to_string().contains("still open"), "{request}");
        exercise(round);
    });
    busy.stop();
    blocks.iter().chain(&survivors).for_each(|block| expect_block(block));
    drop((blocks, survivors));
    assert_eq!(request.usage().live_blocks, 0);
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
    rqmalloc::check_structures();
}

/// The others end and close requests all the time, with survivors and with large blocks.
fn fork_while_requests_end() {
    let busy = Busy::start(2, |random| {
        let mut survivors = Vec::with_capacity(4);
        for number in 0..20 {
            let request = Request::new();
            let blocks: Vec<_> =
                request.run(|| (0..random.below(60)).map(|_| random.block()).collect());
            if number % 2 == 0 {
                std::mem::forget(black_box(blocks));
                // SAFETY: the blocks are forgotten.
                assert!(unsafe { request.end() }.is_ok());
            } else {
                assert!(request.close().is_ok());
                survivors.extend(blocks.into_iter().next());
            }
        }
        survivors.iter().for_each(|block| expect_block(block));
    });
    fork_repeatedly(FORK_COUNT / 2, exercise_a_process);
    busy.stop();
    exercise(1);
}

/// The others open many requests at once, some with several lanes, and give all that is idle back.
fn fork_while_idle_control_blocks_go() {
    let busy = Busy::start(3, |random| {
        let requests: Vec<_> = (0..1 + random.below(200)).map(|_| Request::new()).collect();
        for request in requests.iter().step_by(7) {
            let _outer = request.enter();
            request.run(|| drop(random.block()));
        }
        drop(requests);
        rqmalloc::trim();
    });
    // What the process has had open leaves leaves of stubs that were wiped.
    drop((0..500).map(|_| Request::new()).collect::<Vec<_>>());
    rqmalloc::trim();
    fork_repeatedly(FORK_COUNT / 2, |seed| {
        let requests: Vec<_> = (0..300).map(|_| Request::new()).collect();
        let mut ids: Vec<_> = requests.iter().map(Request::id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), requests.len());
        drop(requests);
        exercise_a_process(seed);
    });
    busy.stop();
    exercise(1);
}

/// The others enter and leave one request, in lanes that are added meanwhile, and free each other's
/// blocks.
fn fork_while_lanes_change() {
    let slots: Arc<Vec<Mutex<Vec<u8>>>> = Arc::new((0..16).map(|_| Mutex::default()).collect());
    let request = Arc::new(Mutex::new(Request::new()));
    let busy = {
        let (slots, request) = (slots.clone(), request.clone());
        Busy::start(4, move |random| {
            let inside = request.lock().unwrap().clone();
            let entered = inside.enter();
            drop(inside);
            for _ in 0..20 {
                let block = random.block();
                let before =
                    std::mem::replace(&mut *slots[random.below(16)].lock().unwrap(), block);
                if !before.is_empty() {
                    expect_block(&before);
                }
            }
            drop(entered);
            if random.below(10) == 0 {
                let fresh = Request::new();
                let before = std::mem::replace(&mut *request.lock().unwrap(), fresh);
                drop(before);
            }
        })
    };
    fork_repeatedly(FORK_COUNT / 2, |round| {
        exercise_a_process(round);
        // Blocks whose threads are not here, from slots that no other thread had locked.
        for slot in slots.iter() {
            if let Ok(mut slot) = slot.try_lock() {
                let block = std::mem::take(&mut *slot);
                if !block.is_empty() {
                    expect_block(&block);
                }
            }
        }
    });
    busy.stop();
    slots.iter().for_each(|slot| *slot.lock().unwrap() = Vec::new());
    let request = request.lock().unwrap();
    assert_eq!(request.usage().live_blocks, 0, "{request}");
}

fn fork_while_threads_come_and_go() {
    let busy = Busy::start(2, |random| {
        let seed = random.next();
        let thread = std::thread::spawn(move || {
            std::mem::forget(Request::new().enter());
            Random::new(seed).block()
        });
        expect_block(&thread.join().unwrap());
    });
    fork_repeatedly(FORK_COUNT / 2, exercise_a_process);
    busy.stop();
    exercise(1);
}

/// The thread that forks is inside requests: the child is, too.
fn fork_inside_a_request() {
    let busy = Busy::start(2, |random| exercise(random.next()));
    fork_repeatedly(FORK_COUNT / 4, |round| {
        assert!(Request::current().is_none());
        exercise(round);
    });
    for round in 0..FORK_COUNT / 4 {
        let outer = Request::new();
        let entered = outer.enter();
        let block = Random::new(round).block();
        rqmalloc::begin_request();
        let hooked = Random::new(round).block();
        let id = Request::current().unwrap().id();
        let over = |report: Report| assert_eq!((report.id, report.surviving_blocks), (id, 1));
        let pid = fork(|| {
            assert_eq!(Request::current().unwrap().id(), id);
            persistent(|| exercise_a_process(round));
            // SAFETY: the block is live.
            assert_eq!(unsafe { rqmalloc::owner_of(hooked.as_ptr()) }, Some(id));
            over(rqmalloc::close_request());
            assert_eq!(Request::current().unwrap().id(), outer.id());
            expect_block(&hooked);
            // SAFETY: this process has its own copy, and never returns to what owns it.
            unsafe { drop(std::ptr::read(&raw const block)) };
            assert_eq!(outer.usage().live_blocks, 0);
            exercise(round);
        });
        over(rqmalloc::close_request());
        expect_success(pid);
        expect_block(&block);
        expect_block(&hooked);
        drop((entered, block, hooked));
        assert_eq!(outer.close().unwrap().surviving_blocks, 0);
    }
    busy.stop();
}

/// A forked process starts threads and forks again.
fn fork_in_a_fork() {
    let busy = Busy::start(2, |random| exercise(random.next()));
    fork_repeatedly(FORK_COUNT / 20, |round| {
        let busy = Busy::start(2, |random| exercise(random.next()));
        for inner in 0..3 {
            expect_success(fork(|| {
                exercise_a_process(round + inner);
                expect_success(fork(|| exercise_a_process(round)));
            }));
        }
        busy.wait(10);
        busy.stop();
    });
    busy.stop();
}

/// Threads fork at the same time.
fn fork_while_other_threads_fork() {
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            std::thread::spawn(move || {
                for round in 0..FORK_COUNT / 8 {
                    expect_success(fork(|| exercise_a_process(thread * 1000 + round)));
                    exercise(round);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn handlers_registered_before_the_first_allocation_allocate() {
    let busy = Busy::start(3, |random| exercise(random.next()));
    const COUNT: u64 = FORK_COUNT / 4;
    fork_repeatedly(COUNT, |round| {
        assert_eq!(IN_CHILD.load(Ordering::Relaxed), 1);
        assert_eq!(IN_PARENT.load(Ordering::Relaxed), round);
        exercise_a_process(round);
    });
    busy.stop();
    for (counter, expected) in [(&PREPARED, COUNT), (&IN_PARENT, COUNT), (&IN_CHILD, 0)] {
        assert_eq!(counter.load(Ordering::Relaxed), expected);
    }
}

// ---- reports of leaks ------------------------------------------------------------------------

/// Leaves a block in a request, whose end reports it on standard error.
fn leak_with_a_report() {
    let request = Request::builder().report_leaks(true).build();
    request.run(|| std::mem::forget(black_box(vec![1u8; 100])));
    assert_eq!(request.close().unwrap().surviving_blocks, 1);
}

/// Another thread of the parent has the standard library's lock of standard error; the child's
/// report does not wait for it.
fn a_leak_report_in_a_fork_waits_for_nobody() {
    let holds = Arc::new(AtomicBool::new(false));
    let holder = {
        let holds = holds.clone();
        std::thread::spawn(move || {
            let locked = std::io::stderr().lock();
            holds.store(true, Ordering::Release);
            while holds.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(locked);
        })
    };
    while !holds.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    let pid = fork(|| {
        // SAFETY: a plain system call.
        unsafe { libc::alarm(5) };
        leak_with_a_report();
    });
    // Before anything is reported of the child: a panic's message needs the lock.
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    holds.store(false, Ordering::Release);
    holder.join().unwrap();
    assert_eq!((waited, status), (pid, 0), "the forked process failed (14: it hung)");
}

/// A thread is cancelled where it asks for that, not in the `write` of a report: that would unwind
/// out of the middle of the end of a request, which would then never finish.
fn a_leak_report_is_no_cancellation_point() {
    static HAS_CLOSED: AtomicBool = AtomicBool::new(false);
    unsafe extern "C-unwind" {
        fn pthread_testcancel();
        fn pthread_create(
            thread: *mut libc::pthread_t,
            attributes: *const libc::pthread_attr_t,
            start: extern "C-unwind" fn(*mut libc::c_void) -> *mut libc::c_void,
            argument: *mut libc::c_void,
        ) -> libc::c_int;
    }
    unsafe extern "C" {
        fn pthread_cancel(thread: libc::pthread_t) -> libc::c_int;
    }
    extern "C-unwind" fn start(_: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: only requests the cancellation, which waits for a cancellation point.
        unsafe { pthread_cancel(libc::pthread_self()) };
        leak_with_a_report();
        HAS_CLOSED.store(true, Ordering::Relaxed);
        // SAFETY: unwinds through this frame, which has nothing to drop.
        unsafe { pthread_testcancel() };
        std::ptr::null_mut()
    }
    // SAFETY: zeros are a valid thread name, which is overwritten before it is used.
    let mut thread: libc::pthread_t = unsafe { std::mem::zeroed() };
    // SAFETY: `thread` is writable, and joined once.
    unsafe {
        let argument = std::ptr::null_mut();
        assert_eq!(pthread_create(&raw mut thread, std::ptr::null(), start, argument), 0);
        assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
    }
    assert!(HAS_CLOSED.load(Ordering::Relaxed), "it was cancelled inside `close`");
    assert_eq!(rqmalloc::stats().open_request_count, 0);
}

// ---- what a process does once ----------------------------------------------------------------

/// The buffer is created inside, and stays for later.
fn standard_output_s_buffer() {
    let request = Request::new();
    request.run(|| println!("inside"));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 1, "{report}");
    assert!(report.surviving_bytes >= 1024, "{report}");
    exercise(1);
    println!("after");
    exercise(2);
}

fn standard_output_kept_out() {
    let request = Request::new();
    request.run(|| persistent(|| println!("persistent")));
    request.run(|| print!("aft"));
    request.run(|| println!("er"));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 0, "{report}");
}

fn text_of(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap()
}

static HOOKED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The hook formats, keeps what it has formatted, and uses requests itself; it also sees a panic
/// while unwinding.
fn a_panic_hook_allocates_inside_a_request() {
    struct Sees(String);
    impl Drop for Sees {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            let inner = catch_unwind(|| panic!("in drop"));
            assert!(inner.is_err());
            self.0.push_str("; seen");
            HOOKED.lock().unwrap().push(self.0.clone());
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let text = text_of(info.payload()).to_string();
        let request = Request::new();
        let copies: Vec<String> = request.run(|| (0..100).map(|_| text.clone()).collect());
        assert_eq!(request.usage().live_blocks, 101);
        drop(copies);
        assert_eq!(request.close().unwrap().surviving_blocks, 0);
        HOOKED.lock().unwrap().push(text);
    }));
    let request = Request::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        request.run(|| {
            let _sees = Sees("unwinding".to_string());
            let number = black_box(5);
            let _vector = vec![number; 100];
            assert!(number == 6, "number {number}");
        });
    }));
    let payload = result.unwrap_err();
    assert!(Request::current().is_none());
    let live = request.usage().live_blocks;
    let report = request.close().unwrap();
    // At least the texts, the table they are in, and the payload.
    assert!(live >= 5 && report.surviving_blocks == live, "{live}, {report}");
    exercise(1);
    let expected = ["number 5", "in drop", "unwinding; seen"];
    assert!(HOOKED.lock().unwrap().iter().map(String::as_str).eq(expected));
    assert_eq!(text_of(&*payload), "number 5");
    drop(payload);
    drop(std::panic::take_hook());
    HOOKED.lock().unwrap().clear();
}

/// The first backtrace of the process reads what all others use.
fn a_backtrace_inside_a_request() {
    let here = "a_backtrace_inside_a_request";
    let request = Request::new();
    let (trace, text) = request.run(|| {
        let trace = Backtrace::force_capture();
        let text = trace.to_string();
        (trace, text)
    });
    assert!(text.contains(here), "{text}");
    let report = request.close().unwrap();
    assert!(report.surviving_blocks > 2, "{report}");
    exercise(1);
    assert_eq!(trace.to_string(), text);
    drop((trace, text));
    let again = Backtrace::force_capture().to_string();
    assert!(again.contains(here), "{again}");
    // Once a trace of a place was made inside, another one of it leaves nothing.
    for round in 0..2 {
        let request = Request::new();
        request.run(|| {
            let again = Backtrace::force_capture().to_string();
            assert!(again.contains(here), "{again}");
        });
        let report = request.close().unwrap();
        assert!(round == 0 || report.surviving_blocks == 0, "{report}");
    }
    exercise(2);
}
