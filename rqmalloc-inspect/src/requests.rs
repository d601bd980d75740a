//! Open requests: the table, and the page of one of them.

use crate::sort::Sort;
use crate::text::{Bytes, Count, Html, Time};
use crate::view::{View, head};
use rqmalloc::{RequestId, RequestInfo, RequestName, Snapshot, open_requests, snapshot};
use std::fmt::{self, Write};

/// Most rows of the table: `requests.json` has all of them.
pub const MAX_ROWS: usize = 100;
/// Most call sites on the page of a request, those with most bytes.
const MAX_SITES: usize = 200;

/// Writes the open requests.
pub fn table(page: &mut String, view: &View) -> fmt::Result {
    let mut open = open_requests();
    view.sort.requests(&mut open);
    let base = Html(&view.base);
    write!(
        page,
        "<h2>Open requests <small>{}</small></h2><div class=scroll><table><caption>Sorted by {}\
         </caption><thead><tr>",
        Count(open.len() as u64),
        view.sort.requests,
    )?;
    let column = |column| Sort { requests: column, ..view.sort };
    let is_by = |column| view.sort.requests == column;
    heading(page, view, "request", "", ("id", column("id"), is_by("id")))?;
    heading(page, view, "name", "", ("name", column("name"), is_by("name")))?;
    heading(page, view, "age", "n", ("age", column("age"), is_by("age")))?;
    let footprint = ("footprint", column("footprint"), is_by("footprint"));
    heading(page, view, "footprint", "n", footprint)?;
    heading(page, view, "peak", "n wide", ("peak", column("peak"), is_by("peak")))?;
    heading(page, view, "live", "n wide", ("live", column("live"), is_by("live")))?;
    page.write_str(
        "<th scope=col class=\"n wide\">threads</th><th scope=col class=wide>state</th></tr>\
         </thead><tbody>",
    )?;
    for info in open.iter().take(MAX_ROWS) {
        row(page, info, &base)?;
    }
    if open.is_empty() {
        page.write_str("<tr><td colspan=8 class=note>No request is open.</td></tr>")?;
    }
    page.write_str("</tbody></table></div>")?;
    if let Some(more @ 1..) = open.len().checked_sub(MAX_ROWS) {
        let more = Count(more as u64);
        write!(page, "<p class=note>and {more} more: <a href=\"{base}requests.json\">all</a></p>")?;
    }
    Ok(())
}

/// Writes the head of a column that the table can be sorted by.
pub fn heading(
    page: &mut String,
    view: &View,
    title: &str,
    class: &str,
    (column, sort, is_sorted): (&str, Sort, bool),
) -> fmt::Result {
    let direction = match (is_sorted, column) {
        (false, _) => "",
        (true, "id" | "name") => " aria-sort=ascending",
        (true, _) => " aria-sort=descending",
    };
    write!(
        page,
        "<th scope=col class=\"{class}\"{direction}><a href=\"{}{}\">{title}</a></th>",
        Html(&view.own),
        sort.query(),
    )
}

fn row(page: &mut String, info: &RequestInfo, base: &Html<'_>) -> fmt::Result {
    let usage = &info.usage;
    write!(
        page,
        "<tr><td><a href=\"{base}requests/{}\">{}</a></td><th scope=row>{}</th><td class=n>",
        info.id,
        info.id,
        Html(name_of(&info.name)),
    )?;
    match info.age {
        Some(age) => write!(page, "{}", Time(age))?,
        None => page.write_str("?")?,
    }
    write!(
        page,
        "</td><td class=n>{}</td><td class=\"n wide\">{}</td><td class=\"n wide\">{}</td><td \
         class=\"n wide\">{}</td><td class=wide>",
        Bytes(usage.footprint_bytes),
        Bytes(usage.peak_bytes),
        Bytes(usage.live_bytes),
        info.thread_count,
    )?;
    state(page, info)?;
    page.write_str("</td></tr>")
}

/// Writes a request's limit, and whether it was reached.
fn state(page: &mut String, info: &RequestInfo) -> fmt::Result {
    match (&info.limit_exceeded, info.usage.limit_bytes) {
        (Some(limit), _) => {
            write!(page, "<b class=over>over its limit of {}</b>", Bytes(limit.limit_bytes))
        }
        (None, Some(limit)) => write!(page, "limit {}", Bytes(limit)),
        (None, None) => Ok(()),
    }
}

fn name_of(name: &Option<RequestName>) -> &str {
    name.as_ref().map_or("(no name)", RequestName::as_str)
}

/// Returns the id of the open request with this number.
fn id_of(number: &str) -> Option<RequestId> {
    let number: u64 = number.parse().ok()?;
    open_requests().into_iter().map(|info| info.id).find(|id| id.get() == number)
}

