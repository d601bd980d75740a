//! What the standard library would keep from inside a request that is ended, had `prewarm` not
//! created it before; and backtraces at a memory limit. Every case is a process of its own, without
//! the test harness.

use rqmalloc::{Request, RqMalloc, owner_of, persistent, prewarm};
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{channel, sync_channel};
use std::time::Duration;

#[path = "support/children.rs"]
mod children;

use children::cases;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// A case that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 60;
/// Threads besides the main thread.
const THREADS: usize = 3;
const MIB: usize = 1 << 20;

cases! {
    panics_with_backtraces_in_ended_requests prints "240 panics\n";
    panics_without_backtraces_in_ended_requests prints "240 panics\n";
    receives_that_block_in_ended_requests prints "80 values\n";
    output_in_ended_requests prints "in 0\nin 1\nin 2\nafter\n";
    backtraces_formatted_in_persistent prints "12 traces\n";
    called_inside_a_request_at_its_limit;
    called_while_panicking;
    called_on_a_thread_that_has_exited;
    called_by_many_threads_at_once;
    the_hook_that_is_set_runs_once_and_in_persistent;
    nothing_is_printed;
    a_first_backtrace_at_a_limit;
    a_first_backtrace_at_a_limit_with_the_variable_set;
    a_capture_where_nothing_is_left;
    a_refused_allocation_aborts;
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

// ---- helpers ---------------------------------------------------------------------------------

/// Sets what std reads once, so that the environment of the test program does not decide.
fn backtraces(are_on: bool) {
    // SAFETY: the case still has one thread.
    unsafe {
        std::env::remove_var("RUST_LIB_BACKTRACE");
        std::env::set_var("RUST_BACKTRACE", if are_on { "1" } else { "0" });
    }
}

/// Ends a request of which nothing is used any more, and overwrites what is now free.
fn end_and_litter(request: Request) {
    // SAFETY: the callers use nothing of the request any more.
    let _report = unsafe { request.end() }.unwrap();
    let litter = |size: usize| vec![0xaa_u8; size];
    drop((0..800).map(litter).chain((0..40).map(|step| litter(step * 4096))).collect::<Vec<_>>());
}

/// Runs `f` in this thread and in others, each of which has called `prewarm`.
fn in_every_thread(f: impl Fn(usize) + Sync) {
    prewarm();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let f = &f;
            scope.spawn(move || {
                prewarm();
                f(thread + 1);
            });
        }
        f(0);
    });
}

/// Allocates in this thread's request until it is at its limit.
fn exhaust() {
    for size in [200_000, 30_000, 4_000, 500, 100, 50, 20, 8] {
        loop {
            let mut block = Vec::<u8>::new();
            if block.try_reserve_exact(size).is_err() {
                break;
            }
            std::mem::forget(black_box(block));
        }
    }
}

// ---- panics ----------------------------------------------------------------------------------

/// A function of its own for each number, with inlined functions in it.
fn panics_at<const PLACE: usize>() {
    let numbers: Vec<usize> = (0..PLACE).collect();
    let sum: usize = numbers.iter().map(|number| number * 2).sum();
    assert_eq!(black_box(sum), usize::MAX, "at {PLACE}");
}

fn ignore<T>(_value: T) {}

fn zero() -> usize {
    black_box(0)
}

/// Runs `f` deep inside a crate.
fn render(f: fn() -> String) {
    let mut environment = minijinja::Environment::new();
    environment.add_function("call", f);
    let text = environment.render_str("{% for i in [1] %}{{ call() }}{% endfor %}", ());
    assert_eq!(text.unwrap(), "done");
}

/// Each panics in another place: here, in `core`, `alloc`, `std` and in crates.
const PANICS: &[fn()] = &[
    panics_at::<1>,
    panics_at::<2>,
    panics_at::<3>,
    panics_at::<4>,
    || ignore(black_box(vec![1, 2, 3]).remove(7 + zero())),
    || ignore(black_box(String::from("äöü")).split_off(1 + zero())),
    || ignore(black_box([1_u8].as_slice())[3 + zero()..].to_vec()),
    || ignore(black_box(5 / zero())),
    || ignore("x".parse::<u32>().unwrap()),
    || ignore(HashMap::<u8, u8>::new()[&1]),
    || {
        let cell = RefCell::new(String::new());
        let _first = cell.borrow_mut();
        drop(cell.borrow_mut());
    },
    || ignore(Duration::from_secs(1) - Duration::from_secs(2 + zero() as u64)),
    || serde_json::json!([1, 2])[9] = serde_json::Value::Null,
    || ignore(serde_json::from_str::<Vec<u8>>("[1, ").expect("a list")),
    || render(|| panic!("in a template")),
    || {
        let numbers: std::collections::BTreeMap<_, _> = (0..50).map(|n| (n, n)).collect();
        numbers.values().for_each(|&number| assert!(number < 40 + zero(), "no"));
    },
    || {
        let thread = std::thread::Builder::new().name("inner".into());
        let joined = thread.spawn(|| panic!("in a thread")).unwrap().join();
        std::panic::resume_unwind(joined.unwrap_err());
    },
    || {
        /// Panics again while being dropped.
        struct Twice;
        impl Drop for Twice {
            fn drop(&mut self) {
                let inner = catch_unwind(|| panic!("second"));
                std::mem::forget(inner);
            }
        }
        let _twice = Twice;
        panic!("first");
    },
    || ignore(std::sync::Arc::new(Mutex::new(())).lock().map(|_guard| panic!("locked"))),
    || ignore(black_box("text")[..2 + zero()].chars().next().filter(|_| false).unwrap()),
];

