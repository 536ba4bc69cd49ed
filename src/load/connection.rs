//! A SignalR connection as a .NET client has it: handshake, records in JSON or MessagePack, keep-alive pings, close (contract 1.2 to 1.4).
use futures_util::{SinkExt, StreamExt};
use rmpv::ValueRef;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::dial::Socket;
use super::options::Protocol;
use crate::limits::{LOAD_MESSAGE_BYTES_MAX, LOAD_SERVER_TIMEOUT_MS};

const RECORD_END: u8 = 0x1e;

/// What a server may say.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// `Response_VM`; the data is JSON text.
    Response { vm_id: String, data: String },
    /// A call came back with an error.
    Failed(String),
    /// It wants to close; the reason, if it gives one.
    Close(Option<String>),
    /// Pings, completions, and what we have no use for.
    Other,
}

/// The connection cannot be used any more. The text is a sentence's predicate.
pub type Lost = String;

pub struct Connection {
    socket: Socket,
    protocol: Protocol,
    /// Received and not yet read: a record may be split over WebSocket messages.
    inbox: Vec<u8>,
}

impl Connection {
    /// Shakes hands over an upgraded socket.
    pub async fn open(socket: Socket, protocol: Protocol) -> Result<Connection, Lost> {
        let mut connection = Connection { socket, protocol, inbox: Vec::new() };
        let name = if protocol == Protocol::Json { "json" } else { "messagepack" };
        let mut handshake = json!({ "protocol": name, "version": 1 }).to_string().into_bytes();
        handshake.push(RECORD_END);
        connection.send([handshake]).await?;
        let end = loop {
            if let Some(end) = memchr::memchr(RECORD_END, &connection.inbox) {
                break end;
            }
            connection.receive().await?;
        };
        let answer: Value = serde_json::from_slice(&connection.inbox[..end])
            .map_err(|error| format!("the handshake's answer is not JSON: {error}"))?;
        connection.inbox.drain(..=end);
        match answer.get("error") {
            Some(error) => Err(format!("the handshake was refused: {error}")),
            None => Ok(connection),
        }
    }

    /// Waits for bytes; `records` reads them. May be dropped while it waits.
    pub async fn receive(&mut self) -> Result<(), Lost> {
        loop {
            let bytes = match self.socket.next().await {
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(format!("the server closed the WebSocket ({} {})", close.code, close.reason));
                }
                Some(Ok(Message::Close(None))) | None => return Err("the server closed the WebSocket".into()),
                // Pongs are sent by the library.
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(format!("the connection broke: {error}")),
            };
            if self.inbox.len() + bytes.len() > LOAD_MESSAGE_BYTES_MAX {
                return Err("the server sends a record without end".into());
            }
            self.inbox.extend_from_slice(&bytes);
            return Ok(());
        }
    }

    /// Reads all whole records there are.
    pub fn records(&mut self, mut each: impl FnMut(Record)) -> Result<(), Lost> {
        let mut done = 0;
        let result = loop {
            match next(self.protocol, &self.inbox[done..]) {
                Ok(Some((record, taken))) => {
                    done += taken;
                    each(record);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(format!("the server sent what cannot be read: {error}")),
            }
        };
        self.inbox.drain(..done);
        if self.inbox.is_empty() {
            // An idle connection keeps no memory for its largest state.
            self.inbox = Vec::new();
        }
        result
    }

    /// Sends messages back to back.
    pub async fn send(&mut self, messages: impl IntoIterator<Item = Vec<u8>>) -> Result<(), Lost> {
        let sent = async {
            for message in messages {
                let message = match self.protocol {
                    // What we write is JSON made of strings.
                    Protocol::Json => Message::Text(String::from_utf8_lossy(&message).into_owned().into()),
                    Protocol::MessagePack => Message::Binary(message.into()),
                };
                self.socket.feed(message).await?;
            }
            self.socket.flush().await
        };
        match timeout(Duration::from_millis(LOAD_SERVER_TIMEOUT_MS), sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the connection broke: {error}")),
            Err(_) => Err("the server takes nothing any more".into()),
        }
    }

    /// Says goodbye; `receive` then ends with the server's answer.
    pub async fn close(&mut self) -> Result<(), Lost> {
        match timeout(Duration::from_millis(LOAD_SERVER_TIMEOUT_MS), self.socket.close(None)).await {
            Ok(_) => Ok(()),
            Err(_) => Err("the server takes nothing any more".into()),
        }
    }
}

