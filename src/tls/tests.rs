//! Two ends in memory; and a forger, who has the keys of one end and breaks the rules.
use super::certificates::{Authority, Folder, Issued};
use super::*;
use crate::limits::PEM_FILE_BYTES_MAX;
use proptest::prelude::*;
use rustls::crypto::cipher::{AeadKey, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, ConnectionTrafficSecrets, ContentType, HandshakeKind, ProtocolVersion,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use std::path::Path;
use std::sync::LazyLock;

/// One authority and one server for all tests: making keys takes time.
struct World {
    folder: Folder,
    authority: Authority,
    server: ServerCertificates,
    client: Arc<ClientConfig>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let folder = Folder::new();
    let authority = Authority::new("the test's authority");
    let (certificate, key) = folder.pair("server", &authority.issue(&["localhost", "127.0.0.1", "::1"]));
    let ca = folder.file("ca.pem", authority.pem());
    World {
        server: ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap(),
        client: ClientTls::load(Some(&ca), None).unwrap(),
        folder,
        authority,
    }
});

/// A client that offers one version of TLS only.
fn client_of(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let roots = client::roots(Some(&WORLD.folder.path().join("ca.pem"))).unwrap();
    let mut config = ClientConfig::builder_with_provider(pem::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn both_versions() -> [&'static SupportedProtocolVersion; 2] {
    [&TLS12, &TLS13]
}

fn vectors() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/tls"))
}

/// One end of a connection with everything it needs.
struct End {
    tls: Tls,
    pool: BytePool,
    plain: Vec<u8>,
    out: Vec<u8>,
    peer_closed: bool,
    handshakes_done: u32,
}

impl End {
    fn new(tls: Result<Tls, TlsError>) -> End {
        let mut end = End {
            tls: tls.unwrap(),
            pool: BytePool::new(),
            plain: Vec::new(),
            out: Vec::new(),
            peer_closed: false,
            handshakes_done: 0,
        };
        if matches!(end.tls.side, Side::Client(_)) {
            end.tls.start(&mut end.out).unwrap();
        }
        end
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        let opened = self.tls.open(&mut bytes.to_vec(), &mut self.pool, &mut self.plain, &mut self.out)?;
        self.peer_closed |= opened.peer_closed;
        self.handshakes_done += u32::from(opened.handshake_done);
        Ok(())
    }

    fn say(&mut self, parts: &[&[u8]]) {
        self.tls.seal(parts.iter().copied(), &mut self.out).unwrap();
    }

    fn heard(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.plain)
    }
}

struct Pair {
    client: End,
    server: End,
}

