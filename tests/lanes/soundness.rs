//! What a program creates once and keeps, first used inside a request: it stays valid and is
//! reported, or is kept out by `persistent` or by being created before.

use crate::support::{
    Held, PAGE, active_owner, close_empty, current_id, elsewhere, persistent_vec, together, unwind,
};
use rqmalloc::{Request, persistent};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{LazyLock, Mutex, OnceLock};

type Words = HashMap<u64, String>;

fn words() -> Words {
    (0..100).map(|number| (number, format!("word {number}"))).collect()
}

fn expect_words(words: &Words) {
    assert_eq!(words.len(), 100);
    assert!(words.iter().all(|(number, word)| *word == format!("word {number}")));
}

/// A hundred strings and the table.
const WORDS_BLOCKS: u64 = 101;

#[test]
fn a_lazy_static_first_used_inside() {
    let _together = together();
    static INSIDE: LazyLock<Words> = LazyLock::new(words);
    static PERSISTENT: LazyLock<Words> = LazyLock::new(|| persistent(words));
    static PREWARMED: LazyLock<Words> = LazyLock::new(words);
    LazyLock::force(&PREWARMED);
    let request = Request::new();
    request.run(|| {
        expect_words(&PERSISTENT);
        expect_words(&PREWARMED);
    });
    close_empty(request);
    let request = Request::new();
    request.run(|| expect_words(&INSIDE));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, WORDS_BLOCKS, "{report}");
    assert!(report.to_string().contains("101 blocks survive"), "{report}");
    // Other requests reuse the memory that was given back.
    let others: Vec<_> = (0..20)
        .map(|seed| {
            let other = Request::new();
            let held: Vec<_> =
                other.run(|| (0..200).map(|size| Held::new(1 + size, seed)).collect());
            (other, held)
        })
        .collect();
    expect_words(&INSIDE);
    elsewhere(|| expect_words(&INSIDE));
    for (other, held) in others {
        held.into_iter().for_each(Held::free);
        assert!(other.close().is_ok());
    }
    expect_words(&INSIDE);
}

#[test]
fn a_once_lock_first_used_inside() {
    let _together = together();
    static INSIDE: OnceLock<Words> = OnceLock::new();
    static PERSISTENT: OnceLock<Words> = OnceLock::new();
    let request = Request::new();
    request.run(|| expect_words(persistent(|| PERSISTENT.get_or_init(words))));
    close_empty(request);
    rqmalloc::begin_request();
    expect_words(INSIDE.get_or_init(words));
    let report = rqmalloc::close_request();
    assert_eq!(report.surviving_blocks, WORDS_BLOCKS, "{report}");
    expect_words(&INSIDE.get().unwrap().clone());
}

/// A global vector that existed before grows inside: its buffer stays persistent, its values belong
/// to the request.
#[test]
fn a_global_that_grows_inside() {
    let _together = together();
    static GLOBAL: Mutex<Vec<String>> = Mutex::new(Vec::new());
    GLOBAL.lock().unwrap().push("0".to_string());
    let request = Request::new();
    request.run(|| GLOBAL.lock().unwrap().extend((1..1000).map(|number| number.to_string())));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 999, "{report}");
    let texts = std::mem::take(&mut *GLOBAL.lock().unwrap());
    assert!(texts.into_iter().enumerate().all(|(index, text)| text == index.to_string()));
}

/// Its destructor sees it as it was created, in a request that is long over.
struct Seen {
    words: Words,
    seen: &'static AtomicU64,
}

