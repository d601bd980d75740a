//! The only door to atomics, locks and shared cells.
//!
//! Files that `loom-tests` compiles (`block`, `bitmap`, `depot`, `lifecycle`, `pool`, `stray`) see
//! a module of the same shape made of loom's types instead of this one, so nothing may reach
//! `core::sync::atomic` or `spin` but through here.

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
pub struct Lock<T>(SpinMutex<T>);

impl<T> Lock<T> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    /// Waits for the lock and holds it until the guard is dropped.
    #[inline]
    pub fn lock(&self) -> SpinMutexGuard<'_, T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.lock_slow(),
        }
    }

    #[cold]
    fn lock_slow(&self) -> SpinMutexGuard<'_, T> {
        let mut spins = 0;
        loop {
            if spins < SPINS_BEFORE_YIELD {
                spins += 1;
                core::hint::spin_loop();
            } else {
                // SAFETY: `sched_yield` takes no arguments and has no preconditions.
                unsafe { libc::sched_yield() };
            }
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
        }
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
