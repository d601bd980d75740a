//! `asked`: threads that ask, while one answers.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::asked::Asked;
use rqmalloc_loom_tests::model::explore;
use std::cell::Cell;

/// C3: of two who ask, each gets an answer that comes after; one answer may be for both.
#[test]
fn two_ask_against_answer() {
    explore(3, || {
        let asked = Arc::new(Asked::new());
        let [asker, answerer] = [asked.clone(), asked.clone()];
        let answerer = thread::spawn(move || {
            let answered = Cell::new(0);
            let is_first = answerer.is_asked(&answered);
            assert_eq!(is_first, answered.get() > 0, "an answer to nobody, or none");
            answered
        });
        let asker = thread::spawn(move || asker.ask());
        asked.ask();
        asker.join().unwrap();
        let answered = answerer.join().unwrap();
        let heard = answered.get();
        assert_eq!(asked.is_asked(&answered), heard < 2, "C3: who asked after the answer");
        assert!(!asked.is_asked(&answered), "answered");
    });
}
