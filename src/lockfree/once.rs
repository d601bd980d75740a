//! What is made when it is first needed, and then stays: for the life of the process, or until who
//! has it alone takes it.
//!
//! Compiled by `loom-tests`.
//!
//! - **O1** Whoever gets a thing sees it whole; it never goes while others may get it.
//! - **O2** Of several makers one is first. What the others made is unused for good.
//! - **O3** The things of a list are made in order: there is no gap before one that a thread sees.

use crate::base::sync::{AtomicPtr, Ordering, const_fn};
use core::ptr::null_mut;

/// One thing. Zero: not made yet.
pub struct Once<T>(AtomicPtr<T>);

impl<T> Once<T> {
    const_fn! {
        /// Not made yet.
        pub const fn new() -> Self {
            Self(AtomicPtr::new(null_mut()))
        }
    }

    /// Returns the thing, if it was made.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: null, or what the caller of `make` answers for (O1).
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Returns whether it was made.
    pub fn is_made(&self) -> bool {
        !self.0.load(Ordering::Relaxed).is_null()
    }

    /// Takes the thing out again; it can be made anew. The caller has the place alone.
    pub fn take(&self) -> Option<&T> {
        // SAFETY: as in `get`; it is valid for good.
        unsafe { self.0.swap(null_mut(), Ordering::Relaxed).as_ref() }
    }

    /// Makes it of what `fresh` returns, if it was not made yet. `false`: `fresh` had nothing.
    ///
    /// # Safety
    /// `fresh` returns a whole `T` that nobody else has and that is valid for good.
    pub unsafe fn make(&self, fresh: impl FnOnce() -> Option<*mut T>) -> bool {
        if self.is_made() {
            return true;
        }
        let Some(fresh) = fresh() else { return false };
        let _ = self.0.compare_exchange(null_mut(), fresh, Ordering::Release, Ordering::Relaxed);
        true
    }
}

/// Things that are made one after the other.
pub struct OnceList<T, const COUNT: usize> {
    /// Their places.
    pub places: [Once<T>; COUNT],
}

impl<T, const COUNT: usize> OnceList<T, COUNT> {
    /// Returns the thing with this index, if it was made.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        self.places.get(index)?.get()
    }

    /// Returns the things that were made, in order (O3).
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.places.iter().map_while(Once::get)
    }

    /// Makes the next thing after the `count` that the caller has seen, unless another thread just
    /// did. `false`: there is no place for it, or `fresh` had nothing.
    ///
    /// # Safety
    /// As for `Once::make`.
    pub unsafe fn make_next(&self, count: usize, fresh: impl FnOnce() -> Option<*mut T>) -> bool {
        // SAFETY: the caller's contract.
        self.places.get(count).is_some_and(|place| unsafe { place.make(fresh) })
    }
}
