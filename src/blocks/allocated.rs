//! What an allocation that took a slow way comes back with.

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
    /// A block whose bytes may be anything, or none: out of memory.
    Used,
    /// A block that reads as zero.
    Zeroed,
    /// None: the request is at its limit.
    Refused,
}

const _: () = assert!(size_of::<Allocated>() == 16, "an answer comes back in two registers");

impl Allocated {
    // A block and one more word of a scalar type come back in registers; a third field would go by
    // memory, and cost the fast path that ends with the call.

    /// Out of memory.
    pub const NOTHING: Self = Self { block: NONE, kind: AllocatedKind::Used };
    /// The request is at its limit.
    pub const REFUSED: Self = Self { block: NONE, kind: AllocatedKind::Refused };

    /// A block, and whether it reads as zero.
    pub fn new(block: Block, zeroed: bool) -> Self {
        Self { block, kind: if zeroed { AllocatedKind::Zeroed } else { AllocatedKind::Used } }
    }

    /// The same block with its payload moved up.
    pub fn at(self, payload: Block) -> Self {
        Self { block: payload, ..self }
    }

    /// Whether every byte of it reads as zero.
    pub fn is_zeroed(self) -> bool {
        self.kind == AllocatedKind::Zeroed
    }

    /// Whether there is none since its request is at its limit, not since there is no memory.
    pub fn is_refused(self) -> bool {
        self.kind == AllocatedKind::Refused
    }

    /// A block whose bytes may be anything.
    pub fn used(block: Block) -> Self {
        Self::new(block, false)
    }
}
