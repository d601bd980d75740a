//! Tokio: tasks, blocking work, `select!`, in runtimes of several threads and of one.

use super::{Alone, PARTS, work};
use rqmalloc::{Request, inherit, inherit_fn};
use std::future::pending;
use std::panic::resume_unwind;
use std::rc::Rc;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet, spawn, spawn_blocking, spawn_local};

/// Runtimes of two threads, and of the thread that waits for them.
fn runtimes() -> [(&'static str, Runtime); 2] {
    let two = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    [("two threads", two), ("one thread", Builder::new_current_thread().build().unwrap())]
}

async fn part(number: u64) -> usize {
    tokio::task::yield_now().await;
    work(number)
}

#[test]
fn spawn_each() {
    let alone = Alone::new();
    for (threads, runtime) in runtimes() {
        alone.counts_all(&format!("spawn(inherit(..)), {threads}"), |request| {
            runtime.block_on(request.scope(async {
                let tasks: Vec<_> = (0..PARTS).map(|number| spawn(inherit(part(number)))).collect();
                let mut sum = 0;
                for task in tasks {
                    // A task that was given up gives up the handler too.
                    sum += task.await.unwrap_or_else(|error| resume_unwind(error.into_panic()));
                }
                sum
            }))
        });
    }
}

/// An engine that spawns what it is given.
async fn engine<F>(wrap: impl Fn(u64) -> F) -> usize
where
    F: Future<Output = usize> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for number in 0..PARTS {
        tasks.spawn(wrap(number));
    }
    tasks.join_all().await.into_iter().sum()
}

#[test]
fn join_set() {
    let alone = Alone::new();
    for (threads, runtime) in runtimes() {
        let name = format!("JoinSet::spawn(..), the handler alone in scope, {threads}");
        let without = alone.share(&name, |request| runtime.block_on(request.scope(engine(part))));
        assert!(without < 5.0, "{without:.2} %");
        alone.counts_all(&format!("JoinSet::spawn(inherit(..)), {threads}"), |request| {
            runtime.block_on(request.scope(engine(|number| inherit(part(number)))))
        });
    }
}

#[test]
fn blocking() {
    let alone = Alone::new();
    for (threads, runtime) in runtimes() {
        alone.counts_all(&format!("spawn_blocking(inherit_fn(..)), {threads}"), |request| {
            runtime.block_on(request.scope(async {
                let mut sum = 0;
                for number in 0..PARTS {
                    sum += spawn_blocking(inherit_fn(move || work(number))).await.unwrap();
                }
                sum
            }))
        });
        alone.counts_all(
            &format!("JoinSet::spawn_blocking(inherit_fn(..)), {threads}"),
            |request| {
                runtime.block_on(request.scope(async {
                    let mut jobs = JoinSet::new();
                    for number in 0..PARTS {
                        jobs.spawn_blocking(inherit_fn(move || work(number)));
                    }
                    jobs.join_all().await.into_iter().sum()
                }))
            },
        );
    }
}

/// The branch that is not taken is dropped inside the request as well.
#[test]
fn select() {
    let alone = Alone::new();
    for (threads, runtime) in runtimes() {
        alone.counts_all(&format!("select!, {threads}"), |request| {
            runtime.block_on(async {
                let handler = request.scope(async {
                    let mut sum = 0;
                    for number in 0..PARTS {
                        sum += part(number).await;
                    }
                    sum
                });
                let never = request.scope(async {
                    let kept = work(0);
                    pending::<()>().await;
                    kept
                });
                tokio::select! {
                    biased;
                    kept = never => kept,
                    sum = handler => sum,
                }
            })
        });
    }
}

/// Tasks that a handler leaves behind keep its request open until they are gone: aborted with their
/// set, detached, or spawned by a branch that is not taken.
#[test]
fn tasks_left_behind() {
    let _alone = Alone::new();
    for (_, runtime) in runtimes() {
        let request = Request::new();
        runtime.block_on(request.scope(async {
            let mut aborted = JoinSet::new();
            for number in 0..PARTS {
                aborted.spawn(inherit(async move {
                    let kept = vec![number; 1_000];
                    pending::<()>().await;
                    kept
                }));
            }
            drop(spawn(inherit(part(0))));
            let spawns = async {
                aborted.spawn(inherit(pending()));
                pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = spawns => unreachable!(),
                () = tokio::task::yield_now() => (),
            }
        }));
        // No task of a runtime is left when it is dropped.
        drop(runtime);
        let report = request.close().unwrap();
        assert_eq!(report.surviving_blocks, 0, "{report}");
    }
}

/// Tasks that cannot be sent.
#[test]
fn local() {
    let alone = Alone::new();
    let runtime = Builder::new_current_thread().build().unwrap();
    alone.counts_all("spawn_local(inherit(..))", |request| {
        LocalSet::new().block_on(
            &runtime,
            request.scope(async {
                let mut sum = 0;
                for number in 0..PARTS {
                    let shared = Rc::new(number);
                    let local = async move { part(*shared).await };
                    sum += spawn_local(inherit(local)).await.unwrap();
                }
                sum
            }),
        )
    });
}
