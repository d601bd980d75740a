//! How things are written: numbers for people, and texts that others chose.

use std::fmt::{self, Display, Formatter, Write};
use std::time::Duration;

/// A number of bytes for people: binary units, one decimal.
pub struct Bytes(pub usize);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut tenths = self.0 as u128 * 10 / 1024;
        let mut unit = 0;
        while tenths >= 10_240 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// A number for people: its digits in groups of three.
pub struct Count(pub u64);

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index) % 3 == 0 {
                f.write_char('\u{202f}')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// A time for people.
pub struct Time(pub Duration);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (seconds, milliseconds) = (self.0.as_secs(), self.0.as_millis());
        match seconds {
            0..10 if milliseconds < 1000 => write!(f, "{milliseconds} ms"),
            0..10 => write!(f, "{}.{} s", seconds, milliseconds % 1000 / 100),
            10..60 => write!(f, "{seconds} s"),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3600..86_400 => write!(f, "{} h {} min", seconds / 3600, seconds % 3600 / 60),
            _ => write!(f, "{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
        }
    }
}

/// A text as part of a page, in an attribute too.
pub struct Html<'t>(pub &'t str);

impl Display for Html<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_with(f, self.0, |char| match char {
            '&' => Some("&amp;"),
            '<' => Some("&lt;"),
            '>' => Some("&gt;"),
            '"' => Some("&quot;"),
            '\'' => Some("&#39;"),
            _ => None,
        })
    }
}

/// A text as the value of a label.
pub struct Label<'t>(pub &'t str);

impl Display for Label<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_with(f, self.0, |char| match char {
            '\\' => Some("\\\\"),
            '"' => Some("\\\""),
            '\n' => Some("\\n"),
            _ => None,
        })
    }
}

fn write_with(
    f: &mut Formatter<'_>,
    text: &str,
    instead_of: impl Fn(char) -> Option<&'static str>,
) -> fmt::Result {
    text.chars().try_for_each(|char| match instead_of(char) {
        Some(instead) => f.write_str(instead),
        None => f.write_char(char),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_numbers() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1 << 20).to_string(), "1.0 MiB");
        assert_eq!(Bytes(usize::MAX).to_string(), "16383.9 PiB");
        assert_eq!(Count(7).to_string(), "7");
        assert_eq!(Count(1_234_567).to_string(), "1\u{202f}234\u{202f}567");
        let time = |milliseconds| Time(Duration::from_millis(milliseconds)).to_string();
        assert_eq!([time(0), time(999), time(1_250)], ["0 ms", "999 ms", "1.2 s"]);
        assert_eq!([time(59_999), time(61_000)], ["59 s", "1 min 1 s"]);
        assert_eq!([time(7_260_000), time(90_000_000)], ["2 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn texts_of_others_stay_texts() {
        assert_eq!(Html("<a href='x'>&\"").to_string(), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
        assert_eq!(Label("a\"b\\c\nd").to_string(), "a\\\"b\\\\c\\nd");
    }
}
