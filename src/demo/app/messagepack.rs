//! The MessagePack hub protocol of an app server that called `AddMessagePackProtocol()` (reference 10, 12.2): records with a length
//! prefix, messages as arrays. Values are read into a tree, as .NET's contractless resolver does, and bound from there.
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rmp::Marker;
use serde_json::Value;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::clock;
use super::protocol::{
    Argument, Call, DEPTH_MAX, Forwarded, Inbound, Outbound, ProtocolError, arguments_failed, method,
};
use super::vm::{Members, Object};

/// The prefix has at most five bytes, the fifth at most 7 (reference 10).
const PREFIX_BYTES_MAX: usize = 5;

pub fn frame(buffer: &[u8]) -> Result<Option<(Range<usize>, usize)>, ProtocolError> {
    let mut length = 0usize;
    for (index, byte) in buffer.iter().take(PREFIX_BYTES_MAX).enumerate() {
        if index == PREFIX_BYTES_MAX - 1 && *byte > 7 {
            return Err(ProtocolError);
        }
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            let start = index + 1;
            return Ok((buffer.len() - start >= length).then(|| (start..start + length, start + length)));
        }
    }
    Ok(None)
}

pub fn decode(body: &[u8]) -> Result<Inbound, ProtocolError> {
    let mut reader = Reader { rest: body };
    let Node::Array(items) = reader.node(0)? else { return Err(ProtocolError) };
    let kind = match items.first() {
        Some(Node::Integer(kind)) => *kind,
        _ => return Err(ProtocolError),
    };
    let streaming = kind == 4;
    match kind {
        1 | 4 => {}
        2 | 3 | 5 | 8 | 9 => return Ok(Inbound::Ignored),
        6 => return Ok(Inbound::Ping),
        7 => return Ok(Inbound::Close),
        _ => return Ok(Inbound::Unknown),
    }
    // Five items, from JavaScript, or six, from .NET; more are tolerated.
    let [_, Node::Map(_), id, Node::Text(target), Node::Array(arguments), ..] = items.as_slice() else {
        return Err(ProtocolError);
    };
    let id = match id {
        Node::Nil => None,
        Node::Text(id) => Some(id.clone()).filter(|id| !id.is_empty()),
        _ => return Err(ProtocolError),
    };
    if target.is_empty() || (streaming && id.is_none()) {
        return Err(ProtocolError);
    }
    Ok(Inbound::Invocation { id, target: target.clone(), call: bind(target, arguments, streaming) })
}

fn bind(target: &str, arguments: &[Node], streaming: bool) -> Call {
    let method = match method(target, streaming) {
        Ok(method) => method,
        Err(failed) => return failed,
    };
    let bound = match (method, arguments) {
        ("Request_VM", [vm_id, vm_arg]) => vm_id.text().map(|vm_id| Call::RequestVm { vm_id, vm_arg: vm_arg.direct() }),
        ("Update_VM", [vm_id, vm_data]) => match vm_data {
            Node::Nil => vm_id.text().map(|vm_id| Call::UpdateVm { vm_id, vm_data: None }),
            Node::Map(members) => vm_id.text().map(|vm_id| Call::UpdateVm { vm_id, vm_data: Some(object(members)) }),
            _ => None,
        },
        ("Dispose_VM", [vm_id]) => vm_id.text().map(|vm_id| Call::DisposeVm { vm_id }),
        ("Invoke", [method, list, metadata]) => invoke(method, list, metadata),
        _ => None,
    };
    bound.unwrap_or_else(|| arguments_failed(target))
}

fn invoke(method: &Node, list: &Node, metadata: &Node) -> Option<Call> {
    let arguments = match list {
        Node::Nil => None,
        Node::Array(list) => Some(list.iter().map(Node::forwarded).collect()),
        _ => return None,
    };
    let metadata = match metadata {
        Node::Nil => Vec::new(),
        Node::Map(members) => members.iter().map(|(key, value)| (key.key(), value.forwarded())).collect(),
        _ => return None,
    };
    Some(Call::Invoke { method: method.text()?, arguments, metadata })
}

