//! The services that are compared: processes of their own.

use crate::serve::LISTENING;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A service that runs.
pub struct Service {
    pub name: &'static str,
    pub address: SocketAddr,
    child: Child,
}

/// Returns where the program of an example is: beside this one.
fn program(example: &str) -> PathBuf {
    std::env::current_exe().expect("a path").with_file_name(example)
}

/// Builds the two services that this one is compared with, as `cargo run` has built this one.
pub fn build_others() {
    let Some(cargo) = std::env::var_os("CARGO") else { return };
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package", "rqmalloc-inspect"]);
    build.args(["--example", "service_mimalloc", "--example", "service_system"]);
    if !build.status().is_ok_and(|status| status.success()) {
        eprintln!("the services to compare with cannot be built");
        std::process::exit(1);
    }
}

impl Service {
    /// Starts one, and waits until it listens.
    pub fn start(name: &'static str, example: &str, options: &[&str]) -> Self {
        let mut command = Command::new(program(example));
        command.args(["--child", "--port", "0"]).args(options);
        // It ends with its standard input, which is this process's other end.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| {
            eprintln!("{example}: {error}");
            std::process::exit(1);
        });
        let mut line = String::new();
        let output = child.stdout.take().expect("its output");
        let _ = BufReader::new(output).read_line(&mut line);
        let address = line.trim().strip_prefix(LISTENING).and_then(|address| {
            address.strip_prefix("http://")?.trim_end_matches('/').parse().ok()
        });
        let address = address.unwrap_or_else(|| {
            eprintln!("{example} does not listen: {line}");
            std::process::exit(1);
        });
        Self { name, address, child }
    }

    /// Returns how long it ran on processors so far.
    pub fn processor_seconds(&self) -> f64 {
        let path = format!("/proc/{}/schedstat", self.child.id());
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let of = |path: &std::path::Path| {
            let text = std::fs::read_to_string(path).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        let tasks = tasks.into_iter().flatten().flatten().map(|task| task.path().join("schedstat"));
        let nanoseconds: u64 = tasks.filter_map(|path| of(&path)).sum();
        // A thread that has exited is not counted: those of the blocking pool live for ten seconds.
        nanoseconds.max(of(path.as_ref()).unwrap_or(0)) as f64 / 1e9
    }

    /// Returns its resident memory.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        kibibytes.unwrap_or(0) * 1024
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
