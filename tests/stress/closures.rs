//! Being inside through a closure: `run`, `catch` and `persistent`, left by a return, a panic or a
//! bailout, with guards that were created inside still there afterwards.

use crate::failure::Planned;
use crate::model::{Block, lock};
use crate::options::with;
use crate::worker::{Kind, REQUEST_COUNT, Worker};
use rqmalloc::{Bailout, bailout, persistent};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::Ordering;

impl Worker {
    pub fn closure(&mut self) {
        self.closures += 1;
        match self.below(3) {
            0 => self.in_persistent(),
            1 => self.in_run(),
            _ => self.in_catch(),
        }
        self.closures -= 1;
        self.expect_inside();
    }

    fn in_persistent(&mut self) {
        let count = self.below(12);
        let serial = persistent(|| {
            let serial = self.push(Kind::Closure, None, None);
            self.steps(count);
            serial
        });
        self.pop(serial);
    }

    fn in_run(&mut self) {
        let place = self.below(REQUEST_COUNT);
        let tracked = lock(&self.shared.requests[place]).clone();
        let Some(request) = tracked.clone_handle() else { return };
        let count = self.below(20);
        let panics = with("panics") && self.below(3) == 0;
        let mut serial = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            request.run(|| {
                serial = self.push(Kind::Closure, Some(tracked.clone()), None);
                self.steps(count);
                if panics {
                    // Outside the request, so that what carries the panic is not among its blocks.
                    persistent(|| panic_any(Planned));
                }
            });
        }));
        self.pop(serial);
        match result {
            Ok(()) => assert!(!panics),
            Err(payload) => assert!(panics && payload.is::<Planned>()),
        }
        drop(request);
    }

    fn in_catch(&mut self) {
        let place = self.below(REQUEST_COUNT);
        let tracked = lock(&self.shared.requests[place]).clone();
        let Some(request) = tracked.clone_handle() else { return };
        let count = self.below(20);
        let gives_up = self.below(3) == 0;
        let mut serial = 0;
        let result = request.catch(|| {
            serial = self.push(Kind::Closure, Some(tracked.clone()), None);
            let block = Freed(Block::new(69, 8, 69, &Some(tracked.clone()), false));
            self.steps(count);
            if gives_up {
                self.shared.count("bailouts");
                bailout("planned");
            }
            block
        });
        match result {
            Ok(block) => {
                assert!(!gives_up, "a bailout was lost");
                drop(block);
            }
            Err(Bailout::Called(reason)) => assert!(gives_up && reason == "planned"),
            Err(Bailout::Limit(limit)) => {
                let may_be = tracked.is_limited.load(Ordering::Relaxed);
                assert!(may_be && !gives_up, "{limit}, in {tracked:?}");
            }
            Err(other) => panic!("given up: {other}"),
        }
        self.pop(serial);
        drop(request);
    }
}

/// A block that is freed when dropped, also by unwinding.
pub struct Freed(pub Option<Block>);

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Block::free);
    }
}
