//! From a server's URL to an open WebSocket: addresses, TLS, negotiation, upgrade. All of it is other people's code, so that the node
//! is looked at from outside.
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use url::Url;

use super::options::{Options, Protocol};
use crate::limits::{LOAD_MESSAGE_BYTES_MAX, LOAD_NEGOTIATION_BYTES_MAX, LOAD_READ_BUFFER_BYTES, LOAD_REDIRECTS_MAX};

const PRODUCT: &str = concat!("signalring-load/", env!("CARGO_PKG_VERSION"));

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub type Socket = WebSocketStream<Box<dyn Stream>>;

/// Opens the connections to one server.
pub struct Dialler {
    hub: Endpoint,
    protocol: Protocol,
    skip_negotiation: bool,
    connections_per_address: u32,
    tls: Arc<ClientConfig>,
}

/// Where a hub is.
struct Endpoint {
    /// With the hub's path and perhaps a query.
    url: Url,
    addresses: Vec<SocketAddr>,
    /// The address that answered last is tried first.
    best: AtomicUsize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Negotiation {
    error: Option<String>,
    url: Option<String>,
    access_token: Option<String>,
    connection_token: Option<String>,
    connection_id: Option<String>,
    #[serde(default)]
    available_transports: Vec<Transport>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transport {
    transport: String,
    #[serde(default)]
    transfer_formats: Vec<String>,
}

impl Dialler {
    /// Looks the server's name up, so blocks. The error is a sentence.
    pub fn new(server: &Url, options: &Options, tls: Arc<ClientConfig>) -> Result<Dialler, String> {
        let mut url = server.clone();
        url.set_path(&format!("{}{}", server.path().trim_end_matches('/'), options.hub_path));
        Ok(Dialler {
            hub: Endpoint::new(url)?,
            protocol: options.protocol,
            skip_negotiation: options.skip_negotiation,
            connections_per_address: options.connections_per_address,
            tls,
        })
    }

    /// Both ends have one clock.
    pub fn is_loopback(&self) -> bool {
        self.hub.addresses.iter().all(|address| address.ip().is_loopback())
    }

    /// Opens the WebSocket of the client with this index.
    pub async fn connect(&self, index: u32) -> Result<Socket, String> {
        let mut elsewhere: Option<Endpoint> = None;
        let mut access_token: Option<String> = None;
        let mut url = self.hub.url.clone();
        if !self.skip_negotiation {
            let mut redirects = 0;
            loop {
                let endpoint = elsewhere.as_ref().unwrap_or(&self.hub);
                let answer = self.negotiate(endpoint, access_token.as_deref(), index).await?;
                let Some(other) = answer.url else {
                    self.check_transports(&answer.available_transports)?;
                    let token = answer.connection_token.or(answer.connection_id);
                    let token = token.ok_or("the negotiation's answer has no connectionToken")?;
                    url = endpoint.url.clone();
                    url.query_pairs_mut().append_pair("id", &token);
                    break;
                };
                redirects += 1;
                if redirects > LOAD_REDIRECTS_MAX {
                    return Err(format!("negotiations pointed elsewhere more than {LOAD_REDIRECTS_MAX} times"));
                }
                let other = Url::parse(&other)
                    .map_err(|error| format!("the negotiation points to {other:?}, which is no URL: {error}"))?;
                // Name resolution blocks; redirects are for services, not for crowds.
                elsewhere = Some(Endpoint::new(other)?);
                access_token = answer.access_token;
            }
        }
        let stream = self.open(elsewhere.as_ref().unwrap_or(&self.hub), index).await?;
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        let target = format!("{scheme}{}", url.as_str().trim_start_matches(url.scheme()));
        let mut request =
            target.into_client_request().map_err(|error| format!("{url} cannot be asked for: {error}"))?;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
        authorize(request.headers_mut(), access_token.as_deref())?;
        // The write buffer only collects what is flushed at once.
        let config = WebSocketConfig::default()
            .read_buffer_size(LOAD_READ_BUFFER_BYTES)
            .write_buffer_size(LOAD_READ_BUFFER_BYTES)
            .max_message_size(Some(LOAD_MESSAGE_BYTES_MAX))
            .max_frame_size(Some(LOAD_MESSAGE_BYTES_MAX));
        let upgraded = client_async_with_config(request, stream, Some(config)).await;
        upgraded.map(|(socket, _)| socket).map_err(|error| format!("no WebSocket: {error}"))
    }

    async fn negotiate(
        &self,
        endpoint: &Endpoint,
        access_token: Option<&str>,
        index: u32,
    ) -> Result<Negotiation, String> {
        let mut url = endpoint.url.clone();
        url.set_path(&format!("{}/negotiate", endpoint.url.path().trim_end_matches('/')));
        url.query_pairs_mut().append_pair("negotiateVersion", "1");
        let target = &url[url::Position::BeforePath..];
        let mut request = Request::post(target)
            .header(HOST, endpoint.host())
            .header(USER_AGENT, PRODUCT)
            .header(CONNECTION, "close")
            .header("X-Requested-With", "XMLHttpRequest")
            .body(Empty::<Bytes>::new())
            .map_err(|error| format!("{url} cannot be asked for: {error}"))?;
        authorize(request.headers_mut(), access_token)?;
        let stream = self.open(endpoint, index).await?;
        let failed = |error: hyper::Error| format!("the negotiation failed: {error}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LOAD_NEGOTIATION_BYTES_MAX).collect().await;
            let body = body.map_err(|error| format!("the negotiation's answer cannot be read: {error}"))?.to_bytes();
            Ok((status, body))
        };
        // The connection must be driven while its exchange goes on; its end may be seen before the answer it brought.
        let (status, body) = tokio::select! {
            done = exchange => done,
            Err(error) = connection => Err(failed(error)),
        }?;
        if !status.is_success() {
            return Err(format!("the negotiation was answered with {status}"));
        }
        let answer: Negotiation = serde_json::from_slice(&body)
            .map_err(|error| format!("the negotiation's answer is not SignalR's: {error}"))?;
        match answer.error {
            Some(error) => Err(format!("the negotiation was refused: {error}")),
            None => Ok(answer),
        }
    }

    fn check_transports(&self, offered: &[Transport]) -> Result<(), String> {
        let format = if self.protocol == Protocol::Json { "Text" } else { "Binary" };
        let fits = |transport: &Transport| {
            transport.transport == "WebSockets" && transport.transfer_formats.iter().any(|offered| offered == format)
        };
        if offered.iter().any(fits) { Ok(()) } else { Err(format!("the server offers no WebSockets for {format}")) }
    }

    /// A connection, with TLS if the URL says so.
    async fn open(&self, endpoint: &Endpoint, index: u32) -> Result<Box<dyn Stream>, String> {
        let stream = endpoint.connect(index / self.connections_per_address).await?;
        if endpoint.url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let host = endpoint.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| format!("no TLS with {host}: {error}"))?))
    }
}

