//! The reasons for giving a request up or refusing it memory: texts that do not end the process by
//! themselves. Each is written once, in this file.

use super::line::Line;
use super::line::Value::Count;

/// The beginning of every text about a memory limit.
pub const MEMORY_LIMIT: &str = "memory limit reached";

/// A request is at its memory limit, or at its mark below it.
#[cold]
pub fn memory_limit(limit_bytes: usize, in_use_bytes: usize, asked_bytes: usize) -> Line {
    Line::of(
        MEMORY_LIMIT,
        [
            ("limit", Count(limit_bytes as u64)),
            ("in use", Count(in_use_bytes as u64)),
            ("asked", Count(asked_bytes as u64)),
        ],
    )
}

/// A limit below the bytes in use was refused.
#[cold]
pub fn limit_below_use(limit_bytes: usize, in_use_bytes: usize) -> Line {
    Line::of(
        "memory limit below what is in use",
        [("limit", Count(limit_bytes as u64)), ("in use", Count(in_use_bytes as u64))],
    )
}

/// The system has no more memory.
#[cold]
pub fn out_of_memory(asked_bytes: usize) -> Line {
    Line::of("out of memory", [("asked", Count(asked_bytes as u64))])
}

/// `count * size + offset` overflows.
#[cold]
pub fn overflow(count: usize, size: usize, offset: usize) -> Line {
    Line::of(
        "integer overflow in an allocation",
        [
            ("count", Count(count as u64)),
            ("size", Count(size as u64)),
            ("offset", Count(offset as u64)),
        ],
    )
}

/// A text of the program's own, truncated if it does not fit.
#[cold]
pub fn reason(text: &str) -> Line {
    Line::of(text, [])
}
