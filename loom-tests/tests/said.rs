//! `said`, `traced`, `counted`, `judged`: words that tell of what was done before.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::{AtomicU64, Ordering};
use rqmalloc_loom_tests::lockfree::counted::CountedBytes;
use rqmalloc_loom_tests::lockfree::header::{Header, LIVE, Memory, TRACED};
use rqmalloc_loom_tests::lockfree::judged::has_changed;
use rqmalloc_loom_tests::lockfree::lifetime::{Adoption, adopt_at_close};
use rqmalloc_loom_tests::lockfree::said::Said;
use rqmalloc_loom_tests::lockfree::state::{Phase, State};
use rqmalloc_loom_tests::lockfree::traced;
use rqmalloc_loom_tests::model::{Blocks, NoCallbacks, Plain, explore};

/// Y1: a thread that hears sees what was done before, and says it on.
#[test]
fn said_against_heard() {
    explore(3, || {
        let model = Arc::new((Said::new(), Plain::new(0), Said::new()));
        let [teller, hearer] = [model.clone(), model.clone()];
        let teller = thread::spawn(move || {
            let heard = teller.0.hear();
            if heard != 0 {
                teller.2.say(heard);
                assert_eq!(teller.2.peek(), heard);
            }
        });
        let hearer = thread::spawn(move || {
            if hearer.2.hear() != 0 {
                hearer.1.read(|done| assert_eq!(*done, 1, "Y1"));
            }
        });
        model.1.write(|done| *done = 1);
        model.0.say(1);
        teller.join().unwrap();
        hearer.join().unwrap();
        assert_eq!(model.0.hear(), 1);
        model.0.reset();
        assert_eq!(model.0.hear(), 0);
    });
}

/// Y1: a thread that hears bits which others added sees what each of them did before.
#[test]
fn added_against_heard() {
    explore(3, || {
        let model = Arc::new((Said::new(), Plain::new(0), Plain::new(0)));
        let [adder, hearer] = [model.clone(), model.clone()];
        let adder = thread::spawn(move || {
            adder.2.write(|done| *done = 1);
            adder.0.add(2);
        });
        let hearer = thread::spawn(move || {
            let heard = hearer.0.hear();
            if heard & 1 != 0 {
                hearer.1.read(|done| assert_eq!(*done, 1, "Y1"));
            }
            if heard & 2 != 0 {
                hearer.2.read(|done| assert_eq!(*done, 1, "Y1"));
            }
        });
        model.1.write(|done| *done = 1);
        model.0.add(1);
        adder.join().unwrap();
        hearer.join().unwrap();
        assert_eq!(model.0.hear(), 3, "none is lost");
    });
}

/// Y2: a walk reads the record of a block that its owner has just made.
#[test]
fn traced_against_walk() {
    explore(3, || {
        let model = Arc::new((AtomicU64::new(Header::tag(1, LIVE).0), Plain::new(0)));
        let other = model.clone();
        let walker = thread::spawn(move || {
            if traced::is_told(Header(other.0.load(Ordering::Relaxed))) {
                other.1.read(|record| assert_eq!(*record, 1, "Y2"));
            }
        });
        model.1.write(|record| *record = 1);
        traced::tell(&model.0);
        walker.join().unwrap();
        let told = Header(model.0.load(Ordering::Relaxed));
        assert_eq!(told, Header::tag(1, LIVE).with(TRACED));
        assert!(traced::is_told(told));
    });
}

/// Y4: a figure that counts a block tells of it, also when another one is counted meanwhile.
#[test]
fn counted_against_looked_at() {
    explore(3, || {
        let model = Arc::new((CountedBytes(AtomicU64::new(0)), [Plain::new(0), Plain::new(0)]));
        model.0.open(7);
        let [counter, looker] = [model.clone(), model.clone()];
        let counter = thread::spawn(move || {
            counter.1[1].write(|done| *done = 1);
            counter.0.add(7, 1, 16);
        });
        let looker = thread::spawn(move || {
            if looker.0.figures() == (2, 48) {
                looker.1.iter().for_each(|done| done.read(|done| assert_eq!(*done, 1, "Y4")));
            }
        });
        model.1[0].write(|done| *done = 1);
        model.0.add(7, 1, 32);
        counter.join().unwrap();
        looker.join().unwrap();
        assert_eq!(model.0.figures(), (2, 48));
        model.0.take(7, 1, 16);
        assert_eq!(model.0.figures(), (1, 32));
    });
}

/// Y5: what comes too late for a request is not counted for the next one.
#[test]
fn counted_late_for_the_next_request() {
    explore(1, || {
        let figure = CountedBytes(AtomicU64::new(0));
        figure.open(7);
        figure.add(7, 1, 16);
        figure.open(8);
        figure.add(7, 1, 16);
        assert_eq!(figure.figures(), (0, 0), "Y5");
    });
}

/// Y3: a block is judged by its header while its request is closed and adopts it. It is no block of
/// an ended request.
#[test]
fn judged_against_close() {
    const PERSISTENT: Header = Header::tag(0xfff, LIVE);
    explore(3, || {
        let model = Arc::new((State(AtomicU64::new(0)), Blocks::new(1, Header::tag(5, LIVE))));
        model.0.open(5);
        let other = model.clone();
        let judge = thread::spawn(move || {
            let block = other.1.block(0);
            let judged = other.1.look(block);
            let state = other.0.look();
            let is_over = state.generation() != 5 || state.phase() == Phase::Over;
            if judged != PERSISTENT && is_over {
                assert!(has_changed(&other.1, block, judged), "Y3");
            }
        });
        let block = model.1.block(0);
        assert!(model.0.drop_only_handle(&NoCallbacks));
        assert_eq!(adopt_at_close(&model.1, block, PERSISTENT), Adoption::Adopted);
        model.0.retire();
        model.0.open(6);
        judge.join().unwrap();
        assert_eq!(model.1.header(block).load(Ordering::Relaxed), PERSISTENT.0);
        assert!(!has_changed(&model.1, block, PERSISTENT));
    });
}
