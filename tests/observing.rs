//! Observers, lists of open requests, and who learns what became of one.
#![allow(missing_docs)]

use rqmalloc::{
    LimitExceeded, Observer, Outcome, Report, Request, RequestInfo, open_requests, set_observer,
    snapshot,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, LazyLock, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// What was told of the requests whose name says that somebody looks, by name.
static TOLD: LazyLock<Mutex<BTreeMap<String, Vec<String>>>> = LazyLock::new(|| {
    set_observer(Recorder);
    set_observer(Clumsy);
    Mutex::default()
});

struct Recorder;

impl Recorder {
    fn record(info: &RequestInfo, what: String) {
        let Some(name) = info.name.filter(|name| name.starts_with("watched")) else { return };
        // Not told: this is an observer's.
        drop(Request::builder().name("watched by nobody").build());
        TOLD.lock().unwrap().entry(name.to_string()).or_default().push(what);
    }
}

impl Observer for Recorder {
    fn opened(&self, request: &RequestInfo) {
        Self::record(request, format!("opened {}", request.usage.live_blocks));
    }

    fn marked(&self, request: &RequestInfo, limit: &LimitExceeded) {
        assert!(limit.in_use_bytes <= request.usage.peak_bytes);
        // In the middle of the request, and yet outside: nothing is found, or counted to it.
        assert!(Request::current().is_none() && rqmalloc::check().is_ok());
        let _block = Box::new([0u8; 100]);
        let open = open_requests();
        let now = open.iter().find(|info| info.id == request.id).unwrap();
        assert_eq!(now.usage, request.usage, "observers allocate outside");
        Self::record(request, format!("marked at {}", limit.limit_bytes));
    }

    fn closed(&self, request: &RequestInfo, report: &Report) {
        assert_eq!((request.id, request.name), (report.id, report.name));
        assert_eq!(request.thread_count, 0);
        Self::record(request, format!("closed {} {}", report.outcome, request.usage.live_blocks));
    }
}

struct Clumsy;

impl Observer for Clumsy {
    fn closed(&self, request: &RequestInfo, _report: &Report) {
        if request.name.is_some_and(|name| name.starts_with("watched")) {
            std::panic::resume_unwind(Box::new("an observer's own"));
        }
    }
}

fn watched(name: &str) -> Request {
    LazyLock::force(&TOLD);
    Request::builder().name(name).memory_limit(8 << 20).build()
}

fn told(name: &str) -> Vec<String> {
    TOLD.lock().unwrap().remove(name).unwrap_or_default()
}

#[test]
fn an_observer_is_told_of_each_step() {
    let request = watched("watched until its close");
    let kept = request.run(|| vec![Box::new(1), Box::new(2)]);
    let _ = request.close().unwrap();
    assert_eq!(told("watched until its close"), ["opened 0", "closed closed 3"]);
    drop(kept);

    let request = watched("watched at its limit");
    let filled = request.catch(|| {
        let blocks: Vec<_> = (0..60).map(|_| vec![0u8; 100_000]).collect();
        assert!(rqmalloc::check().is_err() && rqmalloc::check().is_err());
        blocks
    });
    assert!(filled.is_err());
    let _ = request.close().unwrap();
    let expected = ["opened 0", "marked at 8388608", "closed over its limit 0"];
    assert_eq!(told("watched at its limit"), expected);
    assert_eq!(told("watched by nobody"), [""; 0]);
}

#[test]
fn an_observer_is_told_wherever_the_last_handle_goes() {
    let request = watched("watched elsewhere");
    let thread = std::thread::spawn(move || {
        // A thread that exits inside drops what it has there.
        std::mem::forget(request.enter());
    });
    thread.join().unwrap();
    assert_eq!(told("watched elsewhere"), ["opened 0", "closed closed 0"]);

    // Inside another request, and while a panic unwinds.
    let outer = Request::new();
    let before = outer.usage();
    outer.run(|| drop(watched("watched inside")));
    assert_eq!(outer.usage(), before, "observers allocate outside");
    let inner = Request::new();
    inner.on_close(|_| {
        assert!(Request::current().is_none());
        let own = Request::new();
        assert_eq!(own.run(|| Request::current().unwrap().id()), own.id());
        assert!(Request::current().is_none());
    });
    outer.run(|| {
        drop(inner);
        assert_eq!(Request::current().unwrap().id(), outer.id());
    });
    assert_eq!(told("watched inside"), ["opened 0", "closed closed 0"]);
    let unwound = std::panic::catch_unwind(|| {
        let request = watched("watched by a panic");
        request.run(|| std::panic::resume_unwind(Box::new("on its way")));
    });
    assert!(unwound.is_err());
    // The panic's payload is the request's.
    assert_eq!(told("watched by a panic"), ["opened 0", "closed panicked 2"]);
}

#[test]
fn callbacks_get_the_report_last_added_first() {
    let request = Request::builder().name("called back").build();
    let (sender, receiver) = channel();
    for number in 0..3 {
        let sender = sender.clone();
        request.on_close(move |report| {
            assert!(Request::current().is_none());
            sender.send((number, *report)).unwrap();
            if number == 1 {
                std::panic::resume_unwind(Box::new("a callback's own"));
            }
        });
    }
    // One that is added while the request goes counts, too.
    let other = sender.clone();
    request.on_end(move || {
        let late = Request::current().unwrap();
        late.on_close(move |report| other.send((7, *report)).unwrap());
    });
    drop(sender);
    let kept = request.run(|| Box::new(3));
    drop(request);
    let told: Vec<_> = receiver.iter().collect();
    let numbers: Vec<_> = told.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [7, 2, 1, 0]);
    assert!(told.iter().all(|(_, report)| report.surviving_blocks == 1 && !report.still_open));
    drop(kept);
}

