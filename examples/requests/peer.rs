//! The same service in a child process, on the system allocator.
//!
//! Parent to child: one JSON line of settings, the requests, then one byte a round. Child to
//! parent: one JSON line a round. One works while the other waits, so their rounds never compete
//! for the machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::Failure;
use crate::counting::{Calls, PEER_VARIABLE};
use crate::rounds::{Line, Round, Rounds};
use crate::service::Leaks;

const RUN_A_ROUND: u8 = b'\n';

pub struct Peer {
    child: Child,
    orders: ChildStdin,
    results: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the child and gives it the well-formed lines.
    pub fn start(lines: &[Line], leaks: Leaks) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(PEER_VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start the system allocator's process: {error}"))?;
        let mut orders = child.stdin.take().ok_or("the child has no standard input")?;
        let results =
            BufReader::new(child.stdout.take().ok_or("the child has no standard output")?);

        let requests: Vec<&[u8]> = lines.iter().map(|line| line.bytes).collect();
        let requests = requests.join(&b'\n');
        let settings = json!({ "bytes": requests.len(), "leaks": leaks == Leaks::OnPurpose });
        writeln!(orders, "{settings}")?;
        orders.write_all(&requests)?;
        Ok(Self { child, orders, results })
    }

    pub fn run(&mut self) -> Result<Round, Failure> {
        self.orders.write_all(&[RUN_A_ROUND])?;
        let mut result = String::new();
        self.results.read_line(&mut result)?;
        from_json(&result).ok_or_else(|| "the system allocator's process gave no result".into())
    }

    /// Closes the child's standard input, which tells it to exit, and waits for it.
    pub fn stop(mut self) -> Result<(), Failure> {
        drop(self.orders);
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the system allocator's process: {status}").into())
        }
    }
}

/// The `main` of the child.
pub fn serve() -> Result<(), Failure> {
    let mut orders = io::stdin().lock();
    let mut settings = String::new();
    orders.read_line(&mut settings)?;
    let settings: Json = serde_json::from_str(&settings)
        .map_err(|error| format!("{PEER_VARIABLE} is set, but no parent speaks here: {error}"))?;
    let length = settings["bytes"].as_u64().ok_or("no length")?;
    let leaks = if settings["leaks"] == true { Leaks::OnPurpose } else { Leaks::None };
    let mut requests = vec![0; usize::try_from(length)?];
    orders.read_exact(&mut requests)?;

    let (mut rounds, malformed) = Rounds::rehearse(Line::split(&requests), leaks)?;
    if let Some(line) = malformed.first() {
        return Err(
            format!("request {} was fine in the parent: {}", line.number, line.reason).into()
        );
    }
    let mut stdout = io::stdout().lock();
    for order in orders.bytes() {
        order?;
        writeln!(stdout, "{}", to_json(&rounds.run()?))?;
        stdout.flush()?;
    }
    Ok(())
}

/// Leaves out the request figures: there are no requests on this side.
fn to_json(round: &Round) -> Json {
    json!({
        "nanos": u64::try_from(round.busy.as_nanos()).unwrap_or(u64::MAX),
        "digest": round.digest,
        "allocations": round.calls.allocations,
        "frees": round.calls.frees,
        "cached": round.cached,
        "resident": round.resident,
    })
}

fn from_json(text: &str) -> Option<Round> {
    let json: Json = serde_json::from_str(text).ok()?;
    Some(Round {
        busy: Duration::from_nanos(json["nanos"].as_u64()?),
        digest: json["digest"].as_u64()?,
        calls: Calls { allocations: json["allocations"].as_i64()?, frees: json["frees"].as_i64()? },
        cached: json["cached"].as_i64()?,
        freed_by_end: 0,
        survivors: 0,
        resident: json["resident"].as_u64().and_then(|bytes| usize::try_from(bytes).ok()),
    })
}
