//! The control blocks of all requests, their further lanes, and what they share. What nobody uses
//! of it goes back to the system.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `blocks`, `lanes`, `lists` | see `pages/slots` | |
//! | `large_locks` | see `large` | |
//! | `warm_bytes` | who keeps a region or lets go of it, by read-modify-write | any thread |
//! | `next_look` | the thread that ticks | the same |

use crate::base::sync::{AtomicU64, AtomicUsize, Lock, Ordering};
use crate::blocks::identity::Serial;
use crate::pages::descriptors::DescriptorMemory;
use crate::pages::slots::{Empty, SlotFigures, Slots, Tenants};
use crate::request::Host;
use crate::request::control::Control;
use crate::request::finish;
use crate::request::lane::Lane;
use crate::request::lists::Lists;
use crate::request::stub::Stub;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// Milliseconds between two looks at idle control blocks and lanes. What was idle at two of them
/// goes at the third: after one to one and a half seconds, so that it stays where a burst comes
/// every second.
pub const LOOK_MILLISECONDS: u64 = 500;
/// Most bytes of regions that stay with all pooled control blocks together.
const MAX_WARM_BYTES: usize = 64 * 1024 * 1024;
/// Locks of the lists of large blocks: requests share them by their stubs' index.
const LARGE_LOCK_COUNT: usize = 16;

/// The control blocks.
pub struct Controls {
    /// Each with the stub that headers lead to.
    blocks: Slots<Control, { size_of::<Stub>() }>,
    lanes: Slots<Lane, 0>,
    lists: Slots<Lists, 0>,
    large_locks: [Lock<()>; LARGE_LOCK_COUNT],
    warm_bytes: AtomicUsize,
    next_look: AtomicU64,
}

/// What control blocks, lanes and lists take, and what is kept with them.
#[derive(Clone, Copy, Default)]
pub struct ControlFigures {
    /// Bytes of those that were made, with their stubs: resident.
    pub made_bytes: usize,
    /// Bytes of those of them that wait for a request.
    pub idle_bytes: usize,
    /// Bytes of addresses without memory, for more of them.
    pub empty_bytes: usize,
    /// Bytes of regions that stay with control blocks.
    pub warm_bytes: usize,
}

/// What a look at idle control blocks needs of the heap.
struct IdleControls<'h, S>(&'h S);

impl<S: Host> Tenants for IdleControls<'_, S> {
    fn strip(&self, address: usize) {
        // SAFETY: a made slot of control blocks has one.
        finish::strip(unsafe { Control::at(address) }, self.0);
    }

    fn generation(&self, stub: usize) -> u32 {
        // SAFETY: memory for a stub.
        unsafe { Stub::at(stub) }.state.look().generation()
    }
}

/// Lanes and lists, which have nothing when they are idle, and no stubs.
struct Bare;

impl Tenants for Bare {
    fn strip(&self, _address: usize) {}

    fn generation(&self, _stub: usize) -> u32 {
        0
    }
}

impl Controls {
    /// Nothing is made yet.
    pub const fn new() -> Self {
        Self {
            blocks: Slots::new(),
            lanes: Slots::new(),
            lists: Slots::new(),
            large_locks: [const { Lock::new(()) }; LARGE_LOCK_COUNT],
            warm_bytes: AtomicUsize::new(0),
            next_look: AtomicU64::new(0),
        }
    }

