//! The figure of what a request has, or had, somewhere else.

use crate::lockfree::counted::CountedBytes;

/// The figure of one request.
#[derive(Clone, Copy)]
pub struct Pending<'f> {
    figure: &'f CountedBytes,
    generation: u32,
}

impl<'f> Pending<'f> {
    /// That of the request with this generation.
    pub fn new(figure: &'f CountedBytes, generation: u32) -> Self {
        Self { figure, generation }
    }

    /// Blocks leave the bins.
    pub fn add(self, blocks: usize, bytes: usize) {
        self.figure.add(self.generation, blocks, bytes);
    }

    /// Blocks are in bins again.
    pub fn take(self, blocks: usize, bytes: usize) {
        self.figure.take(self.generation, blocks, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::size_class::Class;
    use crate::base::sync::AtomicU64;

    #[test]
    fn blocks_and_bytes_share_a_word() {
        let figure = CountedBytes(AtomicU64::new(0));
        figure.open(7);
        for class in Class::all() {
            figure.add(7, 1, class.stride_bytes());
            assert_eq!(figure.figures(), (1, class.stride_bytes() as isize), "every stride fits");
            figure.take(7, 1, class.stride_bytes());
        }
        figure.add(7, 3, 96);
        figure.add(7, 2, 64);
        figure.take(7, 3, 96);
        assert_eq!(figure.figures(), (2, 64));
    }

    #[test]
    fn what_comes_too_late_changes_nothing() {
        let figure = CountedBytes(AtomicU64::new(0));
        figure.open(7);
        figure.add(6, 1, 16);
        figure.take(6, 1, 16);
        assert_eq!(figure.figures(), (0, 0));
        figure.open(8);
        figure.add(7, 1, 16);
        assert_eq!(figure.figures(), (0, 0));
        figure.take(8, 1, 16);
        assert_eq!(figure.figures(), (0, 0), "never negative");
    }
}
