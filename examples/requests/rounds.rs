//! Lines as requests: the rehearsal, then round after round.

use std::time::{Duration, Instant};

use rqmalloc::{Report, begin_request, close_request, end_request};

use crate::Failure;
use crate::counting::{self, Calls, Side};
use crate::memory;
use crate::service::{Answer, Leaks, Refused, Service};

/// A line of the input and its number in the file, from 1.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    pub number: usize,
    pub bytes: &'a [u8],
}

impl<'a> Line<'a> {
    /// Returns the lines that are not blank. They need not be UTF-8: the handler checks that.
    pub fn split(input: &'a [u8]) -> Vec<Self> {
        input
            .split(|&byte| byte == b'\n')
            .zip(1..)
            .map(|(bytes, number)| Line { number, bytes: bytes.trim_ascii() })
            .filter(|line| !line.bytes.is_empty())
            .collect()
    }
}

pub struct Malformed {
    pub number: usize,
    pub reason: String,
}

/// How a request's memory goes.
#[derive(Clone, Copy)]
enum Ending {
    /// `end_request`: all at once, whatever was leaked.
    Bulk,
    /// `close_request`: what is still live stays valid, and is reported.
    Close,
    /// The system allocator has no requests: what the handler did not drop has leaked.
    Drops,
}

struct Served {
    outcome: Result<Answer, Refused>,
    report: Option<Report>,
    took: Duration,
}

/// Handles one line as one memory request. The measured time includes the request's begin and end.
fn serve(service: &mut Service, line: &[u8], leaks: Leaks, ending: Ending) -> Served {
    let start = Instant::now();
    let (outcome, report) = match ending {
        Ending::Bulk => {
            begin_request();
            let outcome = service.handle(line, leaks);
            // SAFETY: nothing of this request is used or freed from here on, by anyone.
            // - `handle` has returned: its locals are gone, and nothing leads to what it forgot or
            //   tied into cycles.
            // - `outcome` is a number, or a text allocated inside `persistent`.
            // - `service` outlives the request, and `handle` changes it only inside `persistent`
            //   (`SharedCache`).
            // - `Service::new` created the statics and thread-locals that own memory, before any
            //   request; `rehearse` has shown, on the same lines, that none was overlooked.
            // - No thread is started, and nothing is printed, between begin and end.
            let report = unsafe { end_request() };
            (outcome, Some(report))
        }
        Ending::Close => {
            begin_request();
            let outcome = service.handle(line, leaks);
            (outcome, Some(close_request()))
        }
        Ending::Drops => (service.handle(line, leaks), None),
    };
    Served { outcome, report, took: start.elapsed() }
}

/// The figures of one pass over all lines.
pub struct Round {
    /// Time inside requests, their begin and end included.
    pub busy: Duration,
    /// A digest of all the answers, in order.
    pub digest: u64,
    pub calls: Calls,
    /// How many more blocks the shared cache has than before.
    pub cached: i64,
    pub freed_by_end: i64,
    pub survivors: i64,
    /// Bytes resident after the round.
    pub resident: Option<usize>,
}

impl Round {
    /// Returns the number of blocks that neither their owners freed nor the cache has.
    pub fn left_behind(&self) -> i64 {
        self.calls.balance() - self.cached
    }

    /// Returns the number of blocks that are lost until the process ends.
    pub fn leaked(&self) -> i64 {
        self.left_behind() - self.freed_by_end - self.survivors
    }
}

/// The service and the well-formed lines, to be handled over and over.
pub struct Rounds<'a> {
    service: Service,
    lines: Vec<Line<'a>>,
    leaks: Leaks,
    peaks: Vec<usize>,
}

impl<'a> Rounds<'a> {
    /// Handles every line once, finds the malformed ones, and makes sure that the bulk free will be
    /// sound.
    ///
    /// Here nothing leaks on purpose and requests are closed, which is safe whatever they did. So a
    /// survivor is memory that something keeps: the bulk free would pull it out from under its
    /// keeper. You can audit a handler of your own in the same way.
    pub fn rehearse(lines: Vec<Line<'a>>, leaks: Leaks) -> Result<(Self, Vec<Malformed>), Failure> {
        let ending = match counting::side() {
            Side::RqMalloc => Ending::Close,
            Side::System => Ending::Drops,
        };
        let mut service = Service::new()?;
        let mut sound = Vec::with_capacity(lines.len());
        let mut malformed = Vec::new();
        for line in lines {
            let served = serve(&mut service, line.bytes, Leaks::None, ending);
            let survivors = served.report.map_or(0, |report| report.surviving_blocks);
            if survivors > 0 {
                return Err(format!(
                    "line {}: {survivors} blocks outlive their request",
                    line.number
                )
                .into());
            }
            match served.outcome {
                Ok(_) => sound.push(line),
                Err(Refused(reason)) => malformed.push(Malformed { number: line.number, reason }),
            }
        }
        let peaks = vec![0; sound.len()];
        let rounds = Self { service, lines: sound, leaks, peaks };
        Ok((rounds, malformed))
    }

    pub fn run(&mut self) -> Result<Round, Failure> {
        let ending = match counting::side() {
            Side::RqMalloc => Ending::Bulk,
            Side::System => Ending::Drops,
        };
        let mut round = Round {
            busy: Duration::ZERO,
            digest: 0,
            calls: Calls::default(),
            cached: 0,
            freed_by_end: 0,
            survivors: 0,
            resident: None,
        };
        let cached_before = self.service.cache().blocks_held();
        let calls_before = counting::calls();
        for (line, peak) in self.lines.iter().zip(&mut self.peaks) {
            let served = serve(&mut self.service, line.bytes, self.leaks, ending);
            round.busy += served.took;
            let answer = served.outcome.map_err(|Refused(reason)| {
                format!("line {} was fine before: {reason}", line.number)
            })?;
            round.digest = round.digest.rotate_left(1) ^ answer.digest;
            if let Some(report) = served.report {
                round.freed_by_end += i64::try_from(report.freed_blocks)?;
                round.survivors += i64::try_from(report.surviving_blocks)?;
                *peak = report.peak_bytes.max(*peak);
            }
        }
        // Only requests allocate in the loop, so these calls are theirs alone.
        round.calls = counting::calls() - calls_before;
        round.cached = self.service.cache().blocks_held() - cached_before;
        round.resident = memory::resident();
        Ok(round)
    }

    pub fn lines(&self) -> &[Line<'a>] {
        &self.lines
    }

    /// Returns each request's highest footprint in bytes, over all rounds.
    pub fn peaks(&self) -> &[usize] {
        &self.peaks
    }

    pub fn cache_entries(&self) -> usize {
        self.service.cache().len()
    }
}
