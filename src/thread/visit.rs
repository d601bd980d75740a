//! Visits: what a thread does in a request that it is not inside and has no handle of.

use super::{HEAP, Thread};
use crate::base::sync::Patience;
use crate::blocks::identity::Serial;
use crate::heap::found::Owner;
use crate::request::control::Control;
use crate::request::lane::Lane;
use core::ptr::null;

/// Calls `f` as a visitor of a request that this thread is not inside: nothing of the request is
/// finished here, and the thread that finishes it waits. `None`: it is closing, or over.
pub fn visit<R>(thread: Option<&Thread>, owner: Owner, f: impl FnOnce() -> R) -> Option<R> {
    let note = |visited| {
        thread.inspect(|thread| thread.visited.set(visited));
    };
    let mut patience = Patience::new();
    owner.stub.state.visit(
        owner.serial.generation(),
        || patience.wait(),
        || {
            note(owner.control());
            let result = f();
            note(null());
            result
        },
    )
}

/// Calls `f` in a lane, as a visitor. `None`: the request is closing or over, or there is no memory
/// for a lane.
pub fn visit_lane<R>(thread: &Thread, owner: Owner, f: impl FnOnce(&Lane) -> R) -> Option<R> {
    visit(Some(thread), owner, || {
        let lane = owner.control().enter(&HEAP)?;
        lane.bins.set_cache(&raw const thread.cache.bins);
        let result = f(lane);
        lane.occupancy.leave();
        Some(result)
    })?
}

/// The requests that are open, or were just now.
pub fn open_requests() -> impl Iterator<Item = Owner> {
    HEAP.stubs_in_use().filter_map(|stub| {
        let seen = stub.state.look();
        let serial = Serial::new(stub.index(), seen.generation());
        seen.is_open(seen.generation()).then_some(Owner { stub, serial })
    })
}

/// Calls `f` with the control block of a request that stays open meanwhile; `f` neither allocates
/// nor waits. `None`: it is closing, or over.
pub fn visit_control<R>(
    thread: Option<&Thread>,
    owner: Owner,
    f: impl FnOnce(&'static Control) -> R,
) -> Option<R> {
    visit(thread, owner, || f(owner.control()))
}
