//! Memory for things of one type that come and go: control blocks, lanes. Slots are taken lowest
//! first, so that the upper ones fall idle, and the memory of those goes back to the system.
//!
//! Slots are in leaves of 64 (`lockfree/slots`), leaves in groups of 64. A leaf's memory is of the
//! things, and then of their stubs, `STUB` bytes for each; it is never unmapped (M1), but wiped.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `groups` | see `once` | anybody |
//! | `index`, `leaves` | see `run_index`, `slots` | |
//! | `hint`, `leaf_count` | who takes or gives a slot, as hints | the same |
//! | `reserve` | who sets up the heap; who opens a leaf takes it by a swap | the same |

use crate::base::fatal;
use crate::base::os;
use crate::base::sync::{AtomicUsize, Ordering, step};
use crate::lockfree::once::{Once, OnceList};
use crate::lockfree::pool::ALIGN;
use crate::lockfree::run_index::RunIndex;
use crate::lockfree::slots::{Contents, LEAF_SLOTS, Leaf};
use crate::lockfree::state::State;
use crate::pages::descriptors::DescriptorMemory;
use core::marker::PhantomData;
use core::ptr::with_exposed_provenance_mut;

const GROUP_LEAVES: usize = u64::BITS as usize;
/// Groups that there may be: all slots are 2^24, as many as the index in a serial can tell.
const GROUP_COUNT: usize = 1 << 12;

const _: () = assert!(GROUP_COUNT * GROUP_LEAVES * LEAF_SLOTS == 1 << 24, "indices have 24 bits");

/// The only length of a run that is searched for.
const RUN_LENGTHS: [u8; 1] = [1];

#[repr(C, align(64))]
struct Group {
    /// Which leaves may have an idle slot.
    index: RunIndex<1>,
    leaves: [Leaf; GROUP_LEAVES],
}

impl Group {
    fn publish(&self, leaf: usize) {
        let longest = || usize::from(self.leaves[leaf].idle.snapshot() != [0]);
        self.index.publish(leaf as u32, &RUN_LENGTHS, longest);
    }
}

/// The slots of things of type `T`, each with a stub of `STUB` bytes beside it. Index 0 is nobody's.
pub struct Slots<T, const STUB: usize> {
    groups: OnceList<Group, GROUP_COUNT>,
    /// The first group in which a search is worth while; wrong until the next look at most.
    hint: AtomicUsize,
    /// Leaves that have memory, or fewer.
    leaf_count: AtomicUsize,
    /// Memory for the first leaf, so that it is there when the system has no more; 0: none.
    reserve: AtomicUsize,
    things: PhantomData<fn() -> T>,
}

/// A slot without a thing in it, whose memory may contain anything.
pub struct Empty {
    /// Its number.
    pub index: u32,
    /// Where the thing goes.
    pub address: usize,
    /// Where its stub is: wiped, or as the last thing in the slot left it.
    pub stub: usize,
    /// What a wiped stub must go on from.
    pub kept: u32,
}

/// What a look at idle slots needs to know of what is in them.
pub trait Tenants {
    /// Gives back what an idle thing has besides its own memory.
    fn strip(&self, address: usize);
    /// Returns the last generation of a stub; 0 of a wiped one.
    fn generation(&self, stub: usize) -> u32;
}

/// Slots and their bytes, with their stubs.
#[derive(Clone, Copy, Default)]
pub struct SlotFigures {
    /// Bytes of slots with a thing in them: resident.
    pub made_bytes: usize,
    /// Bytes of those of them that are nobody's.
    pub idle_bytes: usize,
    /// Bytes of all others that there is an address for: not resident.
    pub empty_bytes: usize,
}

/// A leaf and its place in the table.
struct At<'s> {
    group: &'s Group,
    leaf: usize,
    first_index: u32,
}

impl At<'_> {
    fn leaf(&self) -> &Leaf {
        &self.group.leaves[self.leaf]
    }

    fn publish(&self) {
        self.group.publish(self.leaf);
    }
}

