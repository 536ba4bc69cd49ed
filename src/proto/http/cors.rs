//! Origins (reference section 5): which of them may use the hub, and the headers that say so.
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::head::without_prefix;
use super::{Head, HttpError, HttpPolicy};

/// Which origins may open a WebSocket, and read the answers of negotiate and of the other transports across origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    /// Exact origins, e.g. `https://app.example.com` (scheme, host, port; compared case-insensitively). Empty: same-origin
    /// and no-origin requests only. A request without Origin is always let through; so is one whose Origin's host:port equals Host,
    /// and its scheme that of the request where that is known: a load balancer in front has to pass Host on, or the site's own
    /// origin belongs on this list.
    pub allowed: Vec<String>,
}

/// CORS decision for a request: what headers the reply carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cors<'h> {
    /// No Origin, or same origin: no CORS headers (but `Vary: Origin` when an allow-list is configured).
    None,
    /// Exact origin echoed, credentials allowed, `Vary: Origin`.
    Allow(&'h str),
    /// An Origin that is not allowed: no CORS headers; whatever it asks of the hub is refused with 403.
    Forbidden,
}

/// A [`Cors`] that outlives its request's head: a poll is answered long after its head has left the receive buffer. What is not
/// allowed has no headers, and so is kept like no origin at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedCors(Option<Box<str>>);

impl OwnedCors {
    pub fn as_cors(&self) -> Cors<'_> {
        self.0.as_deref().map_or(Cors::None, Cors::Allow)
    }
}

impl<'h> Cors<'h> {
    /// Judges a request. WebSockets know no CORS, so this check is all that stands between a hub that trusts cookies and
    /// a page of somebody else's (RFC 6455 §10.2). `https` as for [`super::route`].
    pub(super) fn of(head: &Head<'h>, policy: &HttpPolicy, https: Option<bool>) -> Cors<'h> {
        let origin = match head.single("origin") {
            Ok(None) => return Cors::None,
            Ok(Some(origin)) => origin,
            Err(_) => return Cors::Forbidden,
        };
        // What is echoed into a header must be plain text; an origin is (RFC 6454 §6.2).
        let Ok(origin) = core::str::from_utf8(origin) else { return Cors::Forbidden };
        if !origin.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Cors::Forbidden;
        }
        let host = head.header("host").and_then(|host| core::str::from_utf8(host).ok());
        if host.is_some_and(|host| is_same_origin(origin, host, https)) {
            return Cors::None;
        }
        let origin_elided = without_default_port(origin);
        let listed = policy
            .origins
            .allowed
            .iter()
            .any(|allowed| without_default_port(allowed).eq_ignore_ascii_case(origin_elided));
        if listed { Cors::Allow(origin) } else { Cors::Forbidden }
    }

    pub fn to_owned_cors(self) -> OwnedCors {
        OwnedCors(match self {
            Cors::Allow(origin) => Some(origin.into()),
            Cors::None | Cors::Forbidden => None,
        })
    }

    /// The headers of any reply but a preflight's. `Vary: Origin` always stands: what a cache may hold for one origin is
    /// wrong for the next also when this request had none.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Vary: Origin\r\n");
        if let Cors::Allow(origin) = self {
            // Never `*`: TS clients send credentials by default, and browsers then insist on the exact origin.
            out.extend_from_slice(b"Access-Control-Allow-Origin: ");
            out.extend_from_slice(origin.as_bytes());
            out.extend_from_slice(b"\r\nAccess-Control-Allow-Credentials: true\r\n");
        }
    }
}

