//! `Request::scope` under tokio: every poll is inside, nothing between polls is, and whatever
//! becomes of a task, its request loses nothing.

use crate::support::{
    Held, PAGE, REGION, active_owner, alone, close_empty, current_id, persistent_vec, together,
    unwind,
};
use rqmalloc::{Bailout, Request, RequestId, bailout, persistent, stats};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn, spawn_blocking};
use tokio::time::{sleep, timeout};

pub fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

pub fn many_threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap()
}

/// Runs the case under both runtimes.
pub fn under_both<F: Future<Output = ()> + Send + 'static>(case: impl Fn() -> F) {
    let _together = together();
    one_thread().block_on(case());
    let runtime = many_threads();
    // In a task, so that workers run it.
    runtime.block_on(async { spawn(case()).await.unwrap() });
}

/// Records, when dropped, which request the thread is inside.
pub struct Dropped {
    inside: Arc<AtomicU64>,
    held: Option<Held>,
}

impl Dropped {
    /// Creates one with a block from what is active.
    pub fn new(inside: &Arc<AtomicU64>) -> Self {
        Self { inside: inside.clone(), held: Some(Held::new(100, 5)) }
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        self.inside.store(current_id().map_or(0, RequestId::get), Ordering::Relaxed);
        self.held.take().unwrap().free();
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn a_spawned_scope_is_inside_at_every_poll() {
    under_both(|| async {
        let request = Request::new();
        let id = request.id();
        let task = spawn(request.scope(async move {
            let mut held = persistent_vec();
            for round in 0..20 {
                assert_eq!((current_id(), active_owner()), (Some(id), Some(id)));
                held.push(Held::new(100, round));
                if round % 5 == 0 { sleep(MILLISECOND).await } else { yield_now().await }
            }
            held
        }));
        // The executor's own task is always outside.
        for _ in 0..10 {
            assert_eq!((current_id(), active_owner()), (None, None));
            yield_now().await;
        }
        let held = task.await.unwrap();
        assert!(held.iter().all(|held| held.owner() == Some(id)));
        assert_eq!(request.usage().live_blocks, 20);
        held.into_iter().for_each(Held::free);
        close_empty(request);
    });
}

/// A hand-written future that one thread after the other polls stays in one lane.
#[test]
fn a_scope_that_many_threads_poll_has_one_lane() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let scope = request.scope(async move {
        let mut kept: Option<Held> = None;
        for round in 0..64u64 {
            let held = Held::new(500, round);
            assert_eq!(held.owner(), Some(id));
            if let Some(before) = kept.replace(held) {
                before.free();
            }
            yield_now().await;
        }
        kept.take().unwrap().free();
    });
    let mut scope: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(scope);
    let (mut polls, mut first) = (0, None);
    loop {
        polls += 1;
        let (again, is_ready) = crate::support::elsewhere(move || {
            let is_ready = scope.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            assert_eq!(current_id(), None);
            (scope, is_ready)
        });
        scope = again;
        let peak = request.usage().peak_bytes;
        assert!(peak == first.replace(peak).unwrap_or(peak), "poll {polls}: {peak}");
        if is_ready {
            break;
        }
    }
    assert_eq!(polls, 65);
    close_empty(request);
}

/// Returns a future that is pending once. (Tokio's own records the task in a vector, which grows
/// where it is first used.)
pub fn yield_now() -> impl Future<Output = ()> {
    let mut is_first = true;
    poll_fn(move |context| {
        if std::mem::take(&mut is_first) {
            context.waker().wake_by_ref();
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
}

#[test]
fn tasks_on_many_threads_keep_their_requests_apart() {
    under_both(|| async {
        const COUNT: u64 = 40;
        let mut tasks = JoinSet::new();
        for number in 0..COUNT {
            let request = Request::new();
            let inside = request.clone();
            let scope = request.scope(async move {
                let mut held = persistent_vec();
                // Free blocks for all that the task allocates, in the bins of its lane.
                let ahead: [Held; 32] = std::array::from_fn(|n| Held::new(64 + n % 16, 0));
                ahead.into_iter().for_each(Held::free);
                let peak = inside.usage().peak_bytes;
                for round in 0..15u64 {
                    assert_eq!(active_owner(), Some(inside.id()));
                    held.push(Held::new(64 + round as usize, number));
                    if round % 4 == number % 4 {
                        sleep(MILLISECOND).await
                    } else {
                        yield_now().await
                    }
                }
                assert_eq!(inside.usage().peak_bytes, peak);
                held
            });
            tasks.spawn(async move {
                let held = scope.await;
                assert_eq!((current_id(), active_owner()), (None, None));
                assert!(held.iter().all(|held| held.owner() == Some(request.id())));
                (request, held)
            });
        }
        let mut count = 0;
        while let Some(done) = tasks.join_next().await {
            let (request, held) = done.unwrap();
            held.into_iter().for_each(Held::free);
            close_empty(request);
            count += 1;
        }
        assert_eq!(count, COUNT);
    });
}

/// Tasks of one request, all at once: as many lanes as threads are inside at once, and no more.
#[test]
fn tasks_of_one_request() {
    under_both(|| async {
        const COUNT: usize = 120;
        let request = Request::new();
        let id = request.id();
        let mut tasks = JoinSet::new();
        for number in 0..COUNT as u64 {
            tasks.spawn(request.scope(async move {
                for round in 0..20 {
                    let held = Held::new(200, round);
                    yield_now().await;
                    assert_eq!((held.owner(), current_id()), (Some(id), Some(id)));
                    held.free();
                }
                Held::new(100, number)
            }));
        }
        let mut held = Vec::new();
        while let Some(done) = tasks.join_next().await {
            held.push(done.unwrap());
        }
        let usage = request.usage();
        assert_eq!(usage.live_blocks, COUNT as u64);
        // At most three workers are inside at once, and a lane begins with a region of at least a
        // page.
        const { assert!(COUNT * PAGE > 4 * REGION) };
        assert!(usage.peak_bytes <= 4 * REGION, "{usage:?}");
        held.into_iter().for_each(Held::free);
        close_empty(request);
    });
}

#[test]
fn joined_scopes_of_one_task() {
    under_both(|| async {
        let (one, two) = (Request::new(), Request::new());
        let work = |id: RequestId| async move {
            let mut held = persistent_vec();
            for round in 0..10 {
                assert_eq!((current_id(), active_owner()), (Some(id), Some(id)));
                held.push(Held::new(100, round));
                yield_now().await;
            }
            held
        };
        let (a, b) = tokio::join!(one.scope(work(one.id())), two.scope(work(two.id())));
        assert_eq!((current_id(), active_owner()), (None, None));
        assert!(a.iter().all(|held| held.owner() == Some(one.id())));
        assert!(b.iter().all(|held| held.owner() == Some(two.id())));
        assert_eq!((one.usage().live_blocks, two.usage().live_blocks), (10, 10));
        a.into_iter().chain(b).for_each(Held::free);
        close_empty(one);
        close_empty(two);
    });
}

#[test]
fn scopes_nest() {
    under_both(|| async {
        let (outer, inner) = (Request::new(), Request::new());
        let (outer_id, inner_id) = (outer.id(), inner.id());
        outer.run(|| Held::new(100, 0).free());
        let peak = outer.usage().peak_bytes;
        let nested = {
            let (outer, inner) = (outer.clone(), inner.clone());
            outer.clone().scope(async move {
                let a = Held::new(100, 1);
                yield_now().await;
                let (b, c) = inner
                    .scope(async move {
                        let b = Held::new(100, 2);
                        yield_now().await;
                        assert_eq!(
                            (current_id(), active_owner()),
                            (Some(inner_id), Some(inner_id))
                        );
                        // The outer one again, inside the inner one.
                        let c = outer
                            .scope(async {
                                yield_now().await;
                                Held::new(100, 3)
                            })
                            .await;
                        assert_eq!(active_owner(), Some(inner_id));
                        persistent(|| assert_eq!(active_owner(), None));
                        (b, c)
                    })
                    .await;
                assert_eq!((current_id(), active_owner()), (Some(outer_id), Some(outer_id)));
                yield_now().await;
                assert_eq!(active_owner(), Some(outer_id));
                [a, b, c]
            })
        };
        let held = nested.await;
        assert_eq!(
            held.each_ref().map(Held::owner),
            [Some(outer_id), Some(inner_id), Some(outer_id)]
        );
        assert_eq!(outer.usage().peak_bytes, peak, "a thread that is inside has a lane already");
        assert_eq!((current_id(), active_owner()), (None, None));
        held.into_iter().for_each(Held::free);
        close_empty(inner);
        close_empty(outer);
    });
}

#[test]
fn the_branch_that_select_drops_is_dropped_inside() {
    under_both(|| async {
        let request = Request::new();
        let inside = Arc::new(AtomicU64::new(u64::MAX));
        let (send, receive) = oneshot::channel::<()>();
        let loser = {
            let inside = inside.clone();
            request.scope(async move {
                let dropped = Dropped::new(&inside);
                send.send(()).unwrap();
                pending::<()>().await;
                drop(dropped);
            })
        };
        tokio::select! {
            () = loser => unreachable!(),
            received = receive => received.unwrap(),
        }
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        assert_eq!((current_id(), active_owner()), (None, None));
        close_empty(request);
    });
}

#[test]
fn a_scope_that_times_out_is_dropped_inside() {
    under_both(|| async {
        let request = Request::new();
        let inside = Arc::new(AtomicU64::new(u64::MAX));
        let scope = {
            let inside = inside.clone();
            request.scope(async move {
                let dropped = Dropped::new(&inside);
                let held: Vec<Vec<u8>> = (0..50).map(|length| vec![1; 10 + length]).collect();
                sleep(Duration::from_secs(3600)).await;
                drop((dropped, held));
            })
        };
        assert!(timeout(5 * MILLISECOND, scope).await.is_err());
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        close_empty(request);
    });
}

#[test]
fn an_aborted_task_loses_nothing() {
    under_both(|| async {
        let request = Request::new();
        let inside = Arc::new(AtomicU64::new(u64::MAX));
        let (send, receive) = oneshot::channel::<()>();
        let scope = {
            let inside = inside.clone();
            request.scope(async move {
                let dropped = Dropped::new(&inside);
                let held: Vec<Vec<u8>> = (0..50).map(|length| vec![1; 10 + length]).collect();
                send.send(()).unwrap();
                pending::<()>().await;
                drop((dropped, held));
            })
        };
        let task = spawn(scope);
        receive.await.unwrap();
        let request = request.close().unwrap_err();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        close_empty(request);

        // A scope that was never polled.
        let request = Request::new();
        let held = request.run(|| Held::new(100, 1));
        let task = spawn(request.scope(async move { held.free() }));
        task.abort();
        let _ = task.await;
        assert!(request.usage().live_blocks <= 1);
        assert!(request.close().is_ok());
    });
}

#[test]
fn a_pending_scope_is_dropped_inside_by_whoever() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let inside = Arc::new(AtomicU64::new(u64::MAX));
    let mut scope = {
        let inside = inside.clone();
        Box::pin(request.scope(async move {
            let dropped = Dropped::new(&inside);
            pending::<()>().await;
            drop(dropped);
        }))
    };
    assert!(scope.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    // The scope has the last handle, which closes the request on another thread, inside another
    // request.
    drop(request);
    crate::support::elsewhere(move || {
        let other = Request::new();
        let entered = other.enter();
        drop(scope);
        assert_eq!(active_owner(), Some(other.id()));
        drop(entered);
        close_empty(other);
    });
    assert_eq!(inside.load(Ordering::Relaxed), id.get());
}

/// A future that is ready at once and has its block until it is dropped itself.
struct Keeps(#[expect(dead_code, reason = "it is there to be dropped")] Dropped);

impl Future for Keeps {
    type Output = ();
    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

#[test]
fn a_future_that_is_ready_is_dropped_inside() {
    under_both(|| async {
        let request = Request::new();
        let inside = Arc::new(AtomicU64::new(u64::MAX));
        let keeps = request.run(|| Keeps(Dropped::new(&inside)));
        let mut scope = pin!(request.scope(keeps));
        scope.as_mut().await;
        // The scope is still there; the future is not.
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        close_empty(request);
    });
}

#[test]
fn a_scope_s_handle_goes_when_it_is_ready() {
    let _alone = alone();
    let before = stats().open_request_count;
    let request = Request::new();
    let mut scope = pin!(request.scope(async {}));
    drop(request);
    assert_eq!(stats().open_request_count, before + 1);
    let mut context = Context::from_waker(Waker::noop());
    assert!(scope.as_mut().poll(&mut context).is_ready());
    // The scope itself is still there.
    assert_eq!(stats().open_request_count, before);
    let again = catch_unwind(AssertUnwindSafe(|| scope.as_mut().poll(&mut context)));
    assert_eq!(
        again.unwrap_err().downcast_ref::<&str>().copied(),
        Some("Scope polled after it was over")
    );
    assert_eq!((current_id(), active_owner()), (None, None));

    // A forgotten scope keeps its request open, and nothing else.
    let request = Request::new();
    let mut scope = Box::pin(request.scope(pending::<()>()));
    assert!(scope.as_mut().poll(&mut context).is_pending());
    std::mem::forget(scope);
    assert!(request.close().is_err());
    assert_eq!(stats().open_request_count, before + 1);
}

#[test]
fn a_panic_in_a_poll_leaves() {
    under_both(|| async {
        let request = Request::new();
        let inside = Arc::new(AtomicU64::new(u64::MAX));
        let scope = {
            let inside = inside.clone();
            request.scope(async move {
                let _dropped = Dropped::new(&inside);
                yield_now().await;
                let _held = vec![1u8; 1000];
                unwind(99)
            })
        };
        let error = spawn(scope).await.map(|(): ()| ()).unwrap_err();
        assert_eq!((current_id(), active_owner()), (None, None));
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        // The payload was allocated inside, and outlives the request.
        assert_eq!(request.usage().live_blocks, 1);
        let report = request.close().unwrap();
        assert_eq!((report.surviving_blocks, report.freed_blocks), (1, 0), "{report}");
        assert_eq!(error.into_panic().downcast_ref::<u64>(), Some(&99));
    });
}

#[test]
fn tasks_that_a_handler_spawns_do_not_inherit() {
    under_both(|| async {
        let request = Request::new();
        let id = request.id();
        let handler = request.scope(async move {
            let task = spawn(async { (current_id(), active_owner()) });
            let blocking = spawn_blocking(|| (current_id(), active_owner()));
            assert_eq!(task.await.unwrap(), (None, None));
            assert_eq!(blocking.await.unwrap(), (None, None));
            assert_eq!((current_id(), active_owner()), (Some(id), Some(id)));
            // With a scope, or `run`, they are inside.
            let own = Request::current().unwrap();
            let task = spawn(own.scope(async { (current_id(), active_owner()) }));
            let blocking = spawn_blocking(move || own.run(|| (current_id(), active_owner())));
            assert_eq!(task.await.unwrap(), (Some(id), Some(id)));
            assert_eq!(blocking.await.unwrap(), (Some(id), Some(id)));
        });
        handler.await;
        assert_eq!((current_id(), active_owner()), (None, None));
        // The cells of the tasks, and a thread for blocking work: allocated inside, and freed when
        // they are no longer needed. A worker may still be about to drop its reference.
        assert!(request.close().is_ok());
    });
}

/// Uses a timer, channels and a task, all of which a handler may create inside.
async fn well_behaved(held: &Mutex<Vec<Held>>) -> usize {
    let (sender, mut receiver) = persistent(|| mpsc::channel::<Vec<u8>>(4));
    let task = persistent(|| {
        spawn(async move {
            for length in 0..100 {
                sender.send(vec![1; length]).await.unwrap();
            }
        })
    });
    let mut sum = 0;
    while let Some(bytes) = receiver.recv().await {
        sum += bytes.len();
        held.lock().unwrap().push(Held::new(100, sum as u64));
        if bytes.len() % 30 == 0 {
            sleep(MILLISECOND).await;
        }
    }
    persistent(|| drop(receiver));
    task.await.unwrap();
    held.lock().unwrap().drain(..).for_each(Held::free);
    sum
}

#[test]
fn a_well_behaved_handler_leaves_nothing() {
    under_both(|| async {
        let held = Arc::new(Mutex::new(Vec::with_capacity(200)));
        // What the runtime creates at first use is created now, outside.
        well_behaved(&held).await;
        let mut tasks = JoinSet::new();
        for _ in 0..10 {
            let held = Arc::new(Mutex::new(Vec::with_capacity(200)));
            let request = Request::new();
            tasks.spawn(async move {
                let sum = request.scope(async move { well_behaved(&held).await }).await;
                assert_eq!(sum, 99 * 100 / 2);
                let report = request.close().unwrap();
                assert_eq!((report.surviving_blocks, report.freed_blocks), (0, 0), "{report}");
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}

/// A handler that has the runtime create things inside: they stay valid, the report says how many
/// there are, and the runtime goes on working.
#[test]
fn what_a_runtime_makes_inside_survives() {
    let _together = together();
    for runtime in [one_thread(), many_threads()] {
        let count = Arc::new(AtomicUsize::new(0));
        let (sender, mut receiver) = mpsc::unbounded_channel::<Vec<u8>>();
        let (go, gone) = oneshot::channel::<()>();
        let report = runtime.block_on(async {
            let request = Request::new();
            let (count, inside_sender) = (count.clone(), sender.clone());
            let handler = request.scope(async move {
                // The channel grows.
                for length in 0..200 {
                    inside_sender.send(vec![7; length]).unwrap();
                }
                let growing = count.clone();
                // A task that outlives the request, with its timer, and one that waits for a
                // channel.
                drop(spawn(async move {
                    sleep(20 * MILLISECOND).await;
                    growing.fetch_add(1, Ordering::Relaxed);
                }));
                let waiting = count.clone();
                drop(spawn(async move {
                    gone.await.unwrap();
                    waiting.fetch_add(1, Ordering::Relaxed);
                }));
                drop(spawn_blocking(move || {
                    std::thread::sleep(20 * MILLISECOND);
                    count.fetch_add(1, Ordering::Relaxed);
                }));
                sleep(MILLISECOND).await;
                // The runtime's vector of yielding tasks.
                tokio::task::yield_now().await;
            });
            handler.await;
            request.close().unwrap()
        });
        // 199 non-empty vectors, blocks of the channel, two tasks, the blocking one.
        assert!(report.surviving_blocks > 199 + 5, "{report}");
        assert!(report.span_bytes >= report.surviving_bytes, "{report}");
        drop(sender);
        runtime.block_on(async {
            let mut length = 0;
            while let Some(bytes) = receiver.recv().await {
                assert_eq!((bytes.len(), bytes.iter().all(|&byte| byte == 7)), (length, true));
                length += 1;
            }
            assert_eq!(length, 200);
            go.send(()).unwrap();
            while count.load(Ordering::Relaxed) < 3 {
                sleep(MILLISECOND).await;
            }
            // The next request finds all of it there.
            let held = Mutex::new(Vec::with_capacity(200));
            well_behaved(&held).await;
            let request = Request::new();
            request.scope(async { well_behaved(&held).await }).await;
            close_empty(request);
        });
        drop(runtime);
    }
    rqmalloc::check_structures();
}

/// A runtime that is created, used and shut down inside a request, with tasks that are not done.
#[test]
fn a_runtime_inside_a_request() {
    let _together = together();
    let request = Request::new();
    let id = request.id();
    let entered = request.enter();
    let runtime = many_threads();
    runtime.block_on(async {
        spawn(async { sleep(MILLISECOND).await }).await.unwrap();
        drop(spawn(pending::<()>()));
    });
    assert_eq!(active_owner(), Some(id));
    drop(entered);
    let live = request.usage().live_blocks;
    assert!(live > 0);
    let report = request.close().unwrap();
    assert!(report.surviving_blocks > 0, "{report}");
    // All of it was allocated in the request, and goes on working.
    runtime.block_on(async {
        let other = Request::new();
        let task = spawn(other.scope(async { Held::new(100, 1) }));
        task.await.unwrap().free();
        close_empty(other);
    });
    drop(runtime);
    rqmalloc::check_structures();
}

/// A runtime that is shut down drops the scopes of unfinished tasks, inside.
#[test]
fn a_runtime_that_goes_drops_its_scopes() {
    let _together = together();
    let request = Request::new();
    let inside = Arc::new(AtomicU64::new(u64::MAX));
    let runtime = many_threads();
    let (send, receive) = oneshot::channel::<()>();
    let scope = {
        let inside = inside.clone();
        request.scope(async move {
            let dropped = Dropped::new(&inside);
            send.send(()).unwrap();
            pending::<()>().await;
            drop(dropped);
        })
    };
    drop(runtime.spawn(scope));
    runtime.block_on(receive).unwrap();
    let request = request.close().unwrap_err();
    assert!(request.to_string().contains("still open"), "{request}");
    drop(runtime);
    assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
    close_empty(request);
}

// ---- giving a request up ------------------------------------------------------------------------

/// Keeps more and more across polls; the other tasks of the runtime go on.
pub async fn greedy() -> usize {
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(4096);
    for round in 0..4_000 {
        held.push(vec![1; 1_000]);
        if round % 10 == 0 {
            yield_now().await;
        }
    }
    held.len()
}

#[test]
fn a_scope_over_its_mark_is_given_up_alone() {
    under_both(|| async {
        let requests: Vec<_> = (0..6)
            .map(|number| {
                let builder = Request::builder().reserve(256 << 10);
                builder.memory_limit(if number == 3 { 1 << 20 } else { 16 << 20 }).build()
            })
            .collect();
        let tasks: Vec<_> =
            requests.iter().map(|request| spawn(request.scope(greedy()).catch())).collect();
        let mut given_up = Vec::new();
        for (number, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(rounds) => assert_eq!(rounds, 4_000),
                Err(Bailout::Limit(limit)) => {
                    assert_eq!(limit.limit_bytes, 1 << 20);
                    given_up.push(number);
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(given_up, [3]);
        // What the future had was dropped inside the request.
        requests.into_iter().for_each(close_empty);
    });
}

#[test]
fn without_catch_the_executor_sees_a_panic_of_one_task() {
    under_both(|| async {
        let request = Request::builder().memory_limit(1 << 20).reserve(256 << 10).build();
        let error = spawn(request.scope(greedy())).await.unwrap_err();
        let payload = error.into_panic();
        assert!(matches!(payload.downcast_ref(), Some(Bailout::Limit(_))));
        assert_eq!(current_id(), None);
        close_empty(request);
    });
}

#[test]
fn a_bailout_in_a_poll_is_caught() {
    under_both(|| async {
        let request = Request::new();
        let inside = Arc::new(AtomicU64::new(u64::MAX));
        let seen = inside.clone();
        let task = spawn(
            request
                .scope(async move {
                    let _dropped = Dropped::new(&seen);
                    yield_now().await;
                    if seen.load(Ordering::Relaxed) == u64::MAX {
                        bailout("given up");
                    }
                    7
                })
                .catch(),
        );
        assert_eq!(task.await.unwrap(), Err(Bailout::Called("given up")));
        assert_eq!(inside.load(Ordering::Relaxed), request.id().get());
        drop(inside);
        close_empty(request);
    });
}

#[test]
fn a_caught_scope_that_is_well_is_a_value_and_a_panic_goes_on() {
    under_both(|| async {
        let request = Request::new();
        assert_eq!(spawn(request.scope(async { 7 }).catch()).await.unwrap(), Ok(7));
        let panicking = spawn(request.scope(async { unwind(9) }).catch());
        let payload = panicking.await.unwrap_err().into_panic();
        assert_eq!(payload.downcast_ref(), Some(&9u64));
        drop(payload);
        close_empty(request);
    });
}
