//! Hub messages of the app server: bytes to calls, and answers to bytes. No hub logic here and no bytes in the hub, so that another
//! protocol is another arm of `Protocol`.
//!
//! It is written apart from `proto::signalr` on purpose: a double that shares the codec of what it tests would share its mistakes.
//! The rules are those of ASP.NET's JSON protocol (reference 12.1), arguments are bound as the hub's methods declare them (contract 1.3).
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::messagepack;
use super::vm::Object;

/// Closes every handshake message and every JSON record.
pub const SEPARATOR: u8 = 0x1E;
/// System.Text.Json's default depth (reference 12.1).
pub const DEPTH_MAX: u32 = 64;
/// Both built-in protocols declare version 2 and take any older one (reference 11.3).
const VERSION_MAX: i64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Json,
    MessagePack,
}

/// Why a handshake failed: the text of its answer.
#[derive(Debug, PartialEq, Eq)]
pub struct HandshakeError(pub String);

/// Reads a handshake request, without its separator (reference 11.1, 11.3). `message_pack`: the protocol was added to the server.
pub fn handshake(record: &[u8], message_pack: bool) -> Result<Protocol, HandshakeError> {
    #[derive(Deserialize)]
    struct Request {
        protocol: String,
        version: i64,
    }
    let request: Request = serde_json::from_slice(record)
        .map_err(|_| HandshakeError("An unexpected error occurred during connection handshake.".into()))?;
    let protocol = match request.protocol.to_ascii_lowercase().as_str() {
        "json" => Protocol::Json,
        "messagepack" if message_pack => Protocol::MessagePack,
        _ => return Err(HandshakeError(format!("The protocol '{}' is not supported.", request.protocol))),
    };
    if request.version > VERSION_MAX {
        let text =
            format!("The server does not support version {} of the '{}' protocol.", request.version, request.protocol);
        return Err(HandshakeError(text));
    }
    Ok(protocol)
}

/// The answer to a handshake, with its separator.
pub fn handshake_response(result: &Result<Protocol, HandshakeError>) -> Vec<u8> {
    let mut out = match result {
        Ok(_) => b"{}".to_vec(),
        Err(HandshakeError(text)) => serde_json::json!({ "error": text }).to_string().into_bytes(),
    };
    out.push(SEPARATOR);
    out
}

/// A message from a connection.
#[derive(Debug, PartialEq)]
pub enum Inbound {
    Invocation {
        id: Option<String>,
        target: String,
        call: Call,
    },
    Ping,
    Close,
    /// Known and of no consequence to this hub: completions, cancellations, stream items, acks.
    Ignored,
    /// Of a type that SignalR does not know: its parser neither dispatches nor consumes it (reference 16.9).
    Unknown,
}

/// An invocation whose arguments are bound to a hub method.
#[derive(Debug, PartialEq)]
pub enum Call {
    RequestVm {
        vm_id: Option<String>,
        vm_arg: Argument,
    },
    UpdateVm {
        vm_id: Option<String>,
        vm_data: Option<Object>,
    },
    DisposeVm {
        vm_id: Option<String>,
    },
    Invoke {
        method: Option<String>,
        arguments: Option<Vec<Argument>>,
        metadata: Vec<(String, Argument)>,
    },
    /// The completion's error text, if one is wanted.
    Failed(String),
}

/// A loosely typed value of an `Invoke`: what .NET sees as a string or as a `JsonElement`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    Null,
    Text(String),
    /// Any other JSON value, as written.
    Json(String),
    /// A map on a MessagePack lane, as JSON: what a hub method would get is its type's name (contract 2.2).
    Dictionary(String),
}

impl Argument {
    /// As `ToString()` shows it.
    pub fn text(&self) -> &str {
        match self {
            Argument::Null => "",
            Argument::Text(text) | Argument::Json(text) => text,
            Argument::Dictionary(_) => "System.Collections.Generic.Dictionary`2[System.Object,System.Object]",
        }
    }
}

/// The connection is closed with an error: reference 12.1's `InvalidDataException`.
#[derive(Debug, PartialEq, Eq)]
pub struct ProtocolError;

/// What the hub sends.
pub enum Outbound<'a> {
    /// To a direct client: `[vmId, vmData]` (contract 1.4).
    Response {
        vm_id: &'a str,
        data: &'a str,
    },
    /// To a lane: `[methodName, methodArgs, metadata]` (contract 3.1).
    Forwarded {
        method: &'static str,
        arguments: &'a [Forwarded<'a>],
        recipient: Option<&'a str>,
    },
    Completion {
        id: &'a str,
        error: Option<&'a str>,
    },
    Ping,
    Close {
        error: Option<&'a str>,
        allow_reconnect: bool,
    },
}

