//! Negotiate (reference section 3): the version asked for and the answer.
use alloc::vec::Vec;

use super::{Cors, Head, Transports, reply};

/// The newest version of negotiate there is.
const VERSION_MAX: i32 = 1;

/// What negotiate answers.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated<'a> {
    /// 0 or 1, as `Action::Negotiate` says.
    pub version: u8,
    pub connection_id: &'a str,
    /// In version 0 id and token are one string (reference section 2), so it is passed as both and only `connectionId` is written.
    pub token: &'a str,
    pub transports: Transports,
    /// TS clients fail to start when this is true and they had not asked for it (reference 3.5).
    pub stateful_reconnect: bool,
}

/// Appends the 200 reply of negotiate, members in ASP.NET's order (reference 3.2).
pub fn negotiate_reply(negotiated: &Negotiated<'_>, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    let Negotiated { version, connection_id, token, transports, stateful_reconnect } = *negotiated;
    // Both are ours, and base64url (reference section 2), so nothing needs escaping.
    debug_assert!(
        connection_id.bytes().chain(token.bytes()).all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
    );
    debug_assert!(version > 0 || connection_id == token);

    let mut content = Vec::with_capacity(320 + connection_id.len() + token.len());
    content.push(b'{');
    if stateful_reconnect {
        content.extend_from_slice(br#""useStatefulReconnect":true,"#);
    }
    content.extend_from_slice(br#""negotiateVersion":"#);
    reply::decimal(version.into(), &mut content);
    content.extend_from_slice(br#","connectionId":""#);
    content.extend_from_slice(connection_id.as_bytes());
    if version > 0 {
        content.extend_from_slice(br#"","connectionToken":""#);
        content.extend_from_slice(token.as_bytes());
    }
    content.extend_from_slice(br#"","availableTransports":["#);
    // Clients try them in the order given.
    let mut separator = "";
    for (offered, transport) in [
        (transports.web_sockets, r#"{"transport":"WebSockets","transferFormats":["Text","Binary"]}"#),
        (transports.server_sent_events, r#"{"transport":"ServerSentEvents","transferFormats":["Text"]}"#),
        (transports.long_polling, r#"{"transport":"LongPolling","transferFormats":["Text","Binary"]}"#),
    ] {
        if offered {
            content.extend_from_slice(separator.as_bytes());
            content.extend_from_slice(transport.as_bytes());
            separator = ",";
        }
    }
    content.extend_from_slice(b"]}");
    write(&content, cors, keep_alive, out);
}

/// Appends the error form (reference section 3.4): status 200, `error` the only member.
pub(super) fn error_reply(error: VersionError, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    let mut content = Vec::with_capacity(128);
    content.extend_from_slice(br#"{"error":""#);
    match error {
        VersionError::NotAnInteger => {
            content.extend_from_slice(b"The client requested a non-integer protocol version.")
        }
        VersionError::TooOld(version) => {
            content.extend_from_slice(b"The client requested version '-");
            reply::decimal(version.unsigned_abs().into(), &mut content);
            content.extend_from_slice(b"', but the server does not support this version.");
        }
    }
    content.extend_from_slice(br#""}"#);
    write(&content, cors, keep_alive, out);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VersionError {
    NotAnInteger,
    /// Below 0, the smallest version there is.
    TooOld(i32),
}

/// Reads `negotiateVersion` as ASP.NET does (reference section 3.1): missing is 0, more than 1 is 1.
pub(super) fn version(head: &Head<'_>) -> Result<u8, VersionError> {
    let Some(value) = head.query_value("negotiateVersion") else { return Ok(0) };
    match value.parse::<i32>() {
        Err(_) => Err(VersionError::NotAnInteger),
        Ok(version) if version < 0 => Err(VersionError::TooOld(version)),
        Ok(version) => Ok(version.min(VERSION_MAX) as u8),
    }
}

/// Does the client ask for stateful reconnect? A .NET boolean (reference 3.1); C# clients may say it twice (section 16.12).
pub(super) fn asks_stateful_reconnect(head: &Head<'_>) -> bool {
    head.query_value("useStatefulReconnect").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn write(content: &[u8], cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    reply::status_line(200, out);
    cors.write(out);
    reply::connection(keep_alive, out);
    reply::content_headers("application/json", Some(content.len()), out);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    const ALL: Transports = Transports { web_sockets: true, server_sent_events: true, long_polling: true };
    const V1: Negotiated<'_> =
        Negotiated { version: 1, connection_id: "id22", token: "tok22", transports: ALL, stateful_reconnect: false };

    fn reply(negotiated: Negotiated<'_>, cors: Cors<'_>, keep_alive: bool) -> (String, String) {
        let mut out = Vec::new();
        negotiate_reply(&negotiated, cors, keep_alive, &mut out);
        let reply = String::from_utf8(out).unwrap();
        let (head, content) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&std::format!("\r\nContent-Length: {}", content.len())), "{head}");
        (head.into(), content.into())
    }

    #[test]
    fn version_1_has_id_and_token_in_aspnets_order() {
        let (head, content) = reply(V1, Cors::None, true);
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nVary: Origin\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 281"
        );
        // The example of reference 3.2.
        assert_eq!(
            content,
            r#"{"negotiateVersion":1,"connectionId":"id22","connectionToken":"tok22","availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]},{"transport":"ServerSentEvents","transferFormats":["Text"]},{"transport":"LongPolling","transferFormats":["Text","Binary"]}]}"#
        );
    }

    #[test]
    fn version_0_has_one_id() {
        let negotiated = Negotiated { version: 0, connection_id: "tok22", ..V1 };
        let (head, content) = reply(negotiated, Cors::Allow("https://app.example.com"), false);
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nVary: Origin\r\nAccess-Control-Allow-Origin: https://app.example.com\r\n\
            Access-Control-Allow-Credentials: true\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 256"
        );
        assert!(
            content.starts_with(r#"{"negotiateVersion":0,"connectionId":"tok22","availableTransports":[{"#),
            "{content}"
        );
    }

    #[test]
    fn what_is_not_offered_is_not_named() {
        let transports = |web_sockets, server_sent_events, long_polling| {
            let transports = Transports { web_sockets, server_sent_events, long_polling };
            let (_, content) = reply(Negotiated { transports, ..V1 }, Cors::None, true);
            content.split_once(r#""availableTransports":"#).unwrap().1.replace(r#"{"transport":"#, "")
        };
        assert_eq!(transports(false, false, false), "[]}");
        assert_eq!(transports(true, false, false), r#"["WebSockets","transferFormats":["Text","Binary"]}]}"#);
        assert_eq!(
            transports(false, true, true),
            r#"["ServerSentEvents","transferFormats":["Text"]},"LongPolling","transferFormats":["Text","Binary"]}]}"#
        );
    }

    #[test]
    fn stateful_reconnect_comes_first_and_only_when_true() {
        let (_, content) = reply(Negotiated { stateful_reconnect: true, ..V1 }, Cors::None, true);
        assert!(content.starts_with(r#"{"useStatefulReconnect":true,"negotiateVersion":1,"#), "{content}");
        let asks = |query: &str| {
            let text = std::format!("POST /hub/negotiate?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
            asks_stateful_reconnect(&super::super::parse_head(text.as_bytes()).ok().unwrap())
        };
        for yes in [
            "useStatefulReconnect=true",
            "a&USEstatefulreconnect=True",
            "useStatefulReconnect=true&useStatefulReconnect=true",
        ] {
            assert!(asks(yes), "{yes}");
        }
        for no in ["", "useStatefulReconnect", "useStatefulReconnect=1", "useStatefulReconnect=false"] {
            assert!(!asks(no), "{no}");
        }
    }

    #[test]
    fn versions_are_read_as_aspnet_reads_them() {
        let read = |query: &str| {
            let text = std::format!("POST /hub/negotiate?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
            version(&super::super::parse_head(text.as_bytes()).ok().unwrap())
        };
        assert_eq!(read(""), Ok(0));
        assert_eq!(read("negotiateVersion=0"), Ok(0));
        assert_eq!(read("a=b&NegotiateVersion=1&useStatefulReconnect=true"), Ok(1));
        assert_eq!(read("negotiateVersion=2147483647"), Ok(1));
        assert_eq!(read("negotiateVersion=-1"), Err(VersionError::TooOld(-1)));
        for value in ["", "one", "1.0", "2147483648", "1,1"] {
            assert_eq!(read(&std::format!("negotiateVersion={value}")), Err(VersionError::NotAnInteger), "{value:?}");
        }
    }

    #[test]
    fn version_errors_have_status_200_and_aspnets_words() {
        let mut out = Vec::new();
        error_reply(VersionError::TooOld(i32::MIN), Cors::None, true, &mut out);
        let reply = String::from_utf8(out).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"));
        let expected =
            r#"{"error":"The client requested version '-2147483648', but the server does not support this version."}"#;
        assert!(reply.ends_with(expected), "{reply}");
        let mut out = Vec::new();
        error_reply(VersionError::NotAnInteger, Cors::None, true, &mut out);
        assert!(out.ends_with(br#"{"error":"The client requested a non-integer protocol version."}"#));
    }
}
