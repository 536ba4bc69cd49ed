//! The one map from what went wrong to what the peer is told, what is counted and how loud it is logged.
use crate::proto::dotnetify::request::RequestError;
use crate::proto::signalr::MessageError;
use crate::proto::signalr::handshake::HandshakeError;
use crate::proto::ws::WsError;

/// Why a client's connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed: a hub Close message, a WebSocket Close frame, or the end of its stream.
    PeerClose,
    PeerCloseFrame(Option<u16>),
    PeerGone,
    /// The socket failed (reset, timed out in the kernel).
    SocketError(i32),
    WebSocket(WsError),
    /// Bytes of a JSON record that are not UTF-8 (in a binary frame; in a text frame it is a WebSocket error).
    NotUtf8,
    Handshake(HandshakeError),
    Message(MessageError),
    MessageTooLarge,
    /// Nothing heard for the client timeout (armed by its first ping).
    ClientTimeout,
    /// Its TLS failed; the label says how.
    Tls(&'static str),
    /// Stateful reconnect: its Sequence leaves out messages (reference 14).
    SequenceGap,
    /// A stateful client whose socket broke, or a polling one, did not come back in time.
    Inactive,
    /// It ended its own polling with DELETE.
    Deleted,
    /// Its send queue was over its bound: it does not read as fast as it is written to.
    SlowClient,
    /// What is queued for it has waited too long: it takes nothing any more.
    StalledClient,
    /// The lane it was pinned to is gone, and what it has requested is not all known any more: it must request it again.
    LaneLost,
    /// The token it came with is no longer good: it must come again with a fresh one.
    TokenExpired,
    /// The node stops.
    Stopping,
}

/// What the peer of a client connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// A hub Close message first: (error, allowReconnect).
    pub hub_close: Option<(Option<&'static str>, bool)>,
    /// Then a WebSocket Close frame with this code; None: nothing can be said any more.
    pub close_code: Option<u16>,
}

/// The text ASP.NET Core sends when a connection fails without detailed errors (reference 13.3).
pub const CLOSED_WITH_ERROR: &str = "Connection closed with an error.";

impl End {
    /// Reference 7.3 and 13.3: a failed connection hears a hub Close with an error that allows reconnecting, then a normal
    /// WebSocket close, because some clients report any other code as an error of their own. Broken framing is told by its code.
    pub fn told(&self) -> Told {
        let failed = Told { hub_close: Some((Some(CLOSED_WITH_ERROR), true)), close_code: Some(1000) };
        let nothing = Told { hub_close: None, close_code: None };
        match self {
            End::PeerClose => Told { hub_close: None, close_code: Some(1000) },
            End::PeerCloseFrame(code) => Told { hub_close: None, close_code: Some(code.unwrap_or(1000)) },
            End::PeerGone | End::SocketError(_) | End::Inactive | End::Tls(_) => nothing,
            End::WebSocket(error) => Told { hub_close: None, close_code: Some(error.close_code()) },
            End::NotUtf8 => Told { close_code: Some(1007), ..failed },
            // Its refusal has been written; no Close message follows (reference 11.3).
            End::Handshake(_) => Told { hub_close: None, close_code: Some(1000) },
            End::Message(_) | End::MessageTooLarge | End::ClientTimeout | End::SequenceGap => failed,
            // It asked for nothing more.
            End::Deleted => nothing,
            // Its queue is full: one more message would wait behind what it does not read.
            End::SlowClient | End::StalledClient => nothing,
            // ASP.NET ends a connection whose token expires in the same manner (reference 4 and 13.3).
            End::LaneLost | End::TokenExpired | End::Stopping => {
                Told { hub_close: Some((None, true)), close_code: Some(1000) }
            }
        }
    }

