//! Tokio's task hooks: every task inherits, also those of libraries that cannot be asked to. They
//! are unstable: the program is built with `RUSTFLAGS="--cfg tokio_unstable"` (`ci/recipes hooks`).
//! `spawn_blocking` has no hooks. A task is not given up at its request's mark, as a scope is: the
//! handler is, when it is polled next.

use super::{Alone, PARTS, work};
use rqmalloc::{Entered, Request, persistent};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Builder;
use tokio::task::{Id, JoinSet};

/// The requests of the tasks that were spawned inside one.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<HashMap<Id, Request>>>);

thread_local! {
    /// What this thread entered for the tasks that it is polling.
    static ENTERED: RefCell<Vec<Option<Entered>>> = const { RefCell::new(Vec::new()) };
}

impl Tasks {
    fn locked(&self) -> MutexGuard<'_, HashMap<Id, Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every task of the runtime inherit the request that it is spawned in.
    fn install(self, builder: &mut Builder) -> &mut Builder {
        let (spawned, polled, done) = (self.clone(), self.clone(), self);
        builder
            .on_task_spawn(move |task| {
                if let Some(request) = Request::current() {
                    persistent(|| spawned.locked().insert(task.id(), request));
                }
            })
            .on_before_task_poll(move |task| {
                let request = polled.locked().get(&task.id()).cloned();
                persistent(|| ENTERED.with_borrow_mut(|all| all.reserve(1)));
                let entered = request.map(|request| request.enter());
                ENTERED.with_borrow_mut(|all| all.push(entered));
            })
            .on_after_task_poll(|_| drop(ENTERED.with_borrow_mut(Vec::pop)))
            .on_task_terminate(move |task| drop(done.locked().remove(&task.id())))
    }
}

/// An engine that spawns tasks of its own, and those spawn more.
async fn engine() -> usize {
    let mut tasks = JoinSet::new();
    for number in 0..PARTS {
        tasks.spawn(async move {
            tokio::task::yield_now().await;
            tokio::spawn(async move { work(number) }).await.unwrap()
        });
    }
    tasks.join_all().await.into_iter().sum()
}

#[test]
fn every_task_inherits() {
    let alone = Alone::new();
    for one_thread in [false, true] {
        let builder = || if one_thread { Builder::new_current_thread() } else { two_threads() };
        let plain = builder().build().unwrap();
        let without = alone
            .share("an engine without hooks", |request| plain.block_on(request.scope(engine())));
        assert!(without < 5.0, "{without:.2} %");
        let tasks = Tasks::default();
        let hooked = tasks.clone().install(&mut builder()).build().unwrap();
        alone.counts_all("the same with task hooks", |request| {
            hooked.block_on(request.scope(engine()))
        });
        // Tasks that are aborted, panic, or are there when the runtime goes keep no request open.
        let request = Request::new();
        hooked.block_on(request.scope(async {
            let aborted = tokio::spawn(std::future::pending::<()>());
            tokio::task::yield_now().await;
            aborted.abort();
            assert!(aborted.await.unwrap_err().is_cancelled());
            let panicking = tokio::spawn(async { std::panic::resume_unwind(Box::new(7)) });
            assert!(panicking.await.map(|()| ()).unwrap_err().is_panic());
            drop(tokio::spawn(std::future::pending::<()>()));
        }));
        drop(hooked);
        assert!(tasks.locked().is_empty());
        assert!(request.close().is_ok());
        assert!(Request::current().is_none());
    }
}

fn two_threads() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2);
    builder
}
