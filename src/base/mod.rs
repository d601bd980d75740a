//! What knows nothing of the allocator: arithmetic, the system, synchronisation, fatal lines.

pub mod quantity;
pub mod prefetch;
pub mod size_class;
pub mod system_call;
pub mod environment;
pub mod unwinder;
pub mod line;
pub mod failure;
pub mod fatal;
pub mod symbolizing;
pub mod sync;
pub mod os;

#[cfg(test)]
mod dying;
