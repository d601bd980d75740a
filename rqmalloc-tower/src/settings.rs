//! What a layer was told, and how a request is opened and answered with it.

use crate::name::default_name;
use crate::routes::route;
use crate::watch::{Watch, Watched};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use rqmalloc::{Bailout, LimitExceeded, Report};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A request with a smaller memory limit is not begun: what every handler allocates before it has
/// done anything could end the process.
const LEAST_MEMORY_LIMIT_BYTES: usize = 64 << 10;

type Name = dyn Fn(&Request<()>) -> Cow<'_, str> + Send + Sync;
type Closed = dyn Fn(&Report) + Send + Sync;
type Answer<T> = dyn Fn(&T) -> Response<Bytes> + Send + Sync;

#[derive(Clone, Default)]
pub(crate) struct Settings {
    pub(crate) soft_limit_bytes: Option<usize>,
    pub(crate) memory_limit_bytes: Option<usize>,
    pub(crate) reserve_bytes: Option<usize>,
    pub(crate) name: Option<Arc<Name>>,
    pub(crate) reports_leaks: bool,
    pub(crate) traces_leaks: bool,
    pub(crate) sheds_load: bool,
    pub(crate) watch: Option<Arc<Watch>>,
    pub(crate) on_limit: Option<Arc<Answer<LimitExceeded>>>,
    pub(crate) on_bailout: Option<Arc<Answer<Bailout>>>,
    pub(crate) on_close: Option<Arc<Closed>>,
}

/// An open request, with what watches it.
pub(crate) type Opened = (rqmalloc::Request, Option<Watched>);

impl Settings {
    /// Checks whether a request may begin.
    pub(crate) fn check_process(&self) -> Result<(), LimitExceeded> {
        if self.sheds_load { rqmalloc::check_process() } else { Ok(()) }
    }

    /// Opens a request for this one.
    pub(crate) fn open<Q>(&self, request: &mut Request<Q>) -> Result<Opened, LimitExceeded> {
        let mut builder = rqmalloc::Request::builder();
        builder = match &self.name {
            None => builder.name(default_name(request)),
            Some(name) => builder.name(with_head(request, |head| name(head).into_owned())),
        };
        if self.reports_leaks {
            builder = builder.report_leaks(true);
        }
        if self.traces_leaks {
            builder = builder.trace_leaks(true);
        }
        if let Some(bytes) = self.soft_limit_bytes {
            builder = builder.soft_limit(bytes);
        }
        if let Some(bytes) = self.memory_limit_bytes {
            builder = builder.memory_limit(bytes).report_limit(bytes >= LEAST_MEMORY_LIMIT_BYTES);
        }
        if let Some(bytes) = self.reserve_bytes {
            builder = builder.reserve(bytes);
        }
        let request = builder.build();
        let watched = self.watch.as_ref().and_then(|watch| Watched::new(watch, &request));
        self.tell_closed(&request, watched.is_some());
        match self.memory_limit_bytes {
            Some(bytes) if bytes < LEAST_MEMORY_LIMIT_BYTES => refuse(&request, bytes)?,
            _ => (),
        }
        Ok((request, watched))
    }

    /// Has a request tell what became of it.
    fn tell_closed(&self, request: &rqmalloc::Request, is_watched: bool) {
        let is_recorded = cfg!(any(feature = "metrics", feature = "tracing"));
        if !is_recorded && self.on_close.is_none() {
            return;
        }
        // Not `self`: a request that waits in `self.watch` would keep it.
        let (on_close, is_watch_on) = (self.on_close.clone(), self.watch.is_some());
        #[cfg(feature = "metrics")]
        let begun = std::time::Instant::now();
        #[cfg(feature = "tracing")]
        let span = tracing::Span::current();
        request.on_close(move |report| {
            if is_recorded {
                let route = route(report.name);
                #[cfg(feature = "metrics")]
                crate::measure::measure(route, report, Some(begun).filter(|_| !is_watched));
                #[cfg(feature = "tracing")]
                crate::span::record(&span, route, report, is_watch_on);
                let _ = (route, is_watched, is_watch_on);
            }
            if let Some(on_close) = &on_close {
                on_close(report);
            }
        });
    }

    /// Returns what is answered at a limit.
    pub(crate) fn answer_limit(&self, limit: &LimitExceeded) -> Response<Bytes> {
        let otherwise = || empty(StatusCode::SERVICE_UNAVAILABLE);
        self.on_limit.as_ref().map_or_else(otherwise, |answer| answer(limit))
    }

    /// Returns what is answered for a request that was given up.
    pub(crate) fn answer(&self, bailout: &Bailout) -> Response<Bytes> {
        match bailout {
            Bailout::Limit(limit) => self.answer_limit(limit),
            _ => {
                let otherwise = || empty(StatusCode::INTERNAL_SERVER_ERROR);
                self.on_bailout.as_ref().map_or_else(otherwise, |answer| answer(bailout))
            }
        }
    }
}

/// Calls `f` with the request without its body.
fn with_head<Q, R>(request: &mut Request<Q>, f: impl FnOnce(&Request<()>) -> R) -> R {
    let mut head = Request::new(());
    swap_heads(request, &mut head);
    let result = f(&head);
    swap_heads(request, &mut head);
    result
}

fn swap_heads<A, B>(a: &mut Request<A>, b: &mut Request<B>) {
    std::mem::swap(a.method_mut(), b.method_mut());
    std::mem::swap(a.uri_mut(), b.uri_mut());
    std::mem::swap(a.version_mut(), b.version_mut());
    std::mem::swap(a.headers_mut(), b.headers_mut());
    std::mem::swap(a.extensions_mut(), b.extensions_mut());
}

/// Has a request that has no room reach its limit, and says which that is.
fn refuse(request: &rqmalloc::Request, limit_bytes: usize) -> Result<(), LimitExceeded> {
    let given_up = request.catch(|| {
        let refused = Vec::<u8>::new().try_reserve_exact(limit_bytes + 1);
        // So the report says that it was over its limit. A bailout needs unwinding.
        if refused.is_err() && cfg!(panic = "unwind") {
            rqmalloc::bailout("no room for any request");
        }
    });
    let _ = given_up;
    // `Ok` where this allocator is not the program's.
    request.check()
}

fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("soft_limit", &self.soft_limit_bytes)
            .field("memory_limit", &self.memory_limit_bytes)
            .field("reserve", &self.reserve_bytes)
            .field("report_leaks", &self.reports_leaks)
            .field("trace_leaks", &self.traces_leaks)
            .field("shed_load", &self.sheds_load)
            .field("watch_leaks", &self.watch)
            .finish_non_exhaustive()
    }
}
