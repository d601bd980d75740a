//! How a block that shares its span comes back from outside its request, and how it changes its
//! lifetime while it may.
//!
//! The header decides between one thread that frees a block and one that closes its request or
//! persists the block. Each of them changes it by a compare-and-swap from the value that was judged
//! (H5), so exactly one of them is first, and the other sees what the first one did:
//!
//! | before | after | by whom | what follows |
//! |---|---|---|---|
//! | live | live, freed | a free, the list being open | it pushes the block |
//! | live, freed | live, freed, late | the same, its push refused: "I have let go" | the closer makes a hole |
//! | live | live, freed, late | a free, the list being closed | the closer makes a hole |
//! | live | persistent | who adopts | its free is that of a persistent block |
//! | live, freed | persistent, freed | the closer | the free that claimed it frees it as a persistent one |
//!
//! A thread that persists a block is inside the request or visits it (`state`), so never while it
//! is closed; where a free has claimed the block it lets it be.

use crate::base::sync::Ordering;
use crate::lockfree::header::{Block, FREED, Header, LATE, LIVE, Memory, OF_ADOPTED, OF_LIVE};
use crate::lockfree::stray::{Refusal, StrayList};
use crate::lockfree::token::AdoptedCount;

/// What became of a free from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeOutside {
    /// The block is on the request's list.
    Pushed,
    /// The block is left to the thread that closes the request.
    Left,
    /// The block is persistent by now, and the caller's to free as such: its header does not change
    /// any more.
    Adopted,
    /// The header is another one now: to be judged anew.
    Changed,
    /// The request that the header names is over, and the block was freed with it.
    Ended,
}

/// Frees a block from outside the lanes of its request. `judged` is its header, which was live.
pub fn free_outside<M: Memory>(
    memory: &M,
    block: Block,
    judged: Header,
    list: &StrayList,
    generation: u32,
) -> FreeOutside {
    let refusal = list.look(generation);
    let header = memory.header(block);
    if let Some(refusal) = refusal {
        let late = judged.with(FREED | LATE);
        return match (
            header.compare_exchange(judged.0, late.0, Ordering::Release, Ordering::Relaxed),
            refusal,
        ) {
            (Ok(_), Refusal::Closed) => FreeOutside::Left,
            (Ok(_), Refusal::OtherRequest) => FreeOutside::Ended,
            (Err(_), _) => FreeOutside::Changed,
        };
    }
    let claimed = judged.with(FREED);
    if header.compare_exchange(judged.0, claimed.0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return FreeOutside::Changed;
    }
    if list.push(memory, generation, block).is_ok() {
        return FreeOutside::Pushed;
    }
    let late = claimed.with(LATE);
    match header.compare_exchange(claimed.0, late.0, Ordering::Release, Ordering::Relaxed) {
        Ok(_) => FreeOutside::Left,
        Err(_) => FreeOutside::Adopted,
    }
}

/// What an attempt to adopt a block found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adoption {
    /// The block was not live.
    NotLive,
    /// The block is persistent now. Whoever frees it may do so at once.
    Adopted,
    /// A free from outside has let go of it: it is a hole.
    Hole,
}

/// Makes a live block persistent, in place, while its request is closed: no free from outside can
/// push any more. `persistent` is the tag of persistent blocks.
pub fn adopt_at_close<M: Memory>(memory: &M, block: Block, persistent: Header) -> Adoption {
    let header = memory.header(block);
    // After what a free from outside did that has let go of it.
    let mut seen = header.load(Ordering::Acquire);
    loop {
        let found = Header(seen);
        if !found.has(LIVE) {
            return Adoption::NotLive;
        }
        if found.has(LATE) {
            return Adoption::Hole;
        }
        let adopted = adopted(found, persistent);
        match header.compare_exchange(seen, adopted.0, Ordering::Relaxed, Ordering::Acquire) {
            Ok(_) => return Adoption::Adopted,
            Err(now) => seen = now,
        }
    }
}

/// Makes a live block persistent, in place, by a thread that is inside its request or visits it. It
/// is counted in its span first: once it is persistent it may be reaped. `false`: the header is not
/// the one that was judged any more, since somebody frees the block, and it is to be counted off
/// again.
pub fn persist<M: Memory>(
    memory: &M,
    count: &AdoptedCount,
    block: Block,
    judged: Header,
    persistent: Header,
) -> bool {
    count.add(1);
    let adopted = adopted(judged, persistent);
    let header = memory.header(block);
    header.compare_exchange(judged.0, adopted.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// The header that a block has when it is persistent.
fn adopted(found: Header, persistent: Header) -> Header {
    persistent.with_class(found.class_index()).with(found.0 & OF_ADOPTED)
}

/// Last step of a free from outside, by whoever drained the block: it is an ordinary free one (H3).
pub fn settle_stray<M: Memory>(memory: &M, block: Block) {
    let header = memory.header(block);
    let settled = Header(header.load(Ordering::Relaxed)).without(OF_LIVE);
    header.store(settled.0, Ordering::Relaxed);
}
