//! One WebSocket connection, a lane or a direct client: handshake, messages strictly one after the other, keep-alive, close.
use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout};

use super::Shared;
use super::bindings::ConnectionId;
use super::context;
use super::hub::{Command, Failed, Hub};
use super::invoke;
use super::outbox::{Next, Outbox};
use super::protocol::{self, Argument, Call, HandshakeError, Inbound, Outbound, Protocol};
use super::wire::Fault;

/// How long a closed connection may take to write its last records and see the peer's close frame (reference 13.4).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The text of every error close (reference 13.3).
const CLOSED_WITH_AN_ERROR: &str = "Connection closed with an error.";

/// Runs the connection to its end, its hub disconnect included.
pub async fn run(shared: Arc<Shared>, id: ConnectionId, user: Option<String>, fault: Fault, socket: WebSocket) {
    let (sink, stream) = socket.split();
    let outbox = Arc::new(Outbox::new(shared.options.outbox_bytes_max));
    let mut writer = Writer(tokio::spawn(write(outbox.clone(), sink, shared.options.keep_alive)));
    let held = shared.held.subscribe();
    let mut reader = Reader { shared: &shared, stream, outbox: &outbox, held, buffer: Vec::new() };
    if let Ok(protocol) = reader.handshake().await {
        shared.hub().connected(&id, protocol, user, outbox.clone(), fault);
        let end = reader.messages(&id, protocol).await;
        reader.close(&id, protocol, end);
        shared.hub().disconnected(&id);
    }
    outbox.close();
    let flushed = timeout(CLOSE_TIMEOUT, async {
        let _ = (&mut writer.0).await;
        // The peer's close frame, or its end.
        while let Some(Ok(_)) = reader.stream.next().await {}
    });
    if flushed.await.is_err() {
        tracing::debug!(connection = %id, "the peer did not finish the close");
    }
}

/// The writing task, which must not outlive the connection's own when that is cut.
struct Writer(JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The socket ended.
    Lost,
    /// The peer does not read.
    Slow,
    /// The peer sent a Close message.
    Closed,
    Oversized,
    ProtocolError,
    Silent,
    Stopping,
}

