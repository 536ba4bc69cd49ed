//! Why a TLS connection ends: words for the log, a label for the metric.
use core::fmt;
use rustls::unbuffered::EncryptError;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a TLS connection cannot go on.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsError {
    label: &'static str,
    cause: Cause,
}

#[derive(Clone, Debug, PartialEq)]
enum Cause {
    Rustls(Error),
    MessageTooLarge,
    /// RFC 8446 §5.5: so much has been encrypted that the keys are used up.
    KeysExhausted,
    /// Sealing before the handshake or after the end: the caller's doing.
    OutOfOrder,
}

impl TlsError {
    /// Every label there is.
    pub const LABELS: [&str; 5] = ["tls_handshake", "tls_certificate", "tls_alert", "tls_record", "tls_protocol"];

    /// For a metric: `tls_handshake` (no agreement was reached), `tls_certificate` (the peer's is not to be trusted), `tls_alert`
    /// (the peer gave up), `tls_record` (bytes that cannot be opened), `tls_protocol` (a rule was broken after the handshake).
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// What is wrong with the peer's certificate, if that is the reason.
    pub fn certificate(&self) -> Option<&CertificateError> {
        match &self.cause {
            Cause::Rustls(Error::InvalidCertificate(error)) => Some(error),
            _ => None,
        }
    }

    /// The alert by which the peer ended the connection, if that is the reason.
    pub fn alert(&self) -> Option<AlertDescription> {
        match self.cause {
            Cause::Rustls(Error::AlertReceived(alert)) => Some(alert),
            _ => None,
        }
    }

    /// The peer's bytes are no TLS at all: a plain HTTP server or client, most often.
    pub fn is_not_tls(&self) -> bool {
        self.label == "tls_handshake"
            && matches!(
                self.cause,
                Cause::Rustls(Error::InvalidMessage(
                    InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion
                ))
            )
    }

    pub(super) fn from_rustls(error: Error, handshaking: bool) -> TlsError {
        let label = match &error {
            Error::AlertReceived(_) => "tls_alert",
            Error::InvalidCertificate(_) => "tls_certificate",
            _ if handshaking => "tls_handshake",
            Error::DecryptError | Error::PeerSentOversizedRecord | Error::InvalidMessage(_) => "tls_record",
            _ => "tls_protocol",
        };
        TlsError { label, cause: Cause::Rustls(error) }
    }

    pub(super) fn handshake(error: Error) -> TlsError {
        TlsError::from_rustls(error, true)
    }

    pub(super) fn from_encrypt(error: EncryptError) -> TlsError {
        let cause = match error {
            EncryptError::EncryptExhausted => Cause::KeysExhausted,
            // Room is made until there is enough.
            EncryptError::InsufficientSize(_) => Cause::OutOfOrder,
        };
        TlsError { label: "tls_protocol", cause }
    }

    pub(super) fn message_too_large() -> TlsError {
        TlsError { label: "tls_record", cause: Cause::MessageTooLarge }
    }

    pub(super) fn out_of_order() -> TlsError {
        TlsError { label: "tls_protocol", cause: Cause::OutOfOrder }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_not_tls() {
            return f.write_str("the peer does not speak TLS");
        }
        match &self.cause {
            Cause::Rustls(Error::InvalidCertificate(error)) => {
                f.write_str("the peer's certificate ")?;
                match error {
                    CertificateError::UnknownIssuer => f.write_str("is signed by an authority that is not trusted"),
                    CertificateError::Expired | CertificateError::ExpiredContext { .. } => f.write_str("has expired"),
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                        f.write_str("is not valid yet")
                    }
                    CertificateError::NotValidForName => f.write_str("is for another name"),
                    CertificateError::NotValidForNameContext { expected, presented } => {
                        write!(f, "is not for {}", expected.to_str())?;
                        if presented.is_empty() { Ok(()) } else { write!(f, " but for {}", presented.join(", ")) }
                    }
                    // webpki has this error, rustls has no name for it.
                    CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => f.write_str(
                        "is an authority's own (CA:TRUE); a server needs one that is not, even if it signs itself",
                    ),
                    error => write!(f, "cannot be verified: {error}"),
                }
            }
            Cause::Rustls(Error::AlertReceived(alert)) => write!(f, "the peer ended TLS with the alert {alert:?}"),
            Cause::Rustls(Error::DecryptError) => f.write_str("a TLS record was damaged on its way"),
            Cause::Rustls(error) => write!(f, "TLS failed: {error}"),
            Cause::MessageTooLarge => f.write_str("a TLS handshake message is too long"),
            Cause::KeysExhausted => f.write_str("the TLS keys are used up"),
            Cause::OutOfOrder => f.write_str("the TLS connection is not open"),
        }
    }
}

impl std::error::Error for TlsError {}
