//! Dialling a lane: resolve, connect, TLS, negotiate, upgrade, handshake; then the socket is taken out of tokio-uring for its shard.
//!
//! Nothing here is ever dropped half-way: see `exchange`.
use super::exchange::within;
use super::random;
use super::stream::Stream;
use crate::config::UpstreamUrl;
use crate::limits::{INTERIM_REPLIES_MAX, LANE_SILENCE_MS};
use crate::proto::http;
use crate::proto::signalr::handshake::{self, Protocol};
use crate::proto::signalr::negotiate::{NegotiateAnswer, parse_negotiate_answer};
use crate::proto::signalr::record::find_separator;
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role};
use crate::session::lane::opcode;
use crate::sys::socket;
use crate::tls::Tls;
use base64::Engine;
use bytes::{Buf, BytesMut};
use core::time::Duration;
use rustls::ClientConfig;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Negotiate, and upgrade with handshake, each with TLS's own; ASP.NET's handshake timeout.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A negotiate answer has about 300 bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A connected lane.
pub(super) struct Dialled {
    pub(super) socket: OwnedFd,
    /// TLS in the state the connection has come to; carries what arrived of a record that is not complete.
    pub(super) tls: Option<Box<Tls>>,
    /// What arrived behind the handshake's answer: WebSocket frames, without TLS around them.
    pub(super) early: Vec<u8>,
}