pub enum Forwarded<'a> {
    Text(&'a str),
    List(&'a [String]),
}

impl Protocol {
    /// Where the first message of `buffer` ends: (its body, all it takes). `None`: not yet whole.
    pub fn frame(self, buffer: &[u8]) -> Result<Option<(std::ops::Range<usize>, usize)>, ProtocolError> {
        match self {
            Protocol::Json => Ok(memchr::memchr(SEPARATOR, buffer).map(|end| (0..end, end + 1))),
            Protocol::MessagePack => messagepack::frame(buffer),
        }
    }

    /// What its WebSocket messages are: bytes, or text.
    pub fn is_binary(self) -> bool {
        self == Protocol::MessagePack
    }

    pub fn decode(self, body: &[u8]) -> Result<Inbound, ProtocolError> {
        match self {
            Protocol::Json => decode_json(body),
            Protocol::MessagePack => messagepack::decode(body),
        }
    }

    /// One whole message with its framing.
    pub fn encode(self, message: &Outbound<'_>) -> Vec<u8> {
        match self {
            Protocol::Json => encode_json(message),
            Protocol::MessagePack => messagepack::encode(message),
        }
    }
}

/// Property names are case-sensitive and unknown ones skipped; null where a value is expected is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    r#type: i64,
    #[serde(default, deserialize_with = "not_null")]
    target: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    invocation_id: Option<String>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

fn decode_json(body: &[u8]) -> Result<Inbound, ProtocolError> {
    let text = std::str::from_utf8(body).map_err(|_| ProtocolError)?;
    if depth(text) > DEPTH_MAX {
        return Err(ProtocolError);
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|_| ProtocolError)?;
    let streaming = envelope.r#type == 4;
    match envelope.r#type {
        1 | 4 => {}
        2 | 3 | 5 => return envelope.invocation_id.map(|_| Inbound::Ignored).ok_or(ProtocolError),
        6 => return Ok(Inbound::Ping),
        7 => return Ok(Inbound::Close),
        8 | 9 => return Ok(Inbound::Ignored),
        _ => return Ok(Inbound::Unknown),
    }
    let target = envelope.target.filter(|target| !target.is_empty()).ok_or(ProtocolError)?;
    let arguments: Vec<&RawValue> = match envelope.arguments {
        Some(arguments) => serde_json::from_str(arguments.get()).map_err(|_| ProtocolError)?,
        None => return Err(ProtocolError),
    };
    // An empty id counts as none.
    let id = envelope.invocation_id.filter(|id| !id.is_empty());
    if streaming && id.is_none() {
        return Err(ProtocolError);
    }
    let call = bind(&target, &arguments, streaming);
    Ok(Inbound::Invocation { id, target, call })
}

/// Finds the hub method, case-insensitively, or says why it cannot be called (reference 13.2).
pub fn method(target: &str, streaming: bool) -> Result<&'static str, Call> {
    let known =
        ["Request_VM", "Update_VM", "Dispose_VM", "Invoke"].into_iter().find(|name| name.eq_ignore_ascii_case(target));
    match known {
        None => Err(Call::Failed(format!(
            "Failed to invoke '{target}' due to an error on the server. HubException: Method does not exist."
        ))),
        Some(_) if streaming => Err(Call::Failed(format!(
            "The client attempted to invoke the non-streaming '{target}' method with a streaming invocation."
        ))),
        Some(method) => Ok(method),
    }
}

/// Wrong number or types of arguments.
pub fn arguments_failed(target: &str) -> Call {
    Call::Failed(format!("Failed to invoke '{target}' due to an error on the server."))
}

/// Converts the arguments to the method's parameters.
fn bind(target: &str, arguments: &[&RawValue], streaming: bool) -> Call {
    let method = match method(target, streaming) {
        Ok(method) => method,
        Err(failed) => return failed,
    };
    let bound = match (method, arguments) {
        ("Request_VM", [vm_id, vm_arg]) => text(vm_id).map(|vm_id| Call::RequestVm { vm_id, vm_arg: argument(vm_arg) }),
        ("Update_VM", [vm_id, vm_data]) => {
            text(vm_id).zip(object(vm_data)).map(|(vm_id, vm_data)| Call::UpdateVm { vm_id, vm_data })
        }
        ("Dispose_VM", [vm_id]) => text(vm_id).map(|vm_id| Call::DisposeVm { vm_id }),
        ("Invoke", [method, list, metadata]) => invoke(method, list, metadata),
        _ => None,
    };
    bound.unwrap_or_else(|| arguments_failed(target))
}

