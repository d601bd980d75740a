//! The control blocks of all requests, and what they share.

use crate::base::sync::{AtomicPtr, AtomicUsize, Lock, Ordering};
use crate::lockfree::pool::{ALIGN, Pool};
use crate::pages::descriptors::DescriptorMemory;
use crate::request::control::{Control, ControlMemory};
use core::ptr::null_mut;

/// Bytes of regions that may stay with all pooled control blocks together.
const MAX_WARM_BYTES: usize = 64 * 1024 * 1024;
/// Locks of the lists of large blocks: requests share them by address.
const LARGE_LOCK_COUNT: usize = 16;
/// Control blocks at neighbouring multiples of this have different locks.
const LARGE_LOCK_STEP_BYTES: usize = 256;

const _: () = assert!(
    size_of::<Control>() >= LARGE_LOCK_STEP_BYTES,
    "control blocks that were made one after the other have different locks"
);
const _: () = assert!(align_of::<Control>() >= ALIGN, "an aligned control block can be pooled");

/// The control blocks.
pub struct Controls {
    pool: Pool,
    /// All there ever were, linked by `Control::all_next`.
    all: AtomicPtr<Control>,
    large_locks: [Lock<()>; LARGE_LOCK_COUNT],
    /// Bytes of regions that stay with pooled ones.
    warm_bytes: AtomicUsize,
}

impl Controls {
    /// There are none.
    pub const fn new() -> Self {
        Self {
            pool: Pool::new(),
            all: AtomicPtr::new(null_mut()),
            large_locks: [const { Lock::new(()) }; LARGE_LOCK_COUNT],
            warm_bytes: AtomicUsize::new(0),
        }
    }

    /// A control block from the pool, else a new one. `None`: the system has no more memory.
    pub fn take(&self, memory: &DescriptorMemory) -> Option<&'static Control> {
        if let Some(pooled) = self.take_pooled() {
            return Some(pooled);
        }
        let align = align_of::<Control>();
        let address = memory.take(size_of::<Control>() + align - ALIGN)?;
        // SAFETY: fresh zeroed memory, aligned to `ALIGN`, and longer than a control block by as much as
        // it may lack.
        let control = unsafe { Control::make(address.next_multiple_of(align)) };
        control.list_in(&self.all);
        Some(control)
    }

    fn take_pooled(&self) -> Option<&'static Control> {
        // SAFETY: only control blocks are pooled here.
        self.pool.take(&ControlMemory).map(|address| unsafe { Control::at(address) })
    }

    /// Puts a control block into the pool whose request is over.
    pub fn put(&self, control: &Control) {
        self.pool.put(&ControlMemory, control.address());
    }

    /// Shows every pooled control block to `visit` while it is out of the pool.
    pub fn each_pooled(&self, mut visit: impl FnMut(&Control)) {
        let visited = Pool::new();
        while let Some(control) = self.take_pooled() {
            visit(control);
            visited.put(&ControlMemory, control.address());
        }
        while let Some(address) = visited.take(&ControlMemory) {
            self.pool.put(&ControlMemory, address);
        }
    }

    /// Every control block there is.
    pub fn all(&self) -> impl Iterator<Item = &Control> {
        let mut next: *const Control = self.all.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: control blocks are type-stable, and published whole.
            let control = unsafe { next.as_ref()? };
            next = control.all_next();
            Some(control)
        })
    }

    /// The lock of the list of large blocks of the request with the control block at this address.
    pub fn large_lock(&self, control: usize) -> &Lock<()> {
        &self.large_locks[control / LARGE_LOCK_STEP_BYTES % LARGE_LOCK_COUNT]
    }

    /// Bytes of regions that stay with pooled control blocks.
    pub fn warm_bytes(&self) -> usize {
        self.warm_bytes.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more may stay with them.
    pub fn charge_warm(&self, bytes: usize) -> bool {
        let before = self.warm_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > MAX_WARM_BYTES {
            self.warm_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// So much less stays with them.
    pub fn refund_warm(&self, bytes: usize) {
        self.warm_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Makes everything whole in a process that was just forked by a thread that visits `visited`.
    ///
    /// # Safety
    /// As `Lock::recover`.
    pub unsafe fn recover(&self, visited: *const Control) {
        for control in self.all() {
            control.handles.recount_visitors(u32::from(core::ptr::eq(control, visited)));
        }
        for lock in &self.large_locks {
            let repair = |is_torn| {
                let guarded =
                    |control: &&Control| core::ptr::eq(self.large_lock(control.address()), lock);
                if is_torn {
                    self.all().filter(guarded).for_each(Control::repair_large);
                }
            };
            // SAFETY: the caller's contract.
            unsafe { lock.recover(|(), is_torn| repair(is_torn)) };
        }
    }
}