/// A call without an answer, as the .NET client sends it.
pub fn invocation(protocol: Protocol, target: &str, arguments: Value) -> Vec<u8> {
    #[derive(Serialize)]
    struct Invocation<'a> {
        r#type: u8,
        target: &'a str,
        arguments: Value,
    }
    match protocol {
        Protocol::Json => {
            let invocation = Invocation { r#type: 1, target, arguments };
            let mut bytes = serde_json::to_vec(&invocation).expect("names are strings");
            bytes.push(RECORD_END);
            bytes
        }
        Protocol::MessagePack => {
            let arguments = rmpv::ext::to_value(arguments).expect("JSON fits into MessagePack");
            let none = rmpv::Value::Array(Vec::new());
            packed(vec![1.into(), rmpv::Value::Map(Vec::new()), rmpv::Value::Nil, target.into(), arguments, none])
        }
    }
}

pub fn ping(protocol: Protocol) -> Vec<u8> {
    match protocol {
        Protocol::Json => b"{\"type\":6}\x1e".to_vec(),
        Protocol::MessagePack => packed(vec![6.into()]),
    }
}

/// An array with its length in front.
fn packed(items: Vec<rmpv::Value>) -> Vec<u8> {
    let mut body = Vec::new();
    rmpv::encode::write_value(&mut body, &rmpv::Value::Array(items)).expect("memory takes everything");
    let mut bytes = Vec::with_capacity(body.len() + 5);
    let mut length = body.len();
    // Seven bits at a time, the lowest first; the high bit says that more follow.
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.append(&mut body);
    bytes
}

/// The first record, if it is whole, and its length with framing.
fn next(protocol: Protocol, bytes: &[u8]) -> Result<Option<(Record, usize)>, String> {
    match protocol {
        Protocol::Json => {
            let Some(end) = memchr::memchr(RECORD_END, bytes) else { return Ok(None) };
            Ok(Some((json_record(&bytes[..end]).map_err(|error| error.to_string())?, end + 1)))
        }
        Protocol::MessagePack => {
            let mut length = 0usize;
            for (index, byte) in bytes.iter().enumerate() {
                if index == 5 {
                    return Err("a length of more than five bytes".into());
                }
                length |= usize::from(byte & 0x7f) << (7 * index);
                if byte & 0x80 == 0 {
                    let start = index + 1;
                    let Some(mut body) = bytes.get(start..start + length) else { return Ok(None) };
                    let value = rmpv::decode::read_value_ref(&mut body).map_err(|error| error.to_string())?;
                    return Ok(Some((
                        packed_record(&value).ok_or("a message that is none of SignalR's")?,
                        start + length,
                    )));
                }
            }
            Ok(None)
        }
    }
}

fn json_record(bytes: &[u8]) -> serde_json::Result<Record> {
    #[derive(Deserialize)]
    struct Message<'a> {
        r#type: u8,
        target: Option<String>,
        #[serde(borrow)]
        arguments: Option<&'a RawValue>,
        error: Option<String>,
    }
    let message: Message = serde_json::from_slice(bytes)?;
    Ok(match (message.r#type, message.arguments, message.error) {
        (1, Some(arguments), _) if message.target.as_deref().is_some_and(is_response) => {
            let [(vm_id, data)]: [(String, String); 1] = serde_json::from_str(arguments.get())?;
            Record::Response { vm_id, data }
        }
        (3, _, Some(error)) => Record::Failed(error),
        (7, _, error) => Record::Close(error),
        _ => Record::Other,
    })
}

