//! What a request never freed, by size class and by allocation site.
//!
//! Collecting allocates, so the caller is in `persistent`: otherwise it would change a request.

use crate::base::quantity::{Blocks, Bytes};
use crate::base::size_class::{CLASS_COUNT, Class};
use crate::blocks::request_id::RequestId;
use crate::blocks::request_name::RequestName;
use crate::blocks::trace::{FRAME_COUNT, Site, Trace};
use crate::request::Host;
use crate::request::control::Control;
use crate::request::lane::Lane;
use core::fmt;
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;

/// What a request has not freed. Its `Display` is for people: a line for the total, one for each
/// size class and, if the request traces its leaks, one for each site and size, with repeats
/// folded.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Leaks {
    /// The request.
    pub id: RequestId,
    /// The name its builder gave it.
    pub name: Option<RequestName>,
    /// Blocks in total.
    pub blocks: u64,
    /// Their bytes, including headers and what size classes add.
    pub bytes: usize,
    /// By size class, smallest first.
    pub classes: Vec<LeakClass>,
    /// By allocation site and size, in a request that traces its leaks.
    pub sites: Vec<LeakSite>,
    /// Lanes that other threads were in: their blocks were not seen.
    pub skipped_lane_count: u64,
}

/// The blocks of one size class that were not freed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LeakClass {
    /// Bytes of payload in a block; `None`: blocks above the largest class.
    pub payload_bytes: Option<usize>,
    /// How many blocks.
    pub blocks: u64,
    /// Their bytes, including headers and what size classes add.
    pub bytes: usize,
}

/// The blocks of one size that were allocated at one site and not freed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct LeakSite {
    /// `file(line)`, with the function where the program knows it.
    pub place: String,
    /// Bytes that each allocation asked for.
    pub asked_bytes: usize,
    /// How many blocks.
    pub blocks: u64,
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, sum) = ((self.id, self.name), (self.blocks, self.bytes));
        write_tables(f, id, sum, "never freed", &self.classes, &self.sites)
    }
}

/// Writes what of a request is as `what` says, for people to read.
pub(crate) fn write_tables(
    f: &mut fmt::Formatter<'_>,
    (id, name): (RequestId, Option<RequestName>),
    (blocks, bytes): (u64, usize),
    what: &str,
    classes: &[LeakClass],
    sites: &[LeakSite],
) -> fmt::Result {
    write!(f, "request {id}")?;
    if let Some(name) = name {
        write!(f, " ({name})")?;
    }
    if blocks == 0 {
        return f.write_str(": every block was freed");
    }
    write!(f, ": {} {what} ({})", Blocks(blocks), Bytes(bytes))?;
    for class in classes {
        match class.payload_bytes {
            Some(payload) => write!(f, "\n  {payload}-byte class: ")?,
            None => f.write_str("\n  mapped: ")?,
        }
        write!(f, "{}, {}", Blocks(class.blocks), Bytes(class.bytes))?;
    }
    for site in sites {
        write!(f, "\n  {}: {} bytes", site.place, site.asked_bytes)?;
        match site.blocks {
            1 => {}
            2 => f.write_str(", repeated 1 time")?,
            blocks => write!(f, ", repeated {} times", blocks - 1)?,
        }
    }
    Ok(())
}

/// Room for more traces than the request's figures promise.
const SPARE_TRACES: usize = 64;

/// Most bytes that describing a request takes, not counting its sites: with less, nothing is
/// described.
const DESCRIPTION_BYTES: usize = 64 * 1024;
/// Bytes that a site and the stacks leading to it take.
const SITE_BYTES: usize = 1024;

/// How a request is looked at: the control block, and the lane that the caller is in, if any.
pub type Look<'l> = &'l mut dyn FnMut(&Control, Option<&Lane>);

