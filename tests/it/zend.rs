//! The functions of the Zend Memory Manager.

use crate::support::{elsewhere, end, persistent_vec, together};
use rqmalloc::zend::{self, SetLimitError};
use rqmalloc::{Bailout, Request, persistent};
use std::ffi::CStr;
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// Returns how many bytes fit into a live block; 0 for null.
fn size_of_block(block: *const u8) -> usize {
    // SAFETY: the callers in this file pass live blocks or null.
    unsafe { zend::block_size(block) }
}

/// Fills a block to its last byte.
fn fill(block: *mut u8, byte: u8) {
    // SAFETY: a live block that has this many bytes.
    unsafe { block.write_bytes(byte, size_of_block(block)) };
}

#[track_caller]
fn expect(block: *const u8, count: usize, byte: u8) {
    // SAFETY: a live block of at least this many bytes.
    assert!(unsafe { from_raw_parts(block, count) }.iter().all(|&found| found == byte));
}

const SIZES: [usize; 9] = [0, 1, 8, 9, 100, 3_000, 40_000, 700_000, 5 << 20];

#[test]
fn every_size_of_both_families() {
    let _together = together();
    let request = Request::new();
    for is_persistent in [false, true] {
        request.run(|| {
            let mut blocks = persistent_vec();
            for size in SIZES {
                let block = zend::pemalloc(size, is_persistent);
                assert!(!block.is_null() && block.addr() % 16 == 0);
                assert!(size_of_block(block) >= size && zend::is_ours(block));
                fill(block, size as u8);
                blocks.push(block);
            }
            let unique: std::collections::BTreeSet<_> = persistent(|| blocks.iter().collect());
            assert_eq!(unique.len(), SIZES.len());
            let owned = if is_persistent { 0 } else { SIZES.len() as u64 };
            assert_eq!(request.usage().live_blocks, owned);
            for (&block, size) in blocks.iter().zip(SIZES) {
                expect(block, size_of_block(block), size as u8);
                // SAFETY: nobody uses it any more.
                unsafe { zend::pefree(block, is_persistent) };
            }
            assert_eq!(request.usage().live_blocks, 0);
            persistent(|| drop(unique));
        });
    }
    end(request);
}

#[test]
fn null_is_a_block_to_come_or_nothing() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let null = std::ptr::null_mut();
        // SAFETY: null is allowed.
        unsafe {
            zend::efree(null);
            zend::pefree(null, true);
            let block = zend::erealloc(null, 10);
            zend::efree(block);
            let block = zend::perealloc(null, 10, true);
            zend::pefree(block, true);
        }
        assert_eq!(size_of_block(null), 0);
        assert!(!zend::is_ours(null) && !zend::is_ours((&raw const request).cast()));
    });
    end(request);
}

#[test]
fn resizing_keeps_bytes_family_and_request() {
    let _together = together();
    let (outer, inner) = (Request::new(), Request::new());
    for is_persistent in [false, true] {
        let mut block = outer.run(|| zend::pemalloc(10, is_persistent));
        let mut size = 10;
        for next in [0, 24, 25, 500, 60_000, 50_000, 900_000, 2 << 20, 9 << 20, 3 << 20, 700, 0, 77]
        {
            fill(block, 0x33);
            // Inside another request: the block stays where it belongs.
            // SAFETY: a live block.
            block = inner.run(|| unsafe { zend::perealloc(block, next, is_persistent) });
            expect(block, size.min(next), 0x33);
            size = next;
        }
        assert_eq!(inner.usage().live_blocks, 0);
        assert_eq!(outer.usage().live_blocks, u64::from(!is_persistent));
        // SAFETY: nobody uses it any more.
        unsafe { zend::pefree(block, is_persistent) };
        assert_eq!(outer.usage().live_blocks, 0);
    }
    end(inner);
    end(outer);
}