/// `[1, headers, id, target, arguments, ...]`, `[3, headers, id, kind, error?]`, `[6]`, `[7, error, ...]`.
fn packed_record(value: &ValueRef) -> Option<Record> {
    let ValueRef::Array(items) = value else { return None };
    let text = |index: usize| items.get(index).and_then(|item| item.to_owned().as_str().map(str::to_owned));
    Some(match items.first()?.as_u64()? {
        1 if is_response(&text(3)?) => {
            let ValueRef::Array(arguments) = items.get(4)? else { return None };
            let [ValueRef::Array(response)] = arguments.as_slice() else { return None };
            let [ValueRef::String(vm_id), ValueRef::String(data)] = response.as_slice() else { return None };
            Record::Response { vm_id: vm_id.as_str()?.to_owned(), data: data.as_str()?.to_owned() }
        }
        3 if items.get(3)?.as_u64()? == 1 => Record::Failed(text(4)?),
        7 => Record::Close(text(1)),
        _ => Record::Other,
    })
}

fn is_response(target: &str) -> bool {
    target.eq_ignore_ascii_case("Response_VM")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(protocol: Protocol, bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        let mut rest = bytes;
        while let Some((record, taken)) = next(protocol, rest).unwrap() {
            records.push(record);
            rest = &rest[taken..];
        }
        assert_eq!(rest, b"");
        records
    }

    #[test]
    fn records_are_those_of_the_contract() {
        let json = "{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[\"HelloWorldVM\",\"{\\\"Greetings\\\":\\\"hi\\\"}\"]]}\u{1e}{\"type\":6}\u{1e}\
                    {\"type\":3,\"invocationId\":\"0\",\"error\":\"no\"}\u{1e}{\"type\":7,\"allowReconnect\":true}\u{1e}";
        let state = Record::Response { vm_id: "HelloWorldVM".into(), data: "{\"Greetings\":\"hi\"}".into() };
        let records = read(Protocol::Json, json.as_bytes());
        assert_eq!(records, [state, Record::Other, Record::Failed("no".into()), Record::Close(None)]);
        let packed = b"\x19\x96\x01\x80\xc0\xabResponse_VM\x91\x92\xa2VM\xa2{}\x90\x02\x91\x06\x07\x95\x03\x80\xa1\x30\x01\xa0\x05\x93\x07\xa1x\xc3";
        let state = Record::Response { vm_id: "VM".into(), data: "{}".into() };
        let records = read(Protocol::MessagePack, packed);
        assert_eq!(records, [state, Record::Other, Record::Failed(String::new()), Record::Close(Some("x".into()))]);
    }

    #[test]
    fn calls_are_those_of_the_dotnet_client() {
        let arguments = json!(["EchoVM", { "$headers": {}, "$vmArg": { "PingInterval": "1000" } }]);
        let call = invocation(Protocol::Json, "Request_VM", arguments.clone());
        let expected = "{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"EchoVM\",{\"$headers\":{},\"$vmArg\":{\"PingInterval\":\"1000\"}}]}\u{1e}";
        assert_eq!(String::from_utf8(call).unwrap(), expected);
        let call = invocation(Protocol::MessagePack, "Request_VM", arguments);
        let expected = b"\x3d\x96\x01\x80\xc0\xaaRequest_VM\x92\xa6EchoVM\x82\xa8$headers\x80\xa6$vmArg\x81\xacPingInterval\xa41000\x90";
        assert_eq!(call, expected);
        assert_eq!(
            (ping(Protocol::Json), ping(Protocol::MessagePack)),
            (b"{\"type\":6}\x1e".to_vec(), b"\x02\x91\x06".to_vec())
        );
    }

    #[test]
    fn what_is_not_whole_waits_and_what_is_wrong_is_an_error() {
        let long = invocation(Protocol::MessagePack, &"x".repeat(300), Value::Null);
        for end in 0..long.len() {
            assert!(next(Protocol::MessagePack, &long[..end]).unwrap().is_none(), "{end}");
        }
        assert_eq!(next(Protocol::MessagePack, &long).unwrap(), Some((Record::Other, long.len())));
        assert!(next(Protocol::MessagePack, b"\x80\x80\x80\x80\x80\x01").is_err());
        assert!(next(Protocol::MessagePack, b"\x01\xa0").is_err());
        assert!(next(Protocol::Json, b"{\"type\":1").unwrap().is_none());
        assert!(next(Protocol::Json, b"{\"type\":\x1e").is_err());
    }
}
