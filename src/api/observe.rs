//! Looking at the requests of a process from outside.

use crate::api::request::{Request, persistent};
use crate::blocks::request_id::RequestId;
use crate::request::info::RequestInfo;
use crate::request::leaks::{self, LeakClass, LeakSite, Leaks};
use crate::thread::life::current_or_start;
use crate::thread::observe::Observer;
use crate::thread::open::{add_observer, open_count};
use crate::thread::visit::{self, visit_control};
use crate::thread::{self, HEAP};
use core::fmt;
use std::boxed::Box;
use std::vec::Vec;

/// Sets an observer, which is told of every request that is opened from now on, and of the end of
/// every one. Several may be set, by a library for metrics and by the program, say: each is told,
/// the last one first. They stay for the life of the process.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// use rqmalloc::{Observer, Report, Request, RequestInfo, set_observer};
/// use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
///
/// static PEAK: AtomicUsize = AtomicUsize::new(0);
///
/// struct Peak;
/// impl Observer for Peak {
///     fn closed(&self, _request: &RequestInfo, report: &Report) {
///         PEAK.fetch_max(report.peak_bytes, Relaxed);
///     }
/// }
///
/// set_observer(Peak);
/// let request = Request::new();
/// request.run(|| drop(vec![0u8; 100_000]));
/// std::thread::spawn(move || drop(request)).join().unwrap();
/// assert!(PEAK.load(Relaxed) >= 100_000);
/// ```
pub fn set_observer(observer: impl Observer + 'static) {
    persistent(|| add_observer(Box::new(observer)));
}

/// Returns what is known of every request that is open, in no order. Requests that are opened or
/// closed meanwhile may be left out.
///
/// ```
/// # #[global_allocator]
/// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
/// let request = rqmalloc::Request::builder().name("GET /").build();
/// let _entered = request.enter();
/// let open = rqmalloc::open_requests();
/// let info = open.iter().find(|info| info.id == request.id()).unwrap();
/// assert_eq!((info.name.unwrap().as_str(), info.thread_count), ("GET /", 1));
/// ```
pub fn open_requests() -> Vec<RequestInfo> {
    let thread = current_or_start();
    let mut open = Vec::with_capacity(open_count());
    open.extend(
        visit::open_requests().filter_map(|owner| visit_control(thread, owner, RequestInfo::of)),
    );
    open
}

/// What the live blocks of a request are, as one look at it found them. Displayed, it is a line for
/// the total, one for each size class, and one for each call site and size, where those are traced.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The request, and what it used when the look began.
    pub request: RequestInfo,
    /// Live blocks that were seen.
    pub blocks: u64,
    /// Their bytes, including headers and what size classes add.
    pub bytes: usize,
    /// The same by size class, smallest first.
    pub classes: Vec<LeakClass>,
    /// The same by call site and size, in a request that traces its leaks.
    pub sites: Vec<LeakSite>,
    /// Lanes that other threads were in: their blocks were not seen.
    pub skipped_lane_count: u64,
}

impl Snapshot {
    fn new(request: RequestInfo, leaks: Leaks) -> Self {
        let Leaks { id: _, name: _, blocks, bytes, classes, sites, skipped_lane_count } = leaks;
        Self { request, blocks, bytes, classes, sites, skipped_lane_count }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        leaks::write_tables(
            f,
            (self.request.id, self.request.name),
            (self.blocks, self.bytes),
            "live",
            &self.classes,
            &self.sites,
        )?;
        match self.skipped_lane_count {
            0 => Ok(()),
            1 => f.write_str("\n  and what another thread is working on"),
            count => write!(f, "\n  and what {count} other threads are working on"),
        }
    }
}

impl Request {
    /// Returns what is live in this request now, by size class, and by call site if it traces its
    /// leaks. What threads work on that are inside at the moment is left out, except this thread.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.info(), self.leaks())
    }
}

/// Returns what is live in the open request with this number, as [`Request::snapshot`] does for
/// somebody who has a handle. `None`: no such request is open. A thread that finishes the request
/// waits meanwhile: some nanoseconds for each of its blocks.
pub fn snapshot(id: RequestId) -> Option<Snapshot> {
    let thread = current_or_start();
    let with = |f: &mut dyn FnMut(&crate::request::control::Control)| {
        visit::open_requests().find_map(|owner| {
            visit_control(thread, owner, |control| (control.request_id() == id).then(|| f(control)))
                .flatten()
        })
    };
    let mut info = None;
    with(&mut |control| info = Some(RequestInfo::of(control)))?;
    let leaks = persistent(|| {
        leaks::collect(
            |look| {
                with(&mut |control| {
                    let inside = thread::current().and_then(|thread| thread.lane_inside(control));
                    look(control, inside);
                })
            },
            &HEAP,
        )
    })?;
    Some(Snapshot::new(info?, leaks.unwrap_or_else(|sums| sums)))
}
