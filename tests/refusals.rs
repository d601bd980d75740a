//! What is reported, and what happens, when a request is refused memory at its limit. Each case is
//! a process of its own: it reads its own standard error, and the number of reports of a process is
//! bounded.

use rqmalloc::{Request, RequestBuilder, RqMalloc};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

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
const MIB: usize = 1 << 20;

cases! {
    one_line_for_a_request prints "rqmalloc: memory limit reached (request 1, name GET /, limit 1048576, in use 16384, asked 2097152)\n";
    one_line_for_one_without_a_name prints "rqmalloc: memory limit reached (request 1, limit 1048576, in use 0, asked 2097152)\n";
    one_line_for_a_block_that_grows prints "rqmalloc: memory limit reached (request 1, limit 1048576, in use 65536, asked 2097152)\n";
    one_line_for_a_block_that_grows_outside prints "rqmalloc: memory limit reached (request 1, limit 1048576, in use 65536, asked 2097152)\n";
    one_line_for_a_child_names_its_parent prints "rqmalloc: memory limit reached (request 2, name GET /, parent 1, limit 1048576, in use 16384, asked 2097152)\n";
    none_where_the_builder_says_so;
    none_where_the_environment_says_so;
    none_for_functions_that_say_it_themselves;
    many_requests_are_counted;
    a_line_comes_before_the_end_of_the_process prints "rqmalloc: memory limit reached (request 1, limit 1048576, in use 0, asked 2097152)\nmemory allocation of 2097152 bytes failed\n";
    a_refusal_that_is_handled_gives_nothing_up;
    a_refusal_costs_one_look;
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

fn limited() -> RequestBuilder {
    Request::builder().memory_limit(MIB)
}

/// Asks for more than there can be.
fn is_refused() -> bool {
    black_box(Vec::<u8>::new()).try_reserve_exact(2 * MIB).is_err()
}

fn close(request: Request) {
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
}

fn one_line_for_a_request() {
    let text = standard_error_of(|| {
        let request = limited().name("GET /").build();
        request.run(|| {
            let small = black_box(vec![1_u8; 100]);
            assert!(is_refused() && is_refused());
            drop(small);
        });
        assert!(request.check().is_err(), "who asks is told");
        close(request);
    });
    print!("{text}");
}

fn one_line_for_a_child_names_its_parent() {
    let text = standard_error_of(|| {
        let parent = limited().name("tenant").build();
        let child = Request::builder().name("GET /").parent(&parent).build();
        child.run(|| {
            let small = black_box(vec![1_u8; 100]);
            assert!(is_refused() && is_refused());
            drop(small);
        });
        [child, parent].into_iter().for_each(close);
    });
    print!("{text}");
}

fn one_line_for_one_without_a_name() {
    let text = standard_error_of(|| {
        let request = limited().build();
        request.run(|| assert!(is_refused()));
        close(request);
    });
    print!("{text}");
}

/// Grows a buffer of a request.
fn grow(run: impl FnOnce(&Request, &mut dyn FnMut())) {
    let text = standard_error_of(|| {
        let request = limited().build();
        let mut buffer: Vec<u8> = request.run(|| Vec::with_capacity(50_000));
        run(&request, &mut || {
            for _ in 0..3 {
                assert!(buffer.try_reserve_exact(2 * MIB).is_err());
            }
        });
        drop(buffer);
        close(request);
    });
    print!("{text}");
}

fn one_line_for_a_block_that_grows() {
    grow(|request, grow| request.run(grow));
}

fn one_line_for_a_block_that_grows_outside() {
    grow(|_, grow| grow());
}

fn none_where_the_builder_says_so() {
    let text = standard_error_of(|| {
        let request = limited().report_limit(false).build();
        request.run(|| assert!(is_refused()));
        close(request);
    });
    print!("{text}");
}

fn none_where_the_environment_says_so() {
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("RQMALLOC_REPORT_LIMIT", "0") };
    let text = standard_error_of(|| {
        let request = limited().build();
        request.run(|| assert!(is_refused()));
        close(request);
    });
    print!("{text}");
}

fn none_for_functions_that_say_it_themselves() {
    let text = standard_error_of(|| {
        let request = limited().build();
        let result = request.catch(|| {
            rqmalloc::zend::emalloc(2 * MIB);
        });
        assert!(matches!(result, Err(rqmalloc::Bailout::Limit(_))), "{result:?}");
        close(request);
    });
    print!("{text}");
}

fn many_requests_are_counted() {
    const COUNT: usize = 200;
    let refuse = || {
        let request = limited().build();
        request.run(|| assert!(is_refused()));
        close(request);
    };
    let text = standard_error_of(|| {
        (0..COUNT).for_each(|_| refuse());
        std::thread::sleep(Duration::from_millis(1_100));
        refuse();
    });
    let mut told = 0;
    for line in text.lines() {
        assert!(line.starts_with("rqmalloc: memory limit reached (request "), "{line}");
        let more = line
            .split_once(") and ")
            .map_or(0, |(_, more)| more.strip_suffix(" more").unwrap().parse::<usize>().unwrap());
        told += 1 + more;
    }
    assert_eq!(told, COUNT + 1, "{text}");
    assert!(text.lines().count() < COUNT / 4, "{text}");
}

fn a_line_comes_before_the_end_of_the_process() {
    // SAFETY: this process has one thread.
    unsafe { std::env::remove_var("RUST_BACKTRACE") };
    let text = standard_error_of(|| {
        // SAFETY: this process has one thread, and so has the child.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let request = limited().build();
            request.run(|| drop(black_box(Vec::<u8>::with_capacity(black_box(2 * MIB)))));
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(libc::WTERMSIG(status), libc::SIGABRT);
    });
    // What std prints after that differs between its versions.
    text.lines().take(2).for_each(|line| println!("{line}"));
}

fn a_refusal_that_is_handled_gives_nothing_up() {
    drop(standard_error_of(|| {
        let request = limited().build();
        let result = request.catch(|| {
            assert!(is_refused());
            assert!(rqmalloc::check().is_err());
            7
        });
        assert_eq!(result, Ok(7));
        // In its reserve it must be given up, with or without a refusal.
        let result = request.catch(|| drop(black_box(vec![0_u8; 900_000])));
        assert!(result.is_err(), "{result:?}");
        close(request);
    }));
}

/// A request at its limit in which much is free but cannot be joined is searched once, and then not
/// again before enough was freed.
fn a_refusal_costs_one_look() {
    drop(standard_error_of(|| {
        const COUNT: usize = 400_000;
        let request = Request::builder().memory_limit(16 * MIB).reserve(0).build();
        let mut rows: Vec<Vec<u8>> = Vec::with_capacity(COUNT * 2);
        request.run(|| {
            loop {
                let mut row = Vec::new();
                if row.try_reserve_exact(24).is_err() {
                    break;
                }
                rows.push(row);
            }
            assert!(rows.len() > COUNT);
            (0..rows.len()).step_by(16).for_each(|at| rows[at] = Vec::new());
            // Each look reads half a million headers: a look for every refusal would take minutes.
            for _ in 0..100_000 {
                assert!(Vec::<u8>::new().try_reserve_exact(black_box(3_000)).is_err());
            }
            // What is freed in one place is found, if it is more than a little.
            (0..rows.len() / 8).for_each(|at| rows[at] = Vec::new());
            assert!(Vec::<u8>::new().try_reserve_exact(black_box(3_000)).is_ok());
        });
        drop(rows);
        close(request);
    }));
}
