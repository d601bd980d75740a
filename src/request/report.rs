//! What became of a request.

use crate::base::os;
use crate::base::quantity::{Blocks, Bytes};
use crate::base::sync::Ordering;
use crate::blocks::request_id::RequestId;
use crate::blocks::request_name::RequestName;
use crate::request::control::Control;
use crate::request::finish::{Left, Survivors};
use crate::request::limit::LimitExceeded;
use core::fmt;
use core::time::Duration;

/// How a request went.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Outcome {
    /// It was ended: all of its blocks are free.
    Ended,
    /// It was closed, or its last handle was dropped: what was live stays valid.
    Closed,
    /// It had reached its limit, or its mark, and was given up or still marked at its end.
    OverLimit,
    /// It was given up by [`bailout`](crate::bailout) or its kin.
    BailedOut,
    /// A panic left it.
    Panicked,
    /// It is still open: other handles are alive.
    Open,
}

impl Outcome {
    /// Returns a word for it, as in metrics: `ended`, `closed`, `over_limit`, `bailed_out`,
    /// `panicked`, `open`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Closed => "closed",
            Self::OverLimit => "over_limit",
            Self::BailedOut => "bailed_out",
            Self::Panicked => "panicked",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ended => "ended",
            Self::Closed => "closed",
            Self::OverLimit => "over its limit",
            Self::BailedOut => "bailed out",
            Self::Panicked => "panicked",
            Self::Open => "still open",
        })
    }
}

/// What became of a request's memory. Displayed, it is one line for people to read.
///
/// Bytes of blocks include each block's header and what its size class adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[must_use = "the report says what survived, and whether the request is still open"]
pub struct Report {
    /// The request's number.
    pub id: RequestId,
    /// What its builder called the request.
    pub name: Option<RequestName>,
    /// How it went.
    pub outcome: Outcome,
    /// The memory limit in bytes of pages, if there was one.
    pub limit_bytes: Option<usize>,
    /// The limit that was reached, if any: also one that refused a block which the request could do
    /// without.
    pub limit_exceeded: Option<LimitExceeded>,
    /// How long it was open, by a clock of some milliseconds. `None`: it had no name, and was opened
    /// before there was an [`Observer`](crate::Observer).
    pub elapsed: Option<Duration>,
    /// The most memory the request held at any one time, in bytes of whole pages.
    pub peak_bytes: usize,
    /// Blocks that were allocated in the request, freed ones included; one that was resized is
    /// counted again only if it moved. `None`, as for `elapsed`, and while it is still open.
    pub allocated_blocks: Option<u64>,
    /// Persistent blocks that threads inside were given, by
    /// [`persistent`](crate::persistent()): counted by the slow paths only, when a thread's cache is
    /// filled, so up to a magazine off for each size class.
    pub persistent_blocks: u64,
    /// Blocks that were live and have been freed.
    pub freed_blocks: u64,
    /// Their bytes.
    pub freed_bytes: usize,
    /// Blocks that were live when the request was closed. They are persistent now, and stay valid
    /// until they are freed, by any thread. (What [`persist`](crate::persist) was called on is not
    /// counted.)
    pub surviving_blocks: u64,
    /// Their bytes.
    pub surviving_bytes: usize,
    /// Bytes of the pages and mappings that survivors are in, or of what the request was given of
    /// pages that others survive in.
    pub span_bytes: usize,
    /// Bytes of those between the survivors: later requests allocate from them.
    pub reusable_bytes: usize,
    /// Other handles are alive: the request was only left, and nothing was freed.
    pub still_open: bool,
}

impl Report {
    /// The report of a request whose memory has not changed yet.
    #[inline(always)]
    pub(crate) fn before(control: &Control, survivors: Survivors) -> Self {
        let mut report = Self {
            id: control.request_id(),
            name: None,
            outcome: match survivors {
                Survivors::Live => Outcome::Closed,
                Survivors::None => Outcome::Ended,
            },
            limit_bytes: control.limit(),
            limit_exceeded: None,
            elapsed: None,
            peak_bytes: control.peak_bytes(),
            allocated_blocks: None,
            persistent_blocks: control.persistent_count(),
            freed_blocks: 0,
            freed_bytes: 0,
            surviving_blocks: 0,
            surviving_bytes: 0,
            span_bytes: 0,
            reusable_bytes: 0,
            still_open: false,
        };
        if control.is_timed() {
            report.add_named(control);
        }
        if control.is_remarkable() {
            report.add_remarks(control);
        }
        report
    }

    /// Adds what is known of a request with a name, or one that is observed.
    #[cold]
    fn add_named(&mut self, control: &Control) {
        let age = control.age_milliseconds(os::coarse_milliseconds);
        self.name = control.name.get();
        self.elapsed = age.map(Duration::from_millis);
        // Counted when the request goes.
        self.allocated_blocks = Some(0);
    }