/// Dials an app server's hub, with TLS if there is a configuration for it. The error is a sentence for the log.
pub(super) async fn dial(
    url: &UpstreamUrl,
    hub_path: &str,
    protocol: Protocol,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Dialled, String> {
    let host = url.authority();
    let path = format!("{}{hub_path}", url.base);
    let token = negotiate(url, tls, &host, &path).await?;
    // It comes from the network and goes into a request line.
    let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let mut stream = Stream::connect(url, tls).await?;
    let tcp = stream.tcp.clone();
    let (early, stream) = within(EXCHANGE_TIMEOUT, &tcp, "upgrading", async move {
        stream.secure().await?;
        let mut input = upgrade(&mut stream, &host, &format!("{path}?id={token}")).await?;
        let early = shake_hands(&mut stream, &mut input, protocol).await?;
        Ok((early, stream))
    })
    .await?;
    // The copy is the shard's; tokio-uring closes its own when the stream is dropped, which leaves the connection alone.
    let socket = socket::duplicate(tcp.as_raw_fd()).map_err(|error| format!("cannot hand the socket over: {error}"))?;
    // Silence of the app server is noticed anyway; what we say and nobody takes is noticed only so.
    socket::find_gone_peers(&socket, Duration::from_millis(LANE_SILENCE_MS))
        .map_err(|error| format!("cannot watch the connection: {error}"))?;
    Ok(Dialled { socket, tls: stream.tls, early })
}

/// Negotiates on a connection of its own and returns the connection token.
async fn negotiate(
    url: &UpstreamUrl,
    tls: Option<&Arc<ClientConfig>>,
    host: &str,
    path: &str,
) -> Result<String, String> {
    let mut stream = Stream::connect(url, tls).await?;
    let mut request = Vec::new();
    http::negotiate_request(host, &format!("{path}/negotiate?negotiateVersion=1"), &mut request);
    let tcp = stream.tcp.clone();
    let body = within(EXCHANGE_TIMEOUT, &tcp, "negotiating", async move {
        stream.secure().await?;
        stream.write(request).await?;
        let mut input = BytesMut::new();
        let head = read_response_head(&mut stream, &mut input).await?;
        if head.status != 200 {
            return Err(format!("negotiate was answered with status {}: {}", head.status, hint(head.status)));
        }
        let body = loop {
            let body = match head.content_length {
                Some(length) if length > ANSWER_BYTES_MAX as u64 => {
                    return Err("negotiate's answer is too long".into());
                }
                Some(length) if input.len() as u64 >= length => Some(input[..length as usize].to_vec()),
                Some(_) => None,
                None if head.chunked => http::decode_chunked(&input, ANSWER_BYTES_MAX)
                    .map_err(|error| format!("negotiate's answer is malformed ({})", error.label()))?,
                None => return Err("negotiate's answer has no length".into()),
            };
            match body {
                Some(body) => break body,
                None => stream.read_more(&mut input).await?,
            }
        };
        stream.close().await;
        Ok(body)
    })
    .await?;
    match parse_negotiate_answer(&body)? {
        NegotiateAnswer::Connect { token } => Ok(token),
        NegotiateAnswer::Redirect { url, .. } => {
            Err(format!("the app server redirects to {url}; lanes go to the app server itself"))
        }
        NegotiateAnswer::Error(error) => Err(format!("the app server refused to negotiate: {error}")),
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        404 => "is this a dotNetify server, with its hub at this path?",
        401 | 403 => "its hub must be reachable by this node without authentication",
        _ => "is this a dotNetify server?",
    }
}

/// Upgrades the connection; returns the bytes that followed the answer's head.
async fn upgrade(stream: &mut Stream, host: &str, path: &str) -> Result<BytesMut, String> {
    let nonce: [u8; 16] = random().map_err(|error| error.to_string())?;
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    let mut request = Vec::new();
    http::upgrade_request(host, path, &key, &mut request);
    stream.write(request).await?;
    let mut input = BytesMut::new();
    let head = read_response_head(stream, &mut input).await?;
    if head.status != 101 || !head.upgraded {
        return Err(format!("the WebSocket upgrade was answered with status {}: {}", head.status, hint(head.status)));
    }
    // RFC 6455 §4.1: anything else means that the peer did not understand the upgrade.
    if head.accept != Some(http::accept_key(key.as_bytes())) {
        return Err("the WebSocket upgrade was answered with a wrong Sec-WebSocket-Accept".into());
    }
    Ok(input)
}

/// Does the SignalR handshake. Returns what came behind its answer, framed for a decoder that starts afresh.
async fn shake_hands(stream: &mut Stream, input: &mut BytesMut, protocol: Protocol) -> Result<Vec<u8>, String> {
    let mask: [u8; 4] = random().map_err(|error| error.to_string())?;
    let mut request = Vec::new();
    write_frame(&mut request, opcode(protocol), Some(mask), |out| handshake::write_request(protocol, 1, out));
    stream.write(request).await?;
    let mut decoder = Decoder::new(Role::Client);
    let mut payload = Vec::new();
    loop {
        while !input.is_empty() {
            let (used, event) = decoder
                .next(input)
                .map_err(|error| format!("the app server broke the WebSocket protocol ({error:?})"))?;
            let piece = input.split_to(used);
            match event {
                None | Some(Event::Pong) => {}
                Some(Event::Data { range, end, .. }) => {
                    payload.extend_from_slice(&piece[range]);
                    if payload.len() > ANSWER_BYTES_MAX {
                        return Err("the app server's handshake answer is too long".into());
                    }
                    // Whole messages only: the lane's decoder begins at a frame.
                    if end && let Some(at) = find_separator(&payload) {
                        handshake::parse_answer(&payload[..at]).map_err(|error| refused(protocol, &error))?;
                        return Ok(early_frames(opcode(protocol), &payload[at + 1..], input));
                    }
                }
                Some(Event::Ping) => {
                    let mut pong = Vec::new();
                    let mask: [u8; 4] = random().map_err(|error| error.to_string())?;
                    let payload = decoder.control_payload().to_vec();
                    write_frame(&mut pong, Opcode::Pong, Some(mask), |out| out.extend_from_slice(&payload));
                    stream.write(pong).await?;
                }
                Some(Event::Close { code }) => {
                    return Err(format!("the app server closed during the handshake (code {code:?})"));
                }
            }
        }
        stream.read_more(input).await?;
    }
}

fn refused(protocol: Protocol, error: &str) -> String {
    // ASP.NET has JSON built in and MessagePack in a package of its own: "The protocol 'messagepack' is not supported."
    if protocol == Protocol::MessagePack && error.contains("not supported") {
        return format!(
            "the app server does not speak MessagePack ({error}): call AddMessagePackProtocol() there, or set use_message_pack = false"
        );
    }
    format!("the app server refused the handshake: {error}")
}

fn early_frames(opcode: Opcode, records: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut early = Vec::new();
    if !records.is_empty() {
        write_frame(&mut early, opcode, None, |out| out.extend_from_slice(records));
    }
    early.extend_from_slice(rest);
    early
}

/// The head of the answer; interim ones (100, 103) before it are skipped.
async fn read_response_head(stream: &mut Stream, input: &mut BytesMut) -> Result<http::ResponseHead, String> {
    let mut interim = 0;
    loop {
        let head = http::parse_response(input)
            .map_err(|error| format!("the app server's HTTP answer is malformed ({})", error.label()))?;
        if let Some(head) = head {
            input.advance(head.bytes);
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
            interim += 1;
            if interim > INTERIM_REPLIES_MAX {
                return Err("the app server sends interim answers without end".into());
            }
            continue;
        }
        if input.len() > ANSWER_BYTES_MAX {
            return Err("the app server's HTTP answer is too long".into());
        }
        stream.read_more(input).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::pool::BytePool;
    use crate::tls::certificates::{Authority, Folder};
    use crate::tls::{ClientTls, MinimumVersion, ServerCertificates};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    type Peer = StreamOwned<ServerConnection, TcpStream>;

    /// An authority, a server's certificate for `localhost`, and a client that trusts it.
    struct World {
        folder: Folder,
        authority: Authority,
        ca: PathBuf,
        server: ServerCertificates,
        client: Arc<ClientConfig>,
    }

    impl World {
        fn new() -> World {
            let (folder, authority) = (Folder::new(), Authority::new("the test's authority"));
            let (certificate, key) = folder.pair("server", &authority.issue(&["localhost", "127.0.0.1"]));
            let ca = folder.file("ca.pem", authority.pem());
            World {
                server: ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap(),
                client: ClientTls::load(Some(&ca), None).unwrap(),
                folder,
                authority,
                ca,
            }
        }
    }

    /// An app server for one lane: answers negotiate on the first connection, upgrades the second, and leaves the rest to `lane`, which
    /// gets the first frame of the client as well. Ends when a connection fails.
    fn app_server<T: Send + 'static>(
        config: &Arc<ServerConfig>,
        lane: impl FnOnce(Peer, u8, Vec<u8>) -> T + Send + 'static,
    ) -> (UpstreamUrl, JoinHandle<Option<T>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = config.clone();
        let thread = std::thread::spawn(move || {
            let mut peer = accept(&listener, &config);
            let head = head(&mut peer)?;
            assert!(head.starts_with("POST /base/hub/negotiate?negotiateVersion=1 HTTP/1.1\r\n"), "{head}");
            assert!(head.to_lowercase().contains(&format!("host: localhost:{port}\r\n")), "{head}");
            let body = r#"{"negotiateVersion":1,"connectionId":"i","connectionToken":"t/1","availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]}"#;
            write!(peer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).expect("close_notify, not just an end");

            let mut peer = accept(&listener, &config);
            let head = self::head(&mut peer)?;
            assert!(head.starts_with("GET /base/hub?id=t%2F1 HTTP/1.1\r\n"), "{head}");
            let (_, key) = head.split_once("Sec-WebSocket-Key: ").expect("a key");
            let accept = http::accept_key(&key.as_bytes()[..24]);
            let accept = std::str::from_utf8(&accept).unwrap();
            write!(
                peer,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            )
            .unwrap();
            let (first, payload) = frame(&mut peer);
            Some(lane(peer, first, payload))
        });
        let url = UpstreamUrl {
            host: "localhost".into(),
            port,
            tls: true,
            base: "/base".into(),
            text: format!("https://localhost:{port}/base"),
        };
        (url, thread)
    }

    fn accept(listener: &TcpListener, config: &Arc<ServerConfig>) -> Peer {
        let (tcp, _) = listener.accept().unwrap();
        StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), tcp)
    }

    /// None if the client does not like us, or we not it.
    fn head(peer: &mut Peer) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            peer.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        Some(String::from_utf8(head).unwrap())
    }

    /// First byte and payload of a client's short frame.
    fn frame(peer: &mut Peer) -> (u8, Vec<u8>) {
        let mut header = [0; 6];
        peer.read_exact(&mut header).unwrap();
        assert!((0x80..0x80 + 126).contains(&header[1]), "masked and short");
        let mut payload = vec![0; usize::from(header[1] & 0x7f)];
        peer.read_exact(&mut payload).unwrap();
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= header[2 + at % 4]);
        (header[0], payload)
    }

    fn dialled(url: &UpstreamUrl, protocol: Protocol, tls: &Arc<ClientConfig>) -> Result<Dialled, String> {
        tokio_uring::start(dial(url, "/hub", protocol, Some(tls)))
    }

    const ACCEPTED: &[u8] = b"{}\x1e";

    #[test]
    fn a_lane_over_tls_loses_nothing_of_what_came_early() {
        let world = World::new();
        for (protocol, opcode, request) in [
            (Protocol::Json, 0x81, &b"{\"protocol\":\"json\",\"version\":1}\x1e"[..]),
            (Protocol::MessagePack, 0x82, b"{\"protocol\":\"messagepack\",\"version\":1}\x1e"),
        ] {
            let (url, server) = app_server(world.server.config(), move |mut peer, first, payload| {
                assert_eq!((first, &payload[..]), (opcode, request));
                // In one breath: the answer with a record behind it, a whole frame, and a part of a TLS record with another.
                let answer = [ACCEPTED, b"early"].concat();
                let mut sent = Vec::new();
                for frame in
                    [&[&[opcode, answer.len() as u8], &answer[..]].concat()[..], b"\x82\x05whole", b"\x82\x03cut"]
                {
                    peer.conn.writer().write_all(frame).unwrap();
                    peer.conn.write_tls(&mut sent).unwrap();
                }
                let (now, later) = sent.split_at(sent.len() - 7);
                peer.sock.write_all(now).unwrap();
                let mut word = [0; 4];
                peer.read_exact(&mut word).unwrap();
                peer.sock.write_all(later).unwrap();
                word
            });
            let Dialled { socket, tls, early } = dialled(&url, protocol, &world.client).unwrap();
            let (mut socket, mut tls) = (TcpStream::from(socket), tls.expect("TLS"));
            let mut sealed = Vec::new();
            tls.seal([&b"more"[..]].into_iter(), &mut sealed).unwrap();
            socket.write_all(&sealed).unwrap();
            let mut plain = early;
            let expected = [&[opcode, 5], &b"early"[..], b"\x82\x05whole", b"\x82\x03cut"].concat();
            while plain.len() < expected.len() {
                let mut bytes = [0; 100];
                let count = socket.read(&mut bytes).unwrap();
                assert!(count > 0, "the rest is lost: {plain:?}");
                tls.open(&mut bytes[..count], &mut BytePool::new(), &mut plain, &mut Vec::new()).unwrap();
            }
            assert_eq!(plain, expected);
            assert_eq!(server.join().unwrap().as_ref(), Some(b"more"));
        }
    }

    #[test]
    fn an_app_server_without_messagepack_is_told_from_others() {
        let world = World::new();
        let refusing = |error: &'static str| {
            app_server(world.server.config(), move |mut peer, first, _| {
                let answer = format!("{{\"error\":\"{error}\"}}\x1e");
                peer.write_all(&[&[first, answer.len() as u8], answer.as_bytes()].concat()).unwrap();
            })
        };
        let unsupported = "The protocol 'messagepack' is not supported.";
        for (protocol, error, words) in [
            (
                Protocol::MessagePack,
                unsupported,
                "call AddMessagePackProtocol() there, or set use_message_pack = false",
            ),
            (Protocol::MessagePack, "No.", "refused the handshake: No."),
            (Protocol::Json, unsupported, "refused the handshake: The protocol"),
        ] {
            let (url, server) = refusing(error);
            let said = dialled(&url, protocol, &world.client).map(|_| ()).unwrap_err();
            assert!(said.contains(words), "{said}");
            server.join().unwrap();
        }
    }

    #[test]
    fn a_certificate_that_is_not_good_is_explained() {
        let world = World::new();
        let nobody = |_: Peer, _: u8, _: Vec<u8>| panic!("nobody gets that far");
        let refused = |config: &Arc<ServerConfig>, host: &str, client: &Arc<ClientConfig>| {
            let (mut url, server) = app_server(config, nobody);
            url.host = host.into();
            let error = dialled(&url, Protocol::Json, client).map(|_| ()).unwrap_err();
            assert!(server.join().unwrap().is_none());
            error
        };
        let server = world.server.config();

        let other = world.folder.file("other.pem", Authority::new("somebody else").pem());
        let stranger = ClientTls::load(Some(&other), None).unwrap();
        let error = refused(server, "localhost", &stranger);
        assert!(error.starts_with("no TLS with localhost: ") && error.contains("not trusted"), "{error}");
        assert!(error.contains("name that in ca_file"), "{error}");

        let (certificate, key) = world.folder.pair("elsewhere", &world.authority.issue(&["app.example"]));
        let elsewhere = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
        for host in ["localhost", "127.0.0.1"] {
            let error = refused(elsewhere.config(), host, &world.client);
            assert!(
                error.contains(&format!("is not for {host} but for")) && error.contains("upstream's url"),
                "{error}"
            );
        }

        let (certificate, key) = world.folder.pair("old", &world.authority.issue_until(&["localhost"], 2020));
        let old = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
        let error = refused(old.config(), "localhost", &world.client);
        assert!(error.contains("has expired; renew it"), "{error}");
    }

    #[test]
    fn a_client_certificate_is_asked_for_in_words_and_shown() {
        let world = World::new();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&world.ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let strict = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(world.server.config().cert_resolver.clone());
        let strict = Arc::new(strict);
        let (url, server) = app_server(&strict, |_, _, _| ());
        let error = dialled(&url, Protocol::Json, &world.client).map(|_| ()).unwrap_err();
        assert!(error.contains("set client_certificate_file and client_key_file"), "{error}");
        assert!(server.join().unwrap().is_none());

        let (certificate, key) = world.folder.pair("client", &world.authority.issue(&["a-node"]));
        let client = ClientTls::load(Some(&world.ca), Some((&certificate, &key))).unwrap();
        let (url, server) = app_server(&strict, |mut peer, first, _| {
            peer.write_all(&[&[first, ACCEPTED.len() as u8], ACCEPTED].concat()).unwrap();
            peer.conn.peer_certificates().map(<[_]>::len)
        });
        assert_eq!(dialled(&url, Protocol::Json, &client).unwrap().early, b"");
        assert_eq!(server.join().unwrap(), Some(Some(1)));
    }

    #[test]
    fn a_plain_server_is_recognized() {
        let world = World::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            assert!(peer.read(&mut [0; 2000]).unwrap() > 0);
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").unwrap();
        });
        let url = UpstreamUrl { host: "localhost".into(), port, tls: true, base: String::new(), text: String::new() };
        let error = dialled(&url, Protocol::Json, &world.client).map(|_| ()).unwrap_err();
        assert_eq!(error, "no TLS with localhost: the peer does not speak TLS; is it an http:// URL?");
        server.join().unwrap();
    }
}
