#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(miri, allow(dead_code, unused_imports))]

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("rqmalloc knows how to get memory from Linux and from macOS only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("rqmalloc's block header holds 48-bit addresses and ids: 64-bit targets only");

extern crate std;

// Layer 0
mod quantity;
mod size_class;
mod system_call;
mod unwinder;
// Layer 1
mod fatal;
mod symbolizing;
// Layer 2
mod sync;
// Layer 3
mod bitmap;
mod block;
mod budget;
mod depot;
mod lifecycle;
mod looseness;
mod os;
mod pool;
mod refusals;
mod run_index;
mod versioned;
// Layer 4
mod bin;
mod identity;
mod span;
mod stray;
mod trace;
// Layer 5
mod chunk;
mod meta;
// Layer 6
mod registry;
// Layer 7
mod page_heap;
// Layer 8
mod huge;
mod slab;
// Layer 9
mod cache;
mod lane;
// Layer 10
mod request;
// Layer 11
mod heap;
mod leaks;
// Layer 12
mod thread;
// Layer 13
mod global;
mod limit;
mod report;
// Layer 14
mod handle;
// Layer 15
mod bailout;
mod hooks;
mod prewarm;
// Layer 16
mod family;
#[cfg(feature = "async")]
mod scope;
// Layer 17
pub mod zend;
// Layer 18
#[cfg(feature = "capi")]
mod capi;
#[cfg(all(feature = "preload", target_os = "linux"))]
mod preload;

pub use bailout::{Bailout, bailout};
pub use global::{RqMalloc, is_installed, persist, trim};
#[doc(hidden)]
pub use global::{check_structures, usable_size};
#[doc(hidden)]
pub use handle::owner_of;
pub use handle::{Entered, Request, RequestBuilder, check, persistent};
pub use hooks::{begin_request, close_request, end_request};
pub use leaks::{LeakClass, LeakSite, Leaks};
pub use limit::{LimitBelowUse, LimitExceeded};
pub use prewarm::prewarm;
pub use report::{Report, RequestId, Stats, Usage, stats};
#[cfg(feature = "async")]
pub use scope::{CatchScope, Scope};
