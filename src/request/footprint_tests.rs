//! Tests of `footprint`.

use super::footprint::*;
use crate::base::size_class::PAGE_BYTES;
use crate::request::limits::{Limits, MAX_DEFAULT_RESERVE_BYTES};

const LIMIT_BYTES: usize = 64 * PAGE_BYTES;
const RESERVE_BYTES: usize = 8 * PAGE_BYTES;

fn limited_to(bytes: usize) -> Limits {
    Limits { limit_bytes: Some(bytes), ..Limits::default() }
}

fn limited() -> Footprint {
    let footprint = Footprint::new();
    let limits = Limits { reserve_bytes: Some(RESERVE_BYTES), ..limited_to(LIMIT_BYTES) };
    footprint.open(&limits, false, None);
    footprint
}

fn take(footprint: &Footprint, bytes: usize, bound: Bound) -> bool {
    let is_granted = footprint.charge(None, bytes, bound);
    if is_granted {
        footprint.note_taken(bytes);
    }
    is_granted
}

#[test]
fn the_soft_bound_is_the_mark_until_it_is_set() {
    let footprint = limited();
    assert!(take(&footprint, LIMIT_BYTES - RESERVE_BYTES, Bound::Soft));
    assert!(!footprint.is_to_be_given_up() && footprint.marked().is_none());
    assert!(!take(&footprint, PAGE_BYTES, Bound::Soft), "the caller reclaims first");
    assert!(take(&footprint, PAGE_BYTES, Bound::Hard));
    assert!(footprint.is_to_be_given_up(), "the memory is there, above the mark");
    assert!(
        take(&footprint, RESERVE_BYTES - PAGE_BYTES, Bound::Soft),
        "marked, so up to the limit"
    );
    assert!(!take(&footprint, PAGE_BYTES, Bound::Hard));
    assert!(
        footprint.level_over_limit(PAGE_BYTES) == Some(0)
            && footprint.level_over_limit(0).is_none()
    );
    assert_eq!(footprint.missing_bytes(3 * PAGE_BYTES), 3 * PAGE_BYTES);
}

#[test]
fn a_limit_is_not_below_what_is_in_use_and_a_higher_one_takes_the_mark_back() {
    let footprint = limited();
    assert!(take(&footprint, LIMIT_BYTES, Bound::Hard) && footprint.is_to_be_given_up());
    assert!(!footprint.set_limit(LIMIT_BYTES - PAGE_BYTES));
    assert_eq!(footprint.limit_bytes(), Some(LIMIT_BYTES), "nothing has changed");
    assert!(footprint.set_limit(usize::MAX));
    assert!(footprint.limit_bytes().is_none() && !footprint.is_to_be_given_up());
}

#[test]
fn a_limit_may_be_as_long_as_addresses() {
    const TIB: usize = 1 << 40;
    let footprint = Footprint::new();
    footprint.open(&limited_to(5 * TIB), false, None);
    assert!(take(&footprint, 4 * TIB, Bound::Soft) && !footprint.is_to_be_given_up());
    assert!(take(&footprint, TIB - MAX_DEFAULT_RESERVE_BYTES, Bound::Soft));
    assert!(!take(&footprint, PAGE_BYTES, Bound::Soft), "the mark is where it was asked for");
    assert_eq!(footprint.room_bytes(Bound::Hard), MAX_DEFAULT_RESERVE_BYTES);
    assert!(take(&footprint, MAX_DEFAULT_RESERVE_BYTES, Bound::Hard));
    assert!(
        !footprint.charge(None, PAGE_BYTES, Bound::Hard)
            && footprint.level_over_limit(PAGE_BYTES) == Some(0)
    );
    assert_eq!((footprint.bytes(), footprint.limit_bytes()), (5 * TIB, Some(5 * TIB)));
    assert!(!footprint.set_limit(5 * TIB - PAGE_BYTES - TIB));
    assert!(footprint.set_limit(7 * TIB + 1) && footprint.limit_bytes() == Some(7 * TIB + 1));
    assert!(take(&footprint, 2 * TIB, Bound::Hard) && footprint.is_to_be_given_up());
    assert!(footprint.set_limit(usize::MAX) && !footprint.is_to_be_given_up());
    assert!(take(&footprint, 100 * TIB, Bound::Soft), "without a limit, too");
    assert!(!take(&footprint, isize::MAX as usize, Bound::Hard));
    footprint.refund(107 * TIB);
    assert_eq!((footprint.bytes(), footprint.peak_bytes()), (0, 107 * TIB));
}

#[test]
fn the_peak_stays_until_it_is_measured_anew() {
    let footprint = limited();
    assert!(take(&footprint, 5 * PAGE_BYTES, Bound::Soft));
    footprint.refund(3 * PAGE_BYTES);
    assert_eq!((footprint.bytes(), footprint.peak_bytes()), (2 * PAGE_BYTES, 5 * PAGE_BYTES));
    footprint.reset_peak();
    assert_eq!(footprint.peak_bytes(), 2 * PAGE_BYTES);
}

#[test]
fn a_refusal_is_told_once_and_is_no_mark() {
    let footprint = limited();
    footprint.note_refusal(0, PAGE_BYTES);
    assert!(footprint.marked().is_some() && !footprint.is_to_be_given_up());
    assert!(footprint.tells_refusal() && !footprint.tells_refusal());
    footprint.open(&Limits::default(), true, None);
    assert!(!footprint.tells_refusal(), "its opener wants no report");
}
