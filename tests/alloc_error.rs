//! A failed allocation that the program does not handle gives up its request, with the hook. Each
//! case is a process of its own. With `--cfg rqmalloc_nightly`, on such a toolchain, the standard
//! library calls the hook; without, the cases that need that call it as the standard library would.
#![cfg_attr(rqmalloc_nightly, feature(alloc_error_hook))]

use rqmalloc::{Bailout, LimitKind, Request, RequestBuilder, RqMalloc, persistent};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "support/children.rs"]
mod children;

use children::cases;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// A child that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 60;
const MIB: usize = 1 << 20;
/// More than the system has.
const HUGE_BYTES: usize = isize::MAX as usize / 2;

cases! {
    a_request_at_its_limit_is_an_error;
    what_was_alive_is_dropped;
    at_the_limit_of_a_parent;
    without_memory_the_error_says_so;
    ten_thousand_requests;
    on_many_threads;
    outside_of_catch_the_process_ends;
    in_a_thread_that_panics_the_process_ends;
}

fn main() -> ExitCode {
    #[cfg(rqmalloc_nightly)]
    std::alloc::set_alloc_error_hook(rqmalloc::alloc_error_hook);
    children::run(CASES, PATIENCE_SECONDS)
}

/// What `Vec::with_capacity` does, whose hook is the standard library's without nightly.
fn take(bytes: usize) -> Vec<u8> {
    if cfg!(rqmalloc_nightly) {
        return black_box(Vec::with_capacity(bytes));
    }
    let mut block = Vec::new();
    if block.try_reserve_exact(bytes).is_err() {
        rqmalloc::alloc_error_hook(std::alloc::Layout::array::<u8>(bytes).unwrap());
        std::process::abort();
    }
    black_box(block)
}

fn limited() -> RequestBuilder {
    Request::builder().memory_limit(4 * MIB).report_limit(false)
}

fn a_request_at_its_limit_is_an_error() {
    let request = limited().build();
    let Err(Bailout::Limit(limit)) = request.catch(|| take(8 * MIB).len()) else {
        panic!("it was not given up")
    };
    assert_eq!(
        (limit.kind, limit.limit_bytes, limit.asked_bytes),
        (LimitKind::Memory, 4 * MIB, 8 * MIB)
    );
    if cfg!(rqmalloc_nightly) {
        let small = request.catch(|| {
            let mut all = Vec::new();
            while all.len() < MIB {
                all.push(Box::new([1_u64; 100]));
            }
        });
        assert!(small.is_err(), "whichever allocation it is");
        let grows = request.catch(|| {
            let mut all = String::new();
            while all.len() < 100 * MIB {
                all.push_str("it grows");
            }
        });
        assert!(grows.is_err());
    }
    let fills = request.catch(|| (0..100).map(|_| take(100_000)).collect::<Vec<_>>().len());
    assert!(fills.is_err());
    assert!(request.catch(|| 1).is_err(), "it was marked on the way");
    assert!(request.close().unwrap().surviving_blocks == 0, "destructors have run");
    assert_eq!(Request::new().catch(|| take(8 * MIB).capacity()), Ok(8 * MIB));
}

fn what_was_alive_is_dropped() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Counted(Vec<u8>);
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(self.0.capacity(), Ordering::Relaxed);
        }
    }
    let request = limited().build();
    let inner = limited().build();
    let result = request.catch(|| {
        let _first = Counted(take(10_000));
        // The nearest `catch` takes it, whichever request it is of.
        let result = inner.catch(|| {
            let _second = Counted(take(200));
            request.run(|| take(8 * MIB)).len()
        });
        assert!(matches!(result, Err(Bailout::Limit(limit)) if limit.asked_bytes == 8 * MIB));
        assert_eq!(DROPPED.load(Ordering::Relaxed), 200);
        1
    });
    assert_eq!((result, DROPPED.load(Ordering::Relaxed)), (Ok(1), 10_200));
}

fn at_the_limit_of_a_parent() {
    let parent = limited().build();
    let child = Request::builder().parent(&parent).report_limit(false).build();
    let Err(Bailout::Limit(limit)) = child.catch(|| take(8 * MIB).len()) else {
        panic!("it was not given up")
    };
    assert_eq!((limit.parent, limit.limit_bytes), (Some(parent.id()), 4 * MIB));
    assert_eq!(parent.check(), Ok(()));
}

fn without_memory_the_error_says_so() {
    let result = Request::new().catch(|| take(HUGE_BYTES).len());
    assert_eq!(result, Err(Bailout::OutOfMemory(HUGE_BYTES)));
    // A refusal of another block is no reason for this one.
    let request = limited().build();
    let result = request.catch(|| {
        assert!(Vec::<u8>::new().try_reserve_exact(8 * MIB).is_err());
        persistent(|| take(HUGE_BYTES)).len()
    });
    assert_eq!(result, Err(Bailout::OutOfMemory(HUGE_BYTES)));
}

fn ten_thousand_requests() {
    for round in 0..10_000 {
        let request = limited().build();
        let result =
            request.catch(|| take(if round % 2 == 0 { 5 * MIB } else { 50_000 }).capacity());
        assert_eq!(result.is_err(), round % 2 == 0);
        let report = request.close().unwrap();
        assert_eq!(report.surviving_blocks, 0);
    }
}

fn on_many_threads() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert!(limited().build().catch(|| take(5 * MIB).len()).is_err());
                }
            });
        }
    });
}

/// Runs a case in a child process; returns how it ended and what it said.
fn ended(f: impl FnOnce()) -> bool {
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: plain system calls; what is said is not to be seen.
        unsafe { libc::close(2) };
        f();
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT
}

fn outside_of_catch_the_process_ends() {
    assert!(ended(|| drop(take(HUGE_BYTES))));
    assert!(ended(|| drop(limited().build().run(|| take(8 * MIB)))));
    assert!(!ended(|| drop(limited().build().catch(|| take(8 * MIB)))));
}

fn in_a_thread_that_panics_the_process_ends() {
    struct Takes;
    impl Drop for Takes {
        fn drop(&mut self) {
            drop(take(HUGE_BYTES));
        }
    }
    assert!(ended(|| {
        let _ = Request::new().catch(|| {
            let _takes = Takes;
            rqmalloc::bailout("a destructor allocates");
        });
    }));
}
