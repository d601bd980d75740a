//! Requests, from their control block to what is left of them.

use super::Heap;
use super::found::{Found, Owner, Place};
use crate::base::fatal;
use crate::base::sync::{Lock, Ordering, Patience};
use crate::blocks::identity::Serial;
use crate::blocks::memory::Raw;
use crate::blocks::region::Ids;
use crate::lockfree::large;
use crate::lockfree::lifetime::persist;
use crate::lockfree::token::reap;
use crate::pages::shelf::Shelf;
use crate::pages::span::Span;
use crate::request::Host;
use crate::request::control::{Control, Opening};
use crate::request::finish::{self, Left, Survivors};
use crate::request::lane::Lane;
use crate::request::lists::Lists;
use crate::request::stub::Stub;

impl Heap {
    /// Takes a control block, which is the caller's alone. `None`: the system has no more memory.
    pub fn take_control(&self) -> Option<&'static Control> {
        self.controls.take(&self.pages.space.descriptors)
    }

    /// Puts back a control block whose request is over.
    pub fn recycle(&self, control: &Control) {
        control.retire();
        self.controls.put(control, false, self);
    }

    /// Puts back a control block that was kept, but not used, for long.
    pub fn recycle_old(&self, control: &Control) {
        self.controls.put(control, true, self);
    }

    /// The stubs whose control block is somebody's: their request is open, or over.
    pub fn stubs_in_use(&self) -> impl Iterator<Item = &'static Stub> + '_ {
        self.controls.stubs_in_use()
    }

    /// Opens a request in a control block that is the caller's alone.
    #[inline(always)]
    pub fn open_request(&self, control: &Control, number: u64, opening: &Opening) {
        let serial = control.stub().next_serial();
        let ids = Ids {
            request: self.identity.id_of(serial),
            persistent: self.identity.id_of(Serial::PERSISTENT),
        };
        control.open(serial, ids, number, opening);
    }

    /// Survivors pin their spans from now on: nobody else allocates between them.
    pub fn pin_survivors(&self) {
        self.adopted.pin();
    }

    /// Finishes a request that the caller has closed.
    pub fn finish_request(&self, control: &Control, survivors: Survivors) -> Left {
        finish::finish(control, self, survivors)
    }

    /// Makes a live block of this request persistent, in place. The caller is inside the request,
    /// or visits it. `false`: the header is another one by now.
    pub fn persist(&self, found: &Found<'_>, owner: Owner) -> bool {
        let Place::Region(class, _) = found.place else {
            self.detach(found.span);
            return true;
        };
        let region = &found.span.region;
        region.has_persisted.store(true, Ordering::Relaxed);
        owner.control().has_persisted.store(true, Ordering::Relaxed);
        if persist(&Raw, &region.count, found.block, found.header, self.persistent_tag()) {
            let generation = owner.serial.generation();
            owner.stub.persisted.add(generation, 1, class.stride_bytes());
            return true;
        }
        reap(&Shelf(self), found.span, 1);
        false
    }

    /// Visits every open request; fatal if what is above it is not open, or too much (Q3).
    pub(super) fn check_requests(&self) {
        for stub in self.controls.stubs_in_use() {
            let (state, mut patience) = (&stub.state, Patience::new());
            let has_open_parents = || Control::of(stub).has_open_parents();
            let generation = state.look().generation();
            if state.visit(generation, || patience.wait(), has_open_parents) == Some(false) {
                fatal::broken("chain of a request", stub.index() as usize, 0);
            }
        }
    }

    /// Takes a large or mapped block from its request, if it still has it: the block is persistent.
    pub(super) fn detach(&self, span: &Span) {
        let lock_of = |owner| self.controls.large_lock(Serial(owner));
        large::detach(span, lock_of, |owner| {
            self.owner(Serial(owner)).map(|owner| owner.control().large_blocks())
        });
    }
}

impl Host for Heap {
    fn charge_warm(&self, bytes: usize) -> bool {
        self.controls.charge_warm(bytes)
    }

    fn refund_warm(&self, bytes: usize) {
        self.controls.refund_warm(bytes);
    }

    fn take_lane(&self) -> Option<&'static Lane> {
        self.controls.take_lane(&self.pages.space.descriptors)
    }

    fn give_lane(&self, lane: &Lane, is_old: bool) {
        self.controls.put_lane(lane, is_old);
    }

    fn take_lists(&self) -> Option<&'static Lists> {
        self.controls.take_lists(&self.pages.space.descriptors)
    }

    fn give_lists(&self, lists: &Lists) {
        self.controls.put_lists(lists);
    }

    fn large_lock(&self, owner: Serial) -> &Lock<()> {
        self.controls.large_lock(owner)
    }
}
