//! The only door to atomics, locks and shared cells.
//!
//! The files that `loom-tests` compiles (those of `lockfree`) see a module of the same shape made
//! of loom's types instead of this one, so nothing may reach `core::sync::atomic` or `spin` except
//! through here.

use core::ops::{Deref, DerefMut};
pub use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence,
    fence,
};
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// Declares a constructor that is `const` here and an ordinary function under loom, whose types
/// cannot be made in constants.
macro_rules! const_fn {
    ($(#[$meta:meta])* $vis:vis const fn $($rest:tt)*) => {
        $(#[$meta])* $vis const fn $($rest)*
    };
}
pub(crate) use const_fn;

/// How often a waiter tries before it sleeps: the holder of a lock may not be running, and every
/// critical section here is shorter than this many attempts.
const SPINS_BEFORE_SLEEP: u32 = 128;
/// How long a waiter sleeps at first and at most. The holder may be a thread of lower priority on
/// the same processor, which yielding would never let run.
const SLEEP_NANOSECONDS: core::ops::RangeInclusive<u32> = 20_000..=1_000_000;

/// A spin lock that records its holder, and whose waiters sleep after a bounded spin. Nothing under
/// it may allocate from the heap, call the operating system, or fault where that can be avoided.
///
/// A `fork` waits for no lock, so the child may inherit locks held by threads that it does not
/// have. `recover` opens those. What they guard is written so that every [`step`] leaves a state
/// that can be repaired.
pub struct Lock<T> {
    mutex: SpinMutex<T>,
    /// The thread that holds it; 0: none, or one that is about to record itself.
    holder: AtomicUsize,
}

/// A lock that is held until this is dropped.
pub struct Guard<'l, T> {
    /// Dropped before `mutex`, which opens the lock.
    _holder: Holder<'l>,
    mutex: SpinMutexGuard<'l, T>,
}

/// Clears the record of a lock's holder when dropped.
struct Holder<'l>(&'l AtomicUsize);

impl Drop for Holder<'_> {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.mutex
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.mutex
    }
}

/// Returns a number that tells this thread from the others that run.
pub fn this_thread() -> usize {
    // SAFETY: always callable.
    unsafe { libc::pthread_self() as usize }
}

/// What a thread calls while it waits long for a lock: a `fn()`, or null. `Relaxed`: a function is
/// there before the program runs, and what it needs it hears of by itself.
static LONG_WAIT: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Makes threads that wait long for a lock call `look`. In a forked process whose handlers have not
/// run, it opens the locks of the threads that are not there.
pub fn set_long_wait(look: fn()) {
    LONG_WAIT.store(look as *mut (), Ordering::Relaxed);
}

fn wait_long() {
    let look = LONG_WAIT.load(Ordering::Relaxed);
    if !look.is_null() {
        // SAFETY: only `set_long_wait` stores there, and it stores a function of this type.
        let look = unsafe { core::mem::transmute::<*mut (), fn()>(look) };
        look();
    }
}

/// A thread that waits for others: it spins for a while, then it sleeps, longer and longer.
pub struct Patience {
    spins: u32,
    sleep_nanoseconds: u32,
}

impl Patience {
    /// Of a thread that has not waited yet.
    pub fn new() -> Self {
        Self { spins: 0, sleep_nanoseconds: *SLEEP_NANOSECONDS.start() }
    }

    /// Waits a little.
    #[cold]
    pub fn wait(&mut self) {
        if self.spins < SPINS_BEFORE_SLEEP {
            self.spins += 1;
            core::hint::spin_loop();
        } else {
            wait_long();
            crate::base::system_call::sleep(self.sleep_nanoseconds);
            self.sleep_nanoseconds = (self.sleep_nanoseconds * 2).min(*SLEEP_NANOSECONDS.end());
        }
    }
}

/// Waits until `attempt` has a result.
#[cold]
pub fn wait_for<R>(mut attempt: impl FnMut() -> Option<R>) -> R {
    let mut patience = Patience::new();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        patience.wait();
    }
}

