//! Learning what became of a request, wherever its last handle goes.

use crate::api::request::{Request, persistent};
use crate::request::control::Control;
use crate::request::report::Report;
use crate::thread::callbacks::add_on_close;
use std::alloc::{Layout, handle_alloc_error};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "async")]
use {
    core::fmt,
    core::future::Future,
    core::pin::Pin,
    core::task::{Context, Poll, Waker},
};

/// Where the report of a request will be.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
    is_there: Condvar,
}

#[derive(Default)]
struct State {
    report: Option<Report>,
    #[cfg(feature = "async")]
    waker: Option<Waker>,
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, report: Report) {
        let mut state = self.lock();
        state.report = Some(report);
        #[cfg(feature = "async")]
        let waker = state.waker.take();
        drop(state);
        self.is_there.notify_all();
        #[cfg(feature = "async")]
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Request {
    /// Registers `callback` to be called when the request is over, with its report: by the thread
    /// that ends or closes it or drops its last handle, outside of any request and without a limit,
    /// the last one added first. A panic in it is printed and ends only that callback.
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// let request = rqmalloc::Request::builder().name("GET /").build();
    /// request.on_close(|report| println!("{report}"));
    /// drop(request);
    /// ```
    ///
    /// # Panics
    /// If there is no memory for it, as a failed allocation does.
    pub fn on_close(&self, callback: impl FnOnce(&Report) + Send + 'static) {
        if add_on_close(self.control, callback).is_err() {
            handle_alloc_error(Layout::new::<Control>());
        }
    }

    fn place(&self) -> Arc<Place> {
        persistent(|| {
            let place = Arc::new(Place::default());
            let other = place.clone();
            self.on_close(move |report| other.put(*report));
            place
        })
    }

    /// Drops this handle, waits until the request is over, and returns its report: for an engine
    /// that aborts its tasks and does not wait for them, so that the last handle goes somewhere
    /// else, later.
    ///
    /// Blocks the thread, and for ever if it is inside the request, or has another handle itself.
    ///
    /// # Panics
    /// If there is no memory for the wait, as a failed allocation does.
    pub fn wait_closed(self) -> Report {
        let place = self.place();
        drop(self);
        let state = place.lock();
        let waited = place.is_there.wait_while(state, |state| state.report.is_none());
        let report = waited.unwrap_or_else(PoisonError::into_inner).report;
        match report {
            Some(report) => report,
            None => unreachable!("the wait is over when there is a report"),
        }
    }

    /// Drops this handle, and returns a future of the report, which is ready when the request is
    /// over: see [`wait_closed`](Self::wait_closed).
    ///
    /// ```
    /// # #[global_allocator]
    /// # static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
    /// # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
    /// let request = rqmalloc::Request::builder().name("query").build();
    /// let task = tokio::spawn(request.scope(std::future::pending::<()>()));
    /// task.abort();
    /// let report = request.closed().await;
    /// assert_eq!(report.name.unwrap().as_str(), "query");
    /// # });
    /// ```
    ///
    /// # Panics
    /// If there is no memory for it, as a failed allocation does.
    #[cfg(feature = "async")]
    pub fn closed(self) -> Closed {
        Closed(self.place())
    }
}

/// The future that [`Request::closed`] returns. It keeps nothing open; its place for the report, some
/// 400 bytes, stays until the request is over, even if this is dropped before.
#[cfg(feature = "async")]
#[must_use = "futures do nothing unless polled"]
pub struct Closed(Arc<Place>);

#[cfg(feature = "async")]
impl Future for Closed {
    type Output = Report;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Report> {
        let waker = context.waker().clone();
        let mut state = self.0.lock();
        let polled = state.report.map_or(Poll::Pending, Poll::Ready);
        let before = state.waker.replace(waker);
        drop(state);
        // Without the lock: a waker may own the last handle of the request.
        drop(before);
        polled
    }
}

#[cfg(feature = "async")]
impl Drop for Closed {
    fn drop(&mut self) {
        let before = self.0.lock().waker.take();
        drop(before);
    }
}

#[cfg(feature = "async")]
impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closed").field("report", &self.0.lock().report).finish()
    }
}
