//! A thread's bins of persistent blocks, and how much they may keep.
//!
//! Beside its bin, each class has a *previous* magazine, so that a thread whose frees and
//! allocations swing around a full bin goes to the depot once per magazine rather than once per
//! swing.
//!
//! - **K1** Caps start low, double when a class runs dry or its magazines leave the thread, and are
//!   not raised if they would promise more than the thread's share of the process's budget.
//! - **K2** A class whose bin looks the same at two ticks is idle: its blocks go, and its cap
//!   starts over.

use crate::base::fatal;
use crate::base::size_class::{CLASS_COUNT, Class};
use crate::base::sync::Gauge;
use crate::blocks::bin::{Bins, Kind, check_list};
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Block, Header};
use core::cell::Cell;

/// Most bytes that all caches together may keep.
const BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// Least and most bytes that one cache may keep.
const SHARE_BYTES: core::ops::RangeInclusive<usize> = 256 * 1024..=8 * 1024 * 1024;
/// The part of a magazine that a class's cap starts at.
const FIRST_CAP_DIVISOR: u32 = 4;

/// The cache of a thread.
#[repr(C)]
pub struct Cache {
    /// What the thread's `active` points to outside requests.
    pub bins: Bins,
    previous: [Previous; CLASS_COUNT],
    seen: [Cell<(Block, u32)>; CLASS_COUNT],
    /// The sum of what the caps promise.
    promised_bytes: Cell<usize>,
    share_bytes: Cell<usize>,
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

fn first_cap(class: Class) -> u32 {
    // Blocks with a span of their own are kept only once the class has run dry.
    if class.is_large() { 0 } else { (class.magazine_count() / FIRST_CAP_DIVISOR).max(1) }
}

/// Returns the bytes that a cap promises: for a bin and for a previous magazine.
fn promise(class: Class, cap: u32) -> usize {
    2 * cap as usize * class.kept_bytes()
}

impl Cache {
    /// Opens bins that hand out blocks with this tag, for one of `thread_count` threads.
    pub fn open(&self, tag: Header, thread_count: usize) {
        self.bins.open(Kind::Cache, tag);
        self.bins.set_cache(&raw const self.bins);
        self.promised_bytes.set(0);
        Class::all().for_each(|class| self.set_cap(class, first_cap(class)));
        self.set_share(thread_count);
    }

    /// Sets the share of one of `thread_count` threads.
    pub fn set_share(&self, thread_count: usize) {
        let share = BUDGET_BYTES / thread_count.max(1);
        self.share_bytes.set(share.clamp(*SHARE_BYTES.start(), *SHARE_BYTES.end()));
    }

    fn set_cap(&self, class: Class, cap: u32) {
        self.bins.bin(class).set_cap(cap);
        self.promised_bytes.set(self.promised_bytes.get() + promise(class, cap));
    }

    fn change_cap(&self, class: Class, cap: u32) {
        let old = promise(class, self.bins.bin(class).cap());
        self.promised_bytes.set(self.promised_bytes.get() - old);
        self.set_cap(class, cap);
    }

    /// Fills an empty bin from the previous magazine, else from `source(want)`. `false`: both are
    /// empty.
    pub fn refill(&self, class: Class, source: impl FnOnce(u32) -> Magazine) -> bool {
        let mut magazine = self.previous[class.index()].replace(Magazine::EMPTY);
        if magazine.is_empty() {
            self.raise_cap(class);
            magazine = source(self.bins.bin(class).cap().max(1));
        }
        self.bins.bin(class).fill(magazine);
        !magazine.is_empty()
    }

    /// Lets a class that has run dry or over keep more, if the thread's share allows (K1).
    pub fn raise_cap(&self, class: Class) {
        let cap = self.bins.bin(class).cap();
        let raised = (cap * 2).clamp(1, class.magazine_count());
        let promised = self.promised_bytes.get() - promise(class, cap) + promise(class, raised);
        if raised > cap && promised <= self.share_bytes.get() {
            self.change_cap(class, raised);
        }
    }

    /// Whether the class has a previous magazine.
    pub fn has_previous(&self, class: Class) -> bool {
        self.previous[class.index()].count.get() != 0
    }

    /// Makes room in a bin that is over its cap. Returns what must leave the thread for that. `sort`
    /// sends home what the thread had better not keep, and returns the rest.
    pub fn make_room(&self, class: Class, sort: impl FnOnce(Magazine) -> Magazine) -> Magazine {
        let bin = self.bins.bin(class);
        if bin.count() <= bin.cap() {
            return Magazine::EMPTY;
        }
        if bin.cap() == 0 {
            return sort(bin.take_all());
        }
        // The last block stays, so that a thread that frees and allocates in turn does not return
        // here.
        let rest = sort(bin.take_rest());
        if rest.is_empty() {
            return rest;
        }
        let leaving = self.previous[class.index()].replace(rest);
        if !leaving.is_empty() {
            self.raise_cap(class);
        }
        leaving
    }

    /// Empties every bin and every previous magazine into `sink`.
    pub fn flush(&self, mut sink: impl FnMut(Class, Magazine)) {
        Class::all().for_each(|class| self.flush_class(class, &mut sink));
    }

    fn flush_class(&self, class: Class, sink: &mut impl FnMut(Class, Magazine)) {
        for magazine in
            [self.bins.bin(class).take_all(), self.previous[class.index()].replace(Magazine::EMPTY)]
        {
            if !magazine.is_empty() {
                sink(class, magazine);
            }
        }
    }

    /// Empties the bins that have not changed since the last call into `sink` (K2).
    pub fn age(&self, mut sink: impl FnMut(Class, Magazine)) {
        for class in Class::all() {
            let bin = self.bins.bin(class);
            let now = (bin.head(), bin.count());
            if self.seen[class.index()].replace(now) == now {
                self.flush_class(class, &mut sink);
                self.change_cap(class, first_cap(class));
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
    }
}
