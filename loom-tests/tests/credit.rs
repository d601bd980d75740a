//! `credit`: what threads draw together.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::credit::Credit;
use rqmalloc_loom_tests::model::explore;

/// C2: of threads that draw more than there is together, one is refused; what is given back can be
/// drawn again, by somebody else.
#[test]
fn draw_against_draw_and_give_back() {
    explore(3, || {
        let credit = Arc::new(Credit::<3>::new());
        let (one, other) = (credit.clone(), credit.clone());
        let one = thread::spawn(move || one.draw(2));
        let other = thread::spawn(move || {
            let drew = other.draw(2);
            if drew {
                other.give_back(1);
            }
            drew
        });
        let drew_before = credit.draw(1);
        let (one, other) = (one.join().unwrap(), other.join().unwrap());
        assert!(one || other || drew_before, "somebody was first");
        let expected = 2 * usize::from(one) + usize::from(other) + usize::from(drew_before);
        assert_eq!(credit.drawn_bytes(), expected, "C2: each draw counts once");
        assert!(expected <= 3, "C2");
        assert!(credit.draw(3 - expected), "C2: the rest is there");
        assert!(!credit.draw(1), "C2: no more is");
    });
}
