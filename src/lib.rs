//! SignalRing: a self-hosted SignalR scale-out proxy for dotNetify, on io_uring.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod ids;
pub mod limits;
pub mod proto;

#[cfg(feature = "std")]
pub mod bus;
#[cfg(feature = "std")]
pub mod config;
#[cfg(feature = "std")]
pub mod control;
#[cfg(feature = "std")]
pub mod demo;
#[cfg(feature = "std")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "std")]
pub mod logging;
#[cfg(feature = "std")]
pub mod mem;
#[cfg(feature = "std")]
pub mod metrics;
#[cfg(feature = "std")]
pub mod session;
#[cfg(feature = "std")]
pub mod shard;
#[cfg(feature = "std")]
pub mod sys;
#[cfg(feature = "std")]
pub mod ws_echo;
