//! A thread's bins of persistent blocks, and how much they may keep.
//!
//! Beside its bin, each class has a *previous* magazine, so that a thread whose frees and
//! allocations swing around a full bin goes to the depot once per magazine rather than once per
//! swing.
//!
//! - **K1** A class may keep nothing until the thread uses it. Its cap doubles when it runs dry or
//!   its magazines leave the thread, if what all caps of the thread promise stays within its share,
//!   and what they promise beyond `FREE_BYTES` is drawn from the credit of the process first.
//! - **K2** A class whose bin looks the same at two ticks is idle: its blocks go, and its cap
//!   starts over.
//! - **K3** A bin is looked at after at most `LOOK_EVERY` frees: a thread whose traffic fits into its
//!   bins finds out what the time is, too. Until then a class has no more than its cap promises, in
//!   its bin and its previous magazine together.

use crate::base::fatal;
use crate::base::size_class::{CLASS_COUNT, Class};
use crate::base::sync::Gauge;
use crate::blocks::bins::{Bins, Kind, Look};
use crate::blocks::list::check_list;
use crate::blocks::memory::Raw;
use crate::lockfree::credit::Credit;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Header, Memory, NONE};
use core::cell::Cell;

/// Bytes that all caches together may keep, beside `FREE_BYTES` in each.
pub const CREDIT_BYTES: usize = 40 * 1024 * 1024;
/// Bytes that each cache may keep without drawing on the credit.
pub const FREE_BYTES: usize = 128 * 1024;
/// Least and most bytes that one cache may keep, if there is credit.
const SHARE_BYTES: core::ops::RangeInclusive<usize> = 256 * 1024..=8 * 1024 * 1024;
/// The part of a magazine that a class's cap starts at.
const FIRST_CAP_DIVISOR: u32 = 4;
/// Blocks with a span of their own that a class keeps once it has run dry.
const LARGE_CAP: u32 = 2;
/// Most frees of a class between two looks at its bin.
const LOOK_EVERY: u32 = 256;
/// Bytes that a class may have beyond twice its cap, so that with a low one not every free is a look.
const SLACK_BYTES: usize = 32 * 1024;
/// Most blocks that it may.
const MAX_SLACK: usize = 16;

/// Blocks that a class may have beyond twice its cap.
static SLACK: [u8; CLASS_COUNT] = {
    let mut table = [0; CLASS_COUNT];
    let mut class = 0;
    while let Some(of) = Class::from_index(class) {
        if !of.is_large() {
            let fitting = SLACK_BYTES / of.stride_bytes();
            table[class] = if fitting > MAX_SLACK { MAX_SLACK } else { fitting } as u8;
            // With a cap not every free is a look.
            table[class] += (fitting == 0) as u8;
        }
        class += 1;
    }
    table
};

/// What all caches may keep beyond `FREE_BYTES`.
pub type CacheCredit = Credit<CREDIT_BYTES>;

/// The cache of a thread.
#[repr(C)]
pub struct Cache {
    /// What the thread's `active` points to outside requests.
    pub bins: Bins,
    previous: [Previous; CLASS_COUNT],
    seen: [Cell<Look>; CLASS_COUNT],
    /// The sum of what the caps promise.
    promised_bytes: Cell<usize>,
    /// Bytes of those that were drawn from the credit.
    drawn_bytes: Cell<usize>,
    share_bytes: Cell<usize>,
    /// Whether the thread does so little that every free is a look.
    is_quiet: Cell<bool>,
}

/// A magazine that the thread keeps beside a bin. Any thread may read the count.
struct Previous {
    head: Cell<Block>,
    count: Gauge,
}

impl Previous {
    fn magazine(&self) -> Magazine {
        Magazine { head: self.head.get(), count: self.count.get() as u32 }
    }

    fn replace(&self, magazine: Magazine) -> Magazine {
        let before = self.magazine();
        self.head.set(magazine.head);
        self.count.set(magazine.count as usize);
        before
    }
}

/// Shortens a magazine to `count` blocks, and returns the rest.
fn split(magazine: &mut Magazine, count: u32) -> Magazine {
    let last = Raw.last_of(magazine.head, count);
    let rest = Magazine { head: Raw.link(last), count: magazine.count - count };
    Raw.set_link(last, NONE);
    magazine.count = count;
    rest
}

fn first_cap(class: Class) -> u32 {
    if class.is_large() { LARGE_CAP } else { (class.magazine_count() / FIRST_CAP_DIVISOR).max(1) }
}

fn last_cap(class: Class) -> u32 {
    if class.is_large() { LARGE_CAP } else { class.magazine_count() }
}

