//! What a request of the hub's endpoint asks for (reference section 1).
use alloc::string::String;
use alloc::vec::Vec;

use super::cors::{self, Cors, OriginPolicy};
use super::reply::{ALLOW_HUB, ALLOW_NEGOTIATE};
use super::{Head, HttpError, has_token, negotiate, reply, upgrade};
use crate::limits::HTTP_BODY_BYTES_MAX;

/// What the routing needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct HttpPolicy {
    /// e.g. `/dotnetify`; compared case-insensitively; a trailing slash in a request is tolerated.
    pub hub_path: String,
    pub origins: OriginPolicy,
    pub transports: Transports,
    /// Largest body of a POST that carries messages.
    pub post_body_bytes_max: u64,
}

/// The transports an endpoint offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transports {
    pub web_sockets: bool,
    pub server_sent_events: bool,
    pub long_polling: bool,
}

/// What to do with a request. Each but `Replied` is judged further by the caller, who then appends the reply named here, or `refuse`.
///
/// `Head::content_length` bytes of body follow every request; but for `Post`'s they are `HTTP_BODY_BYTES_MAX` at most and mean nothing.
/// `id` is never empty, and not checked in any way.
#[derive(Debug)]
pub enum Action<'h> {
    /// The whole reply has been appended to `out`; then keep the connection or close it.
    Replied { keep_alive: bool, refused: Option<HttpError> },
    /// Negotiate: the caller makes ids and calls `negotiate_reply`. `stateful_reconnect` is what the client asked for.
    Negotiate { version: u8, stateful_reconnect: bool, cors: Cors<'h>, keep_alive: bool },
    /// A valid WebSocket upgrade: `upgrade_reply`. Without `id` it is a client that skipped negotiate.
    Upgrade { accept: [u8; 28], id: Option<&'h str>, cors: Cors<'h> },
    /// An event stream on a connection that must exist: `event_stream_reply`, after which nothing more is read from this socket.
    EventStream { id: &'h str, cors: Cors<'h> },
    /// A poll on a connection that must exist: `poll_reply`, now or later.
    Poll { id: &'h str, cors: Cors<'h>, keep_alive: bool },
    /// Messages from the client: `post_reply` once the body has been read.
    Post { id: &'h str, cors: Cors<'h>, keep_alive: bool, body_bytes: u64 },
    /// The client ends its long polling: `delete_reply`.
    Delete { id: &'h str, cors: Cors<'h>, keep_alive: bool },
}

/// Routes one request of the hub's endpoint (reference: signalr-protocol sections 1, 3, 5, 7.1, 8, 9).
///
/// OPTIONS preflights on hub path and negotiate are answered 204 with the CORS headers; other methods 405, other paths 404.
/// Negotiate version errors are HTTP 200 with `{"error":...}` and count as `Replied`.
pub fn route<'h>(head: &Head<'h>, policy: &HttpPolicy, out: &mut Vec<u8>) -> Action<'h> {
    let cors = Cors::of(head, policy);
    let endpoint = Endpoint::of(head.path, &policy.hub_path);
    let keep_alive = head.keep_alive;
    let answered = match (endpoint, head.method) {
        (None, _) => Err(HttpError::NotFound),
        (Some(endpoint), method) if head.content_length > body_bytes_max(endpoint, method, policy) => {
            Err(HttpError::BodyTooLarge)
        }
        (Some(_), "OPTIONS") => cors::preflight(head, cors, out).map(|()| kept(head)),
        (Some(_), _) if cors == Cors::Forbidden => Err(HttpError::OriginForbidden),
        (Some(Endpoint::Negotiate), "POST") => Ok(match negotiate::version(head) {
            Ok(version) => {
                let stateful_reconnect = negotiate::asks_stateful_reconnect(head);
                Action::Negotiate { version, stateful_reconnect, cors, keep_alive }
            }
            Err(error) => {
                negotiate::error_reply(error, cors, keep_alive, out);
                kept(head)
            }
        }),
        (Some(Endpoint::Hub), "GET") => transport(head, cors, policy.transports),
        (Some(Endpoint::Hub), "POST") => {
            id(head).map(|id| Action::Post { id, cors, keep_alive, body_bytes: head.content_length })
        }
        (Some(Endpoint::Hub), "DELETE") => id(head).map(|id| Action::Delete { id, cors, keep_alive }),
        (Some(_), _) => Err(HttpError::MethodNotAllowed),
    };
    answered.unwrap_or_else(|error| {
        let allow = if endpoint == Some(Endpoint::Negotiate) { ALLOW_NEGOTIATE } else { ALLOW_HUB };
        // What follows a body too large to skip, or an upgrade that failed, is no request.
        let keep_alive = keep_alive && head.content_length <= HTTP_BODY_BYTES_MAX && !upgrade::is_meant(head);
        reply::refusal(error, allow, head.method != "HEAD", cors, keep_alive, out);
        Action::Replied { keep_alive, refused: Some(error) }
    })
}

