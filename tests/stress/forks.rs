//! `fork` at any moment: the child does everything for a while, on this thread and on another.

use crate::failure::{IS_FORKED, fail};
use crate::model::{Block, lock};
use crate::options::breaks;
use crate::threads::{End, System};
use crate::worker::{Shared, Worker};
use rqmalloc::persistent;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

/// A child that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 20;
const CHILD_STEPS: usize = 300;

impl Worker {
    pub fn fork(&mut self) {
        self.shared.count("forks");
        let seed = self.random.next();
        // SAFETY: the child uses nothing that another thread of this process may hold except the
        // allocator, which is what is tested.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed");
        if pid > 0 {
            return expect_success(pid, seed);
        }
        // SAFETY: plain system calls; alarms are not inherited.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
        IS_FORKED.store(true, Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| self.in_child(seed)));
        let status = i32::from(result.is_err() || breaks("child"));
        // SAFETY: ends the process at once, without running destructors of what the parent has.
        unsafe { libc::_exit(status) }
    }

    fn in_child(&mut self, seed: u64) {
        // The parent's slots and requests may be locked by threads that are not here. What this
        // thread is inside, and its blocks, are its own.
        let fresh = Shared::new(2, true);
        std::mem::forget(std::mem::replace(&mut self.shared, fresh));
        std::mem::forget(std::mem::take(&mut self.joins));
        self.is_helper = true;
        self.expect_inside();
        self.own.iter().for_each(Block::verify);
        self.steps(CHILD_STEPS);
        let other = persistent(|| Worker::new(self.shared.clone(), seed, 1, true));
        let other = System::start(other, CHILD_STEPS, End::Returns);
        // At the same time as the other thread.
        self.steps(CHILD_STEPS / 3);
        other.join();
        rqmalloc::check_structures();
        rqmalloc::trim();
        while let Some(block) = self.own.pop() {
            block.free();
        }
        for slot in &self.shared.slots {
            let block = lock(slot).take();
            block.into_iter().for_each(Block::free);
        }
        rqmalloc::check_structures();
    }
}

fn expect_success(pid: libc::pid_t, seed: u64) {
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waitpid");
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        fail(&format!("the forked process died of signal {signal} (14: it hung), seed {seed}"));
    }
    let code = libc::WEXITSTATUS(status);
    if code != 0 {
        fail(&format!("the forked process ended with {code}, seed {seed}"));
    }
}