fn panic_in_ended_requests() {
    let count = AtomicUsize::new(0);
    in_every_thread(|thread| {
        // What the crate keeps is created outside requests.
        render(|| "done".to_string());
        for round in 0..60 {
            let request = Request::new();
            let panics = PANICS[(round * 7 + thread * 5) % PANICS.len()];
            let result = catch_unwind(AssertUnwindSafe(|| request.run(panics)));
            assert!(result.is_err());
            // The payload belongs to the request.
            std::mem::forget(result);
            count.fetch_add(1, Ordering::Relaxed);
            end_and_litter(request);
        }
    });
    println!("{} panics", count.into_inner());
}

fn panics_with_backtraces_in_ended_requests() {
    backtraces(true);
    panic_in_ended_requests();
}

fn panics_without_backtraces_in_ended_requests() {
    backtraces(false);
    panic_in_ended_requests();
}

// ---- what else is kept -----------------------------------------------------------------------

fn receives_that_block_in_ended_requests() {
    let count = AtomicUsize::new(0);
    in_every_thread(|_| {
        for round in 0..20 {
            let request = Request::new();
            request.run(|| {
                let short = Duration::from_millis(1);
                let (_sender, receiver) = channel::<u8>();
                receiver.recv_timeout(short).unwrap_err();
                let (sender, receiver) = sync_channel::<u64>(0);
                receiver.recv_timeout(Duration::ZERO).unwrap_err();
                drop(std::thread::current());
                std::thread::scope(|scope| {
                    let other = scope.spawn(move || sender.send(round).unwrap());
                    assert_eq!(receiver.recv().unwrap(), round);
                    other.join().unwrap();
                });
            });
            count.fetch_add(1, Ordering::Relaxed);
            end_and_litter(request);
        }
    });
    println!("{} values", count.into_inner());
}

fn output_in_ended_requests() {
    prewarm();
    for round in 0..3 {
        let request = Request::new();
        request.run(|| {
            print!("in ");
            println!("{round}");
            std::io::stdin().read_exact(&mut []).unwrap();
            assert_eq!(std::io::stdin().lines().count(), 0);
        });
        assert_eq!(request.usage().live_blocks, 0);
        end_and_litter(request);
    }
    println!("after");
}

fn backtraces_formatted_in_persistent() {
    backtraces(true);
    prewarm();
    // Most of the symbols are there.
    let request = Request::new();
    drop(request.run(|| Backtrace::capture().to_string()));
    assert!(request.close().unwrap().peak_bytes < MIB);
    let mut count = 0;
    for _ in 0..12 {
        let request = Request::new();
        let has_text = request.run(|| {
            let trace = Backtrace::capture();
            persistent(|| trace.to_string()).contains("backtraces_formatted_in_persistent")
        });
        count += usize::from(has_text);
        end_and_litter(request);
    }
    println!("{count} traces");
}

// ---- where it is called ----------------------------------------------------------------------

fn called_inside_a_request_at_its_limit() {
    backtraces(true);
    let request = Request::builder().memory_limit(MIB).build();
    let before = request.run(|| {
        exhaust();
        let before = request.usage();
        prewarm();
        before
    });
    assert_eq!(request.usage().live_blocks, before.live_blocks);
    assert_eq!(request.usage().footprint_bytes, before.footprint_bytes);
    end_and_litter(request);
    panic_in_an_ended_request();
    panic_in_an_ended_request();
}

fn panic_in_an_ended_request() {
    let request = Request::new();
    std::mem::forget(catch_unwind(AssertUnwindSafe(|| request.run(panics_at::<5>))));
    end_and_litter(request);
}

fn called_while_panicking() {
    /// Calls `prewarm` when dropped.
    struct Calls;
    impl Drop for Calls {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            prewarm();
        }
    }
    backtraces(true);
    let result = catch_unwind(|| {
        let _calls = Calls;
        panic!("first");
    });
    assert!(result.is_err());
    prewarm();
    panic_in_an_ended_request();
    panic_in_an_ended_request();
}

/// Called as the destructor of a key of the thread, after those of thread-local values.
extern "C" fn late(_value: *mut libc::c_void) {
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    prewarm();
    LATE_COUNT.fetch_add(1, Ordering::Relaxed);
    if ROUNDS.fetch_add(1, Ordering::Relaxed) % 3 != 2 {
        set_late();
    }
}