fn slack(class: Class) -> u32 {
    SLACK[class.index()].into()
}

/// Returns the blocks that a cap promises, in the bin and in the previous magazine, if the class has
/// one.
fn promised_blocks(class: Class, cap: u32) -> u32 {
    match cap {
        0 => 0,
        _ if class.is_large() => cap,
        _ => 2 * cap + slack(class),
    }
}

/// Returns the bytes that a cap promises.
fn promise(class: Class, cap: u32) -> usize {
    promised_blocks(class, cap) as usize * class.kept_bytes()
}

/// Returns the bytes of a promise that are drawn from the credit.
fn drawn_for(promised_bytes: usize) -> usize {
    promised_bytes.saturating_sub(FREE_BYTES)
}

impl Cache {
    /// Opens bins that hand out blocks with this tag, for one of `thread_count` threads.
    pub fn open(&self, tag: Header, thread_count: usize) {
        self.bins.open(Kind::Cache, tag);
        self.bins.set_cache(&raw const self.bins);
        self.is_quiet.set(false);
        self.set_share(thread_count);
    }

    /// Sets the share of one of `thread_count` threads.
    pub fn set_share(&self, thread_count: usize) {
        let share = CREDIT_BYTES / thread_count.max(1);
        self.share_bytes.set(share.clamp(*SHARE_BYTES.start(), *SHARE_BYTES.end()));
    }

    /// Sets whether every free is a look (K3).
    pub fn set_quiet(&self, is_quiet: bool) {
        self.is_quiet.set(is_quiet);
    }

    /// Returns whether every free is a look.
    pub fn is_quiet(&self) -> bool {
        self.is_quiet.get()
    }

    /// Returns the bytes that were drawn from the credit.
    pub fn drawn_bytes(&self) -> usize {
        self.drawn_bytes.get()
    }

    /// Changes a cap if the thread's share and the credit allow what it promises (K1).
    fn change_cap(&self, class: Class, cap: u32, credit: &CacheCredit) -> bool {
        let bin = self.bins.bin(class);
        let before = promise(class, bin.cap());
        let promised = self.promised_bytes.get() - before + promise(class, cap);
        let (has, needs) = (self.drawn_bytes.get(), drawn_for(promised));
        let is_allowed = cap <= bin.cap()
            || (promised <= self.share_bytes.get() && (needs <= has || credit.draw(needs - has)));
        if is_allowed {
            credit.give_back(has.saturating_sub(needs));
            self.drawn_bytes.set(needs);
            self.promised_bytes.set(promised);
            bin.set_cap(cap);
        }
        is_allowed
    }

    /// Lets a bin take frees until it must be looked at again (K3), if that is `least` of them.
    fn renew(&self, class: Class, least: u32) -> bool {
        let bin = self.bins.bin(class);
        let has = bin.count() + self.previous[class.index()].count.get() as u32;
        let Some(room) = promised_blocks(class, bin.cap()).checked_sub(has + least) else {
            return false;
        };
        bin.renew(if self.is_quiet.get() { 0 } else { (room + least).min(LOOK_EVERY) });
        true
    }

    /// The least room that is worth another look: blocks leave the bin when there is less.
    fn least_room(&self, class: Class) -> u32 {
        slack(class).max(self.bins.bin(class).cap() / 4)
    }

    /// Fills an empty bin from the previous magazine, else from `source(want)`; `sink` takes what
    /// is more than the bin may have. `false`: both are empty.
    pub fn refill(
        &self,
        class: Class,
        credit: &CacheCredit,
        source: impl FnOnce(u32) -> Magazine,
        sink: impl FnOnce(Magazine),
    ) -> bool {
        let mut magazine = self.previous[class.index()].replace(Magazine::EMPTY);
        if magazine.is_empty() {
            self.raise_cap(class, credit);
            magazine = source(self.bins.bin(class).cap().max(1));
            let cap = self.bins.bin(class).cap();
            if magazine.count > cap.max(1) && !self.change_cap(class, magazine.count, credit) {
                sink(split(&mut magazine, cap.max(1)));
            }
        }
        self.bins.bin(class).fill(magazine);
        if !self.renew(class, 0) {
            self.bins.bin(class).renew(0);
        }
        !magazine.is_empty()
    }

    /// Lets a class that has run dry or over keep more, if it may (K1).
    pub fn raise_cap(&self, class: Class, credit: &CacheCredit) {
        let cap = self.bins.bin(class).cap();
        let doubled = if cap == 0 { first_cap(class) } else { cap * 2 };
        let mut raised = doubled.min(last_cap(class));
        while raised > cap && !self.change_cap(class, raised, credit) {
            raised /= 2;
        }
    }

