//! Requests that many threads and tasks are inside.
#![allow(missing_docs)]

mod futures;
mod growth;
mod handles;
mod many;
mod soundness;
mod stress;
mod support;
mod turns;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
