//! SignalRing: a self-hosted SignalR scale-out proxy for dotNetify, on io_uring. This file is the door: what stands where, which word
//! means what, and the way of one message.
//!
//! # Layers
//!
//! Imports point down; `tests/architecture.rs` checks every one of them, that `unsafe` stays in `sys` and `mem`, and that the protocol
//! core (`proto`, with `ids` and `limits`) builds without std.
//!
//! ```text
//! main                the `signalring` command: arguments and exit codes
//! demo                the embedded app server (a double of dotNetify's own); two nodes, load and a page around it, to see and to stop
//! ws_echo             codec server for conformance suites
//! load                the load tester: clients of any dotNetify server, seen from outside
//! control   logging   dialling lanes on tokio-uring, admin endpoint with the live picture, signals, everything read again, sockets passed on
//! config              file < environment < flags -> a Config valid by construction; memory budget
//! shard               one core: the turn, accept, clients whatever carries them, forwarding, lanes, delivery, connections handed over
//! bus                 bounded queues with a doorbell, between shards and control plane, and between shards
//! journal             which ids app servers know clients by, in a mapped file that outlives the process
//! session  sys  tls   pure lives of connections, routes, live view models | the kernel: ring, sockets, doorbell, probe | TLS without sockets, certificates
//! identity  filter    who a client is: tokens verified, with keys and time as arguments | which messages go to an upstream
//! proto mem metrics   pure codecs: proxy, http, ws, signalr, dotnetify | slab, frames, buffers, wheel | names, counters, exposition
//! limits    ids       every bound with its reason | names of things, and time
//! ```
//!
//! `proto::ws` knows no SignalR, `proto::signalr` no WebSocket and no dotNetify, `session` no kernel and no metrics, `shard` no config.
//! `session` joins the codecs into lives; `shard` gives the lives sockets, and `tls` stands between a socket and everything else: no codec and
//! no session knows whether bytes were encrypted. `fuzzing` holds the oracles that fuzz targets and property
//! tests share. `demo::app` shares no machinery with the node, or it would share the node's mistakes.
//!
//! # Words
//!
//! One word per thing:
//!
//! - **node**: one proxy process.
//! - **shard**: one thread with its own ring, listeners, clients and lanes ([`shard::Shard`]).
//! - **client**: a downstream SignalR connection, from the start of its transport on.
//! - **transport**: WebSockets, Server-Sent Events or long polling; **protocol**: JSON or MessagePack; **form**: both together, how records
//!   travel to one client ([`session::form::Form`]).
//! - **carried client**: one whose socket comes and goes (events, polls, stateful reconnect). It has a place in the table of its own, and a
//!   **carrier**: the connection that takes what is queued for it at present.
//! - **connection token**: what negotiate hands out as `<node_name>.<rest>` ([`session::token`]): signed, names node and shard, and begins one
//!   connection. **Bearer token**: what says which **user** a client is ([`identity`]).
//! - **pause**: nothing is read from one client for a while, so that TCP holds it back; nobody else notices ([`shard`], `pause`).
//! - **hand-over**: a connection goes to the shard that owns the client it asks for, with its socket, its TLS and what was read.
//! - **app server**: a dotNetify server behind the node. **Upstream**: an entry of the configuration for one, or for several that stand
//!   for each other, each with its **url**; clients are dealt over the urls. Upstreams stand in order, at most `limits::UPSTREAMS_MAX`.
//! - **filter**: which messages go to an upstream, an expression over a message and its client ([`filter::Filter`]).
//! - **halt**: a message that an upstream takes goes no further, unless it is a **mirror** (`halt_pipeline = false`). The upstream where a
//!   message halts **answers**: its refusal is the client's. A mirror keeps nobody waiting.
//! - **Observer**: an upstream that sees messages without what they carry, and how the process does, and never answers: dotNetify's own
//!   picture of its nodes.
//! - **view model**: what a client asks an app server for, by its vmId. From its `Request_VM` to its `Dispose_VM` it is **live**, and goes
//!   to the upstreams that were chosen for it at first ([`session::views`]).
//! - **lane**: one persistent connection of a shard to a url of an upstream. A client is **pinned** to one lane of each upstream that it
//!   has anything to do with, all of its own shard.
//! - **origin id**: the connection id an app server knows a client by ([`ids::OriginId`]): shard, slot, a serial number and a keyed check.
//!   It is not the `connectionId` that negotiate returns, and a stateful reconnect does not change it. At each upstream a client has one at a
//!   time, and a new one when its lane there is lost; its first one names it as long as it lives.
//! - **replay**: the view models of a client requested again under its new id, as they were requested last ([`session::views`]).
//! - **acknowledged**: the app server says when it has worked on an invocation. What it has not is **in flight** ([`session::flight`]). A lane
//!   on which nothing is acknowledged for too long is **stuck**.
//! - **journal**: the file in which a process notes the origin ids that upstreams know ([`journal`]). From that of a process which was killed
//!   the next one **buries** its clients: it sends their `OnDisconnectedAsync` in its place.
//! - **hub id**: the id a lane gives itself, fresh at every connect ([`ids::HubId`]); or, as an option, one for all lanes of the node.
//! - **hub**: the clients that an app server takes to be behind one hub id, with their groups and users: those of one lane, or, where the
//!   lanes of the node share a hub id, of all lanes of a shard to one url.
//! - **drain**: how a node ends in order: its clients are sent away, each at a moment of its own. **Heir**: a process that has the listening
//!   sockets as well, and serves those who come meanwhile ([`bus::Heir`]).
//! - **record**: one SignalR message with its framing.
//! - **frame**: encoded outgoing bytes in [`mem::frames`], counted, queued on one connection or many. (WebSocket's frames are `ws` frames.)
//! - **turn**: one round of a shard's loop: completions, timers, orders, lanes, sends.
//!
//! # The life of one message
//!
//! Client to app server, an `Update_VM`:
//!
//! 1. `shard::turn`: the poll armed on the client's socket completes (`Op::Readable`), so one receive into a provided buffer is queued
//!    (`Op::Receive`). An idle client has nothing in the ring but its poll, and no buffer.
//! 2. With TLS, `tls::Tls::open` turns what came into plaintext first. `session::client::ClientSession::on_bytes` runs over the bytes:
//!    `proto::ws::Decoder` unmasks in place and checks UTF-8, `session::assembler` finds the record. A record inside one piece is used
//!    where it lies. The body of a POST takes the same way without WebSocket frames (`on_body`).
//! 3. `proto::signalr::parse` makes a `Message` of byte ranges, `proto::dotnetify::request::parse` a `Request`: which call, the raw
//!    vmId, the raw argument. Of a MessagePack client's message `request::transcode` first writes the JSON that System.Text.Json would
//!    make of it, so that everything behind sees JSON. Where parsing fails the client is answered with the completion error of ASP.NET,
//!    and nothing is forwarded. A message that a stateful reconnect sends twice ends here.
//! 4. Where users are known (`shard::authenticate`), `$headers` in the argument may name the client's user, and a `Request_VM` without a
//!    user may be refused.
//! 5. `shard::forwarding` finds the upstreams: those of the live view model (`session::views`), else those whose filters take the message
//!    (`session::routing`), in order up to the first that halts, and the Observers. Where one app server takes everything there is
//!    nothing to find. A request that no upstream answers is answered as dotNetify answers an unknown view model.
//! 6. For each of them the client's lane is the one it is pinned to. If it is new there, it is the least loaded lane of the url with the
//!    fewest clients for its weight, among those that are up. With `dispatch = "message"` it is the next one to the same url.
//! 7. `shard::lane::Lane::request`: if the lane is up, nothing waits in front of it, its send queue is short and the app server does not owe
//!    too much, `proto::dotnetify::forward` writes the `Invoke` once, straight into the lane's outgoing frame, in JSON or MessagePack:
//!    literals, a number to acknowledge, the client's own JSON text (escaped), hub id, time stamp, origin id, and the client's prepared
//!    context and claims. Otherwise the message waits in the lane's queue, bounded in bytes and time, and a client with several waiting is
//!    read no further (`shard::pause`); for a mirror or an Observer nothing waits. What waits for a lane that is down moves to another
//!    that comes up, together with its client.
//! 8. A client that asked for a completion (`invocationId`) gets a null result at once, as from the original proxy. What comes of the
//!    call arrives as a `Response_VM`; so does a refusal, as a `ForwardingException`.
//! 9. At the end of the turn `flush` sends everything queued for each dirty socket, sealed first where it has TLS, at most 256 sockets to a
//!    submission.
//!
//! App server to clients:
//!
//! 1. The lane's receive completes in a buffer of the lanes' own group; `session::lane::LaneSession` cuts it into records.
//! 2. `proto::dotnetify::response::parse` turns `Response_VM [method, args, metadata]` into a `Delivery`, a closed enum of ranges.
//! 3. `shard::delivery::LaneSide::deliver`: for one client, the origin id is opened (`ids::OriginKey::open`: no table) and the client's
//!    frame is written to the end of its queue. For many, a group or users it is encoded once for each form among the addressed clients,
//!    into frames that their queues refer to. Groups and users are those of the lane's hub (`session::groups`), and an app server reaches
//!    only clients that are pinned to its own upstream. Where all lanes of the node share a hub id, what is for many is relayed to the
//!    other shards over the bus. For a client with stateful reconnect the frame is also kept until it is acknowledged
//!    (`session::resume::Outbound`).
//!    A completion says that an invocation of ours was worked on: `session::flight` knows whose it was. An error is told to its client.
//! 4. What is queued for a carried client moves to its carrier (`shard::carried`, `pump`): its WebSocket, its event stream, the poll that waits.
//!    Without a carrier it waits for the next poll, or is what a reconnect replays.
//! 5. A queue over its bound marks the client as too slow; it ends when the lane's bytes have been handled. All others leave in `flush`. What
//!    the kernel does not take is watched piece by piece: a client that takes hardly anything for too long ends, too
//!    (`Socket::fell_behind`).
//!
//! Ends: a client's end takes it out of its hubs' groups and sends `OnDisconnectedAsync` to every upstream that has seen anything of it, as
//! its last message on its lane there; while no lane to that url is up it waits as a notice, and it is said again where nobody has
//! acknowledged it. The loss of a lane (`shard::replay`) gives its clients new ids, other lanes, and their view models requested again. It is
//! reported to `control::plane`, which dials again and hands the new socket over the bus; an Observer that cannot be reached is tried once a
//! minute, by one lane for all. What each end means to the peer, the metrics and the log is one map: `session::fault`.
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
pub mod filter;
#[cfg(feature = "std")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "std")]
pub mod identity;
#[cfg(feature = "std")]
pub mod journal;
#[cfg(feature = "std")]
pub mod load;
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
#[doc(hidden)]
pub mod sim;
#[cfg(feature = "std")]
pub mod sys;
#[cfg(feature = "std")]
pub mod tls;
#[cfg(feature = "std")]
pub mod ws_echo;
