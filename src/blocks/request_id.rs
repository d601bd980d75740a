//! `RequestId`.
#![forbid(unsafe_code)]

use core::fmt;

/// The number of a request, never that of another request of the process.
///
/// Threads draw numbers in batches, so the order of two numbers says which request was opened first
/// only if one thread opened both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// Returns the number itself.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
