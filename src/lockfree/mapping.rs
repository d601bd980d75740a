//! The steps by which a mapping comes, changes its length, and goes.
//!
//! Compiled by `loom-tests`.
//!
//! - **X3** What is registered is mapped, and its descriptor says so. Addresses that are not mapped
//!   may be anybody's at any time, so they are forgotten before they go and registered after they
//!   have come: an entry that is changed is its writer's (X2).

use crate::base::sync::step;
use crate::lockfree::looseness::Looseness;

/// What became of an attempt to change a mapping's length in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It has the new length.
    Done,
    /// Nothing has changed; the pages can be moved.
    NoRoom,
    /// Nothing has changed, and the pages cannot be moved.
    Fixed,
}

/// The system, the registry and the descriptors of mappings.
pub trait Space {
    /// The descriptor of a mapping.
    type Mapping: ?Sized;
    /// Its first address and its length.
    fn extent(&self, mapping: &Self::Mapping) -> (usize, usize);
    /// Changes them.
    fn set_extent(&self, mapping: &Self::Mapping, base: usize, bytes: usize);
    /// Registers a mapping; its entries have room.
    fn register(&self, mapping: &Self::Mapping);
    /// Forgets what is at these addresses.
    fn forget(&self, base: usize, bytes: usize);
    /// Forgets the entries of a mapping that it will not have any more when it is shorter.
    fn forget_end(&self, base: usize, old: usize, new: usize);
    /// Counts the bytes of mappings.
    fn count(&self, added: usize, gone: usize);
    /// Gives a descriptor back.
    fn give_descriptor(&self, mapping: &Self::Mapping);
    /// Gives addresses back, or the memory behind some if others of their chunk stay.
    fn unmap(&self, base: usize, bytes: usize);
    /// Changes the length of a mapping, in place.
    fn change(&self, base: usize, old: usize, new: usize) -> Change;
    /// Maps addresses whose entries have room.
    fn map(&self, bytes: usize) -> Option<usize>;
    /// Moves pages to addresses that were mapped for it, which are lost if it fails.
    fn move_pages(&self, base: usize, old: usize, target: usize, new: usize) -> bool;
}

/// Registers addresses that were just mapped. `describe` makes the caller's descriptor say so.
pub fn enter<S: Space>(space: &S, mapping: &S::Mapping, describe: impl FnOnce()) {
    describe();
    space.register(mapping);
    space.count(space.extent(mapping).1, 0);
}

/// Gives a mapping back to the system.
pub fn release<S: Space>(space: &S, mapping: &S::Mapping) {
    let (base, bytes) = space.extent(mapping);
    space.forget(base, bytes);
    space.give_descriptor(mapping);
    space.unmap(base, bytes);
    space.count(0, bytes);
}

/// Divides a mapping that is in nobody's use: `behind`, a descriptor that is the caller's, has what
/// is behind the first `bytes` then. `describe` makes it say so.
pub fn split<S: Space>(
    space: &S,
    mapping: &S::Mapping,
    behind: &S::Mapping,
    bytes: usize,
    describe: impl FnOnce(),
) {
    let (base, all) = space.extent(mapping);
    space.forget(base + bytes, all - bytes);
    space.set_extent(mapping, base, bytes);
    describe();
    space.register(behind);
}

/// Gives back what a loose mapping has beyond `wanted` bytes, which the caller has claimed.
pub fn tighten<S: Space>(space: &S, mapping: &S::Mapping, looseness: &Looseness, wanted: usize) {
    let (base, old) = space.extent(mapping);
    // A process that was forked before the pages are gone leaks them, where it would otherwise give
    // them back twice.
    space.forget_end(base, old, wanted);
    step();
    space.set_extent(mapping, base, wanted);
    step();
    space.count(0, old - wanted);
    step();
    space.unmap(base + wanted, old - wanted);
    looseness.settle();
}

/// Changes the length of a mapping for which there is room in the registry, moving its pages if
/// they cannot stay. `false`: nothing has changed.
pub fn resize<S: Space>(space: &S, mapping: &S::Mapping, new: usize) -> bool {
    let (base, old) = space.extent(mapping);
    // The entries that stay are not touched: the block may be freed meanwhile.
    space.forget_end(base, old, new);
    let is_done = match space.change(base, old, new) {
        Change::Done => {
            space.set_extent(mapping, base, new);
            true
        }
        Change::NoRoom => new > old && relocate(space, mapping, new),
        Change::Fixed => false,
    };
    space.register(mapping);
    if is_done {
        space.count(new, old);
    }
    is_done
}

/// Moves the pages of a mapping to a longer one, which is not registered yet.
fn relocate<S: Space>(space: &S, mapping: &S::Mapping, new: usize) -> bool {
    let (base, old) = space.extent(mapping);
    let Some(target) = space.map(new) else { return false };
    space.forget(base, old);
    let is_moved = space.move_pages(base, old, target, new);
    if is_moved {
        space.set_extent(mapping, target, new);
    }
    is_moved
}
