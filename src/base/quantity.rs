//! Numbers of bytes and of blocks, formatted for people.
#![forbid(unsafe_code)]

use core::fmt;

/// A number of bytes for people: binary units, one decimal.
pub struct Bytes(pub usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return pad(f, format_args!("{} B", self.0));
        }
        let mut tenths = self.0 as u128 * 10 / 1024;
        let mut unit = 0;
        while tenths >= 10_240 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        pad(f, format_args!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]))
    }
}

/// The longest number of bytes with its unit.
const MAX_LENGTH: usize = 16;

/// Writes a short text as wide as the formatter says, without allocating.
fn pad(f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
    struct Short([u8; MAX_LENGTH], usize);
    impl fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let place = self.0.get_mut(self.1..self.1 + text.len()).ok_or(fmt::Error)?;
            place.copy_from_slice(text.as_bytes());
            self.1 += text.len();
            Ok(())
        }
    }
    let mut short = Short([0; MAX_LENGTH], 0);
    fmt::Write::write_fmt(&mut short, text)?;
    let text = short.0.get(..short.1).unwrap_or_default();
    f.pad(core::str::from_utf8(text).map_err(|_| fmt::Error)?)
}

/// A number of blocks for people.
pub struct Blocks(pub u64);

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, if self.0 == 1 { "block" } else { "blocks" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn bytes_have_units() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(1023), "1023 B");
        assert_eq!(text(1024), "1.0 KiB");
        assert_eq!(text(1024 * 1024 - 1), "1023.9 KiB");
        assert_eq!(text(usize::MAX), "16383.9 PiB");
        assert_eq!(std::format!("{:>8}|{:<4}|", Bytes(1024), Bytes(1)), " 1.0 KiB|1 B |");
    }
}
