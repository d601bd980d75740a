//! The result of an allocation that took a slow path.

use crate::lockfree::header::{Block, NONE};

/// A block handed out, and whether its payload reads as zero.
#[derive(Clone, Copy)]
pub struct Allocated {
    /// The block; `NONE`: out of memory.
    pub block: Block,
    kind: AllocatedKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AllocatedKind {
    /// A block with arbitrary contents; or no block, for lack of memory.
    Used,
    /// A block that reads as zero.
    Zeroed,
    /// No block: the request is at its limit.
    Refused,
}

const _: () = assert!(size_of::<Allocated>() == 16, "a result is returned in two registers");

impl Allocated {
    // A block and one more scalar word are returned in registers; a third field would go through
    // memory and slow down the fast path that ends with the call.

    /// Out of memory.
    pub const NOTHING: Self = Self { block: NONE, kind: AllocatedKind::Used };
    /// The request is at its limit.
    pub const REFUSED: Self = Self { block: NONE, kind: AllocatedKind::Refused };

    /// A block, and whether it reads as zero.
    pub fn new(block: Block, zeroed: bool) -> Self {
        Self { block, kind: if zeroed { AllocatedKind::Zeroed } else { AllocatedKind::Used } }
    }

    /// Returns the same block with its payload moved up.
    pub fn at(self, payload: Block) -> Self {
        Self { block: payload, ..self }
    }

    /// Returns whether every byte of the block reads as zero.
    pub fn is_zeroed(self) -> bool {
        self.kind == AllocatedKind::Zeroed
    }

    /// Returns whether the allocation failed because of the request's limit rather than for lack of
    /// memory.
    pub fn is_refused(self) -> bool {
        self.kind == AllocatedKind::Refused
    }

    /// A block with arbitrary contents.
    pub fn used(block: Block) -> Self {
        Self::new(block, false)
    }
}