    /// Adds why the request did not just end.
    #[cold]
    fn add_remarks(&mut self, control: &Control) {
        self.limit_exceeded = LimitExceeded::of(control);
        let is_given_up = control.bailed_out.load(Ordering::Relaxed);
        let is_refused = self.limit_exceeded.is_some();
        if control.is_to_be_given_up() || (is_given_up && is_refused) {
            self.outcome = Outcome::OverLimit;
        } else if is_given_up {
            self.outcome = Outcome::BailedOut;
        } else if control.panicked.load(Ordering::Relaxed) {
            self.outcome = Outcome::Panicked;
        }
    }

    /// The report of a request that stays open.
    pub(crate) fn of_open(control: &Control) -> Self {
        let report = Self::before(control, Survivors::Live);
        Self { outcome: Outcome::Open, still_open: true, allocated_blocks: None, ..report }
    }

    /// Adds what is left of the request.
    #[inline]
    pub(crate) fn add(&mut self, left: &Left) {
        self.allocated_blocks =
            self.allocated_blocks.map(|none_yet| none_yet + left.allocated_blocks as u64);
        self.freed_blocks = left.freed_blocks as u64;
        self.freed_bytes = left.freed_bytes;
        self.surviving_blocks = left.surviving_blocks as u64;
        self.surviving_bytes = left.surviving_bytes;
        self.span_bytes = left.span_bytes;
        self.reusable_bytes = left.reusable_bytes;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.id)?;
        if let Some(name) = self.name {
            write!(f, " ({name})")?;
        }
        write!(f, ": peak {}", Bytes(self.peak_bytes))?;
        if let Some(limit) = self.limit_bytes {
            write!(f, " of {}", Bytes(limit))?;
        }
        if let Some(elapsed) = self.elapsed.filter(|elapsed| elapsed.as_millis() > 0) {
            write!(f, ", {} ms", elapsed.as_millis())?;
        }
        if self.still_open {
            return f.write_str(", still open: other handles are alive");
        }
        if !matches!(self.outcome, Outcome::Ended | Outcome::Closed) {
            write!(f, ", {}", self.outcome)?;
        }
        if self.freed_blocks > 0 {
            write!(f, ", freed {} ({})", Blocks(self.freed_blocks), Bytes(self.freed_bytes))?;
        }
        if self.surviving_blocks > 0 {
            let (blocks, bytes) = (Blocks(self.surviving_blocks), Bytes(self.surviving_bytes));
            let verb = if self.surviving_blocks == 1 { "survives" } else { "survive" };
            write!(f, ", {blocks} {verb} ({bytes} in spans of {})", Bytes(self.span_bytes))?;
        }
        if self.freed_blocks == 0 && self.surviving_blocks == 0 {
            f.write_str(", nothing left behind")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const REPORT: Report = Report {
        id: RequestId(7),
        name: None,
        outcome: Outcome::Ended,
        limit_bytes: None,
        limit_exceeded: None,
        elapsed: None,
        peak_bytes: 16 * 1024,
        allocated_blocks: None,
        persistent_blocks: 0,
        freed_blocks: 0,
        freed_bytes: 0,
        surviving_blocks: 0,
        surviving_bytes: 0,
        span_bytes: 0,
        reusable_bytes: 0,
        still_open: false,
    };

    #[test]
    fn a_person_can_read_it() {
        assert_eq!(REPORT.to_string(), "request 7: peak 16.0 KiB, nothing left behind");
        let name = RequestName::new("GET /");
        let report = Report { name, freed_blocks: 1, freed_bytes: 48, ..REPORT };
        assert_eq!(report.to_string(), "request 7 (GET /): peak 16.0 KiB, freed 1 block (48 B)");
        let report = Report {
            surviving_blocks: 2,
            surviving_bytes: 2_500_000,
            span_bytes: 32_768,
            ..REPORT
        };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB, 2 blocks survive (2.3 MiB in spans of 32.0 KiB)"
        );
        let report = Report { still_open: true, ..REPORT };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB, still open: other handles are alive"
        );
        let report = Report {
            outcome: Outcome::OverLimit,
            limit_bytes: Some(32 * 1024),
            elapsed: Some(Duration::from_millis(12)),
            ..REPORT
        };
        assert_eq!(
            report.to_string(),
            "request 7: peak 16.0 KiB of 32.0 KiB, 12 ms, over its limit, nothing left behind"
        );
    }

    #[test]
    fn an_outcome_is_one_word_in_metrics() {
        use Outcome::*;
        for outcome in [Ended, Closed, OverLimit, BailedOut, Panicked, Open] {
            let word = outcome.as_str();
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{word}");
        }
    }
}