impl<T, const STUB: usize> Slots<T, STUB> {
    const STRIDE_BYTES: usize = size_of::<T>().next_multiple_of(ALIGN);
    const THINGS_BYTES: usize = Self::STRIDE_BYTES * LEAF_SLOTS;
    const LEAF_BYTES: usize = Self::THINGS_BYTES + STUB * LEAF_SLOTS;
    /// What is taken for a leaf, so that it begins with a page.
    const TAKEN_BYTES: usize = Self::LEAF_BYTES + os::MIN_PAGE_BYTES - ALIGN;
    const IS_ALIGNED: () = {
        assert!(Self::STRIDE_BYTES % align_of::<T>() == 0, "every thing of a leaf is aligned");
        assert!(Self::LEAF_BYTES % os::MIN_PAGE_BYTES == 0, "leaves do not share a page of 4 KiB");
        assert!(Self::THINGS_BYTES % os::MIN_PAGE_BYTES == 0, "nor do things and stubs");
    };

    /// No slot has memory yet.
    pub const fn new() -> Self {
        let () = Self::IS_ALIGNED;
        Self {
            groups: OnceList { places: [const { Once::new() }; GROUP_COUNT] },
            hint: AtomicUsize::new(0),
            leaf_count: AtomicUsize::new(0),
            reserve: AtomicUsize::new(0),
            things: PhantomData,
        }
    }

    /// Takes addresses for the first leaf, which cost nothing until it is used.
    pub fn reserve(&self, memory: &DescriptorMemory) {
        if let Some(base) = memory.take(Self::TAKEN_BYTES) {
            self.reserve.store(base, Ordering::Relaxed);
        }
    }

    fn at(&self, index: u32) -> Option<(At<'_>, usize)> {
        let (number, slot) = (index as usize / LEAF_SLOTS, index as usize % LEAF_SLOTS);
        let group = self.groups.get(number / GROUP_LEAVES)?;
        let first_index = index - slot as u32;
        Some((At { group, leaf: number % GROUP_LEAVES, first_index }, slot))
    }

