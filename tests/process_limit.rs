//! The limit of the process: which requests are marked when it is above. Each case is a process of
//! its own.

use rqmalloc::{
    LimitKind, Request, RqMalloc, check, check_process, process_limit, set_process_limit, stats,
};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

#[path = "support/children.rs"]
mod children;

use children::cases;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// A child that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 60;
const MIB: usize = 1 << 20;

cases! {
    without_a_limit_nobody_is_marked;
    the_largest_are_marked_until_it_would_be_below;
    a_mark_says_why;
    whoever_grows_is_marked_soon;
    one_that_is_idle_is_marked_by_another_thread;
    of_many_the_largest_is_found;
    children_are_marked_for_themselves;
    what_is_free_is_not_in_use;
    what_no_request_holds_marks_all_that_hold_something;
    a_forked_process_looks_too;
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

/// A request that holds a block of so many bytes, which is not touched.
fn holding(bytes: usize) -> Request {
    let request = Request::new();
    take(&request, bytes);
    request
}

fn take(request: &Request, bytes: usize) {
    request.run(|| core::mem::forget(black_box(Vec::<u8>::with_capacity(bytes))));
}

fn end(request: Request) {
    // SAFETY: its blocks are forgotten.
    let report = unsafe { request.end() }.unwrap();
    assert!(!report.still_open);
}

fn is_marked(request: &Request) -> bool {
    request.check().is_err()
}

/// Looks until it is so; the alarm bounds that.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        let _ = check_process();
        std::thread::yield_now();
    }
}

/// Allocates and frees as a thread of a service does, so that it takes slow paths.
fn work() {
    (0..200).for_each(|index| drop(black_box(vec![1_u8; 40_000 + 100 * index])));
}

fn without_a_limit_nobody_is_marked() {
    let request = holding(200 * MIB);
    work();
    assert!(process_limit().is_none() && check_process().is_ok() && !is_marked(&request));
    set_process_limit(Some(usize::MAX));
    work();
    assert!(process_limit().is_none() && check_process().is_ok() && !is_marked(&request));
    set_process_limit(None);
    assert!(process_limit().is_none());
    end(request);
}

fn the_largest_are_marked_until_it_would_be_below() {
    let requests: Vec<Request> =
        [3, 9, 1, 10, 5, 2, 8, 4, 7, 6].map(|size| holding(size * 4 * MIB)).into();
    let in_use = stats().in_use_bytes;
    set_process_limit(Some(in_use + 10 * MIB));
    work();
    assert!(check_process().is_ok() && !requests.iter().any(is_marked));
    // 45 MiB too much: the one of 40 MiB is not enough, with that of 36 MiB it is.
    set_process_limit(Some(in_use - 45 * MIB));
    work();
    let marked = |requests: &[Request]| {
        requests.iter().map(|request| usize::from(is_marked(request))).collect::<Vec<_>>()
    };
    assert_eq!(marked(&requests), [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert!(check_process().is_err());
    // 64 MiB more, by the smallest: now it is the largest of those that are not marked.
    take(&requests[2], 64 * MIB);
    assert_eq!(marked(&requests), [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
    requests.into_iter().filter(is_marked).for_each(end);
    wait_until(|| check_process().is_ok());
    let request = holding(3 * MIB);
    assert!(!is_marked(&request), "a request that ended made room");
}

fn a_mark_says_why() {
    let request = Request::builder().soft_limit(300 * MIB).build();
    take(&request, 100 * MIB);
    set_process_limit(Some(60 * MIB));
    let limit = request.check().unwrap_err();
    let in_use = limit.in_use_bytes;
    assert!((100 * MIB..110 * MIB).contains(&in_use), "{limit}");
    assert_eq!(
        (limit.kind, limit.parent, limit.limit_bytes, limit.asked_bytes),
        (LimitKind::Process, None, 60 * MIB, 0)
    );
    assert_eq!(
        limit.to_string(),
        format!("process limit reached (limit 62914560, in use {in_use})")
    );
    let of_process = check_process().unwrap_err();
    assert_eq!((of_process.kind, of_process.limit_bytes), (LimitKind::Process, 60 * MIB));
    assert!(request.catch(|| 1).is_err(), "it is given up");
    request.set_soft_limit(None);
    request.set_memory_limit(None).unwrap();
    assert_eq!(request.check(), Err(limit), "no limit of its own takes that back");
    set_process_limit(None);
    end(request);
    let next = Request::new();
    assert!(!is_marked(&next), "the next request of the control block is another one");
}

fn whoever_grows_is_marked_soon() {
    for size in [50, 5_000, 100_000, 2 * MIB] {
        let (other, request) = (holding(20 * MIB), Request::new());
        set_process_limit(Some(stats().in_use_bytes + 64 * MIB));
        request.run(|| {
            while check().is_ok() {
                core::mem::forget(black_box(Vec::<u8>::with_capacity(size)));
            }
        });
        let held = request.usage().footprint_bytes;
        assert!((50 * MIB..80 * MIB).contains(&held), "{held} by {size}");
        assert!(!is_marked(&other));
        set_process_limit(None);
        [request, other].into_iter().for_each(end);
    }
}

fn one_that_is_idle_is_marked_by_another_thread() {
    let idle = holding(80 * MIB);
    set_process_limit(Some(stats().in_use_bytes + 16 * MIB));
    let small = Request::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            small.run(|| {
                while !is_marked(&idle) {
                    core::mem::forget(black_box(Vec::<u8>::with_capacity(1_000)));
                }
            });
        });
    });
    assert!(!is_marked(&small) && small.usage().footprint_bytes < 40 * MIB);
    assert_eq!(idle.check().unwrap_err().kind, LimitKind::Process);
}

