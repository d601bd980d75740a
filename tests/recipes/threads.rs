//! Threads of std and of crossbeam.

use super::{Alone, PARTS, work};
use rqmalloc::inherit_fn;

#[test]
fn threads_of_their_own() {
    let alone = Alone::new();
    alone.counts_all("thread::spawn(request.wrap(..))", |request| {
        let threads: Vec<_> = (0..PARTS)
            .map(|number| std::thread::spawn(request.wrap(move || work(number))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
}

#[test]
fn scoped_threads() {
    let alone = Alone::new();
    alone.counts_all("thread::Scope::spawn(inherit_fn(..))", |request| {
        request.run(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..PARTS)
                    .map(|number| scope.spawn(inherit_fn(move || work(number))))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            })
        })
    });
}

#[test]
fn threads_of_crossbeam() {
    let alone = Alone::new();
    alone.counts_all("crossbeam::thread::Scope::spawn", |request| {
        request.run(|| {
            crossbeam_utils::thread::scope(|scope| {
                let threads: Vec<_> = (0..PARTS)
                    .map(|number| {
                        let job = inherit_fn(move || work(number));
                        scope.spawn(move |_| job())
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            })
            .unwrap()
        })
    });
}
