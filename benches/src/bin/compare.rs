//! Runs every workload with every allocator in a process of its own, in rounds, and prints the
//! medians.

use rqmalloc_benches::workloads::{self, Workload};
use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// The binaries next to this one. The others are compared with the last.
const ALLOCATORS: [&str; 5] = ["system", "mimalloc", "jemalloc", "snmalloc", "rqmalloc"];
const PEERS: usize = ALLOCATORS.len() - 1;

const USAGE: &str = "usage: compare [--workload NAME]... [--rounds N] [--quick] [--list]";

struct Options {
    workloads: Vec<&'static Workload>,
    rounds: usize,
    quick: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let Some(options) = parse(env::args().skip(1))? else {
        for workload in workloads::ALL {
            println!("{:<20} ns per {}", workload.name, workload.unit);
        }
        return Ok(());
    };
    if cfg!(debug_assertions) {
        return Err("these are benchmarks: cargo run --release".into());
    }
    let this = env::current_exe().map_err(|error| error.to_string())?;
    let binaries = this.parent().ok_or("this program has no directory")?;
    build(binaries)?;

    // figures[workload][allocator]: one number a round, or none for "n/a".
    let mut figures = vec![[const { Vec::new() }; ALLOCATORS.len()]; options.workloads.len()];
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (workload, row) in options.workloads.iter().zip(&mut figures) {
            for turn in 0..ALLOCATORS.len() {
                // Each round begins with another one.
                let allocator = (turn + round) % ALLOCATORS.len();
                let binary = binaries.join(ALLOCATORS[allocator]);
                row[allocator].extend(child(&binary, workload.name, options.quick)?);
            }
        }
    }
    let medians: Vec<_> = figures.into_iter().map(|row| row.map(median)).collect();
    print!("{}", table(&options, &medians));
    Ok(())
}

/// Parses the arguments; `None` if only the list of workloads is wanted.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut workloads = Vec::new();
    let mut rounds = None;
    let mut quick = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--workload" => {
                let name = arguments.next().ok_or(USAGE)?;
                let unknown = || format!("no workload {name}: see --list");
                workloads.push(workloads::find(&name).ok_or_else(unknown)?);
            }
            "--rounds" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                rounds = Some(number.filter(|&number| number > 0).ok_or(USAGE)?);
            }
            "--quick" => quick = true,
            "--list" => return Ok(None),
            _ => return Err(USAGE.into()),
        }
    }
    if workloads.is_empty() {
        workloads.extend(workloads::ALL);
    }
    let rounds = rounds.unwrap_or(if quick { 3 } else { 7 });
    Ok(Some(Options { workloads, rounds, quick }))
}

/// Builds the other binaries if `cargo run`, which builds only this one, started it, so that they
/// are never older.
fn build(binaries: &Path) -> Result<(), String> {
    if let (Some(cargo), Some(package)) = (env::var_os("CARGO"), env::var_os("CARGO_MANIFEST_DIR"))
    {
        let profile = binaries.file_name().ok_or("no profile directory")?;
        let target = binaries.parent().ok_or("no target directory")?;
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--bins", "--profile"])
            .arg(profile)
            .arg("--target-dir")
            .arg(target)
            // For its .cargo/config.toml.
            .current_dir(package)
            .status()
            .map_err(|error| format!("cargo build: {error}"))?;
        if !status.success() {
            return Err(format!("cargo build: {status}"));
        }
    }
    match ALLOCATORS.iter().find(|name| !binaries.join(name).exists()) {
        Some(name) => Err(format!("no binary {name}: in benches, cargo build --release --bins")),
        None => Ok(()),
    }
}

fn child(binary: &Path, workload: &str, quick: bool) -> Result<Option<f64>, String> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let output = Command::new(binary)
        .arg(workload)
        .args(quick.then_some("--quick"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{name} {workload}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name} {workload}: {}", output.status));
    }
    let line = String::from_utf8_lossy(&output.stdout);
    match line.trim() {
        "n/a" => Ok(None),
        number => match number.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("{name} {workload}: not a number: {number}")),
        },
    }
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let upper = *numbers.get(numbers.len() / 2)?;
    let lower = numbers[(numbers.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn table(options: &Options, medians: &[[Option<f64>; ALLOCATORS.len()]]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments| text.write_fmt(arguments).unwrap();

    let quick = if options.quick { ", quick" } else { "" };
    line(format_args!(
        "Nanoseconds per operation, median of {} rounds{quick}; ratios are rqmalloc / peer, below 1: rqmalloc is faster\n\n",
        options.rounds
    ));
    line(format_args!("{:<18} {:<14}", "workload", "operation"));
    for name in ALLOCATORS {
        line(format_args!("{name:>12}"));
    }
    line(format_args!("  |"));
    for name in &ALLOCATORS[..PEERS] {
        line(format_args!("{:>11}", format!("/{name}")));
    }
    line(format_args!("\n"));

    let mut logarithms = [const { Vec::new() }; PEERS];
    for (workload, row) in options.workloads.iter().zip(medians) {
        line(format_args!("{:<18} {:<14}", workload.name, workload.unit));
        for figure in row {
            match figure {
                Some(ns) => line(format_args!("{ns:>12.1}")),
                None => line(format_args!("{:>12}", "n/a")),
            }
        }
        line(format_args!("  |"));
        for (peer, logarithms) in row[..PEERS].iter().zip(&mut logarithms) {
            match (row[PEERS], peer) {
                (Some(own), Some(peer)) => {
                    logarithms.push((own / peer).ln());
                    line(format_args!("{:>11.2}", own / peer));
                }
                _ => line(format_args!("{:>11}", "-")),
            }
        }
        line(format_args!("\n"));
    }

    let width = 33 + 12 * ALLOCATORS.len();
    line(format_args!("{:<width$}  |", "geometric mean"));
    for logarithms in &logarithms {
        match logarithms.len() {
            0 => line(format_args!("{:>11}", "-")),
            count => {
                let mean = (logarithms.iter().sum::<f64>() / count as f64).exp();
                line(format_args!("{mean:>11.2}"));
            }
        }
    }
    line(format_args!("\n"));
    text
}
