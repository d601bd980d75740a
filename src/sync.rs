//! The only door to atomics, locks and shared cells.
//!
//! Files that `loom-tests` compiles (`block`, `bitmap`, `budget`, `depot`, `lifecycle`, ..) see
//! a module of the same shape made of loom's types instead of this one, so nothing may reach
//! `core::sync::atomic` or `spin` but through here.

use core::ops::{Deref, DerefMut};
pub use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
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

/// How often a waiter tries before it gives its time slice away: the holder of a lock may not be
/// running, and every critical section here is shorter than this many attempts.
const SPINS_BEFORE_YIELD: u32 = 128;

/// A spin lock that yields to the scheduler after a bounded spin. Nothing under it may allocate
/// from the heap, call the operating system, or fault where that can be helped.
///
/// Around a `fork` the forking thread holds every lock, so that the child finds none held by a
/// thread it does not have. Handlers of others that allocate meanwhile run on the same thread: they
/// pass through what it holds.
pub struct Lock<T> {
    mutex: SpinMutex<T>,
    /// The thread that holds the lock around a `fork`; 0: none does.
    forking: AtomicUsize,
}

/// A lock that is held, or passed through.
pub enum Guard<'l, T> {
    /// Released when dropped.
    Held(SpinMutexGuard<'l, T>),
    /// This thread holds the lock around a `fork`.
    Passed(&'l mut T),
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        match self {
            Self::Held(guard) => guard,
            Self::Passed(value) => value,
        }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Held(guard) => guard,
            Self::Passed(value) => value,
        }
    }
}

fn this_thread() -> usize {
    // SAFETY: always callable.
    unsafe { libc::pthread_self() as usize }
}

impl<T> Lock<T> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { mutex: SpinMutex::new(value), forking: AtomicUsize::new(0) }
    }

    /// Waits for the lock and holds it until the guard is dropped.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        match self.mutex.try_lock() {
            Some(guard) => Guard::Held(guard),
            None => self.lock_slow(),
        }
    }

    #[cold]
    fn lock_slow(&self) -> Guard<'_, T> {
        if self.forking.load(Ordering::Relaxed) == this_thread() {
            // SAFETY: this thread took the lock in `hold_for_fork`, outside any critical section,
            // and is not in one now: `prepare` handlers run one after the other.
            return Guard::Passed(unsafe { &mut *self.mutex.as_mut_ptr() });
        }
        let mut spins = 0;
        loop {
            if spins < SPINS_BEFORE_YIELD {
                spins += 1;
                core::hint::spin_loop();
            } else {
                // SAFETY: `sched_yield` takes no arguments and has no preconditions.
                unsafe { libc::sched_yield() };
            }
            if let Some(guard) = self.mutex.try_lock() {
                return Guard::Held(guard);
            }
        }
    }

    /// Takes the lock for the time around a `fork`.
    pub fn hold_for_fork(&self) {
        core::mem::forget(self.lock());
        self.forking.store(this_thread(), Ordering::Relaxed);
    }

    /// Releases the lock, in the parent and in the child.
    ///
    /// # Safety
    /// This thread, or the one it is a copy of, called `hold_for_fork`.
    pub unsafe fn release_after_fork(&self) {
        self.forking.store(0, Ordering::Relaxed);
        // SAFETY: the caller's contract; no guard is out.
        unsafe { self.mutex.force_unlock() };
    }
}

/// A number that one thread writes and others may read at any time: relaxed, so on the machine
/// plain moves, never a read-modify-write.
pub struct Gauge(AtomicUsize);

impl Gauge {
    /// A gauge that shows `value`.
    pub const fn new(value: usize) -> Self {
        Self(AtomicUsize::new(value))
    }

    /// What it shows.
    #[inline(always)]
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Shows `value`. Only by its one writer.
    #[inline(always)]
    pub fn set(&self, value: usize) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Shows `amount` more. Only by its one writer.
    #[inline(always)]
    pub fn add(&self, amount: usize) {
        self.set(self.get().wrapping_add(amount));
    }
}
