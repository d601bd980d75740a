//! The layer in services that run, with clients that do what clients do.

mod bodies;
mod clients;
mod leaks;
mod limits;
mod names;
mod panics;
mod stack;
mod support;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;