    /// For the metric `signalring_client_ends_total{reason}` and the log.
    pub fn label(&self) -> &'static str {
        match self {
            End::PeerClose => "peer_close",
            End::PeerCloseFrame(_) => "peer_close_frame",
            End::PeerGone => "peer_gone",
            End::SocketError(_) => "socket_error",
            End::WebSocket(_) => "websocket_error",
            End::NotUtf8 => "not_utf8",
            End::Handshake(HandshakeError::Canceled) => "handshake_canceled",
            End::Handshake(_) => "handshake_refused",
            End::Message(_) => "message_error",
            End::MessageTooLarge => "message_too_large",
            End::ClientTimeout => "client_timeout",
            End::Tls(_) => "tls",
            End::SequenceGap => "sequence_gap",
            End::Inactive => "inactive",
            End::Deleted => "deleted",
            End::SlowClient => "slow_client",
            End::StalledClient => "stalled_client",
            End::LaneLost => "lane_lost",
            End::TokenExpired => "token_expired",
            End::Stopping => "stopping",
        }
    }

    pub const LABELS: [&'static str; 20] = [
        "peer_close",
        "peer_close_frame",
        "peer_gone",
        "socket_error",
        "websocket_error",
        "not_utf8",
        "handshake_canceled",
        "handshake_refused",
        "message_error",
        "message_too_large",
        "client_timeout",
        "tls",
        "sequence_gap",
        "inactive",
        "deleted",
        "slow_client",
        "stalled_client",
        "lane_lost",
        "token_expired",
        "stopping",
    ];

    /// Is it the peer's doing or ours, and out of the ordinary? Then it is worth a (rate-limited) line at `warn`.
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self,
            End::PeerClose
                | End::PeerCloseFrame(_)
                | End::PeerGone
                | End::SocketError(_)
                | End::Inactive
                | End::Deleted
                | End::Stopping
                | End::LaneLost
                | End::TokenExpired
        )
    }
}

/// Why one message of a client is not forwarded. The client lives on; its view model gets an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No lane was up within the deadline.
    QueueTimeout,
    /// Too much waits for the lane already.
    QueueFull,
    /// Wrapped in its context it is larger than the app server takes (contract 4.6).
    TooLargeUpstream,
    /// It needs a user, and its client has shown no token that is good.
    Unauthorized,
    /// No upstream takes it.
    Unrouted,
    /// Its client has as many view models as one may have.
    TooManyViews,
    /// The app server worked on it for too long, and everybody behind it waited.
    Stuck,
    /// Lane after lane was lost while the app server worked on it.
    EndsLanes,
    /// The app server could not make anything of it.
    Failed,
}

impl Refusal {
    /// .NET's name of the exception that the client's view model is told. `UnauthorizedAccessException` is the one an app server
    /// itself answers with (contract 1.4), so clients that know what to do about it do it.
    pub fn exception_type(self) -> &'static str {
        match self {
            Refusal::Unauthorized => "UnauthorizedAccessException",
            // What dotNetify's own message about it is.
            Refusal::Unrouted => "Exception",
            Refusal::QueueTimeout
            | Refusal::QueueFull
            | Refusal::TooLargeUpstream
            | Refusal::TooManyViews
            | Refusal::Stuck
            | Refusal::EndsLanes
            | Refusal::Failed => "ForwardingException",
        }
    }

    pub fn message(self) -> &'static str {
        match self {
            Refusal::QueueTimeout => "The app server could not be reached in time. Please try again.",
            Refusal::QueueFull => {
                "The app server cannot be reached and too many requests are waiting. Please try again."
            }
            Refusal::TooLargeUpstream => "The message is too large for the app server.",
            Refusal::Unauthorized => "A valid bearer token is required.",
            // With the view model's name around it: `response::write_unknown_vm`.
            Refusal::Unrouted => {
                "is not a known view model! Its assembly must be registered through VMController.RegisterAssembly."
            }
            Refusal::TooManyViews => "This connection has too many view models.",
            Refusal::Stuck => "The app server has not answered in time. Please try again.",
            Refusal::EndsLanes => "The app server ended its connection each time it was asked for this.",
            // Its own words take the place of these.
            Refusal::Failed => "The app server failed.",
        }
    }

    /// For the metric `signalring_messages_refused_total{reason}`.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::QueueTimeout => "queue_timeout",
            Refusal::QueueFull => "queue_full",
            Refusal::TooLargeUpstream => "too_large_upstream",
            Refusal::Unauthorized => "unauthorized",
            Refusal::Unrouted => "unrouted",
            Refusal::TooManyViews => "too_many_views",
            Refusal::Stuck => "stuck",
            Refusal::EndsLanes => "ends_lanes",
            Refusal::Failed => "app_server_error",
        }
    }

    pub const ALL: [Refusal; 9] = [
        Refusal::QueueTimeout,
        Refusal::QueueFull,
        Refusal::TooLargeUpstream,
        Refusal::Unauthorized,
        Refusal::Unrouted,
        Refusal::TooManyViews,
        Refusal::Stuck,
        Refusal::EndsLanes,
        Refusal::Failed,
    ];
}

