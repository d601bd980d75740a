//! Whether the thread is inside std's backtrace code, which holds std's lock for backtraces.
//!
//! Refusing an allocation there ends in a hang, not in an abort: std's hook for failed allocations
//! takes the same lock, whatever `RUST_BACKTRACE` says (in Rust 1.95; in 1.85 it did not). So a
//! request's memory limit is suspended there, as it is while the thread panics.

use crate::base::unwinder;
use core::fmt::{Debug, Display, Formatter, Result};
use std::backtrace::Backtrace;

/// Most frames that are looked at, from the allocator outwards. std's own went 27 deep in the
/// programs measured, plus one per level of inlined functions that is parsed; callers go as deep as
/// they like. A frame costs a tenth of a microsecond.
const MAX_FRAMES: usize = 128;

type Format = fn(&Backtrace, &mut Formatter<'_>) -> Result;
type Capture = fn() -> Backtrace;

/// The functions that take the lock and allocate under it. Each has a frame of its own: std finds
/// the frames of its `capture` and `force_capture` by the same comparison, and the two that format
/// are large and have their addresses taken here besides being called.
fn entrances() -> [usize; 4] {
    [
        <Backtrace as Display>::fmt as Format as usize,
        <Backtrace as Debug>::fmt as Format as usize,
        Backtrace::capture as Capture as usize,
        Backtrace::force_capture as Capture as usize,
    ]
}

/// Returns whether this thread is capturing or formatting a `std::backtrace::Backtrace`. Takes no
/// lock and allocates nothing, but walks the stack: meant for the moment before an allocation is
/// refused.
///
/// `false` where the unwinder's tables do not name every function (macOS).
#[cold]
pub fn is_symbolizing() -> bool {
    if cfg!(any(miri, not(target_os = "linux"), feature = "preload")) {
        return false;
    }
    let entrances = entrances();
    let (mut left, mut is_found) = (MAX_FRAMES, false);
    unwinder::walk(|frame| {
        is_found = entrances.contains(&frame.function());
        left -= 1;
        is_found || left == 0
    });
    is_found
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;
    use std::format;

    /// Asks whenever something is written to it.
    #[derive(Default)]
    struct Asks {
        yes: usize,
        no: usize,
    }

    impl Write for Asks {
        fn write_str(&mut self, _text: &str) -> Result {
            if is_symbolizing() {
                self.yes += 1;
            } else {
                self.no += 1;
            }
            Ok(())
        }
    }

    #[inline(never)]
    fn below(depth: usize, f: &mut dyn FnMut()) {
        if depth == 0 {
            f();
        } else {
            below(depth - 1, f);
        }
        core::hint::black_box(depth);
    }

    #[test]
    #[cfg_attr(any(miri, not(target_os = "linux"), feature = "preload"), ignore)]
    fn whoever_formats_a_backtrace_is_inside_until_it_is_done() {
        let trace = Backtrace::force_capture();
        assert!(!is_symbolizing());
        let mut asks = Asks::default();
        write!(asks, "{trace}").unwrap();
        assert!(asks.yes > 0 && asks.no == 0, "{} {}", asks.yes, asks.no);
        let mut asks = Asks::default();
        write!(asks, "{trace:?}").unwrap();
        assert!(asks.yes > 0 && asks.no == 0, "{} {}", asks.yes, asks.no);
        assert!(!is_symbolizing());
        // The formatted text is not a backtrace.
        let text = format!("{trace}");
        let mut asks = Asks::default();
        write!(asks, "{text}").unwrap();
        assert!(asks.yes == 0 && asks.no > 0, "{} {}", asks.yes, asks.no);
    }

    #[test]
    fn a_deep_stack_is_looked_at_no_further_than_need_be() {
        let mut was_inside = true;
        below(10_000, &mut || was_inside = is_symbolizing());
        assert!(!was_inside);
    }
}
