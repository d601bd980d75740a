//! The reasons for giving a request up or refusing it memory: texts that do not end the process by
//! themselves. Each is written once, in this file.

use super::line::Line;
use super::line::Value::Count;

/// The beginning of every text about a memory limit.
pub const MEMORY_LIMIT: &str = "memory limit reached";

/// The beginning of every text about a soft limit.
const SOFT_LIMIT: &str = "soft limit reached";

/// A request is at its memory limit or its mark below it, or at that of the `parent` named.
#[cold]
pub fn memory_limit(parent: Option<u64>, limit: usize, in_use: usize, asked: usize) -> Line {
    request_limit(MEMORY_LIMIT, parent, [limit, in_use, asked])
}

/// A request is above its soft limit, or above that of the `parent` named.
#[cold]
pub fn soft_limit(parent: Option<u64>, limit: usize, in_use: usize, asked: usize) -> Line {
    request_limit(SOFT_LIMIT, parent, [limit, in_use, asked])
}

fn request_limit(noun: &str, parent: Option<u64>, bytes: [usize; 3]) -> Line {
    let [limit, in_use, asked] = bytes.map(|bytes| Count(bytes as u64));
    let parent = parent.map(|number| ("parent", Count(number)));
    let values = [("limit", limit), ("in use", in_use), ("asked", asked)];
    Line::of(noun, parent.into_iter().chain(values))
}

/// The process is above its limit, and the request, or the `parent` named, holds much of it.
#[cold]
pub fn process_limit(parent: Option<u64>, limit_bytes: usize, in_use_bytes: usize) -> Line {
    let parent = parent.map(|number| ("parent", Count(number)));
    let (limit, in_use) = (Count(limit_bytes as u64), Count(in_use_bytes as u64));
    Line::of(
        "process limit reached",
        parent.into_iter().chain([("limit", limit), ("in use", in_use)]),
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