/// Appends the reply to a preflight (Fetch standard, "CORS-preflight fetch") from an allowed origin.
pub(super) fn preflight(head: &Head<'_>, cors: Cors<'_>, out: &mut Vec<u8>) -> Result<(), HttpError> {
    match cors {
        Cors::Allow(_) => {}
        Cors::Forbidden => return Err(HttpError::OriginForbidden),
        // Without CORS, OPTIONS is a method like any other to ASP.NET (reference section 1).
        Cors::None => return Err(HttpError::MethodNotAllowed),
    }
    out.extend_from_slice(b"HTTP/1.1 204 No Content\r\n");
    cors.write(out);
    // DELETE ends a long poll; without it that fails quietly in the client (reference section 5).
    out.extend_from_slice(b"Access-Control-Allow-Methods: GET, POST, DELETE\r\nAccess-Control-Allow-Headers: ");
    match head.header("access-control-request-headers") {
        Some(requested) if is_name_list(requested) => out.extend_from_slice(requested),
        _ => out.extend_from_slice(b"x-requested-with, x-signalr-user-agent, authorization, content-type"),
    }
    // Two hours is the most Chromium keeps.
    out.extend_from_slice(b"\r\nAccess-Control-Max-Age: 7200\r\n");
    super::reply::connection(head.keep_alive, out);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Does the origin's authority equal Host, both without the scheme's default port, and its scheme that of the request
/// (RFC 6454 §5)? A scheme that nobody knows cannot be compared: TLS may have ended at a load balancer that does not say so. `null`
/// has no authority and is never the same.
fn is_same_origin(origin: &str, host: &str, https: Option<bool>) -> bool {
    let (is_https, authority, port) = match (without_prefix(origin, "http://"), without_prefix(origin, "https://")) {
        (Some(authority), _) => (false, authority, ":80"),
        (_, Some(authority)) => (true, authority, ":443"),
        _ => return false,
    };
    if https.is_some_and(|https| https != is_https) {
        return false;
    }
    let elided = |text| str::strip_suffix(text, port).unwrap_or(text);
    !authority.is_empty() && elided(authority).eq_ignore_ascii_case(elided(host))
}

fn without_default_port(origin: &str) -> &str {
    let port = if without_prefix(origin, "https://").is_some() { ":443" } else { ":80" };
    origin.strip_suffix(port).unwrap_or(origin)
}

/// A list of header names and nothing else: it is echoed into our reply.
fn is_name_list(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, ".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::Transports;
    use std::vec;

    #[test]
    fn what_is_kept_says_the_same() {
        for cors in [Cors::None, Cors::Allow("https://app.example.com"), Cors::Forbidden] {
            let (mut said, mut kept) = (vec![], vec![]);
            cors.write(&mut said);
            cors.to_owned_cors().as_cors().write(&mut kept);
            assert_eq!(said, kept, "{cors:?}");
        }
        assert_eq!(size_of::<OwnedCors>(), 16);
    }

    #[test]
    fn same_origin_is_host_and_port_with_the_default_elided() {
        for (origin, host) in [
            ("https://app.example.com", "app.example.com"),
            ("https://APP.example.com", "app.EXAMPLE.com:443"),
            ("http://a:80", "a"),
            ("http://a", "a:80"),
            ("http://a:5000", "a:5000"),
            ("https://[::1]:8443", "[::1]:8443"),
        ] {
            assert!(is_same_origin(origin, host, None), "{origin} {host}");
        }
        for (origin, host) in [
            ("null", "null"),
            ("https://a", "a:80"),
            ("http://a", "a:443"),
            ("http://a:5000", "a"),
            ("http://a.evil.com", "a"),
            ("http://evil-a", "a"),
            ("ftp://a", "a"),
            ("http://", ""),
            ("a", "a"),
        ] {
            for https in [None, Some(true), Some(false)] {
                assert!(!is_same_origin(origin, host, https), "{origin} {host} {https:?}");
            }
        }
    }

    #[test]
    fn a_scheme_that_is_known_is_compared() {
        for (https, origin, host) in [
            (true, "https://a", "a"),
            (true, "HTTPS://a:443", "a"),
            (true, "https://a", "a:443"),
            (true, "https://a:80", "a:80"),
            (false, "http://a", "a"),
            (false, "http://a:80", "a"),
            (false, "http://a", "a:80"),
            (false, "http://a:443", "a:443"),
        ] {
            assert!(is_same_origin(origin, host, Some(https)), "{origin} {host}");
            assert!(!is_same_origin(origin, host, Some(!https)), "{origin} {host}");
        }
    }

    #[test]
    fn origins_are_judged_by_the_list() {
        let policy = HttpPolicy {
            hub_path: "/hub".into(),
            origins: OriginPolicy { allowed: vec!["https://App.example.com".into(), "http://b:8080".into()] },
            transports: Transports { web_sockets: true, server_sent_events: true, long_polling: true },
            post_body_bytes_max: 0,
        };
        let judge_over = |https, headers: &str| {
            let text = std::format!("GET /hub HTTP/1.1\r\nHost: proxy\r\n{headers}\r\n");
            let head = super::super::parse_head(text.as_bytes()).ok().unwrap();
            std::format!("{:?}", Cors::of(&head, &policy, https))
        };
        let judge = |headers: &str| judge_over(None, headers);
        assert_eq!(judge(""), "None");
        assert_eq!(judge("Origin: https://proxy\r\n"), "None");
        assert_eq!(judge("Origin: https://app.example.com\r\n"), r#"Allow("https://app.example.com")"#);
        assert_eq!(judge("Origin: https://app.example.com:443\r\n"), r#"Allow("https://app.example.com:443")"#);
        assert_eq!(judge("Origin: http://b:8080\r\n"), r#"Allow("http://b:8080")"#);
        for forbidden in [
            "null",
            "http://app.example.com",
            "http://b",
            "https://b:8080",
            "https://app.example.com.evil",
            "",
            "*",
            "\u{e9}",
        ] {
            assert_eq!(judge(&std::format!("Origin: {forbidden}\r\n")), "Forbidden", "{forbidden:?}");
        }
        assert_eq!(judge("Origin: https://proxy\r\nOrigin: https://app.example.com\r\n"), "Forbidden", "two");
        // Of the other scheme the node's own name is another origin, which may stand on the list; the list has schemes of its own.
        assert_eq!(judge_over(Some(true), "Origin: https://proxy\r\n"), "None");
        assert_eq!(judge_over(Some(true), "Origin: http://proxy\r\n"), "Forbidden");
        assert_eq!(judge_over(Some(false), "Origin: https://proxy\r\n"), "Forbidden");
        assert_eq!(judge_over(Some(true), "Origin: http://b:8080\r\n"), r#"Allow("http://b:8080")"#);
        for https in [None, Some(true), Some(false)] {
            assert_eq!(judge_over(https, ""), "None", "{https:?}");
        }
    }
}
