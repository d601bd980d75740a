//! The control blocks of all requests, and what they share.

use crate::base::sync::{AtomicUsize, Lock, Ordering};
use crate::blocks::identity::Serial;
use crate::lockfree::pool::{ALIGN, Pool};
use crate::pages::descriptors::DescriptorMemory;
use crate::request::control::{Control, ControlMemory};
use crate::request::stub::Stubs;

/// Most bytes of regions that stay with all pooled control blocks together.
const MAX_WARM_BYTES: usize = 64 * 1024 * 1024;
/// Locks of the lists of large blocks: requests share them by their stubs' index.
const LARGE_LOCK_COUNT: usize = 16;
const _: () = assert!(align_of::<Control>() >= ALIGN, "an aligned control block can be pooled");

/// The control blocks.
pub struct Controls {
    pool: Pool,
    /// Where headers lead to; each stub has one of the control blocks.
    pub stubs: Stubs,
    large_locks: [Lock<()>; LARGE_LOCK_COUNT],
    /// Bytes of regions that stay with pooled control blocks.
    warm_bytes: AtomicUsize,
}

impl Controls {
    /// Creates an empty pool.
    pub const fn new() -> Self {
        Self {
            pool: Pool::new(),
            stubs: Stubs::new(),
            large_locks: [const { Lock::new(()) }; LARGE_LOCK_COUNT],
            warm_bytes: AtomicUsize::new(0),
        }
    }

    /// Takes a control block from the pool, else makes a new one. `None`: the system has no more
    /// memory.
    pub fn take(&self, memory: &DescriptorMemory) -> Option<&'static Control> {
        if let Some(pooled) = self.take_pooled() {
            return Some(pooled);
        }
        let align = align_of::<Control>();
        let address = memory.take(size_of::<Control>() + align - ALIGN)?;
        // SAFETY: fresh zeroed memory, aligned to `ALIGN`, and longer than a control block by what
        // aligning it may take.
        let control = unsafe { Control::make(address.next_multiple_of(align)) };
        self.renew_stub(control, memory)?;
        Some(control)
    }

    /// Gives a control block that the caller has alone a new stub: it has none, or one whose
    /// generations are used up.
    pub fn renew_stub(&self, control: &Control, memory: &DescriptorMemory) -> Option<()> {
        let address = core::ptr::from_ref(control).cast();
        control.set_stub(self.stubs.make(address, |bytes| memory.take(bytes))?);
        Some(())
    }

    fn take_pooled(&self) -> Option<&'static Control> {
        // SAFETY: only control blocks are pooled here.
        self.pool.take(&ControlMemory).map(|address| unsafe { Control::at(address) })
    }

    /// Puts a control block whose request is over into the pool.
    pub fn put(&self, control: &Control) {
        self.pool.put(&ControlMemory, control.address());
    }

    /// Calls `visit` with every pooled control block while it is out of the pool.
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

    /// The lock of the list of large blocks of the request with this serial.
    pub fn large_lock(&self, owner: Serial) -> &Lock<()> {
        &self.large_locks[owner.index() as usize % LARGE_LOCK_COUNT]
    }

    /// Returns the bytes of regions that stay with pooled control blocks.
    pub fn warm_bytes(&self) -> usize {
        self.warm_bytes.load(Ordering::Relaxed)
    }

    /// Charges for `bytes` more that stay with them; `false`: they are over the cap.
    pub fn charge_warm(&self, bytes: usize) -> bool {
        let before = self.warm_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > MAX_WARM_BYTES {
            self.warm_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Notes that `bytes` less stay with them.
    pub fn refund_warm(&self, bytes: usize) {
        self.warm_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Makes everything whole in a process that was just forked by a thread that visits `visited`.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self, visited: *const Control) {
        // SAFETY: the caller's contract.
        unsafe { self.stubs.recover() };
        for stub in self.stubs.all() {
            let is_visited = core::ptr::eq(stub.control().cast(), visited);
            stub.state.recount_visitors(u32::from(is_visited));
        }
        for (index, lock) in self.large_locks.iter().enumerate() {
            let repair = |is_torn| {
                if is_torn {
                    self.stubs
                        .all()
                        .filter(|stub| stub.serial().index() as usize % LARGE_LOCK_COUNT == index)
                        .for_each(|stub| Control::of(stub).repair_large());
                }
            };
            // SAFETY: the caller's contract.
            unsafe { lock.recover(|(), is_torn| repair(is_torn)) };
        }
    }
}
