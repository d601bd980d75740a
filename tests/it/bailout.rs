//! Bailout, what runs at a request's end, and what is reported of its leaks.

use crate::support::{Held, alone, end, ended, layout, together};
use rqmalloc::{Bailout, Request, RqMalloc, bailout, check, persistent, zend};
use std::alloc::GlobalAlloc;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn a_value_comes_through() {
    let _together = together();
    let request = Request::new();
    assert_eq!(request.catch(|| 7), Ok(7));
    end(request);
}

#[test]
fn a_bailout_runs_destructors_and_frees_nothing_itself() {
    let _together = together();
    struct Counts<'c>(&'c AtomicUsize);
    impl Drop for Counts<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = AtomicUsize::new(0);
    let request = Request::new();
    let result: Result<(), Bailout> = request.catch(|| {
        let _counts = Counts(&dropped);
        Held::new(100, 8, 1);
        bailout("no such function")
    });
    let error = result.unwrap_err();
    assert_eq!(error, Bailout::Called("no such function"));
    assert_eq!(error.to_string(), "no such function");
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    assert_eq!(request.usage().live_blocks, 1);
    assert_eq!(ended(request).freed_blocks, 1);
}

#[test]
fn the_nearest_catch_gets_it() {
    let _together = together();
    let (outer, inner) = (Request::new(), Request::new());
    let result = outer.catch(|| {
        let result: Result<(), _> = inner.catch(|| bailout("inner"));
        assert_eq!(result, Err(Bailout::Called("inner")));
        bailout("outer")
    });
    assert_eq!(result, Err::<(), _>(Bailout::Called("outer")));
    end(inner);
    end(outer);
}

#[test]
fn a_panic_goes_on() {
    let _together = together();
    let request = Request::new();
    let result = catch_unwind(AssertUnwindSafe(|| request.catch(|| panic_any(5u8))));
    let payload = result.unwrap_err();
    assert_eq!(payload.downcast_ref::<u8>(), Some(&5));
    drop(payload);
    assert_eq!(Request::current().map(|request| request.id()), None, "the request was left");
    // The panic's message went to a buffer of the test harness, which may have grown inside the
    // request.
    let _ = request.close().unwrap();
}

#[test]
fn without_a_catch_it_is_a_panic_with_its_reason() {
    let _together = together();
    let result = catch_unwind(|| bailout("nobody waits"));
    let payload = result.unwrap_err();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    assert_eq!(text, Some("bailout outside of Request::catch: nobody waits"));
}

