//! Mappings in lists by length: the store of freed ones and the vacancies are kept so.
//!
//! Four lists for each doubling, the newest first in each. What is looked for is in the list of its
//! length, or anything in the next that has something will do: no search depends on how many there
//! are.
//!
//! - **V4** A span is linked here while its kind says so, which changes only under the lock that
//!   guards the lists. Its length does not change meanwhile.

use crate::base::os::MAX_PAGE_BYTES;
use crate::pages::span::{Span, SpanKind};
use core::iter::successors;
use core::ptr::null;

/// Lists for each doubling.
const STEPS: usize = 4;
const LIST_COUNT: usize = u128::BITS as usize;
/// Most mappings of about the right length that are looked at.
const MOST_LOOKED_AT: usize = 8;

/// The lists. All zero: empty.
pub struct ByLength {
    newest: [*const Span; LIST_COUNT],
    oldest: [*const Span; LIST_COUNT],
    /// Which lists have something.
    filled: u128,
}

// SAFETY: the pointers are to descriptors (M1), guarded by the lock that the lists are in.
unsafe impl Send for ByLength {}

/// Returns the index of the list for a length: never less for a longer one.
fn index_of(bytes: usize) -> usize {
    let units = bytes / MAX_PAGE_BYTES;
    if units < STEPS {
        return units;
    }
    let doublings = (units / STEPS).ilog2() as usize;
    (STEPS + doublings * STEPS + (units >> doublings) % STEPS).min(LIST_COUNT - 1)
}

fn span_at<'h>(pointer: *const Span) -> Option<&'h Span> {
    // SAFETY: null, or a descriptor (M1).
    unsafe { pointer.as_ref() }
}

impl ByLength {
    /// Empty lists.
    pub const fn new() -> Self {
        Self { newest: [null(); LIST_COUNT], oldest: [null(); LIST_COUNT], filled: 0 }
    }

    /// Links a span, as the newest.
    pub fn put(&mut self, span: &Span) {
        let index = index_of(span.bytes());
        let next = self.newest[index];
        span.next.set(next);
        span.previous.set(null());
        match span_at(next) {
            Some(next) => next.previous.set(span),
            None => self.oldest[index] = span,
        }
        self.newest[index] = span;
        self.filled |= 1 << index;
    }

    /// Unlinks a span.
    pub fn remove(&mut self, span: &Span) {
        let index = index_of(span.bytes());
        let (next, previous) = (span.next.get(), span.previous.get());
        match span_at(previous) {
            Some(previous) => previous.next.set(next),
            None => self.newest[index] = next,
        }
        match span_at(next) {
            Some(next) => next.previous.set(previous),
            None => self.oldest[index] = previous,
        }
        if self.newest[index].is_null() {
            self.filled &= !(1 << index);
        }
    }

