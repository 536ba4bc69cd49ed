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

/// The transports that a connection may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transports {
    pub web_sockets: bool,
    pub server_sent_events: bool,
    pub long_polling: bool,
}

impl Transports {
    pub const ALL: Transports = Transports { web_sockets: true, server_sent_events: true, long_polling: true };
}

/// What to do with a request. Each but `Replied` is judged further by the caller, who then appends the reply named here, or `refuse`.
///
/// `Head::content_length` bytes of body follow every request; but for `Post`'s they are `HTTP_BODY_BYTES_MAX` at most and mean nothing.
/// `id` is never empty, and not checked in any way.
#[derive(Debug)]
pub enum Action<'h> {
    /// The whole reply has been appended to `out`; then keep the connection or close it. `cors` is for a caller who refuses for another
    /// reason that comes first.
    Replied { keep_alive: bool, refused: Option<HttpError>, cors: Cors<'h> },
    /// Negotiate: the caller makes ids and calls `negotiate_reply`. `stateful_reconnect` is what the client asked for.
    Negotiate { version: u8, stateful_reconnect: bool, cors: Cors<'h>, keep_alive: bool },
    /// A valid WebSocket upgrade: `upgrade_reply`. Without `id` it is a client that skipped negotiate, and WebSockets are offered. With one
    /// it may come back over a transport that has been withdrawn since it began; so may those of the next two. Whether the transport is
    /// offered is the caller's to ask where a connection begins.
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
///
/// `https`: did the client send it over TLS? `None` where nobody knows. An origin of the other scheme is another origin.
pub fn route<'h>(head: &Head<'h>, policy: &HttpPolicy, https: Option<bool>, out: &mut Vec<u8>) -> Action<'h> {
    let cors = Cors::of(head, policy, https);
    let endpoint = Endpoint::of(head.path, &policy.hub_path);
    let keep_alive = head.keep_alive;
    let answered = match (endpoint, head.method) {
        (None, _) => Err(HttpError::NotFound),
        (Some(endpoint), method) if head.content_length > body_bytes_max(endpoint, method, policy) => {
            Err(HttpError::BodyTooLarge)
        }
        (Some(_), "OPTIONS") => cors::preflight(head, cors, out).map(|()| kept(head, cors)),
        (Some(_), _) if cors == Cors::Forbidden => Err(HttpError::OriginForbidden),
        (Some(Endpoint::Negotiate), "POST") => Ok(match negotiate::version(head) {
            Ok(version) => {
                let stateful_reconnect = negotiate::asks_stateful_reconnect(head);
                Action::Negotiate { version, stateful_reconnect, cors, keep_alive }
            }
            Err(error) => {
                negotiate::error_reply(error, cors, keep_alive, out);
                kept(head, cors)
            }
        }),
        (Some(Endpoint::Hub), "GET") => transport(head, cors, policy.transports.web_sockets),
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
        Action::Replied { keep_alive, refused: Some(error), cors }
    })
}

