//! `$fwdConnContext`: the client's identity as the app server reads it (contract 2.3).
//!
//! What does not change during a client's life is prepared once (`prepare`); the three members that do (HubId, TimeStamp,
//! ConnectionId) are written in front of it for each message (`write`). Byte-identical to .NET's serializer, whose default
//! encoder escapes `" & ' + < > \`` and everything outside ASCII as `\uXXXX` (upper-case hex).
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

/// How the context is embedded: twice escaped inside a JSON lane's string, once (plain JSON text) on a MessagePack lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedding {
    Json,
    MessagePack,
}

/// What is known of a client when it connects.
pub struct Peer<'a> {
    /// The HTTP connection's own id, shown as HttpConnection.ConnectionId.
    pub connection_id: &'a str,
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// Headers to forward, already filtered: (name as received, value). Names are canonicalised here (`user-agent` ->
    /// `User-Agent`, as Kestrel presents known names); several of one name become several array elements.
    /// Values that are not UTF-8 are read as Latin-1.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// The header policy (contract 6.6): which client headers an app server is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderPolicy {
    All,
    /// Only these names (case-insensitive).
    Only(Vec<alloc::string::String>),
}

impl HeaderPolicy {
    /// Hop-by-hop headers (RFC 9110 §7.6.1) and Sec-WebSocket-* never pass.
    pub fn admits(&self, _name: &str) -> bool {
        todo!()
    }
}

/// The constant tail of the context, escaped for its embedding: from `"HttpConnection":` to the closing brace.
pub fn prepare(_peer: &Peer<'_>, _embedding: Embedding) -> Box<[u8]> {
    todo!()
}

/// The changing members. `ticks` are 100 ns since 1970-01-01 UTC.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub hub_id: &'a [u8],
    pub ticks: u64,
    /// Origin id.
    pub connection_id: &'a [u8],
    /// From `prepare`, or `MINIMAL_TAIL_*` where the client is gone.
    pub tail: &'a [u8],
}

/// Appends the whole context text for its embedding.
pub fn write(_context: &Context<'_>, _embedding: Embedding, _out: &mut impl bytes::BufMut) {
    todo!()
}

/// Tail of a context of which only the id is known (disconnects of a lost lane, contract 6.4): `"Items":{}}`, escaped.
pub const MINIMAL_TAIL_JSON: &[u8] = b"\\\"Items\\\":{}}";

/// Appends `2024-05-06T07:08:09.1234567+00:00` (always seven fraction digits).
pub fn write_timestamp(_ticks: u64, _out: &mut impl bytes::BufMut) {
    todo!()
}
