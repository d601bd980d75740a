//! Runs every case of a test program in a process of its own: the program again, without the test
//! harness, whose threads would change the figures.
//!
//! Without arguments every case runs; arguments without a dash are parts of names, as for the
//! harness. The last line says how many passed; a run of none fails.

use std::process::{Command, ExitCode};
use std::time::Instant;

/// The variable that names the one case to run.
pub const CASE: &str = "RQMALLOC_TEST_CASE";

/// A case: its name, what a child does, and what it must print.
pub struct Case {
    /// The name of the case.
    pub name: &'static str,
    /// What the child does.
    pub run: fn(),
    /// What it must print.
    pub output: &'static str,
}

/// Declares `CASES` from functions and what they must print.
macro_rules! cases {
    ($($name:ident $(prints $output:literal)?;)*) => {
        const CASES: &[children::Case] = &[$(children::Case {
            name: stringify!($name),
            run: $name,
            output: concat!("", $($output)?),
        }),*];
    };
}
pub(crate) use cases;

/// Runs the case that the environment names, or all of them as children. A child that hangs dies of
/// SIGALRM after `patience_seconds`.
pub fn run(cases: &[Case], patience_seconds: u32) -> ExitCode {
    if let Some(name) = std::env::var_os(CASE) {
        let Some(case) = cases.iter().find(|case| name == case.name) else {
            return ExitCode::from(2);
        };
        // SAFETY: a plain system call.
        unsafe { libc::alarm(patience_seconds) };
        (case.run)();
        return ExitCode::SUCCESS;
    }
    let parts: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |case: &&Case| {
        parts.is_empty() || parts.iter().any(|part| case.name.contains(part.as_str()))
    };
    let (passed, failed): (Vec<bool>, Vec<bool>) =
        cases.iter().filter(wanted).map(passes).partition(|&passed| passed);
    println!("{} passed, {} failed", passed.len(), failed.len());
    if !failed.is_empty() || passed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn passes(case: &Case) -> bool {
    let start = Instant::now();
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).env(CASE, case.name).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && printed == case.output;
    if passed {
        println!("{} ... ok ({:.1} s)", case.name, start.elapsed().as_secs_f64());
    } else {
        println!("{} ... FAILED: {}", case.name, output.status);
        println!("printed {printed:?} and not {:?}", case.output);
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    passed
}
