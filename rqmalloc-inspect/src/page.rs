//! The page: what is around its parts, and the parts themselves.

use crate::history::{Sample, resident_bytes};
use crate::parts::parts;
use crate::plot;
use crate::requests;
use crate::routes;
use crate::text::{Bytes, Count, Html, Time};
use crate::view::{View, head};
use crate::watch::Data;
use std::fmt::{self, Write};

/// How wide the bar of the memory is, in its own units.
const BAR_WIDTH: usize = 1000;

/// Returns the page.
pub fn page(data: &Data, view: &View) -> Result<String, fmt::Error> {
    let mut page = String::new();
    let base = Html(&view.base);
    head(&mut page, "Memory")?;
    let name = program_name();
    write!(
        page,
        "<header><h1>Memory of {}</h1><p class=note>process {}, watched for {}</p><nav \
         aria-label=Data><a href=\"{base}metrics\">metrics</a> <a href=\"{base}stats.json\">\
         stats</a> <a href=\"{base}requests.json\">requests</a> <a href=\"{base}routes.json\">\
         routes</a></nav><form method=post action=\"{base}trim\"><button title=\"Gives unused \
         memory back to the system\">Trim</button></form><button id=pause hidden \
         aria-pressed=false>Pause</button></header>",
        Html(&name),
        std::process::id(),
        Time(data.since.elapsed()),
    )?;
    if !rqmalloc::is_installed() {
        page.write_str(
            "<p class=warning role=alert>This program's global allocator is not RqMalloc: there is \
             nothing to see.</p>",
        )?;
    }
    if let Some(bytes) = view.trimmed {
        write!(
            page,
            "<p class=note role=status>Trimmed: {} went back to the system.</p>",
            Bytes(bytes)
        )?;
    }
    page.write_str("<main>")?;
    fragment(&mut page, data, view)?;
    write!(
        page,
        "</main><p id=lost class=warning role=status hidden>The process does not answer.</p>\
         <script nonce=\"{}\">{}</script></body></html>",
        Html(&view.nonce),
        include_str!("page.js"),
    )?;
    Ok(page)
}

/// Writes what changes from second to second.
pub fn fragment(page: &mut String, data: &Data, view: &View) -> fmt::Result {
    let now = Sample::now(&data.table);
    let (samples, first) = data.history.samples();
    page.write_str("<section id=memory aria-label=Memory>")?;
    figures(page, &now, &samples)?;
    memory(page, &now)?;
    page.write_str("</section><section id=history><h2>Memory over time</h2>")?;
    plot::memory(page, &samples, first)?;
    plot::requests(page, &samples, first)?;
    page.write_str("</section><section id=requests>")?;
    requests::table(page, view)?;
    page.write_str("</section><section id=routes>")?;
    routes::table(page, &data.table, view)?;
    page.write_str("</section>")
}

/// Returns the name of the running program.
fn program_name() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().map_or_else(|| "a program".into(), |name| name.to_string_lossy().into_owned())
}

/// Writes the large numbers.
fn figures(page: &mut String, now: &Sample, samples: &[Sample]) -> fmt::Result {
    page.write_str("<dl class=figures>")?;
    let mut figure = |name: &str, number: &dyn fmt::Display| {
        write!(page, "<div><dt>{name}</dt><dd>{number}</dd></div>")
    };
    figure("in use", &Bytes(now.stats.in_use_bytes))?;
    figure("mapped", &Bytes(now.stats.mapped_bytes))?;
    if let Some(bytes) = resident_bytes() {
        figure("resident", &Bytes(bytes))?;
    }
    figure("open requests", &Count(now.stats.open_request_count))?;
    figure("requests closed", &Count(now.closed_count))?;
    if let [.., before, last] = samples {
        let rate = last.closed_count.saturating_sub(before.closed_count);
        figure("closed a second", &Count(rate))?;
    }
    page.write_str("</dl>")
}

/// Writes where the memory is: a bar, and a table of its parts.
fn memory(page: &mut String, now: &Sample) -> fmt::Result {
    let parts = parts(&now.stats);
    let whole = now.stats.mapped_bytes.max(1);
    write!(
        page,
        "<svg class=bar viewBox=\"0 0 {BAR_WIDTH} 10\" preserveAspectRatio=none aria-hidden=true>"
    )?;
    let (mut before, mut left) = (0, 0);
    for (index, part) in parts.iter().enumerate() {
        before += part.bytes;
        let right = (before as u128 * BAR_WIDTH as u128 / whole as u128) as usize;
        if right > left {
            write!(page, "<rect class=p{index} x={left} width={} height=10 />", right - left)?;
        }
        left = right;
    }
    page.write_str(
        "</svg><div class=scroll><table><caption>Where the mapped memory is</caption><thead><tr>\
         <th scope=col>part</th><th scope=col class=n>bytes</th><th scope=col class=n>share</th>\
         <th scope=col class=wide>what it is</th></tr></thead><tbody>",
    )?;
    for (index, part) in parts.iter().enumerate() {
        let tenths = part.bytes as u128 * 1000 / whole as u128;
        write!(
            page,
            "<tr><th scope=row><i class=p{index}></i>{}</th><td class=n>{}</td><td class=n>{}.{} \
             %</td><td class=wide>{}</td></tr>",
            part.title,
            Bytes(part.bytes),
            tenths / 10,
            tenths % 10,
            part.what,
        )?;
    }
    write!(
        page,
        "</tbody><tfoot><tr><th scope=row>mapped</th><td class=n>{}</td><td class=n>100 %</td><td \
         class=wide>from the system: the sum; of the free pages {} are resident</td></tr></tfoot>\
         </table></div>",
        Bytes(now.stats.mapped_bytes),
        Bytes(now.stats.free_resident_bytes),
    )
}