impl<T> Lock<T> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { mutex: SpinMutex::new(value), holder: AtomicUsize::new(0) }
    }

    /// Waits for the lock, and holds it until the guard is dropped.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        match self.mutex.try_lock() {
            Some(mutex) => self.hold(mutex),
            None => self.lock_slow(),
        }
    }

    #[inline]
    fn hold<'l>(&'l self, mutex: SpinMutexGuard<'l, T>) -> Guard<'l, T> {
        self.holder.store(this_thread(), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        step();
        Guard { _holder: Holder(&self.holder), mutex }
    }

    #[cold]
    fn lock_slow(&self) -> Guard<'_, T> {
        if self.holder.load(Ordering::Relaxed) == this_thread() {
            crate::base::fatal::interrupted();
        }
        let mutex = wait_for(|| self.mutex.try_lock());
        self.hold(mutex)
    }

    /// Passes `repair` what the lock guards, and whether a thread held it that is not here: then it
    /// may be halfway through a change. The lock is open afterwards. A lock that this thread holds
    /// stays as it is: a signal handler forked, and the code it interrupted goes on in the child.
    ///
    /// # Safety
    /// This is the only thread of a process that was just forked.
    pub unsafe fn recover(&self, repair: impl FnOnce(&mut T, bool)) {
        let is_held = self.mutex.is_locked();
        if is_held && self.holder.load(Ordering::Relaxed) == this_thread() {
            return;
        }
        // SAFETY: the caller's contract: a thread that held the lock is not in this process.
        repair(unsafe { &mut *self.mutex.as_mut_ptr() }, is_held);
        if is_held {
            self.holder.store(0, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { self.mutex.force_unlock() };
        }
    }
}

/// The boundary between two statements of a critical section: a process forked here has everything
/// written before it and nothing written after it.
#[inline(always)]
pub fn step() {
    // On x86 the plain stores of one thread arrive in order; elsewhere this makes them.
    fence(Ordering::Release);
    #[cfg(test)]
    paused::step();
}

#[cfg(test)]
pub mod paused {
    //! Threads that stop at a step, so that a test can fork there.
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A thread that stops, and the thread waiting for it.
    #[derive(Default)]
    pub struct Pause {
        /// The thread has stopped.
        pub has_stopped: AtomicBool,
        /// The thread may go on.
        pub may_go_on: AtomicBool,
    }

    std::thread_local! {
        static STEPS_LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
        static PAUSE: Cell<Option<&'static Pause>> = const { Cell::new(None) };
    }

    /// Makes this thread stop, once, at its step with this number, counted from 0.
    pub fn stop_at(step: u64, pause: &'static Pause) {
        PAUSE.set(Some(pause));
        STEPS_LEFT.set(step);
    }

    /// Returns whether the thread has come to its step since `stop_at`.
    pub fn has_come() -> bool {
        // The rest of the thread, its exit too, is not what is looked at.
        STEPS_LEFT.replace(u64::MAX) == u64::MAX
    }

    pub(super) fn step() {
        let left = STEPS_LEFT.get();
        if left == u64::MAX {
            return;
        }
        if left > 0 {
            return STEPS_LEFT.set(left - 1);
        }
        STEPS_LEFT.set(u64::MAX);
        let Some(pause) = PAUSE.get() else { return };
        pause.has_stopped.store(true, Ordering::Release);
        while !pause.may_go_on.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

/// A number that one thread writes and others may read at any time: relaxed, so plain moves on the
/// machine, never a read-modify-write.
pub struct Gauge(AtomicUsize);

impl Gauge {
    /// A gauge that shows `value`.
    pub const fn new(value: usize) -> Self {
        Self(AtomicUsize::new(value))
    }

    /// Returns what it shows.
    #[inline(always)]
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Shows `value`. Called only by its one writer.
    #[inline(always)]
    pub fn set(&self, value: usize) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Shows `amount` more. Called only by its one writer.
    #[inline(always)]
    pub fn add(&self, amount: usize) {
        self.set(self.get().wrapping_add(amount));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::dying::last_words;
    use std::sync::mpsc::channel;

    /// Returns how often a thread of this process has given its processor up, as the kernel counts
    /// it.
    #[cfg(target_os = "linux")]
    fn voluntary_switches(thread: libc::c_long) -> u64 {
        let status = std::format!("/proc/self/task/{thread}/status");
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.rsplit(char::is_whitespace).next().unwrap().parse().unwrap()
    }

    /// A waiter of higher priority on the holder's processor would wait forever if it did not
    /// sleep.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_waiter_sleeps() {
        static LOCK: Lock<u32> = Lock::new(0);
        let (tell, told) = channel();
        let guard = LOCK.lock();
        let waiter = std::thread::spawn(move || {
            // SAFETY: always callable.
            tell.send(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap();
            *LOCK.lock() += 1;
        });
        let waiter_id = told.recv().unwrap();
        let before = voluntary_switches(waiter_id);
        while voluntary_switches(waiter_id) < before + 10 {
            std::thread::yield_now();
        }
        drop(guard);
        waiter.join().unwrap();
        assert_eq!(*LOCK.lock(), 1);
    }

    #[test]
    fn a_thread_that_waits_for_itself_says_so() {
        let (said, status) = last_words(|| {
            let lock = Lock::new(());
            let _outer = lock.lock();
            drop(lock.lock());
        });
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
        assert_eq!(
            said,
            "rqmalloc: allocation in a signal handler that interrupted the allocator\n"
        );
    }
}
