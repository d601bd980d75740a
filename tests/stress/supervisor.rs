//! Runs processes with seeds, passes on what they say, and says how to repeat one that failed.

use crate::options::{BREAKS, KNOWN_SEEDS, Options};
use crate::rounds::COUNT_NAMES;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a process works; how long it may take beyond that.
const SECONDS_OF_A_PROCESS: u64 = 6;
const PATIENCE_SECONDS: u64 = 120;
/// A run of at least this many seconds must have seen everything.
const SECONDS_OF_EVERYTHING: u64 = 30;

struct Outcome {
    status: ExitStatus,
    printed: String,
    complaints: String,
    report_count: usize,
}

/// Whether a line is of a leak report, which was asked for: one for the request, and indented ones.
fn is_of_a_report(line: &str) -> bool {
    let is_item = line.starts_with("  ")
        && ["-byte class: ", "mapped: ", " bytes"].iter().any(|part| line.contains(part));
    is_item || (line.starts_with("request ") && line.contains("never freed"))
}

fn run_process(options: &Options, seed: u64, seconds: u64, is_loud: bool) -> Outcome {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--child", "--seconds", &seconds.to_string()])
        .args(options.arguments(seed))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let (mut complaints, mut report_count) = (String::new(), 0);
        for line in errors.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if is_of_a_report(&line) {
                report_count += 1;
            } else {
                if is_loud {
                    eprintln!("{line}");
                }
                complaints.push_str(&line);
                complaints.push('\n');
            }
        }
        (complaints, report_count)
    });
    let end = Instant::now() + Duration::from_secs(seconds + PATIENCE_SECONDS);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            eprintln!("stress: the process hangs, and is killed");
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (complaints, report_count) = reader.join().unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    Outcome { status, printed, complaints, report_count }
}

/// Runs known seeds first, then new ones, until the time is up.
pub fn run(options: &Options) -> ExitCode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = clock.as_nanos() as u64 % 1_000_000_000;
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let known = KNOWN_SEEDS.iter().copied();
    let seeds: Box<dyn Iterator<Item = u64>> = match options.seed {
        Some(seed) => Box::new([seed].into_iter()),
        None => Box::new(known.chain(first..)),
    };
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    let mut passed = 0;
    for seed in seeds {
        let left = until.saturating_duration_since(Instant::now()).as_secs();
        if left == 0 && passed >= KNOWN_SEEDS.len().max(1) {
            break;
        }
        let seconds = match options.seed {
            Some(_) => options.seconds,
            None => SECONDS_OF_A_PROCESS.min(left.max(1)),
        };
        let outcome = run_process(options, seed, seconds, true);
        if !outcome.status.success() {
            let arguments = options.arguments(seed).join(" ");
            println!("seed {seed} FAILED: {}", outcome.status);
            println!(
                "repeat it: cargo test --profile checked --test stress --features async -- \\"
            );
            println!("    --seconds 60 {arguments}");
            println!("{passed} passed, 1 failed");
            return ExitCode::FAILURE;
        }
        passed += 1;
        add_counts(&mut sums, &outcome);
    }
    let counts: Vec<_> = sums.iter().map(|(name, sum)| format!("{name} {sum}")).collect();
    println!("{}", counts.join(", "));
    let missing = COUNT_NAMES.iter().find(|name| sums.get(**name).copied().unwrap_or(0) == 0);
    let is_whole = options.seed.is_none() && options.without.is_empty() && options.threads > 1;
    if let (true, Some(missing)) = (is_whole && options.seconds >= SECONDS_OF_EVERYTHING, missing) {
        println!("stress: it never happened: {missing}");
        return ExitCode::FAILURE;
    }
    println!("{passed} passed, 0 failed");
    ExitCode::SUCCESS
}

fn add_counts(sums: &mut BTreeMap<String, u64>, outcome: &Outcome) {
    let figures = outcome.printed.lines().filter_map(|line| line.split_once(": "));
    for (name, value) in figures {
        if let Ok(value) = value.parse::<u64>() {
            *sums.entry(name.to_string()).or_default() += value;
        }
    }
    *sums.entry("lines of leak reports".to_string()).or_default() += outcome.report_count as u64;
}

/// Checks that every fault that can be planted is found, and that one worker repeats itself.
pub fn self_test(options: &Options) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    let mut expect = |name: &str, holds: bool, said: &str| {
        if holds {
            passed += 1;
            println!("{name} ... ok");
        } else {
            failed += 1;
            println!("{name} ... FAILED\n{said}");
        }
    };
    for (fault, expected) in BREAKS {
        let options = Options { breaks: Some(fault.to_string()), ..options.clone() };
        let outcome = run_process(&options, 1, 20, false);
        let is_found = !outcome.status.success() && outcome.complaints.contains(expected);
        expect(&format!("planted: {fault}"), is_found, &outcome.complaints);
    }
    let options = Options { threads: 1, rounds: Some(2), ..options.clone() };
    let runs = [5, 5, 6].map(|seed| run_process(&options, seed, 1, true).printed);
    expect(
        "one worker repeats itself",
        runs[0] == runs[1] && !runs[0].is_empty(),
        &runs.join("\n"),
    );
    expect("another seed is another run", runs[0] != runs[2], &runs[0]);
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