#[test]
fn a_marked_request_is_given_up_when_its_handler_returns() {
    let _together = together();
    let request = Request::builder().memory_limit(1 << 20).build();
    let dropped = AtomicUsize::new(0);
    struct Counts<'c>(&'c AtomicUsize, #[expect(dead_code, reason = "memory")] Vec<u8>);
    impl Drop for Counts<'_> {
        fn drop(&mut self) {
            assert!(check().is_err(), "dropped inside the request");
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let result = request.catch(|| Counts(&dropped, vec![0; 900_000]));
    let Err(Bailout::Limit(limit)) = result.map(drop) else { panic!("over the mark") };
    assert_eq!((limit.limit_bytes, limit.asked_bytes), (1 << 20, 900_000));
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    end(request);
}

/// One client is dropped; the process and the other requests go on.
#[test]
fn one_greedy_request_of_many() {
    let _together = together();
    let outcomes: Vec<bool> = (0..20u8)
        .map(|number| {
            let request = Request::builder().memory_limit(1 << 20).reserve(256 << 10).build();
            let result = request.catch(|| {
                let mut words = Vec::new();
                for _ in 0..if number == 7 { 1_000_000 } else { 300 } {
                    words.push(vec![number; 1_000]);
                    if check().is_err() {
                        drop(words);
                        bailout("too greedy");
                    }
                }
                words.len()
            });
            let is_well = result == Ok(300);
            assert!(is_well || result == Err(Bailout::Called("too greedy")), "{result:?}");
            assert_eq!(ended(request).freed_blocks, 0);
            is_well
        })
        .collect();
    assert_eq!(outcomes.iter().filter(|&&is_well| !is_well).count(), 1);
    assert!(!outcomes[7]);
}

/// The function table is asked for a name that it does not have: the error bails out past the
/// `efree` of the lowered name, and the request's end frees it. Without the jump it is freed by
/// hand. Nothing is left either way.
#[test]
fn call_function_that_does_not_exist() {
    let _alone = alone();

    fn call_function(name: &str, is_raised: bool) -> Option<usize> {
        type Function = fn() -> usize;
        let table: [(&[u8], Function); 2] = [(b"strlen", || 6), (b"count", || 5)];
        let lowered = zend::estrndup(name.to_ascii_lowercase().as_bytes());
        // SAFETY: the copy has this many bytes.
        let key = unsafe { std::slice::from_raw_parts(lowered.cast::<u8>(), name.len()) };
        let found = table.iter().find(|(known, _)| *known == key).map(|(_, function)| function());
        if found.is_none() && is_raised {
            bailout("call to undefined function");
        }
        // SAFETY: nobody uses the copy any more.
        unsafe { zend::efree(lowered.cast()) };
        found
    }

    let mut settled = None;
    for round in 0..10_000 {
        for is_raised in [false, true] {
            let request = Request::new();
            let found = request.catch(|| call_function("StrLen", is_raised));
            assert_eq!(found, Ok(Some(6)));
            assert_eq!(request.usage().live_blocks, 0);
            let missing = request.catch(|| call_function("NoSuchFunction", is_raised));
            let left = u64::from(is_raised);
            match is_raised {
                true => assert_eq!(missing, Err(Bailout::Called("call to undefined function"))),
                false => assert_eq!(missing, Ok(None)),
            }
            assert_eq!(request.usage().live_blocks, left);
            assert_eq!(ended(request).freed_blocks, left);
        }
        if round == 100 {
            settled = Some(rqmalloc::stats().mapped_bytes);
        }
    }
    // It may be less: if this takes long, idle memory goes back meanwhile.
    assert!(Some(rqmalloc::stats().mapped_bytes) <= settled, "usage is what it was");
}

// ---- on_end -------------------------------------------------------------------------------------

/// Records what is called.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn new() -> Self {
        Self(persistent(|| Arc::new(Mutex::new(Vec::with_capacity(64)))))
    }
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }
    fn expect(&self, expected: &[&str]) {
        assert_eq!(*self.0.lock().unwrap(), expected);
    }
}

/// Opens a request with three callbacks; they allocate, and check that they are inside.
fn logged(log: &Log) -> Request {
    let note = |what: &'static str| {
        let log = log.clone();
        move || {
            log.note(what);
            assert!(Request::current().is_some());
            Held::new(1_000, 8, 1);
        }
    };
    let request = Request::builder().on_end(note("first")).on_end(note("second")).build();
    request.on_end(note("third"));
    request
}

#[test]
fn callbacks_run_in_reverse_before_the_memory_goes() {
    let _together = together();
    let log = Log::new();
    let request = logged(&log);
    log.expect(&[]);
    assert_eq!(ended(request).freed_blocks, 3, "what they allocate is freed too");
    log.expect(&["third", "second", "first"]);

    let log = Log::new();
    let request = logged(&log);
    request.run(|| log.note("handler"));
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 3, "a close keeps what they leave behind");
    log.expect(&["handler", "third", "second", "first"]);

    let log = Log::new();
    drop(logged(&log));
    log.expect(&["third", "second", "first"]);

    let log = Log::new();
    let request = logged(&log);
    let given_up: Result<(), _> = request.catch(|| bailout("given up"));
    assert!(given_up.is_err());
    log.expect(&[]);
    end(request);
    log.expect(&["third", "second", "first"]);
}

#[test]
fn callbacks_of_the_hooks_and_of_a_thread_that_exits_inside() {
    let _together = together();
    let log = Log::new();
    rqmalloc::begin_request();
    let (first, second) = (log.clone(), log.clone());
    Request::current().unwrap().on_end(move || first.note("end"));
    // SAFETY: nothing of the request is used any more.
    let _ = unsafe { rqmalloc::end_request() };
    std::thread::spawn(move || {
        rqmalloc::begin_request();
        Request::current().unwrap().on_end(move || second.note("exit"));
    })
    .join()
    .unwrap();
    log.expect(&["end", "exit"]);
}

#[test]
fn a_callback_may_add_another_and_its_panic_is_its_own() {
    let _together = together();
    let log = Log::new();
    let request = Request::new();
    let (first, second, third) = (log.clone(), log.clone(), log.clone());
    request.on_end(move || first.note("first"));
    request.on_end(move || {
        second.note("second");
        std::panic::resume_unwind(Box::new(()));
    });
    request.on_end(move || {
        let log = third.clone();
        third.note("third");
        Request::current().unwrap().on_end(move || log.note("added"));
    });
    assert_eq!(ended(request).surviving_blocks, 0);
    log.expect(&["third", "second", "first", "added"]);
}