fn object(members: &[(Node, Node)]) -> Object {
    Members(members.iter().map(|(key, value)| (key.key(), value.json())).collect())
}

/// A value as MessagePack for C# reads it where the type is `object`.
enum Node {
    Nil,
    Bool(bool),
    Integer(i64),
    /// Above `i64`.
    Unsigned(u64),
    Float(f64),
    Text(String),
    Binary(Vec<u8>),
    Array(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Time(SystemTime),
}

impl Node {
    /// A string parameter: `Some(None)` is null.
    fn text(&self) -> Option<Option<String>> {
        match self {
            Node::Nil => Some(None),
            Node::Text(text) => Some(Some(text.clone())),
            _ => None,
        }
    }

    fn key(&self) -> String {
        match self.json() {
            Value::String(text) => text,
            other => other.to_string(),
        }
    }

    /// A direct client's argument.
    fn direct(&self) -> Argument {
        match self {
            Node::Nil => Argument::Null,
            Node::Text(text) => Argument::Text(text.clone()),
            Node::Map(members) => Argument::Json(object(members).json()),
            other => Argument::Json(other.json().to_string()),
        }
    }

    /// An `Invoke`'s argument. What is no string is turned into one by `ToString()` before it is parsed: for a map that is the name of
    /// the dictionary's type, which is not JSON (contract 2.2).
    fn forwarded(&self) -> Argument {
        match self {
            Node::Map(members) => Argument::Dictionary(object(members).json()),
            Node::Array(_) | Node::Binary(_) => Argument::Json("System.Object[]".into()),
            other => other.direct(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Node::Nil => Value::Null,
            Node::Bool(value) => (*value).into(),
            Node::Integer(value) => (*value).into(),
            Node::Unsigned(value) => (*value).into(),
            Node::Float(value) => (*value).into(),
            Node::Text(text) => text.as_str().into(),
            Node::Binary(bytes) => STANDARD.encode(bytes).into(),
            Node::Array(items) => items.iter().map(Node::json).collect(),
            Node::Map(members) => members.iter().map(|(key, value)| (key.key(), value.json())).collect(),
            Node::Time(time) => clock::iso(*time).into(),
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(ProtocolError)?;
        self.rest = rest;
        Ok(taken)
    }

    fn unsigned(&mut self, bytes: usize) -> Result<u64, ProtocolError> {
        Ok(self.take(bytes)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Sign-extended.
    fn signed(&mut self, bytes: usize) -> Result<i64, ProtocolError> {
        let unused = 64 - 8 * bytes as u32;
        Ok((self.unsigned(bytes)? << unused) as i64 >> unused)
    }

    fn node(&mut self, depth: u32) -> Result<Node, ProtocolError> {
        if depth > DEPTH_MAX {
            return Err(ProtocolError);
        }
        let length = |length: u64| usize::try_from(length).map_err(|_| ProtocolError);
        let node = match Marker::from_u8(self.take(1)?[0]) {
            Marker::Null => Node::Nil,
            Marker::True => Node::Bool(true),
            Marker::False => Node::Bool(false),
            Marker::FixPos(value) => Node::Integer(value.into()),
            Marker::FixNeg(value) => Node::Integer(value.into()),
            Marker::U8 => Node::Integer(self.unsigned(1)? as i64),
            Marker::U16 => Node::Integer(self.unsigned(2)? as i64),
            Marker::U32 => Node::Integer(self.unsigned(4)? as i64),
            Marker::U64 => {
                let value = self.unsigned(8)?;
                i64::try_from(value).map_or(Node::Unsigned(value), Node::Integer)
            }
            Marker::I8 => Node::Integer(self.signed(1)?),
            Marker::I16 => Node::Integer(self.signed(2)?),
            Marker::I32 => Node::Integer(self.signed(4)?),
            Marker::I64 => Node::Integer(self.signed(8)?),
            Marker::F32 => Node::Float(f32::from_bits(self.unsigned(4)? as u32).into()),
            Marker::F64 => Node::Float(f64::from_bits(self.unsigned(8)?)),
            Marker::FixStr(bytes) => self.text(bytes.into())?,
            Marker::Str8 => self.unsigned(1).and_then(length).and_then(|bytes| self.text(bytes))?,
            Marker::Str16 => self.unsigned(2).and_then(length).and_then(|bytes| self.text(bytes))?,
            Marker::Str32 => self.unsigned(4).and_then(length).and_then(|bytes| self.text(bytes))?,
            Marker::Bin8 => self.unsigned(1).and_then(length).and_then(|bytes| self.binary(bytes))?,
            Marker::Bin16 => self.unsigned(2).and_then(length).and_then(|bytes| self.binary(bytes))?,
            Marker::Bin32 => self.unsigned(4).and_then(length).and_then(|bytes| self.binary(bytes))?,
            Marker::FixArray(count) => self.array(count.into(), depth)?,
            Marker::Array16 => self.unsigned(2).and_then(|count| self.array(count, depth))?,
            Marker::Array32 => self.unsigned(4).and_then(|count| self.array(count, depth))?,
            Marker::FixMap(count) => self.map(count.into(), depth)?,
            Marker::Map16 => self.unsigned(2).and_then(|count| self.map(count, depth))?,
            Marker::Map32 => self.unsigned(4).and_then(|count| self.map(count, depth))?,
            Marker::FixExt4 => self.extension(4)?,
            Marker::FixExt8 => self.extension(8)?,
            Marker::Ext8 => self.unsigned(1).and_then(length).and_then(|bytes| self.extension(bytes))?,
            Marker::FixExt1 | Marker::FixExt2 | Marker::FixExt16 | Marker::Ext16 | Marker::Ext32 | Marker::Reserved => {
                return Err(ProtocolError);
            }
        };
        Ok(node)
    }

    fn text(&mut self, bytes: usize) -> Result<Node, ProtocolError> {
        let text = std::str::from_utf8(self.take(bytes)?).map_err(|_| ProtocolError)?;
        Ok(Node::Text(text.to_owned()))
    }

    fn binary(&mut self, bytes: usize) -> Result<Node, ProtocolError> {
        Ok(Node::Binary(self.take(bytes)?.to_vec()))
    }

    /// Nothing is reserved for an announced count: each item takes a byte at least, and those have to be there.
    fn array(&mut self, count: u64, depth: u32) -> Result<Node, ProtocolError> {
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.node(depth + 1)?);
        }
        Ok(Node::Array(items))
    }

    fn map(&mut self, count: u64, depth: u32) -> Result<Node, ProtocolError> {
        let mut members = Vec::new();
        for _ in 0..count {
            members.push((self.node(depth + 1)?, self.node(depth + 1)?));
        }
        Ok(Node::Map(members))
    }

    /// Only the timestamp, type -1, in its three sizes.
    fn extension(&mut self, bytes: usize) -> Result<Node, ProtocolError> {
        if self.signed(1)? != -1 {
            return Err(ProtocolError);
        }
        let (seconds, nanos) = match bytes {
            4 => (self.unsigned(4)? as i64, 0),
            8 => {
                let both = self.unsigned(8)?;
                ((both & 0x3_FFFF_FFFF) as i64, both >> 34)
            }
            12 => {
                let nanos = self.unsigned(4)?;
                (self.signed(8)?, nanos)
            }
            _ => return Err(ProtocolError),
        };
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let base = if seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        let time = base.and_then(|base| base.checked_add(Duration::from_nanos(nanos)));
        time.map(Node::Time).ok_or(ProtocolError)
    }
}

/// Writing to a vector cannot fail.
macro_rules! put {
    ($write:ident, $out:expr $(, $value:expr)?) => {
        rmp::encode::$write($out $(, $value)?).expect("a vector takes all")
    };
}

pub fn encode(message: &Outbound<'_>) -> Vec<u8> {
    let mut body = Vec::with_capacity(96);
    let out = &mut body;
    match message {
        Outbound::Response { vm_id, data } => {
            invocation_head(out);
            put!(write_array_len, out, 2);
            put!(write_str, out, vm_id);
            put!(write_str, out, data);
            put!(write_array_len, out, 0);
        }
        Outbound::Forwarded { method, arguments, recipient } => {
            invocation_head(out);
            put!(write_array_len, out, 3);
            put!(write_str, out, method);
            put!(write_array_len, out, arguments.len() as u32);
            for argument in *arguments {
                match argument {
                    Forwarded::Text(text) => put!(write_str, out, text),
                    Forwarded::List(list) => {
                        put!(write_array_len, out, list.len() as u32);
                        for text in *list {
                            put!(write_str, out, text);
                        }
                    }
                }
            }
            match recipient {
                None => put!(write_nil, out),
                Some(recipient) => {
                    put!(write_map_len, out, 1);
                    put!(write_str, out, "$fwdConnId");
                    put!(write_str, out, recipient);
                }
            }
            put!(write_array_len, out, 0);
        }
        Outbound::Completion { id, error } => {
            put!(write_array_len, out, 5);
            put!(write_uint, out, 3);
            put!(write_map_len, out, 0);
            put!(write_str, out, id);
            match error {
                Some(error) => {
                    put!(write_uint, out, 1);
                    put!(write_str, out, error);
                }
                // A void method's result is kind 3 with nil (reference 13.1).
                None => {
                    put!(write_uint, out, 3);
                    put!(write_nil, out);
                }
            }
        }
        Outbound::Ping => {
            put!(write_array_len, out, 1);
            put!(write_uint, out, 6);
        }
        Outbound::Close { error, allow_reconnect } => {
            put!(write_array_len, out, 3);
            put!(write_uint, out, 7);
            match error {
                Some(error) => put!(write_str, out, error),
                None => put!(write_nil, out),
            }
            put!(write_bool, out, *allow_reconnect);
        }
    }
    let mut framed = Vec::with_capacity(body.len() + PREFIX_BYTES_MAX);
    let mut length = body.len();
    while length >= 0x80 {
        framed.push(length as u8 | 0x80);
        length >>= 7;
    }
    framed.push(length as u8);
    framed.extend_from_slice(&body);
    framed
}

/// `[1, {}, nil, "Response_VM", [` up to the one argument.
fn invocation_head(out: &mut Vec<u8>) {
    put!(write_array_len, out, 6);
    put!(write_uint, out, 1);
    put!(write_map_len, out, 0);
    put!(write_nil, out);
    put!(write_str, out, "Response_VM");
    put!(write_array_len, out, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn read(hex: &str) -> Vec<Inbound> {
        let buffer = bytes(hex);
        let mut unread = buffer.as_slice();
        let mut messages = Vec::new();
        while let Some((body, taken)) = frame(unread).unwrap() {
            messages.push(decode(&unread[body]).unwrap());
            unread = &unread[taken..];
        }
        assert!(unread.is_empty());
        messages
    }

    /// The bytes of the contract (sections 2.4 and 3.2).
    #[test]
    fn what_a_lane_says_and_hears() {
        let request = "71960180c0a6496e766f6b6593aa526571756573745f564d92ac48656c6c6f576f726c64564db77b2224766d417267223a7b224e616d65223a2278227d7d81af24667764436f6e6e436f6e74657874d9207b224875624964223a2268222c22436f6e6e656374696f6e4964223a2263227d90";
        let text = |text: &str| Argument::Text(text.to_owned());
        let call = Call::Invoke {
            method: Some("Request_VM".into()),
            arguments: Some(vec![text("HelloWorldVM"), text(r#"{"$vmArg":{"Name":"x"}}"#)]),
            metadata: vec![("$fwdConnContext".into(), text(r#"{"HubId":"h","ConnectionId":"c"}"#))],
        };
        assert_eq!(read(request), [Inbound::Invocation { id: None, target: "Invoke".into(), call }]);

        let send = "41960180c0ab526573706f6e73655f564d9193a953656e644173796e6392ac48656c6c6f576f726c64564da77b2261223a317d81aa24667764436f6e6e4964a16390";
        let arguments = [Forwarded::Text("HelloWorldVM"), Forwarded::Text(r#"{"a":1}"#)];
        assert_eq!(
            encode(&Outbound::Forwarded { method: "SendAsync", arguments: &arguments, recipient: Some("c") }),
            bytes(send)
        );
        let group = "3d960180c0ab526573706f6e73655f564d9193b053656e64546f47726f75704173796e6393a167ac48656c6c6f576f726c64564da77b2261223a317dc090";
        let arguments = [Forwarded::Text("g"), Forwarded::Text("HelloWorldVM"), Forwarded::Text(r#"{"a":1}"#)];
        assert_eq!(
            encode(&Outbound::Forwarded { method: "SendToGroupAsync", arguments: &arguments, recipient: None }),
            bytes(group)
        );
        let users = "59960180c0ab526573706f6e73655f564d9193b053656e64546f55736572734173796e639392a27531a27532ac48656c6c6f576f726c64564da77b2261223a317d81aa24667764436f6e6e4964ab5b227531222c227532225d90";
        let listed = ["u1".to_owned(), "u2".to_owned()];
        let arguments = [Forwarded::List(&listed), Forwarded::Text("HelloWorldVM"), Forwarded::Text(r#"{"a":1}"#)];
        let message = Outbound::Forwarded {
            method: "SendToUsersAsync",
            arguments: &arguments,
            recipient: Some(r#"["u1","u2"]"#),
        };
        assert_eq!(encode(&message), bytes(users));
    }

    /// What the real npm client sent (`vectors/npm-client-msgpack.log`).
    #[test]
    fn what_a_javascript_client_says() {
        let requests = "2c950180a130aa526571756573745f564d92a74e6f417267564d82a624766d417267c0a82468656164657273c06e950180a131aa526571756573745f564d92ac48656c6c6f576f726c64564d82a624766d41726784a2496405a3426967cf000000012a05f200a146cb3ff8000000000000a144d6ff00000000a8246865616465727381ad417574686f72697a6174696f6eaa42656172657220616263";
        let messages = read(requests);
        let arguments: Vec<String> = messages
            .into_iter()
            .map(|message| match message {
                Inbound::Invocation { call: Call::RequestVm { vm_arg: Argument::Json(json), .. }, .. } => json,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(arguments[0], r#"{"$vmArg":null,"$headers":null}"#);
        assert_eq!(
            arguments[1],
            r#"{"$vmArg":{"Big":5000000000,"D":"1970-01-01T00:00:00Z","F":1.5,"Id":5},"$headers":{"Authorization":"Bearer abc"}}"#
        );
    }

    #[test]
    fn the_vectors_of_the_reference() {
        for (message, hex) in [
            (Outbound::Ping, "029106"),
            (Outbound::Close { error: None, allow_reconnect: false }, "049307c0c2"),
            (Outbound::Close { error: Some("bye"), allow_reconnect: true }, "079307a3627965c3"),
            (Outbound::Completion { id: "7", error: None }, "07950380a13703c0"),
            (Outbound::Completion { id: "7", error: Some("boom") }, "0b950380a13701a4626f6f6d"),
        ] {
            assert_eq!(encode(&message), bytes(hex), "{hex}");
        }
        assert_eq!(read("029106039207c0059208cd012c"), [Inbound::Ping, Inbound::Close, Inbound::Ignored]);
    }

    #[test]
    fn framing_and_malformed_bodies() {
        assert_eq!(frame(&bytes("ffffffff08")), Err(ProtocolError));
        assert_eq!(frame(&bytes("ffffffff")), Ok(None));
        assert_eq!(frame(&bytes("ac02")), Ok(None));
        assert_eq!(frame(&bytes("0291")), Ok(None));
        for hex in ["", "06", "90", "91c0", "950180a130", "9501c0a130a0a090", "dd7fffffff06", "9501"] {
            assert_eq!(decode(&bytes(hex)), Err(ProtocolError), "{hex}");
        }
        let deep = [vec![0x91; 5000], vec![0xC0]].concat();
        assert_eq!(decode(&deep), Err(ProtocolError));
        // A map inside an `Invoke` becomes the name of its type, which no conversion takes.
        let Inbound::Invocation { call: Call::Invoke { arguments: Some(arguments), .. }, .. } =
            decode(&bytes("960180c0a6496e766f6b6593a1589180c090")).unwrap()
        else {
            panic!("not an Invoke")
        };
        assert!(matches!(&arguments[0], Argument::Dictionary(_)) && arguments[0].text().starts_with("System."));
    }
}
