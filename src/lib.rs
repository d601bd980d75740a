#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(miri, allow(dead_code, unused_imports))]

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("rqmalloc knows how to get memory from Linux and from macOS only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("rqmalloc's block header holds 48-bit addresses and ids: 64-bit targets only");

extern crate std;

// From the bottom up: a wing names only lower wings. `ci/layers` reads the order from here.
mod base;
mod lockfree;
mod pages;
mod blocks;
mod persistent;
mod request;
mod heap;
mod thread;
mod api;
mod c;

pub use api::alloc_error::alloc_error_hook;
pub use api::bailout::{Bailout, bailout};
pub use api::builder::RequestBuilder;
#[cfg(feature = "async")]
pub use api::closed::Closed;
pub use api::global::{RqMalloc, is_installed, persist};
#[doc(hidden)]
pub use api::global::{check_structures, usable_size};
pub use api::hooks::{begin_request, close_request, end_request};
pub use api::idle::{NoBackgroundThread, start_background_thread, trim};
pub use api::inherit::{inherit_each, inherit_fn};
pub use api::observe::{Snapshot, open_requests, set_observer, snapshot};
pub use api::prewarm::prewarm;
pub use api::process::{check_process, process_limit, set_process_limit};
#[doc(hidden)]
pub use api::request::owner_of;
pub use api::request::{Entered, Request, check, persistent};
#[cfg(feature = "async")]
pub use api::scope::{CatchScope, Scope, inherit, persistent_scope};
pub use api::stats::{Stats, stats};
pub use blocks::request_id::RequestId;
pub use blocks::request_name::RequestName;
pub use c::zend;
pub use request::info::{RequestInfo, Usage};
pub use request::leaks::{LeakClass, LeakSite, Leaks};
pub use request::limit::{LimitBelowUse, LimitExceeded, LimitKind};
pub use request::report::{Outcome, Report};
pub use thread::observe::Observer;
