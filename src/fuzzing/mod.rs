//! What the fuzz targets (and some property tests) hold the codecs against: each function takes any bytes and panics when
//! an oracle disagrees. Not part of the product.

pub mod net;
