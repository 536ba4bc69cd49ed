//! HTTP/1.1 as far as a SignalR endpoint needs it: request heads (httparse), routing of the hub's paths, the WebSocket
//! upgrade, negotiate, event streams, long polling, CORS, replies, the client's address as proxies in front tell it; and
//! response heads for the control plane's dialling. Pure.
//!
//! ```text
//!  bytes ──► head_end ──► parse_head ──► route ──► Action::Replied      the reply is written, errors too
//!                │             │           │  ├──► Action::Negotiate    negotiate_reply
//!                │             │           │  ├──► Action::Upgrade      upgrade_reply
//!                │             │           │  ├──► Action::EventStream  event_stream_reply
//!                │             │           │  ├──► Action::Poll         poll_reply
//!                │             │           │  ├──► Action::Post         post_reply
//!                │             │           │  └──► Action::Delete       delete_reply
//!                └─ HttpError ─┴─► refuse ◄┴── or, when the caller finds a reason
//! ```
//!
//! "Reference" in these files is `signalr-protocol.md`, the client-side wire protocol.

mod client;
mod cors;
mod error;
mod event_stream;
mod forwarded;
mod head;
mod negotiate;
mod reply;
mod route;
mod upgrade;

pub use client::{ResponseHead, decode_chunked, negotiate_request, parse_response, upgrade_request};
pub use cors::{Cors, OriginPolicy, OwnedCors};
pub use error::HttpError;
pub use event_stream::write_event;
pub use forwarded::{Forwarded, ForwardedHeader, Trusted, client_of};
pub use head::{Head, head_end, parse_head};
pub use negotiate::{Negotiated, negotiate_reply};
pub use reply::{
    CONTINUE, PollReply, asks_to_continue, delete_reply, event_stream_reply, poll_reply, post_reply, refuse,
};
pub use route::{Action, HttpPolicy, Transports, route};
pub use upgrade::{accept_key, upgrade_reply};

/// Does a list header (RFC 9110 §5.6.1) contain `token`? Several header lines of one name are one list.
fn has_token<'v>(values: impl Iterator<Item = &'v [u8]>, token: &str) -> bool {
    values
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}
