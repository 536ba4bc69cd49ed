//! The app server's answer to negotiate (reference section 3). Only its JSON: the reply around it is `proto::http`'s.
use alloc::string::String;
use alloc::vec::Vec;

use super::{MessageError, Span, json};

/// The app server's answer to negotiate, as a lane needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NegotiateAnswer {
    Connect { token: String },
    Redirect { url: String, access_token: Option<String> },
    Error(String),
}

/// Reads the JSON body of a negotiate answer (reference section 3.5: unknown members skipped, any order; WebSockets must be
/// among the transports). Err carries a sentence for the log.
pub fn parse_negotiate_answer(body: &[u8]) -> Result<NegotiateAnswer, String> {
    // The tools below read valid JSON only. The hub message scanner validates the whole text before it misses a `type`,
    // which no negotiate answer has.
    let valid =
        core::str::from_utf8(body).is_ok() && matches!(json::parse(body), Ok(_) | Err(MessageError::MissingType));
    if !valid {
        return Err("The answer to negotiate is not a JSON object.".into());
    }
    let mut answer = Members::default();
    json::members(body, |name, value| answer.take(unescaped(name.of(body)).as_str(), value.of(body)));

    if let Some(error) = answer.error {
        return Ok(NegotiateAnswer::Error(error));
    }
    if answer.is_classic {
        return Err("The server speaks classic ASP.NET SignalR, not ASP.NET Core SignalR.".into());
    }
    if let Some(url) = answer.url {
        return Ok(NegotiateAnswer::Redirect { url, access_token: answer.access_token });
    }
    if !answer.has_web_sockets {
        return Err("The answer to negotiate does not offer the WebSockets transport.".into());
    }
    // Section 3.5: version 0 knows one id only, and a missing version is 0.
    let (token, name) = if answer.version > 0 {
        (answer.connection_token, "connectionToken")
    } else {
        (answer.connection_id, "connectionId")
    };
    match token {
        Some(token) if !token.is_empty() => Ok(NegotiateAnswer::Connect { token }),
        _ => Err(alloc::format!("The answer to negotiate has no {name}.")),
    }
}

/// The members of a negotiate answer that count. Of duplicates the last wins, as in the parsers of the clients.
#[derive(Default)]
struct Members {
    version: u64,
    connection_id: Option<String>,
    connection_token: Option<String>,
    url: Option<String>,
    access_token: Option<String>,
    error: Option<String>,
    is_classic: bool,
    has_web_sockets: bool,
}

impl Members {
    fn take(&mut self, name: &str, value: &[u8]) {
        match name {
            "negotiateVersion" => self.version = number(value).unwrap_or(0),
            "connectionId" => self.connection_id = string(value),
            "connectionToken" => self.connection_token = string(value),
            "url" => self.url = string(value),
            "accessToken" => self.access_token = string(value),
            "error" => self.error = string(value),
            "ProtocolVersion" => self.is_classic = true,
            "availableTransports" => self.has_web_sockets = has_web_sockets(value),
            _ => {}
        }
    }
}

fn has_web_sockets(transports: &[u8]) -> bool {
    let mut found = false;
    json::elements(transports, |element: Span| {
        let entry = element.of(transports);
        json::members(entry, |name, value| {
            found |=
                unescaped(name.of(entry)) == "transport" && string(value.of(entry)).as_deref() == Some("WebSockets");
        });
    });
    found
}

/// The text of a JSON string; None for any other value, null among them.
fn string(value: &[u8]) -> Option<String> {
    match value {
        [b'"', contents @ .., b'"'] => Some(unescaped(contents)),
        _ => None,
    }
}

fn unescaped(contents: &[u8]) -> String {
    let mut text = Vec::with_capacity(contents.len());
    json::unescape(contents, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A version is a plain number; anything else counts as none given.
fn number(value: &[u8]) -> Option<u64> {
    core::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn answers_to_negotiate() {
        let connect = |token: &str| Ok(NegotiateAnswer::Connect { token: token.into() });
        let transports = r#""availableTransports":[{"transport":"LongPolling","transferFormats":[]},{"transferFormats":["Text"],"transport":"WebSockets"}]"#;
        let parse = |members: &str| parse_negotiate_answer(format!("{{{members}}}").as_bytes());
        assert_eq!(
            parse(&format!(r#""negotiateVersion":1,"connectionId":"i","connectionToken":"t",{transports}"#)),
            connect("t")
        );
        assert_eq!(
            parse(&format!(
                r#"{transports},"x":{{"y":[1]}},"connectionToken":"t\u002D","connectionId":"i","negotiateVersion":1"#
            )),
            connect("t-")
        );
        assert_eq!(
            parse(&format!(r#""connectionId":"i","connectionToken":"t",{transports}"#)),
            connect("i"),
            "no version is version 0"
        );
        assert_eq!(
            parse(r#""url":"https:\/\/other/hub","accessToken":"a","availableTransports":[]"#),
            Ok(NegotiateAnswer::Redirect { url: "https://other/hub".into(), access_token: Some("a".into()) })
        );
        assert_eq!(parse(r#""error":"no \"way\"""#), Ok(NegotiateAnswer::Error("no \"way\"".into())));
        for (members, sentence) in [
            (
                r#""negotiateVersion":1,"connectionId":"i","connectionToken":"t","availableTransports":[{"transport":"LongPolling"}]"#,
                "WebSockets",
            ),
            (&format!(r#""negotiateVersion":1,"connectionId":"i",{transports}"#), "no connectionToken"),
            (transports, "no connectionId"),
            (r#""ProtocolVersion":"1.5""#, "classic"),
            ("", "WebSockets"),
            (r#""connectionId":"i",,"#, "not a JSON object"),
        ] {
            let error = parse(members).expect_err(members);
            assert!(error.contains(sentence), "{error}");
        }
        for body in [&b""[..], b"[]", b"null", b"<html>", b"{\"a\":\"\xff\"}"] {
            assert!(parse_negotiate_answer(body).is_err());
        }
    }
}
