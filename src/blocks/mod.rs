//! Blocks: their memory, the lists of free ones, and what is written next to them.

pub mod memory;
pub mod allocated;
pub mod identity;
pub mod request_id;
pub mod request_name;
pub mod list;
mod bin;
pub mod bins;
pub mod region;
pub mod holes;
pub mod trace;
