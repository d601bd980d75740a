//! `budget`: grants never exceed the limit, an accepted limit is never below what is in use, and a
//! mark says why it was set.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::budget::{Budget, Limit, Mark, Marked};
use rqmalloc_loom_tests::model::explore;

fn budget(used: u64, limit: u64) -> Arc<Budget> {
    let budget = Budget::new();
    budget.open(Limit::of(limit));
    assert_eq!(budget.charge_beyond(used), Some(used));
    Arc::new(budget)
}

/// Two lanes at the boundary: only one gets the last pages.
#[test]
fn two_charges_at_the_limit() {
    explore(3, || {
        let budget = budget(1, 4);
        let others = [budget.clone(), budget.clone()];
        let threads =
            others.map(|other| thread::spawn(move || other.charge(2, u64::MAX).is_some()));
        let granted = threads.map(|thread| u64::from(thread.join().unwrap())).iter().sum::<u64>();
        assert_eq!(granted, 1, "G1: of two charges that do not both fit, one is granted");
        assert_eq!(budget.used(), 3, "G1: what is in use is what was granted");
    });
}

/// A limit is lowered while a lane grows: never is more in use than an accepted limit.
#[test]
fn limit_lowered_against_charge() {
    explore(3, || {
        let budget = budget(1, 8);
        let other = budget.clone();
        let lane = thread::spawn(move || other.charge(2, u64::MAX).is_some());
        let accepted = budget.set_limit(Limit::of(2));
        let granted = lane.join().unwrap();
        assert!(accepted != granted, "G1: the limit was accepted, or the charge granted, not both");
        assert_eq!((budget.used(), budget.limit().units()), if granted { (3, 8) } else { (1, 2) });
    });
}

/// What one lane gives back, another can have; nothing is lost or counted twice.
#[test]
fn refund_against_charge_and_limit() {
    explore(3, || {
        let budget = budget(3, 4);
        let others = [budget.clone(), budget.clone()];
        let [giver, lane] = others;
        let giver = thread::spawn(move || giver.refund(2));
        let lane = thread::spawn(move || lane.charge(2, u64::MAX).is_some());
        let lifted = budget.set_limit(Limit::NONE);
        giver.join().unwrap();
        let granted = lane.join().unwrap();
        assert!(lifted, "no limit is never below what is in use");
        assert_eq!(budget.used(), if granted { 3 } else { 1 }, "every change is counted once");
    });
}

/// A mark is seen together with its reason.
#[test]
fn mark_set_against_check() {
    explore(3, || {
        let mark = Arc::new(Mark::new());
        let other = mark.clone();
        let why = Marked { in_use_bytes: 7, asked_bytes: 9 };
        let lane = thread::spawn(move || other.set(why));
        let seen = mark.get();
        assert!(seen.is_none() || seen == Some(why), "G2: a mark that is seen has its reason");
        lane.join().unwrap();
        assert_eq!(mark.get(), Some(why));
    });
}

/// A refusal is a mark too, but not one of being near; a cleared mark is none.
#[test]
fn refusal_noted_against_check() {
    explore(3, || {
        let mark = Arc::new(Mark::new());
        let other = mark.clone();
        let why = Marked { in_use_bytes: 7, asked_bytes: 9 };
        let lane = thread::spawn(move || other.note_refusal(why));
        let seen = mark.get();
        assert!(seen.is_none() || seen == Some(why), "G2: a mark that is seen has its reason");
        lane.join().unwrap();
        assert_eq!(mark.get(), Some(why));
        assert!(!mark.is_near());
        mark.clear();
        assert_eq!(mark.get(), None);
    });
}
