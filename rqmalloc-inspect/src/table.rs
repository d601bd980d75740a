//! What is known of each route: counters by the names of requests.
//!
//! A name gets a slot of a hash table when its first request closes, and keeps it for ever. So a
//! look-up takes no lock, and no memory once every name has been seen.

use crate::histogram::{Buckets, Histogram};
use rqmalloc::{Outcome, Report, RequestName};
use std::array;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Most names that are counted one by one; the requests of all others are in [`OTHER`].
pub const MAX_NAMES: usize = 1000;
/// The route of requests whose names found no place.
pub const OTHER: &str = "other";
/// The route of requests without a name.
pub const UNNAMED: &str = "unnamed";

/// Names in the table: those two have a place from the beginning.
const PLACE_COUNT: usize = MAX_NAMES + 2;
/// Slots of the table: at most half of them are taken, so a search ends soon.
const SLOT_COUNT: usize = 2048;
const _: () = assert!(SLOT_COUNT > 2 * PLACE_COUNT, "a search meets an empty slot");

/// Counters of each kind that a route has, so that threads seldom share one.
const SHARD_COUNT: usize = 4;

/// The ways a request can go, in the order of [`Totals::outcomes`].
pub const OUTCOMES: [Outcome; 5] =
    [Outcome::Ended, Outcome::Closed, Outcome::OverLimit, Outcome::BailedOut, Outcome::Panicked];

/// Seconds between two notes of what survived.
pub const TICK_SECONDS: u64 = 10;
/// Notes that are kept: of ten minutes, the one before, and the one that is being written.
const TICK_COUNT: usize = 62;

/// All routes.
pub struct Table {
    slots: Box<[OnceLock<Box<Route>>]>,
    hasher: RandomState,
    /// Names that have a slot, or are about to get one.
    places: AtomicUsize,
    /// Ticks so far.
    ticks: AtomicU64,
}

/// The requests of one name.
pub struct Route {
    name: Box<str>,
    shards: [Shard; SHARD_COUNT],
    /// Bytes that had survived at each of the last ticks.
    survived: [AtomicU64; TICK_COUNT],
}

/// What one thread in [`SHARD_COUNT`] counts.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    peaks: Histogram,
    peak_bytes: AtomicU64,
    largest_bytes: AtomicUsize,
    outcomes: [AtomicU64; OUTCOMES.len()],
    marked: AtomicU64,
    surviving_blocks: AtomicU64,
    surviving_bytes: AtomicU64,
    freed_bytes: AtomicU64,
    milliseconds: AtomicU64,
}

/// What a route has counted at one time.
#[derive(Clone, Debug)]
pub struct Totals {
    /// The name.
    pub name: Box<str>,
    /// Requests that are over.
    pub count: u64,
    /// Their peaks.
    pub peaks: Buckets,
    /// The sum of their peaks.
    pub peak_bytes: u64,
    /// The largest peak.
    pub largest_bytes: usize,
    /// How they went: see [`OUTCOMES`].
    pub outcomes: [u64; OUTCOMES.len()],
    /// Requests that were marked.
    pub marked: u64,
    /// Blocks that outlived their request.
    pub surviving_blocks: u64,
    /// Their bytes.
    pub surviving_bytes: u64,
    /// Bytes that were freed at the ends of requests.
    pub freed_bytes: u64,
    /// The sum of how long they were open.
    pub milliseconds: u64,
    /// What survived of the requests of each of the last ticks, the oldest first: bytes.
    pub growth: Vec<u64>,
}

impl Table {
    /// Returns a table with the two routes that are always there.
    pub fn new() -> Self {
        let table = Self {
            slots: (0..SLOT_COUNT).map(|_| OnceLock::new()).collect(),
            hasher: RandomState::new(),
            places: AtomicUsize::new(0),
            ticks: AtomicU64::new(0),
        };
        for name in [OTHER, UNNAMED] {
            let _ = table.find(name);
        }
        table
    }

    /// Counts a request that is over.
    pub fn count(&self, report: &Report) {
        if let Some(shard) = self.shard(report.name) {
            shard.count(report);
        }
    }

    /// Counts a request that was marked.
    pub fn count_marked(&self, name: Option<RequestName>) {
        if let Some(shard) = self.shard(name) {
            shard.marked.fetch_add(1, Relaxed);
        }
    }

