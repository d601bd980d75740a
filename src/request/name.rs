//! What a request is called, where its control block keeps it.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `length`, `words` | who opens the request, before others know it | anybody |
//!
//! A fatal line may read the name of a request that is over, while the next one is opened: what it
//! reads is a text then, no more.

use crate::base::sync::{AtomicU64, Ordering};
use crate::blocks::request_name::{NAME_BYTES, RequestName};

const WORD_BYTES: usize = size_of::<u64>();
const WORD_COUNT: usize = NAME_BYTES / WORD_BYTES;

/// The place of a name. Zeros: there is none.
pub struct Name {
    length: AtomicU64,
    words: [AtomicU64; WORD_COUNT],
}

impl Name {
    /// No name.
    pub const fn new() -> Self {
        Self { length: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORD_COUNT] }
    }

    /// Keeps the name of a new request that no other thread knows yet.
    #[inline]
    pub fn open(&self, name: Option<&RequestName>) {
        self.length.store(0, Ordering::Relaxed);
        if let Some(name) = name {
            self.set(name);
        }
    }

    #[cold]
    fn set(&self, name: &RequestName) {
        let (text, length) = name.bytes();
        for (place, bytes) in self.words.iter().zip(text.chunks_exact(WORD_BYTES)) {
            let mut word = [0; WORD_BYTES];
            word.copy_from_slice(bytes);
            place.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        self.length.store(length as u64, Ordering::Relaxed);
    }

    /// Whether there is a name.
    #[inline]
    pub fn is_some(&self) -> bool {
        self.length.load(Ordering::Relaxed) != 0
    }

    /// Returns the name, if there is one.
    #[inline]
    pub fn get(&self) -> Option<RequestName> {
        if self.is_some() { self.get_some() } else { None }
    }

    #[cold]
    fn get_some(&self) -> Option<RequestName> {
        let mut text = [0; NAME_BYTES];
        for (place, word) in text.chunks_exact_mut(WORD_BYTES).zip(&self.words) {
            place.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        RequestName::from_bytes(text, self.length.load(Ordering::Relaxed) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_it_was_given_last() {
        let place = Name::new();
        assert_eq!(place.get(), None);
        for text in ["GET /", "a longer one of more than a word", "x"] {
            let name = RequestName::new(text);
            place.open(name.as_ref());
            assert!(place.get() == name && place.is_some());
        }
        place.open(None);
        assert_eq!(place.get(), None);
    }
}