#[test]
fn a_report_can_be_waited_for() {
    for is_ended in [false, true] {
        let request = Request::new();
        let (waiting, id) = (request.clone(), request.id());
        let gate = Arc::new(Barrier::new(2));
        let there = gate.clone();
        let waiter = std::thread::spawn(move || {
            there.wait();
            waiting.wait_closed()
        });
        gate.wait();
        std::thread::sleep(Duration::from_millis(5));
        request.run(|| drop(vec![0u8; 1000]));
        if is_ended {
            drop(request);
        } else {
            let report = request.wait_closed();
            assert_eq!(report.outcome, Outcome::Closed);
        }
        let report = waiter.join().unwrap();
        assert_eq!((report.id, report.freed_blocks), (id, 0));
    }
}

#[test]
fn the_future_of_a_report_keeps_nothing_open() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        for _ in 0..100 {
            let request = Request::builder().name("aborted").build();
            let tasks: Vec<_> = (0..3)
                .map(|_| {
                    tokio::spawn(request.scope(async {
                        let _block = Box::new([1u8; 100]);
                        std::future::pending::<()>().await;
                    }))
                })
                .collect();
            tokio::task::yield_now().await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            let id = request.id();
            let (one, other) = (request.clone().closed(), request.closed());
            let (one, other) = tokio::join!(one, other);
            assert_eq!((one.id, one), (id, other));
        }
        // Ready before it is polled.
        let request = Request::new();
        let closed = request.clone().closed();
        let _ = request.close().unwrap();
        assert_eq!(closed.await.outcome, Outcome::Closed);
    });
}

#[test]
fn open_requests_are_listed_while_others_come_and_go() {
    let mine: Vec<_> =
        (0..20).map(|index| Request::builder().name(format!("listed {index}")).build()).collect();
    let kept: Vec<_> = mine.iter().map(|request| request.run(|| vec![0u8; 5000])).collect();
    let gate = Barrier::new(3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                gate.wait();
                for round in 0..2000 {
                    let request = Request::builder().name(format!("passing {round}")).build();
                    request.run(|| drop(vec![0u8; round]));
                    let _ = request.close().expect("a look from outside is no handle");
                }
            });
        }
        gate.wait();
        for _ in 0..200 {
            let open = open_requests();
            for request in &mine {
                let info = open.iter().find(|info| info.id == request.id()).unwrap();
                assert_eq!(info.name, request.name());
                assert_eq!((info.usage.live_blocks, info.lane_count), (1, 1));
                assert!(info.usage.footprint_bytes >= 5000 && info.age.is_some());
            }
            for info in &open {
                let _ = snapshot(info.id).inspect(|seen| assert_eq!(seen.request.id, info.id));
            }
        }
    });
    drop(kept);
    let id = mine[0].id();
    drop(mine);
    assert!(snapshot(id).is_none());
    assert!(open_requests().iter().all(|info| !info.name.is_some_and(|n| n.contains("listed"))));
}

