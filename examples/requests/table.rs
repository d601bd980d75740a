//! The table at the end.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::rounds::Round;

pub struct Table<'a> {
    /// One round each, in order; never empty.
    pub ours: &'a [Round],
    pub theirs: &'a [Round],
    /// One for each request of a round.
    pub peaks: &'a [usize],
    pub malformed: usize,
    pub cache_entries: usize,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rounds = self.ours.len();
        let handled = rounds * self.peaks.len();
        writeln!(f, "{:<40}{:>14}", "requests handled", grouped(handled))?;
        writeln!(
            f,
            "{:<40}{:>14}",
            "  lines x rounds",
            format!("{} x {rounds}", self.peaks.len())
        )?;
        writeln!(f, "{:<40}{:>14}", "malformed lines, skipped", self.malformed)?;
        writeln!(f, "{:<40}{:>14}", "entries of the shared cache", self.cache_entries)?;
        writeln!(f)?;

        row(f, "", "rqmalloc", "system")?;
        self.blocks(f)?;
        self.memory(f)?;
        self.time(f)
    }
}

impl Table<'_> {
    fn blocks(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let both = |f: &mut Formatter<'_>, name, figure: fn(&Round) -> i64| {
            row(f, name, &grouped(sum(self.ours, figure)), &grouped(sum(self.theirs, figure)))
        };
        both(f, "allocations served", |round| round.calls.allocations)?;
        both(f, "  freed by their owners", |round| round.calls.frees)?;
        let ours = |f: &mut Formatter<'_>, name, figure: fn(&Round) -> i64| {
            row(f, name, &grouped(sum(self.ours, figure)), "-")
        };
        ours(f, "  freed by their request's end", |round| round.freed_by_end)?;
        ours(f, "  survivors of their request", |round| round.survivors)?;
        both(f, "  more in the shared cache than before", |round| round.cached)?;
        both(f, "  leaked for good", Round::leaked)
    }

    fn memory(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut peaks = self.peaks.to_vec();
        peaks.sort_unstable();
        for (name, index) in [("min", 0), ("median", peaks.len() / 2), ("max", peaks.len() - 1)] {
            row(f, &format!("peak of a request, {name}"), &kib(Some(peaks[index])), "-")?;
        }
        for percent in [10, 50, 100] {
            let at = (self.ours.len() * percent).div_ceil(100) - 1;
            row(
                f,
                &format!("resident memory at {percent} % of the run"),
                &kib(self.ours[at].resident),
                &kib(self.theirs[at].resident),
            )?;
        }
        Ok(())
    }

    fn time(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (our, their) = (median(self.ours), median(self.theirs));
        row(f, "time of a round, median", &millis(our), &millis(their))?;
        let ratio = their.as_secs_f64() / our.as_secs_f64();
        row(f, "  speed, by the ratio of the medians", &format!("{ratio:.2}"), "1.00")
    }
}

fn row(f: &mut Formatter<'_>, name: &str, ours: &str, theirs: &str) -> fmt::Result {
    writeln!(f, "{name:<40}{ours:>14}{theirs:>14}")
}

fn sum(rounds: &[Round], figure: fn(&Round) -> i64) -> i64 {
    rounds.iter().map(figure).sum()
}

fn median(rounds: &[Round]) -> Duration {
    let mut times: Vec<Duration> = rounds.iter().map(|round| round.busy).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

fn kib(bytes: Option<usize>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{} KiB", grouped(bytes / 1024)))
}

/// Groups digits by three: `12 345 678`.
fn grouped(number: impl Display) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        let after = digits.len() - index;
        if index > 0 && after % 3 == 0 && !text.ends_with('-') {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
