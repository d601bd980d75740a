//! Holes: free memory between the blocks of an adopted span, found by walking. A word before it,
//! where a block would have its header, says how long it is.
//!
//! - **H6** Whoever finds a hole sees what everybody did with the memory before it was left.
//! - **H7** Whoever finds that a live block has become shorter finds headers behind it.

use crate::base::sync::Ordering;
use crate::lockfree::header::{ALIGNED, Block, Header, ID_MASK, LARGE, Memory, SWEPT};

/// No header of a block has both flags.
const HOLE: u64 = ALIGNED | SWEPT;
/// Blocks of a request are cut from the hole, behind its word.
const IN_USE: u64 = LARGE;

/// Free memory between the blocks of an adopted span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// Its length, the word included.
    pub bytes: usize,
    /// Whether a request cuts from it: then blocks follow the word.
    pub is_in_use: bool,
}

impl Hole {
    /// Bytes of a hole before the first block that is cut from it.
    pub const WORD_BYTES: usize = 16;

    /// The word before it.
    pub const fn word(self) -> Header {
        let in_use = if self.is_in_use { IN_USE } else { 0 };
        Header::tag(self.bytes as u64, HOLE | in_use)
    }

    /// What a word says, if it is one of a hole.
    pub const fn of(word: Header) -> Option<Self> {
        if word.0 & !ID_MASK & !IN_USE != HOLE {
            return None;
        }
        Some(Self { bytes: word.id() as usize, is_in_use: word.has(IN_USE) })
    }
}

/// Leaves a hole where `block` would begin: its memory is whoever's finds it.
pub fn leave_hole<M: Memory>(memory: &M, block: Block, hole: Hole) {
    memory.header(block).store(hole.word().0, Ordering::Release);
}

/// Makes a live block of the caller's shorter, by its header. What it loses has headers already
/// (H7).
pub fn shorten<M: Memory>(memory: &M, block: Block, shorter: Header) {
    memory.header(block).store(shorter.0, Ordering::Release);
}

/// Reads the word before a block or a hole (H6, H7).
pub fn look<M: Memory>(memory: &M, block: Block) -> Header {
    Header(memory.header(block).load(Ordering::Acquire))
}
