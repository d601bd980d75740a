//! The allocator as a program sees it: installed, with requests that begin and end.
#![allow(missing_docs)]

mod accounting;
mod bailout;
mod basic;
mod bulk;
mod children;
mod limit;
mod misuse;
mod nesting;
mod realloc;
mod reports;
mod soft_limit;
mod stress;
mod support;
mod survivors;
mod threads;
mod zend;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// A process that is to die of misuse does so before the test harness starts: see `misuse`.
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
static EARLY: extern "C" fn() = misuse::run_child;
