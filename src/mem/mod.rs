//! Memory that is taken at start and reused: the connection table, frames and their queues, byte buffers, the timing wheel.
//! Everything here is safe code; what the kernel touches lives in `sys`.

pub mod frames;
pub mod intern;
pub mod pool;
pub mod slab;
pub mod wheel;