    /// Whether the class has a previous magazine.
    pub fn has_previous(&self, class: Class) -> bool {
        self.previous[class.index()].count.get() != 0
    }

    /// Looks at a bin whose room is used up; whether it takes more frees without any block leaving.
    #[inline]
    pub fn has_room(&self, class: Class, credit: &CacheCredit) -> bool {
        if self.bins.bin(class).cap() == 0 && !class.is_large() {
            self.raise_cap(class, credit);
        }
        self.renew(class, if class.is_large() { 0 } else { self.least_room(class) })
    }

    /// Makes room in a bin that has none. Returns what must leave the thread for that: what came
    /// before, or if `leaves_latest` what came last. `sort` sends home what the thread had better not
    /// keep, and returns the rest.
    pub fn make_room(
        &self,
        class: Class,
        credit: &CacheCredit,
        sort: impl FnOnce(Magazine) -> Magazine,
        leaves_latest: bool,
    ) -> Magazine {
        let leaving = self.take_over(class, credit, sort, leaves_latest);
        if !self.renew(class, 0) {
            self.bins.bin(class).renew(0);
        }
        leaving
    }

    fn take_over(
        &self,
        class: Class,
        credit: &CacheCredit,
        sort: impl FnOnce(Magazine) -> Magazine,
        leaves_latest: bool,
    ) -> Magazine {
        let bin = self.bins.bin(class);
        if bin.cap() == 0 {
            return sort(bin.take_all());
        }
        // The last block stays, so that a thread that frees and allocates in turn does not return
        // here; and what a magazine had better not have.
        let over = bin.count().saturating_sub(bin.cap()).max(1);
        let kept = if class.is_large() { bin.cap() } else { over };
        let rest = sort(bin.take_rest(kept));
        if rest.is_empty() || class.is_large() {
            return rest;
        }
        let previous = &self.previous[class.index()];
        let is_swapped = !(leaves_latest && previous.count.get() > 0);
        let leaving = if is_swapped { previous.replace(rest) } else { rest };
        if !leaving.is_empty() {
            self.raise_cap(class, credit);
        }
        leaving
    }

    /// Empties every bin and every previous magazine into `sink`, and returns the credit.
    pub fn flush(&self, credit: &CacheCredit, mut sink: impl FnMut(Class, Magazine)) {
        Class::all().for_each(|class| self.start_over(class, credit, &mut sink));
    }

    fn start_over(
        &self,
        class: Class,
        credit: &CacheCredit,
        sink: &mut impl FnMut(Class, Magazine),
    ) {
        let bin = self.bins.bin(class);
        let previous = self.previous[class.index()].replace(Magazine::EMPTY);
        for mut left in [bin.take_all(), previous] {
            while left.count > class.magazine_count() {
                let rest = split(&mut left, class.magazine_count());
                sink(class, left);
                left = rest;
            }
            if !left.is_empty() {
                sink(class, left);
            }
        }
        self.change_cap(class, 0, credit);
        bin.renew(0);
    }

    /// Empties the bins that have not changed since the last call into `sink` (K2).
    pub fn age(&self, credit: &CacheCredit, mut sink: impl FnMut(Class, Magazine)) {
        for class in Class::all() {
            let bin = self.bins.bin(class);
            let now = bin.look();
            if self.seen[class.index()].replace(now) == now {
                self.start_over(class, credit, &mut sink);
            }
        }
    }

    /// Returns the bytes that the cache keeps.
    pub fn held_bytes(&self) -> usize {
        Class::all()
            .map(|class| {
                let previous = self.previous[class.index()].count.get();
                (self.bins.bin(class).count() as usize + previous) * class.kept_bytes()
            })
            .sum()
    }

    /// Walks every bin and every previous magazine; fatal if one contradicts its count or its
    /// class, or if the caps do not promise what is written down (K1).
    pub fn check(&self) {
        self.bins.check();
        for class in Class::all() {
            let listed = self.previous[class.index()].magazine();
            check_list("previous magazine", listed, self.bins.free_header(class));
        }
        let promised = Class::all().map(|class| promise(class, self.bins.bin(class).cap())).sum();
        if promised != self.promised_bytes.get() {
            fatal::broken("promised bytes of a cache", promised, self.promised_bytes.get());
        }
        let drawn = drawn_for(promised);
        if drawn != self.drawn_bytes.get() {
            fatal::broken("credit of a cache", drawn, self.drawn_bytes.get());
        }
    }
}