/// More than fit into one portion, or among those that are marked at once.
fn of_many_the_largest_is_found() {
    let mut requests: Vec<Request> = (0..5_000).map(|_| holding(100)).collect();
    requests[3_777] = holding(40 * MIB);
    requests[123] = holding(30 * MIB);
    let in_use = stats().in_use_bytes;
    set_process_limit(Some(in_use - 10 * MIB));
    wait_until(|| is_marked(&requests[3_777]));
    assert_eq!(requests.iter().filter(|request| is_marked(request)).count(), 1);
    // Regions of 16 KiB each: some 700 of them are more than one round marks.
    set_process_limit(Some(in_use - 80 * MIB));
    wait_until(|| requests.iter().filter(|request| is_marked(request)).count() > 500);
    assert!(is_marked(&requests[123]));
    let marked = requests.iter().filter(|request| is_marked(request)).count();
    assert!(marked < 1_300, "{marked} of 5000");
}

fn children_are_marked_for_themselves() {
    let parent = holding(10 * MIB);
    let children = [12, 30, 20].map(|size| {
        let child = Request::builder().parent(&parent).build();
        take(&child, size * MIB);
        child
    });
    let other = holding(25 * MIB);
    set_process_limit(Some(stats().in_use_bytes - 40 * MIB));
    work();
    assert_eq!(children.each_ref().map(is_marked), [false, true, false]);
    assert!(is_marked(&other) && !is_marked(&parent));
    // A mark of the parent concerns its children.
    take(&parent, 100 * MIB);
    assert!(is_marked(&parent));
    let limit = children[0].check().unwrap_err();
    assert_eq!((limit.kind, limit.parent), (LimitKind::Process, Some(parent.id())));
    let text = limit.to_string();
    assert!(
        text.starts_with(&format!("process limit reached (parent {}, limit ", parent.id())),
        "{text}"
    );
}

fn what_is_free_is_not_in_use() {
    let (small, in_use) = (holding(5 * MIB), stats().in_use_bytes);
    set_process_limit(Some(in_use + 30 * MIB));
    for size in [100, 30_000, 600_000, 20 * MIB] {
        for _ in 0..10 {
            let request = Request::new();
            request.run(|| {
                (0..20 * MIB / size)
                    .for_each(|_| core::mem::forget(black_box(Vec::<u8>::with_capacity(size))))
            });
            assert!(!is_marked(&request), "{size}");
            end(request);
            let blocks: Vec<Vec<u8>> =
                (0..20 * MIB / size).map(|_| Vec::with_capacity(size)).collect();
            drop(black_box(blocks));
        }
    }
    assert!(!is_marked(&small) && check_process().is_ok());
    assert!(stats().mapped_bytes > in_use + 30 * MIB, "it would be above with what is free");
}

fn what_no_request_holds_marks_all_that_hold_something() {
    let (empty, small) = (Request::new(), holding(100));
    let persistent: Vec<u8> = black_box(Vec::with_capacity(100 * MIB));
    set_process_limit(Some(20 * MIB));
    work();
    assert!(check_process().is_err() && is_marked(&small) && !is_marked(&empty));
    drop(persistent);
    wait_until(|| check_process().is_ok());
}

/// A thread that has the turn to look does not exist in a forked process.
fn a_forked_process_looks_too() {
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    let requests: Vec<Request> = (0..900).map(|_| holding(100)).collect();
    set_process_limit(Some(MIB));
    let looks = std::thread::spawn(|| {
        while !IS_OVER.load(Ordering::Relaxed) {
            set_process_limit(Some(MIB));
        }
    });
    for _ in 0..30 {
        // SAFETY: the child uses the allocator only, and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: plain system calls.
            unsafe { libc::alarm(PATIENCE_SECONDS / 2) };
            let request = holding(10 * MIB);
            wait_until(|| is_marked(&request));
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "the forked process found nothing to mark");
    }
    IS_OVER.store(true, Ordering::Relaxed);
    looks.join().unwrap();
    drop(requests);
}
