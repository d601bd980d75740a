//! `hole`: memory that a reaper leaves in a span, while the lane that was lent the span walks it.

use loom::sync::Arc;
use loom::thread;
use rqmalloc_loom_tests::lockfree::header::{Header, LIVE};
use rqmalloc_loom_tests::lockfree::hole::{Hole, leave_hole, look};
use rqmalloc_loom_tests::model::{Blocks, explore};

/// H6: who cuts a block from a hole uses its memory after everybody who had it before.
#[test]
fn hole_left_against_walk() {
    explore(3, || {
        let blocks = Arc::new(Blocks::new(2, Header::tag(0xfff, LIVE)));
        let other = blocks.clone();
        let reaper = thread::spawn(move || {
            for index in [0, 1] {
                let block = other.block(index);
                other.use_payload(block);
                leave_hole(&*other, block, Hole { bytes: 32, is_in_use: false });
            }
        });
        for index in [0, 1] {
            let block = blocks.block(index);
            if let Some(hole) = Hole::of(look(&*blocks, block)) {
                assert_eq!(hole, Hole { bytes: 32, is_in_use: false });
                blocks.use_payload(block);
            }
        }
        reaper.join().unwrap();
        for index in [0, 1] {
            assert!(Hole::of(look(&*blocks, blocks.block(index))).is_some(), "it was left");
        }
    });
}

/// A word of a hole is none of a block, and no block's one of a hole.
#[test]
fn words_of_holes() {
    explore(1, || {
        for is_in_use in [false, true] {
            let hole = Hole { bytes: 0x1230, is_in_use };
            assert_eq!(Hole::of(hole.word()), Some(hole));
            assert!(!hole.word().has(LIVE));
            assert_eq!(hole.word().aligned_distance(), None);
        }
        assert_eq!(Hole::of(Header::tag(0x1230, LIVE)), None);
        assert_eq!(Hole::of(Header::aligned(0x1230)), None);
    });
}
