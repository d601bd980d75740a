//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::service::Leaks;

/// Takes a few seconds on an ordinary machine, long enough for resident memory to show a trend.
const DEFAULT_ROUNDS: usize = 40;

pub fn help() -> String {
    format!(
        "\
Handles every line of a file as one memory request, and shows what became of the memory.

Usage: requests [--rounds N] [--no-leaks] FILE

  FILE         one JSON document a line; `-` reads standard input; blank lines are ignored
  --rounds N   handle the whole file N times (default {DEFAULT_ROUNDS})
  --no-leaks   handlers do not leak on purpose: what is left is the allocators' speed
  --help       this text
"
    )
}

pub enum Command {
    Help,
    Run(Args),
}

pub struct Args {
    pub input: PathBuf,
    pub rounds: usize,
    pub leaks: Leaks,
}

/// Whether the input is standard input, for which `-` stands.
pub fn is_stdin(input: &Path) -> bool {
    input == Path::new("-")
}

pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut args = args;
    let mut input = None;
    let mut rounds = DEFAULT_ROUNDS;
    let mut leaks = Leaks::OnPurpose;
    while let Some(arg) = args.next() {
        // A path need not be UTF-8, but a flag is.
        match arg.to_str() {
            Some("--help" | "-h") => return Ok(Command::Help),
            Some("--no-leaks") => leaks = Leaks::None,
            Some("--rounds") => {
                rounds = parse_rounds(args.next().and_then(|value| value.into_string().ok()))?;
            }
            Some(flag) if flag.starts_with("--rounds=") => {
                rounds = parse_rounds(flag.split_once('=').map(|(_, value)| value.to_owned()))?;
            }
            Some(flag) if flag.starts_with('-') && flag != "-" => {
                return Err(format!("unknown flag {flag}; --help lists them"));
            }
            _ if input.is_some() => {
                return Err(format!("one file only, not also {}", arg.to_string_lossy()));
            }
            _ => input = Some(PathBuf::from(arg)),
        }
    }
    let input = input.ok_or("which file? --help tells more")?;
    Ok(Command::Run(Args { input, rounds, leaks }))
}

fn parse_rounds(value: Option<String>) -> Result<usize, String> {
    value
        .and_then(|text| text.parse().ok())
        .filter(|&rounds| rounds > 0)
        .ok_or_else(|| "--rounds takes a number from 1 up".to_owned())
}
