//! What a thread does with blocks.

use crate::model::{Block, lock, persistent_vec};
use crate::options::with;
use crate::worker::{OWN_COUNT, SLOT_COUNT, Worker};
use rqmalloc::persistent;
use std::sync::Mutex;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Every size in a request that traces leaks is this much above a multiple of 16, so that a report
/// of any other size is wrong.
pub const TRACED_REMAINDER: usize = 5;

impl Worker {
    /// Draws a size: small ones far more often than those with pages of their own, and those more
    /// often than those with a mapping of their own.
    pub fn size(&mut self, is_traced: bool) -> usize {
        let size = match self.below(400) {
            0 if with("large") => MIB + 9 + self.below(5 * MIB),
            1..8 if with("large") => 40 * KIB + self.below(984 * KIB),
            8..80 => self.random.size(40_000),
            _ => self.random.size(2_000),
        };
        if is_traced { size / 16 * 16 + TRACED_REMAINDER } else { size }
    }

    pub fn allocate(&mut self) -> Option<Block> {
        let owner = self.active();
        let size = self.size(owner.as_ref().is_some_and(|owner| owner.is_traced));
        let align = match self.below(30) {
            0 => 1 << self.below(15),
            _ => 1 << self.below(5),
        };
        self.pattern += 1;
        let zeroed = self.below(8) == 0;
        self.digest ^= size as u64;
        Block::new(size, align, self.pattern, &owner, zeroed)
    }

    pub fn keep(&mut self, block: Block) {
        if self.own.len() < OWN_COUNT {
            return self.own.push(block);
        }
        let index = self.below(OWN_COUNT);
        std::mem::replace(&mut self.own[index], block).free();
    }

    fn take_own(&mut self) -> Option<Block> {
        if self.own.is_empty() {
            return None;
        }
        let index = self.below(self.own.len());
        Some(self.own.swap_remove(index))
    }

    fn slot(&mut self) -> &Mutex<Option<Block>> {
        let index = self.random.below(SLOT_COUNT);
        &self.shared.slots[index]
    }

    /// Takes a block that another thread put there, wherever it allocated it.
    fn take_foreign(&mut self) -> Option<Block> {
        lock(self.slot()).take()
    }

    pub fn put(&mut self, block: Block) {
        let before = lock(self.slot()).replace(block);
        before.into_iter().for_each(Block::free);
    }

    pub fn resize(&mut self, block: &mut Block) {
        let is_foreign = block.owner().as_ref().is_some_and(|owner| !self.is_inside(owner));
        if is_foreign && !with("growth") {
            return;
        }
        let size = self.size(block.is_traced());
        block.resize(size);
    }

    pub fn block_action(&mut self) {
        match self.below(20) {
            0..6 => {
                if let Some(block) = self.allocate() {
                    self.keep(block);
                }
            }
            6..9 => {
                if let Some(block) = self.take_own() {
                    block.free();
                }
            }
            9..11 => {
                if let Some(mut block) = self.take_own() {
                    self.resize(&mut block);
                    self.keep(block);
                }
            }
            11..14 => {
                if let Some(block) = self.allocate() {
                    self.put(block);
                }
            }
            14 | 15 => {
                if let Some(mut block) = self.take_foreign() {
                    self.resize(&mut block);
                    self.keep(block);
                }
            }
            16 => {
                if let Some(block) = self.take_foreign() {
                    if self.below(2) == 0 { block.free() } else { persistent(|| block.free()) }
                }
            }
            17 => self.batch(),
            18 => self.under_the_lock(),
            _ => self.rarer(),
        }
    }

    fn rarer(&mut self) {
        match self.below(4) {
            0 if with("persist") => {
                if let Some(mut block) = self.take_own() {
                    block.persist();
                    self.keep(block);
                }
            }
            1 if with("growth") => self.grow_step_by_step(),
            2 => self.reserve(),
            _ => {
                if let Some(block) = self.take_own() {
                    self.put(block);
                }
            }
        }
    }

    /// Allocates many blocks of one class and frees them at once: more than a bin keeps.
    fn batch(&mut self) {
        let owner = self.active();
        let size = self.random.size(2_000) / 16 * 16 + TRACED_REMAINDER;
        let mut batch = persistent_vec(120);
        for _ in 0..self.below(120) {
            self.pattern += 1;
            batch.extend(Block::new(size, 8, self.pattern, &owner, false));
        }
        batch.into_iter().for_each(Block::free);
    }

    /// Takes the lock that callbacks take, too: an allocation does not run them.
    fn under_the_lock(&mut self) {
        let shared = self.shared.clone();
        let Ok(mut guarded) = shared.guarded.try_lock() else { return };
        *guarded += 1;
        for _ in 0..self.below(10) {
            match self.below(3) {
                0 => {
                    if let Some(block) = self.allocate() {
                        self.keep(block);
                    }
                }
                1 => {
                    if let Some(block) = self.take_own() {
                        block.free();
                    }
                }
                _ => {
                    if let Some(mut block) = self.take_foreign() {
                        self.resize(&mut block);
                        self.keep(block);
                    }
                }
            }
        }
    }

    /// Grows a block as a vector does that somebody outside pushes to.
    fn grow_step_by_step(&mut self) {
        let Some(mut block) = self.take_foreign() else { return };
        let mut size = 16 + TRACED_REMAINDER;
        let end = if with("large") { self.size(true).max(40 * KIB) } else { 20 * KIB };
        while size < end {
            if !block.resize(size) {
                break;
            }
            size = (size * 2) / 16 * 16 + TRACED_REMAINDER;
        }
        self.put(block);
    }

    /// Asks as safe code does that is ready for a refusal.
    fn reserve(&mut self) {
        let owner = self.active();
        let is_limited = |owner: &std::sync::Arc<crate::model::Tracked>| {
            owner.is_limited.load(std::sync::atomic::Ordering::Relaxed)
        };
        let size = self.size(true);
        let mut bytes: Vec<u8> = Vec::new();
        let refused = bytes.try_reserve_exact(size).is_err();
        assert!(!refused || owner.as_ref().is_some_and(is_limited), "{size} bytes were refused");
        if self.below(20) == 0 {
            assert!(bytes.try_reserve_exact(1 << 50).is_err());
        }
    }
}
