//! Misuse of memory ends the process at once with one exact line.
//!
//! `rqmalloc: <noun phrase> (<key value, ...>)` goes to standard error by `write(2)` from a stack
//! buffer, then `abort()`. Nothing here allocates, panics or unwinds: the heap may be broken and
//! any lock may be held. Each text stands once, in this file.

/// A value in the brackets of a fatal line.
#[derive(Clone, Copy)]
enum Value {
    Address(usize),
    Count(u64),
    Word(u64),
    Text(&'static str),
}

/// Longest line that is written; a longer one is cut, never lost.
const LINE_BYTES: usize = 256;

struct Line {
    text: [u8; LINE_BYTES],
    length: usize,
}

impl Line {
    const fn new() -> Self {
        Self { text: [0; LINE_BYTES], length: 0 }
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.text.get_mut(self.length) {
            *slot = byte;
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

    fn value(&mut self, value: Value) {
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

#[cold]
#[inline(never)]
fn die(noun: &'static str, values: &[(&'static str, Value)]) -> ! {
    let mut line = Line::new();
    line.text("rqmalloc: ");
    line.text(noun);
    let mut before = " (";
    for &(key, value) in values {
        line.text(before);
        line.text(key);
        line.push(b' ');
        line.value(value);
        before = ", ";
    }
    if !values.is_empty() {
        line.push(b')');
    }
    line.push(b'\n');
    // SAFETY: the buffer is initialised and `length` never exceeds it.
    unsafe {
        libc::write(2, line.text.as_ptr().cast(), line.length);
        libc::abort()
    }
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
