//! Requests that many threads and tasks are in.
