//! Large and mapped blocks of a request: how they are listed, taken out and adopted, each under the
//! lock of the request's list.
//!
//! Compiled by `loom-tests`.
//!
//! - **L4** A large block's request is not over before its count is off, and whoever sees it off
//!   sees the list without the block.
//! - **L5** A block with an owner is on that request's list. Whoever sees, without the lock, that
//!   it has none, sees it off the list.

use crate::base::sync::{AtomicU64, Lock, Ordering, const_fn, step};

/// How many large blocks a request has.
pub struct LargeCount(AtomicU64);

impl LargeCount {
    const_fn! {
        /// No large block.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Sets the count of a request that no other thread knows yet to 0.
    pub fn open(&self) {
        self.recount(0);
    }

    /// Sets the count, in the only thread there is.
    pub fn recount(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// Adds a block that is on the list by now.
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less: the last thing its free does to the request (L4).
    fn drop_one(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Returns how many there are; once a closer reads 0, the list stays empty.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// The descriptor of a large block.
pub trait LargeBlock {
    /// Returns the word with the serial of its request; 0: it is persistent.
    fn owner(&self) -> &AtomicU64;
}

/// The large blocks of a request. Every call is made under the list's lock.
pub trait LargeBlocks {
    /// The descriptor of a block.
    type Block: LargeBlock + ?Sized;
    /// Puts a block on the list.
    fn insert(&self, block: &Self::Block);
    /// Takes a block off the list.
    fn remove(&self, block: &Self::Block);
    /// Adds a block's bytes to what is counted of the list.
    fn charge(&self, block: &Self::Block);
    /// Takes a block's bytes off that, and off what its request holds.
    fn refund(&self, block: &Self::Block);
    /// Returns how many there are.
    fn count(&self) -> &LargeCount;
    /// Takes all off the list. What is returned reads a block before it hands it out.
    fn take_all(&self) -> impl Iterator<Item = &Self::Block>;
}

/// Puts a block of a request on its list, by a thread inside the request.
pub fn link<L: LargeBlocks>(lock: &Lock<()>, list: &L, block: &L::Block) {
    let _guard = lock.lock();
    list.insert(block);
    step();
    list.count().add();
    step();
    list.charge(block);
    step();
}

/// Takes a block from its request, if it has one: it is persistent afterwards, and its descriptor
/// the caller's, who frees or persists it. `lock_of` and `list_of` lead from the owner to its list;
/// the latter only if it still has the block, and so is not over.
pub fn detach<'l, L: LargeBlocks>(
    block: &L::Block,
    lock_of: impl FnOnce(u64) -> &'l Lock<()>,
    list_of: impl FnOnce(u64) -> Option<L>,
) {
    let owner = block.owner().load(Ordering::Acquire);
    if owner == 0 {
        return;
    }
    let _guard = lock_of(owner).lock();
    if block.owner().load(Ordering::Relaxed) != owner {
        // Its request was closed meanwhile; the lock has ordered that before what follows.
        return;
    }
    let Some(list) = list_of(owner) else { return };
    block.owner().store(0, Ordering::Relaxed);
    step();
    list.remove(block);
    step();
    list.refund(block);
    step();
    list.count().drop_one();
}

/// Makes every large block of a request persistent that its closer finds. `look` sees each before
/// that: its pages may be moving, and afterwards its descriptor is another thread's.
pub fn adopt_all<L: LargeBlocks>(lock: &Lock<()>, list: &L, mut look: impl FnMut(&L::Block)) {
    let _guard = lock.lock();
    for block in list.take_all() {
        look(block);
        block.owner().store(0, Ordering::Release);
    }
}
