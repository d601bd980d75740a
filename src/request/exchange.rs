//! What the lanes of a request hand on to one another, so that what one frees reaches the one that
//! needs it.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `lists` | see `once`: who enters a second lane; stays until the control block has been idle for long | who is inside |

use super::Host;
use crate::base::size_class::Class;
use crate::blocks::memory::Raw;
use crate::lockfree::once::Once;
use crate::request::figures::Pending;
use crate::request::lane::{Lane, shared_cap};
use crate::request::lists::Lists;

/// The lists, once there are any.
pub struct Exchange {
    lists: Once<Lists>,
}

/// Fewest and most frees between two looks at a lane's bin.
const MIN_ROOM: u32 = 2;
const MAX_ROOM: u32 = 256;

impl Exchange {
    /// Creates an exchange without lists.
    pub const fn new() -> Self {
        Self { lists: Once::new() }
    }

    /// Takes lists from the host, if there are none yet. Without them bins are not bounded, and only
    /// memory is lost.
    pub fn provide<S: Host>(&self, host: &S) {
        if self.lists.is_made() {
            return;
        }
        let Some(fresh) = host.take_lists() else { return };
        // SAFETY: whole lists, this thread's alone, and never unmapped (M1).
        unsafe { self.lists.make(|| Some(core::ptr::from_ref(fresh).cast_mut())) };
        if !self.lists().is_some_and(|lists| core::ptr::eq(lists, fresh)) {
            host.give_lists(fresh);
        }
    }

    /// Gives the lists back. Nobody is in the request, and nothing is in them.
    pub fn release<S: Host>(&self, host: &S) {
        if let Some(lists) = self.lists.take() {
            host.give_lists(lists);
        }
    }

    /// The lists, if there are any.
    pub fn lists(&self) -> Option<&Lists> {
        self.lists.get()
    }

    /// Looks at a lane's bin whose room is used up. If it is over its cap, or near it, what came
    /// last goes round to the other lanes. What the bin still has it keeps: it took it when it had
    /// nothing.
    pub fn look_at_bin(&self, lane: &Lane, class: Class, pending: Pending<'_>) {
        let bin = lane.bins.bin(class);
        let (cap, count) = (bin.cap(), bin.count());
        // Keep the refill batch plus one block, so that the next free does not return here at once.
        let kept = cap.saturating_sub(shared_cap(class)) + 1;
        let full = if cap / 4 < MIN_ROOM { cap } else { cap - cap / 4 };
        if count > full && count > kept {
            self.hand_on(lane, class, count - kept, pending);
        }
        let room = bin.cap().saturating_sub(bin.count());
        bin.renew(room.clamp(MIN_ROOM, MAX_ROOM));
    }

    /// Hands on what a lane's bins hold over their usual caps.
    pub fn hand_excess_on(&self, lane: &Lane, pending: Pending<'_>) {
        for class in Class::all() {
            let (bin, cap) = (lane.bins.bin(class), shared_cap(class));
            bin.set_cap(cap);
            if bin.count() > cap {
                self.hand_on(lane, class, bin.count() - cap, pending);
            }
        }
    }

    /// Hands on the `count` blocks that came last into a bin that has more.
    fn hand_on(&self, lane: &Lane, class: Class, count: u32, pending: Pending<'_>) {
        let bin = lane.bins.bin(class);
        let Some(lists) = self.lists() else {
            return bin.set_cap(u32::MAX);
        };
        let (first, last) = bin.take_top(count);
        pending.add(count as usize, count as usize * class.stride_bytes());
        lists.by_class[class.index()].push(&Raw, first, last);
    }

    /// Takes what other lanes handed on of a class into the lane's empty bin; whether there was
    /// any.
    pub fn take_handed_on(&self, lane: &Lane, class: Class, pending: Pending<'_>) -> bool {
        let Some(lists) = self.lists() else {
            return false;
        };
        let list = &lists.by_class[class.index()];
        if list.is_empty() {
            return false;
        }
        let mut count = 0;
        for block in list.drain().blocks(&Raw) {
            lane.bins.put(block, class);
            count += 1;
        }
        pending.take(count, count * class.stride_bytes());
        lane.bins.bin(class).set_cap(count as u32 + shared_cap(class));
        count > 0
    }

    /// Takes all that lanes handed on into one lane's bins.
    pub fn take_all_handed_on(&self, lane: &Lane, pending: Pending<'_>) {
        Class::all().for_each(|class| {
            self.take_handed_on(lane, class, pending);
        });
    }

    /// Forgets everything that lanes handed on, whose regions go.
    pub fn forget_handed_on(&self) {
        if let Some(lists) = self.lists() {
            lists.by_class.iter().for_each(|list| {
                list.drain();
            });
        }
    }
}
