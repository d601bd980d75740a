//! Words that are read while they are written (V1, V2).

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::base::sync::AtomicU64;
use rqmalloc_loom_tests::lockfree::versioned::Versioned;
use rqmalloc_loom_tests::model::explore;

fn words(value: u64) -> [u64; 2] {
    [value, value + 100]
}

/// A record is written to memory with unknown contents.
fn written_once(garbage: u64) -> Arc<Versioned<2>> {
    let versioned = Versioned {
        version: AtomicU64::new(garbage),
        words: [AtomicU64::new(garbage), AtomicU64::new(garbage)],
    };
    versioned.write(&words(1));
    Arc::new(versioned)
}

#[test]
fn written_anew_against_read() {
    for garbage in [0, 7, u64::MAX] {
        explore(3, move || {
            let versioned = written_once(garbage);
            let reader = Arc::clone(&versioned);
            let reader = thread::spawn(move || reader.read());
            versioned.write(&words(2));
            let read = reader.join().unwrap();
            assert!(
                read.is_none_or(|read| read == words(1) || read == words(2)),
                "a reader sees what one write left: {read:?}"
            );
        });
    }
}

#[test]
fn written_twice_against_two_reads() {
    explore(3, || {
        let versioned = written_once(0);
        let reader = Arc::clone(&versioned);
        let reader = thread::spawn(move || [reader.read(), reader.read()]);
        versioned.write(&words(2));
        versioned.write(&words(3));
        let [first, second] = reader.join().unwrap();
        let value = |read: Option<[u64; 2]>| {
            read.map_or(0, |read| {
                assert_eq!(read[1], read[0] + 100, "a reader sees what one write left");
                read[0]
            })
        };
        assert!(second.is_none() || value(second) >= value(first), "words do not go back");
        assert_eq!(value(versioned.read()), 3, "the writer sees its last words");
    });
}