impl Pair {
    fn new(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Pair {
        Pair::named(client, server, "localhost")
    }

    fn named(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &str) -> Pair {
        let name = ServerName::try_from(name.to_string()).unwrap();
        Pair { client: End::new(Tls::connect(client, name)), server: End::new(Tls::accept(server)) }
    }

    fn open(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Pair {
        let mut pair = Pair::new(client, server);
        pair.settle().unwrap();
        assert!(!pair.client.tls.is_handshaking() && !pair.server.tls.is_handshaking());
        pair
    }

    /// Carries bytes to and fro, in pieces of the sizes given (over and over), until nobody has anything to say.
    fn settle_cut(&mut self, sizes: &[usize]) -> Result<(), TlsError> {
        let mut sizes = sizes.iter().copied().cycle();
        while !self.client.out.is_empty() || !self.server.out.is_empty() {
            for by_client in [true, false] {
                let Pair { client, server } = self;
                let (from, to) = if by_client { (client, server) } else { (server, client) };
                let sent = core::mem::take(&mut from.out);
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(sizes.next().unwrap().clamp(1, rest.len()));
                    to.hear(now)?;
                    rest = later;
                }
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), TlsError> {
        self.settle_cut(&[usize::MAX])
    }
}

fn open_pair(version: &'static SupportedProtocolVersion) -> Pair {
    Pair::open(&client_of(version), WORLD.server.config())
}

/// Lengths of the records in `bytes`, without their headers.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length);
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    lengths
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However the bytes are cut, and however small the records and the messages of the handshake: the same plaintext in the same
    /// order, and nothing kept.
    #[test]
    fn any_cuts(
        new in any::<bool>(),
        fragment in prop_oneof![Just(None), (64usize..400).prop_map(Some)],
        sizes in prop::collection::vec(1usize..700, 1..20),
        says in prop::collection::vec((any::<bool>(), prop::collection::vec(0usize..9000, 0..6)), 1..8),
    ) {
        let version = if new { &TLS13 } else { &TLS12 };
        let mut client = (*client_of(version)).clone();
        client.max_fragment_size = fragment;
        let mut server = (**WORLD.server.config()).clone();
        server.max_fragment_size = fragment;
        let mut pair = Pair::new(&Arc::new(client), &Arc::new(server));
        pair.settle_cut(&sizes).unwrap();
        prop_assert_eq!((pair.client.handshakes_done, pair.server.handshakes_done), (1, 1));
        prop_assert_eq!(pair.server.tls.side.common().alpn_protocol(), Some(ALPN));

        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        for (index, (by_client, lengths)) in says.iter().enumerate() {
            let parts: Vec<Vec<u8>> = lengths.iter().map(|length| vec![index as u8; *length]).collect();
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let (from, expected) =
                if *by_client { (&mut pair.client, &mut to_server) } else { (&mut pair.server, &mut to_client) };
            from.say(&parts);
            expected.extend(parts.concat());
            if index % 2 == 1 {
                pair.settle_cut(&sizes).unwrap();
            }
        }
        pair.settle_cut(&sizes).unwrap();
        prop_assert!(pair.server.plain == to_server && pair.client.plain == to_client);
        prop_assert_eq!((pair.server.tls.carry.capacity(), pair.client.tls.carry.capacity()), (0, 0));
    }

    /// Whatever is sent to a server, before or after the handshake, and whatever is changed on the way: an error at most.
    #[test]
    fn any_bytes(
        new in any::<bool>(),
        open in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        header in prop::option::of((20u8..25, 0u8..5, 0usize..200)),
        flip in prop::option::of((any::<prop::sample::Index>(), 1u8..)),
        size in 1usize..80,
    ) {
        let version = if new { &TLS13 } else { &TLS12 };
        let mut pair = if open { open_pair(version) } else { Pair::new(&client_of(version), WORLD.server.config()) };
        let mut sent = core::mem::take(&mut pair.client.out);
        if open {
            pair.client.say(&[b"some text"]);
            sent = core::mem::take(&mut pair.client.out);
        }
        let flipped = flip.is_some();
        if let Some((index, bits)) = flip {
            let at = index.index(sent.len());
            sent[at] ^= bits;
        } else {
            sent = bytes;
            if let Some((kind, minor, length)) = header {
                sent.splice(0..0, [kind, 3, minor, 0, length as u8]);
            }
        }
        let mut failed = None;
        for piece in sent.chunks(size) {
            if let Err(error) = pair.server.hear(piece) {
                failed = Some(error);
                break;
            }
        }
        if open && flipped {
            // The version in a record's header means nothing, and TLS 1.3 does not protect it (RFC 8446 §5.1).
            let plain = &pair.server.plain[..];
            prop_assert!(plain.is_empty() || plain == b"some text", "a damaged record is no plaintext");
        }
        if let Some(error) = failed {
            prop_assert!(TlsError::LABELS.contains(&error.label()));
            prop_assert!(pair.server.hear(b"more").is_err(), "it is over");
            prop_assert!(pair.server.tls.seal([&b"x"[..]].into_iter(), &mut Vec::new()).is_err());
        }
    }
}

#[test]
fn small_parts_become_one_record_and_large_ones_as_few_as_possible() {
    for version in both_versions() {
        let mut pair = open_pair(version);
        let small = vec![b"0123456789".as_slice(); 500];
        pair.server.say(&small);
        let overhead = if version == &TLS13 { 1 + 16 } else { 8 + 16 };
        assert_eq!(records(&pair.server.out), [5000 + overhead]);
        pair.settle().unwrap();
        assert_eq!(pair.client.heard(), small.concat());

        let large = vec![7u8; 40_000];
        for parts in [
            &[&large[..]][..],
            &[b"ab", &large, b"cd"],
            &[&large, b"", b"x"],
            &[&large[..TLS_PLAIN_BYTES_MAX]],
            &[b"x", &large[..TLS_PLAIN_BYTES_MAX - 1], b"y"],
        ] {
            let all = parts.concat();
            pair.server.say(parts);
            assert_eq!(records(&pair.server.out).len(), all.len().div_ceil(TLS_PLAIN_BYTES_MAX));
            pair.settle().unwrap();
            assert_eq!(pair.client.heard(), all);
        }
        pair.server.say(&[]);
        pair.server.say(&[b"", b""]);
        assert_eq!(pair.server.out, b"", "nothing said is no record");
    }
}

#[test]
fn sealed_bytes_go_behind_what_out_holds() {
    let mut pair = open_pair(&TLS13);
    pair.server.out.extend_from_slice(b"before");
    pair.server.say(&[b"one", b"two"]);
    pair.server.say(&[b"three"]);
    let sent = core::mem::take(&mut pair.server.out);
    let sealed = sent.strip_prefix(b"before").unwrap();
    assert_eq!(records(sealed).len(), 2);
    pair.client.hear(sealed).unwrap();
    assert_eq!(pair.client.heard(), b"onetwothree");
}

#[test]
fn nothing_is_sealed_before_the_handshake_is_done() {
    let mut pair = Pair::new(&WORLD.client, WORLD.server.config());
    let mut out = Vec::new();
    for end in [&mut pair.client, &mut pair.server] {
        assert_eq!(end.tls.seal([&b"GET /"[..]].into_iter(), &mut out), Err(TlsError::out_of_order()));
        end.tls.close_notify(&mut out);
    }
    assert_eq!(out, b"");
    // It was refused, and nothing is broken.
    pair.settle().unwrap();
    pair.client.say(&[b"GET /"]);
    pair.settle().unwrap();
    assert_eq!(pair.server.heard(), b"GET /");
}

#[test]
fn a_cut_record_holds_a_buffer_of_the_pool_until_it_is_whole() {
    let mut pair = open_pair(&TLS13);
    pair.client.say(&[&[1; 3000]]);
    let sent = core::mem::take(&mut pair.client.out);
    let mut lent = pair.server.pool.take();
    lent.reserve(8192);
    let room = lent.capacity();
    pair.server.pool.give(lent);
    pair.server.hear(&sent[..100]).unwrap();
    assert_eq!((pair.server.tls.carry.len(), pair.server.tls.carry.capacity()), (100, room));
    pair.server.say(&[b"meanwhile"]);
    pair.server.hear(&sent[100..]).unwrap();
    assert_eq!((pair.server.plain.len(), pair.server.tls.carry.capacity()), (3000, 0));
    assert_eq!(pair.server.pool.take().capacity(), room);

    pair.settle().unwrap();
    assert_eq!(pair.client.heard(), b"meanwhile");
    pair.client.say(&[b"cut"]);
    pair.server.hear(&pair.client.out[..7]).unwrap();
    pair.server.tls.release(&mut pair.server.pool);
    assert_eq!(pair.server.tls.carry.capacity(), 0);
    assert!(pair.server.hear(b"").is_err(), "released is over");
}

#[test]
fn a_close_notify_ends_one_direction() {
    for version in both_versions() {
        let mut pair = open_pair(version);
        pair.client.say(&[b"last words"]);
        pair.client.tls.close_notify(&mut pair.client.out);
        let once = pair.client.out.len();
        pair.client.tls.close_notify(&mut pair.client.out);
        assert_eq!(pair.client.out.len(), once, "it is said once");
        assert!(pair.client.tls.seal([&b"more"[..]].into_iter(), &mut Vec::new()).is_err());
        pair.client.out.extend_from_slice(b"what follows is dropped");
        let sent = core::mem::take(&mut pair.client.out);
        for piece in sent.chunks(11) {
            pair.server.hear(piece).unwrap();
        }
        assert!(pair.server.peer_closed && pair.server.heard() == b"last words");
        assert!(!pair.server.tls.is_handshaking() && pair.server.tls.carry.capacity() == 0);

        // The other direction is still open (RFC 8446 §6.1).
        pair.server.say(&[b"goodbye"]);
        pair.server.tls.close_notify(&mut pair.server.out);
        assert_eq!(records(&pair.server.out).len(), 2);
        pair.server.hear(b"x").unwrap();
    }
}

#[test]
fn what_comes_after_our_close_notify_is_dropped() {
    let mut pair = open_pair(&TLS13);
    pair.client.say(&[b"text"]);
    pair.server.hear(&pair.client.out[..9]).unwrap();
    pair.server.tls.close_notify(&mut pair.server.out);
    let said = pair.server.out.len();
    for bytes in [&pair.client.out[9..], b"garbage that is no record at all", b""] {
        pair.server.hear(bytes).unwrap();
    }
    assert!(pair.server.plain.is_empty() && pair.server.out.len() == said);
    assert_eq!(pair.server.tls.carry.capacity(), 0);
}

#[test]
fn a_session_is_resumed() {
    for version in both_versions() {
        let client = client_of(version);
        let kinds: Vec<_> = (0..2)
            .map(|_| {
                let mut pair = Pair::open(&client, WORLD.server.config());
                pair.client.say(&[b"hello"]);
                pair.settle().unwrap();
                assert_eq!(pair.server.heard(), b"hello");
                pair.server.tls.side.common().handshake_kind()
            })
            .collect();
        assert_eq!(kinds, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]);
    }
}

#[test]
fn plain_http_is_recognized() {
    let mut server = End::new(Tls::accept(WORLD.server.config()));
    let error = server.hear(b"GET /hub HTTP/1.1\r\nHost: a\r\n\r\n").unwrap_err();
    assert!(error.is_not_tls() && error.label() == "tls_handshake", "{error:?}");
    assert_eq!(error.to_string(), "the peer does not speak TLS");
    assert_eq!(server.out, b"\x15\x03\x03\0\x02\x02\x32", "decode_error, fatal");

    let mut client = End::new(Tls::connect(&WORLD.client, ServerName::try_from("localhost").unwrap()));
    let error = client.hear(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap_err();
    assert!(error.is_not_tls(), "{error:?}");
}

#[test]
fn a_damaged_record_ends_the_connection_and_the_peer_hears_why() {
    for version in both_versions() {
        let mut pair = open_pair(version);
        pair.client.say(&[b"text"]);
        let last = pair.client.out.len() - 1;
        pair.client.out[last] ^= 1;
        let error = pair.settle().unwrap_err();
        assert_eq!(error.label(), "tls_record");
        assert!(pair.server.plain.is_empty());
        let error = pair.client.hear(&core::mem::take(&mut pair.server.out)).unwrap_err();
        assert_eq!((error.label(), error.alert()), ("tls_alert", Some(AlertDescription::BadRecordMac)));
    }
}

#[test]
fn a_key_update_is_answered_and_goes_unnoticed() {
    let mut pair = open_pair(&TLS13);
    for round in 0..5u8 {
        let Side::Client(client) = &mut pair.client.tls.side else { unreachable!() };
        let state = client.process_tls_records(&mut []).state.unwrap();
        let ConnectionState::WriteTraffic(traffic) = state else { panic!("{state:?}") };
        traffic.refresh_traffic_keys().unwrap();
        pair.client.say(&[&[round; 10]]);
        pair.settle_cut(&[3]).unwrap();
        pair.server.say(&[&[round; 20]]);
        pair.settle_cut(&[3]).unwrap();
        assert_eq!((pair.server.heard(), pair.client.heard()), (vec![round; 10], vec![round; 20]));
    }
}

/// Has the client's keys and writes whatever records it likes.
struct Forger {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Forger {
    fn new(client: End) -> Forger {
        let suite = client.tls.side.common().negotiated_cipher_suite().unwrap();
        let Side::Client(connection) = client.tls.side else { unreachable!() };
        #[allow(deprecated)] // What replaces it keeps the connection going, which is not wanted here.
        let (sequence, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another cipher than expected") };
        let key: AeadKey = key;
        let encrypter = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
            SupportedCipherSuite::Tls12(suite) => {
                let (salt, explicit) = iv.as_ref().split_at(4);
                suite.aead_alg.encrypter(key, salt, explicit)
            }
        };
        Forger { encrypter, sequence }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let message =
            OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload: OutboundChunks::Single(payload) };
        self.sequence += 1;
        self.encrypter.encrypt(message, self.sequence - 1).unwrap().encode()
    }
}

fn forged(version: &'static SupportedProtocolVersion) -> (Forger, End) {
    let Pair { client, server } = open_pair(version);
    (Forger::new(client), server)
}

#[test]
fn renegotiation_is_refused_and_not_for_ever() {
    let (mut forger, mut server) = forged(&TLS12);
    // RFC 5246 §7.4.1.2: a ClientHello without extensions.
    let hello = [&[1, 0, 0, 41, 3, 3][..], &[9; 32], &[0, 0, 2, 0xc0, 0x2c, 1, 0]].concat();
    server.hear(&forger.record(ContentType::Handshake, &hello)).unwrap();
    assert_eq!(records(&server.out), [8 + 2 + 16], "one alert");
    server.hear(&forger.record(ContentType::ApplicationData, b"as before")).unwrap();
    assert_eq!(server.heard(), b"as before");
    let refused = (0..100).find_map(|_| server.hear(&forger.record(ContentType::Handshake, &hello)).err());
    assert_eq!(refused.expect("an end to it").label(), "tls_protocol");
}

#[test]
fn half_a_handshake_message_disturbs_nobody() {
    let (mut forger, mut server) = forged(&TLS13);
    // RFC 8446 §4.6.3: KeyUpdate, no answer requested; in two records.
    server.hear(&forger.record(ContentType::Handshake, &[24, 0])).unwrap();
    assert!(!server.tls.carry.is_empty());
    for _ in 0..3 {
        server.say(&[b"meanwhile"]);
    }
    server.hear(&forger.record(ContentType::Handshake, &[0, 1, 0])).unwrap();
    assert!(server.tls.carry.is_empty());
    assert_eq!(records(&server.out).len(), 3);

    // Application data in the middle of a handshake message is not allowed (RFC 8446 §5.1).
    let (mut forger, mut server) = forged(&TLS13);
    server.hear(&forger.record(ContentType::Handshake, &[24, 0])).unwrap();
    let error = server.hear(&forger.record(ContentType::ApplicationData, b"text")).unwrap_err();
    assert_eq!(error.label(), "tls_protocol");
    server.tls.close_notify(&mut server.out);
    assert!(server.plain.is_empty());
}

#[test]
fn a_handshake_message_without_end_is_cut_off() {
    for version in both_versions() {
        let (mut forger, mut server) = forged(version);
        // A message of 64,000 bytes, in small records; nothing after the handshake is that long.
        let mut piece = vec![0; 500];
        piece[..4].copy_from_slice(&[11, 0, 0xfa, 0]);
        let mut heard = 0;
        let error = loop {
            match server.hear(&forger.record(ContentType::Handshake, &piece)) {
                Ok(()) => heard += piece.len(),
                Err(error) => break error,
            }
            piece.fill(0);
            assert!(server.tls.carry.len() <= TLS_CARRY_BYTES_MAX && heard < 64_000);
        };
        assert!(heard > 20_000, "{error}: {heard}");
        assert_eq!(error, TlsError::message_too_large());
    }
}

#[test]
fn a_client_hello_without_end_is_cut_off() {
    let mut pair = Pair::new(&WORLD.client, WORLD.server.config());
    // RFC 8446 §5.1: a record in the clear, here with a part of a ClientHello of 60,000 bytes.
    let mut record = vec![22, 3, 1, 1, 0, 1, 0, 0xea, 0x60];
    record.resize(5 + 256, 0);
    let mut heard = 0;
    let error = loop {
        match pair.server.hear(&record) {
            Ok(()) => heard += record.len(),
            Err(error) => break error,
        }
        record[5..].fill(0);
        assert!(pair.server.tls.carry.len() <= TLS_CARRY_BYTES_MAX && heard < 60_000);
    };
    assert_eq!(error, TlsError::message_too_large());
}

#[test]
fn only_the_versions_that_are_allowed() {
    let [certificate, key] = ["server.pem", "server.key.pem"].map(|name| WORLD.folder.path().join(name));
    let server = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls13).unwrap();
    Pair::open(&client_of(&TLS13), server.config());
    let mut pair = Pair::new(&client_of(&TLS12), server.config());
    let error = pair.settle().unwrap_err();
    assert_eq!(error.label(), "tls_handshake", "{error}");
    let error = pair.client.hear(&core::mem::take(&mut pair.server.out)).unwrap_err();
    assert_eq!(error.alert(), Some(AlertDescription::ProtocolVersion));
}

#[test]
fn names_and_authorities_are_checked() {
    let server = WORLD.server.config();
    for name in ["localhost", "127.0.0.1", "::1"] {
        Pair::named(&WORLD.client, server, name).settle().unwrap();
    }
    for name in ["example.com", "127.0.0.2"] {
        let mut pair = Pair::named(&WORLD.client, server, name);
        let error = pair.settle().unwrap_err();
        assert_eq!(error.label(), "tls_certificate");
        assert!(matches!(error.certificate(), Some(CertificateError::NotValidForNameContext { .. })));
        assert!(error.to_string().contains(&format!("is not for {name} but for")), "{error}");
        let error = pair.server.hear(&core::mem::take(&mut pair.client.out)).unwrap_err();
        assert_eq!(error.label(), "tls_alert");
    }

    let other = WORLD.folder.file("other-ca.pem", Authority::new("somebody else").pem());
    let stranger = ClientTls::load(Some(&other), None).unwrap();
    let error = Pair::new(&stranger, server).settle().unwrap_err();
    assert_eq!(error.certificate(), Some(&CertificateError::UnknownIssuer));
    assert_eq!(error.to_string(), "the peer's certificate is signed by an authority that is not trusted");

    let (certificate, key) = WORLD.folder.pair("expired", &WORLD.authority.issue_until(&["localhost"], 2020));
    let expired = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
    let error = Pair::new(&WORLD.client, expired.config()).settle().unwrap_err();
    assert_eq!(error.to_string(), "the peer's certificate has expired");
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_as_its_own_authority() {
    // As `dotnet dev-certs` makes it.
    let params = rcgen::CertificateParams::new(vec!["localhost".to_string()]).unwrap();
    let pair = rcgen::KeyPair::generate().unwrap();
    let issued = Issued { certificate: params.self_signed(&pair).unwrap().pem(), key: pair.serialize_pem() };
    let (certificate, key) = WORLD.folder.pair("own", &issued);
    let server = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
    let client = ClientTls::load(Some(&certificate), None).unwrap();
    Pair::open(&client, server.config());

    // As `openssl req -x509` makes it: an authority's, which may not serve.
    let [certificate, key] = ["rsa.pem", "rsa-pkcs1.key.pem"].map(|name| vectors().join(name));
    let server = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
    let client = ClientTls::load(Some(&certificate), None).unwrap();
    let error = Pair::new(&client, server.config()).settle().unwrap_err();
    assert!(error.to_string().contains("is an authority's own (CA:TRUE)"), "{error}");
}

#[test]
fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(client::roots(Some(&WORLD.folder.path().join("ca.pem"))).unwrap()),
        pem::provider(),
    )
    .build()
    .unwrap();
    let own = |name| WORLD.folder.path().join(name);
    for version in both_versions() {
        let server = ServerConfig::builder_with_provider(pem::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                pem::certified_key(&own("server.pem"), &own("server.key.pem")).unwrap(),
            )));
        let server = Arc::new(server);
        let (certificate, key) = WORLD.folder.pair("client", &WORLD.authority.issue(&["a-node"]));
        let client = ClientTls::load(Some(&own("ca.pem")), Some((&certificate, &key))).unwrap();
        let pair = Pair::open(&client, &server);
        assert_eq!(pair.server.tls.side.common().peer_certificates().unwrap().len(), 1);

        let mut pair = Pair::new(&WORLD.client, &server);
        let error = pair.settle().unwrap_err();
        assert_eq!(error.label(), "tls_handshake", "{error}");
        let error = pair.client.hear(&core::mem::take(&mut pair.server.out)).unwrap_err();
        assert_eq!(error.alert(), Some(AlertDescription::CertificateRequired));
    }
}

