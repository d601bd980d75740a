//! The control blocks of all requests, their further lanes, and what they share. What nobody uses
//! of it goes back to the system.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `blocks`, `lanes`, `lists` | see `pages/slots` | |
//! | `large_locks` | see `large` | |
//! | `warm_bytes` | who keeps a region or lets go of it, by read-modify-write | any thread |

use crate::base::fatal;
use crate::base::sync::{AtomicUsize, Lock, Ordering};
use crate::blocks::identity::Serial;
use crate::blocks::request_name::RequestName;
use crate::pages::descriptors::DescriptorMemory;
use crate::pages::slots::{Empty, SlotFigures, Slots, Tenants};
use crate::request::Host;
use crate::request::control::Control;
use crate::request::finish;
use crate::request::lane::Lane;
use crate::request::lists::Lists;
use crate::request::stub::Stub;
use core::ptr::{from_ref, with_exposed_provenance, with_exposed_provenance_mut};

/// Most bytes of regions that stay with all pooled control blocks together.
pub const MAX_WARM_BYTES: usize = 64 * 1024 * 1024;
/// Locks of the lists of large blocks: requests share them by their stubs' index.
const LARGE_LOCK_COUNT: usize = 16;

/// The control blocks.
pub struct Controls {
    /// Each with the stub that headers lead to.
    pub(super) blocks: Slots<Control, { size_of::<Stub>() }>,
    pub(super) lanes: Slots<Lane, 0>,
    pub(super) lists: Slots<Lists, 0>,
    large_locks: [Lock<()>; LARGE_LOCK_COUNT],
    warm_bytes: AtomicUsize,
}

/// What control blocks, lanes and lists take, and what is kept with them.
#[derive(Clone, Copy, Default, Debug)]
pub struct ControlFigures {
    /// Bytes of those that wait for a request; not of the lanes that they keep.
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
        }
    }

    /// Sees to it that the first requests can be opened when the system has no more memory.
    pub fn reserve(&self, memory: &DescriptorMemory) {
        self.blocks.reserve(memory);
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

    /// Returns the name of a request that is over, unless its control block has had another since.
    pub fn name_of_past(&self, serial: Serial) -> Option<RequestName> {
        let stub = self.stub(serial.index()).filter(|stub| !stub.control().is_null())?;
        let is_last = stub.state.look().generation() == serial.generation();
        is_last.then(|| Control::of(stub).name.get()).flatten()
    }

    /// The stubs whose control block is somebody's.
    pub fn stubs_in_use(&self) -> impl Iterator<Item = &'static Stub> + '_ {
        self.blocks.in_use().filter_map(|index| self.stub(index))
    }

    /// The same of one leaf. `None`: there are fewer.
    pub fn stubs_of(&self, leaf: usize) -> Option<impl Iterator<Item = &'static Stub> + '_> {
        Some(self.blocks.in_use_of(leaf)?.filter_map(|index| self.stub(index)))
    }

    /// The lock of the list of large blocks of the request with this serial.
    pub fn large_lock(&self, owner: Serial) -> &Lock<()> {
        &self.large_locks[owner.index() as usize % LARGE_LOCK_COUNT]
    }

    /// Returns what it all takes. Walks the leaves.
    pub fn figures(&self) -> ControlFigures {
        let parts = [self.blocks.figures(), self.lanes.figures(), self.lists.figures()];
        let sum = |of: fn(&SlotFigures) -> usize| parts.iter().map(of).sum();
        ControlFigures {
            idle_bytes: sum(|part| part.idle_bytes),
            empty_bytes: sum(|part| part.empty_bytes),
            warm_bytes: self.warm_bytes(),
        }
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

    /// Walks what is in use; fatal if a stub does not know its place. Of what others have, which may
    /// be wiped and made anew meanwhile, it reads stubs alone: they are atomics.
    pub fn check(&self) {
        self.blocks.check();
        self.lanes.check();
        self.lists.check();
        let is_whole = |stub: &Stub, index: u32| {
            self.blocks.thing(index) == Some(stub.control().addr()) && stub.index() == index
        };
        for index in self.blocks.in_use() {
            let Some(stub) = self.stub(index).filter(|stub| !is_whole(stub, index)) else {
                continue;
            };
            // It may have been wiped between the two looks, and even made anew.
            if self.blocks.in_use().any(|other| other == index) && !is_whole(stub, index) {
                fatal::broken("stub of a control block", stub.control().addr(), index as usize);
            }
        }
    }

    /// Looks at the places of a request that the caller is inside; fatal if a part does not know its
    /// own.
    pub fn check_inside(&self, control: &Control) {
        let expect = |name, thing: Option<usize>, address: usize| {
            if thing != Some(address) {
                fatal::broken(name, thing.unwrap_or(0), address);
            }
        };
        let address = from_ref(control).addr();
        expect("control block of a stub", Some(control.stub().control().addr()), address);
        for lane in control.lanes().skip(1) {
            expect("slot of a lane", self.lanes.thing(lane.slot), from_ref(lane).addr());
        }
        if let Some(lists) = control.lists() {
            expect("slot of lists", self.lists.thing(lists.slot), from_ref(lists).addr());
        }
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
