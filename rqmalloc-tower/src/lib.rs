#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod answer;
mod body;
mod future;
mod layer;
#[cfg(feature = "metrics")]
mod measure;
mod name;
mod out;
mod routes;
mod service;
mod settings;
#[cfg(feature = "tracing")]
mod span;
mod watch;

pub use answer::IntoAnswer;
pub use body::{BoxError, ResponseBody};
pub use future::ResponseFuture;
pub use layer::RequestLayer;
#[cfg(feature = "metrics")]
pub use measure::measure_process;
pub use routes::{RouteLeaks, leaks};
pub use service::RequestService;
#[cfg(feature = "tracing")]
pub use span::request_span;

pub use rqmalloc;
