//! Ten minutes as a picture: areas and lines in an `svg` that is as wide as the page.
//!
//! Its units are stretched, so texts stand beside it, not in it.

use crate::history::{SAMPLE_COUNT, Sample};
use crate::text::{Bytes, Count};
use std::fmt::{self, Write};

/// Samples that share a point of the picture: the one with most memory is shown.
const SAMPLES_EACH: usize = 4;
/// Units of the picture's width, one for each point, and of its height.
const WIDTH: usize = SAMPLE_COUNT / SAMPLES_EACH;
const HEIGHT: usize = 100;

/// A row of the legend: the class of its colour, its name, and its bytes.
type Layer = (&'static str, &'static str, fn(&Sample) -> usize);

/// What lies on what, from the bottom up.
const LAYERS: [Layer; 4] = [
    ("p0", "live", |sample| sample.stats.live_bytes),
    ("p1", "adopted", |sample| sample.stats.adopted_bytes),
    ("p4", "records and caches", |sample| {
        sample.stats.descriptor_bytes + sample.stats.cached_bytes
    }),
    ("p8", "free pages", |sample| sample.stats.free_bytes),
];

/// Returns the samples that are shown. Which ones share a point does not change from second to
/// second: `first` is the number of the first sample.
fn points(samples: &[Sample], first: usize) -> Vec<&Sample> {
    let ahead = (SAMPLES_EACH - first % SAMPLES_EACH) % SAMPLES_EACH;
    let (head, rest) = samples.split_at(ahead.min(samples.len()));
    let most = |chunk: &&[Sample]| !chunk.is_empty();
    [head]
        .into_iter()
        .chain(rest.chunks(SAMPLES_EACH))
        .filter(most)
        .filter_map(|chunk| chunk.iter().max_by_key(|sample| sample.stats.mapped_bytes))
        .collect()
}

/// Returns a round number that is not below this one: one, two or five times a power of two.
fn round_up(bytes: usize) -> usize {
    let power = bytes.max(1 << 20).next_power_of_two();
    [power / 8 * 5, power / 4 * 3].into_iter().find(|round| *round >= bytes).unwrap_or(power)
}

/// Where a point is, from left and from the top.
fn place(index: usize, count: usize, number: usize, most: usize) -> (usize, usize, usize) {
    let left = (WIDTH + 1 + index).saturating_sub(count.min(WIDTH + 1));
    let tenths = (number.min(most) as u128 * HEIGHT as u128 * 10 / most.max(1) as u128) as usize;
    let top = HEIGHT * 10 - tenths;
    (left.min(WIDTH), top / 10, top % 10)
}

/// Writes the picture of the memory.
pub fn memory(page: &mut String, samples: &[Sample], first: usize) -> fmt::Result {
    let points = points(samples, first);
    let Some(last) = points.last() else {
        return page.write_str("<p class=note>The first sample comes in a second.</p>");
    };
    let resident = |sample: &Sample| sample.resident_bytes.unwrap_or(0);
    let largest = points.iter().map(|point| point.stats.mapped_bytes.max(resident(point))).max();
    let most = round_up(largest.unwrap_or(0));
    write!(
        page,
        "<div class=plot><span class=top>{}</span><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         preserveAspectRatio=none role=img aria-label=\"Memory of the last ten minutes: at most {} \
         were mapped; now {} are, and {} are resident\">",
        Bytes(most),
        Bytes(largest.unwrap_or(0)),
        Bytes(last.stats.mapped_bytes),
        Bytes(resident(last)),
    )?;
    grid(page)?;
    let mut below = vec![0; points.len()];
    for (class, _, bytes_of) in LAYERS {
        let above: Vec<usize> =
            points.iter().zip(&below).map(|(point, below)| below + bytes_of(point)).collect();
        write!(page, "<polygon class={class} points=\"")?;
        let forth = above.iter().enumerate();
        let back = below.iter().enumerate().rev();
        for (index, bytes) in forth.chain(back) {
            let (left, top, tenth) = place(index, points.len(), *bytes, most);
            write!(page, "{left},{top}.{tenth} ")?;
        }
        page.write_str("\"/>")?;
        below = above;
    }
    if last.resident_bytes.is_some() {
        line(page, "resident", points.iter().map(|point| resident(point)), most)?;
    }
    page.write_str("</svg><span class=left>10 min ago</span><span class=right>now</span></div>")?;
    page.write_str("<ul class=legend>")?;
    for (class, title, _) in LAYERS {
        write!(page, "<li><i class={class}></i>{title}</li>")?;
    }
    if last.resident_bytes.is_some() {
        page.write_str("<li><i class=resident></i>resident</li>")?;
    }
    page.write_str("</ul>")
}

