//! Giving up one request from anywhere inside it: an unwinding with its own payload and no panic
//! message, caught by `Request::catch`.

use crate::api::request::{Request, persistent};
use crate::base::failure;
use crate::base::line::Line;
use crate::request::limit::LimitExceeded;
use crate::thread::life::current_or_start;
use crate::thread::{self, Thread};
use core::fmt;
use core::panic::AssertUnwindSafe;
use std::boxed::Box;
use std::panic::{catch_unwind, resume_unwind};

/// Why a request was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Bailout {
    /// [`bailout`] was called with this reason.
    Called(&'static str),
    /// The request reached its memory limit, or the mark below it.
    Limit(LimitExceeded),
    /// The system had no more memory for a block of this size.
    OutOfMemory(usize),
    /// `count * size + offset` is more than any block may have.
    Overflow {
        /// The number of elements.
        count: usize,
        /// The size of each.
        size: usize,
        /// The bytes on top.
        offset: usize,
    },
}

impl Bailout {
    pub(crate) fn line(&self) -> Line {
        match *self {
            Self::Called(reason) => failure::reason(reason),
            Self::Limit(limit) => limit.line(),
            Self::OutOfMemory(asked) => failure::out_of_memory(asked),
            Self::Overflow { count, size, offset } => failure::overflow(count, size, offset),
        }
    }
}

impl fmt::Display for Bailout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line().as_str())
    }
}

impl core::error::Error for Bailout {}

impl From<LimitExceeded> for Bailout {
    fn from(limit: LimitExceeded) -> Self {
        Self::Limit(limit)
    }
}

/// Gives up what this thread is doing for a request: unwinds to the nearest [`Request::catch`], or
/// to the code that polls the nearest [`scope`](crate::Request), running destructors on the way. No
/// panic message is printed. ZendMM's `zend_bailout`, except that destructors are not jumped over.
///
/// # Panics
/// If no `catch` or `scope` is up the stack, with the reason in the message. In a program built
/// with `panic = "abort"` every bailout ends the process.
pub fn bailout(reason: &'static str) -> ! {
    raise(Bailout::Called(reason))
}

/// Unwinds with this payload.
pub(crate) fn raise(bailout: Bailout) -> ! {
    if !is_catching() {
        panic!("bailout outside of Request::catch: {bailout}");
    }
    let _uncaught = Uncaught::new();
    // The payload outlives the request that is given up.
    persistent(|| {
        thread::current().inspect(|thread| thread.is_bailing_out.set(true));
        resume_unwind(Box::new(bailout))
    })
}

/// While it exists, no bailout is caught: for what is allocated to unwind.
struct Uncaught {
    thread: Option<&'static Thread>,
    catching_count: usize,
}

impl Uncaught {
    fn new() -> Self {
        let thread = thread::current();
        let catching_count = thread.map_or(0, |thread| thread.catching_count.replace(0));
        Self { thread, catching_count }
    }
}

impl Drop for Uncaught {
    fn drop(&mut self) {
        if let Some(thread) = self.thread {
            thread.catching_count.set(self.catching_count);
        }
    }
}

/// Whether a bailout would be caught.
pub(crate) fn is_catching() -> bool {
    thread::current().is_some_and(|thread| thread.catching_count.get() > 0)
}

/// While it exists, bailouts are caught by the code that made it.
pub(crate) struct Catching(Option<&'static Thread>);

impl Catching {
    pub(crate) fn new() -> Self {
        let thread = current_or_start();
        if let Some(thread) = thread {
            thread.catching_count.set(thread.catching_count.get() + 1);
        }
        Self(thread)
    }
}

impl Drop for Catching {
    fn drop(&mut self) {
        if let Some(thread) = self.0 {
            thread.catching_count.set(thread.catching_count.get().saturating_sub(1));
        }
    }
}

/// Runs `f` and returns a bailout that comes out of it; any other panic goes on.
pub(crate) fn catching<R>(f: impl FnOnce() -> R) -> Result<R, Bailout> {
    let result = {
        let _catching = Catching::new();
        catch_unwind(AssertUnwindSafe(f))
    };
    result.map_err(|payload| match payload.downcast::<Bailout>() {
        Ok(bailout) => {
            thread::current().inspect(|thread| thread.is_bailing_out.set(false));
            *bailout
        }
        Err(other) => resume_unwind(other),
    })
}

impl Request {
    /// Runs `f` inside the request, and gives the request up if `f` bails out: by [`bailout`], at
    /// the memory limit in [`zend`](crate::zend)'s functions, or because the request is marked when
    /// `f` returns (what it returned is then dropped). The result is then an error; the process and
    /// other requests go on. ZendMM's `zend_try` and `zend_catch`.
    ///
    /// An allocation refused at the limit gives the request up only if it leads to one of these: a
    /// failed `try_reserve` that `f` can do without does not.
    ///
    /// Destructors run as in a panic. Nothing else is freed: the rest is freed by
    /// [`end`](Self::end), or reported by [`close`](Self::close). `f` may leave what it shares with
    /// others half done, as with [`catch_unwind`].
    ///
    /// # Errors
    /// Returns why the request was given up.
    ///
    /// # Panics
    /// If `f` panics, or as [`enter`](Self::enter) does.
    pub fn catch<R>(&self, f: impl FnOnce() -> R) -> Result<R, Bailout> {
        let _entered = self.enter();
        let result = catching(f).and_then(|value| match self.given_up() {
            None => Ok(value),
            Some(limit) => {
                drop(value);
                Err(limit.into())
            }
        });
        if result.is_err() {
            self.note_bailout();
        }
        result
    }
}
