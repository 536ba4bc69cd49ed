//! TLS without sockets: bytes in, bytes out, for both sides of a connection (RFC 8446, RFC 5246).
//!
//! rustls does the protocol, in its unbuffered form: it keeps no buffers of its own, so an idle connection costs its keys and little
//! else. What is left to do here is to carry a record that was cut between two reads, and to join small pieces into one record.
//!
//! ```text
//! mod      one connection's state: ciphertext -> plaintext, plaintext -> records
//! error    why a connection ends, in words and as a label
//! server   certificates of clients' sockets, and their reload      client   whom lanes trust, and as whom they come
//! pem      certificates and keys from files, with errors that name them
//! ```
pub mod client;
mod error;
mod pem;
pub mod server;

pub use client::ClientTls;
pub use error::TlsError;
pub use server::{MinimumVersion, ServerCertificates, Stamp, stamp};

use crate::limits::{TLS_CARRY_BYTES_MAX, TLS_EXPANSION_BYTES_MAX, TLS_HANDSHAKE_CARRY_BYTES_MAX, TLS_PLAIN_BYTES_MAX};
use crate::mem::pool::BytePool;
use core::fmt;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{ClientConfig, CommonState, ServerConfig};
use std::sync::Arc;

/// HTTP/1.1 is all that is spoken inside (RFC 7301; a WebSocket over HTTP/2 would be RFC 8441).
const ALPN: &[u8] = b"http/1.1";

/// One connection's TLS, either side.
///
/// `open` takes what was received and `seal` makes what is sent; both append to buffers of the caller. After an error nothing but
/// sending what `out` holds (an alert, perhaps) and closing makes sense: `open` and `seal` give errors from then on.
pub struct Tls {
    side: Side,
    /// A record that is not complete, or a handshake message that spans several. Empty and without memory when idle.
    carry: Vec<u8>,
    life: Life,
    /// Our close_notify is out: nothing may be sealed any more (RFC 8446 §6.1).
    said_goodbye: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The peer has said that nothing follows.
    PeerClosed,
    Failed,
}

/// What `Tls::open` brought about, beside plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// These bytes ended the handshake: from now on there may be plaintext, and `seal` works.
    pub handshake_done: bool,
    /// The peer has said that nothing follows (close_notify). What came behind it is dropped.
    pub peer_closed: bool,
}

impl Tls {
    /// The server's side of a new connection.
    pub fn accept(config: &Arc<ServerConfig>) -> Result<Tls, TlsError> {
        let connection = UnbufferedServerConnection::new(config.clone()).map_err(TlsError::handshake)?;
        Ok(Tls::new(Side::Server(connection)))
    }

    /// The client's side of a new connection; `name` is whom the certificate must be for. Call `start` first.
    pub fn connect(config: &Arc<ClientConfig>, name: ServerName<'static>) -> Result<Tls, TlsError> {
        let connection = UnbufferedClientConnection::new(config.clone(), name).map_err(TlsError::handshake)?;
        Ok(Tls::new(Side::Client(connection)))
    }

    fn new(side: Side) -> Tls {
        Tls { side, carry: Vec::new(), life: Life::Open, said_goodbye: false }
    }

    /// Appends what a client has to send first. A server has nothing to say before it has heard something.
    pub fn start(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.speak(out, |_, _| Ok(()))
    }

    /// Takes received bytes, however cut. Plaintext is appended to `plain`, bytes for the peer (handshake, alerts, answers to key
    /// updates) to `out`, on an error as well.
    ///
    /// `input` is decrypted in place and worthless afterwards. A cut record is kept in a buffer of `pool`, and its buffer given back
    /// as soon as it is complete. `plain` grows by less than what has been received. After `close_notify` everything is dropped: a
    /// connection that we have ended has nothing to hear any more.
    pub fn open(
        &mut self,
        mut input: &mut [u8],
        pool: &mut BytePool,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Opened, TlsError> {
        self.check_usable()?;
        if self.said_goodbye {
            pool.give(core::mem::take(&mut self.carry));
            return Ok(Opened::default());
        }
        let was_handshaking = self.is_handshaking();
        // First the cut record is completed, by no more than it lacks: all whole records behind it need no copy.
        while !self.carry.is_empty() && !input.is_empty() {
            let (now, later) = input.split_at_mut(lacks(&self.carry).min(input.len()));
            self.carry.extend_from_slice(now);
            input = later;
            self.advance(plain, out, |_, _| Ok(()))?;
        }
        if !input.is_empty() && self.life == Life::Open {
            let driven = self.side.drive(input, plain, out, |_, _| Ok(()));
            let used = self.note(driven)?;
            let rest = &input[used..];
            if !rest.is_empty() {
                self.carry = pool.take();
                self.carry.extend_from_slice(rest);
            }
        }
        if self.life == Life::PeerClosed {
            self.carry.clear();
        }
        if self.carry.is_empty() {
            pool.give(core::mem::take(&mut self.carry));
        }
        let carry_max = match &self.side {
            // Long are the certificates of a server, and no client is asked for any: what it says before it is known is short.
            Side::Client(_) if self.is_handshaking() => TLS_HANDSHAKE_CARRY_BYTES_MAX,
            _ => TLS_CARRY_BYTES_MAX,
        };
        if self.carry.len() > carry_max {
            self.life = Life::Failed;
            return Err(TlsError::message_too_large());
        }
        Ok(Opened {
            handshake_done: was_handshaking && !self.is_handshaking(),
            peer_closed: self.life == Life::PeerClosed,
        })
    }

    /// Appends plaintext as records. Parts are joined to records of up to 16 KiB, so that many small messages become one record.
    ///
    /// An error before the handshake is done, and after `close_notify`; then nothing has been appended.
    pub fn seal<'p>(&mut self, parts: impl Iterator<Item = &'p [u8]>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.check_usable()?;
        if self.is_handshaking() || self.said_goodbye {
            return Err(TlsError::out_of_order());
        }
        self.speak(out, |traffic, out| seal_parts(traffic, parts, out))
    }