/// Why a lane ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneEnd {
    /// The app server sent a hub Close.
    ServerClose {
        error: Option<String>,
        allow_reconnect: bool,
    },
    CloseFrame(Option<u16>),
    Gone,
    SocketError(i32),
    WebSocket(WsError),
    Message(MessageError),
    NotUtf8,
    RecordTooLarge,
    Tls(String),
    /// Nothing arrived for `LANE_SILENCE_MS`.
    Silence,
    /// Nothing that we asked for was done for too long; its pings say nothing of that (contract 6.2).
    Stuck,
    Stopping,
}

impl core::fmt::Display for LaneEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            LaneEnd::ServerClose { error: Some(error), .. } => write!(f, "the app server closed it: {error}"),
            LaneEnd::ServerClose { error: None, .. } => f.write_str("the app server closed it"),
            LaneEnd::CloseFrame(Some(code)) => write!(f, "the app server closed its WebSocket with code {code}"),
            LaneEnd::CloseFrame(None) => f.write_str("the app server closed its WebSocket"),
            LaneEnd::Gone => f.write_str("the app server ended the connection"),
            LaneEnd::SocketError(errno) => {
                write!(f, "{}", std::io::Error::from_raw_os_error(*errno))
            }
            LaneEnd::WebSocket(error) => write!(f, "the app server broke the WebSocket protocol ({error:?})"),
            LaneEnd::Message(error) => write!(f, "the app server sent a malformed message ({error:?})"),
            LaneEnd::NotUtf8 => f.write_str("the app server sent text that is not UTF-8"),
            LaneEnd::RecordTooLarge => {
                write!(f, "the app server sent a message over {} bytes", crate::limits::LANE_RECORD_BYTES_MAX)
            }
            LaneEnd::Tls(error) => write!(f, "its TLS failed: {error}"),
            LaneEnd::Silence => {
                write!(f, "nothing heard from the app server for {} s", crate::limits::LANE_SILENCE_MS / 1000)
            }
            LaneEnd::Stuck => f.write_str("the app server does nothing of what it was asked on it"),
            LaneEnd::Stopping => f.write_str("this node stops"),
        }
    }
}

/// What a wrong invocation is counted as; its answer is `proto::dotnetify::request`'s.
pub fn request_label(error: RequestError) -> &'static str {
    match error {
        RequestError::UnknownMethod => "unknown_method",
        RequestError::ArgumentCount => "argument_count",
        RequestError::ArgumentType => "argument_type",
        RequestError::Streaming => "streaming",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_end() -> Vec<End> {
        vec![
            End::PeerClose,
            End::PeerCloseFrame(None),
            End::PeerGone,
            End::SocketError(104),
            End::WebSocket(WsError::Unmasked),
            End::NotUtf8,
            End::Handshake(HandshakeError::Canceled),
            End::Handshake(HandshakeError::Malformed),
            End::Message(MessageError::Syntax),
            End::MessageTooLarge,
            End::ClientTimeout,
            End::Tls("tls_record"),
            End::SequenceGap,
            End::Inactive,
            End::Deleted,
            End::SlowClient,
            End::StalledClient,
            End::LaneLost,
            End::TokenExpired,
            End::Stopping,
        ]
    }

    #[test]
    fn every_end_has_its_label_in_the_table_once() {
        let labels: Vec<_> = every_end().iter().map(End::label).collect();
        assert_eq!(labels, End::LABELS);
    }

    #[test]
    fn who_may_come_back_is_told_so() {
        for end in every_end() {
            let told = end.told();
            match end {
                End::PeerGone
                | End::SocketError(_)
                | End::SlowClient
                | End::StalledClient
                | End::Inactive
                | End::Tls(_)
                | End::Deleted => {
                    assert_eq!(told.close_code, None);
                }
                End::LaneLost | End::TokenExpired | End::Stopping => {
                    assert_eq!(told, Told { hub_close: Some((None, true)), close_code: Some(1000) });
                }
                End::WebSocket(_) => assert_eq!(told.close_code, Some(1002)),
                _ => assert!(told.close_code.is_some()),
            }
        }
    }

    #[test]
    fn a_refusal_is_told_as_an_app_server_would() {
        for refusal in Refusal::ALL {
            let expected = match refusal {
                Refusal::Unauthorized => "UnauthorizedAccessException",
                Refusal::Unrouted => "Exception",
                _ => "ForwardingException",
            };
            assert_eq!(refusal.exception_type(), expected);
        }
    }
}
