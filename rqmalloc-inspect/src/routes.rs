//! Routes: the table, and the same as data.

use crate::plot;
use crate::requests::heading;
use crate::sort::Sort;
use crate::table::{OUTCOMES, TICK_SECONDS, Table, Totals};
use crate::text::{Bytes, Count, Html, Time};
use crate::view::View;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

/// Most rows of the table: `routes.json` has all of them.
pub const MAX_ROWS: usize = 100;
/// Ticks of a minute.
const MINUTE: usize = (60 / TICK_SECONDS) as usize;

/// Writes the routes.
pub fn table(page: &mut String, table: &Table, view: &View) -> fmt::Result {
    let mut routes = table.totals();
    view.sort.routes(&mut routes);
    write!(
        page,
        "<h2>Routes <small>{}</small></h2><div class=scroll><table><caption>Requests that are \
         over, by name, sorted by {}. Percentiles are powers of two that the peaks are \
         below.</caption><thead><tr>",
        Count(routes.len() as u64),
        view.sort.routes,
    )?;
    for (column, title, class) in [
        ("name", "name", ""),
        ("count", "requests", "n"),
        ("p50", "peak p50", "n wide"),
        ("p99", "peak p99", "n"),
        ("max", "peak max", "n wide"),
        ("survivors", "survivors", "n"),
        ("growth", "in 10 min", "n wide"),
    ] {
        let sort = Sort { routes: column, ..view.sort };
        heading(page, view, title, class, (column, sort, view.sort.routes == column))?;
    }
    page.write_str(
        "<th scope=col class=\"n wide\">mean time</th><th scope=col class=wide>outcomes</th></tr>\
         </thead><tbody>",
    )?;
    for totals in routes.iter().take(MAX_ROWS) {
        row(page, totals)?;
    }
    if routes.is_empty() {
        page.write_str("<tr><td colspan=9 class=note>No request is over yet.</td></tr>")?;
    }
    page.write_str("</tbody></table></div>")?;
    if let Some(more @ 1..) = routes.len().checked_sub(MAX_ROWS) {
        let (base, more) = (Html(&view.base), Count(more as u64));
        write!(page, "<p class=note>and {more} more: <a href=\"{base}routes.json\">all</a></p>")?;
    }
    Ok(())
}

fn row(page: &mut String, totals: &Totals) -> fmt::Result {
    write!(
        page,
        "<tr><th scope=row>{}</th><td class=n>{}</td><td class=\"n wide\">{}</td><td class=n>{}</td>\
         <td class=\"n wide\">{}</td><td class=n>{}</td><td class=\"n wide\">",
        Html(&totals.name),
        Count(totals.count),
        Bytes(totals.peak(50)),
        Bytes(totals.peak(99)),
        Bytes(totals.largest_bytes),
        Bytes(totals.surviving_bytes as usize),
    )?;
    let (all, minute) = (totals.growth.iter().sum::<u64>(), totals.grown_bytes(MINUTE));
    if all > 0 {
        plot::bars(page, &totals.growth, MINUTE * 10 + 1)?;
        write!(page, " +{}", Bytes(all as usize))?;
    }
    if minute > 0 {
        write!(page, "<br><small>+{} in a minute</small>", Bytes(minute as usize))?;
    }
    let mean = totals.milliseconds / totals.count.max(1);
    let mean = Time(Duration::from_millis(mean));
    write!(page, "</td><td class=\"n wide\">{mean}</td><td class=wide>")?;
    for (outcome, count) in OUTCOMES.iter().zip(totals.outcomes).filter(|(_, count)| *count > 0) {
        let class = outcome.as_str();
        write!(page, "<span class=\"outcome {class}\">{outcome} {}</span> ", Count(count))?;
    }
    page.write_str("</td></tr>")
}

/// A route as data.
#[derive(Serialize)]
struct Row<'t> {
    name: &'t str,
    count: u64,
    marked: u64,
    outcomes: BTreeMap<&'static str, u64>,
    peak_p50_bytes: usize,
    peak_p99_bytes: usize,
    peak_max_bytes: usize,
    surviving_blocks: u64,
    surviving_bytes: u64,
    freed_bytes: u64,
    mean_milliseconds: u64,
    /// Bytes that survived in each ten seconds of the last ten minutes, the oldest first.
    growth_bytes: &'t [u64],
}

/// Returns every route as JSON.
pub fn json(table: &Table) -> serde_json::Result<String> {
    let mut routes = table.totals();
    Sort::default().routes(&mut routes);
    let rows: Vec<Row<'_>> = routes
        .iter()
        .map(|totals| Row {
            name: &totals.name,
            count: totals.count,
            marked: totals.marked,
            outcomes: OUTCOMES
                .map(|outcome| outcome.as_str())
                .into_iter()
                .zip(totals.outcomes)
                .collect(),
            peak_p50_bytes: totals.peak(50),
            peak_p99_bytes: totals.peak(99),
            peak_max_bytes: totals.largest_bytes,
            surviving_blocks: totals.surviving_blocks,
            surviving_bytes: totals.surviving_bytes,
            freed_bytes: totals.freed_bytes,
            mean_milliseconds: totals.milliseconds / totals.count.max(1),
            growth_bytes: &totals.growth,
        })
        .collect();
    serde_json::to_string(&rows)
}
