//! Request ids: a serial number of 48 bits, scrambled by a bijection with a random cookie.
//!
//! What stands in a header is the scrambled form, so that an overwritten header, a guess or a stale
//! constant decodes to a serial that was never issued, and a stale id to one that was. Serial 0 is
//! the persistent lifetime.
#![forbid(unsafe_code)]

use crate::lockfree::header::ID_MASK;

/// Odd, so that multiplication by it is a bijection modulo 2^48.
const SCRAMBLE: u64 = 0x9e37_79b9_7f4b;
/// The inverse of `SCRAMBLE` modulo 2^48.
const UNSCRAMBLE: u64 = inverse(SCRAMBLE);

/// The serial of the persistent lifetime.
pub const PERSISTENT_SERIAL: u64 = 0;

/// Newton's iteration doubles the correct low bits each step: 3, 6, 12, 24, 48.
const fn inverse(odd: u64) -> u64 {
    let mut result = odd;
    let mut step = 0;
    while step < 5 {
        result = result.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(result)));
        step += 1;
    }
    result & ID_MASK
}

/// The id that stands in the headers of the lifetime with this serial.
#[inline]
pub const fn id_of(serial: u64, cookie: u64) -> u64 {
    (serial.wrapping_mul(SCRAMBLE) ^ cookie) & ID_MASK
}

/// The serial a header's id decodes to.
#[inline]
pub const fn serial_of(id: u64, cookie: u64) -> u64 {
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
