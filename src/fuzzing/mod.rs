//! Oracles of the fuzz targets (`fuzz/`), also run by the property tests. Each takes any bytes and panics where a rule is broken.
//! Not part of the product.

pub mod filter;
pub mod hub;
pub mod identity;
pub mod net;
pub mod session;
pub mod shard;