#[test]
fn callbacks_have_no_limit() {
    let _together = together();
    let request = Request::builder().memory_limit(1 << 20).build();
    request.on_end(|| {
        // SAFETY: the size is not 0.
        assert!(!unsafe { RqMalloc.alloc(layout(4 << 20, 8)) }.is_null());
    });
    let ran = Arc::new(AtomicUsize::new(0));
    let counter = ran.clone();
    request.on_end(move || _ = counter.fetch_add(1, Ordering::Relaxed));
    let report = ended(request);
    assert_eq!(report.freed_blocks, 1, "the callback got its block");
    assert!(report.peak_bytes > 4 << 20);
    assert_eq!(ran.load(Ordering::Relaxed), 1);
}

#[test]
fn a_handle_that_a_callback_keeps_keeps_the_request_open() {
    let _together = together();
    let kept = Arc::new(Mutex::new(None));
    let place = kept.clone();
    let request = Request::new();
    request.on_end(move || *place.lock().unwrap() = Request::current());
    let request = request.close().unwrap_err();
    drop(request);
    let last = kept.lock().unwrap().take().unwrap();
    assert_eq!(last.close().unwrap().surviving_blocks, 0);
}

// ---- leaks --------------------------------------------------------------------------------------

#[test]
fn leaks_by_class_and_none_of_what_was_freed_or_kept() {
    let _together = together();
    let request = Request::new();
    request.run(|| {
        for size in [20, 24, 24, 100, 100_000, 3 << 20] {
            Held::new(size, 8, 1);
        }
        Held::new(24, 8, 1).free();
        Held::new(200_000, 8, 1).free();
        let kept = Held::new(50, 8, 1);
        // SAFETY: a live block.
        unsafe { rqmalloc::persist(kept.pointer) };
        let leaks = request.leaks();
        let classes: Vec<_> =
            persistent(|| leaks.classes.iter().map(|c| (c.payload_bytes, c.blocks)).collect());
        let expected = [(Some(24), 3), (Some(104), 1), (Some(114_696), 1), (None, 1)];
        assert_eq!(classes, expected);
        assert_eq!(leaks.blocks, 6);
        assert!(leaks.sites.is_empty());
        kept.free();
        persistent(|| drop((leaks, classes)));
    });
    end(request);
}

#[test]
fn a_traced_request_knows_where() {
    let _together = together();
    let request = Request::builder().name("traced").trace_leaks(true).build();
    let line = line!() + 3;
    request.run(|| {
        for _ in 0..3 {
            zend::emalloc(100);
        }
        let mut block = zend::emalloc(10);
        for size in [50, 5_000, 100_000, 3 << 20, 20] {
            // SAFETY: a live block.
            block = unsafe { zend::erealloc(block, size) };
            // SAFETY: as above.
            assert!(unsafe { zend::block_size(block) } >= size);
            // SAFETY: the block has this many bytes.
            unsafe { block.write_bytes(0x5a, zend::block_size(block)) };
        }
        // Traced blocks are resized, aligned and freed like others.
        for (size, align) in [(1, 1), (100, 64), (5_000, 4096), (100_000, 65_536), (3 << 20, 8)] {
            let mut held = Held::zeroed(size, align, 3);
            if align <= 16 {
                held.resize(2 * size);
                held.resize(size);
            }
            held.free();
        }
        rqmalloc::check_structures();
    });
    let leaks = request.leaks();
    let place = format!("{}({line})", file!());
    let mine: Vec<_> = leaks.sites.iter().filter(|site| site.place == place).collect();
    assert_eq!((mine.len(), mine[0].asked_bytes, mine[0].blocks), (1, 100, 3), "{leaks}");
    assert_eq!(leaks.sites.iter().map(|site| site.blocks).sum::<u64>(), 4, "{leaks}");
    assert!(
        leaks.to_string().contains(&format!("{place}: 100 bytes, repeated 2 times")),
        "{leaks}"
    );
    assert_eq!(request.usage().live_blocks, 4);
    // Its report goes to standard error; a test with child processes reads it there.
    let survivors = request.run(|| Held::new(3, 8, 9));
    assert_eq!(request.close().unwrap().surviving_blocks, 5);
    survivors.free();
}
