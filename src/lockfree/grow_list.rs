//! A list that grows while others walk it: the lanes of a request, the threads of the process.
//!
//! Compiled by `loom-tests`.
//!
//! - **N3** Whoever comes to an item sees what its pusher did to it before, and so for those behind
//!   it. Links do not change until somebody who has the list alone cuts it.
//! - **N4** A walk that goes on while the list is cut, which it should not know any more, comes to
//!   its end; it may come to items of other lists, of which it sees no more than atomics.

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
    /// It is whole, on no list, and readable for good.
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

    /// Cuts off all but the `count` items that were pushed last, and passes each to `take`, which may
    /// push it on another list. The caller has the list alone.
    pub fn cut(&self, count: usize, mut take: impl FnMut(&T)) {
        let place = match self.all().take(count).last() {
            Some(last) if count > 0 => &last.link().0,
            _ => &self.0,
        };
        let mut next = place.load(Ordering::Relaxed);
        if next.is_null() {
            return;
        }
        place.store(null_mut(), Ordering::Relaxed);
        // SAFETY: null, or an item (N3), which is the caller's now.
        while let Some(item) = unsafe { next.as_ref() } {
            next = item.link().0.load(Ordering::Relaxed);
            take(item);
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
