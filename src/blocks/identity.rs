//! Request ids: a serial number of 48 bits, scrambled by a bijection with a random cookie.
//!
//! Headers contain the scrambled form, so that an overwritten header, a guess or a stale constant
//! decodes to a serial that was never issued, and a stale id to one that was. Serial 0 is the
//! persistent lifetime.
#![forbid(unsafe_code)]

use crate::base::sync::{AtomicU64, Ordering};
use crate::lockfree::header::{Header, ID_BITS, ID_MASK, LIVE};
use crate::lockfree::said::Said;
use crate::lockfree::state::GENERATION_BITS;

/// Odd, so that multiplication by it is a bijection modulo 2^48.
const SCRAMBLE: u64 = 0x9e37_79b9_7f4b;
/// The inverse of `SCRAMBLE` modulo 2^48.
const UNSCRAMBLE: u64 = inverse(SCRAMBLE);

/// Numbers of requests that a thread draws at once.
pub const NUMBERS_PER_DRAW: u64 = 1024;

/// The bits of a serial that say which request of its stub it is.
pub const MAX_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

/// A request's number in its parts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Serial(pub u64);

impl Serial {
    /// The serial of a stub's request.
    pub const fn new(index: u32, generation: u32) -> Self {
        Self((index as u64) << GENERATION_BITS | generation as u64)
    }

    /// Which stub.
    pub const fn index(self) -> u32 {
        (self.0 >> GENERATION_BITS) as u32
    }

    /// Which of its requests.
    pub const fn generation(self) -> u32 {
        self.0 as u32 & MAX_GENERATION
    }
}

const _: () = assert!(ID_BITS == 2 * GENERATION_BITS, "index and generation are the whole serial");

impl Serial {
    /// The serial of the persistent lifetime.
    pub const PERSISTENT: Self = Self(0);
}

/// What tells the lifetimes of a heap apart. All zero: no cookie is chosen.
pub struct Identity {
    cookie: Said,
    /// Numbers of requests that were drawn.
    drawn_count: AtomicU64,
}

impl Identity {
    /// No cookie is chosen.
    pub const fn new() -> Self {
        Self { cookie: Said::new(), drawn_count: AtomicU64::new(0) }
    }

    /// Draws numbers of requests for a thread: `NUMBERS_PER_DRAW` from the one returned.
    pub fn draw_numbers(&self) -> u64 {
        self.drawn_count.fetch_add(NUMBERS_PER_DRAW, Ordering::Relaxed) + 1
    }

    /// Returns whether the cookie is chosen. A thread that sees the choice sees everything done
    /// before it.
    pub fn is_chosen(&self) -> bool {
        self.cookie.hear() != 0
    }

    /// Chooses the cookie, once and not 0.
    pub fn choose(&self, cookie: u64) {
        self.cookie.say(cookie);
    }

    fn cookie(&self) -> u64 {
        self.cookie.peek()
    }

    /// Returns the id in the headers of the lifetime with this serial.
    #[inline]
    pub fn id_of(&self, serial: Serial) -> u64 {
        id_of(serial.0, self.cookie())
    }

    /// The serial a header's id decodes to.
    pub fn serial_of(&self, id: u64) -> Serial {
        Serial(serial_of(id, self.cookie()))
    }

    /// Returns the header of a live persistent block of class 0.
    pub fn persistent_tag(&self) -> Header {
        Header::tag(self.id_of(Serial::PERSISTENT), LIVE)
    }
}

/// Computes an inverse modulo 2^48. Newton's iteration doubles the correct low bits each step: 3,
/// 6, 12, 24, 48.
const fn inverse(odd: u64) -> u64 {
    let mut result = odd;
    let mut step = 0;
    while step < 5 {
        result = result.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(result)));
        step += 1;
    }
    result & ID_MASK
}

/// Returns the id in the headers of the lifetime with this serial.
#[inline]
const fn id_of(serial: u64, cookie: u64) -> u64 {
    (serial.wrapping_mul(SCRAMBLE) ^ cookie) & ID_MASK
}

/// Returns the serial that a header's id decodes to.
#[inline]
const fn serial_of(id: u64, cookie: u64) -> u64 {
    ((id ^ cookie) & ID_MASK).wrapping_mul(UNSCRAMBLE) & ID_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_serial_are_inverse() {
        let cookie = 0x1234_5678_9abc;
        for serial in (0..100_000).chain(ID_MASK - 1000..=ID_MASK) {
            assert_eq!(serial_of(id_of(serial, cookie), cookie), serial);
        }
    }

    #[test]
    fn a_changed_byte_decodes_to_a_serial_far_away() {
        let cookie = 0x0f0f_1234_5678;
        for serial in 0..2_000 {
            let id = id_of(serial, cookie);
            for flip in 1..=255 {
                for byte in 0..6 {
                    let wrong = serial_of(id ^ (flip << (8 * byte)), cookie);
                    assert!(wrong > 1 << 20, "serial {serial}, byte {byte} xor {flip}: {wrong}");
                }
            }
        }
    }
}