static LATE_COUNT: AtomicUsize = AtomicUsize::new(0);
static LATE_KEY: AtomicUsize = AtomicUsize::new(0);

fn set_late() {
    let key = LATE_KEY.load(Ordering::Relaxed) as libc::pthread_key_t;
    // SAFETY: the key exists; its destructor only checks whether there is a value.
    unsafe { libc::pthread_setspecific(key, (&raw const LATE_KEY).cast()) };
}

fn called_on_a_thread_that_has_exited() {
    let mut key = 0;
    // SAFETY: `key` is writable, and the destructor is a function for the life of the process.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(late)) }, 0);
    LATE_KEY.store(key as usize, Ordering::Relaxed);
    for round in 0..20 {
        std::thread::spawn(move || {
            set_late();
            if round % 2 == 0 {
                prewarm();
            }
            black_box(vec![1_u8; 100]);
        })
        .join()
        .unwrap();
    }
    // In the first of three rounds of destructors, or in the later ones, the allocator's own had
    // run.
    assert_eq!(LATE_COUNT.load(Ordering::Relaxed), 60);
}

fn called_by_many_threads_at_once() {
    backtraces(true);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                prewarm();
                // When `prewarm` returns, the hook is in place.
                panic_in_an_ended_request();
            });
        }
    });
}

fn the_hook_that_is_set_runs_once_and_in_persistent() {
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|information| {
        let text = information.to_string();
        // SAFETY: the block is live.
        assert_eq!(unsafe { owner_of(text.as_ptr()) }, None);
        assert!(Request::current().is_some());
        SEEN.lock().unwrap().push(text);
    }));
    for _ in 0..3 {
        prewarm();
    }
    for _ in 0..2 {
        panic_in_an_ended_request();
    }
    let seen = SEEN.lock().unwrap();
    assert!(seen.len() == 2 && seen[0].contains("at 5") && seen[1] == seen[0], "{seen:?}");
}

fn nothing_is_printed() {
    backtraces(true);
    let path = std::env::temp_dir().join(format!("rqmalloc-prewarm-{}", std::process::id()));
    let mut file =
        std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    use std::os::fd::AsRawFd;
    // SAFETY: plain system calls on open descriptors.
    let saved = unsafe { [1, 2].map(|stream| libc::dup(stream)) };
    for stream in [1, 2] {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), stream) }, stream);
    }
    prewarm();
    std::io::stdout().flush().unwrap();
    for (stream, saved) in [1, 2].into_iter().zip(saved) {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::dup2(saved, stream) }, stream);
    }
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

// ---- backtraces at a limit -------------------------------------------------------------------

/// std's symbols take more than the limit: they are looked up all the same, and the request is
/// marked.
fn first_backtrace_at_a_limit() {
    let here = "first_backtrace_at_a_limit";
    let request = Request::builder().memory_limit(256 << 10).build();
    let text = request.run(|| Backtrace::force_capture().to_string());
    assert!(text.contains(here), "{text}");
    assert!(request.check().is_err() && request.usage().footprint_bytes > 256 << 10);
    // The limit is unchanged for everything else.
    assert!(request.run(|| Vec::<u8>::new().try_reserve(300_000)).is_err());
    assert!(request.run(|| format!("{:?}", Backtrace::force_capture())).contains(here));
    drop(text);
    assert!(request.close().unwrap().surviving_blocks > 0);
    assert!(Backtrace::force_capture().to_string().contains(here));
}

fn a_first_backtrace_at_a_limit() {
    backtraces(false);
    first_backtrace_at_a_limit();
}

fn a_first_backtrace_at_a_limit_with_the_variable_set() {
    backtraces(true);
    first_backtrace_at_a_limit();
}

fn a_capture_where_nothing_is_left() {
    backtraces(true);
    let request = Request::builder().memory_limit(MIB).build();
    request.run(|| {
        exhaust();
        let forced = Backtrace::force_capture();
        // Takes what the first one left of a page.
        exhaust();
        let traces = [forced, Backtrace::capture()];
        std::mem::forget(traces.each_ref().map(Backtrace::to_string));
        std::mem::forget(traces);
    });
    assert!(request.close().unwrap().surviving_blocks > 0);
}

/// std prints a line, and a backtrace if it has the memory, and aborts. It does not hang.
fn a_refused_allocation_aborts() {
    for are_on in [false, true] {
        // SAFETY: the case has one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            backtraces(are_on);
            // SAFETY: a plain system call.
            unsafe { libc::alarm(PATIENCE_SECONDS / 4) };
            let request = Request::builder().memory_limit(MIB).build();
            request.run(|| {
                exhaust();
                std::mem::forget(black_box(vec![1_u8; 8 * MIB]));
            });
            std::process::exit(0);
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status), "{status}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
    }
}
