//! What an idle TLS connection of a client costs in memory. The figures are printed (`--nocapture`) and bounded.
#![allow(unsafe_code)] // The trait of an allocator is unsafe to implement; nothing else here is.

#[path = "common/certificates.rs"]
mod certificates;

use certificates::{Authority, Folder};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use signalring::mem::pool::BytePool;
use signalring::tls::{MinimumVersion, ServerCertificates, Tls};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

struct Counting;

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    /// Bytes allocated while `COUNTS`, and not freed while it was set.
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    if COUNTS.get() {
        LIVE.set(LIVE.get() + bytes);
        CALLS.set(CALLS.get() + u64::from(bytes > 0));
    }
}

// SAFETY: everything is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are the system allocator's requirements.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above; `pointer` came from `alloc` or `realloc`, which are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted<T>(run: impl FnOnce() -> T) -> T {
    COUNTS.set(true);
    let result = run();
    COUNTS.set(false);
    result
}

/// A client and the server's end of its connection. Only what the server's end does is counted; the buffers are made large enough
/// beforehand, since they are a shard's, not a connection's.
struct Pair {
    client: Tls,
    server: Box<Tls>,
}

struct Buffers {
    pool: BytePool,
    plain: Vec<u8>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn open(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, buffers: &mut Buffers) -> Pair {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = Tls::connect(client, name).unwrap();
        client.start(&mut buffers.to_server).unwrap();
        let server = counted(|| Box::new(Tls::accept(server).unwrap()));
        let mut pair = Pair { client, server };
        pair.settle(buffers);
        assert!(!pair.client.is_handshaking() && !pair.server.is_handshaking());
        pair
    }

    fn settle(&mut self, buffers: &mut Buffers) {
        let Buffers { pool, plain, to_server, to_client } = buffers;
        while !to_server.is_empty() || !to_client.is_empty() {
            // Cut, so that a record is carried now and then.
            for piece in to_server.chunks_mut(700) {
                counted(|| self.server.open(piece, pool, plain, to_client)).unwrap();
            }
            to_server.clear();
            self.client.open(to_client, &mut BytePool::default(), &mut Vec::new(), to_server).unwrap();
            to_client.clear();
        }
        plain.clear();
    }

    fn talk(&mut self, buffers: &mut Buffers) {
        for length in [10, 3000, 200] {
            let text = vec![7; length];
            self.client.seal([&text[..]].into_iter(), &mut buffers.to_server).unwrap();
            counted(|| self.server.seal([&text[..], b"!"].into_iter(), &mut buffers.to_client)).unwrap();
            self.settle(buffers);
        }
    }
}

/// Bytes an idle connection of each version may take, the `Tls` itself among them. What was measured, and a little more.
const IDLE_BYTES_MAX: [(&SupportedProtocolVersion, i64); 2] =
    [(&rustls::version::TLS12, 3500), (&rustls::version::TLS13, 3500)];
const CONNECTIONS: i64 = 50;

#[test]
fn an_idle_connection_stays_small() {
    let folder = Folder::new();
    let authority = Authority::new("the test's authority");
    let (certificate, key) = folder.pair("server", &authority.issue(&["localhost"]));
    let server = ServerCertificates::load(&certificate, &key, MinimumVersion::Tls12).unwrap();
    let ca = folder.file("ca.pem", authority.pem());
    let mut buffers = Buffers {
        pool: BytePool::new(),
        plain: Vec::with_capacity(64 * 1024),
        to_server: Vec::with_capacity(64 * 1024),
        to_client: Vec::with_capacity(64 * 1024),
    };
    for (version, bytes_max) in IDLE_BYTES_MAX {
        let client = client_of(version, &ca);
        // What is made once for all.
        Pair::open(&client, server.config(), &mut buffers).talk(&mut buffers);
        LIVE.set(0);
        let mut pairs: Vec<Pair> =
            (0..CONNECTIONS).map(|_| Pair::open(&client, server.config(), &mut buffers)).collect();
        let handshaken = LIVE.get() / CONNECTIONS;
        CALLS.set(0);
        for pair in &mut pairs {
            pair.talk(&mut buffers);
        }
        let calls = CALLS.get() as f64 / (CONNECTIONS as f64 * 6.0);
        let idle = LIVE.get() / CONNECTIONS;
        println!(
            "{version:?}: {handshaken} bytes after the handshake, {idle} after some messages ({} of them the Tls itself); {calls:.1} allocations a record",
            size_of::<Tls>()
        );
        assert!(handshaken <= bytes_max && idle <= bytes_max, "{version:?}: {handshaken}, {idle} bytes");
        counted(|| pairs.clear());
    }
}

fn client_of(version: &'static SupportedProtocolVersion, ca: &Path) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}
