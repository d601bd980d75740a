#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

// From the bottom up: a file names only those above it in this list.
mod text;
mod histogram;
mod table;
mod history;
mod watch;
mod parts;
mod plot;
mod sort;
mod view;
mod requests;
mod routes;
mod page;
mod metrics;
mod http;

pub use http::router;
