//! One line for standard error, composed without allocating.

use super::system_call::write_to_standard_error;

/// A value in the parentheses of a line.
#[derive(Clone, Copy)]
pub enum Value<'t> {
    /// In hexadecimal.
    Address(usize),
    /// In decimal.
    Count(u64),
    /// In hexadecimal.
    Word(u64),
    /// Verbatim.
    Text(&'t str),
}

/// The longest line that is written; a longer one is truncated, never lost.
const LINE_BYTES: usize = 256;

/// A text in a buffer of its own.
#[derive(Clone, Copy)]
pub struct Line {
    text: [u8; LINE_BYTES],
    length: usize,
}

impl Line {
    /// An empty text.
    pub const EMPTY: Self = Self { text: [0; LINE_BYTES], length: 0 };

    /// Composes `<noun> (<key value, ...>)`.
    pub fn of<'t>(noun: &str, values: impl IntoIterator<Item = (&'t str, Value<'t>)>) -> Self {
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

    /// Composes a text from format arguments; a long one is truncated.
    pub fn of_arguments(arguments: core::fmt::Arguments<'_>) -> Self {
        let mut line = Self::EMPTY;
        // A line's `write_str` never fails.
        let _ = core::fmt::Write::write_fmt(&mut line, arguments);
        line
    }

    /// Writes each line of a text to standard error.
    #[cfg(all(feature = "preload", target_os = "linux"))]
    pub fn print_each(text: core::fmt::Arguments<'_>) {
        struct Lines(Line);
        impl core::fmt::Write for Lines {
            fn write_str(&mut self, text: &str) -> core::fmt::Result {
                for (index, part) in text.split('\n').enumerate() {
                    if index > 0 {
                        self.0.print();
                        self.0 = Line::EMPTY;
                    }
                    self.0.text(part);
                }
                Ok(())
            }
        }
        let mut lines = Lines(Self::EMPTY);
        // Writing a line never fails.
        let _ = core::fmt::Write::write_fmt(&mut lines, text);
        lines.0.print();
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

    /// Returns the text, followed by a 0.
    #[cfg(feature = "capi")]
    pub fn as_ptr(&self) -> *const u8 {
        self.text.as_ptr()
    }

    /// Returns the text, without a last character that the end of the buffer has split.
    pub fn as_str(&self) -> &str {
        valid_part(self.text.get(..self.length).unwrap_or_default())
    }

    fn push(&mut self, byte: u8) {
        // The last byte stays 0, so that the text is a C string too.
        if self.length + 1 < LINE_BYTES {
            self.text[self.length] = byte;
            self.length += 1;
        }
    }

    /// Appends a text, as far as it fits.
    pub fn text(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.push(byte));
    }

    /// Appends a number in this base.
    pub fn number(&mut self, mut value: u64, base: u64) {
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

/// Returns the bytes up to the first invalid one, as a text.
pub fn valid_part(bytes: &[u8]) -> &str {
    if let Ok(text) = core::str::from_utf8(bytes) {
        return text;
    }
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}
