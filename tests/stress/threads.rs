//! Threads that come and go inside requests: those of `std`, and the system's own, which return,
//! call `pthread_exit`, or are cancelled.

use crate::model::persistent_vec;
use crate::options::with;
use crate::worker::{Exit, Worker};
use libc::{c_int, c_void, pthread_t};
use rqmalloc::persistent;
use std::thread::JoinHandle;

/// Actions of helpers are recorded apart from those of workers.
const HELPER_PLACE: usize = 32;

// These unwind through Rust frames, none of which has a destructor to run.
unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut c_void) -> !;
    fn pthread_testcancel();
    fn pthread_cancel(thread: pthread_t) -> c_int;
    fn pthread_create(
        thread: *mut pthread_t,
        attributes: *const libc::pthread_attr_t,
        start: extern "C-unwind" fn(*mut c_void) -> *mut c_void,
        argument: *mut c_void,
    ) -> c_int;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Returns,
    Exits,
    IsCancelled,
}

struct Task {
    worker: Worker,
    steps: usize,
    end: End,
}

/// A thread that another one started.
pub enum Helper {
    Std(JoinHandle<Exit>),
    System(System),
}

/// A thread that `std` does not know.
pub struct System {
    thread: pthread_t,
    task: *mut Task,
    end: End,
}

impl Helper {
    /// Waits for it, and tells the model that it is no longer inside anything.
    pub fn join(self) {
        match self {
            Self::Std(handle) => match handle.join() {
                Ok(exit) => exit.note(),
                Err(_) => crate::failure::fail("a helper unwound"),
            },
            Self::System(system) => system.join(),
        }
    }
}

extern "C-unwind" fn start(task: *mut c_void) -> *mut c_void {
    let task: *mut Task = task.cast();
    // SAFETY: the thread's own until it is joined. No value with a destructor is in this frame.
    unsafe {
        match (*task).end {
            End::Returns => (*task).worker.steps((*task).steps),
            End::Exits => {
                (*task).worker.steps((*task).steps);
                pthread_exit(std::ptr::null_mut());
            }
            End::IsCancelled => loop {
                (*task).worker.steps(1);
                pthread_testcancel();
            },
        }
    }
    std::ptr::null_mut()
}

impl System {
    pub fn start(worker: Worker, steps: usize, end: End) -> Self {
        let task = persistent(|| Box::into_raw(Box::new(Task { worker, steps, end })));
        // SAFETY: zeros are a valid thread name, which is overwritten before it is used.
        let mut thread: pthread_t = unsafe { std::mem::zeroed() };
        // SAFETY: the task lives until the thread is joined.
        let result =
            unsafe { pthread_create(&raw mut thread, std::ptr::null(), start, task.cast()) };
        assert_eq!(result, 0, "pthread_create");
        Self { thread, task, end }
    }

    pub fn join(self) {
        if self.end == End::IsCancelled {
            // SAFETY: not joined yet.
            unsafe { pthread_cancel(self.thread) };
        }
        // SAFETY: joined once.
        let result = unsafe { libc::pthread_join(self.thread, std::ptr::null_mut()) };
        assert_eq!(result, 0, "pthread_join");
        // SAFETY: what `start` allocated; the thread is gone.
        let task = unsafe { Box::from_raw(self.task) };
        // Its guards belong to no thread any more, so they are forgotten, as `finish` forgets those
        // that it does not drop.
        let Task { mut worker, .. } = *task;
        worker.entries.iter_mut().for_each(|entry| std::mem::forget(entry.guard.take()));
        let entries = std::mem::replace(&mut worker.entries, persistent_vec(4));
        entries.into_iter().for_each(crate::worker::leave);
        worker.finish().note();
    }
}

impl Worker {
    /// Starts a thread, and waits for it now or later.
    pub fn start_helper(&mut self) {
        self.shared.count("helpers");
        let (seed, shared) = (self.random.next(), self.shared.clone());
        let place = self.place + HELPER_PLACE;
        let worker = move || persistent(|| Worker::new(shared, seed, place, true));
        let steps = self.below(150);
        let helper = match self.below(4) {
            0 => Helper::System(System::start(worker(), steps, End::Returns)),
            1 => Helper::System(System::start(worker(), steps, End::Exits)),
            // Where it is cancelled depends on timing.
            2 if with("cancel") && !self.shared.is_alone => {
                self.shared.count("cancelled");
                Helper::System(System::start(worker(), steps, End::IsCancelled))
            }
            _ => Helper::Std(persistent(|| {
                std::thread::spawn(move || {
                    let mut worker = worker();
                    worker.steps(steps);
                    worker.finish()
                })
            })),
        };
        let is_full = self.joins.len() == self.joins.capacity();
        if self.shared.is_alone || is_full || self.below(3) == 0 {
            helper.join();
        } else {
            self.joins.push(helper);
        }
    }
}
