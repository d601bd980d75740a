//! Ten minutes as a picture: areas and lines in an `svg` that is as wide as the page.
//!
//! Its units are stretched, so texts stand beside it, not in it.

use crate::history::{SAMPLE_COUNT, Sample};
use crate::text::{Bytes, Count};
use std::fmt::{self, Write};

/// Most points of a picture.
const MAX_POINTS: usize = 150;
/// Units of a picture's height; its width has one for each point.
const HEIGHT: usize = 100;

/// What a picture spans: the shortest of these that holds every sample.
const WINDOWS: [Window; 4] = [
    Window { seconds: 60, title: "1 min" },
    Window { seconds: 120, title: "2 min" },
    Window { seconds: 300, title: "5 min" },
    Window { seconds: SAMPLE_COUNT, title: "10 min" },
];

/// A time until now.
#[derive(Clone, Copy)]
struct Window {
    seconds: usize,
    title: &'static str,
}

impl Window {
    /// Returns that of so many samples.
    fn of(sample_count: usize) -> Self {
        let fits = |window: &Self| window.seconds >= sample_count;
        WINDOWS.into_iter().find(fits).unwrap_or(WINDOWS[WINDOWS.len() - 1])
    }

    /// Returns how many samples share a point.
    fn samples_each(self) -> usize {
        self.seconds.div_ceil(MAX_POINTS)
    }

    fn width(self) -> usize {
        self.seconds / self.samples_each()
    }

    /// Returns the samples of each point. Which ones share a point does not change from second to
    /// second: `first` is the number of the first sample.
    fn points<T>(self, samples: &[T], first: usize) -> impl Iterator<Item = &[T]> {
        let each = self.samples_each();
        let ahead = (each - first % each) % each;
        let (head, rest) = samples.split_at(ahead.min(samples.len()));
        let chunks = [head].into_iter().chain(rest.chunks(each));
        chunks.filter(|chunk| !chunk.is_empty())
    }

    /// Where a point is, from the left and from the top, with a tenth.
    fn place(
        self,
        index: usize,
        count: usize,
        number: usize,
        most: usize,
    ) -> (usize, usize, usize) {
        let width = self.width();
        let left = (width + 1 + index).saturating_sub(count.min(width + 1)).min(width);
        let most = most.max(1);
        let tenths = (number.min(most) as u128 * HEIGHT as u128 * 10 / most as u128) as usize;
        let top = HEIGHT * 10 - tenths;
        (left, top / 10, top % 10)
    }
}

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

/// Returns a round number that is not below this one: one, two or five times a power of two.
fn round_up(bytes: usize) -> usize {
    let power = bytes.max(1 << 20).next_power_of_two();
    [power / 8 * 5, power / 4 * 3].into_iter().find(|round| *round >= bytes).unwrap_or(power)
}

