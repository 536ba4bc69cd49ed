//! What a request of the hub's endpoint asks for (reference section 1).
use alloc::string::String;
use alloc::vec::Vec;

use super::cors::{self, Cors, OriginPolicy};
use super::{Head, HttpError, negotiate, reply, upgrade};

/// What the routing needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct HttpPolicy {
    /// e.g. `/dotnetify`; compared case-insensitively; a trailing slash in a request is tolerated.
    pub hub_path: String,
    pub origins: OriginPolicy,
}

/// What to do with a request.
#[derive(Debug)]
pub enum Action<'h> {
    /// The whole reply has been appended to `out`; then keep the connection or close it.
    Replied { keep_alive: bool, refused: Option<HttpError> },
    /// Negotiate: the caller makes ids and calls `negotiate_reply`.
    Negotiate { version: u8, cors: Cors<'h>, keep_alive: bool },
    /// A valid WebSocket upgrade: the caller verifies `id` (if any), then calls `upgrade_reply` or `refuse`.
    Upgrade { accept: [u8; 28], id: Option<&'h str> },
}

/// Routes one request of the hub's endpoint (reference: signalr-protocol sections 1, 3, 5, 7.1):
/// OPTIONS preflight on hub path and negotiate -> 204 with the CORS headers; POST negotiate; other methods 405;
/// GET hub path + upgrade -> Upgrade; other paths 404.
/// Negotiate version errors are HTTP 200 with `{"error":...}` and count as `Replied`.
pub fn route<'h>(head: &Head<'h>, policy: &HttpPolicy, out: &mut Vec<u8>) -> Action<'h> {
    let cors = Cors::of(head, policy);
    let endpoint = Endpoint::of(head.path, &policy.hub_path);
    let answered = match (endpoint, head.method) {
        (None, _) => Err(HttpError::NotFound),
        (Some(_), "OPTIONS") => cors::preflight(head, cors, out).map(|()| kept(head)),
        (Some(_), _) if cors == Cors::Forbidden => Err(HttpError::OriginForbidden),
        (Some(Endpoint::Negotiate), "POST") => Ok(match negotiate::version(head) {
            Ok(version) => Action::Negotiate { version, cors, keep_alive: head.keep_alive },
            Err(error) => {
                negotiate::error_reply(error, cors, head.keep_alive, out);
                kept(head)
            }
        }),
        // Section 1.1 looks at Accept first; what it would find there is not offered, so only the upgrade counts.
        (Some(Endpoint::Hub), "GET") if !upgrade::is_meant(head) => Err(HttpError::UpgradeRequired),
        // Section 1.2: an empty id is a missing one.
        (Some(Endpoint::Hub), "GET") => upgrade::check(head)
            .map(|accept| Action::Upgrade { accept, id: head.query_value("id").filter(|id| !id.is_empty()) }),
        (Some(_), _) => Err(HttpError::MethodNotAllowed),
    };
    answered.unwrap_or_else(|error| {
        let allow = if endpoint == Some(Endpoint::Negotiate) { "POST, OPTIONS" } else { "GET, OPTIONS" };
        reply::refusal(error, allow, head.method != "HEAD", cors, out);
        Action::Replied { keep_alive: false, refused: Some(error) }
    })
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