/// Looks at every block of a request, leaving out the lanes that other threads are in. `with` calls
/// what it is given with a request that stays open meanwhile; nothing allocates then. `None`: the
/// request is over. `Err`: there is only memory for the sums.
pub fn collect<S: Host>(
    with: impl Fn(Look<'_>) -> Option<()>,
    supply: &S,
) -> Option<Result<Leaks, Leaks>> {
    let mut expected = 0;
    with(&mut |control, _| {
        if control.leaks.get().traced {
            expected = control.figures().live_blocks;
        }
    })?;
    let mut traces = Vec::new();
    let mut room = expected + SPARE_TRACES;
    loop {
        let has_room = traces.try_reserve(room).is_ok() && can_describe(room);
        let mut missed = 0;
        let mut seen = None;
        with(&mut |control, inside| {
            let (tallies, skipped) = tally(control, inside, supply, &mut traces, &mut missed);
            seen = Some((summary(control, &tallies, skipped), tallies));
        })?;
        let (sums, tallies) = seen?;
        if !has_room {
            return Some(Err(sums));
        }
        if missed == 0 {
            return Some(Ok(describe(sums, &tallies, &traces)));
        }
        // Other threads allocated meanwhile: try again, with more room.
        room = 2 * (traces.len() + missed);
        traces.clear();
    }
}

/// Whether there is memory to put `site_count` sites into words.
fn can_describe(site_count: usize) -> bool {
    let bytes = DESCRIPTION_BYTES + site_count * SITE_BYTES;
    Vec::<u8>::new().try_reserve(bytes).is_ok()
}

type Tallies = [(u64, usize); CLASS_COUNT + 1];

/// Counts by class, and collects traces as far as there is room: nothing allocates meanwhile.
fn tally<S: Host>(
    control: &Control,
    inside: Option<&Lane>,
    supply: &S,
    traces: &mut Vec<Trace>,
    missed: &mut usize,
) -> (Tallies, u64) {
    let mut tallies = [(0, 0); CLASS_COUNT + 1];
    let skipped = control.each_leak(inside, supply, |leak| {
        let tally = &mut tallies[leak.class.map_or(CLASS_COUNT, Class::index)];
        tally.0 += 1;
        tally.1 += leak.class.map_or(leak.block_bytes, Class::stride_bytes);
        let Some(traced_bytes) = leak.traced_bytes else { return };
        if traces.len() == traces.capacity() {
            *missed += 1;
            return;
        }
        // SAFETY: the walk has seen the record, which stays readable during the visit.
        traces.extend(unsafe { Trace::read(leak.block, traced_bytes) });
    });
    (tallies, skipped)
}

/// Returns the sums, which take no memory.
fn summary(control: &Control, tallies: &Tallies, skipped_lane_count: u64) -> Leaks {
    Leaks {
        id: control.request_id(),
        name: control.name.get(),
        blocks: tallies.iter().map(|tally| tally.0).sum(),
        bytes: tallies.iter().map(|tally| tally.1).sum(),
        classes: Vec::new(),
        sites: Vec::new(),
        skipped_lane_count,
    }
}

fn describe(sums: Leaks, tallies: &Tallies, traces: &[Trace]) -> Leaks {
    let classes: Vec<LeakClass> = tallies
        .iter()
        .enumerate()
        .filter(|(_, tally)| tally.0 > 0)
        .map(|(index, &(blocks, bytes))| LeakClass {
            payload_bytes: Class::from_index(index).map(Class::payload_bytes),
            blocks,
            bytes,
        })
        .collect();
    Leaks { classes, sites: fold(traces), ..sums }
}

/// Names the sites, once for each stack. Different stacks that lead to one site are folded.
fn fold(traces: &[Trace]) -> Vec<LeakSite> {
    let mut stacks: BTreeMap<(Site, [usize; FRAME_COUNT]), String> = BTreeMap::new();
    let mut sites: BTreeMap<(&str, usize), u64> = BTreeMap::new();
    for trace in traces {
        let stack = (trace.site, trace.frames);
        stacks.entry(stack).or_insert_with(|| place(&trace.site, &trace.frames));
    }
    for trace in traces {
        if let Some(place) = stacks.get(&(trace.site, trace.frames)) {
            *sites.entry((place, trace.asked_bytes)).or_default() += 1;
        }
    }
    sites
        .into_iter()
        .map(|((place, asked_bytes), blocks)| LeakSite {
            place: place.to_string(),
            asked_bytes,
            blocks,
        })
        .collect()
}

fn place(site: &Site, frames: &[usize; FRAME_COUNT]) -> String {
    if site.file().is_empty() {
        return caller_of(frames);
    }
    let file = String::from_utf8_lossy(site.file());
    std::format!("{file}({})", site.line)
}

/// Returns the innermost caller that is neither in this crate nor in the standard library.
#[cfg(feature = "trace")]
fn caller_of(frames: &[usize; FRAME_COUNT]) -> String {
    let mut last = None;
    for &frame in frames.iter().take_while(|&&frame| frame != 0) {
        let mut found = None;
        // A return address belongs to what follows the call: look at the call.
        backtrace::resolve((frame - 1) as *mut core::ffi::c_void, |symbol| {
            // Inlined functions come innermost first.
            if found.is_some() {
                return;
            }
            let function = symbol.name().map(|name| std::format!("{name:#}"));
            // A generic function of the standard library has its file but not its name.
            let is_of_std = symbol.filename().is_some_and(is_file_of_std);
            if is_of_std || function.as_deref().is_some_and(is_internal) {
                return;
            }
            found = Some(match (symbol.filename(), symbol.lineno(), function) {
                (Some(file), Some(line), Some(function)) => {
                    std::format!("{}({line}) {function}", file.display())
                }
                (_, _, Some(function)) => function,
                _ => std::format!("{frame:#x}"),
            });
        });
        if found.is_some() {
            return found.unwrap_or_default();
        }
        last = Some(frame);
    }
    last.map_or_else(unknown, |frame| std::format!("{frame:#x}"))
}

/// Whether a source file is the standard library's: built elsewhere, or from the source that is
/// installed with the toolchain.
#[cfg(feature = "trace")]
fn is_file_of_std(file: &std::path::Path) -> bool {
    let of_toolchain = std::path::Path::new("lib/rustlib/src/rust/library");
    file.starts_with("/rustc/") || file.ancestors().any(|ancestor| ancestor.ends_with(of_toolchain))
}

/// Whether a function is only in between the program and the allocator.
#[cfg(feature = "trace")]
fn is_internal(function: &str) -> bool {
    let name = function.trim_start_matches(['<', '&', '*', '(']).trim_start_matches("dyn ");
    ["rqmalloc::", "alloc::", "core::", "std::", "hashbrown::", "backtrace::", "__r", "_R"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(not(feature = "trace"))]
fn caller_of(_frames: &[usize; FRAME_COUNT]) -> String {
    unknown()
}

fn unknown() -> String {
    "unknown place (the feature `trace` finds it)".to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn a_person_can_read_it() {
        let leaks = Leaks {
            id: RequestId(12),
            name: RequestName::new("GET /"),
            blocks: 4,
            bytes: 4 * 32,
            classes: vec![LeakClass { payload_bytes: Some(24), blocks: 4, bytes: 4 * 32 }],
            sites: vec![
                LeakSite { place: "leak.c(173)".into(), asked_bytes: 16, blocks: 1 },
                LeakSite { place: "leak.c(180)".into(), asked_bytes: 20, blocks: 3 },
            ],
            skipped_lane_count: 0,
        };
        let expected = "request 12 (GET /): 4 blocks never freed (128 B)\n  \
            24-byte class: 4 blocks, 128 B\n  \
            leak.c(173): 16 bytes\n  \
            leak.c(180): 20 bytes, repeated 2 times";
        assert_eq!(leaks.to_string(), expected);
        let none = Leaks {
            id: RequestId(3),
            name: None,
            blocks: 0,
            bytes: 0,
            classes: vec![],
            sites: vec![],
            skipped_lane_count: 0,
        };
        assert_eq!(none.to_string(), "request 3: every block was freed");
    }
}
