//! Oracles of the fuzz targets (`fuzz/`), also run by the property tests. Each takes any bytes and panics where a rule is broken.
#![doc(hidden)]

pub mod hub;