impl Endpoint {
    fn new(url: Url) -> Result<Endpoint, String> {
        let host = url.host_str().ok_or_else(|| format!("{url} names no host"))?.to_owned();
        let port = url.port_or_known_default().ok_or_else(|| format!("{url} names no port"))?;
        let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs();
        let addresses: Vec<SocketAddr> = addresses.map_err(|error| format!("{host} is not known: {error}"))?.collect();
        if addresses.is_empty() {
            Err(format!("{host} has no address"))
        } else {
            Ok(Endpoint { url, addresses, best: AtomicUsize::new(0) })
        }
    }

    /// As `Host` has it: the port only if it is not the scheme's own.
    fn host(&self) -> &str {
        &self.url[url::Position::BeforeHost..url::Position::AfterPort]
    }

    /// Tries all addresses of the name, from source address number `source` where the address is on loopback.
    async fn connect(&self, source: u32) -> Result<tokio::net::TcpStream, String> {
        let best = self.best.load(Ordering::Relaxed);
        let mut failure = String::new();
        for offset in 0..self.addresses.len() {
            let at = (best + offset) % self.addresses.len();
            let address = self.addresses[at];
            match connect(address, source).await {
                Ok(stream) => {
                    self.best.store(at, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => failure = format!("no connection to {address}: {error}"),
            }
        }
        Err(failure)
    }
}

async fn connect(address: SocketAddr, source: u32) -> io::Result<tokio::net::TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if source > 0 && matches!(address.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        // All of 127.0.0.0/8 is this machine: as many sources as anybody needs.
        let source = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + source);
        socket.bind((source, 0).into())?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn authorize(headers: &mut hyper::HeaderMap, access_token: Option<&str>) -> Result<(), String> {
    if let Some(token) = access_token {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        headers.insert(AUTHORIZATION, value.map_err(|_| "the negotiation's accessToken is no header value")?);
    }
    Ok(())
}

/// Whom https servers have to be certified by. The error is a sentence.
pub fn tls(ca_file: Option<&Path>, insecure: bool) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let config = if insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TakeAny(provider))).with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(file) => {
                let unreadable = |error| format!("the authorities in {} cannot be read: {error}", file.display());
                for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
                    let certificate = certificate.map_err(unreadable)?;
                    roots
                        .add(certificate)
                        .map_err(|error| format!("{} holds no usable authority: {error}", file.display()))?;
                }
                if roots.is_empty() {
                    return Err(format!("{} holds no certificate", file.display()));
                }
            }
            // Without any, every https server fails with a sentence of its own; http servers do not care.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    Ok(Arc::new(config))
}

/// `--insecure`: the certificate is not looked at; that the server has its key still is.
#[derive(Debug)]
struct TakeAny(Arc<CryptoProvider>);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