    /// Takes an idle control block, else a new one. `None`: the system has no more memory, or every
    /// stub is spent.
    pub fn take(&self, memory: &DescriptorMemory) -> Option<&'static Control> {
        let make = |empty: &Empty| {
            // SAFETY: memory for a stub and a control block, this thread's alone.
            unsafe {
                let stub = Stub::at(empty.stub);
                let control = with_exposed_provenance::<Control>(empty.address);
                stub.settle(control.cast(), empty.index, empty.kept);
                Control::make(empty.address, stub);
            }
        };
        // SAFETY: there is a control block in the slot now.
        self.blocks.take(memory, make).map(|address| unsafe { Control::at(address) })
    }

    /// Puts back a control block whose request is over; `is_old`: it is so for long.
    pub fn put<S: Host>(&self, control: &Control, is_old: bool, host: &S) {
        let stub = control.stub();
        if stub.is_spent() {
            finish::strip(control, host);
            return self.blocks.spend(stub.index());
        }
        self.blocks.give(stub.index(), is_old);
    }

    /// Takes a lane, which is the caller's.
    pub fn take_lane(&self, memory: &DescriptorMemory) -> Option<&'static Lane> {
        let make = |empty: &Empty| {
            let place = with_exposed_provenance_mut::<Lane>(empty.address);
            // SAFETY: memory for a lane, this thread's alone.
            unsafe { place.write(Lane::new(empty.index)) };
        };
        let address = self.lanes.take(memory, make)?;
        // SAFETY: there is a lane in the slot now, and its memory is never unmapped (M1).
        Some(unsafe { &*with_exposed_provenance(address) })
    }

    /// Puts back an idle lane without regions.
    pub fn put_lane(&self, lane: &Lane, is_old: bool) {
        self.lanes.give(lane.slot, is_old);
    }

    /// Takes empty lists, which are the caller's.
    pub fn take_lists(&self, memory: &DescriptorMemory) -> Option<&'static Lists> {
        let make = |empty: &Empty| {
            let place = with_exposed_provenance_mut::<Lists>(empty.address);
            // SAFETY: memory for lists, this thread's alone.
            unsafe { place.write(Lists::new(empty.index)) };
        };
        let address = self.lists.take(memory, make)?;
        // SAFETY: there are lists in the slot now, and their memory is never unmapped (M1).
        Some(unsafe { &*with_exposed_provenance(address) })
    }

    /// Puts back empty lists.
    pub fn put_lists(&self, lists: &Lists) {
        self.lists.give(lists.slot, true);
    }

    /// Gives back what has been idle for long, if a look is due. Returns the bytes of descriptors
    /// that went.
    pub fn look<S: Host>(&self, now: u64, host: &S) -> usize {
        if now < self.next_look.load(Ordering::Relaxed) {
            return 0;
        }
        self.next_look.store(now + LOOK_MILLISECONDS, Ordering::Relaxed);
        self.purge(false, host)
    }

    /// Gives back everything idle; unless `all`, what was idle at the last two looks, too. Returns
    /// the bytes of descriptors that went.
    pub fn purge<S: Host>(&self, all: bool, host: &S) -> usize {
        // What control blocks had goes with them.
        self.blocks.purge(all, &IdleControls(host))
            + self.lanes.purge(all, &Bare)
            + self.lists.purge(all, &Bare)
    }

    /// The stub with this index, if there is memory for it: one that no request ever had, or that
    /// was wiped, has none now (U3).
    #[inline]
    pub fn stub(&self, index: u32) -> Option<&'static Stub> {
        // SAFETY: memory for a stub.
        self.blocks.stub(index).map(|address| unsafe { Stub::at(address) })
    }

    /// Whether a request has, or had, this serial.
    pub fn was_issued(&self, serial: Serial) -> bool {
        let was_issued =
            |stub: &Stub| self.blocks.was_issued(serial.index(), &stub.state, serial.generation());
        serial.generation() > 0 && self.stub(serial.index()).is_some_and(was_issued)
    }

    /// Returns the number of a request that is over, unless that is long ago.
    pub fn number_of_past(&self, serial: Serial) -> Option<u64> {
        let stub = self.stub(serial.index()).filter(|stub| !stub.control().is_null())?;
        Control::of(stub).number_of_past(serial.generation())
    }

    /// The stubs whose control block is somebody's.
    pub fn stubs_in_use(&self) -> impl Iterator<Item = &'static Stub> + '_ {
        self.blocks.in_use().filter_map(|index| self.stub(index))
    }

    /// The lock of the list of large blocks of the request with this serial.
    pub fn large_lock(&self, owner: Serial) -> &Lock<()> {
        &self.large_locks[owner.index() as usize % LARGE_LOCK_COUNT]
    }

    /// Returns what it all takes. Walks the leaves.
    pub fn figures(&self) -> ControlFigures {
        let mut sum = ControlFigures { warm_bytes: self.warm_bytes(), ..ControlFigures::default() };
        let add = |sum: &mut ControlFigures, part: SlotFigures| {
            sum.made_bytes += part.made_bytes;
            sum.idle_bytes += part.idle_bytes;
            sum.empty_bytes += part.empty_bytes;
        };
        add(&mut sum, self.blocks.figures());
        add(&mut sum, self.lanes.figures());
        add(&mut sum, self.lists.figures());
        sum
    }

    /// Returns the bytes of regions that stay with control blocks.
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
    /// What another thread was taking or wiping is lost.
    ///
    /// # Safety
    /// As for `Lock::recover`.
    pub unsafe fn recover(&self, visited: *const Control) {
        for stub in self.stubs_in_use() {
            let is_visited = core::ptr::eq(stub.control().cast(), visited);
            stub.state.recount_visitors(u32::from(is_visited));
        }
        for (index, lock) in self.large_locks.iter().enumerate() {
            let repair = |is_torn| {
                if is_torn {
                    self.stubs_in_use()
                        .filter(|stub| stub.index() as usize % LARGE_LOCK_COUNT == index)
                        .for_each(|stub| Control::of(stub).repair_large());
                }
            };
            // SAFETY: the caller's contract.
            unsafe { lock.recover(|(), is_torn| repair(is_torn)) };
        }
    }
}
