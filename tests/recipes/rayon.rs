//! rayon: jobs are stolen by threads that know nothing of the request.

use super::{Alone, PARTS, work};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};
use rqmalloc::{inherit_each, inherit_fn};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

fn shared_pool() -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

#[test]
fn iterators() {
    let alone = Alone::new();
    let pool = shared_pool();
    alone.counts_all("par_iter().map(inherit_each(..))", |request| {
        request.run(|| {
            let work = inherit_each(work);
            pool.install(|| (0..PARTS).into_par_iter().map(work).sum())
        })
    });
}

#[test]
fn scope() {
    let alone = Alone::new();
    let pool = shared_pool();
    alone.counts_all("rayon::Scope::spawn", |request| {
        let sum = AtomicUsize::new(0);
        request.run(|| {
            // `in_place_scope` runs its closure here, inside; `scope` may run it in another thread.
            pool.in_place_scope(|scope| {
                for number in 0..PARTS {
                    let sum = &sum;
                    let job = inherit_fn(move || sum.fetch_add(work(number), Relaxed));
                    scope.spawn(move |_| _ = job());
                }
            })
        });
        sum.into_inner()
    });
}

/// Threads that are inside the request as long as the pool lives: the library's own memory, and
/// closures that nobody can wrap, are counted too.
#[test]
fn a_pool_of_the_request() {
    let alone = Alone::new();
    alone.counts_all("ThreadPoolBuilder::spawn_handler", |request| {
        request.run(|| {
            let pool = ThreadPoolBuilder::new()
                .num_threads(2)
                .spawn_handler(|thread| {
                    let run = inherit_fn(move || thread.run());
                    std::thread::Builder::new().spawn(run).map(drop)
                })
                .build()
                .unwrap();
            pool.install(|| (0..PARTS).into_par_iter().map(work).collect::<Vec<_>>().iter().sum())
        })
    });
}
