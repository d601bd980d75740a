//! The registry: address of a chunk -> what is there. It never faults, for any address.
//!
//! Two levels instead of one flat reserved table: a process under `ulimit -v` has no room for a
//! reservation, and only slow paths look here.

use crate::base::fatal;
use crate::base::sync::{AtomicPtr, AtomicUsize, Ordering};
use crate::pages::chunk::{CHUNK_BYTES, Chunk};
use crate::pages::descriptors::DescriptorMemory;
use crate::pages::span::Span;
use core::ptr::{null_mut, with_exposed_provenance, with_exposed_provenance_mut};

const ADDRESS_BITS: u32 = 48;
const CHUNK_BITS: u32 = CHUNK_BYTES.ilog2();
const LEAF_BITS: u32 = 12;
const LEAF_COUNT: usize = 1 << LEAF_BITS;
const ROOT_COUNT: usize = 1 << (ADDRESS_BITS - CHUNK_BITS - LEAF_BITS);

const _: () = assert!(
    ROOT_COUNT * LEAF_COUNT * CHUNK_BYTES == 1 << ADDRESS_BITS,
    "the table has an entry for every chunk of the address space"
);

/// Marks an entry that is the span of a mapped block, not a chunk.
const SPAN_BIT: usize = 1;

const _: () = assert!(
    align_of::<Chunk>() > SPAN_BIT && align_of::<Span>() > SPAN_BIT,
    "no address of a descriptor has the bit"
);

type Leaf = [AtomicUsize; LEAF_COUNT];

/// What is at an address.
pub enum Backing<'h> {
    /// A chunk of ours.
    Chunk(&'h Chunk),
    /// A mapping of one block.
    Mapping(&'h Span),
}

/// The registry.
pub struct Registry {
    root: [AtomicPtr<Leaf>; ROOT_COUNT],
}

impl Registry {
    /// An empty registry.
    pub const fn new() -> Self {
        Self { root: [const { AtomicPtr::new(null_mut()) }; ROOT_COUNT] }
    }

    /// Returns what is at this address, if it is ours.
    pub fn find(&self, address: usize) -> Option<Backing<'_>> {
        let number = address / CHUNK_BYTES;
        let leaf = self.root.get(number / LEAF_COUNT)?.load(Ordering::Acquire);
        // SAFETY: leaves are initialised before they are published and never freed.
        let entry = unsafe { leaf.as_ref()? }[number % LEAF_COUNT].load(Ordering::Acquire);
        match entry {
            0 => None,
            span if span & SPAN_BIT != 0 => {
                let span = with_exposed_provenance::<Span>(span & !SPAN_BIT);
                // SAFETY: an entry with the bit is the address of a descriptor (M1).
                Some(Backing::Mapping(unsafe { &*span }))
            }
            // SAFETY: an entry without the bit is the address of a chunk's descriptor (M1).
            chunk => Some(Backing::Chunk(unsafe { &*with_exposed_provenance::<Chunk>(chunk) })),
        }
    }

    /// Returns whether there is room for the entries of `bytes` from `base`.
    pub fn is_prepared(&self, base: usize, bytes: usize) -> bool {
        let last = (base + bytes - 1) / CHUNK_BYTES / LEAF_COUNT;
        (base / CHUNK_BYTES / LEAF_COUNT..=last).all(|index| {
            self.root.get(index).is_some_and(|slot| !slot.load(Ordering::Relaxed).is_null())
        })
    }

    /// Makes room for the entries of `bytes` from `base`, for the life of the process. `false`: the
    /// system has no more memory.
    pub fn prepare(&self, meta: &DescriptorMemory, base: usize, bytes: usize) -> bool {
        let last = (base + bytes - 1) / CHUNK_BYTES / LEAF_COUNT;
        (base / CHUNK_BYTES / LEAF_COUNT..=last).all(|index| self.prepare_leaf(meta, index))
    }

    fn prepare_leaf(&self, meta: &DescriptorMemory, index: usize) -> bool {
        let Some(slot) = self.root.get(index) else { return false };
        if !slot.load(Ordering::Acquire).is_null() {
            return true;
        }
        let Some(fresh) = meta.take(size_of::<Leaf>()) else { return false };
        // Zeroed memory is a leaf without entries. The loser of a race leaves its leaf unused.
        let _ = slot.compare_exchange(
            null_mut(),
            with_exposed_provenance_mut(fresh),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        true
    }

    fn set(&self, base: usize, bytes: usize, entry: usize) {
        for number in base / CHUNK_BYTES..=(base + bytes - 1) / CHUNK_BYTES {
            let Some(slot) = self.root.get(number / LEAF_COUNT) else { return };
            // SAFETY: as in `find`.
            if let Some(leaf) = unsafe { slot.load(Ordering::Acquire).as_ref() } {
                leaf[number % LEAF_COUNT].store(entry, Ordering::Release);
            }
        }
    }

    /// Registers a chunk whose entries have room.
    pub fn add_chunk(&self, chunk: &Chunk) {
        self.set(chunk.base(), CHUNK_BYTES, core::ptr::from_ref(chunk).expose_provenance());
    }

    /// Registers the mapping of a mapped block whose entries have room.
    pub fn add_mapping(&self, span: &Span) {
        let entry = core::ptr::from_ref(span).expose_provenance() | SPAN_BIT;
        self.set(span.base(), span.bytes(), entry);
    }

    /// Looks at every entry; fatal if what it leads to is not at its address. Other threads may
    /// register and forget meanwhile: an entry is written after its descriptor, and goes before it.
    pub fn check(&self) {
        for (index, slot) in self.root.iter().enumerate() {
            // SAFETY: as in `find`.
            let Some(leaf) = (unsafe { slot.load(Ordering::Acquire).as_ref() }) else { continue };
            for (place, entry) in leaf.iter().enumerate() {
                let seen = entry.load(Ordering::Acquire);
                let base = (index * LEAF_COUNT + place) * CHUNK_BYTES;
                let stands_there = || match self.find(base) {
                    None => true,
                    Some(Backing::Chunk(chunk)) => chunk.base() == base,
                    Some(Backing::Mapping(span)) => span.base() <= base && base < span.end(),
                };
                let is_still_there = || entry.load(Ordering::Acquire) == seen;
                if !stands_there() && is_still_there() && !stands_there() {
                    fatal::broken("registered address", base, seen);
                }
            }
        }
    }

    /// Forgets what is at these addresses.
    pub fn remove(&self, base: usize, bytes: usize) {
        self.set(base, bytes, 0);
    }
}
