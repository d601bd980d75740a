//! Misuse of memory ends the process at once with one exact line.
//!
//! `rqmalloc: <noun phrase> (<key value, ...>)` goes to standard error by one `write` from a stack
//! buffer, then `abort()`. Nothing here allocates, panics or unwinds: the heap may be broken and
//! any lock may be held. Each text stands once, in this file, also those of failures that a request
//! can be left for instead.

use crate::base::system_call::write_to_standard_error;

/// A value in the brackets of a fatal line.
#[derive(Clone, Copy)]
enum Value<'t> {
    Address(usize),
    Count(u64),
    Word(u64),
    Text(&'t str),
}

/// Longest line that is written; a longer one is cut, never lost.
const LINE_BYTES: usize = 256;

/// What is wrong, in a buffer of its own.
#[derive(Clone, Copy)]
pub struct Line {
    text: [u8; LINE_BYTES],
    length: usize,
}

impl Line {
    /// No text.
    pub const EMPTY: Self = Self { text: [0; LINE_BYTES], length: 0 };

    fn of<'t>(noun: &str, values: impl IntoIterator<Item = (&'t str, Value<'t>)>) -> Self {
        let mut line = Self::EMPTY;
        line.text(noun);
        let mut before = " (";
        for (key, value) in values {
            line.text(before);
            line.text(key);
            line.push(b' ');
            line.value(value);
            before = ", ";
        }
        if before == ", " {
            line.push(b')');
        }
        line
    }

    /// Writes the text to standard error, as a line.
    pub fn print(&self) {
        let mut whole = Self::EMPTY;
        whole.text("rqmalloc: ");
        whole.text(self.as_str());
        whole.text[whole.length] = b'\n';
        let with_end = whole.text.get(..=whole.length).unwrap_or_default();
        write_to_standard_error(with_end);
    }

    /// The text, and a 0 behind it.
    #[cfg(feature = "capi")]
    pub fn as_ptr(&self) -> *const u8 {
        self.text.as_ptr()
    }

    /// The text. A character that the buffer's end has cut is left out.
    pub fn as_str(&self) -> &str {
        valid_part(self.text.get(..self.length).unwrap_or_default())
    }

    fn push(&mut self, byte: u8) {
        // The last byte stays 0: the text is one of C too.
        if self.length + 1 < LINE_BYTES {
            self.text[self.length] = byte;
            self.length += 1;
        }
    }

    fn text(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.push(byte));
    }

    fn number(&mut self, mut value: u64, base: u64) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0u8; 20];
        let mut used = 0;
        loop {
            if let (Some(slot), Some(&digit)) =
                (digits.get_mut(used), DIGITS.get((value % base) as usize))
            {
                *slot = digit;
            }
            used += 1;
            value /= base;
            if value == 0 {
                break;
            }
        }
        digits.iter().take(used).rev().for_each(|&digit| self.push(digit));
    }

    fn value(&mut self, value: Value<'_>) {
        match value {
            Value::Address(address) => {
                self.text("0x");
                self.number(address as u64, 16);
            }
            Value::Word(word) => {
                self.text("0x");
                self.number(word, 16);
            }
            Value::Count(count) => self.number(count, 10),
            Value::Text(text) => self.text(text),
        }
    }
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.text(text);
        Ok(())
    }
}

/// The text up to the first byte that is none.
pub fn valid_part(bytes: &[u8]) -> &str {
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

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

use Value::{Address, Count, Text, Word};

/// A block that is not live was freed.
#[cold]
pub fn double_free(address: usize) -> ! {
    die("double free", &[("address", Address(address))])
}

/// A live block was freed with a `Layout` of another class than the one it was allocated with.
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

/// An address that no block of this allocator has was freed.
#[cold]
pub fn not_a_block(address: usize) -> ! {
    die("not a block of this allocator", &[("address", Address(address))])
}

/// A block was freed whose request has ended.
#[cold]
pub fn ended_request(address: usize, request: u64) -> ! {
    die("block of an ended request", &[("address", Address(address)), ("request", Count(request))])
}

/// The word before a payload is not one this allocator wrote there: something ran over it.
#[cold]
pub fn header_overwritten(address: usize, header: u64) -> ! {
    die("header overwritten", &[("address", Address(address)), ("header", Word(header))])
}

/// The operating system refused a call that only a fault of this allocator's makes it refuse.
#[cold]
pub fn system_call(call: &'static str, error: i32) -> ! {
    die(
        "system call failed",
        &[("call", Text(call)), ("errno", Count(error.unsigned_abs().into()))],
    )
}

/// A `check()` walker found a structure that contradicts itself.
#[cold]
pub fn broken(invariant: &'static str, left: usize, right: usize) -> ! {
    die(
        "broken invariant",
        &[("name", Text(invariant)), ("left", Count(left as u64)), ("right", Count(right as u64))],
    )
}

/// A signal handler that interrupted a critical section of this thread allocates or frees.
#[cold]
pub fn interrupted() -> ! {
    die("allocation in a signal handler that interrupted the allocator", &[])
}

/// A block was freed or resized as one of the family it is not of.
#[cold]
pub fn wrong_family(address: usize, is_persistent: bool) -> ! {
    let (is, freed_as) =
        if is_persistent { ("persistent", "request") } else { ("of a request", "persistent") };
    let values = [("address", Address(address)), ("block", Text(is)), ("freed as", Text(freed_as))];
    die("wrong family", &values)
}

/// A function was called that needs an open request.
#[cfg(feature = "capi")]
#[cold]
pub fn no_request(call: &str) -> ! {
    die("no request is open", &[("call", Text(call))])
}

/// A function was called that needs what the thread has given back when it exited.
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

/// A bailout that nobody waits for.
#[cfg(feature = "capi")]
#[cold]
pub fn no_try(reason: &str) -> ! {
    die("bailout without a try", &[("reason", Text(reason))])
}

/// What every text about a memory limit begins with.
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

/// A limit below what is in use was refused.
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

/// `count * size + offset` is no size.
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

/// A text of the program's own, as far as it fits.
#[cold]
pub fn reason(text: &str) -> Line {
    Line::of(text, [])
}
