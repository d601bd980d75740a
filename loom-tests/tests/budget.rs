//! `budget`: grants never exceed the limit, an accepted limit is never below what is in use, and a
//! mark says why it was set. What is charged to a chain is charged to all of it or to none.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU64;
use rqmalloc_loom_tests::lockfree::budget::{Budget, Limit, Mark, Marked, Reason, charge_each};
use rqmalloc_loom_tests::lockfree::state::{Callbacks, State};
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
        let lane = thread::spawn(move || other.say(Reason::Near, why));
        let seen = mark.get();
        let told = Some((Reason::Near, why));
        assert!(seen.is_none() || seen == told, "G2: a mark that is seen has its reason");
        lane.join().unwrap();
        assert_eq!(mark.get(), told);
        assert!(mark.is_to_be_given_up());
    });
}

/// A refusal is a mark too, but not one of being near; a cleared mark is none.
#[test]
fn refusal_noted_against_check() {
    explore(3, || {
        let mark = Arc::new(Mark::new());
        let other = mark.clone();
        let why = Marked { in_use_bytes: 7, asked_bytes: 9 };
        let lane = thread::spawn(move || other.say(Reason::Refused(2), why));
        let seen = mark.get();
        let told = Some((Reason::Refused(2), why));
        assert!(seen.is_none() || seen == told, "G2: a mark that is seen has its reason");
        lane.join().unwrap();
        assert_eq!(mark.get(), told);
        assert!(!mark.is_to_be_given_up());
        mark.clear();
        assert_eq!(mark.get(), None);
    });
}

/// A new limit takes back what its own threads said, and not what another thread says of the
/// process meanwhile; nor the other way round.
#[test]
fn process_marks_against_new_limits() {
    explore(3, || {
        let mark = Arc::new(Mark::new());
        let (own, of_process) = (
            Marked { in_use_bytes: 7, asked_bytes: 9 },
            Marked { in_use_bytes: 70, asked_bytes: 60 },
        );
        mark.say(Reason::Near, own);
        mark.say(Reason::Soft, own);
        let other = mark.clone();
        let marker = thread::spawn(move || other.say(Reason::Process, of_process));
        mark.clear_limit();
        assert_eq!(mark.get(), Some((Reason::Soft, own)), "the one that was not taken back");
        mark.clear_soft();
        let seen = mark.get();
        let told = Some((Reason::Process, of_process));
        assert!(seen.is_none() || seen == told, "G2: a mark that is seen has its reason");
        marker.join().unwrap();
        assert_eq!(mark.get(), told, "G2: it is not lost");
    });
}

struct NoCallbacks;

impl Callbacks for NoCallbacks {
    fn is_empty(&self) -> bool {
        true
    }

    fn run(&self) {}
}

/// A visitor marks a request because of the process while its last handle goes and its control
/// block is opened anew: the next request is not marked.
#[test]
fn process_mark_against_close_and_reopen() {
    explore(3, || {
        let request = Arc::new((State(AtomicU64::new(0)), Mark::new()));
        let (state, mark) = (&request.0, &request.1);
        state.open(1);
        let other = request.clone();
        let marker = thread::spawn(move || {
            let why = Marked { in_use_bytes: 7, asked_bytes: 9 };
            let (state, mark) = (&other.0, &other.1);
            state.visit(1, thread::yield_now, || mark.say(Reason::Process, why)).is_some()
        });
        assert!(state.drop_handle(&NoCallbacks));
        while state.try_own().is_none() {
            thread::yield_now();
        }
        let was_marked = mark.get().is_some();
        state.retire();
        mark.clear();
        state.open(2);
        assert_eq!(mark.get(), None, "L2: whoever marks the old request has done so by now");
        let has_visited = marker.join().unwrap();
        assert_eq!(was_marked, has_visited, "L2: its finisher sees the mark");
        assert_eq!(mark.get(), None);
    });
}

/// Charges a chain; the first is its lowest.
fn charge(chain: &[&Budget], units: u64) -> Result<(), usize> {
    let charge = |budget: &Budget| budget.charge(units, u64::MAX).is_some();
    charge_each(chain.iter().copied(), charge, |budget| budget.refund(units))
}

/// Two children at their parent's limit: only one gets the last pages, and the other keeps nothing.
#[test]
fn two_children_at_their_parents_limit() {
    explore(3, || {
        let parent = budget(1, 4);
        let children = [budget(0, 8), budget(0, 8)];
        let threads = children.each_ref().map(|child| {
            let (child, parent) = (child.clone(), parent.clone());
            thread::spawn(move || charge(&[&child, &parent], 2))
        });
        let results = threads.map(|thread| thread.join().unwrap());
        assert!(results.contains(&Ok(())) && results.contains(&Err(1)), "G1: one is granted");
        assert_eq!(parent.used(), 3);
        for (child, result) in children.iter().zip(results) {
            assert_eq!(child.used(), if result.is_ok() { 2 } else { 0 }, "G3: all or none");
        }
    });
}

/// A child is finished while another one grows: what it held is the parent's no more, and nothing
/// is lost or counted twice.
#[test]
fn child_finished_against_charge_of_another() {
    explore(3, || {
        let parent = budget(2, 4);
        let [first, second] = [budget(2, 8), budget(0, 3)];
        let chain = (second.clone(), parent.clone());
        let grows = thread::spawn(move || charge(&[&chain.0, &chain.1], 3));
        let held = first.take_all();
        assert_eq!((held, first.used()), (2, 0));
        parent.refund(held);
        let granted = grows.join().unwrap().is_ok();
        assert_eq!((second.used(), parent.used()), if granted { (3, 3) } else { (0, 0) }, "G3");
        assert_eq!(charge(&[&second, &parent], 1), if granted { Err(0) } else { Ok(()) });
    });
}