/// Writes the picture of the requests that closed in each second.
pub fn requests(page: &mut String, samples: &[Sample], first: usize) -> fmt::Result {
    let pairs = samples.iter().zip(samples.iter().skip(1));
    let closed: Vec<usize> = pairs
        .map(|(before, after)| after.closed_count.saturating_sub(before.closed_count) as usize)
        .collect();
    let ahead = (SAMPLES_EACH - (first + 1) % SAMPLES_EACH) % SAMPLES_EACH;
    let (head, rest) = closed.split_at(ahead.min(closed.len()));
    let chunks = [head].into_iter().chain(rest.chunks(SAMPLES_EACH));
    let means = chunks.filter(|chunk| !chunk.is_empty());
    let means: Vec<usize> = means.map(|chunk| chunk.iter().sum::<usize>() / chunk.len()).collect();
    let Some(last) = means.last() else { return Ok(()) };
    let most = means.iter().copied().max().unwrap_or(0).max(10);
    write!(
        page,
        "<div class=\"plot low\"><span class=top>{} requests/s</span><svg viewBox=\"0 0 {WIDTH} \
         {HEIGHT}\" preserveAspectRatio=none role=img aria-label=\"Requests that closed in the last \
         ten minutes: {last} a second now, {most} at most\">",
        Count(most as u64),
    )?;
    grid(page)?;
    line(page, "rate", means.iter().copied(), most)?;
    page.write_str("</svg><span class=left>10 min ago</span><span class=right>now</span></div>")
}

/// Writes bars, the newest at the right: what survived in each tick.
pub fn bars(page: &mut String, numbers: &[u64], width: usize) -> fmt::Result {
    let most = numbers.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return Ok(());
    }
    write!(page, "<svg class=bars viewBox=\"0 0 {width} 10\" aria-hidden=true><path d=\"")?;
    for (index, number) in numbers.iter().enumerate().filter(|(_, number)| **number > 0) {
        let left = (width + index).saturating_sub(numbers.len());
        let height = (u128::from(*number) * 9 / u128::from(most)) + 1;
        write!(page, "M{left} 10h1v-{height}h-1z")?;
    }
    page.write_str("\"/></svg>")
}

fn grid(page: &mut String) -> fmt::Result {
    page.write_str("<path class=grid d=\"")?;
    for quarter in 0..4 {
        write!(page, "M0 {}H{WIDTH}", HEIGHT * quarter / 4)?;
    }
    page.write_str("\"/>")
}

fn line(
    page: &mut String,
    class: &str,
    numbers: impl ExactSizeIterator<Item = usize>,
    most: usize,
) -> fmt::Result {
    let count = numbers.len();
    write!(page, "<polyline class={class} points=\"")?;
    for (index, number) in numbers.enumerate() {
        let (left, top, tenth) = place(index, count, number, most);
        write!(page, "{left},{top}.{tenth} ")?;
    }
    page.write_str("\"/>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;

    #[test]
    fn a_picture_is_as_large_as_its_frame() {
        assert_eq!(place(0, 1, 0, 10), (WIDTH, HEIGHT, 0));
        assert_eq!(place(0, WIDTH + 1, 10, 10), (0, 0, 0));
        assert_eq!(place(WIDTH, WIDTH + 1, 5, 10), (WIDTH, HEIGHT / 2, 0));
        assert_eq!(place(5, 2 * WIDTH, usize::MAX, usize::MAX).1, 0);
        for bytes in [0, 1, 1 << 20, 5 << 20, (5 << 20) + 1, 13 << 20, usize::MAX / 4] {
            let round = round_up(bytes);
            assert!(round >= bytes && round <= (2 * bytes).max(1 << 20), "{bytes}: {round}");
        }
    }

    #[test]
    fn which_samples_share_a_point_does_not_change() {
        let table = Table::new();
        let samples: Vec<Sample> = (0..20)
            .map(|number| Sample { closed_count: number, ..Sample::now(&table) })
            .map(|mut sample| {
                sample.stats.mapped_bytes = sample.closed_count as usize;
                sample
            })
            .collect();
        let shown = |from: usize| -> Vec<u64> {
            points(&samples[from..], from).iter().map(|point| point.closed_count).collect()
        };
        assert_eq!(shown(0), [3, 7, 11, 15, 19]);
        assert_eq!(shown(1), [3, 7, 11, 15, 19]);
        assert_eq!(shown(4), [7, 11, 15, 19]);
        assert_eq!(shown(19), [19]);
    }

    #[test]
    fn a_picture_without_samples_says_so() {
        let mut page = String::new();
        memory(&mut page, &[], 0).unwrap();
        requests(&mut page, &[], 0).unwrap();
        bars(&mut page, &[0, 0], 61).unwrap();
        assert_eq!(page, "<p class=note>The first sample comes in a second.</p>");
    }
}
