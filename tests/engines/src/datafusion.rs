//! DataFusion runs queries in tasks of its own. Its `JoinSetTracer` has them inherit: here its own
//! `JoinSet` and `SpawnedTask`, without the rest of it, which takes half an hour to build.

use datafusion_common_runtime::{JoinSet, JoinSetTracer, SpawnedTask, set_join_set_tracer};
use rqmalloc::{Bailout, Request, RequestId, inherit, inherit_fn};
use std::any::Any;
use std::pin::Pin;
use tokio::task::yield_now;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// The recipe: every task and every blocking closure of DataFusion's takes its request along.
struct Inherits;

type Output = Box<dyn Any + Send>;

impl JoinSetTracer for Inherits {
    fn trace_future(
        &self,
        future: Pin<Box<dyn Future<Output = Output> + Send>>,
    ) -> Pin<Box<dyn Future<Output = Output> + Send>> {
        Box::pin(inherit(future))
    }

    fn trace_block(
        &self,
        block: Box<dyn FnOnce() -> Output + Send>,
    ) -> Box<dyn FnOnce() -> Output + Send> {
        Box::new(inherit_fn(block))
    }
}

fn here() -> Option<RequestId> {
    Request::current().map(|request| request.id())
}

/// Returns where each way to spawn something runs it.
async fn engine() -> Vec<Option<RequestId>> {
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        tasks.spawn(async {
            yield_now().await;
            here()
        });
    }
    tasks.spawn_blocking(here);
    let task = SpawnedTask::spawn(async { here() });
    let mut all = vec![task.join_unwind().await.unwrap()];
    all.push(SpawnedTask::spawn_blocking(here).join().await.unwrap());
    while let Some(one) = tasks.join_next().await {
        all.push(one.unwrap());
    }
    all
}

/// Keeps more and more.
async fn greedy() -> usize {
    let mut kept = Vec::new();
    while kept.len() < 100_000 {
        kept.push(vec![1u8; 1_000]);
        if kept.len() % 10 == 0 {
            yield_now().await;
        }
    }
    kept.len()
}

fn main() {
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).build().unwrap();
    let request = Request::new();
    assert_eq!(runtime.block_on(request.scope(engine())), [None; 7]);
    set_join_set_tracer(&Inherits).unwrap();
    assert_eq!(runtime.block_on(request.scope(engine())), [Some(request.id()); 7]);
    assert_eq!(runtime.block_on(engine()), [None; 7]);

    // A task over the limit of its request is given up, and `join_unwind` hands that on.
    let limited = Request::builder().memory_limit(1 << 20).reserve(256 << 10).build();
    let query = async { SpawnedTask::spawn(greedy()).join_unwind().await.unwrap() };
    let result = runtime.block_on(limited.scope(query).catch());
    assert!(matches!(result, Err(Bailout::Limit(_))), "{result:?}");
    println!("ok");
}