/// The transport a GET means. The order is ASP.NET's (reference 1.1): Accept first, then the upgrade, and what is neither is a poll.
fn transport<'h>(head: &Head<'h>, cors: Cors<'h>, offered: Transports) -> Result<Action<'h>, HttpError> {
    if has_token(head.values("accept"), "text/event-stream") {
        let id = id(head)?;
        return if offered.server_sent_events {
            Ok(Action::EventStream { id, cors })
        } else {
            Err(HttpError::ServerSentEventsNotSupported)
        };
    }
    if upgrade::is_meant(head) {
        if !offered.web_sockets {
            return Err(HttpError::WebSocketsNotSupported);
        }
        return upgrade::check(head).map(|accept| Action::Upgrade { accept, id: id(head).ok(), cors });
    }
    let id = id(head)?;
    if !offered.long_polling {
        return Err(HttpError::LongPollingNotSupported);
    }
    Ok(Action::Poll { id, cors, keep_alive: head.keep_alive })
}

/// Reference 1.2: an empty id is a missing one.
fn id<'h>(head: &Head<'h>) -> Result<&'h str, HttpError> {
    head.query_value("id").filter(|id| !id.is_empty()).ok_or(HttpError::IdRequired)
}

fn body_bytes_max(endpoint: Endpoint, method: &str, policy: &HttpPolicy) -> u64 {
    match (endpoint, method) {
        (Endpoint::Hub, "POST") => policy.post_body_bytes_max,
        _ => HTTP_BODY_BYTES_MAX,
    }
}

fn kept<'h>(head: &Head<'_>) -> Action<'h> {
    Action::Replied { keep_alive: head.keep_alive, refused: None }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Hub,
    Negotiate,
}