    fn leaves(&self) -> impl Iterator<Item = At<'_>> {
        self.groups.all().enumerate().flat_map(|(number, group)| {
            (0..GROUP_LEAVES).map(move |leaf| {
                let first_index = ((number * GROUP_LEAVES + leaf) * LEAF_SLOTS) as u32;
                At { group, leaf, first_index }
            })
        })
    }

    /// Takes a slot, which is the caller's; if there is nothing in it, `make` makes a thing of it.
    /// Returns the address of the thing. `None`: the system has no more memory, or every slot is
    /// taken.
    pub fn take(&self, memory: &DescriptorMemory, make: impl Fn(&Empty)) -> Option<usize> {
        loop {
            let from = self.hint.load(Ordering::Relaxed);
            if let Some(address) = self.take_from(from, &make).or_else(|| self.take_from(0, &make))
            {
                return Some(address);
            }
            self.open_leaf(memory)?;
        }
    }

    fn take_from(&self, from: usize, make: &impl Fn(&Empty)) -> Option<usize> {
        for number in from.. {
            let group = self.groups.get(number)?;
            let mut candidates = group.index.candidates(0);
            while candidates != 0 {
                let leaf = candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                let first_index = ((number * GROUP_LEAVES + leaf) * LEAF_SLOTS) as u32;
                let at = At { group, leaf, first_index };
                let Some((slot, is_made)) = at.leaf().take(|| at.publish()) else { continue };
                if number != from {
                    self.hint.store(number, Ordering::Relaxed);
                }
                return Some(Self::thing_in(&at, slot, is_made, make));
            }
        }
        None
    }

    fn thing_in(at: &At<'_>, slot: usize, is_made: bool, make: &impl Fn(&Empty)) -> usize {
        let base = at.leaf().base().unwrap_or_default();
        let address = base + slot * Self::STRIDE_BYTES;
        step();
        if !is_made {
            let stub = base + Self::THINGS_BYTES + slot * STUB;
            let index = at.first_index + slot as u32;
            make(&Empty { index, address, stub, kept: at.leaf().kept() });
            step();
            at.leaf().note_made(slot);
            step();
        }
        address
    }

    /// Gives the next leaf memory.
    #[cold]
    fn open_leaf(&self, memory: &DescriptorMemory) -> Option<()> {
        let mut number = self.leaf_count.load(Ordering::Relaxed);
        let mut fresh = None;
        loop {
            let Some(group) = self.groups.get(number / GROUP_LEAVES) else {
                let made = || memory.take(size_of::<Group>()).map(with_exposed_provenance_mut);
                // SAFETY: zeros are a group whose leaves have no memory.
                if !unsafe { self.groups.make_next(number / GROUP_LEAVES, made) } {
                    return None;
                }
                continue;
            };
            let leaf = number % GROUP_LEAVES;
            if group.leaves[leaf].base().is_none() {
                // A leaf that another thread opens first leaves this memory to the next one.
                let base = match (fresh, self.reserve.swap(0, Ordering::Relaxed)) {
                    (Some(base), _) => base,
                    (None, 0) => memory.take(Self::TAKEN_BYTES)?,
                    (None, reserved) => reserved,
                };
                fresh = Some(base);
                let aligned = base.next_multiple_of(os::MIN_PAGE_BYTES);
                // Index 0 is nobody's.
                let spent = u64::from(number == 0);
                if group.leaves[leaf].open(aligned, spent, || group.publish(leaf)) {
                    self.leaf_count.store(number + 1, Ordering::Relaxed);
                    return Some(());
                }
            }
            number += 1;
        }
    }

    /// Gives a slot back with the thing in it, as one that was used just now or, if `is_old`, long
    /// ago.
    pub fn give(&self, index: u32, is_old: bool) {
        let Some((at, slot)) = self.at(index) else { return };
        at.leaf().give(slot, is_old, || at.publish());
        let number = index as usize / LEAF_SLOTS / GROUP_LEAVES;
        if number < self.hint.load(Ordering::Relaxed) {
            self.hint.store(number, Ordering::Relaxed);
        }
    }

    /// Gives a slot up for good.
    pub fn spend(&self, index: u32) {
        if let Some((at, slot)) = self.at(index) {
            at.leaf().spend(slot);
        }
    }

    /// Looks at the idle things: those that were idle at the last two looks, too, or `all`, go.
    /// Returns the bytes given back.
    pub fn purge(&self, all: bool, tenants: &impl Tenants) -> usize {
        self.hint.store(0, Ordering::Relaxed);
        let went = self.leaves().map_while(|at| {
            let things = Things::<'_, _, T, STUB> {
                base: at.leaf().base()?,
                leaf: at.leaf(),
                tenants,
                things: PhantomData,
            };
            Some(at.leaf().purge(all, &things, || at.publish()))
        });
        went.sum::<usize>() * (Self::STRIDE_BYTES + STUB)
    }

    /// The stub of the slot with this index, if it has memory: wiped or not.
    #[inline]
    pub fn stub(&self, index: u32) -> Option<usize> {
        let (at, slot) = self.at(index).filter(|_| index != 0)?;
        Some(at.leaf().base()? + Self::THINGS_BYTES + slot * STUB)
    }

    /// The thing in the slot with this index, if that has memory.
    pub fn thing(&self, index: u32) -> Option<usize> {
        let (at, slot) = self.at(index)?;
        Some(at.leaf().base()? + slot * Self::STRIDE_BYTES)
    }

    /// Whether the stub with this index and state, or one like it that was wiped, has had this
    /// generation.
    pub fn was_issued(&self, index: u32, state: &State, generation: u32) -> bool {
        self.at(index).is_some_and(|(at, slot)| at.leaf().was_issued(slot, state, generation))
    }

    /// The indices of the things that have an owner.
    pub fn in_use(&self) -> impl Iterator<Item = u32> + '_ {
        self.leaves().map_while(|at| at.leaf().base().is_some().then_some(at)).flat_map(|at| {
            at.group.leaves[at.leaf].in_use().map(move |s| at.first_index + s as u32)
        })
    }

    /// The same of the leaf with this number. `None`: it has no memory.
    pub fn in_use_of(&self, number: usize) -> Option<impl Iterator<Item = u32> + '_> {
        let (At { group, leaf, first_index }, _) = self.at((number * LEAF_SLOTS) as u32)?;
        let leaf = &group.leaves[leaf];
        leaf.base()?;
        Some(leaf.in_use().map(move |slot| first_index + slot as u32))
    }

    /// Walks the leaves; fatal if one contradicts itself.
    pub fn check(&self) {
        for at in self.leaves().take_while(|at| at.leaf().base().is_some()) {
            let contradictions = at.leaf().contradictions();
            if contradictions > 0 {
                fatal::broken("slots both idle and spent", contradictions, 0);
            }
        }
    }

    /// Returns what there is.
    pub fn figures(&self) -> SlotFigures {
        let each = Self::STRIDE_BYTES + STUB;
        let mut figures = SlotFigures::default();
        for at in self.leaves().take_while(|at| at.leaf().base().is_some()) {
            let (made, idle) = at.leaf().figures();
            figures.made_bytes += made * each;
            figures.idle_bytes += idle * each;
            figures.empty_bytes += Self::TAKEN_BYTES - made * each;
        }
        figures
    }
}

