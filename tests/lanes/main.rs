//! Requests that many threads and tasks are inside.
#![allow(missing_docs)]

mod futures;
mod growth;
mod handles;
mod inherit;
mod many;
mod scopes;
mod soundness;
mod stress;
#[cfg(feature = "stream")]
mod streams;
mod support;
mod turns;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
