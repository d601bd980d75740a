//! Empty bins, active in threads whose own bins are not: no live header equals their tag, so every
//! allocation and every free takes the slow path.

use crate::blocks::bins::{Bins, Kind};

/// Active before the thread first uses the heap.
pub static UNUSED: Bins = Bins::new(Kind::Unused);
/// Active after the thread has given everything back.
pub static EXITED: Bins = Bins::new(Kind::Exited);
/// Active inside a request that traces its leaks (T4).
pub static TRACED: Bins = Bins::new(Kind::Traced);