struct Reader<'a> {
    shared: &'a Shared,
    stream: SplitStream<WebSocket>,
    outbox: &'a Arc<Outbox>,
    held: watch::Receiver<HashSet<ConnectionId>>,
    /// Received and not yet processed: a record may be split over WebSocket messages, and several may come in one.
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// After a failed handshake the connection ends without a Close message (reference 11.3).
    async fn handshake(&mut self) -> Result<Protocol, ()> {
        let deadline = Instant::now() + self.shared.options.handshake_timeout;
        let result = loop {
            if let Some(end) = memchr::memchr(protocol::SEPARATOR, &self.buffer) {
                let result = protocol::handshake(&self.buffer[..end], self.shared.options.message_pack);
                self.buffer.drain(..=end);
                break result;
            }
            if self.buffer.len() > self.shared.options.message_bytes_max {
                break Err(HandshakeError("Handshake was canceled.".into()));
            }
            match self.receive(Some(deadline)).await {
                Ok(()) => {}
                Err(End::Silent) => break Err(HandshakeError("Handshake was canceled.".into())),
                Err(_) => return Err(()),
            }
        };
        // The answer to a binary protocol comes in a binary message, an error may come as text (reference 16.6).
        if let Ok(protocol) = result {
            self.outbox.speak(protocol);
        }
        let _ = self.outbox.push(&protocol::handshake_response(&result));
        result.map_err(|HandshakeError(error)| tracing::debug!(error, "handshake failed"))
    }

    async fn messages(&mut self, id: &ConnectionId, protocol: Protocol) -> End {
        // Armed by the first ping; from then on every message counts (reference 13.4).
        let mut pinged = false;
        loop {
            if let Err(end) = self.process(id, protocol, &mut pinged).await {
                return end;
            }
            // The time a hub method took does not count as the peer's silence.
            let deadline = pinged.then(|| Instant::now() + self.shared.options.client_timeout);
            if let Err(end) = self.receive(deadline).await {
                return end;
            }
        }
    }

    /// Processes what is in the buffer, one message after the other, each to its end before the next is looked at.
    async fn process(&mut self, id: &ConnectionId, protocol: Protocol, pinged: &mut bool) -> Result<(), End> {
        let limit = self.shared.options.message_bytes_max;
        let mut done = 0;
        let result = loop {
            let unread = &self.buffer[done..];
            let (body, taken) = match protocol.frame(unread) {
                Ok(Some((body, taken))) if taken <= limit => (body, taken),
                Ok(_) => break if unread.len() > limit { Err(End::Oversized) } else { Ok(()) },
                Err(protocol::ProtocolError) => break Err(End::ProtocolError),
            };
            match protocol.decode(&unread[body]) {
                Err(protocol::ProtocolError) => break Err(End::ProtocolError),
                // SignalR's parser stops in front of it until more arrives than it may hold (reference 16.9).
                Ok(Inbound::Unknown) => break if unread.len() > limit { Err(End::Oversized) } else { Ok(()) },
                Ok(Inbound::Close) => break Err(End::Closed),
                Ok(Inbound::Ping) => *pinged = true,
                Ok(Inbound::Ignored) => {}
                Ok(Inbound::Invocation { id: invocation_id, target, call }) => {
                    // Its sender lives as long as the server.
                    let _ = self.held.wait_for(|held| !held.contains(id)).await;
                    let error = self.invocation(id, &target, call).await.err();
                    if let Some(invocation_id) = invocation_id {
                        let completion = Outbound::Completion { id: &invocation_id, error: error.as_deref() };
                        let _ = self.outbox.push(&protocol.encode(&completion));
                    }
                }
            }
            done += taken;
        };
        self.buffer.drain(..done);
        result
    }

    /// Calls the hub method; the error is the completion's text (reference 13.2).
    async fn invocation(&self, id: &ConnectionId, target: &str, call: Call) -> Result<(), String> {
        let result = match call {
            Call::Failed(text) => Err(text),
            call => {
                let text = || format!("An unexpected error occurred invoking '{target}' on the server.");
                self.call(id, call).await.map_err(|Failed| text())
            }
        };
        if let Err(error) = &result {
            self.shared.hub().counters.failed_invocations += 1;
            tracing::info!(connection = %id, error, "invocation failed");
        }
        result
    }

    async fn call(&self, id: &ConnectionId, call: Call) -> Result<(), Failed> {
        let (origin, command) = match call {
            Call::Invoke { method, arguments, metadata } if self.shared.options.observer => {
                return self.observe(id, method.as_deref(), &arguments.unwrap_or_default(), metadata).await;
            }
            Call::Invoke { method, arguments, metadata } => {
                let command = invoke::command(method, arguments);
                let own_hub_id = self.shared.own_hub_id.clone();
                let origin = context::origin(&metadata, &own_hub_id);
                let mut hub = self.shared.hub();
                // The Items are replaced before anything can fail (contract 2.5).
                hub.invoked(id, metadata);
                if hub.is_to_fail(id, command.as_ref().ok().and_then(Option::as_ref)) {
                    return Err(Failed);
                }
                let Some(command) = command? else {
                    hub.counters.unknown_methods += 1;
                    return Ok(());
                };
                (origin.map_err(|_| Failed)?, command)
            }
            Call::RequestVm { vm_id, vm_arg } => {
                let argument = invoke::direct_argument(&vm_arg);
                (None, Command::Request { vm_id: vm_id.ok_or(Failed)?, argument })
            }
            Call::UpdateVm { vm_id, vm_data } => (None, Command::Update { vm_id: vm_id.ok_or(Failed)?, data: vm_data }),
            Call::DisposeVm { vm_id } => (None, Command::Dispose { vm_id: vm_id.ok_or(Failed)? }),
            Call::Failed(_) => return Err(Failed),
        };
        let (client, delay) = {
            let mut hub = self.shared.hub();
            let client = hub.touch(id, origin);
            let delay = hub.delay(id, &client, &command);
            if delay.is_zero() {
                self.run(&mut hub, &client, command);
                return Ok(());
            }
            (client, delay)
        };
        sleep(delay).await;
        self.run(&mut self.shared.hub(), &client, command);
        Ok(())
    }

    /// An Observer's part: the middleware takes the message, and no hub method sees it.
    async fn observe(
        &self,
        id: &ConnectionId,
        method: Option<&str>,
        arguments: &[Argument],
        metadata: Vec<(String, Argument)>,
    ) -> Result<(), Failed> {
        let slowness = self.shared.hub().slowness(id, arguments.first().map(Argument::text));
        if !slowness.is_zero() {
            sleep(slowness).await;
        }
        let mut hub = self.shared.hub();
        hub.invoked(id, metadata.clone());
        match &mut hub.observer {
            Some(observer) => observer.receive(method, arguments, &metadata, &self.shared.own_hub_id),
            None => Ok(()),
        }
    }

    fn run(&self, hub: &mut Hub, client: &ConnectionId, command: Command) {
        let before = hub.next_timer();
        hub.run(client, command);
        let after = hub.next_timer();
        // The ticker sleeps until `before`.
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.shared.timers_changed.notify_one();
        }
    }

    /// Adds the next WebSocket message to the buffer. `Silent` is the deadline's.
    async fn receive(&mut self, deadline: Option<Instant>) -> Result<(), End> {
        let mut stopping = self.shared.stopping.subscribe();
        let silence = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(silence);
        loop {
            let message = tokio::select! {
                message = self.stream.next() => message,
                () = self.outbox.broken() => return Err(if self.outbox.overflowed() { End::Slow } else { End::Lost }),
                () = &mut silence => return Err(End::Silent),
                _ = stopping.wait_for(|stopping| *stopping) => return Err(End::Stopping),
            };
            let bytes = match message {
                // SignalR does not care which of the two a protocol's bytes come in (reference 16.6).
                Some(Ok(Message::Text(text))) => axum::body::Bytes::from(text),
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(End::Lost),
            };
            self.buffer.extend_from_slice(&bytes);
            return Ok(());
        }
    }

    /// Says goodbye as the cause demands (reference 13.3, contract 4.5).
    fn close(&self, id: &ConnectionId, protocol: Protocol, end: End) {
        tracing::debug!(connection = %id, ?end, "connection ends");
        let error = Outbound::Close { error: Some(CLOSED_WITH_AN_ERROR), allow_reconnect: true };
        let counters = &mut self.shared.hub().counters;
        let message = match end {
            End::Lost => return,
            End::Slow => {
                counters.slow_connections += 1;
                return;
            }
            End::Closed => Outbound::Close { error: None, allow_reconnect: false },
            End::Stopping => Outbound::Close { error: None, allow_reconnect: true },
            End::Oversized => {
                counters.oversized += 1;
                tracing::warn!(connection = %id, "the maximum message size was exceeded");
                error
            }
            End::ProtocolError => {
                counters.protocol_errors += 1;
                error
            }
            End::Silent => {
                counters.timeouts += 1;
                error
            }
        };
        let _ = self.outbox.push(&protocol.encode(&message));
    }
}

/// Writes what is queued, and a ping every `keep_alive` whatever else is written (reference 13.4).
async fn write(outbox: Arc<Outbox>, mut sink: SplitSink<WebSocket, Message>, keep_alive: Duration) {
    let mut pings = tokio::time::interval_at(Instant::now() + keep_alive, keep_alive);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut greeted = false;
    loop {
        match outbox.next() {
            Next::Write(batch, protocol) => {
                greeted = true;
                let message = if protocol.is_binary() {
                    Message::Binary(batch.into())
                } else {
                    Message::Text(String::from_utf8(batch).expect("JSON records are made of strings").into())
                };
                if sink.send(message).await.is_err() {
                    outbox.give_up();
                    return;
                }
            }
            Next::Finish => break,
            Next::Wait => tokio::select! {
                () = outbox.ready() => {}
                // Not before the handshake's answer.
                _ = pings.tick(), if greeted => {
                    let _ = outbox.push(&outbox.protocol().encode(&Outbound::Ping));
                }
            },
        }
    }
    let _ = sink.send(Message::Close(None)).await;
}
