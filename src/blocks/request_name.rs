//! `RequestName`: what a request is called, in a place of its own.
#![forbid(unsafe_code)]

use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::num::NonZeroU8;
use core::ops::Deref;

/// Most bytes of a name.
pub const NAME_BYTES: usize = 64;

/// What stands for a control character, so that a name is always part of one line.
const REPLACEMENT: u8 = b'?';

/// What a request is called in reports, lists and error messages: at most 64 bytes of text without
/// control characters, which were replaced by `?`.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// let path = String::from("/items/7");
/// let request = rqmalloc::Request::builder().name(format!("GET {path}")).build();
/// assert_eq!(request.name().unwrap().as_str(), "GET /items/7");
/// ```
#[derive(Clone, Copy)]
pub struct RequestName {
    length: NonZeroU8,
    text: [u8; NAME_BYTES],
}

impl RequestName {
    /// Returns a name for a text: what fits of it, cut between two characters. `None`: the text is
    /// empty.
    pub fn new(text: &str) -> Option<Self> {
        let mut name = [0; NAME_BYTES];
        let mut length = 0;
        let whole = text.as_bytes();
        let whole = whole.get(..NAME_BYTES).unwrap_or(whole);
        // Nearly every name. All are looked at: that is one loop without a branch.
        if whole.iter().fold(true, |are_plain, byte| are_plain & matches!(byte, b' '..=b'~')) {
            name[..whole.len()].copy_from_slice(whole);
            return Some(Self { length: NonZeroU8::new(whole.len() as u8)?, text: name });
        }
        for char in text.chars() {
            let bytes = char.len_utf8();
            let Some(place) = name.get_mut(length..length + bytes) else { break };
            if char.is_control() {
                // One of two bytes is shorter now.
                place[0] = REPLACEMENT;
                length += 1;
            } else {
                char.encode_utf8(place);
                length += bytes;
            }
        }
        Some(Self { length: NonZeroU8::new(length as u8)?, text: name })
    }

    /// Returns the name made of these bytes, as far as they are a text.
    pub(crate) fn from_bytes(text: [u8; NAME_BYTES], length: usize) -> Option<Self> {
        let whole = text.get(..length).unwrap_or_default();
        let valid = crate::base::line::valid_part(whole).len();
        Some(Self { length: NonZeroU8::new(valid as u8)?, text })
    }

    /// Returns its bytes, which zeros follow, and how many they are.
    pub(crate) fn bytes(&self) -> (&[u8; NAME_BYTES], usize) {
        (&self.text, usize::from(self.length.get()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        let (text, length) = self.bytes();
        core::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default()
    }
}

impl Deref for RequestName {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for RequestName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for RequestName {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RequestName {}

impl PartialEq<str> for RequestName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for RequestName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialOrd for RequestName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RequestName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for RequestName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for RequestName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};

    fn name(text: &str) -> String {
        RequestName::new(text).unwrap().to_string()
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(RequestName::new(""), None);
        assert_eq!(name("GET /"), "GET /");
        assert_eq!(name(&"x".repeat(65)), "x".repeat(64));
        assert_eq!(name(&"\u{e9}".repeat(33)), "\u{e9}".repeat(32));
        assert_eq!(name(&("x".repeat(63) + "\u{e9}y")), "x".repeat(63));
        assert_eq!(name("\u{1f600}".repeat(20).as_str()), "\u{1f600}".repeat(16));
    }

    #[test]
    fn a_name_is_part_of_one_line() {
        assert_eq!(name("a\nb\0c\x1b[1m\u{85}d\x7f"), "a?b?c?[1m?d?");
        assert_eq!(name(&"\n".repeat(100)), "?".repeat(64));
    }

    #[test]
    fn bytes_that_are_no_text_are_left_out() {
        let whole = RequestName::new("caf\u{e9}").unwrap();
        let (bytes, length) = whole.bytes();
        assert_eq!(RequestName::from_bytes(*bytes, length), Some(whole));
        assert_eq!(RequestName::from_bytes(*bytes, length - 1), RequestName::new("caf"));
        assert_eq!(RequestName::from_bytes(*bytes, 1 << 20), None);
    }
}