/// The transport a GET means. The order is ASP.NET's (reference 1.1): Accept first, then the upgrade, and what is neither is a poll.
fn transport<'h>(head: &Head<'h>, cors: Cors<'h>, offers_web_sockets: bool) -> Result<Action<'h>, HttpError> {
    let id = id(head);
    if has_token(head.values("accept"), "text/event-stream") {
        return Ok(Action::EventStream { id: id?, cors });
    }
    if upgrade::is_meant(head) {
        return match (upgrade::check(head), id.ok()) {
            (Ok(accept), id) if offers_web_sockets || id.is_some() => Ok(Action::Upgrade { accept, id, cors }),
            (Err(error), _) if offers_web_sockets => Err(error),
            _ => Err(HttpError::WebSocketsNotSupported),
        };
    }
    Ok(Action::Poll { id: id?, cors, keep_alive: head.keep_alive })
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

fn kept<'h>(head: &Head<'_>, cors: Cors<'h>) -> Action<'h> {
    Action::Replied { keep_alive: head.keep_alive, refused: None, cors }
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

    const ALL: Transports = Transports { web_sockets: true, server_sent_events: true, long_polling: true };
    const EVENTS: &str = "Accept: text/event-stream\r\n";

    /// The action in words and the reply.
    fn ask(request: &str, headers: &str) -> (String, String) {
        ask_for(ALL, request, headers)
    }

    fn ask_for(transports: Transports, request: &str, headers: &str) -> (String, String) {
        ask_over(None, transports, request, headers)
    }

    fn ask_over(https: Option<bool>, transports: Transports, request: &str, headers: &str) -> (String, String) {
        let policy = HttpPolicy {
            hub_path: "/dotnetify".to_string(),
            origins: OriginPolicy { allowed: vec!["https://app.example.com".to_string()] },
            transports,
            post_body_bytes_max: 100_000,
        };
        let text = format!("{request} HTTP/1.1\r\nHost: proxy:5000\r\n{headers}\r\n");
        let head = parse_head(text.as_bytes()).ok().unwrap();
        let mut out = Vec::new();
        let words = match route(&head, &policy, https, &mut out) {
            Action::Replied { keep_alive, refused: None, .. } => {
                assert_eq!(keep_alive, head.keep_alive);
                "replied".to_string()
            }
            Action::Replied { keep_alive, refused: Some(error), .. } => {
                let said =
                    if keep_alive { &b"\r\nConnection: keep-alive\r\n"[..] } else { b"\r\nConnection: close\r\n" };
                assert!(memchr::memmem::find(&out, said).is_some(), "{}", out.escape_ascii());
                format!("{}{}", error.label(), if keep_alive { ", kept" } else { "" })
            }
            Action::Negotiate { version, stateful_reconnect, cors, keep_alive: true } => {
                format!("negotiate {version} {cors:?}{}", if stateful_reconnect { " stateful" } else { "" })
            }
            Action::Upgrade { id, cors, .. } => format!("upgrade {id:?} {cors:?}"),
            Action::EventStream { id, cors } => format!("events {id} {cors:?}"),
            Action::Poll { id, cors, keep_alive: true } => format!("poll {id} {cors:?}"),
            Action::Post { id, cors, keep_alive: true, body_bytes } => format!("post {id} {cors:?} {body_bytes}"),
            Action::Delete { id, cors, keep_alive: true } => format!("delete {id} {cors:?}"),
            other => format!("{other:?}"),
        };
        (words, String::from_utf8(out).unwrap())
    }

    /// A refusal that keeps the connection.
    #[track_caller]
    fn refused(request: &str, headers: &str, error: HttpError) -> String {
        let (words, reply) = ask(request, headers);
        assert_eq!(words, format!("{}, kept", error.label()));
        assert!(reply.starts_with(&format!("HTTP/1.1 {} ", error.status())), "{reply}");
        reply
    }

    /// A refusal that closes it.
    #[track_caller]
    fn closed(request: &str, headers: &str, error: HttpError) -> String {
        let (words, reply) = ask(request, headers);
        assert_eq!(words, error.label());
        reply
    }

    #[test]
    fn the_npm_clients_way() {
        let (words, reply) = ask("POST /dotnetify/negotiate?negotiateVersion=1", "content-length: 0\r\n");
        assert_eq!((words.as_str(), reply.as_str()), ("negotiate 1 None", ""));
        let (words, _) = ask("POST /dotnetify/negotiate?negotiateVersion=1&useStatefulReconnect=true", "");
        assert_eq!(words, "negotiate 1 None stateful");
        assert_eq!(ask("GET /dotnetify?id=tok1", UPGRADE).0, r#"upgrade Some("tok1") None"#);
        assert_eq!(ask("GET /dotnetify?access_token=x&ID=tok1", UPGRADE).0, r#"upgrade Some("tok1") None"#);
        assert_eq!(ask("GET /dotnetify?id=", UPGRADE).0, "upgrade None None");
        assert_eq!(ask("GET /dotnetify", UPGRADE).0, "upgrade None None", "skipNegotiation");
        // Event streams and long polling.
        assert_eq!(ask("GET /dotnetify?id=tok1", EVENTS).0, "events tok1 None");
        assert_eq!(ask("GET /dotnetify?id=tok1&_=1700000000000", "accept: */*\r\n").0, "poll tok1 None");
        assert_eq!(ask("POST /dotnetify?id=tok1", "content-length: 57\r\n").0, "post tok1 None 57");
        assert_eq!(ask("POST /dotnetify?id=tok1", "").0, "post tok1 None 0");
        assert_eq!(ask("DELETE /dotnetify?id=tok1", "").0, "delete tok1 None");
    }

    #[test]
    fn accept_is_looked_at_before_the_upgrade_and_the_rest_is_a_poll() {
        assert_eq!(ask("GET /dotnetify?id=t", &format!("{EVENTS}{UPGRADE}")).0, "events t None");
        assert_eq!(ask("GET /dotnetify?id=t", "Accept: text/html, Text/Event-Stream\r\n").0, "events t None");
        // One value equal to it: not a range that would take it.
        for accept in ["*/*", "text/*", "text/event-stream;q=0.9", "text/event-streams"] {
            assert_eq!(ask("GET /dotnetify?id=t", &format!("Accept: {accept}\r\n")).0, "poll t None", "{accept}");
        }
        // Reference 1.1: an upgrade whose headers were lost on the way becomes a poll, except where its key is still there.
        for poll in
            ["Connection: upgrade\r\n", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", "Upgrade: h2c\r\n"]
        {
            assert_eq!(ask("GET /dotnetify?id=t", poll).0, "poll t None", "{poll:?}");
        }
        closed("GET /dotnetify?id=t", "Sec-WebSocket-Key: G8E0B4IrBvqm6cOxwP/i+g==\r\n", HttpError::UpgradeMalformed);
        closed("GET /dotnetify?id=t", "Upgrade: websocket\r\n", HttpError::UpgradeMalformed);
        let reply = closed("GET /dotnetify", &UPGRADE.replace("13", "8"), HttpError::WebSocketVersion);
        assert!(reply.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{reply}");
    }

    #[test]
    fn only_a_websocket_needs_no_id() {
        for (request, headers) in [
            ("GET /dotnetify", EVENTS),
            ("GET /dotnetify?id=", ""),
            ("POST /dotnetify?x=id", ""),
            ("DELETE /dotnetify?id", ""),
        ] {
            let reply = refused(request, headers, HttpError::IdRequired);
            assert!(reply.ends_with("\r\n\r\nConnection ID required"), "{reply}");
        }
    }

    #[test]
    fn a_transport_that_is_not_offered_is_404_unless_it_may_be_of_somebody_who_has_it() {
        let none = Transports { web_sockets: false, server_sent_events: false, long_polling: false };
        let other_version = UPGRADE.replace("13", "8");
        for (request, headers) in
            [("GET /dotnetify", UPGRADE), ("GET /dotnetify?id=", UPGRADE), ("GET /dotnetify?id=t", &other_version)]
        {
            let (words, reply) = ask_for(none, request, &format!("{APP}{headers}"));
            assert_eq!(words, HttpError::WebSocketsNotSupported.label());
            assert!(
                reply.starts_with("HTTP/1.1 404 Not Found\r\n") && reply.contains("Access-Control-Allow-Origin: "),
                "{reply}"
            );
            assert!(reply.ends_with("\r\n\r\nWebSockets transport not supported by this end point type"), "{reply}");
        }
        for (headers, action) in
            [(UPGRADE, r#"upgrade Some("t") None"#), (EVENTS, "events t None"), ("", "poll t None")]
        {
            assert_eq!(ask_for(none, "GET /dotnetify?id=t", headers).0, action);
        }
    }

    #[test]
    fn bodies_are_bounded_by_what_they_are_for() {
        let length = |bytes: u64| format!("{APP}Content-Length: {bytes}\r\n");
        assert_eq!(
            ask("POST /dotnetify?id=t", &length(100_000)).0,
            r#"post t Allow("https://app.example.com") 100000"#
        );
        let most = length(HTTP_BODY_BYTES_MAX);
        for request in ["POST /dotnetify/negotiate", "GET /dotnetify?id=t", "DELETE /dotnetify?id=t"] {
            assert!(ask(request, &most).0.contains("app.example.com"), "{request}");
        }
        for (request, bytes) in [
            ("POST /dotnetify?id=t", 100_001),
            ("POST /dotnetify", u64::MAX),
            ("POST /dotnetify/negotiate", HTTP_BODY_BYTES_MAX + 1),
            ("GET /dotnetify?id=t", HTTP_BODY_BYTES_MAX + 1),
            ("DELETE /dotnetify?id=t", HTTP_BODY_BYTES_MAX + 1),
            ("OPTIONS /dotnetify", HTTP_BODY_BYTES_MAX + 1),
            ("PUT /dotnetify", HTTP_BODY_BYTES_MAX + 1),
        ] {
            let reply = closed(request, &length(bytes), HttpError::BodyTooLarge);
            assert!(reply.contains("Access-Control-Allow-Origin: https://app.example.com\r\n"), "{reply}");
        }
        // Whatever the reason, what is too long to be skipped is the connection's end.
        closed("POST /elsewhere", &length(HTTP_BODY_BYTES_MAX + 1), HttpError::NotFound);
        closed("POST /dotnetify", &length(HTTP_BODY_BYTES_MAX + 1), HttpError::IdRequired);
        refused("POST /dotnetify", &most, HttpError::IdRequired);
        closed("POST /dotnetify", "Connection: close\r\n", HttpError::IdRequired);
    }

    #[test]
    fn paths_ignore_case_and_a_trailing_slash() {
        assert_eq!(ask("POST /DotNetify/NEGOTIATE/", "").0, "negotiate 0 None");
        assert_eq!(ask("GET /Dotnetify/", UPGRADE).0, "upgrade None None");
        assert_eq!(ask("GET /Dotnetify/?Id=t", "").0, "poll t None");
        for path in [
            "/",
            "/dotnetif",
            "/dotnetifyx",
            "/dotnetify//negotiate",
            "/dotnetify/negotiate/x",
            "/x/dotnetify",
            "/dotnetify%2Fnegotiate",
        ] {
            refused(&format!("GET {path}"), "", HttpError::NotFound);
            closed(&format!("GET {path}"), UPGRADE, HttpError::NotFound);
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
        for method in ["PUT", "PATCH", "get", "post"] {
            let reply = refused(&format!("{method} /dotnetify?id=x"), "", HttpError::MethodNotAllowed);
            assert!(reply.contains("\r\nAllow: GET, POST, DELETE, OPTIONS\r\n"), "{reply}");
        }
        let reply = refused("HEAD /dotnetify", "", HttpError::MethodNotAllowed);
        assert!(reply.ends_with("\r\n\r\n"), "no body for HEAD");
        refused("OPTIONS /dotnetify", "", HttpError::MethodNotAllowed);
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
            ("GET /dotnetify?id=t", EVIL.to_string()),
            ("GET /dotnetify?id=t", format!("{EVIL}{EVENTS}")),
            ("POST /dotnetify?id=t", EVIL.to_string()),
            ("DELETE /dotnetify?id=t", EVIL.to_string()),
            ("OPTIONS /dotnetify/negotiate", format!("{EVIL}{PREFLIGHT}")),
        ] {
            let reply = refused(request, &headers, HttpError::OriginForbidden);
            assert!(!reply.contains("Access-Control") && reply.contains("`allowed_origins`"), "{reply}");
        }
        closed("GET /dotnetify", &format!("{EVIL}{UPGRADE}"), HttpError::OriginForbidden);
        // Every later answer can carry the headers.
        let app = r#"Allow("https://app.example.com")"#;
        assert_eq!(ask("GET /dotnetify", &format!("{APP}{UPGRADE}")).0, format!("upgrade None {app}"));
        assert_eq!(ask("GET /dotnetify?id=t", &format!("{APP}{EVENTS}")).0, format!("events t {app}"));
        assert_eq!(ask("GET /dotnetify?id=t", APP).0, format!("poll t {app}"));
        assert_eq!(ask("POST /dotnetify?id=t", APP).0, format!("post t {app} 0"));
        assert_eq!(ask("DELETE /dotnetify?id=t", APP).0, format!("delete t {app}"));
        assert_eq!(ask("POST /dotnetify/negotiate", APP).0, format!("negotiate 0 {app}"));
        assert_eq!(ask("GET /dotnetify", &format!("Origin: http://proxy:5000\r\n{UPGRADE}")).0, "upgrade None None");
        // The node's own name, of the scheme that the request came by and of the other.
        let own = "Origin: http://proxy:5000\r\n";
        assert_eq!(ask_over(Some(false), ALL, "POST /dotnetify/negotiate", own).0, "negotiate 0 None");
        assert_eq!(ask_over(Some(true), ALL, "POST /dotnetify/negotiate", own).0, "origin_forbidden, kept");
        // An error is readable to the page that may read the answer.
        assert!(refused("GET /elsewhere", APP, HttpError::NotFound).contains("Access-Control-Allow-Origin"));
    }
}