    /// Would `seal` take something now?
    pub fn may_seal(&self) -> bool {
        self.life != Life::Failed && !self.is_handshaking() && !self.said_goodbye
    }

    /// Until it is over neither side may send plaintext.
    pub fn is_handshaking(&self) -> bool {
        self.side.common().is_handshaking()
    }

    /// Appends the alert that says that nothing follows from our side. Once; nothing during the handshake or after a failure.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) {
        if self.life == Life::Failed || self.is_handshaking() || self.said_goodbye {
            return;
        }
        self.said_goodbye = true;
        let sent = self
            .speak(out, |traffic, out| append(out, TLS_EXPANSION_BYTES_MAX, |room| traffic.queue_close_notify(room)));
        // The connection ends anyway; the peer just hears no reason.
        drop(sent);
    }

    /// Gives the buffer back, if a cut record holds one. The connection is over.
    pub fn release(&mut self, pool: &mut BytePool) {
        pool.give(core::mem::take(&mut self.carry));
        self.life = Life::Failed;
    }

    fn check_usable(&self) -> Result<(), TlsError> {
        if self.life == Life::Failed { Err(TlsError::out_of_order()) } else { Ok(()) }
    }

    /// Leads rustls to the state in which it encrypts.
    fn speak(
        &mut self,
        out: &mut Vec<u8>,
        encrypt: impl FnOnce(&mut dyn Encrypt, &mut Vec<u8>) -> Result<(), TlsError>,
    ) -> Result<(), TlsError> {
        let mut plain = Vec::new();
        let result = self.advance(&mut plain, out, encrypt);
        debug_assert!(plain.is_empty(), "whatever was received complete went through `open`");
        result
    }

    /// Goes on with what is carried. rustls counts from the front of what it has seen and not let go, even when nothing was added.
    fn advance(
        &mut self,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        encrypt: impl FnOnce(&mut dyn Encrypt, &mut Vec<u8>) -> Result<(), TlsError>,
    ) -> Result<(), TlsError> {
        let driven = self.side.drive(&mut self.carry, plain, out, encrypt);
        let used = self.note(driven)?;
        self.carry.drain(..used);
        Ok(())
    }

    fn note(&mut self, driven: Result<Driven, TlsError>) -> Result<usize, TlsError> {
        match driven {
            Ok(Driven { used, peer_closed }) => {
                if peer_closed {
                    self.life = Life::PeerClosed;
                }
                Ok(used)
            }
            Err(error) => {
                self.life = Life::Failed;
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("version", &self.side.common().protocol_version())
            .field("handshaking", &self.is_handshaking())
            .field("carry", &self.carry.len())
            .finish()
    }
}

/// Bytes that complete the first record of `carry`; if it is complete, it is part of a handshake message that is not, and
/// everything is wanted.
fn lacks(carry: &[u8]) -> usize {
    // RFC 8446 §5.1: type, version, length.
    let [_, _, _, high, low, ..] = carry else { return HEADER_BYTES - carry.len() };
    let record = HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    if carry.len() < record { record - carry.len() } else { usize::MAX }
}

const HEADER_BYTES: usize = 5;

/// rustls has a type for each side, with the same methods.
// Held once a connection, never moved in bulk: a box inside would only cost.
#[allow(clippy::large_enum_variant)]
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl Side {
    fn common(&self) -> &CommonState {
        match self {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    fn drive(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        encrypt: impl FnOnce(&mut dyn Encrypt, &mut Vec<u8>) -> Result<(), TlsError>,
    ) -> Result<Driven, TlsError> {
        match self {
            Side::Server(connection) => drive(connection, bytes, plain, out, encrypt),
            Side::Client(connection) => drive(connection, bytes, plain, out, encrypt),
        }
    }
}

trait Machine {
    type Data;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
}

impl Machine for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(bytes)
    }
    fn common(&self) -> &CommonState {
        self
    }
}

impl Machine for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(bytes)
    }
    fn common(&self) -> &CommonState {
        self
    }
}

struct Driven {
    /// Bytes at the front that are done with. The others must come again, as they are now.
    used: usize,
    peer_closed: bool,
}

