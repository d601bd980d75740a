//! What the models share: memory that notices two accesses that are not ordered.

use crate::base::sync::{AtomicU64, Ordering};
use crate::lockfree::header::{Block, Header, Memory};
use crate::lockfree::state::Callbacks;
use loom::cell::UnsafeCell;

/// Runs `scenario` in every interleaving with at most this many preemptions, and with every value
/// that a relaxed load may see.
pub fn explore(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(scenario);
}

/// Stands for the crate's plain memory. An access that is not ordered with every conflicting one
/// before it stops the model with "Causality violation".
pub struct Plain<T>(UnsafeCell<T>);

// SAFETY: loom panics at the first pair of conflicting accesses that nothing orders, so no two
// references ever overlap.
unsafe impl<T: Send> Sync for Plain<T> {}

impl<T> Plain<T> {
    /// Memory with `value` in it.
    pub fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads it.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        // SAFETY: the pointer is valid, and loom has just checked that no write overlaps.
        self.0.with(|value| look(unsafe { &*value }))
    }

    /// Writes it.
    pub fn write<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the pointer is valid, and loom has just checked that nothing overlaps.
        self.0.with_mut(|value| change(unsafe { &mut *value }))
    }
}

struct Words {
    header: AtomicU64,
    payload: Plain<Block>,
}

/// Some blocks: each has a header and a payload of one word, which is the link while the block is
/// free.
pub struct Blocks(Box<[Words]>);

const BLOCK_BYTES: usize = 16;
/// Above what the words of lists take for no block.
const LOWEST: usize = 2;

impl Blocks {
    /// Makes `count` blocks with this header.
    pub fn new(count: usize, header: Header) -> Self {
        let words = |_| Words { header: AtomicU64::new(header.0), payload: Plain::new(0) };
        Self((0..count).map(words).collect())
    }

    /// Returns the block with this index.
    pub fn block(&self, index: usize) -> Block {
        assert!(index < self.0.len(), "block {index} of {}", self.0.len());
        (index + LOWEST) * BLOCK_BYTES
    }

    /// Returns the index of a block.
    pub fn index(&self, block: Block) -> usize {
        block / BLOCK_BYTES - LOWEST
    }

    /// Writes to the payload, as a live block's owner does, and so does a thread that gives its
    /// page away.
    pub fn use_payload(&self, block: Block) {
        self.words(block).payload.write(|word| *word = Block::MAX);
    }

    /// Returns the header as it is now.
    pub fn look(&self, block: Block) -> Header {
        Header(self.header(block).load(Ordering::Relaxed))
    }

    fn words(&self, block: Block) -> &Words {
        &self.0[self.index(block)]
    }
}

impl Memory for Blocks {
    fn header(&self, block: Block) -> &AtomicU64 {
        &self.words(block).header
    }

    fn link(&self, block: Block) -> Block {
        self.words(block).payload.read(|word| *word)
    }

    fn set_link(&self, block: Block, next: Block) {
        self.words(block).payload.write(|word| *word = next);
    }
}

/// What a request has whose user gave it no callbacks.
pub struct NoCallbacks;

impl Callbacks for NoCallbacks {
    fn is_empty(&self) -> bool {
        true
    }

    fn run(&self) {}
}
