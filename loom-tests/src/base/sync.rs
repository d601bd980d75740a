//! The crate's `base::sync`, made of loom's types.

pub use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
use loom::sync::{Mutex, MutexGuard};

/// Declares an ordinary function: loom's types cannot be made in constants.
macro_rules! const_fn {
    ($(#[$meta:meta])* $vis:vis const fn $($rest:tt)*) => {
        $(#[$meta])* $vis fn $($rest)*
    };
}
pub(crate) use const_fn;

/// A lock of the same shape as the crate's.
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// An open lock around `value`.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock, and holds it until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a model stops at its first panic")
    }

    /// Does nothing: a model has no `fork`.
    ///
    /// # Safety
    /// Never called.
    pub unsafe fn recover(&self, _repair: impl FnOnce(&mut T, bool)) {
        unreachable!("a model has no fork");
    }
}

/// The boundary between two statements: a model has no `fork`.
pub fn step() {}