    fn list<'h>(&self, index: usize) -> impl Iterator<Item = &'h Span> + use<'h> {
        successors(span_at(self.newest[index]), |span| span_at(span.next.get()))
    }

    /// Returns a span that is about `bytes` long and `fits`.
    pub fn find_near<'h>(&self, bytes: usize, fits: impl Fn(&Span) -> bool) -> Option<&'h Span> {
        self.list(index_of(bytes)).take(MOST_LOOKED_AT).find(|span| fits(span))
    }

    /// Returns a span out of the next lists for longer ones.
    pub fn find_longer<'h>(&self, bytes: usize) -> Option<&'h Span> {
        let longer = self.filled & (u128::MAX << index_of(bytes)) & !(1 << index_of(bytes));
        (longer != 0).then(|| span_at(self.newest[longer.trailing_zeros() as usize])).flatten()
    }

    /// Returns a span that is shorter than `bytes` but not than half of that, the longest first,
    /// and `fits`.
    pub fn find_shorter<'h>(&self, bytes: usize, fits: impl Fn(&Span) -> bool) -> Option<&'h Span> {
        let (first, last) = (index_of(bytes / 2), index_of(bytes));
        (first..last).rev().find_map(|index| {
            self.list(index).take(MOST_LOOKED_AT).find(|span| span.bytes() < bytes && fits(span))
        })
    }

    /// Returns the longest list's newest span.
    pub fn longest<'h>(&self) -> Option<&'h Span> {
        (self.filled != 0).then(|| span_at(self.newest[self.filled.ilog2() as usize])).flatten()
    }

    /// Returns the span that was put first of those that are the oldest of their list.
    pub fn oldest<'h>(&self) -> Option<&'h Span> {
        let mut filled = self.filled;
        let oldest = core::iter::from_fn(|| {
            let index = (filled != 0).then(|| filled.trailing_zeros() as usize)?;
            filled &= filled - 1;
            span_at(self.oldest[index])
        });
        oldest.min_by_key(|span| span.mapping.cached_at.get())
    }

    /// Links anew those spans of this kind, after a fork in which a thread was at it (V4).
    pub fn rebuild<'h>(&mut self, spans: impl Iterator<Item = &'h Span>, kind: SpanKind) {
        *self = Self::new();
        spans.filter(|span| span.kind() == kind).for_each(|span| self.put(span));
    }

    /// Returns every span.
    pub fn all<'h>(&self) -> impl Iterator<Item = &'h Span> + use<'h, '_> {
        (0..LIST_COUNT).flat_map(|index| self.list(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::chunk::CHUNK_BYTES;
    use std::boxed::Box;
    use std::vec::Vec;

    fn span(units: usize) -> &'static Span {
        // SAFETY: a descriptor of zeros describes nothing.
        let span: Box<Span> = unsafe { Box::new_zeroed().assume_init() };
        span.describe(SpanKind::Free, 0, CHUNK_BYTES, units * MAX_PAGE_BYTES, 0);
        Box::leak(span)
    }

    #[test]
    fn a_longer_mapping_is_in_no_earlier_list() {
        for units in 1..100_000 {
            let (this, next) = (index_of(units * MAX_PAGE_BYTES), index_of((units + 1) << 16));
            assert!(this == next || this + 1 == next, "{units}");
        }
        let doubling = 1 << 20;
        assert_eq!(index_of(2 * doubling) - index_of(doubling), STEPS);
        assert_eq!(index_of(1 << 46), index_of(1 << 45) + STEPS, "the lists reach as far");
        assert!(index_of(usize::MAX) < LIST_COUNT);
    }

    #[test]
    fn what_is_put_is_found_by_its_length_until_it_is_removed() {
        let mut lists = ByLength::new();
        let spans: Vec<_> = [20, 33, 64, 64, 400, 2000].map(span).into();
        for (time, span) in spans.iter().enumerate() {
            span.mapping.cached_at.set(time);
            lists.put(span);
        }
        assert_eq!(lists.all().count(), spans.len());
        let bytes = |units: usize| units * MAX_PAGE_BYTES;
        let is = |found: Option<&Span>, index: usize| {
            found.is_some_and(|found| core::ptr::eq(found, spans[index]))
        };
        assert!(is(lists.find_near(bytes(64), |_| true), 3), "the newest");
        assert!(is(lists.find_near(bytes(64), |span| !core::ptr::eq(span, spans[3])), 2));
        assert!(lists.find_near(bytes(100), |_| true).is_none());
        assert!(is(lists.find_longer(bytes(100)), 4));
        assert!(is(lists.find_longer(bytes(64)), 4) && lists.find_longer(bytes(2000)).is_none());
        assert!(is(lists.find_shorter(bytes(64), |_| true), 1));
        assert!(lists.find_shorter(bytes(2000), |_| true).is_none(), "half or less");
        assert!(is(lists.longest(), 5) && is(lists.oldest(), 0));
        for index in [2, 5, 0, 3, 1, 4] {
            lists.remove(spans[index]);
            assert!(lists.all().all(|span| !core::ptr::eq(span, spans[index])));
        }
        assert!(lists.longest().is_none() && lists.oldest().is_none() && lists.filled == 0);
    }
}