    /// Notes what has survived so far.
    pub fn tick(&self) {
        let tick = self.ticks.load(Relaxed) as usize % TICK_COUNT;
        for route in self.routes() {
            route.survived[tick].store(route.surviving_bytes(), Relaxed);
        }
        self.ticks.fetch_add(1, Relaxed);
    }

    /// Returns how many requests are over.
    pub fn closed_count(&self) -> u64 {
        self.routes().flat_map(|route| &route.shards).map(Shard::closed_count).sum()
    }

    /// Returns what was counted, in no order: routes without requests are left out.
    pub fn totals(&self) -> Vec<Totals> {
        let ticks = self.ticks.load(Relaxed);
        let totals = self.routes().map(|route| route.totals(ticks));
        totals.filter(|totals| totals.count + totals.marked > 0).collect()
    }

    fn routes(&self) -> impl Iterator<Item = &Route> {
        self.slots.iter().filter_map(OnceLock::get).map(Box::as_ref)
    }

    fn shard(&self, name: Option<RequestName>) -> Option<&Shard> {
        // Looking at its text looks through it: once is enough.
        let name = name.as_ref().map_or(UNNAMED, RequestName::as_str);
        let route = self.find(name).or_else(|| self.find(OTHER))?;
        route.shards.get(this_shard())
    }

    /// Returns the route of a name; `None`: it has none, and no place is left.
    fn find(&self, name: &str) -> Option<&Route> {
        let start = self.hasher.hash_one(name) as usize;
        let mut has_place = false;
        let mut is_new = false;
        let mut found = None;
        for step in 0..SLOT_COUNT {
            let slot = &self.slots[start.wrapping_add(step) % SLOT_COUNT];
            if slot.get().is_none() && !has_place {
                if !self.takes_place() {
                    return None;
                }
                has_place = true;
            }
            let new = || {
                is_new = true;
                Box::new(Route::new(name))
            };
            let route = slot.get_or_init(new);
            if *route.name == *name {
                found = Some(route.as_ref());
                break;
            }
        }
        if has_place && !is_new {
            // Another thread brought the name at the same time.
            self.places.fetch_sub(1, Relaxed);
        }
        found
    }

    /// Takes one of the places for names, if any is left.
    fn takes_place(&self) -> bool {
        let take = |places| (places < PLACE_COUNT).then_some(places + 1);
        self.places.load(Relaxed) < PLACE_COUNT
            && self.places.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

/// Returns which shard this thread counts in.
fn this_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: usize = NEXT.fetch_add(1, Relaxed) % SHARD_COUNT);
    SHARD.try_with(|shard| *shard).unwrap_or(0)
}

impl Route {
    fn new(name: &str) -> Self {
        let survived = array::from_fn(|_| AtomicU64::new(0));
        Self { name: name.into(), shards: array::from_fn(|_| Shard::default()), survived }
    }

    fn surviving_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.surviving_bytes.load(Relaxed)).sum()
    }

    fn totals(&self, ticks: u64) -> Totals {
        let mut totals = Totals {
            name: self.name.clone(),
            count: 0,
            peaks: Buckets::EMPTY,
            peak_bytes: 0,
            largest_bytes: 0,
            outcomes: [0; OUTCOMES.len()],
            marked: 0,
            surviving_blocks: 0,
            surviving_bytes: 0,
            freed_bytes: 0,
            milliseconds: 0,
            growth: Vec::new(),
        };
        self.shards.iter().for_each(|shard| shard.add_to(&mut totals));
        totals.count = totals.outcomes.iter().sum();
        totals.growth = self.growth(ticks, totals.surviving_bytes);
        totals
    }

    /// Returns the differences between the notes: the last one is that of the tick that is not over.
    fn growth(&self, ticks: u64, now: u64) -> Vec<u64> {
        let first = ticks.saturating_sub(TICK_COUNT as u64 - 1);
        let at = |tick: u64| self.survived[tick as usize % TICK_COUNT].load(Relaxed);
        // Before the first of all, nothing had survived.
        let mut before = if first == 0 { 0 } else { at(first) };
        let notes = (if first == 0 { 0 } else { first + 1 }..ticks).map(at).chain([now]);
        let mut difference = |note: u64| {
            let grown = note.saturating_sub(before);
            before = note;
            grown
        };
        notes.map(&mut difference).collect()
    }
}