#[test]
fn a_snapshot_shows_what_is_live_and_what_it_could_not_see() {
    let request = Request::builder().name("seen").build();
    let kept = request.run(|| (vec![0u8; 100], vec![0u8; 50_000], vec![0u8; 3 << 20]));
    let from_outside = snapshot(request.id()).unwrap();
    let from_inside = request.run(|| request.snapshot());
    for seen in [&from_outside, &from_inside] {
        assert_eq!((seen.blocks, seen.skipped_lane_count), (3, 0), "{seen}");
        let payloads: Vec<_> = seen.classes.iter().map(|class| class.payload_bytes).collect();
        assert_eq!(payloads, [Some(104), Some(57_352), None]);
    }
    assert_eq!(from_outside.request.usage, request.usage());
    let text = from_outside.to_string();
    assert!(text.contains("(seen): 3 blocks live ("), "{text}");

    let (done, wait) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            request.run(|| {
                let busy = vec![0u8; 200];
                wait.wait();
                done.wait();
                drop(busy);
            });
        });
        wait.wait();
        let seen = snapshot(request.id()).unwrap();
        assert_eq!((seen.request.thread_count, seen.skipped_lane_count), (1, 1));
        assert!(seen.to_string().ends_with("and what another thread is working on"));
        done.wait();
    });
    drop(kept);
    let _ = request.close().unwrap();
}

#[test]
fn a_parent_can_be_closed_by_whoever_is_told_of_its_child() {
    for _ in 0..200 {
        let parent = Request::new();
        let child = Request::builder().parent(&parent).build();
        let inside = child.clone();
        let thread = std::thread::spawn(move || drop(inside));
        let _ = child.wait_closed();
        let _ = parent.close().expect("its child has let go of it");
        thread.join().unwrap();
    }
    let parent = Request::new();
    let child = Request::builder().parent(&parent).build();
    let is_closed = Arc::new(Mutex::new(false));
    let told = is_closed.clone();
    child.on_close(move |_| *told.lock().unwrap() = parent.close().is_ok());
    drop(child);
    assert!(*is_closed.lock().unwrap());
}

#[test]
fn a_waker_may_own_the_request_that_it_waits_for() {
    type Task = Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>;
    struct Waking(#[expect(dead_code, reason = "dropped with the waker")] Task);
    impl Wake for Waking {
        fn wake(self: Arc<Self>) {}
    }
    let waker_of = |request: &Request| {
        let task: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(request.scope(std::future::pending()));
        Waker::from(Arc::new(Waking(Mutex::new(Some(task)))))
    };
    let request = Request::new();
    let waker = waker_of(&request);
    let mut closed = Box::pin(request.closed());
    assert!(closed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    // The old waker goes, and with it the request.
    let mut context = Context::from_waker(Waker::noop());
    while closed.as_mut().poll(&mut context).is_pending() {}
    let request = Request::new();
    let waker = waker_of(&request);
    let mut closed = Box::pin(request.closed());
    assert!(closed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    drop(closed);
}

#[test]
fn threads_that_have_exited_lose_no_event() {
    static OPEN: AtomicI64 = AtomicI64::new(0);
    static CLOSED_LATE: AtomicI64 = AtomicI64::new(0);
    struct Balance;
    impl Observer for Balance {
        fn opened(&self, request: &RequestInfo) {
            if request.name.is_some_and(|name| name == "late") {
                OPEN.fetch_add(1, Ordering::Relaxed);
            }
        }
        fn closed(&self, request: &RequestInfo, _report: &Report) {
            if request.name.is_some_and(|name| name == "late") {
                OPEN.fetch_sub(1, Ordering::Relaxed);
                std::thread::yield_now();
                drop(Request::builder().name("late").build());
            }
        }
    }
    static KEY: AtomicI64 = AtomicI64::new(0);
    extern "C" fn late(value: *mut libc::c_void) {
        let key = KEY.load(Ordering::Relaxed) as libc::pthread_key_t;
        // A few rounds of destructors later the allocator has left the thread.
        let late = value.cast::<(u32, Option<Request>)>();
        // SAFETY: the box below; the key exists.
        unsafe {
            (*late).0 += 1;
            if (*late).0 < 3 {
                libc::pthread_setspecific(key, value);
            } else {
                drop((*late).1.take());
                CLOSED_LATE.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    set_observer(Balance);
    let mut key = 0;
    // SAFETY: a place for the key, and a function that takes what is set below.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(late)) }, 0);
    KEY.store(i64::from(key), Ordering::Relaxed);
    for _ in 0..50 {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                std::thread::spawn(move || {
                    let request = Request::builder().name("late").build();
                    let late = rqmalloc::persistent(|| Box::leak(Box::new((0u32, Some(request)))));
                    // SAFETY: the key exists.
                    unsafe { libc::pthread_setspecific(key, (&raw const *late).cast()) };
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    assert_eq!(CLOSED_LATE.load(Ordering::Relaxed), 300);
    assert_eq!(OPEN.load(Ordering::Relaxed), 0);
}
