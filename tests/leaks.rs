//! What a request's end reports of blocks that were never freed. Each case is a process of its own:
//! it reads its own standard error.

use rqmalloc::{Request, RqMalloc};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::ExitCode;

#[path = "support/children.rs"]
mod children;
#[path = "support/standard_error.rs"]
mod standard_error;

use children::cases;
use standard_error::standard_error_of;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// A child that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 60;

cases! {
    leaks_after_a_clean_end prints "request 1 (leaky): 4 blocks never freed (1.1 KiB)\n  24-byte class: 2 blocks, 64 B\n  104-byte class: 1 block, 112 B\n  1032-byte class: 1 block, 1.0 KiB\n";
    leaks_with_their_places prints "request 1: 4 blocks never freed\n  here: 24 bytes\n  here: 100 bytes, repeated 2 times\n";
    no_leaks_after_a_bailout_unless_asked prints "request 2: 1 block never freed (32 B)\n  24-byte class: 1 block, 32 B\n";
    no_leaks_are_no_report;
    every_request_is_traced_when_the_environment_says_so prints "request 1: 1 block never freed\n";
    call_sites_of_rust_code prints "a place in this file\n";
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

fn leak(size: usize) {
    black_box(rqmalloc::zend::emalloc(black_box(size)));
}

fn end(request: Request) {
    // SAFETY: what was leaked is not used.
    let _ = unsafe { request.end() }.unwrap();
}

fn leaks_after_a_clean_end() {
    let text = standard_error_of(|| {
        let request = Request::builder().name("leaky").report_leaks(true).build();
        request.run(|| [20, 24, 100, 1_000].into_iter().for_each(leak));
        end(request);
    });
    print!("{text}");
}

/// Compares the first line without its bytes, and the sites with `here` for this file and line.
fn leaks_with_their_places() {
    let line = line!() + 5;
    let text = standard_error_of(|| {
        let request = Request::builder().trace_leaks(true).build();
        request.run(|| {
            for size in [100, 100, 24, 100] {
                rqmalloc::zend::emalloc(size);
            }
        });
        assert!(request.close().unwrap().surviving_blocks == 4);
    });
    let here = format!("{}({line})", file!());
    for part in text.lines().filter(|part| !part.contains("class")) {
        println!("{}", part.split(" (").next().unwrap().replace(&here, "here"));
    }
}

fn no_leaks_after_a_bailout_unless_asked() {
    let text = standard_error_of(|| {
        for is_asked in [false, true] {
            let request =
                Request::builder().report_leaks(true).report_leaks_after_bailout(is_asked).build();
            let result: Result<(), _> = request.catch(|| {
                leak(24);
                rqmalloc::bailout("given up")
            });
            assert!(result.is_err());
            end(request);
        }
    });
    print!("{text}");
}

fn no_leaks_are_no_report() {
    let text = standard_error_of(|| {
        let request = Request::builder().trace_leaks(true).build();
        request.run(|| drop(black_box(vec![String::from("freed"); 100])));
        end(request);
        end(Request::new());
    });
    print!("{text}");
}

fn every_request_is_traced_when_the_environment_says_so() {
    // SAFETY: this process has one thread. The variable is read when the first request is opened.
    unsafe { std::env::set_var("RQMALLOC_TRACE", "1") };
    let text = standard_error_of(|| {
        let request = Request::new();
        request.run(|| leak(50));
        end(request);
    });
    println!("{}", text.lines().next().unwrap().split(" (").next().unwrap());
    assert!(text.contains(file!()), "{text}");
}

/// With the feature `trace`, a leaked collection leads to the line that allocated it.
fn call_sites_of_rust_code() {
    let request = Request::builder().trace_leaks(true).build();
    request.run(|| {
        for number in 0..3 {
            std::mem::forget(black_box(vec![number; 10]));
            std::mem::forget(black_box(BTreeMap::from([(number, String::from("text"))])));
        }
    });
    let leaks = request.leaks();
    let text = standard_error_of(|| drop(request));
    assert_eq!(text, format!("{leaks}\n"));
    assert_eq!(leaks.blocks, 9);
    let is_here = leaks.sites.iter().all(|site| site.place.contains("leaks.rs("));
    assert_eq!(is_here, cfg!(feature = "trace"), "{leaks}");
    assert_eq!(leaks.sites.len(), 3, "each place and size once: {leaks}");
    println!("a place in this file");
}
