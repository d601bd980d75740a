//! `RequestId`.
#![forbid(unsafe_code)]

use super::identity::Serial;
use core::fmt;

/// Which request: never that of another request of the process.
///
/// It is printed as two numbers, `3.17`: a request's control block is used again by later requests, and
/// the second number counts them. So the order of two ids says nothing of which request was opened first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub(crate) Serial);

impl RequestId {
    /// Both numbers in one.
    pub fn get(self) -> u64 {
        self.0.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.index(), self.0.generation())
    }
}