/// Runs rustls until it wants more bytes; in the state in which it can encrypt, `encrypt` has its turn.
fn drive<M: Machine>(
    machine: &mut M,
    bytes: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
    encrypt: impl FnOnce(&mut dyn Encrypt, &mut Vec<u8>) -> Result<(), TlsError>,
) -> Result<Driven, TlsError> {
    let (mut used, mut peer_closed) = (0, false);
    loop {
        let handshaking = machine.common().is_handshaking();
        let UnbufferedStatus { mut discard, state, .. } = machine.process(&mut bytes[used..]);
        let last = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(|error| TlsError::from_rustls(error, handshaking))?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                false
            }
            Ok(ConnectionState::EncodeTlsData(encode)) => {
                append_encoded(encode, out)?;
                false
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                // `out` is the caller's to send.
                transmit.done();
                false
            }
            Ok(ConnectionState::PeerClosed) => {
                peer_closed = true;
                false
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                encrypt(&mut traffic, out)?;
                used += discard;
                return Ok(Driven { used, peer_closed });
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => true,
            // Early data is not offered, so there is none; and the states are an open list.
            Ok(_) => return Err(TlsError::out_of_order()),
            Err(error) => {
                // Not with the bytes: rustls would go on behind the ones that were refused.
                while machine.common().wants_write() {
                    let Ok(ConnectionState::EncodeTlsData(alert)) = machine.process(&mut []).state else { break };
                    append_encoded(alert, out)?;
                }
                return Err(TlsError::from_rustls(error, handshaking));
            }
        };
        used += discard;
        if last {
            return Ok(Driven { used, peer_closed });
        }
    }
}

fn append_encoded<Data>(mut encode: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), TlsError> {
    append(out, TLS_EXPANSION_BYTES_MAX, |room| match encode.encode(room) {
        Ok(count) => Ok(count),
        Err(EncodeError::InsufficientSize(size)) => Err(EncryptError::InsufficientSize(size)),
        // Asked for once only.
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    })
}

/// What `WriteTraffic` does on either side.
trait Encrypt {
    fn encrypt(&mut self, plain: &[u8], room: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, room: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Encrypt for WriteTraffic<'_, Data> {
    fn encrypt(&mut self, plain: &[u8], room: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, plain, room)
    }
    fn queue_close_notify(&mut self, room: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::queue_close_notify(self, room)
    }
}

fn seal_parts<'p>(
    traffic: &mut dyn Encrypt,
    parts: impl Iterator<Item = &'p [u8]>,
    out: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let mut parts = parts.peekable();
    // Small parts are gathered at the end of `out`, where their record will be.
    let mut start = out.len();
    while let Some(mut part) = parts.next() {
        while !part.is_empty() {
            let gathered = out.len() - start;
            if gathered == 0 && (part.len() >= TLS_PLAIN_BYTES_MAX || parts.peek().is_none()) {
                let (now, later) = part.split_at(part.len().min(TLS_PLAIN_BYTES_MAX));
                append(out, now.len() + TLS_EXPANSION_BYTES_MAX, |room| traffic.encrypt(now, room))?;
                start = out.len();
                part = later;
                continue;
            }
            let (now, later) = part.split_at(part.len().min(TLS_PLAIN_BYTES_MAX - gathered));
            out.extend_from_slice(now);
            part = later;
            if out.len() - start == TLS_PLAIN_BYTES_MAX {
                seal_gathered(traffic, out, start)?;
                start = out.len();
            }
        }
    }
    if out.len() > start { seal_gathered(traffic, out, start) } else { Ok(()) }
}

/// Replaces the plaintext from `start` on by its record.
fn seal_gathered(traffic: &mut dyn Encrypt, out: &mut Vec<u8>, start: usize) -> Result<(), TlsError> {
    let plain_bytes = out.len() - start;
    let mut room = plain_bytes + TLS_EXPANSION_BYTES_MAX;
    let sealed = loop {
        out.resize(start + plain_bytes + room, 0);
        let (plain, record) = out[start..].split_at_mut(plain_bytes);
        match traffic.encrypt(plain, record) {
            Err(EncryptError::InsufficientSize(size)) if size.required_size > room => room = size.required_size,
            result => break result,
        }
    };
    match sealed {
        Ok(count) => {
            out.copy_within(start + plain_bytes..start + plain_bytes + count, start);
            out.truncate(start + count);
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(TlsError::from_encrypt(error))
        }
    }
}

/// Appends what `write` puts into the room it is given; if it asks for more, it gets that.
fn append(
    out: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), TlsError> {
    let start = out.len();
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(count) => {
                out.truncate(start + count);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(size)) if size.required_size > room => room = size.required_size,
            Err(error) => {
                out.truncate(start);
                return Err(TlsError::from_encrypt(error));
            }
        }
    }
}

/// Integration tests make theirs the same way.
#[cfg(test)]
#[path = "../../tests/common/certificates.rs"]
pub(crate) mod certificates;

#[cfg(test)]
mod tests;
