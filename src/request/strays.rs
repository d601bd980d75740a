//! Strays: blocks that come back to a request from outside its lanes.

use super::lane::Lane;
use super::stub::Stub;
use crate::blocks::memory::Raw;
use crate::lockfree::lifetime::settle_stray;
use crate::lockfree::stray::Chain;

impl Stub {
    /// Takes all strays into a lane's bins, if there are any. The caller is inside the request.
    #[inline]
    pub fn drain_into(&self, lane: &Lane) -> bool {
        let has_strays = !self.strays.is_empty();
        if has_strays {
            self.absorb(lane, self.strays.drain(self.state.look().generation()));
        }
        has_strays
    }

    /// Takes all strays and refuses every later one.
    pub fn close_strays(&self) -> Chain {
        self.strays.close(self.state.look().generation())
    }

    /// Takes a chain of strays into a lane's bins.
    #[inline]
    pub fn absorb(&self, lane: &Lane, chain: Chain) {
        if !chain.is_empty() {
            self.absorb_some(lane, chain);
        }
    }

    #[cold]
    fn absorb_some(&self, lane: &Lane, chain: Chain) {
        let (mut count, mut bytes) = (0, 0);
        for block in chain.blocks(&Raw) {
            settle_stray(&Raw, block);
            count += 1;
            bytes += lane.absorb(block).stride_bytes();
        }
        self.pending().take(count, bytes);
    }
}