/// Returns what is live in the open request with this number.
pub fn look(number: &str) -> Option<Snapshot> {
    snapshot(id_of(number)?)
}

/// Returns the page of a request.
pub fn page(snapshot: &Snapshot, back: &str) -> Result<String, fmt::Error> {
    let mut page = String::new();
    let info = &snapshot.request;
    let name = name_of(&info.name);
    head(&mut page, name)?;
    write!(
        page,
        "<header><h1>{}</h1><p class=note>request {}</p><nav><a href=\"{}\">all requests</a> <a \
         href=\"{}.json\">data</a></nav></header><main><section aria-label=Figures>\
         <dl class=figures>",
        Html(name),
        info.id,
        Html(back),
        info.id,
    )?;
    let mut figure = |name: &str, number: &dyn fmt::Display| {
        write!(page, "<div><dt>{name}</dt><dd>{number}</dd></div>")
    };
    figure("footprint", &Bytes(info.usage.footprint_bytes))?;
    figure("peak", &Bytes(info.usage.peak_bytes))?;
    figure("live", &Bytes(snapshot.bytes))?;
    figure("live blocks", &Count(snapshot.blocks))?;
    if let Some(age) = info.age {
        figure("age", &Time(age))?;
    }
    figure("threads inside", &info.thread_count)?;
    page.write_str("</dl>")?;
    if info.limit_exceeded.is_some() || info.usage.limit_bytes.is_some() {
        page.write_str("<p>")?;
        state(&mut page, info)?;
        page.write_str("</p>")?;
    }
    if snapshot.skipped_lane_count > 0 {
        write!(
            page,
            "<p class=note>Not looked at: what {} threads that are inside work on.</p>",
            snapshot.skipped_lane_count
        )?;
    }
    page.write_str("</section>")?;
    classes(&mut page, snapshot)?;
    sites(&mut page, snapshot)?;
    page.write_str("</main></body></html>")?;
    Ok(page)
}

fn classes(page: &mut String, snapshot: &Snapshot) -> fmt::Result {
    page.write_str(
        "<section><h2>Live blocks by size</h2><div class=scroll><table><thead><tr><th scope=col>\
         size class</th><th scope=col class=n>blocks</th><th scope=col class=n>bytes</th>\
         </tr></thead><tbody>",
    )?;
    for class in &snapshot.classes {
        page.write_str("<tr><th scope=row>")?;
        match class.payload_bytes {
            Some(bytes) => write!(page, "{} bytes", Count(bytes as u64))?,
            None => page.write_str("larger")?,
        }
        let (blocks, bytes) = (Count(class.blocks), Bytes(class.bytes));
        write!(page, "</th><td class=n>{blocks}</td><td class=n>{bytes}</td></tr>")?;
    }
    if snapshot.classes.is_empty() {
        page.write_str("<tr><td colspan=3 class=note>No block that can be seen.</td></tr>")?;
    }
    page.write_str("</tbody></table></div></section>")
}

fn sites(page: &mut String, snapshot: &Snapshot) -> fmt::Result {
    page.write_str("<section><h2>Live blocks by call site</h2>")?;
    if snapshot.sites.is_empty() {
        return page.write_str(
            "<p class=note>Only of requests that trace their blocks: \
             <code>RequestBuilder::trace_leaks</code>, or <code>RQMALLOC_TRACE=1</code> in the \
             environment.</p></section>",
        );
    }
    page.write_str(
        "<div class=scroll><table><thead><tr><th scope=col>call site</th><th scope=col \
         class=n>each</th><th scope=col class=n>blocks</th><th scope=col class=n>together</th></tr>\
         </thead><tbody>",
    )?;
    let bytes = |blocks: u64, each: usize| each.saturating_mul(blocks as usize);
    let mut sites: Vec<_> = snapshot.sites.iter().collect();
    sites.sort_by_key(|site| std::cmp::Reverse(bytes(site.blocks, site.asked_bytes)));
    for site in sites.iter().take(MAX_SITES) {
        write!(
            page,
            "<tr><th scope=row class=site>{}</th><td class=n>{}</td><td class=n>{}</td><td \
             class=n>{}</td></tr>",
            Html(&site.place),
            Bytes(site.asked_bytes),
            Count(site.blocks),
            Bytes(bytes(site.blocks, site.asked_bytes)),
        )?;
    }
    page.write_str("</tbody></table></div>")?;
    if let Some(more @ 1..) = sites.len().checked_sub(MAX_SITES) {
        write!(page, "<p class=note>and {} more</p>", Count(more as u64))?;
    }
    page.write_str("</section>")
}
