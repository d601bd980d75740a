//! What the process's memory was, second by second.

use crate::table::{TICK_SECONDS, Table};
use rqmalloc::{Stats, stats};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Seconds between two samples.
const SAMPLE_SECONDS: u64 = 1;
/// Samples that are kept: of ten minutes.
pub const SAMPLE_COUNT: usize = 600;
/// Bytes of the sampler's stack.
const STACK_BYTES: usize = 256 * 1024;

/// The process at one moment.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Where its memory is.
    pub stats: Stats,
    /// Bytes of memory that are resident, where the system says so.
    pub resident_bytes: Option<usize>,
    /// Requests that were over, since the observer was set.
    pub closed_count: u64,
}

/// The last samples.
pub struct History(Mutex<Ring>);

struct Ring {
    /// The oldest first.
    samples: VecDeque<Sample>,
    /// How many have gone.
    gone: usize,
}

impl Sample {
    /// Returns what is so now.
    pub fn now(table: &Table) -> Self {
        Self {
            stats: stats(),
            resident_bytes: resident_bytes(),
            closed_count: table.closed_count(),
        }
    }
}

impl History {
    /// Returns one without samples, with room for all.
    pub fn new() -> Self {
        Self(Mutex::new(Ring { samples: VecDeque::with_capacity(SAMPLE_COUNT), gone: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a sample; the oldest goes.
    fn add(&self, sample: Sample) {
        let mut ring = self.lock();
        if ring.samples.len() == SAMPLE_COUNT {
            ring.samples.pop_front();
            ring.gone += 1;
        }
        ring.samples.push_back(sample);
    }

    /// Returns the last samples, the oldest first, and how many there were before.
    pub fn samples(&self) -> (Vec<Sample>, usize) {
        let mut copy = Vec::with_capacity(SAMPLE_COUNT);
        let ring = self.lock();
        copy.extend(&ring.samples);
        (copy, ring.gone)
    }

    /// Starts the thread that takes samples for the life of the process. Without it, because the
    /// system refuses one more, there is no history.
    pub fn start(&'static self, table: &'static Table) {
        let sampler = move || {
            for second in 1u64.. {
                self.add(Sample::now(table));
                if second % (TICK_SECONDS / SAMPLE_SECONDS) == 0 {
                    table.tick();
                }
                thread::sleep(Duration::from_secs(SAMPLE_SECONDS));
            }
        };
        let builder = thread::Builder::new().name("rqmalloc-inspect".into());
        let _ = builder.stack_size(STACK_BYTES).spawn(sampler);
    }
}

/// Returns the process's resident memory in bytes, where the system has a file that says so.
pub fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_sample_goes() {
        let (history, mut sample) = (History::new(), Sample::now(&Table::new()));
        for number in 0..SAMPLE_COUNT as u64 + 5 {
            sample.closed_count = number;
            history.add(sample);
        }
        let (samples, gone) = history.samples();
        assert_eq!((samples.len(), gone), (SAMPLE_COUNT, 5));
        assert_eq!(samples.first().unwrap().closed_count, 5);
        assert_eq!(samples.last().unwrap().closed_count, SAMPLE_COUNT as u64 + 4);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_is_resident() {
        assert!(resident_bytes().unwrap() > 100_000);
    }
}
