//! The same figures for Prometheus, in its text format 0.0.4.

use crate::history::resident_bytes;
use crate::parts::parts;
use crate::table::{OUTCOMES, Table, Totals};
use crate::text::Label;
use rqmalloc::stats;
use std::fmt::{self, Display, Write};

/// The limits of a histogram's buckets: powers of four from 16 KiB to 4 GiB.
const BUCKET_BYTES: [usize; 10] = {
    let mut limits = [16 << 10; 10];
    let mut index = 1;
    while index < limits.len() {
        limits[index] = limits[index - 1] * 4;
        index += 1;
    }
    limits
};

/// Writes a metric's head.
fn metric(text: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n")
}

/// Writes a metric that has one value for the process.
fn single(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    value: impl Display,
) -> fmt::Result {
    metric(text, name, kind, help)?;
    writeln!(text, "{name} {value}")
}

/// Returns every metric.
pub fn metrics(table: &Table) -> Result<String, fmt::Error> {
    let mut text = String::new();
    process(&mut text)?;
    routes(&mut text, &table.totals())?;
    Ok(text)
}

fn process(text: &mut String) -> fmt::Result {
    let stats = stats();
    let name = "rqmalloc_memory_bytes";
    metric(text, name, "gauge", "Memory mapped from the system, by what it is used for.")?;
    for part in parts(&stats) {
        writeln!(text, "{name}{{part=\"{}\"}} {}", part.key, part.bytes)?;
    }
    let mapped = "Memory mapped from the system: the sum of all parts.";
    single(text, "rqmalloc_mapped_bytes", "gauge", mapped, stats.mapped_bytes)?;
    let free = "Free pages that are still resident.";
    single(text, "rqmalloc_free_resident_bytes", "gauge", free, stats.free_resident_bytes)?;
    if let Some(bytes) = resident_bytes() {
        let resident = "Memory of the process that is resident.";
        single(text, "rqmalloc_process_resident_bytes", "gauge", resident, bytes)?;
    }
    if let Some(bytes) = rqmalloc::process_limit() {
        let limit = "The limit of the process.";
        single(text, "rqmalloc_process_limit_bytes", "gauge", limit, bytes)?;
    }
    let open = "Requests that are open.";
    single(text, "rqmalloc_open_requests", "gauge", open, stats.open_request_count)
}

fn routes(text: &mut String, routes: &[Totals]) -> fmt::Result {
    let name = "rqmalloc_requests_total";
    metric(text, name, "counter", "Requests that are over, by how they went.")?;
    for totals in routes {
        for (outcome, count) in OUTCOMES.iter().zip(totals.outcomes) {
            let (route, outcome) = (Label(&totals.name), outcome.as_str());
            writeln!(text, "{name}{{route=\"{route}\",outcome=\"{outcome}\"}} {count}")?;
        }
    }
    peaks(text, routes)?;
    let mut counter = |name, help, value: &dyn Fn(&Totals) -> u64| -> fmt::Result {
        metric(text, name, "counter", help)?;
        routes.iter().try_for_each(|totals| {
            writeln!(text, "{name}{{route=\"{}\"}} {}", Label(&totals.name), value(totals))
        })
    };
    counter(
        "rqmalloc_requests_marked_total",
        "Requests that were marked at a limit.",
        &|totals| totals.marked,
    )?;
    counter(
        "rqmalloc_surviving_blocks_total",
        "Blocks that were live when their request was over.",
        &|totals| totals.surviving_blocks,
    )?;
    counter("rqmalloc_surviving_bytes_total", "Their bytes.", &|totals| totals.surviving_bytes)?;
    counter(
        "rqmalloc_freed_bytes_total",
        "Bytes that were freed at the end of their request.",
        &|totals| totals.freed_bytes,
    )?;
    let name = "rqmalloc_request_duration_seconds";
    metric(text, name, "summary", "How long requests were open.")?;
    for totals in routes {
        let route = Label(&totals.name);
        let (seconds, rest) = (totals.milliseconds / 1000, totals.milliseconds % 1000);
        writeln!(text, "{name}_sum{{route=\"{route}\"}} {seconds}.{rest:03}")?;
        writeln!(text, "{name}_count{{route=\"{route}\"}} {}", totals.count)?;
    }
    Ok(())
}

fn peaks(text: &mut String, routes: &[Totals]) -> fmt::Result {
    let name = "rqmalloc_request_peak_bytes";
    metric(text, name, "histogram", "The most memory that each request held.")?;
    for totals in routes {
        let route = Label(&totals.name);
        for limit in BUCKET_BYTES {
            let count = totals.peaks.count_up_to(limit);
            writeln!(text, "{name}_bucket{{route=\"{route}\",le=\"{limit}\"}} {count}")?;
        }
        let count = totals.peaks.count();
        writeln!(text, "{name}_bucket{{route=\"{route}\",le=\"+Inf\"}} {count}")?;
        writeln!(text, "{name}_sum{{route=\"{route}\"}} {}", totals.peak_bytes)?;
        writeln!(text, "{name}_count{{route=\"{route}\"}} {count}")?;
    }
    Ok(())
}
