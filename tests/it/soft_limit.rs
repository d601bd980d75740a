//! A request's soft limit: a mark after reclaiming, never null.

use crate::support::{MAX_SHARED, PAGE, end, layout, persistent_vec, together};
use rqmalloc::{Bailout, LimitKind, Request, RqMalloc, check};
use std::alloc::GlobalAlloc;
use std::hint::black_box;

const MIB: usize = 1 << 20;

/// Allocates and forgets a block.
fn take(size: usize) -> *mut u8 {
    // SAFETY: no size here is 0.
    let block = unsafe { RqMalloc.alloc(layout(size, 8)) };
    assert!(!block.is_null(), "nothing is refused because of a soft limit");
    block
}

#[test]
fn it_marks_and_refuses_nothing() {
    let _together = together();
    for size in [24, MAX_SHARED, 100_000, 3 * MIB] {
        let request = Request::builder().soft_limit(4 * MIB).build();
        request.run(|| {
            let mut marked_at = 0;
            for _ in 0..64 * MIB / size {
                take(size);
                if marked_at == 0 && check().is_err() {
                    marked_at = request.usage().footprint_bytes;
                }
            }
            assert!(marked_at > 4 * MIB && marked_at <= 4 * MIB + size + 17 * PAGE, "{marked_at}");
        });
        let limit = request.check().unwrap_err();
        assert_eq!((limit.kind, limit.parent), (LimitKind::Soft, None));
        assert_eq!((limit.limit_bytes, limit.asked_bytes), (4 * MIB, size));
        let text = format!(
            "soft limit reached (limit 4194304, in use {}, asked {size})",
            limit.in_use_bytes
        );
        assert_eq!(limit.to_string(), text);
        assert!(
            request.usage().footprint_bytes >= 60 * MIB && request.usage().limit_bytes.is_none()
        );
        end(request);
    }
}

#[test]
fn catch_gives_the_request_up() {
    let _together = together();
    let request = Request::builder().soft_limit(MIB).build();
    let result = request.catch(|| black_box(vec![1_u8; 2 * MIB]).len());
    let Err(Bailout::Limit(limit)) = result else { panic!("{result:?}") };
    assert_eq!((limit.kind, limit.asked_bytes), (LimitKind::Soft, 2 * MIB));
    end(request);
}

#[test]
fn what_is_free_inside_is_looked_through_first() {
    let _together = together();
    let request = Request::builder().soft_limit(2 * MIB).build();
    request.run(|| {
        for round in 0..60 {
            let size = 100 + 300 * (round % 17);
            let mut blocks = persistent_vec();
            blocks.extend((0..MIB / size).map(|_| take(size)));
            for &block in &blocks {
                // SAFETY: a live block of this size.
                unsafe { RqMalloc.dealloc(block, layout(size, 8)) };
            }
        }
        assert_eq!(check(), Ok(()));
    });
    end(request);
}

#[test]
fn with_a_memory_limit_the_lower_mark_comes_first_and_the_other_one_after_it() {
    let _together = together();
    for (soft, first, last) in [
        (2 * MIB, LimitKind::Soft, LimitKind::Memory),
        (7 * MIB + MIB / 2, LimitKind::Memory, LimitKind::Memory),
    ] {
        let request =
            Request::builder().soft_limit(soft).memory_limit(8 * MIB).reserve(MIB).build();
        request.run(|| {
            while check().is_ok() {
                take(100_000);
            }
        });
        let limit = request.check().unwrap_err();
        assert_eq!(limit.kind, first);
        let in_use = limit.in_use_bytes;
        let mark = soft.min(7 * MIB);
        assert!(in_use > mark && in_use <= mark + 8 * PAGE, "{limit}");
        request.run(|| {
            let mut block = Vec::<u8>::new();
            while request.usage().footprint_bytes < 8 * MIB - 8 * PAGE {
                take(100_000);
            }
            assert!(block.try_reserve_exact(200_000).is_err(), "the hard limit is in force");
        });
        assert_eq!(request.check().unwrap_err().kind, last);
        end(request);
    }
}

#[test]
fn a_new_soft_limit_marks_at_once_and_takes_the_mark_back() {
    let _together = together();
    let request = Request::new();
    request.run(|| (0..40).for_each(|_| _ = take(100_000)));
    request.set_soft_limit(Some(MIB));
    let limit = request.check().unwrap_err();
    assert_eq!((limit.kind, limit.limit_bytes, limit.asked_bytes), (LimitKind::Soft, MIB, 0));
    assert_eq!(limit.in_use_bytes, request.usage().footprint_bytes);
    request.set_soft_limit(Some(16 * MIB));
    assert_eq!(request.check(), Ok(()), "there is room again");
    request.run(|| take(16 * MIB));
    assert!(request.check().is_err());
    request.set_soft_limit(None);
    assert_eq!(request.check(), Ok(()));
    end(request);
}

#[test]
fn a_lower_soft_limit_looks_through_what_is_free_first() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let mut blocks = persistent_vec();
        blocks.extend((0..40_000).map(|_| take(100)));
        for &block in &blocks {
            // SAFETY: a live block of this size.
            unsafe { RqMalloc.dealloc(block, layout(100, 8)) };
        }
        assert!(request.usage().footprint_bytes > 4 * MIB);
        request.set_soft_limit(Some(MIB));
        assert_eq!(check(), Ok(()));
    });
    end(request);
}

#[test]
fn a_soft_limit_of_zero_marks_with_the_first_page() {
    let _together = together();
    let request = Request::builder().soft_limit(0).build();
    assert_eq!(request.check(), Ok(()));
    request.run(|| take(1));
    assert_eq!(request.check().unwrap_err().kind, LimitKind::Soft);
    end(request);
}
