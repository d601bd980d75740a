//! Tokio: tasks, blocking work, `select!`, a runtime of one thread.

use super::{Alone, PARTS, work};
use rqmalloc::{inherit, inherit_fn};
use std::future::pending;
use std::panic::resume_unwind;
use std::rc::Rc;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet, spawn, spawn_blocking, spawn_local};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

async fn part(number: u64) -> usize {
    tokio::task::yield_now().await;
    work(number)
}

#[test]
fn spawn_each() {
    let alone = Alone::new();
    let runtime = runtime();
    alone.counts_all("spawn(inherit(..))", |request| {
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
    let runtime = runtime();
    let without = alone.share("JoinSet::spawn(..), the handler alone in scope", |request| {
        runtime.block_on(request.scope(engine(part)))
    });
    assert!(without < 5.0, "{without:.2} %");
    alone.counts_all("JoinSet::spawn(inherit(..))", |request| {
        runtime.block_on(request.scope(engine(|number| inherit(part(number)))))
    });
}

#[test]
fn blocking() {
    let alone = Alone::new();
    let runtime = runtime();
    alone.counts_all("spawn_blocking(inherit_fn(..))", |request| {
        runtime.block_on(request.scope(async {
            let mut sum = 0;
            for number in 0..PARTS {
                sum += spawn_blocking(inherit_fn(move || work(number))).await.unwrap();
            }
            sum
        }))
    });
}

/// The branch that is not taken is dropped inside the request as well.
#[test]
fn select() {
    let alone = Alone::new();
    let runtime = runtime();
    alone.counts_all("select!", |request| {
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

#[test]
fn one_thread() {
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
