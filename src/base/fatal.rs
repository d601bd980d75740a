//! Misuse of memory ends the process at once with one exact line.
//!
//! `rqmalloc: <noun phrase> (<key value, ...>)` is written to standard error from a stack buffer,
//! followed by `abort()`. Nothing here allocates, panics or unwinds: the heap may be broken and any
//! lock may be held. Every fatal text is in this file, once.

use super::line::Line;
use super::line::Value::{self, Address, Count, Text, Word};

/// Ends the process with this line.
#[cold]
#[inline(never)]
pub fn die_of(line: &Line) -> ! {
    line.print();
    // SAFETY: always callable.
    unsafe { libc::abort() }
}

#[cold]
#[inline(never)]
fn die(noun: &str, values: &[(&str, Value<'_>)]) -> ! {
    die_of(&Line::of(noun, values.iter().copied()))
}

/// A block that is not live was freed.
#[cold]
pub fn double_free(address: usize) -> ! {
    die("double free", &[("address", Address(address))])
}

/// A live block was freed with a `Layout` of another class than its own.
#[cold]
pub fn another_layout(address: usize, capacity: usize, size: usize) -> ! {
    die(
        "freed with another layout",
        &[
            ("address", Address(address)),
            ("capacity", Count(capacity as u64)),
            ("size", Count(size as u64)),
        ],
    )
}

/// An address was freed that is no block of this allocator.
#[cold]
pub fn not_a_block(address: usize) -> ! {
    die("not a block of this allocator", &[("address", Address(address))])
}

/// A block was freed after its request had ended.
#[cold]
pub fn ended_request(address: usize, request: Option<u64>, name: Option<&str>) -> ! {
    let request = request.map_or(Text("of long ago"), Count);
    let values = [
        ("address", Address(address)),
        ("request", request),
        ("name", Text(name.unwrap_or_default())),
    ];
    let count = if name.is_some() { values.len() } else { values.len() - 1 };
    die("block of an ended request", values.get(..count).unwrap_or_default())
}

/// The word before a payload is not one that this allocator writes: something overwrote it.
#[cold]
pub fn header_overwritten(address: usize, header: u64) -> ! {
    die("header overwritten", &[("address", Address(address)), ("header", Word(header))])
}

/// The operating system refused a call for a reason that only a bug in this allocator explains.
#[cold]
pub fn system_call(call: &'static str, error: i32) -> ! {
    die(
        "system call failed",
        &[("call", Text(call)), ("errno", Count(error.unsigned_abs().into()))],
    )
}

/// A `check()` walk found a structure that contradicts itself.
#[cold]
pub fn broken(invariant: &'static str, left: usize, right: usize) -> ! {
    die(
        "broken invariant",
        &[("name", Text(invariant)), ("left", Count(left as u64)), ("right", Count(right as u64))],
    )
}

/// A signal handler allocates or frees, having interrupted a critical section of its thread.
#[cold]
pub fn interrupted() -> ! {
    die("allocation in a signal handler that interrupted the allocator", &[])
}

/// A block was freed or resized as one of the other family.
#[cold]
pub fn wrong_family(address: usize, is_persistent: bool) -> ! {
    let (is, freed_as) =
        if is_persistent { ("persistent", "request") } else { ("of a request", "persistent") };
    let values = [("address", Address(address)), ("block", Text(is)), ("freed as", Text(freed_as))];
    die("wrong family", &values)
}

/// A handle of a request was used that had been given back.
#[cfg(feature = "capi")]
#[cold]
pub fn handle_given_back(call: &str) -> ! {
    die("handle of a request that is over", &[("call", Text(call))])
}

/// A function that needs an open request was called without one.
#[cfg(feature = "capi")]
#[cold]
pub fn no_request(call: &str) -> ! {
    die("no request is open", &[("call", Text(call))])
}

/// A function was called that needs what the thread gave back when it exited.
#[cfg(feature = "capi")]
#[cold]
pub fn thread_has_exited(call: &str) -> ! {
    die("thread has exited", &[("call", Text(call))])
}

/// `rq_persistent_off` without `rq_persistent_on`.
#[cfg(feature = "capi")]
#[cold]
pub fn not_persistent() -> ! {
    die("persistent off without on", &[])
}

/// A bailout that nothing catches.
#[cfg(feature = "capi")]
#[cold]
pub fn no_try(reason: &str) -> ! {
    die("bailout without a try", &[("reason", Text(reason))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::dying::last_words;
    use std::format;

    /// A call that ends the process, and what it prints.
    type Text = (fn(), &'static str);

    const TEXTS: &[Text] = &[
        (|| double_free(0x10), "double free (address 0x10)"),
        (
            || another_layout(0x10, 24, 100),
            "freed with another layout (address 0x10, capacity 24, size 100)",
        ),
        (|| not_a_block(0x10), "not a block of this allocator (address 0x10)"),
        (
            || ended_request(0x10, None, None),
            "block of an ended request (address 0x10, request of long ago)",
        ),
        (
            || ended_request(0x10, Some(7), None),
            "block of an ended request (address 0x10, request 7)",
        ),
        (
            || ended_request(0x10, Some(7), Some("GET /")),
            "block of an ended request (address 0x10, request 7, name GET /)",
        ),
        (|| header_overwritten(0x10, 0xff), "header overwritten (address 0x10, header 0xff)"),
        (|| system_call("munmap", 22), "system call failed (call munmap, errno 22)"),
        (|| broken("bin count", 1, 2), "broken invariant (name bin count, left 1, right 2)"),
        (|| interrupted(), "allocation in a signal handler that interrupted the allocator"),
        (
            || wrong_family(0x10, true),
            "wrong family (address 0x10, block persistent, freed as request)",
        ),
        (
            || wrong_family(0x10, false),
            "wrong family (address 0x10, block of a request, freed as persistent)",
        ),
    ];

    #[cfg(feature = "capi")]
    const TEXTS_OF_C: &[Text] = &[
        (|| handle_given_back("rq_enter"), "handle of a request that is over (call rq_enter)"),
        (|| no_request("rq_emalloc"), "no request is open (call rq_emalloc)"),
        (|| thread_has_exited("rq_try"), "thread has exited (call rq_try)"),
        (|| not_persistent(), "persistent off without on"),
        (|| no_try("too much"), "bailout without a try (reason too much)"),
    ];
    #[cfg(not(feature = "capi"))]
    const TEXTS_OF_C: &[Text] = &[];

    #[test]
    fn every_text_is_one_exact_line() {
        for (die, text) in TEXTS.iter().chain(TEXTS_OF_C) {
            let (said, status) = last_words(die);
            assert_eq!(said, format!("rqmalloc: {text}\n"));
            assert_eq!(libc::WTERMSIG(status), libc::SIGABRT, "{text}");
        }
    }

    #[test]
    fn no_text_is_left_out_here() {
        let (file, tests) = include_str!("fatal.rs").split_once("#[cfg(test)]").unwrap();
        let functions = file.split("\npub fn ").skip(1).map(|rest| rest.split('(').next().unwrap());
        for function in functions.filter(|&function| function != "die_of") {
            assert!(tests.contains(&format!("|| {function}(")), "{function} is not tested");
        }
    }
}