/// Writes the picture of the memory.
pub fn memory(page: &mut String, samples: &[Sample], first: usize) -> fmt::Result {
    let window = Window::of(samples.len());
    let most_mapped = |chunk: &[Sample]| chunk.iter().copied().max_by_key(|s| s.stats.mapped_bytes);
    let points: Vec<Sample> = window.points(samples, first).filter_map(most_mapped).collect();
    let Some(last) = points.last() else {
        return page.write_str("<p class=note>The first sample comes in a second.</p>");
    };
    let width = window.width();
    let resident = |sample: &Sample| sample.resident_bytes.unwrap_or(0);
    let largest = points.iter().map(|point| point.stats.mapped_bytes.max(resident(point))).max();
    let most = round_up(largest.unwrap_or(0));
    write!(
        page,
        "<div class=plot><span class=top>{}</span><svg viewBox=\"0 0 {width} {HEIGHT}\" \
         preserveAspectRatio=none role=img aria-label=\"Memory of the last {}: at most {} were \
         mapped; now {} are, and {} are resident\">",
        Bytes(most),
        window.title,
        Bytes(largest.unwrap_or(0)),
        Bytes(last.stats.mapped_bytes),
        Bytes(resident(last)),
    )?;
    grid(page, window)?;
    let mut below = vec![0; points.len()];
    for (class, _, bytes_of) in LAYERS {
        let above: Vec<usize> =
            points.iter().zip(&below).map(|(point, below)| below + bytes_of(point)).collect();
        write!(page, "<polygon class={class} points=\"")?;
        let forth = above.iter().enumerate();
        let back = below.iter().enumerate().rev();
        for (index, bytes) in forth.chain(back) {
            let (left, top, tenth) = window.place(index, points.len(), *bytes, most);
            write!(page, "{left},{top}.{tenth} ")?;
        }
        page.write_str("\"/>")?;
        below = above;
    }
    if last.resident_bytes.is_some() {
        line(page, "resident", (window, most), points.iter().map(resident))?;
    }
    write!(page, "</svg><span class=left>{} ago</span>", window.title)?;
    page.write_str("<span class=right>now</span></div><ul class=legend>")?;
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
    let window = Window::of(samples.len());
    let width = window.width();
    // The first sample has none before it.
    let chunks = window.points(&closed, first + 1);
    let means: Vec<usize> = chunks.map(|chunk| chunk.iter().sum::<usize>() / chunk.len()).collect();
    let Some(last) = means.last() else { return Ok(()) };
    let most = means.iter().copied().max().unwrap_or(0).max(10);
    write!(
        page,
        "<div class=\"plot low\"><span class=top>{} requests/s</span><svg viewBox=\"0 0 {width} \
         {HEIGHT}\" preserveAspectRatio=none role=img aria-label=\"Requests that closed in the last {}: \
         {last} a second now, {most} at most\">",
        Count(most as u64),
        window.title,
    )?;
    grid(page, window)?;
    line(page, "rate", (window, most), means.iter().copied())?;
    write!(page, "</svg><span class=left>{} ago</span>", window.title)?;
    page.write_str("<span class=right>now</span></div>")
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

fn grid(page: &mut String, window: Window) -> fmt::Result {
    page.write_str("<path class=grid d=\"")?;
    for quarter in 0..4 {
        write!(page, "M0 {}H{}", HEIGHT * quarter / 4, window.width())?;
    }
    page.write_str("\"/>")
}

fn line(
    page: &mut String,
    class: &str,
    (window, most): (Window, usize),
    numbers: impl ExactSizeIterator<Item = usize>,
) -> fmt::Result {
    let count = numbers.len();
    write!(page, "<polyline class={class} points=\"")?;
    for (index, number) in numbers.enumerate() {
        let (left, top, tenth) = window.place(index, count, number, most);
        write!(page, "{left},{top}.{tenth} ")?;
    }
    page.write_str("\"/>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_as_large_as_its_frame() {
        for window in WINDOWS {
            let width = window.width();
            assert!(width <= MAX_POINTS && width * window.samples_each() == window.seconds);
            assert_eq!(window.place(0, 1, 0, 10), (width, HEIGHT, 0));
            assert_eq!(window.place(0, width + 1, 10, 10), (0, 0, 0));
            assert_eq!(window.place(width, width + 1, 5, 10), (width, HEIGHT / 2, 0));
            assert_eq!(window.place(5, 2 * width, usize::MAX, usize::MAX).1, 0);
        }
        for bytes in [0, 1, 1 << 20, 5 << 20, (5 << 20) + 1, 13 << 20, usize::MAX / 4] {
            let round = round_up(bytes);
            assert!(round >= bytes && round <= (2 * bytes).max(1 << 20), "{bytes}: {round}");
        }
    }

    #[test]
    fn a_picture_spans_every_sample() {
        let seconds = |count| Window::of(count).seconds;
        assert_eq!([0, 60, 61, 301, SAMPLE_COUNT].map(seconds), [60, 60, 120, 600, 600]);
    }

    #[test]
    fn which_samples_share_a_point_does_not_change() {
        let window = Window::of(SAMPLE_COUNT);
        let samples: Vec<usize> = (0..20).collect();
        let shown = |from: usize| -> Vec<usize> {
            let points = window.points(&samples[from..], from);
            points.map(|point| point.iter().copied().max().unwrap()).collect()
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
