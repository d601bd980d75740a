//! `hole`: memory that a reaper leaves in a span, while the lane that was lent the span walks it; a
//! block that becomes shorter while another lane walks its region.

use loom::sync::Arc;
use loom::sync::atomic::Ordering;
use loom::thread;
use rqmalloc_loom_tests::lockfree::header::{Header, LIVE, Memory};
use rqmalloc_loom_tests::lockfree::hole::{Hole, leave_hole, look, shorten};
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

/// H7: a walk that finds a block shorter finds a header where it ends now, and one that finds it as
/// long as it was does not come there.
#[test]
fn block_shortened_against_walk() {
    const SHORT: usize = 1;
    const LONG: usize = 2;
    explore(3, || {
        let tag = Header::tag(0xabc, LIVE);
        // The second header is a word of the first one's payload so far.
        let blocks = Arc::new(Blocks::new(2, Header(u64::MAX)));
        let [first, second] = [0, 1].map(|index| blocks.block(index));
        shorten(&*blocks, first, tag.with_class(LONG));
        let other = blocks.clone();
        let owner = thread::spawn(move || {
            let free = tag.without(LIVE).with_class(SHORT);
            other.header(second).store(free.0, Ordering::Relaxed);
            shorten(&*other, first, tag.with_class(SHORT));
        });
        if look(&*blocks, first) == tag.with_class(SHORT) {
            let behind = look(&*blocks, second);
            assert_eq!(behind.id(), tag.id(), "it is a header");
            assert_eq!(behind.class_index(), SHORT);
        }
        owner.join().unwrap();
        assert_eq!(look(&*blocks, first), tag.with_class(SHORT));
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