fn invoke(method: &RawValue, list: &RawValue, metadata: &RawValue) -> Option<Call> {
    let list: Option<Vec<&RawValue>> = serde_json::from_str(list.get()).ok()?;
    let metadata: Option<super::vm::Members<&RawValue>> = serde_json::from_str(metadata.get()).ok()?;
    Some(Call::Invoke {
        method: text(method)?,
        arguments: list.map(|list| list.into_iter().map(argument).collect()),
        metadata: metadata.map_or_else(Vec::new, |members| {
            members.0.into_iter().map(|(key, value)| (key, argument(value))).collect()
        }),
    })
}

fn text(value: &RawValue) -> Option<Option<String>> {
    serde_json::from_str(value.get()).ok()
}

fn object(value: &RawValue) -> Option<Option<Object>> {
    serde_json::from_str(value.get()).ok()
}

fn argument(value: &RawValue) -> Argument {
    match value.get() {
        "null" => Argument::Null,
        json if json.starts_with('"') => match serde_json::from_str(json) {
            Ok(text) => Argument::Text(text),
            // A lone surrogate: valid JSON that is no text. .NET fails when it reads it; as raw JSON it fails in the conversion.
            Err(_) => Argument::Json(json.to_owned()),
        },
        json => Argument::Json(json.to_owned()),
    }
}

