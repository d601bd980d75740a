//! The default reserve of a memory limit follows what polls were seen to take. One test, in a
//! process of its own: what was seen is remembered.
#![allow(missing_docs)]

use rqmalloc::{Request, RqMalloc};
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

const MIB: usize = 1 << 20;

/// Tries to allocate a block that stays.
fn take(bytes: usize) -> bool {
    let mut block = Vec::<u8>::new();
    let is_granted = block.try_reserve_exact(bytes).is_ok();
    std::mem::forget(black_box(block));
    is_granted
}

fn limited() -> Request {
    Request::builder().memory_limit(64 * MIB).report_limit(false).build()
}

fn end(request: Request) {
    // SAFETY: its blocks are forgotten.
    let _ = unsafe { request.end() }.unwrap();
}

/// Polls a future of the request that takes these blocks, in MiB, in each poll.
fn polls<const N: usize>(request: &Request, count: usize, blocks: [usize; N]) {
    let mut left = count;
    let mut future = pin!(
        request
            .scope(poll_fn(|_| {
                blocks.iter().for_each(|&size| _ = take(size * MIB));
                left -= 1;
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            }))
            .catch()
    );
    while future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
}

/// Returns how many MiB a request with a limit of 64 MiB may have before it is marked.
fn mark() -> usize {
    let request = limited();
    let taken = (1..).find(|_| {
        request.run(|| assert!(take(MIB)));
        request.check().is_err()
    });
    end(request);
    // Each block has a page of its own for its header.
    taken.unwrap() * (MIB + 16 * 1024) / MIB
}

#[test]
fn the_default_reserve_grows_with_what_a_poll_takes() {
    assert_eq!(mark(), 60, "4 MiB at first");
    let free = Request::new();
    polls(&free, 1, [40]);
    end(free);
    assert_eq!(mark(), 60, "a request without a limit says nothing");
    let refused = limited();
    polls(&refused, 1, [40, 40]);
    assert!(refused.check().is_err());
    end(refused);
    assert_eq!(mark(), 60, "nor does one that is refused memory");
    let request = limited();
    polls(&request, 3, [3, 5]);
    end(request);
    assert_eq!(mark(), 54, "8 MiB and a quarter");
    let request = limited();
    polls(&request, 2, [40]);
    end(request);
    assert_eq!(mark(), 32, "half of the limit at most");
    std::thread::scope(|scope| {
        // Nothing more is said by smaller ones, of children of one with a limit either.
        scope.spawn(|| {
            let parent = limited();
            let child = Request::builder().parent(&parent).build();
            polls(&child, 2, [12]);
            [child, parent].into_iter().for_each(end);
        });
    });
    assert_eq!(mark(), 32);
    let request = Request::builder().memory_limit(64 * MIB).reserve(MIB).build();
    request.run(|| assert!(take(61 * MIB)));
    assert_eq!(request.check(), Ok(()), "a reserve that was set is that one");
    end(request);
}
