//! Bins without blocks, for threads that have none of their own that are active: no live header equals
//! their tags, so every allocation and every free goes the slow way.

use crate::blocks::bin::{Bins, Kind};

/// Before the first use of the heap.
pub static UNUSED: Bins = Bins::new(Kind::Unused);
/// After the thread has given everything back.
pub static EXITED: Bins = Bins::new(Kind::Exited);
/// In a request that traces its leaks.
pub static TRACED: Bins = Bins::new(Kind::Traced);
