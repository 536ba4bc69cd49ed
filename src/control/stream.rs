//! A connection to an app server while it is being dialled: TCP, with TLS inside if the app server is reached by it.
//!
//! No operation is dropped half-way: see `exchange`.
use crate::config::UpstreamUrl;
use crate::mem::pool::BytePool;
use crate::tls::{Tls, TlsError};
use bytes::BytesMut;
use core::time::Duration;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::time::timeout;
use tokio_uring::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 4096;

pub(super) struct Stream {
    pub(super) tcp: Rc<TcpStream>,
    pub(super) tls: Option<Box<Tls>>,
    pool: BytePool,
    /// As configured; for sentences.
    host: String,
    /// The app server has said that nothing follows.
    ended: bool,
}

impl Stream {
    /// Connects to the first address that answers. With TLS `secure` must follow.
    pub(super) async fn connect(url: &UpstreamUrl, tls: Option<&Arc<ClientConfig>>) -> Result<Stream, String> {
        let tls = match tls {
            Some(config) => {
                let name = ServerName::try_from(url.host.clone())
                    .map_err(|_| format!("{} is not a name that a certificate can be for", url.host))?;
                let tls = Tls::connect(config, name).map_err(|error| in_words(&error, &url.host))?;
                Some(Box::new(tls))
            }
            None => None,
        };
        let tcp = connect(&url.host, url.port, CONNECT_TIMEOUT).await?;
        Ok(Stream { tcp, tls, pool: BytePool::default(), host: url.host.clone(), ended: false })
    }

    /// Does TLS's handshake, if there is TLS.
    pub(super) async fn secure(&mut self) -> Result<(), String> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let mut out = Vec::new();
        tls.start(&mut out).map_err(|error| in_words(&error, &self.host))?;
        self.send(out).await?;
        let mut early = BytesMut::new();
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.read_more(&mut early).await?;
        }
        // Nobody but us has spoken HTTP yet.
        if early.is_empty() { Ok(()) } else { Err(format!("{} speaks before it is asked", self.host)) }
    }

    pub(super) async fn write(&mut self, bytes: Vec<u8>) -> Result<(), String> {
        let bytes = match &mut self.tls {
            Some(tls) => {
                let mut out = Vec::new();
                tls.seal([&bytes[..]].into_iter(), &mut out).map_err(|error| in_words(&error, &self.host))?;
                out
            }
            None => bytes,
        };
        self.send(bytes).await
    }

    /// Receives once; `input` grows unless only a part of a record came.
    pub(super) async fn read_more(&mut self, input: &mut BytesMut) -> Result<(), String> {
        if self.ended {
            return Err("the app server closed the connection".into());
        }
        let (result, mut buffer) = self.tcp.read(Vec::with_capacity(READ_BYTES)).await;
        let count = match result {
            Ok(0) => return Err("the app server closed the connection".into()),
            Ok(count) => count,
            Err(error) => return Err(format!("cannot receive from the app server: {error}")),
        };
        let Some(tls) = &mut self.tls else {
            input.extend_from_slice(&buffer[..count]);
            return Ok(());
        };
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let opened = tls.open(&mut buffer[..count], &mut self.pool, &mut plain, &mut out);
        if !out.is_empty() {
            let sent = self.send(out).await;
            // Where TLS failed, its reason says more than that the alert did not arrive.
            if opened.is_ok() {
                sent?;
            }
        }
        self.ended = opened.map_err(|error| in_words(&error, &self.host))?.peer_closed;
        input.extend_from_slice(&plain);
        Ok(())
    }

    /// Says goodbye where TLS has one. The connection is of no further use.
    pub(super) async fn close(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        let mut out = Vec::new();
        tls.close_notify(&mut out);
        // Everything has been said; whether the app server hears this changes nothing.
        let _ = self.send(out).await;
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), String> {
        let (result, _) = self.tcp.write_all(bytes).await;
        result.map_err(|error| format!("cannot send to the app server: {error}"))
    }
}

/// A connection to the first address of a host that answers; each may take up to `limit`. May be given up half-way.
pub(super) async fn connect(host: &str, port: u16, limit: Duration) -> Result<Rc<TcpStream>, String> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| format!("cannot resolve {host}: {error}"))?
        .collect();
    let mut last = format!("{host} has no address");
    for address in addresses {
        // In a task of its own, because a connect cannot be called back: an abandoned one ends by itself and is closed then.
        let connecting = tokio_uring::spawn(TcpStream::connect(address));
        match timeout(limit, connecting).await {
            Ok(Ok(Ok(stream))) => {
                let _ = stream.set_nodelay(true);
                return Ok(Rc::new(stream));
            }
            Ok(Ok(Err(error))) => last = format!("cannot connect to {address}: {error}"),
            Ok(Err(_)) => last = format!("cannot connect to {address}"),
            Err(_) => last = format!("cannot connect to {address}: no answer within {} s", limit.as_secs()),
        }
    }
    Err(last)
}

/// Which app server, what is wrong, what to do.
fn in_words(error: &TlsError, host: &str) -> String {
    let remedy = match (error.certificate(), error.alert()) {
        (Some(CertificateError::UnknownIssuer), _) => {
            "put the authority's certificate (or its own, if it signed itself) into a PEM file and name that in ca_file"
        }
        (Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }), _) => {
            "renew it there, and see that this machine's clock is right"
        }
        (Some(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }), _) => {
            "see that this machine's clock is right"
        }
        (Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }), _) => {
            "write a name that the certificate is for into the upstream's url"
        }
        (Some(_), _) => {
            "see what certificate it serves (openssl s_client -connect), and that ca_file names the authority that signed it"
        }
        // RFC 8446 §6.2; before TLS 1.3 there was no alert of its own for it.
        (None, Some(AlertDescription::CertificateRequired)) => {
            "it wants a client certificate: set client_certificate_file and client_key_file"
        }
        (None, Some(AlertDescription::HandshakeFailure)) => {
            "it wants a client certificate (client_certificate_file and client_key_file), or TLS older than 1.2"
        }
        (
            None,
            Some(
                AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::AccessDenied,
            ),
        ) => "it does not accept the certificate in client_certificate_file",
        (None, _) if error.is_not_tls() => "is it an http:// URL?",
        (None, _) => return format!("no TLS with {host}: {error}"),
    };
    format!("no TLS with {host}: {error}; {remedy}")
}
