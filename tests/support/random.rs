//! Numbers that only look random, the same in every run.

/// Numbers that only look random.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Returns a size, small ones far more often than large ones.
    pub fn size(&mut self, max: usize) -> usize {
        let bits = max.ilog2() as usize;
        let power = self.below(bits + 1).min(self.below(bits + 1));
        (1 + self.below(2 << power)).min(max)
    }
}