impl Shard {
    fn count(&self, report: &Report) {
        let Some(outcome) = OUTCOMES.iter().position(|outcome| *outcome == report.outcome) else {
            return;
        };
        self.outcomes[outcome].fetch_add(1, Relaxed);
        self.peaks.add(report.peak_bytes);
        self.peak_bytes.fetch_add(report.peak_bytes as u64, Relaxed);
        if report.peak_bytes > self.largest_bytes.load(Relaxed) {
            self.largest_bytes.fetch_max(report.peak_bytes, Relaxed);
        }
        let add = |counter: &AtomicU64, number: u64| {
            if number > 0 {
                counter.fetch_add(number, Relaxed);
            }
        };
        add(&self.surviving_blocks, report.surviving_blocks);
        add(&self.surviving_bytes, report.surviving_bytes as u64);
        add(&self.freed_bytes, report.freed_bytes as u64);
        add(&self.milliseconds, report.elapsed.map_or(0, |elapsed| elapsed.as_millis() as u64));
    }

    fn closed_count(&self) -> u64 {
        self.outcomes.iter().map(|counter| counter.load(Relaxed)).sum()
    }

    fn add_to(&self, totals: &mut Totals) {
        self.peaks.add_to(&mut totals.peaks);
        totals.peak_bytes += self.peak_bytes.load(Relaxed);
        totals.largest_bytes = totals.largest_bytes.max(self.largest_bytes.load(Relaxed));
        for (sum, counter) in totals.outcomes.iter_mut().zip(&self.outcomes) {
            *sum += counter.load(Relaxed);
        }
        totals.marked += self.marked.load(Relaxed);
        totals.surviving_blocks += self.surviving_blocks.load(Relaxed);
        totals.surviving_bytes += self.surviving_bytes.load(Relaxed);
        totals.freed_bytes += self.freed_bytes.load(Relaxed);
        totals.milliseconds += self.milliseconds.load(Relaxed);
    }
}

impl Totals {
    /// Returns a percentile of the peaks in bytes: at most that, to a power of two.
    pub fn peak(&self, hundredths: u64) -> usize {
        self.peaks.percentile(hundredths).min(self.largest_bytes)
    }

    /// Returns the bytes that survived in this many of the last ticks, and in the one that is not
    /// over.
    pub fn grown_bytes(&self, ticks: usize) -> u64 {
        self.growth.iter().rev().take(ticks + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn mark(table: &Table, name: &str) {
        table.count_marked(RequestName::new(name));
    }

    fn marked(table: &Table, name: &str) -> u64 {
        let totals = table.totals();
        totals.iter().find(|totals| &*totals.name == name).map_or(0, |totals| totals.marked)
    }

    #[test]
    fn names_above_the_limit_are_others() {
        let table = Table::new();
        for number in 0..MAX_NAMES + 50 {
            mark(&table, &format!("GET /{number}"));
        }
        mark(&table, "GET /0");
        mark(&table, OTHER);
        table.count_marked(None);
        assert_eq!(table.totals().len(), MAX_NAMES + 2);
        assert_eq!((marked(&table, "GET /0"), marked(&table, "GET /999")), (2, 1));
        assert_eq!((marked(&table, OTHER), marked(&table, UNNAMED)), (51, 1));
    }

    #[test]
    fn threads_that_bring_the_same_names_agree() {
        let table = Table::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..600).for_each(|number| mark(&table, &number.to_string())));
            }
        });
        let totals = table.totals();
        assert_eq!(totals.iter().map(|totals| totals.marked).sum::<u64>(), 4 * 600);
        assert_eq!(table.places.load(Relaxed), 600 + 2);
        assert!(totals.iter().filter(|totals| &*totals.name != OTHER).all(|t| t.marked == 4));
    }

    #[test]
    fn growth_is_that_of_the_last_ticks() {
        let table = Table::new();
        mark(&table, "leaks");
        let bytes = |grown: u64| {
            let route = table.find("leaks").unwrap();
            route.shards[0].surviving_bytes.fetch_add(grown, Relaxed);
        };
        let growth = || table.totals()[0].growth.clone();
        bytes(5);
        assert_eq!(growth(), [5]);
        table.tick();
        bytes(7);
        assert_eq!(growth(), [5, 7]);
        assert_eq!(table.totals()[0].grown_bytes(0), 7);
        for _ in 0..3 * TICK_COUNT {
            table.tick();
            bytes(2);
        }
        assert_eq!(growth(), vec![2; TICK_COUNT - 1]);
        assert_eq!(table.totals()[0].grown_bytes(6), 14);
    }
}
