//! What happens around a `fork`: nothing before it and nothing in the parent. No lock is held
//! across it, so another library's handler can wait for whatever another thread holds meanwhile,
//! and a signal handler that interrupted the allocator may fork.
//!
//! The child has one thread. Locks that other threads held are opened, and what they were changing
//! is made whole. What they had in their caches and lanes is lost to the child, and the requests
//! they were inside never close.

use super::{BACKGROUND_RUNS, HEAP, RUNNING_COUNT, current};
use crate::base::os;
use crate::base::sync::{AtomicBool, AtomicU32, Lock, Ordering, set_long_wait};
use crate::lockfree::once::Once;
use core::ptr::{null, with_exposed_provenance_mut};

/// Held while the key for thread exits is made.
pub static EXIT_KEY_LOCK: Lock<()> = Lock::new(());

static IS_HANDLED: AtomicBool = AtomicBool::new(false);

/// A word that is 1 in the process that wrote it, and 0 in a child that has not recovered yet; not
/// made where the system does not have such memory.
static WITNESS: Once<AtomicU32> = Once::new();

/// Registers the child's handler, once. Without memory for it (`ENOMEM`), a lock of a thread that
/// the child does not have is opened by the thread that waits for it.
pub fn handle() {
    if IS_HANDLED.swap(true, Ordering::Relaxed) {
        return;
    }
    if let Some(address) = os::map(os::MAX_PAGE_BYTES, 0) {
        // SAFETY: just mapped, and unknown to anybody else.
        if unsafe { os::clear_in_children(address, os::MAX_PAGE_BYTES) } {
            let witness = with_exposed_provenance_mut::<AtomicU32>(address);
            // SAFETY: zeroed memory that is never given back.
            unsafe { &*witness }.store(1, Ordering::Relaxed);
            // SAFETY: a word, written above.
            unsafe { WITNESS.make(|| Some(witness)) };
            // For other handlers that run before ours, and for children in which ours does not run.
            set_long_wait(recover_if_forked);
        } else {
            // SAFETY: mapped above, and unknown to anybody else.
            unsafe { os::unmap(address, os::MAX_PAGE_BYTES) };
        }
    }
    // SAFETY: the handler is a function, callable for the life of the process.
    unsafe { libc::pthread_atfork(None, None, Some(recover)) };
}

fn recover_if_forked() {
    if WITNESS.get().is_some_and(|witness| witness.load(Ordering::Relaxed) == 0) {
        recover();
    }
}

/// Makes everything whole, on the child's only thread.
extern "C" fn recover() {
    if let Some(witness) = WITNESS.get() {
        witness.store(1, Ordering::Relaxed);
    }
    let (visited, drawn_bytes) =
        current().map_or((null(), 0), |thread| (thread.visited.get(), thread.cache.drawn_bytes()));
    // SAFETY: a child has one thread, this one.
    unsafe {
        EXIT_KEY_LOCK.recover(|(), _| ());
        HEAP.recover(visited, drawn_bytes);
    }
    BACKGROUND_RUNS.store(false, Ordering::Relaxed);
    RUNNING_COUNT.store(usize::from(current().is_some()), Ordering::Relaxed);
}
