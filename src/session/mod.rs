//! The pure lives of connections: a client's (`client`, over any transport: `form`; over several sockets: `resume`), a lane's (`lane`),
//! what they share, and what their ends mean. `pace` is how fast a client sends. `token` is how several requests are known to be of one connection.
//!
//! The contract of a session, written once:
//! - It has no socket, clock, thread, random or log. Bytes and time come in as arguments; what is to happen goes out through the
//!   `Env` it is given, whose calls take effect in order.
//! - `on_bytes(now, input, ..)` takes everything that was received, decodes it in place and keeps nothing of `input`. `on_body` is the same
//!   for the body of a POST, which has no frames.
//! - `on_time(now, ..)` does what is due and returns when it wants to be called next. Calling it early is harmless.
//! - An `Err` is the end of the connection, and says everything about it: what the peer is told (`close`), what is counted and
//!   logged (`fault`). After it only `close` may be called.

pub mod assembler;
pub mod client;
pub mod fault;
pub mod flight;
pub mod form;
pub mod groups;
pub mod lane;
pub mod pace;
pub mod resume;
pub mod routing;
pub mod token;
pub mod views;