#[test]
fn a_new_certificate_is_served_without_a_restart_and_a_bad_one_is_not() {
    let folder = Folder::new();
    let (certificate, key) = folder.pair("server", &WORLD.authority.issue(&["localhost"]));
    let server = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
    let mut client = (*WORLD.client).clone();
    client.resumption = rustls::client::Resumption::disabled();
    let client = Arc::new(client);
    let served = || {
        let pair = Pair::open(&client, server.config());
        pair.client.tls.side.common().peer_certificates().unwrap()[0].to_vec()
    };
    let first = served();
    assert!(!server.changed());
    assert_eq!(served(), first);

    // The certificate is there, its key not yet.
    let next = WORLD.authority.issue(&["localhost", "another.example"]);
    folder.file("server.pem", &next.certificate);
    assert!(server.changed());
    let error = server.reload().unwrap_err();
    assert!(error.contains("does not belong") && error.contains("server.key.pem"), "{error}");
    assert!(!server.changed(), "it is reported once");
    assert_eq!(served(), first, "the old one stays");

    folder.file("server.key.pem", &format!("{}\n", next.key));
    assert!(server.changed());
    server.reload().unwrap();
    assert!(!server.changed());
    assert_ne!(served(), first);

    std::fs::remove_file(&key).unwrap();
    assert!(server.changed());
    assert!(server.reload().unwrap_err().contains("there is no file"));
    assert_ne!(served(), first);
}

