//! What can be tried without a dotNetify installation: an app server (`app`), faithful to the upstream contract, and a page (`page`)
//! that shows two tabs on different nodes talking to each other.
//!
//! `app` is also the double that the integration tests, the simulator's comparisons and the load tester run against.

pub mod app;
pub mod page;