/// The things in one leaf.
struct Things<'l, C, T, const STUB: usize> {
    base: usize,
    leaf: &'l Leaf,
    tenants: &'l C,
    things: PhantomData<fn() -> T>,
}

impl<C: Tenants, T, const STUB: usize> Things<'_, C, T, STUB> {
    const STRIDE_BYTES: usize = Slots::<T, STUB>::STRIDE_BYTES;

    /// The whole pages of a run: as offset and length.
    fn pages(&self, first: usize, count: usize) -> (usize, usize) {
        // If nothing of the leaf is anybody's the stubs go, too.
        let bytes = match count {
            LEAF_SLOTS => Slots::<T, STUB>::LEAF_BYTES,
            _ => count * Self::STRIDE_BYTES,
        };
        let (start, bytes) = os::whole_pages(self.base + first * Self::STRIDE_BYTES, bytes);
        (start - self.base, bytes)
    }
}

impl<C: Tenants, T, const STUB: usize> Contents for Things<'_, C, T, STUB> {
    fn strip(&self, slot: usize) {
        self.tenants.strip(self.base + slot * Self::STRIDE_BYTES);
    }

    fn wiped(&self, first: usize, count: usize) -> u64 {
        if count == LEAF_SLOTS {
            // Their stubs may go, and with a stub what is above it.
            return u64::MAX;
        }
        let (start, bytes) = self.pages(first, count);
        let from = start / Self::STRIDE_BYTES;
        let to = (start + bytes).div_ceil(Self::STRIDE_BYTES);
        if bytes == 0 { 0 } else { (u64::MAX >> (LEAF_SLOTS - (to - from))) << from }
    }

    fn wipe(&self, first: usize, count: usize) {
        if count == LEAF_SLOTS {
            let stubs = self.base + Slots::<T, STUB>::THINGS_BYTES;
            let unspent = (0..LEAF_SLOTS).filter(|&slot| !self.leaf.is_spent(slot));
            let highest = unspent.map(|slot| self.tenants.generation(stubs + slot * STUB)).max();
            self.leaf.keep(highest.unwrap_or(0));
        }
        let (start, bytes) = self.pages(first, count);
        // SAFETY: whole pages of the leaf, in which nothing is anybody's.
        unsafe { os::purge(self.base + start, bytes) };
    }
}