impl Endpoint {
    /// Routing in ASP.NET ignores case (reference section 1), and clients join paths so that a slash may end them (3.1).
    fn of(path: &str, hub_path: &str) -> Option<Endpoint> {
        let trimmed = |path| str::strip_suffix(path, "/").unwrap_or(path);
        let hub_path = trimmed(hub_path);
        let (start, rest) = trimmed(path).split_at_checked(hub_path.len())?;
        if !start.eq_ignore_ascii_case(hub_path) {
            return None;
        }
        match rest {
            "" => Some(Endpoint::Hub),
            _ if rest.eq_ignore_ascii_case("/negotiate") => Some(Endpoint::Negotiate),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::parse_head;
    use std::format;
    use std::string::ToString;
    use std::vec;

    const APP: &str = "Origin: https://app.example.com\r\n";
    const EVIL: &str = "Origin: https://evil.example\r\n";
    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: G8E0B4IrBvqm6cOxwP/i+g==\r\n";
    const PREFLIGHT: &str = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-requested-with,x-signalr-user-agent\r\n";

    /// The action in words and the reply.
    fn ask(request: &str, headers: &str) -> (String, String) {
        let policy = HttpPolicy {
            hub_path: "/dotnetify".to_string(),
            origins: OriginPolicy { allowed: vec!["https://app.example.com".to_string()] },
        };
        let text = format!("{request} HTTP/1.1\r\nHost: proxy:5000\r\n{headers}\r\n");
        let head = parse_head(text.as_bytes()).ok().unwrap();
        let mut out = Vec::new();
        let words = match route(&head, &policy, &mut out) {
            Action::Replied { keep_alive: true, refused: None } => "replied".to_string(),
            Action::Replied { keep_alive: false, refused: Some(error) } => error.label().to_string(),
            Action::Negotiate { version, cors, keep_alive: true } => format!("negotiate {version} {cors:?}"),
            Action::Upgrade { id, .. } => format!("upgrade {id:?}"),
            other => format!("{other:?}"),
        };
        (words, String::from_utf8(out).unwrap())
    }

    #[track_caller]
    fn refused(request: &str, headers: &str, error: HttpError) -> String {
        let (words, reply) = ask(request, headers);
        assert_eq!(words, error.label());
        assert!(reply.starts_with(&format!("HTTP/1.1 {} ", error.status())), "{reply}");
        reply
    }

    #[test]
    fn the_npm_clients_way() {
        let (words, reply) = ask("POST /dotnetify/negotiate?negotiateVersion=1", "content-length: 0\r\n");
        assert_eq!((words.as_str(), reply.as_str()), ("negotiate 1 None", ""));
        assert_eq!(ask("GET /dotnetify?id=tok1", UPGRADE).0, r#"upgrade Some("tok1")"#);
        assert_eq!(ask("GET /dotnetify?access_token=x&ID=tok1", UPGRADE).0, r#"upgrade Some("tok1")"#);
        assert_eq!(ask("GET /dotnetify?id=", UPGRADE).0, "upgrade None");
        assert_eq!(ask("GET /dotnetify", UPGRADE).0, "upgrade None", "skipNegotiation");
    }

    #[test]
    fn paths_ignore_case_and_a_trailing_slash() {
        assert_eq!(ask("POST /DotNetify/NEGOTIATE/", "").0, "negotiate 0 None");
        assert_eq!(ask("GET /Dotnetify/", UPGRADE).0, "upgrade None");
        for path in [
            "/",
            "/dotnetif",
            "/dotnetifyx",
            "/dotnetify//negotiate",
            "/dotnetify/negotiate/x",
            "/x/dotnetify",
            "/dotnetify%2Fnegotiate",
        ] {
            refused(&format!("GET {path}"), UPGRADE, HttpError::NotFound);
        }
        refused("OPTIONS *", "", HttpError::NotFound);
        assert_eq!(Endpoint::of("/", "/"), Some(Endpoint::Hub));
        assert_eq!(Endpoint::of("/negotiate", "/"), Some(Endpoint::Negotiate));
        assert_eq!(Endpoint::of("/hub", "/hub/"), Some(Endpoint::Hub));
    }

    #[test]
    fn other_methods_are_405_with_allow() {
        for method in ["GET", "PUT", "DELETE"] {
            let reply = refused(&format!("{method} /dotnetify/negotiate"), "", HttpError::MethodNotAllowed);
            assert!(
                reply.contains("\r\nAllow: POST, OPTIONS\r\n") && reply.contains("\r\nContent-Type: text/plain\r\n"),
                "{reply}"
            );
        }
        for method in ["POST", "DELETE", "PATCH", "get"] {
            let reply = refused(&format!("{method} /dotnetify?id=x"), "", HttpError::MethodNotAllowed);
            assert!(reply.contains("\r\nAllow: GET, OPTIONS\r\n"), "{reply}");
        }
        let reply = refused("HEAD /dotnetify", "", HttpError::MethodNotAllowed);
        assert!(reply.ends_with("\r\n\r\n"), "no body for HEAD");
        refused("OPTIONS /dotnetify", "", HttpError::MethodNotAllowed);
    }

    #[test]
    fn a_get_without_upgrade_learns_that_only_websockets_is_offered() {
        for headers in ["", "Accept: text/event-stream\r\n", "Upgrade: h2c\r\n"] {
            let reply = refused("GET /dotnetify?id=tok", headers, HttpError::UpgradeRequired);
            assert!(reply.contains("Only the WebSockets transport is offered"), "{reply}");
        }
        refused("GET /dotnetify", "Upgrade: websocket\r\n", HttpError::UpgradeMalformed);
        let reply = refused("GET /dotnetify", &UPGRADE.replace("13", "8"), HttpError::WebSocketVersion);
        assert!(reply.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{reply}");
    }

    #[test]
    fn negotiate_version_errors_are_200() {
        let (words, reply) = ask("POST /dotnetify/negotiate?negotiateVersion=x", APP);
        assert_eq!(words, "replied");
        assert!(
            reply.starts_with("HTTP/1.1 200 OK\r\n")
                && reply.contains("Access-Control-Allow-Origin: https://app.example.com\r\n")
        );
    }

    #[test]
    fn preflights_of_allowed_origins_are_204() {
        for path in ["/dotnetify", "/dotnetify/negotiate?negotiateVersion=1"] {
            let (words, reply) = ask(&format!("OPTIONS {path}"), &format!("{APP}{PREFLIGHT}"));
            assert_eq!(words, "replied");
            assert_eq!(
                reply,
                "HTTP/1.1 204 No Content\r\nVary: Origin\r\nAccess-Control-Allow-Origin: https://app.example.com\r\n\
                Access-Control-Allow-Credentials: true\r\nAccess-Control-Allow-Methods: GET, POST, DELETE\r\n\
                Access-Control-Allow-Headers: x-requested-with,x-signalr-user-agent\r\nAccess-Control-Max-Age: 7200\r\n\
                Connection: keep-alive\r\n\r\n"
            );
        }
        let (_, reply) = ask("OPTIONS /dotnetify", &format!("{APP}Access-Control-Request-Headers: a\"b\r\n"));
        assert!(
            reply.contains("Allow-Headers: x-requested-with, x-signalr-user-agent, authorization, content-type\r\n"),
            "{reply}"
        );
    }

    #[test]
    fn origins_that_are_not_allowed_get_403_without_cors_headers() {
        for (request, headers) in [
            ("POST /dotnetify/negotiate", EVIL.to_string()),
            ("POST /dotnetify/negotiate", "Origin: null\r\n".to_string()),
            ("GET /dotnetify", format!("{EVIL}{UPGRADE}")),
            ("OPTIONS /dotnetify/negotiate", format!("{EVIL}{PREFLIGHT}")),
        ] {
            let reply = refused(request, &headers, HttpError::OriginForbidden);
            assert!(!reply.contains("Access-Control") && reply.contains("`allowed_origins`"), "{reply}");
        }
        assert_eq!(ask("GET /dotnetify", &format!("{APP}{UPGRADE}")).0, "upgrade None");
        assert_eq!(ask("GET /dotnetify", &format!("Origin: http://proxy:5000\r\n{UPGRADE}")).0, "upgrade None");
        assert_eq!(ask("POST /dotnetify/negotiate", APP).0, r#"negotiate 0 Allow("https://app.example.com")"#);
        // An error is readable to the page that may read the answer.
        assert!(refused("GET /elsewhere", APP, HttpError::NotFound).contains("Access-Control-Allow-Origin"));
    }
}
