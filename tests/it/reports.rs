//! What a report says of a request: its name, how it went, how long it took.

use crate::support::together;
use rqmalloc::{Outcome, Report, Request, RequestName, bailout};
use std::cell::RefCell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

fn closed(request: Request) -> Report {
    request.close().expect("the only handle")
}

fn limited() -> Request {
    Request::builder().memory_limit(4 << 20).report_limit(false).build()
}

#[test]
fn a_name_is_any_text_and_its_request_has_a_clock() {
    let _guard = together();
    let name = String::from("GET /items/") + &"7".repeat(100);
    let request = Request::builder().name(&name).build();
    drop(name.clone());
    let known = request.name().unwrap();
    assert_eq!((known.len(), known.as_str()), (64, &name[..64]));
    assert!(request.to_string().starts_with(&format!("request {} ({known})", request.id())));
    std::thread::sleep(Duration::from_millis(30));
    let age = request.info().age.unwrap();
    assert!(age >= Duration::from_millis(10), "{age:?}");
    let report = closed(request);
    assert!(report.elapsed.unwrap() >= age);
    assert_eq!((report.name, report.outcome), (Some(known), Outcome::Closed));
    let nameless = Request::builder().name("").build();
    assert_eq!((nameless.name(), closed(nameless).name), (None, None));
    let odd = Request::builder().name("a\nb\x1b").build();
    assert_eq!(odd.name(), RequestName::new("a?b?"));
}

#[test]
fn an_outcome_says_how_it_went() {
    let _guard = together();
    // SAFETY: nothing of the request is left.
    let ended = unsafe { Request::new().end() }.unwrap();
    assert_eq!((ended.outcome, closed(Request::new()).outcome), (Outcome::Ended, Outcome::Closed));

    let request = Request::new();
    assert!(request.catch(|| bailout("enough")).is_err());
    assert_eq!(closed(request).outcome, Outcome::BailedOut);

    let request = limited();
    let filled = request.catch(|| (0..30).map(|_| vec![0u8; 100_000]).collect::<Vec<_>>());
    assert!(filled.is_err());
    let report = closed(request);
    assert_eq!((report.outcome, report.limit_bytes), (Outcome::OverLimit, Some(4 << 20)));
    assert_eq!(report.limit_exceeded.unwrap().limit_bytes, 4 << 20);

    // A refusal that the program does without is none of that.
    let request = limited();
    assert!(request.run(|| Vec::<u8>::new().try_reserve_exact(5 << 20)).is_err());
    let report = closed(request);
    assert_eq!((report.outcome, report.limit_exceeded.is_some()), (Outcome::Closed, true));

    let request = Request::new();
    let other = request.clone();
    let request = request.close().expect_err("another handle is alive");
    drop(other);
    assert_eq!(closed(request).outcome, Outcome::Closed);
}

#[test]
fn a_panic_is_told_from_a_bailout() {
    let _guard = together();
    let panicking = |request: &Request| {
        let run = || request.run(|| std::panic::resume_unwind(Box::new("no message")));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    };
    let request = Request::new();
    panicking(&request);
    assert_eq!(closed(request).outcome, Outcome::Panicked);

    // A bailout leaves every request on its way.
    let (outer, middle, inner) = (Request::new(), Request::new(), Request::new());
    let result = outer.catch(|| middle.run(|| inner.run(|| bailout("all of it"))));
    assert!(result.is_err());
    for request in [outer, middle, inner] {
        assert_eq!(closed(request).outcome, Outcome::BailedOut);
    }

    // A panic after a bailout that was caught is one.
    let (outer, inner) = (Request::new(), Request::new());
    let run = || {
        outer.run(|| {
            assert!(inner.catch(|| bailout("inner only")).is_err());
            std::panic::resume_unwind(Box::new("outer"));
        });
    };
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    let outcomes = (closed(outer).outcome, closed(inner).outcome);
    assert_eq!(outcomes, (Outcome::Panicked, Outcome::BailedOut));

    // What a destructor runs while another panic unwinds has not panicked.
    struct Cleanup<'r>(&'r RefCell<Option<Report>>);
    impl Drop for Cleanup<'_> {
        fn drop(&mut self) {
            let request = Request::new();
            request.run(|| drop(Box::new(7)));
            *self.0.borrow_mut() = request.close().ok();
        }
    }
    let report = RefCell::new(None);
    let run = || {
        let _cleanup = Cleanup(&report);
        std::panic::resume_unwind(Box::new("unwinding"));
    };
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    assert_eq!(report.into_inner().unwrap().outcome, Outcome::Closed);
}

#[test]
fn a_hook_that_only_leaves_says_so() {
    let _guard = together();
    rqmalloc::begin_request();
    let request = Request::current().unwrap();
    let report = rqmalloc::close_request();
    assert_eq!((report.still_open, report.outcome), (true, Outcome::Open));
    assert_eq!(closed(request).outcome, Outcome::Closed);
}

#[test]
fn blocks_are_counted_that_were_freed_again() {
    let _guard = together();
    let counted = || Request::builder().name("counted").build();
    assert_eq!(closed(counted()).allocated_blocks, Some(0));
    assert_eq!(closed(Request::new()).allocated_blocks, None);

    // Often enough that bins are looked at, and with blocks of their own pages and mappings.
    let request = counted();
    let mut expected = 0;
    request.run(|| {
        for round in 0..3000 {
            drop(black_box(vec![0u8; round % 500 + 1]));
            expected += 1;
        }
        for size in [50_000, 2 << 20] {
            (0..3).for_each(|_| drop(black_box(vec![0u8; size])));
            expected += 3;
        }
        let many: Vec<_> = (0..5000).map(Box::new).collect();
        expected += 5001;
        drop(black_box(many));
    });
    assert_eq!(closed(request).allocated_blocks, Some(expected));

    // Freed outside and by other threads, and what outlives the request.
    let request = counted();
    let mut boxes = request.run(|| (0..1000).map(Box::new).collect::<Vec<_>>());
    boxes.truncate(900);
    let rest = boxes.split_off(500);
    std::thread::spawn(move || drop(boxes)).join().unwrap();
    request.run(|| (0..2000).for_each(|index| drop(black_box(Box::new(index)))));
    let report = closed(request);
    let counted_blocks = report.allocated_blocks.unwrap();
    // `split_off` made a vector outside.
    assert_eq!((counted_blocks, report.surviving_blocks), (3001, 400));
    drop(rest);

    // Several lanes.
    let request = counted();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let worker = || {
                let work = || (0..3000).for_each(|index| drop(black_box(Box::new([index; 9]))));
                request.run(work);
            };
            scope.spawn(worker);
        }
    });
    assert!((12_000..12_100).contains(&closed(request).allocated_blocks.unwrap()));
}

#[test]
fn persistent_blocks_are_counted_when_caches_are_filled() {
    let _guard = together();
    let request = Request::new();
    let kept = request.run(|| {
        rqmalloc::persistent(|| (0..100_000).map(|_| Box::new([0u8; 40])).collect::<Vec<_>>())
    });
    let counted = closed(request).persistent_blocks;
    assert!((98_000..103_000).contains(&counted), "{counted}");
    drop(kept);
}
