//! `$fwdConnContext` as dotNetify's `ConnectionContext` class reads it: what makes its deserializer throw fails here too (contract 2.3).
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;

use super::bindings::{ConnectionId, HubId};
use super::clock;
use super::protocol::Argument;

pub const KEY: &str = "$fwdConnContext";

/// The client a forwarded message comes from.
pub struct Origin {
    pub connection_id: ConnectionId,
    pub hub_id: HubId,
    /// The whole text, for the binding.
    pub text: String,
}

/// The text is not JSON, or has a member of a type .NET does not take.
#[derive(Debug, PartialEq, Eq)]
pub struct BadContext;

/// Reads the context in an `Invoke`'s metadata. `None` where there is none: then the lane itself is the client.
pub fn origin(metadata: &[(String, Argument)], own_hub_id: &Arc<str>) -> Result<Option<Origin>, BadContext> {
    // A later key of the same name wins, as in a .NET dictionary.
    let text = match metadata.iter().rev().find(|(key, _)| key == KEY) {
        None | Some((_, Argument::Null)) => return Ok(None),
        Some((_, Argument::Text(text) | Argument::Json(text))) => text,
        Some((_, Argument::Dictionary(_))) => return Err(BadContext),
    };
    let context: Option<ConnectionContext> = serde_json::from_str(text).map_err(|_| BadContext)?;
    let Some(context) = context else { return Ok(None) };
    if context.time_stamp.is_some_and(|stamp| clock::parse(&stamp).is_none()) {
        return Err(BadContext);
    }
    // Without an id the getter of the binding dictionary would throw on a null key.
    let connection_id = context.connection_id.ok_or(BadContext)?.into();
    let hub_id = match context.hub_id {
        Some(hub_id) => hub_id.map(Into::into),
        None => Some(own_hub_id.clone()),
    };
    Ok(Some(Origin { connection_id, hub_id, text: text.clone() }))
}

/// Names are case-sensitive; unknown members are skipped; absent and null differ for some.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConnectionContext {
    /// Outer `None`: absent, which means the app server's own id. Inner `None`: null.
    #[serde(default, deserialize_with = "present")]
    hub_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "not_null")]
    time_stamp: Option<String>,
    connection_id: Option<String>,
    #[serde(rename = "HttpConnection")]
    _http_connection: Option<HttpConnection>,
    #[serde(rename = "HttpRequestHeaders")]
    _http_request_headers: Option<HttpRequestHeaders>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HttpConnection {
    #[serde(rename = "LocalPort", default, deserialize_with = "not_null")]
    _local_port: Option<i32>,
    #[serde(rename = "RemotePort", default, deserialize_with = "not_null")]
    _remote_port: Option<i32>,
}

#[derive(Deserialize)]
struct HttpRequestHeaders {
    /// Values have to be arrays of strings.
    #[serde(rename = "AllHeaders")]
    _all_headers: Option<HashMap<String, Option<Vec<Option<String>>>>>,
    #[serde(rename = "UserAgent")]
    _user_agent: Option<String>,
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(value).map(Some)
}

fn not_null<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<(String, Option<String>)>, BadContext> {
        let metadata = [(KEY.to_owned(), Argument::Text(text.to_owned()))];
        let origin = origin(&metadata, &"own".into())?;
        Ok(origin.map(|origin| (origin.connection_id.to_string(), origin.hub_id.map(|id| id.to_string()))))
    }

    #[test]
    fn absent_null_and_given_hub_ids_differ() {
        assert_eq!(read(r#"{"ConnectionId":"c"}"#), Ok(Some(("c".into(), Some("own".into())))));
        assert_eq!(read(r#"{"ConnectionId":"c","HubId":null}"#), Ok(Some(("c".into(), None))));
        assert_eq!(read(r#"{"ConnectionId":"c","HubId":"h","New":1}"#), Ok(Some(("c".into(), Some("h".into())))));
        assert_eq!(read("null"), Ok(None));
    }

    #[test]
    fn what_the_deserializer_throws_on() {
        for text in [
            "",
            "{}",
            r#"{"connectionid":"c"}"#,
            r#"{"ConnectionId":"c","TimeStamp":null}"#,
            r#"{"ConnectionId":"c","TimeStamp":"yesterday"}"#,
            r#"{"ConnectionId":"c","HttpConnection":{"LocalPort":null}}"#,
            r#"{"ConnectionId":"c","HttpConnection":{"RemotePort":"80"}}"#,
            r#"{"ConnectionId":"c","HttpRequestHeaders":{"AllHeaders":{"Host":"h"}}}"#,
        ] {
            assert_eq!(read(text), Err(BadContext), "{text}");
        }
    }

    #[test]
    fn the_real_context() {
        let text = r#"{"HubId":"fRr82pUPRESdT1NCLXmSPg","TimeStamp":"2024-05-06T07:08:09.1234567+00:00","ConnectionId":"Kx1n","HttpConnection":{"ConnectionId":"0HM6KABCDEF01","LocalIpAddressString":"10.0.0.2","RemoteIpAddressString":"10.0.0.7","LocalPort":5000,"RemotePort":51234},"HttpRequestHeaders":{"AllHeaders":{"Host":["proxy:5000"]},"UserAgent":null},"Items":{}}"#;
        assert_eq!(read(text), Ok(Some(("Kx1n".into(), Some("fRr82pUPRESdT1NCLXmSPg".into())))));
    }
}
