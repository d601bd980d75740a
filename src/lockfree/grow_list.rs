//! A list that only grows: the lanes of a request, the threads of the process.
//!
//! Compiled by `loom-tests`.
//!
//! - **N3** Whoever comes to an item sees what its pusher did to it before, and so for those behind
//!   it. Items never go, and their links never change.

use crate::base::sync::{AtomicPtr, Ordering, const_fn};
use core::ptr::null_mut;

/// An item's link to the one that was pushed before it. Zero: there is none.
pub struct Link<T>(pub AtomicPtr<T>);

/// What can be an item.
pub trait Linked: Sized {
    /// Returns its link.
    fn link(&self) -> &Link<Self>;
}

/// The list. Zero: empty.
pub struct GrowList<T>(AtomicPtr<T>);

impl<T: Linked> GrowList<T> {
    const_fn! {
        /// An empty one.
        pub const fn new() -> Self {
            Self(AtomicPtr::new(null_mut()))
        }
    }

    /// Pushes an item.
    ///
    /// # Safety
    /// It is whole, on no list, and valid for good.
    pub unsafe fn push(&self, item: *mut T) {
        let mut first = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller's contract.
            unsafe { (*item).link() }.0.store(first, Ordering::Relaxed);
            match self.0.compare_exchange_weak(first, item, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Returns the items, the last pushed first.
    #[inline]
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let mut next = self.0.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: null, or an item (N3).
            let item = unsafe { next.as_ref()? };
            next = item.link().0.load(Ordering::Relaxed);
            Some(item)
        })
    }
}