#[test]
fn erealloc2_copies_what_it_is_told() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let block = zend::ecalloc(1, 1_000);
        fill(block, 7);
        // Keeps the block from growing in place, and gives the block it moves to other bytes.
        let next = zend::emalloc(20_000);
        fill(next, 1);
        zend::emalloc(10);
        // SAFETY: nobody uses it any more.
        unsafe { zend::efree(next) };
        // SAFETY: a live block.
        let moved = unsafe { zend::erealloc2(block, 20_000, 300) };
        assert_ne!(moved, block);
        expect(moved, 300, 7);
        // SAFETY: a live block whose bytes were written before.
        assert!(unsafe { from_raw_parts(moved.add(300), 700) }.iter().any(|&byte| byte != 7));
    });
    end(request);
}

#[test]
fn zeroed_memory_also_where_it_was_used() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        for _ in 0..3 {
            for size in SIZES {
                for is_persistent in [false, true] {
                    let block = zend::pecalloc(size, 1, is_persistent);
                    expect(block, size, 0);
                    fill(block, 0xff);
                    // SAFETY: nobody uses it any more.
                    unsafe { zend::pefree(block, is_persistent) };
                }
            }
        }
    });
    end(request);
}

#[test]
fn copies_of_text() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        for is_persistent in [false, true] {
            let copy = zend::pestrdup(c"text", is_persistent);
            // SAFETY: a text with its final zero.
            assert_eq!(unsafe { CStr::from_ptr(copy) }, c"text");
            // SAFETY: nobody uses it any more.
            unsafe { zend::pefree(copy.cast(), is_persistent) };
        }
        let copy = zend::estrndup(b"a\0b");
        // SAFETY: three bytes and a zero.
        assert_eq!(unsafe { from_raw_parts(copy.cast::<u8>(), 4) }, b"a\0b\0");
        let copy = zend::estrdup(c"");
        // SAFETY: a text with its final zero.
        assert!(unsafe { CStr::from_ptr(copy) }.is_empty());
        assert_eq!(request.usage().live_blocks, 2);
    });
    end(request);
}

#[test]
fn without_a_request_blocks_are_persistent_but_of_the_family() {
    let _together = together();
    assert!(Request::current().is_none());
    let blocks = SIZES.map(zend::emalloc);
    let resized = blocks.map(|block| {
        fill(block, 1);
        // SAFETY: a live block.
        unsafe { zend::erealloc(block, 333) }
    });
    let request = Request::new();
    // Freed inside a request, and by another thread.
    request.run(|| {
        // SAFETY: nobody uses them any more.
        resized[..4].iter().for_each(|&block| unsafe { zend::efree(block) });
        let inside = persistent(|| zend::emalloc(10));
        assert_eq!(request.usage().live_blocks, 0, "inside `persistent` too");
        // SAFETY: as above.
        unsafe { zend::efree(inside) };
    });
    let rest: Vec<usize> = resized[4..].iter().map(|block| block.expose_provenance()).collect();
    elsewhere(move || {
        rest.into_iter().for_each(|block| {
            // SAFETY: as above.
            unsafe { zend::efree(std::ptr::with_exposed_provenance_mut(block)) };
        });
    });
    rqmalloc::check_structures();
    end(request);
}

#[test]
fn safe_functions_check_the_product() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let block = zend::safe_emalloc(10, 10, 5);
        assert!(size_of_block(block) >= 105);
        // SAFETY: a live block.
        let block = unsafe { zend::safe_erealloc(block, 100, 10, 5) };
        assert!(size_of_block(block) >= 1_005);
        // SAFETY: nobody uses it any more.
        unsafe { zend::efree(block) };
        let block = zend::safe_pemalloc(10, 10, 5, true);
        // SAFETY: a live block of the family.
        unsafe { zend::pefree(zend::safe_perealloc(block, 20, 10, 5, true), true) };
    });
    let too_much = [(usize::MAX, 2, 0), (1 << 40, 1 << 40, 0), (1, usize::MAX, 1)];
    for (count, size, offset) in too_much {
        let expected = Err(Bailout::Overflow { count, size, offset });
        assert_eq!(request.catch(|| zend::safe_emalloc(count, size, offset)), expected);
        assert_eq!(request.catch(|| zend::safe_pemalloc(count, size, offset, true)), expected);
        let kept = request.run(|| zend::emalloc(10));
        fill(kept, 9);
        // SAFETY: a live block; the call fails.
        let failed = request.catch(|| unsafe { zend::safe_erealloc(kept, count, size, offset) });
        assert_eq!(failed, expected);
        expect(kept, 10, 9);
        // SAFETY: nobody uses it any more.
        request.run(|| unsafe { zend::efree(kept) });
    }
    let text = Bailout::Overflow { count: 3, size: usize::MAX, offset: 1 }.to_string();
    assert_eq!(
        text,
        "integer overflow in an allocation (count 3, size 18446744073709551615, offset 1)"
    );
    end(request);
}