impl Drop for Seen {
    fn drop(&mut self) {
        expect_words(&self.words);
        self.seen.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_thread_local_first_used_inside() {
    let _together = together();
    static SEEN: AtomicU64 = AtomicU64::new(0);
    std::thread_local! {
        static WITH_DROP: Seen = Seen { words: words(), seen: &SEEN };
        static WITHOUT_DROP: Cell<Option<&'static Words>> = const { Cell::new(None) };
        static EAGER: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    }
    for inside in [true, false] {
        let blocks = elsewhere(move || {
            if !inside {
                WITH_DROP.with(|seen| expect_words(&seen.words));
            }
            let request = Request::new();
            request.run(|| {
                WITH_DROP.with(|seen| expect_words(&seen.words));
                if inside {
                    WITHOUT_DROP.set(Some(Box::leak(Box::new(words()))));
                } else {
                    persistent(|| WITHOUT_DROP.set(Some(Box::leak(Box::new(words())))));
                }
                let grow = || EAGER.with_borrow_mut(|eager| eager.extend(0..1000));
                if inside { grow() } else { persistent(grow) }
            });
            let report = request.close().unwrap();
            // They are used after the close, and their destructors run at the thread's exit.
            WITH_DROP.with(|seen| expect_words(&seen.words));
            expect_words(WITHOUT_DROP.get().unwrap());
            EAGER.with_borrow_mut(|eager| {
                assert!(eager.iter().copied().eq(0..1000));
                eager.extend(1000..100_000);
            });
            report.surviving_blocks
        });
        // Two maps, the leaked box, the vector.
        assert_eq!(blocks, if inside { 2 * WORDS_BLOCKS + 2 } else { 0 });
    }
    assert_eq!(SEEN.load(Ordering::Relaxed), 2);
}

/// A channel that grows inside and is read by others long after.
#[test]
fn a_channel_that_grows_inside() {
    let _together = together();
    let (sender, receiver) = channel::<Box<u64>>();
    let request = Request::new();
    request.run(|| (0..500).for_each(|number| sender.send(Box::new(number)).unwrap()));
    let report = request.close().unwrap();
    assert!(report.surviving_blocks > 500, "{report}");
    drop(sender);
    elsewhere(move || {
        assert!(receiver.iter().map(|number| *number).eq(0..500));
    });
    // Prewarmed and inside `persistent`: nothing stays.
    let (sender, receiver) = channel::<Box<u64>>();
    let request = Request::new();
    request
        .run(|| persistent(|| (0..500).for_each(|number| sender.send(Box::new(number)).unwrap())));
    close_empty(request);
    assert_eq!(receiver.try_iter().count(), 500);
}

/// A thread that is started inside and outlives the request.
#[test]
fn a_thread_started_inside() {
    let _together = together();
    let (go, gone) = channel::<()>();
    let request = Request::new();
    let thread = request.run(|| {
        std::thread::Builder::new()
            .name("started inside".to_string())
            .spawn(move || {
                // Threads do not inherit the request.
                let before = (current_id(), active_owner());
                gone.recv().unwrap();
                assert_eq!(std::thread::current().name(), Some("started inside"));
                before
            })
            .unwrap()
    });
    let report = request.close().unwrap();
    assert!(report.surviving_blocks >= 3, "{report}");
    go.send(()).unwrap();
    assert_eq!(thread.thread().name(), Some("started inside"));
    assert_eq!(thread.join().unwrap(), (None, None));
}

struct PanicsInDrop(Option<Box<u64>>);

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        assert_eq!(self.0.take(), Some(Box::new(3)));
        unwind(5)
    }
}

#[test]
fn a_panic_in_drop() {
    let _together = together();
    let request = Request::new();
    let mut survivors = persistent_vec();
    let payload = catch_unwind(AssertUnwindSafe(|| {
        request.run(|| {
            let _strings = words();
            survivors.push(Held::new(100, 1));
            let _bomb = PanicsInDrop(Some(Box::new(3)));
            let _more = words();
        });
    }))
    .unwrap_err();
    assert_eq!((current_id(), active_owner()), (None, None));
    // What the handler had is dropped in spite of the panic; the payload was allocated inside.
    assert_eq!(request.usage().live_blocks, 2);
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 2, "{report}");
    assert!((report.surviving_bytes..=2 * PAGE).contains(&report.span_bytes), "{report}");
    assert_eq!(payload.downcast_ref::<u64>(), Some(&5));
    survivors.into_iter().for_each(Held::free);
}

/// A value that is dropped after its request was closed, and whose destructor opens another.
#[test]
fn destructors_of_survivors_use_requests() {
    let _together = together();
    struct Opens(Vec<String>);
    impl Drop for Opens {
        fn drop(&mut self) {
            let request = Request::new();
            let copy = request.run(|| self.0.clone());
            assert_eq!(copy, self.0);
            drop(copy);
            close_empty(request);
        }
    }
    let request = Request::new();
    let opens = request.run(|| Opens((0..50).map(|number| number.to_string()).collect()));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 51, "{report}");
    elsewhere(move || drop(opens));
}
