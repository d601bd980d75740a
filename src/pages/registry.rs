//! The registry: address of a chunk -> what is there. It never faults, for any address.
//!
//! Two levels instead of one flat reserved table: a process under `ulimit -v` has no room for a
//! reservation, and only slow paths look here.

use crate::base::fatal;
use crate::lockfree::once::Once;
use crate::lockfree::pool::ALIGN;
use crate::lockfree::table::{self, Table};
use crate::pages::chunk::{CHUNK_BYTES, Chunk};
use crate::pages::descriptors::DescriptorMemory;
use crate::pages::span::{Span, SpanKind};
use core::ops::RangeInclusive;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

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

type Leaf = table::Leaf<LEAF_COUNT>;

const _: () = assert!(align_of::<Leaf>() <= ALIGN, "descriptor memory is aligned for a leaf");

/// What is at an address.
pub enum Backing<'h> {
    /// A chunk of ours.
    Chunk(&'h Chunk),
    /// A mapping of one block.
    Mapping(&'h Span),
}

/// Returns the numbers of the entries for `bytes` from `base`.
fn numbers(base: usize, bytes: usize) -> RangeInclusive<usize> {
    base / CHUNK_BYTES..=(base + bytes - 1) / CHUNK_BYTES
}

/// The registry.
pub struct Registry {
    table: Table<ROOT_COUNT, LEAF_COUNT>,
}

impl Registry {
    /// An empty registry.
    pub const fn new() -> Self {
        Self { table: Table { leaves: [const { Once::new() }; ROOT_COUNT] } }
    }

    /// Returns what is at this address, if it is ours and in use or kept.
    pub fn find(&self, address: usize) -> Option<Backing<'_>> {
        match self.registered(address)? {
            Backing::Mapping(span) if span.kind() == SpanKind::Vacant => None,
            backing => Some(backing),
        }
    }

    /// Returns what is registered at this address: vacancies, too.
    pub fn registered(&self, address: usize) -> Option<Backing<'_>> {
        match self.table.find(address / CHUNK_BYTES) {
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

    /// Returns every registered mapping and vacancy.
    pub fn mappings(&self) -> impl Iterator<Item = &Span> {
        self.table.all().filter_map(|(number, _)| match self.registered(number * CHUNK_BYTES) {
            Some(Backing::Mapping(span)) if span.base() / CHUNK_BYTES == number => Some(span),
            _ => None,
        })
    }

    /// Returns whether there is room for the entries of `bytes` from `base`.
    pub fn is_prepared(&self, base: usize, bytes: usize) -> bool {
        self.table.is_prepared(numbers(base, bytes))
    }

    /// Makes room for the entries of `bytes` from `base`, for the life of the process. `false`: the
    /// system has no more memory.
    pub fn prepare(&self, meta: &DescriptorMemory, base: usize, bytes: usize) -> bool {
        let fresh = || meta.take(size_of::<Leaf>()).map(with_exposed_provenance_mut);
        // SAFETY: zeroed memory is a leaf without entries.
        unsafe { self.table.prepare(numbers(base, bytes), fresh) }
    }

    /// Registers a chunk whose entries have room.
    pub fn add_chunk(&self, chunk: &Chunk) {
        let entry = core::ptr::from_ref(chunk).expose_provenance();
        self.table.set(numbers(chunk.base(), CHUNK_BYTES), entry);
    }

    /// Registers the mapping of a mapped block whose entries have room.
    pub fn add_mapping(&self, span: &Span) {
        let entry = core::ptr::from_ref(span).expose_provenance() | SPAN_BIT;
        self.table.set(numbers(span.base(), span.bytes()), entry);
    }

    /// Looks at every entry; fatal if what it leads to is not at its address. Other threads may
    /// register and forget meanwhile: an entry is written after its descriptor, and goes before it.
    pub fn check(&self) {
        for (number, seen) in self.table.all() {
            let base = number * CHUNK_BYTES;
            let stands_there = || match self.registered(base) {
                None => true,
                Some(Backing::Chunk(chunk)) => chunk.base() == base,
                Some(Backing::Mapping(span)) => span.base() <= base && base < span.end(),
            };
            let is_still_there = || self.table.find(number) == seen;
            if !stands_there() && is_still_there() && !stands_there() {
                fatal::broken("registered address", base, seen);
            }
        }
    }

    /// Forgets what is at these addresses.
    pub fn remove(&self, base: usize, bytes: usize) {
        self.table.set(numbers(base, bytes), 0);
    }
}