#[test]
fn every_kind_of_key_is_read() {
    for (certificate, key) in [("rsa.pem", "rsa-pkcs1.key.pem"), ("ec.pem", "ec-sec1.key.pem")] {
        pem::certified_key(&vectors().join(certificate), &vectors().join(key)).unwrap();
    }
    // rcgen writes PKCS#8.
    let own = |name| WORLD.folder.path().join(name);
    assert!(std::fs::read_to_string(own("server.key.pem")).unwrap().contains("BEGIN PRIVATE KEY"));
    pem::certified_key(&own("server.pem"), &own("server.key.pem")).unwrap();
    // All in one file.
    let both = ["server.key.pem", "server.pem", "ca.pem"].map(|name| std::fs::read_to_string(own(name)).unwrap());
    let both = WORLD.folder.file("both.pem", &both.concat());
    assert_eq!(pem::certified_key(&both, &both).unwrap().cert.len(), 2);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let folder = Folder::new();
    let own = |name| WORLD.folder.path().join(name);
    let empty = folder.file("empty.pem", "");
    let broken = folder.file("broken.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    let no_der = folder.file("no-der.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let bad_key = folder.file("bad-key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let huge = folder.file("huge.pem", &" ".repeat(PEM_FILE_BYTES_MAX as usize + 1));
    let missing = folder.path().join("missing.pem");
    let (certificate, key) = (own("server.pem"), own("server.key.pem"));
    for (certificate, key, named, words) in [
        (&missing, &key, "missing.pem", "there is no file"),
        (&certificate, &missing, "missing.pem", "there is no file"),
        (&empty, &key, "empty.pem", "has no certificate in it"),
        (&key, &key, "server.key.pem", "has no certificate in it"),
        (&broken, &key, "broken.pem", "is not sound PEM"),
        (&no_der, &key, "no-der.pem", "cannot be read"),
        (&huge, &key, "huge.pem", "is larger than"),
        (&certificate, &certificate, "server.pem", "has no private key in it"),
        (&certificate, &bad_key, "bad-key.pem", "cannot be used"),
        (&certificate, &vectors().join("ec-encrypted.key.pem"), "ec-encrypted.key.pem", "is encrypted"),
        (&certificate, &vectors().join("ec-sec1.key.pem"), "ec-sec1.key.pem", "does not belong to"),
        (&folder.path().to_path_buf(), &key, "signalring", "cannot read"),
    ] {
        let error = ServerCertificates::load(certificate, key, MinimumVersion::Tls12).unwrap_err();
        assert!(error.contains(named) && error.contains(words), "{named}, {words}: {error}");
        let error = ClientTls::load(Some(&own("ca.pem")), Some((certificate, key))).unwrap_err();
        assert!(error.contains(named) && error.contains(words), "{named}, {words}: {error}");
    }
    for (ca, words) in [(&missing, "there is no file"), (&empty, "has no certificate"), (&no_der, "can be read")] {
        let error = ClientTls::load(Some(ca), None).unwrap_err();
        assert!(error.contains(words) && error.contains(ca.to_str().unwrap()), "{error}");
    }
}