#[test]
fn impossible_sizes_bail_out() {
    let _together = together();
    let request = Request::new();
    for size in [usize::MAX, isize::MAX as usize, isize::MAX as usize + 1, 1 << 46] {
        for is_persistent in [false, true] {
            let failed = request.catch(|| zend::pemalloc(size, is_persistent));
            assert_eq!(failed, Err(Bailout::OutOfMemory(size)));
        }
    }
    assert_eq!(Bailout::OutOfMemory(7).to_string(), "out of memory (asked 7)");
    assert_eq!(request.check(), Ok(()), "that is no limit");
    end(request);
}

#[test]
fn past_the_limit_the_old_block_is_as_it_was() {
    let _together = together();
    let request = Request::builder().memory_limit(1 << 20).build();
    let block = request.run(|| zend::emalloc(1_000));
    fill(block, 4);
    let failed = request.catch(|| {
        // SAFETY: a live block; the call fails.
        unsafe { zend::erealloc(block, 2 << 20) }
    });
    let Err(Bailout::Limit(limit)) = failed else { panic!("{failed:?}") };
    assert_eq!((limit.limit_bytes, limit.asked_bytes), (1 << 20, 2 << 20));
    expect(block, 1_000, 4);
    assert_eq!(request.usage().live_blocks, 1);
    let persistent_block = request.run(|| zend::pemalloc(4 << 20, true));
    // SAFETY: nobody uses it any more.
    unsafe { zend::pefree(persistent_block, true) };
    end(request);
}

#[test]
fn figures_of_the_request() {
    let _together = together();
    assert_eq!((zend::memory_usage(false), zend::memory_usage(true)), (0, 0));
    assert_eq!(zend::set_memory_limit(1 << 30), Err(SetLimitError::NoRequest));
    let request = Request::new();
    request.run(|| {
        let block = zend::emalloc(3 << 20);
        let (used, real) = (zend::memory_usage(false), zend::memory_usage(true));
        assert!(used >= 3 << 20 && real >= used);
        assert_eq!(zend::memory_peak_usage(true), real);
        assert!(matches!(zend::set_memory_limit(1 << 20), Err(SetLimitError::BelowUse(_))));
        // SAFETY: nobody uses it any more.
        unsafe { zend::efree(block) };
        assert_eq!(zend::memory_usage(false), 0);
        assert_eq!(zend::memory_peak_usage(true), real);
        zend::memory_reset_peak_usage();
        assert_eq!(zend::memory_peak_usage(true), zend::memory_usage(true));
        assert_eq!(zend::set_memory_limit(1 << 20), Ok(()));
        assert_eq!(request.usage().limit_bytes, Some(1 << 20));
        assert_eq!(zend::set_memory_limit(usize::MAX), Ok(()));
        assert_eq!(request.usage().limit_bytes, None);
    });
    end(request);
}

#[test]
fn gc_gives_pages_back() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        let mut blocks = persistent_vec();
        blocks.extend((0..20_000).map(|_| zend::emalloc(200)));
        let before = zend::memory_usage(true);
        // SAFETY: nobody uses them any more.
        blocks.iter().for_each(|&block| unsafe { zend::efree(block) });
        assert_eq!(zend::memory_usage(true), before, "free blocks keep their pages");
        let went = zend::gc();
        assert!(went > before / 2, "{went} of {before}");
        assert_eq!(zend::memory_usage(true), before - went);
        let block = zend::emalloc(100);
        // SAFETY: a live block.
        unsafe { from_raw_parts_mut(block, 100) }.fill(1);
    });
    end(request);
    zend::gc();
}