/// How deep objects and arrays nest; strings are skipped. For texts that turn out not to be JSON the figure means nothing.
pub fn depth(text: &str) -> u32 {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0u32, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn encode_json(message: &Outbound<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    match message {
        Outbound::Response { vm_id, data } => {
            out.extend_from_slice(br#"{"type":1,"target":"Response_VM","arguments":[["#);
            write_text(vm_id, &mut out);
            out.push(b',');
            write_text(data, &mut out);
            out.extend_from_slice(b"]]}");
        }
        Outbound::Forwarded { method, arguments, recipient } => {
            out.extend_from_slice(br#"{"type":1,"target":"Response_VM","arguments":[["#);
            write_text(method, &mut out);
            out.extend_from_slice(b",[");
            for (index, argument) in arguments.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                match argument {
                    Forwarded::Text(text) => write_text(text, &mut out),
                    Forwarded::List(list) => serde_json::to_writer(&mut out, list).expect("strings serialize"),
                }
            }
            out.extend_from_slice(b"],");
            match recipient {
                Some(recipient) => {
                    out.extend_from_slice(br#"{"$fwdConnId":"#);
                    write_text(recipient, &mut out);
                    out.push(b'}');
                }
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(b"]]}");
        }
        Outbound::Completion { id, error } => {
            out.extend_from_slice(br#"{"type":3,"invocationId":"#);
            write_text(id, &mut out);
            match error {
                // A void method's completion has a result, null (reference 13.1).
                None => out.extend_from_slice(br#","result":null}"#),
                Some(error) => {
                    out.extend_from_slice(br#","error":"#);
                    write_text(error, &mut out);
                    out.push(b'}');
                }
            }
        }
        Outbound::Ping => out.extend_from_slice(br#"{"type":6}"#),
        Outbound::Close { error, allow_reconnect } => {
            out.extend_from_slice(br#"{"type":7"#);
            if let Some(error) = error {
                out.extend_from_slice(br#","error":"#);
                write_text(error, &mut out);
            }
            // Written only when true (reference 12.1).
            out.extend_from_slice(if *allow_reconnect { br#","allowReconnect":true}"# } else { b"}" });
        }
    }
    out.push(SEPARATOR);
    out
}

/// A JSON string with the relaxed escaping of SignalR: quotes, backslashes and controls only.
fn write_text(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string serializes");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<Inbound, ProtocolError> {
        Protocol::Json.decode(text.as_bytes())
    }

    #[test]
    fn handshakes() {
        let error = |text: &str| Err(HandshakeError(text.to_owned()));
        assert_eq!(handshake(br#"{"protocol":"json","version":1}"#, false), Ok(Protocol::Json));
        assert_eq!(handshake(br#"{"version":2,"x":[],"protocol":"JSON"}"#, false), Ok(Protocol::Json));
        let message_pack = br#"{"protocol":"messagepack","version":1}"#;
        assert_eq!(handshake(message_pack, true), Ok(Protocol::MessagePack));
        assert_eq!(handshake(message_pack, false), error("The protocol 'messagepack' is not supported."));
        assert_eq!(
            handshake(br#"{"protocol":"json","version":3}"#, true),
            error("The server does not support version 3 of the 'json' protocol.")
        );
        assert_eq!(handshake(b"hello", true), error("An unexpected error occurred during connection handshake."));
    }

    #[test]
    fn members_in_any_order_and_arguments_before_the_target() {
        let message =
            decode(r#"{"arguments":["HelloWorldVM",{"a":1}],"invocationId":"0","target":"request_vm","type":1}"#)
                .unwrap();
        let call = Call::RequestVm { vm_id: Some("HelloWorldVM".into()), vm_arg: Argument::Json(r#"{"a":1}"#.into()) };
        assert_eq!(message, Inbound::Invocation { id: Some("0".into()), target: "request_vm".into(), call });
    }

    #[test]
    fn protocol_errors() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"type":"1"}"#,
            r#"{"type":1,"target":"Dispose_VM"}"#,
            r#"{"type":1,"target":"","arguments":[]}"#,
            r#"{"type":1,"target":"Dispose_VM","arguments":{}}"#,
            r#"{"type":1,"target":"Dispose_VM","arguments":["a"],"invocationId":null}"#,
            r#"{"type":1,"target":"Dispose_VM","arguments":["a"],}"#,
        ] {
            assert_eq!(decode(text), Err(ProtocolError), "{text}");
        }
        let deep = |levels: usize| {
            format!(
                r#"{{"type":1,"target":"Request_VM","arguments":["a",{}{}]}}"#,
                "[".repeat(levels),
                "]".repeat(levels)
            )
        };
        assert!(decode(&deep(62)).is_ok());
        assert_eq!(decode(&deep(63)), Err(ProtocolError));
    }

    #[test]
    fn binding_failures_have_the_texts_of_the_reference() {
        let failed = |text: &str| match decode(text).unwrap() {
            Inbound::Invocation { call: Call::Failed(text), .. } => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            failed(r#"{"type":1,"target":"Nope","arguments":[]}"#),
            "Failed to invoke 'Nope' due to an error on the server. HubException: Method does not exist."
        );
        for text in [
            r#"{"type":1,"target":"Update_VM","arguments":["a"]}"#,
            r#"{"type":1,"target":"Update_VM","arguments":["a",[1]]}"#,
            r#"{"type":1,"target":"Update_VM","arguments":[1,{}]}"#,
        ] {
            assert_eq!(failed(text), "Failed to invoke 'Update_VM' due to an error on the server.");
        }
        assert_eq!(
            failed(r#"{"type":4,"invocationId":"1","target":"Dispose_VM","arguments":["a"]}"#),
            "The client attempted to invoke the non-streaming 'Dispose_VM' method with a streaming invocation."
        );
    }

    #[test]
    fn forwarded_responses_are_those_of_the_contract() {
        let text = |message: Outbound<'_>| String::from_utf8(Protocol::Json.encode(&message)).unwrap();
        let arguments = [Forwarded::Text("grp"), Forwarded::Text("VM"), Forwarded::Text("{}")];
        assert_eq!(
            text(Outbound::Forwarded {
                method: "SendToGroupExceptAsync",
                arguments: &arguments,
                recipient: Some("[null]")
            }),
            "{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[\"SendToGroupExceptAsync\",[\"grp\",\"VM\",\"{}\"],{\"$fwdConnId\":\"[null]\"}]]}\u{1e}"
        );
        assert_eq!(
            text(Outbound::Forwarded { method: "SendToGroupAsync", arguments: &arguments, recipient: None }),
            "{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[\"SendToGroupAsync\",[\"grp\",\"VM\",\"{}\"],null]]}\u{1e}"
        );
        assert_eq!(
            text(Outbound::Close { error: None, allow_reconnect: true }),
            "{\"type\":7,\"allowReconnect\":true}\u{1e}"
        );
        assert_eq!(
            text(Outbound::Completion { id: "1", error: None }),
            "{\"type\":3,\"invocationId\":\"1\",\"result\":null}\u{1e}"
        );
    }
}
