//! What is known of an open request.

use crate::base::os;
use crate::blocks::request_id::RequestId;
use crate::blocks::request_name::RequestName;
use crate::request::control::Control;
use crate::request::limit::LimitExceeded;
use core::time::Duration;

/// What a request uses now. Exact while nobody allocates or frees in it; never negative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Usage {
    /// Blocks that are handed out and not freed.
    pub live_blocks: u64,
    /// Their bytes, including headers and what size classes add.
    pub live_bytes: usize,
    /// Bytes of the pages the request holds.
    pub footprint_bytes: usize,
    /// The largest footprint so far.
    pub peak_bytes: usize,
    /// The memory limit in bytes of footprint, if there is one.
    pub limit_bytes: Option<usize>,
}

impl Usage {
    /// That of a request that the caller keeps.
    pub(crate) fn of(control: &Control) -> Self {
        let figures = control.figures();
        Self {
            live_blocks: figures.live_blocks as u64,
            live_bytes: figures.live_bytes,
            footprint_bytes: figures.footprint,
            peak_bytes: figures.peak,
            limit_bytes: control.limit(),
        }
    }
}

/// An open request as others see it: see [`open_requests`](crate::open_requests()).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RequestInfo {
    /// The request's number.
    pub id: RequestId,
    /// What its builder called the request.
    pub name: Option<RequestName>,
    /// How long it has been open, by a clock of some milliseconds. `None`: it has no name, and was
    /// opened before there was an [`Observer`](crate::Observer).
    pub age: Option<Duration>,
    /// What it uses.
    pub usage: Usage,
    /// Whether it has reached its memory limit or the mark below it.
    pub limit_exceeded: Option<LimitExceeded>,
    /// Lanes that it has: one for each thread that was inside at the same time.
    pub lane_count: u64,
    /// Threads that are inside now.
    pub thread_count: u64,
}

impl RequestInfo {
    /// That of a request that was opened just now and that no other thread knows.
    pub(crate) fn of_new(control: &Control) -> Self {
        Self {
            id: control.request_id(),
            name: control.name.get(),
            age: Some(Duration::ZERO),
            usage: Usage {
                live_blocks: 0,
                live_bytes: 0,
                footprint_bytes: 0,
                peak_bytes: 0,
                limit_bytes: control.limit(),
            },
            limit_exceeded: None,
            lane_count: 1,
            thread_count: 0,
        }
    }

    /// That of a request that the caller keeps.
    pub(crate) fn of(control: &Control) -> Self {
        Self {
            id: control.request_id(),
            name: control.name.get(),
            age: control.age_milliseconds(os::coarse_milliseconds).map(Duration::from_millis),
            usage: Usage::of(control),
            limit_exceeded: LimitExceeded::of(control),
            lane_count: control.lanes().filter(|lane| control.has_entered(lane)).count() as u64,
            thread_count: control.lanes().filter(|lane| lane.occupant.get() != 0).count() as u64,
        }
    }
}
