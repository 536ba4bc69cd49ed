//! Every byte vector of the references about records, hub messages and dotNetify's contract. Section numbers are those of the
//! SignalR reference ("reference") and of the forwarding contract ("contract"). `tests/vectors/*` are recordings of the real npm
//! client and of the real .NET serializer.
use signalring::proto::dotnetify::context::{self, Context, HeaderPolicy, Items, Peer, Prepared, Tail};
use signalring::proto::dotnetify::forward::{self, Forward};
use signalring::proto::dotnetify::request::{self, Call, Request, RequestError};
use signalring::proto::dotnetify::response::{self, Delivery, Recipients, ResponseError};
use signalring::proto::signalr::handshake::{self, Handshake, HandshakeError};
use signalring::proto::signalr::transcode::{self, TranscodeError};
use signalring::proto::signalr::{self, Kind, Message, MessageError, Protocol, Span, encode, json, msgpack, record};

const UPSTREAM_JSON: &str = include_str!("vectors/upstream-json.txt");
const UPSTREAM_MSGPACK: &str = include_str!("vectors/upstream-msgpack.txt");
const NPM_JSON: &str = include_str!("vectors/npm-client-json.log");
const NPM_MSGPACK: &str = include_str!("vectors/npm-client-msgpack.log");

// ---- Records (reference section 10) ---------------------------------------------------------------------------------

#[test]
fn length_prefixes_are_those_of_the_table() {
    let table: [(u32, &str); 8] = [
        (0, "00"),
        (127, "7f"),
        (128, "80 01"),
        (300, "ac 02"),
        (16383, "ff 7f"),
        (16384, "80 80 01"),
        (2097152, "80 80 80 01"),
        (2147483647, "ff ff ff ff 07"),
    ];
    for (length, bytes) in table {
        let bytes = unhex(bytes);
        let mut written = Vec::new();
        record::write_length_prefix(length, &mut written);
        assert_eq!(written, bytes, "{length}");
        assert_eq!(record::length_prefix(&bytes), Ok(Some((bytes.len(), length))));
        for cut in 0..bytes.len() {
            assert_eq!(record::length_prefix(&bytes[..cut]), Ok(None), "{length} cut at {cut}");
        }
    }
    for fifth in [0x08, 0x0f, 0x80, 0xff] {
        assert_eq!(record::length_prefix(&[0xff, 0xff, 0xff, 0xff, fifth]), Err(record::PrefixError::TooLarge));
    }
}

#[test]
fn the_first_separator_ends_a_record() {
    assert_eq!(record::find_separator(b""), None);
    assert_eq!(record::find_separator(b"{\"type\":6}"), None);
    assert_eq!(record::find_separator(b"{}\x1e{}\x1e"), Some(2));
}

// ---- Handshake (reference section 11, contract 1.2) -----------------------------------------------------------------

#[test]
fn handshake_requests() {
    let json = |version| Ok(Handshake { protocol: Protocol::Json, version });
    let message_pack = |version| Ok(Handshake { protocol: Protocol::MessagePack, version });
    for (request, expected) in [
        (r#"{"protocol":"json","version":1}"#, json(1)),
        (r#"{"version":1,"protocol":"json"}"#, json(1)),
        (r#" { "protocol" : "JSON" , "version" : 2 , "later":[{"x":null}] } "#, json(2)),
        (r#"{"protocol":"messagepack","version":2}"#, message_pack(2)),
        (r#"{"protocol":"MessagePack","version":1}"#, message_pack(1)),
        (r#"{"\u0070rotocol":"\u006ason","version":1}"#, json(1)),
        (r#"{"protocol":"json","version":0}"#, json(1)),
        (r#"{"protocol":"blazorpack","version":1}"#, Err(HandshakeError::Protocol("blazorpack".into()))),
        (r#"{"protocol":"json","version":3}"#, Err(HandshakeError::Version { protocol: "json".into(), version: 3 })),
        (r#"{"protocol":"json"}"#, Err(HandshakeError::Malformed)),
        (r#"{"version":1}"#, Err(HandshakeError::Malformed)),
        (r#"{"protocol":null,"version":1}"#, Err(HandshakeError::Malformed)),
        (r#"{"protocol":"json","version":"1"}"#, Err(HandshakeError::Malformed)),
        (r#"{"protocol":"json","version":1.0}"#, Err(HandshakeError::Malformed)),
        (r#"{"protocol":"json","version":1"#, Err(HandshakeError::Malformed)),
        (r#"["json",1]"#, Err(HandshakeError::Malformed)),
        ("", Err(HandshakeError::Malformed)),
    ] {
        assert_eq!(handshake::parse_request(request.as_bytes()), expected, "{request}");
    }
    assert_eq!(handshake::parse_request(b"{\"protocol\":\"\xff\",\"version\":1}"), Err(HandshakeError::Malformed));
}

#[test]
fn handshake_answers() {
    assert_eq!(written(handshake::write_accept), b"\x7b\x7d\x1e");
    for (error, text) in [
        (HandshakeError::Canceled, "Handshake was canceled."),
        (HandshakeError::Protocol("x\"y".into()), "The protocol 'x\\\"y' is not supported."),
        (
            HandshakeError::Version { protocol: "json".into(), version: 3 },
            "The server does not support version 3 of the 'json' protocol.",
        ),
        (HandshakeError::Malformed, "An unexpected error occurred during connection handshake."),
    ] {
        let answer = written(|out| handshake::write_refusal(&error, out));
        assert_eq!(String::from_utf8(answer.clone()).unwrap(), format!("{{\"error\":\"{text}\"}}\x1e"));
        let (_, record) = answer.split_last().unwrap();
        assert_eq!(handshake::parse_answer(record), Err(error.to_string()));
    }
    assert_eq!(handshake::parse_answer(b"{}"), Ok(()));
    assert_eq!(handshake::parse_answer(b" {\"minorVersion\":1} "), Ok(()));
    let unexpected = Err("Expected a handshake response from the server.".to_string());
    assert_eq!(handshake::parse_answer(b"{\"type\":6}"), unexpected);
    assert_eq!(handshake::parse_answer(b"<html>"), unexpected);
}

#[test]
fn lanes_ask_as_the_npm_client_does() {
    assert_eq!(
        written(|out| handshake::write_request(Protocol::Json, 1, out)),
        b"{\"protocol\":\"json\",\"version\":1}\x1e"
    );
    assert_eq!(
        written(|out| handshake::write_request(Protocol::MessagePack, 2, out)),
        b"{\"protocol\":\"messagepack\",\"version\":2}\x1e"
    );
}

// ---- JSON messages (reference section 12.1) -------------------------------------------------------------------------

#[test]
fn every_json_type_is_read() {
    let table: [(&str, Kind); 23] = [
        (r#"{"type":1,"target":"Add","arguments":[42]}"#, Kind::Invocation),
        (r#"{"target":"Add","arguments":[42],"invocationId":"0","type":1}"#, Kind::Invocation),
        (
            r#"{"type":1,"headers":{"a":"b"},"invocationId":"","target":"Add","arguments":[],"streamIds":["1"]}"#,
            Kind::Invocation,
        ),
        (r#"{"\u0074ype":1,"t\u0061rget":"Add","arguments":[]}"#, Kind::Invocation),
        (r#"{"type":7,"type":1,"target":"Sub","target":"Add","arguments":[]}"#, Kind::Invocation),
        (r#"{"invocationId":"1","item":5,"type":2}"#, Kind::StreamItem),
        (r#"{"invocationId":"1","item":null,"type":2}"#, Kind::StreamItem),
        (r#"{"invocationId":"s1","result":5,"type":3}"#, Kind::Completion),
        (r#"{"error":"x","invocationId":"s1","type":3}"#, Kind::Completion),
        (r#"{"type":3,"invocationId":"0","result":null}"#, Kind::Completion),
        (r#"{"type":3,"invocationId":"0"}"#, Kind::Completion),
        (r#"{"type":4,"invocationId":"1","target":"Count","arguments":[]}"#, Kind::StreamInvocation),
        (r#"{"type":5,"invocationId":"1"}"#, Kind::CancelInvocation),
        (r#"{"type":6}"#, Kind::Ping),
        (" { \"type\" :\t6 } \r\n", Kind::Ping),
        (r#"{"type":7}"#, Kind::Close),
        (r#"{"type":7,"error":"bye","allowReconnect":true}"#, Kind::Close),
        (r#"{"type":8,"sequenceId":3}"#, Kind::Ack),
        (r#"{"type":9,"sequenceId":9223372036854775807}"#, Kind::Sequence),
        (r#"{"type":10,"whatever":1}"#, Kind::Unknown),
        (r#"{"type":-1}"#, Kind::Unknown),
        (r#"{"type":6,"Target":null,"ARGUMENTS":0}"#, Kind::Ping),
        (r#"{"type":6,"extra":{"deep":[[["\ud800",1e9,-0.5]]]}}"#, Kind::Ping),
    ];
    for (text, kind) in table {
        assert_eq!(json::parse(text.as_bytes()).map(|message| message.kind), Ok(kind), "{text}");
    }
}

#[test]
fn json_views_point_at_the_right_bytes() {
    let text = br#" {"arguments":[ "Page.Sub" , {"a" : [1, 2]},3 ,4,5],"invocationId":"i\"1","target":"T","type":1,"streamIds":["9"]} "#;
    let message = json::parse(text).unwrap();
    assert_eq!(message.arguments.count, 5);
    let arguments: Vec<_> = message.arguments.spans.iter().map(|span| show(text, *span)).collect();
    assert_eq!(arguments, ["\"Page.Sub\"", "{\"a\" : [1, 2]}", "3", "4"]);
    assert_eq!(show(text, message.invocation_id.unwrap()), "i\\\"1");
    assert_eq!(show(text, message.target.unwrap()), "T");
    assert!(message.has_streams);

    let text = br#"{"type":7,"error":"","allowReconnect":true}"#;
    let message = json::parse(text).unwrap();
    assert_eq!((message.error.map(|error| show(text, error)), message.allow_reconnect), (Some(String::new()), true));

    let text = br#"{"type":2,"invocationId":"1","result":7,"item": {} }"#;
    assert_eq!(show(text, json::parse(text).unwrap().result.unwrap()), "{}");
    assert_eq!(json::parse(br#"{"type":8,"sequenceId":300}"#).unwrap().sequence_id, Some(300));
    // An empty id of an invocation is none.
    assert_eq!(
        json::parse(br#"{"type":1,"invocationId":"","target":"T","arguments":[]}"#).unwrap().invocation_id,
        None
    );
}

#[test]
fn wrong_json_messages_say_why() {
    use MessageError::*;
    for (text, error) in [
        ("", Syntax),
        ("{", Syntax),
        ("{}}", Syntax),
        (r#"{"type":6,}"#, Syntax),
        (r#"{"type":6}/**/"#, Syntax),
        (r#"{"type":06}"#, Syntax),
        (r#"{'type':6}"#, Syntax),
        (r#"{"type":6,"x":"\x"}"#, Syntax),
        (r#"{"type":6,"x":"\u12"}"#, Syntax),
        ("{\"type\":6,\"x\":\"\n\"}", Syntax),
        (r#"{"type":null,"x"}"#, Syntax),
        ("[]", NotAMessage),
        ("6", NotAMessage),
        ("null", NotAMessage),
        ("{}", MissingType),
        (r#"{"Type":6}"#, MissingType),
        (r#"{"type":"6"}"#, PropertyType),
        (r#"{"type":6.0}"#, PropertyType),
        (r#"{"type":6e0}"#, PropertyType),
        (r#"{"type":2147483648}"#, PropertyType),
        (r#"{"type":null}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":[],"invocationId":null}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":[],"invocationId":1}"#, PropertyType),
        (r#"{"type":1,"target":5,"arguments":[]}"#, PropertyType),
        (r#"{"type":1,"target":null,"target":"Add","arguments":[]}"#, PropertyType),
        (r#"{"type":1,"target":"\ud800","arguments":[]}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":{}}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":[],"streamIds":[null]}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":[],"streamIds":"1"}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":[],"headers":{"a":1}}"#, PropertyType),
        (r#"{"type":1,"target":"T","arguments":[],"headers":null}"#, PropertyType),
        (r#"{"type":7,"allowReconnect":1}"#, PropertyType),
        (r#"{"type":7,"error":null}"#, PropertyType),
        (r#"{"type":8,"sequenceId":-1}"#, PropertyType),
        (r#"{"type":8,"sequenceId":"1"}"#, PropertyType),
        (r#"{"type":1,"target":"T"}"#, MissingProperty),
        (r#"{"type":1,"arguments":[]}"#, MissingProperty),
        (r#"{"type":1,"target":"","arguments":[]}"#, MissingProperty),
        (r#"{"type":4,"target":"T","arguments":[]}"#, MissingProperty),
        (r#"{"type":2,"invocationId":"1"}"#, MissingProperty),
        (r#"{"type":3}"#, MissingProperty),
        (r#"{"type":5}"#, MissingProperty),
        (r#"{"type":9}"#, MissingProperty),
        (r#"{"type":3,"invocationId":"1","error":"x","result":null}"#, ResultAndError),
    ] {
        assert_eq!(json::parse(text.as_bytes()), Err(error), "{text}");
    }
}

/// System.Text.Json counts the message object as depth 1 and takes 64.
#[test]
fn json_depth_is_bounded_like_dotnets() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| {
            let inner = format!("{}0{}", open.repeat(depth), close.repeat(depth));
            json::parse(format!("{{\"type\":6,\"x\":{inner}}}").as_bytes()).map(|message| message.kind)
        };
        assert_eq!(nested(63), Ok(Kind::Ping));
        assert_eq!(nested(64), Err(MessageError::TooDeep));
        assert_eq!(nested(10_000), Err(MessageError::TooDeep));
        let argument = |depth: usize| {
            let inner = format!("{}0{}", open.repeat(depth), close.repeat(depth));
            json::parse(format!("{{\"type\":1,\"target\":\"T\",\"arguments\":[{inner}]}}").as_bytes())
                .map(|message| message.kind)
        };
        assert_eq!(argument(62), Ok(Kind::Invocation));
        assert_eq!(argument(63), Err(MessageError::TooDeep));
    }
    assert_eq!(json::parse("[".repeat(65).as_bytes()), Err(MessageError::TooDeep));
}

#[test]
fn records_a_node_writes_itself() {
    assert_eq!(encode::ping(Protocol::Json), b"{\"type\":6}\x1e");
    assert_eq!(
        written(|out| encode::completion_null(Protocol::Json, b"0", out)),
        b"{\"type\":3,\"invocationId\":\"0\",\"result\":null}\x1e"
    );
    assert_eq!(
        written(|out| encode::completion_error(Protocol::Json, b"a\\u0041", "Unknown hub method '\"\n'", out)),
        b"{\"type\":3,\"invocationId\":\"a\\u0041\",\"error\":\"Unknown hub method '\\\"\\n'\"}\x1e"
    );
    assert_eq!(written(|out| encode::ack(Protocol::Json, 3, out)), b"{\"type\":8,\"sequenceId\":3}\x1e");
    let last = written(|out| encode::sequence(Protocol::Json, i64::MAX as u64, out));
    assert_eq!(last, b"{\"type\":9,\"sequenceId\":9223372036854775807}\x1e");
    assert_eq!(written(|out| encode::close(Protocol::Json, None, false, out)), b"{\"type\":7}\x1e");
    assert_eq!(
        written(|out| encode::close(Protocol::Json, None, true, out)),
        b"{\"type\":7,\"allowReconnect\":true}\x1e"
    );
    assert_eq!(
        written(|out| encode::close(Protocol::Json, Some("Connection closed with an error."), true, out)),
        b"{\"type\":7,\"error\":\"Connection closed with an error.\",\"allowReconnect\":true}\x1e"
    );
}

// ---- MessagePack messages (reference section 12.2) ------------------------------------------------------------------

/// What a view says, written out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    target: &'static str,
    id: &'static str,
    arguments: &'static [&'static str],
    error: Option<&'static str>,
    result: Option<&'static str>,
    allow_reconnect: bool,
    sequence_id: Option<u64>,
    has_streams: bool,
}

#[test]
fn framed_messagepack_vectors() {
    let none = || Shown::default();
    let table: [(Kind, &str, Shown); 17] = [
        (
            Kind::Invocation,
            "0d 96 01 80 a1 37 a3 41 64 64 92 28 02 90",
            Shown { target: "Add", id: "7", arguments: &["28", "02"], ..none() },
        ),
        (
            Kind::Invocation,
            "0c 95 01 80 c0 a3 53 61 79 91 a2 68 69",
            Shown { target: "Say", arguments: &["a26869"], ..none() },
        ),
        (
            Kind::Invocation,
            "0c 96 01 80 a1 38 a2 55 70 90 91 a1 39",
            Shown { target: "Up", id: "8", has_streams: true, ..none() },
        ),
        (
            Kind::Invocation,
            "1b 96 01 81 ab 74 72 61 63 65 70 61 72 65 6e 74 a1 78 c0 a3 53 61 79 91 a2 68 69 90",
            Shown { target: "Say", arguments: &["a26869"], ..none() },
        ),
        (
            Kind::StreamInvocation,
            "0f 96 04 80 a2 31 30 a5 43 6f 75 6e 74 91 03 90",
            Shown { target: "Count", id: "10", arguments: &["03"], ..none() },
        ),
        (Kind::StreamItem, "07 94 02 80 a2 31 30 01", Shown { id: "10", result: Some("01"), ..none() }),
        (Kind::Completion, "0b 95 03 80 a1 37 01 a4 62 6f 6f 6d", Shown { id: "7", error: Some("boom"), ..none() }),
        (Kind::Completion, "06 94 03 80 a1 37 02", Shown { id: "7", ..none() }),
        (Kind::Completion, "07 95 03 80 a1 37 03 2a", Shown { id: "7", result: Some("2a"), ..none() }),
        (Kind::Completion, "07 95 03 80 a1 37 03 c0", Shown { id: "7", result: Some("c0"), ..none() }),
        (Kind::CancelInvocation, "06 93 05 80 a2 31 30", Shown { id: "10", ..none() }),
        (Kind::Ping, "02 91 06", none()),
        (Kind::Close, "04 93 07 c0 c2", none()),
        (Kind::Close, "07 93 07 a3 62 79 65 c3", Shown { error: Some("bye"), allow_reconnect: true, ..none() }),
        (Kind::Close, "03 92 07 c0", none()),
        (Kind::Ack, "05 92 08 cd 01 2c", Shown { sequence_id: Some(300), ..none() }),
        (Kind::Sequence, "03 92 09 01", Shown { sequence_id: Some(1), ..none() }),
    ];
    for (kind, vector, expected) in table {
        let framed = unhex(vector);
        let body = single_body(&framed);
        let message = msgpack::parse(body).unwrap_or_else(|error| panic!("{vector}: {error:?}"));
        assert_eq!(message.kind, kind, "{vector}");
        let text = |span: Option<Span>| span.map(|span| show(body, span));
        assert_eq!(text(message.target).unwrap_or_default(), expected.target, "{vector}");
        assert_eq!(text(message.invocation_id).unwrap_or_default(), expected.id, "{vector}");
        assert_eq!(message.arguments.count as usize, expected.arguments.len(), "{vector}");
        for (span, argument) in message.arguments.spans.iter().zip(expected.arguments) {
            assert_eq!(hex(span.of(body)), *argument, "{vector}");
        }
        assert_eq!(text(message.error).as_deref(), expected.error, "{vector}");
        assert_eq!(message.result.map(|span| hex(span.of(body))).as_deref(), expected.result, "{vector}");
        assert_eq!(
            (message.allow_reconnect, message.sequence_id, message.has_streams),
            (expected.allow_reconnect, expected.sequence_id, expected.has_streams),
            "{vector}"
        );
        // Cut anywhere, it is no message.
        for cut in 0..body.len() {
            assert!(msgpack::parse(&body[..cut]).is_err(), "{vector} cut at {cut}");
        }
    }
}

#[test]
fn messagepack_records_a_node_writes_itself() {
    assert_eq!(encode::ping(Protocol::MessagePack), unhex("02 91 06"));
    assert_eq!(
        written(|out| encode::completion_null(Protocol::MessagePack, b"7", out)),
        unhex("07 95 03 80 a1 37 03 c0")
    );
    assert_eq!(
        written(|out| encode::completion_error(Protocol::MessagePack, b"7", "boom", out)),
        unhex("0b 95 03 80 a1 37 01 a4 62 6f 6f 6d")
    );
    assert_eq!(written(|out| encode::close(Protocol::MessagePack, None, false, out)), unhex("04 93 07 c0 c2"));
    assert_eq!(written(|out| encode::ack(Protocol::MessagePack, 300, out)), unhex("05 92 08 cd 01 2c"));
    assert_eq!(written(|out| encode::sequence(Protocol::MessagePack, 1, out)), unhex("03 92 09 01"));
    assert_eq!(
        written(|out| encode::close(Protocol::MessagePack, Some("bye"), true, out)),
        unhex("07 93 07 a3 62 79 65 c3")
    );
    // Prefixes of every length, behind something that must stay.
    for length in [0usize, 120, 130, 20_000, 3_000_000] {
        let mut out = b"before".to_vec();
        msgpack::write_record(&mut out, |out| out.extend((0..length).map(|index| index as u8)));
        let (prefix, body) = record::length_prefix(&out[6..]).unwrap().unwrap();
        assert_eq!((&out[..6], body as usize), (&b"before"[..], length));
        assert!(out[6 + prefix..].iter().copied().eq((0..length).map(|index| index as u8)));
    }
}

#[test]
fn either_protocol_says_the_same() {
    let (text, body) = (&br#"{"type":7,"error":"a\u005cn"}"#[..], &unhex("92 07 a3 61 5c 6e")[..]);
    for (protocol, record, other) in
        [(Protocol::Json, text, Protocol::MessagePack), (Protocol::MessagePack, body, Protocol::Json)]
    {
        let message = signalr::parse(protocol, record).unwrap();
        assert_eq!(message.kind, Kind::Close);
        let error = message.error.unwrap().of(record);
        assert_eq!(written(|out| signalr::plain_text(protocol, error, out)), b"a\\n");
        assert!(signalr::parse(other, record).is_err());
    }
}

#[test]
fn wrong_messagepack_messages_say_why() {
    use MessageError::*;
    for (body, error) in [
        ("", Syntax),
        ("80", NotAMessage),
        ("c0", NotAMessage),
        ("90", MissingType),
        ("91 a1 31", PropertyType),
        ("91 c1", PropertyType),
        ("dd ff ff ff ff 06", Syntax),
        ("91 01", MissingProperty),
        ("94 01 80 c0 a1 54", MissingProperty),
        ("95 01 c0 c0 a1 54 90", PropertyType),
        ("95 01 81 a0 a1 78 c0 a1 54 90", PropertyType),
        ("95 01 81 a1 78 05 c0 a1 54 90", PropertyType),
        ("95 01 80 05 a1 54 90", PropertyType),
        ("95 01 80 c0 c0 90", MissingProperty),
        ("95 01 80 c0 a0 90", MissingProperty),
        ("95 01 80 c0 a1 ff 90", PropertyType),
        ("95 01 80 c0 a1 54 80", PropertyType),
        ("95 01 80 c0 a1 54 91 c1", Syntax),
        ("96 01 80 c0 a1 54 90 91 05", PropertyType),
        ("95 04 80 c0 a1 54 90", MissingProperty),
        ("93 02 80 a1 37", MissingProperty),
        ("93 05 80 c0", MissingProperty),
        ("94 03 80 a1 37 01", MissingProperty),
        ("94 03 80 a1 37 04", ResultKind),
        ("95 03 80 a1 37 01 c0", PropertyType),
        ("91 07", MissingProperty),
        ("93 07 c0 00", PropertyType),
        ("92 08 ff", PropertyType),
    ] {
        assert_eq!(msgpack::parse(&unhex(body)), Err(error), "{body}");
    }
    // Extra items are tolerated, and so is a type of the future.
    assert_eq!(msgpack::parse(&unhex("93 06 81 01 02 c4 01 ff")).unwrap().kind, Kind::Ping);
    assert_eq!(msgpack::parse(&unhex("92 2a c3")).unwrap().kind, Kind::Unknown);
    // Depth: the message's array is the first.
    let deep = |depth: usize| {
        let mut body = unhex("92 06");
        body.extend(std::iter::repeat_n(0x91, depth));
        body.push(0xc0);
        msgpack::parse(&body).map(|message| message.kind)
    };
    assert_eq!((deep(63), deep(64)), (Ok(Kind::Ping), Err(TooDeep)));
}

// ---- The npm client's own bytes (contract 1.3) ----------------------------------------------------------------------

#[test]
fn npm_json_recording_is_understood() {
    let mut seen = Vec::new();
    let mut handshakes = 0;
    for line in NPM_JSON.lines().filter_map(|line| line.strip_prefix("WS-IN TXT ")) {
        let bytes: String = serde_json::from_str(line).unwrap();
        for text in json_records(bytes.as_bytes()) {
            if let Ok(handshake) = handshake::parse_request(text) {
                assert_eq!(handshake, Handshake { protocol: Protocol::Json, version: 1 });
                handshakes += 1;
                continue;
            }
            let message = json::parse(text).unwrap();
            let request = request::parse(text, &message).unwrap();
            let argument = request.argument.map(|span| show(text, span)).unwrap_or_default();
            seen.push((show(text, message.invocation_id.unwrap()), request.call, show(text, request.vm_id), argument));
        }
    }
    let entry =
        |id: &str, call, vm: &str, argument: &str| (id.to_string(), call, format!("\"{vm}\""), argument.to_string());
    let first = [
        entry("0", Call::RequestVm, "HelloWorldVM", "{}"),
        entry(
            "1",
            Call::RequestVm,
            "Page.Sub",
            r#"{"$vmArg":{"Id":5,"Name":"é\"<"},"$headers":{"Authorization":"Bearer abc"}}"#,
        ),
    ];
    assert_eq!(handshakes, 3);
    assert_eq!(seen[..2], first);
    assert_eq!(
        seen[2..5],
        [
            entry("2", Call::DisposeVm, "UnknownVM", ""),
            entry("3", Call::UpdateVm, "HelloWorldVM", r#"{"FirstName":"John","Age":5,"Nested":{"a":[1,null,true]}}"#),
            entry("4", Call::UpdateVm, "HelloWorldVM", r#"{"$headers":{"Authorization":"Bearer new"}}"#),
        ]
    );
    assert_eq!(seen[5..7], first);
    assert_eq!(seen[7..9], first);
    assert_eq!(seen[9..], [entry("2", Call::DisposeVm, "Page.Sub", "")]);
}

#[test]
fn npm_messagepack_recording_is_understood() {
    let mut seen = Vec::new();
    for line in NPM_MSGPACK.lines().filter_map(|line| line.strip_prefix("WS-IN BIN ")) {
        let bytes = unhex(line);
        for body in msgpack_bodies(&bytes) {
            let message = msgpack::parse(body).unwrap();
            assert_eq!(message.kind, Kind::Invocation);
            let vm = msgpack::text(message.arguments.spans[0].of(body)).unwrap();
            let vm = show(message.arguments.spans[0].of(body), vm);
            seen.push((
                show(body, message.invocation_id.unwrap()),
                show(body, message.target.unwrap()),
                vm,
                message.arguments.count,
            ));
        }
    }
    let entry = |id: &str, target: &str, vm: &str, count| (id.to_string(), target.to_string(), vm.to_string(), count);
    assert_eq!(
        seen,
        [
            entry("0", "Request_VM", "NoArgVM", 2),
            entry("1", "Request_VM", "HelloWorldVM", 2),
            entry("2", "Update_VM", "HelloWorldVM", 2),
            entry("3", "Dispose_VM", "HelloWorldVM", 1),
        ]
    );
    let handshake = NPM_MSGPACK.lines().find_map(|line| line.strip_prefix("WS-IN TXT ")).unwrap();
    let handshake: String = serde_json::from_str(handshake).unwrap();
    assert_eq!(
        handshake::parse_request(handshake.trim_end_matches('\x1e').as_bytes()),
        Ok(Handshake { protocol: Protocol::MessagePack, version: 2 })
    );
}

/// What the recorded client says in MessagePack becomes the text it would have sent in JSON.
#[test]
fn npm_messagepack_requests_become_json() {
    let mut seen = Vec::new();
    for line in NPM_MSGPACK.lines().filter_map(|line| line.strip_prefix("WS-IN BIN ")) {
        for body in msgpack_bodies(&unhex(line)) {
            let (out, request) = ask_encoded(body);
            let request = request.unwrap();
            let argument = request.argument.map(|argument| show(&out, argument)).unwrap_or_default();
            seen.push((request.call, show(&out, request.vm_id), argument));
        }
    }
    let entry = |call, vm: &str, argument: &str| (call, vm.to_string(), argument.to_string());
    assert_eq!(
        seen,
        [
            entry(Call::RequestVm, r#""NoArgVM""#, r#"{"$vmArg":null,"$headers":null}"#),
            entry(
                Call::RequestVm,
                r#""HelloWorldVM""#,
                r#"{"$vmArg":{"Id":5,"Big":5000000000,"F":1.5,"D":"1970-01-01T00:00:00Z"},"$headers":{"Authorization":"Bearer abc"}}"#
            ),
            entry(Call::UpdateVm, r#""HelloWorldVM""#, r#"{"FirstName":"John","Age":5,"Nested":{"a":[1,null,true]}}"#),
            entry(Call::DisposeVm, r#""HelloWorldVM""#, ""),
        ]
    );
}

#[test]
fn encoded_requests() {
    // JavaScript's invocations have five items, .NET's six; names in any case; quotes in a vmId are escaped.
    for body in [
        "95 01 80 a1 30 aa 52 65 71 75 65 73 74 5f 56 4d 92 a3 61 22 5c c0",
        "96 01 80 c0 aa 72 45 51 55 45 53 54 5f 76 6d 92 a3 61 22 5c c0 90",
    ] {
        let (out, request) = ask_encoded(&unhex(body));
        let request = request.unwrap();
        assert_eq!((request.call, show(&out, request.vm_id)), (Call::RequestVm, r#""a\"\\""#.to_string()));
        assert_eq!(show(&out, request.argument.unwrap()), "null");
        assert_eq!(out, br#""a\"\\"null"#);
    }
    // Anything goes as vmArg.
    for (argument, text) in [
        ("05", "5"),
        ("c2", "false"),
        ("a0", "\"\""),
        ("90", "[]"),
        ("c4 01 ff", "\"/w==\""),
        ("81 a1 61 01", "{\"a\":1}"),
    ] {
        let body = unhex(&format!("95 01 80 c0 aa 52 65 71 75 65 73 74 5f 56 4d 92 a1 58 {argument}"));
        let (out, request) = ask_encoded(&body);
        assert_eq!(show(&out, request.unwrap().argument.unwrap()), text);
    }
    use RequestError::*;
    let update = "a9 55 70 64 61 74 65 5f 56 4d";
    let dispose = "aa 44 69 73 70 6f 73 65 5f 56 4d";
    for (body, error) in [
        ("95 01 80 c0 a6 49 6e 76 6f 6b 65 93 a1 58 90 80".to_string(), UnknownMethod),
        // Escapes mean nothing here: `Update\u005fVM`.
        ("95 01 80 c0 ae 55 70 64 61 74 65 5c 75 30 30 35 66 56 4d 92 a1 58 80".to_string(), UnknownMethod),
        (format!("95 01 80 c0 {update} 91 a1 58"), ArgumentCount),
        (format!("95 01 80 c0 {update} 93 a1 58 80 c0"), ArgumentCount),
        (format!("95 01 80 c0 {dispose} 92 a1 58 c0"), ArgumentCount),
        (format!("96 01 80 c0 {dispose} 91 a1 58 91 a1 31"), ArgumentCount),
        (format!("95 01 80 c0 {dispose} 91 c0"), ArgumentType),
        (format!("95 01 80 c0 {dispose} 91 05"), ArgumentType),
        (format!("95 01 80 c0 {dispose} 91 c4 01 58"), ArgumentType),
        (format!("95 01 80 c0 {dispose} 91 a1 ff"), ArgumentType),
        (format!("95 01 80 c0 {update} 92 a1 58 90"), ArgumentType),
        (format!("95 01 80 c0 {update} 92 a1 58 a2 7b 7d"), ArgumentType),
        // No JSON: NaN, half a character, an unknown extension, a nil key.
        (format!("95 01 80 c0 {update} 92 a1 58 81 a1 61 ca 7f c0 00 00"), ArgumentType),
        (format!("95 01 80 c0 {update} 92 a1 58 81 a1 61 a1 c3"), ArgumentType),
        (format!("95 01 80 c0 {update} 92 a1 58 81 a1 61 d4 05 00"), ArgumentType),
        (format!("95 01 80 c0 {update} 92 a1 58 81 c0 01"), ArgumentType),
        (format!("95 04 80 a1 31 {update} 92 a1 58 80"), Streaming),
    ] {
        assert_eq!(ask_encoded(&unhex(&body)).1, Err(error), "{body}");
    }
    assert_eq!(ask_encoded(&unhex(&format!("95 01 80 c0 {update} 92 a1 58 c0"))).1.unwrap().call, Call::UpdateVm);
}

// ---- MessagePack values as JSON (contract 2.2) ----------------------------------------------------------------------

fn to_json(value: &str) -> Result<String, TranscodeError> {
    let mut out = b"before".to_vec();
    let result = transcode::to_json(&unhex(value), &mut out);
    let text = String::from_utf8(out).unwrap();
    let text = text.strip_prefix("before").unwrap();
    if result.is_err() {
        assert_eq!(text, "", "an error appends nothing");
    }
    result.map(|()| text.to_string())
}

#[test]
fn values_become_the_text_of_system_text_json() {
    for (value, text) in [
        ("c0", "null"),
        ("c2", "false"),
        ("c3", "true"),
        // Every integer form, and every digit.
        ("00", "0"),
        ("7f", "127"),
        ("e0", "-32"),
        ("ff", "-1"),
        ("cc ff", "255"),
        ("cd ff ff", "65535"),
        ("ce ff ff ff ff", "4294967295"),
        ("cf ff ff ff ff ff ff ff ff", "18446744073709551615"),
        ("cf 00 20 00 00 00 00 00 01", "9007199254740993"),
        ("d0 80", "-128"),
        ("d1 80 00", "-32768"),
        ("d2 80 00 00 00", "-2147483648"),
        ("d3 80 00 00 00 00 00 00 00", "-9223372036854775808"),
        // Texts.
        ("a0", r#""""#),
        ("a5 61 22 5c 0a 01", r#""a\"\\\n\u0001""#),
        ("d9 02 c3 a9", "\"é\""),
        ("da 00 01 2f", "\"/\""),
        ("db 00 00 00 01 1e", "\"\\u001E\""),
        // Bytes, in base64 with padding.
        ("c4 00", r#""""#),
        ("c4 01 fb", r#""+w==""#),
        ("c5 00 02 fb ff", r#""+/8=""#),
        ("c6 00 00 00 03 00 01 02", r#""AAEC""#),
        // Timestamps of 32, 64 and 96 bits.
        ("d6 ff 00 00 00 00", r#""1970-01-01T00:00:00Z""#),
        ("d6 ff 65 93 7d 25", r#""2024-01-02T03:04:05Z""#),
        ("d6 ff ff ff ff ff", r#""2106-02-07T06:28:15Z""#),
        ("d7 ff 1d cd 65 00 65 93 7d 25", r#""2024-01-02T03:04:05.125Z""#),
        ("d7 ff 00 00 00 03 ff ff ff ff", r#""2514-05-30T01:53:03Z""#),
        ("c7 0c ff 00 00 00 64 ff ff ff ff ff ff ff ff", r#""1969-12-31T23:59:59.0000001Z""#),
        ("c7 0c ff 00 00 00 63 00 00 00 00 00 00 00 00", r#""1970-01-01T00:00:00Z""#),
        ("c7 0c ff 3b 9a c9 ff ff ff ff f1 88 6e 09 00", r#""0001-01-01T00:00:00.9999999Z""#),
        ("c7 0c ff 00 00 00 00 00 00 00 3a ff f4 41 7f", r#""9999-12-31T23:59:59Z""#),
        ("c7 04 ff 00 00 00 01", r#""1970-01-01T00:00:01Z""#),
        ("c8 00 08 ff 00 00 00 00 00 00 00 02", r#""1970-01-01T00:00:02Z""#),
        // Arrays and maps; order and duplicates stay.
        ("90", "[]"),
        ("80", "{}"),
        ("93 01 90 80", "[1,[],{}]"),
        ("dc 00 02 c0 91 91 c3", "[null,[[true]]]"),
        ("dd 00 00 00 01 01", "[1]"),
        ("82 a1 62 01 a1 61 82 a1 62 90 a1 62 c0", r#"{"b":1,"a":{"b":[],"b":null}}"#),
        ("de 00 01 a0 80", r#"{"":{}}"#),
        ("df 00 00 00 01 a1 22 91 80", r#"{"\"":[{}]}"#),
        // Keys that are no strings.
        (
            "86 05 00 e0 00 c3 00 c2 00 ca 3f c0 00 00 00 cb 40 00 00 00 00 00 00 00 00",
            r#"{"5":0,"-32":0,"true":0,"false":0,"1.5":0,"2":0}"#,
        ),
    ] {
        assert_eq!(to_json(value).as_deref(), Ok(text), "{value}");
    }
}

#[test]
fn floats_are_as_short_as_they_can_be() {
    let text = |bytes: &[u8]| to_json(&hex(bytes));
    let single = |number: f32| text(&[&[0xca][..], &number.to_be_bytes()].concat());
    let double = |number: f64| text(&[&[0xcb][..], &number.to_be_bytes()].concat());
    for (number, expected) in [
        (0.1, "0.1"),
        (-1.5, "-1.5"),
        (3.0, "3"),
        (1e6, "1000000"),
        (1e7, "1E+07"),
        (16_777_216.0, "16777216"),
        (1e-4, "0.0001"),
        (1e-5, "1E-05"),
        (f32::MAX, "3.4028235E+38"),
        (1e-45, "1E-45"),
    ] {
        assert_eq!(single(number).as_deref(), Ok(expected));
    }
    for (number, expected) in [
        (0.0, "0"),
        (-0.0, "-0"),
        (0.1, "0.1"),
        (f64::from(0.1f32), "0.10000000149011612"),
        (5.0, "5"),
        (-123_456_789.125, "-123456789.125"),
        (1e14, "100000000000000"),
        (1e15, "1E+15"),
        (9_007_199_254_740_993.0, "9007199254740992"),
        (1.234_567_890_123_456_8e17, "1.2345678901234568E+17"),
        (1e-7, "1E-07"),
        (1.5e-7, "1.5E-07"),
        (f64::MAX, "1.7976931348623157E+308"),
        (5e-324, "5E-324"),
    ] {
        assert_eq!(double(number).as_deref(), Ok(expected));
    }
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(single(wrong), Err(TranscodeError::Number));
        assert_eq!(double(wrong.into()), Err(TranscodeError::Number));
    }
}

#[test]
fn values_without_json_are_errors() {
    use TranscodeError::*;
    for (value, error) in [
        ("", Syntax),
        ("c1", Syntax),
        ("01 01", Syntax),
        ("92 01", Syntax),
        ("81 a1 61", Syntax),
        ("91 c1", Syntax),
        ("a5 61", Syntax),
        ("cd 01", Syntax),
        ("ca 00 00", Syntax),
        ("c4 05 00", Syntax),
        ("d6 ff 00", Syntax),
        ("c7 0c", Syntax),
        // Lengths that lie.
        ("db ff ff ff ff 61", Syntax),
        ("c6 ff ff ff ff 61", Syntax),
        ("dd ff ff ff ff 01 01", Syntax),
        ("df ff ff ff ff 01 01", Syntax),
        ("c9 ff ff ff ff ff 00", Syntax),
        ("a1 ff", Text),
        ("a2 c3 28", Text),
        ("a3 ed a0 80", Text),
        ("81 a1 ff 00", Text),
        ("d4 05 00", Extension),
        ("d6 01 00 00 00 00", Extension),
        ("c7 00 05", Extension),
        ("d4 ff 00", Timestamp),
        ("c7 00 ff", Timestamp),
        // A whole second of nanoseconds, and the years 0 and 10000.
        ("d7 ff ee 6b 28 00 00 00 00 00", Timestamp),
        ("c7 0c ff 3b 9a ca 00 00 00 00 00 00 00 00 00", Timestamp),
        ("c7 0c ff 00 00 00 00 ff ff ff f1 88 6e 08 ff", Timestamp),
        ("c7 0c ff 00 00 00 00 00 00 00 3a ff f4 41 80", Timestamp),
        ("81 c0 00", Key),
        ("81 90 00", Key),
        ("81 80 00", Key),
        ("81 c4 01 61 00", Key),
        ("81 d6 ff 00 00 00 00 00", Key),
    ] {
        assert_eq!(to_json(value), Err(error), "{value}");
    }
}

/// An argument may be as deep as a JSON client's: the message and its list of arguments are the first two levels.
#[test]
fn transcoded_depth_is_that_of_json() {
    for (open, close) in [("91", "c0"), ("81 a1 61", "c0"), ("81 01", "90")] {
        let inner = usize::from(close == "90");
        let nested = |depth: usize| to_json(&format!("{}{close}", open.repeat(depth - inner)));
        let text = nested(62).unwrap();
        let message = format!("{{\"type\":1,\"target\":\"T\",\"arguments\":[{text}]}}");
        assert!(json::parse(message.as_bytes()).is_ok());
        assert_eq!(nested(63), Err(TranscodeError::TooDeep));
        assert_eq!(nested(30_000), Err(TranscodeError::TooDeep));
    }
}

#[test]
fn other_clients_requests() {
    // The load tester's (contract 1.3), and names in any case and any spelling.
    let text =
        br#"{"type":1,"target":"Request_VM","arguments":["EchoVM",{"$vmArg":{"PingInterval":"1000"},"$headers":{}}]}"#;
    assert_eq!(ask(text).unwrap().call, Call::RequestVm);
    for (target, call) in [
        ("request_vm", Call::RequestVm),
        ("UPDATE_VM", Call::UpdateVm),
        (r"\u0055pdate\u005fVM", Call::UpdateVm),
        (r"\u0075PDATE_VM", Call::UpdateVm),
    ] {
        let text = format!(r#"{{"type":1,"target":"{target}","arguments":["X",null]}}"#);
        assert_eq!(ask(text.as_bytes()).unwrap().call, call, "{target}");
    }
    use RequestError::*;
    for (text, error) in [
        (r#"{"type":1,"target":"Invoke","arguments":["Request_VM",["X",null],null]}"#, UnknownMethod),
        (r#"{"type":1,"target":"Request_VM_Obsolete","arguments":["X",null]}"#, UnknownMethod),
        (r#"{"type":1,"target":"Request_V","arguments":["X",null]}"#, UnknownMethod),
        (r#"{"type":1,"target":"Request_VM","arguments":["X"]}"#, ArgumentCount),
        (r#"{"type":1,"target":"Request_VM","arguments":["X",1,2]}"#, ArgumentCount),
        (r#"{"type":1,"target":"Dispose_VM","arguments":["X",null]}"#, ArgumentCount),
        (r#"{"type":1,"target":"Dispose_VM","arguments":["X"],"streamIds":["1"]}"#, ArgumentCount),
        (r#"{"type":1,"target":"Request_VM","arguments":[null,{}]}"#, ArgumentType),
        (r#"{"type":1,"target":"Request_VM","arguments":["\udc00",{}]}"#, ArgumentType),
        (r#"{"type":1,"target":"Update_VM","arguments":["X",[]]}"#, ArgumentType),
        (r#"{"type":1,"target":"Update_VM","arguments":["X","{}"]}"#, ArgumentType),
        (r#"{"type":4,"invocationId":"1","target":"Update_VM","arguments":["X",{}]}"#, Streaming),
    ] {
        assert_eq!(ask(text.as_bytes()), Err(error), "{text}");
    }
    // Anything goes as vmArg.
    for argument in ["null", "{}", "[]", "5.10", "1e3", "\"hello\"", "\"\"", "true"] {
        let text = format!(r#"{{"type":1,"target":"Request_VM","arguments":["X",{argument}]}}"#);
        assert_eq!(show(text.as_bytes(), ask(text.as_bytes()).unwrap().argument.unwrap()), argument);
    }
}

/// The texts of reference section 13.2.
#[test]
fn request_errors_have_the_servers_words() {
    let text = |error: RequestError, target: &[u8]| {
        String::from_utf8(written(|out| error.write_text(Protocol::Json, target, out))).unwrap()
    };
    assert_eq!(text(RequestError::UnknownMethod, b"Invoke"), "Unknown hub method 'Invoke'");
    assert_eq!(
        text(RequestError::ArgumentCount, b"Update_VM"),
        "Failed to invoke 'Update_VM' due to an error on the server."
    );
    assert_eq!(
        text(RequestError::ArgumentType, b"Update_VM"),
        "Failed to invoke 'Update_VM' due to an error on the server."
    );
    assert_eq!(
        text(RequestError::Streaming, b"Update_VM"),
        "The client attempted to invoke the non-streaming 'Update_VM' method with a streaming invocation."
    );
    assert_eq!(text(RequestError::UnknownMethod, br"a\u0022\n\u00e9"), "Unknown hub method 'a\"\né'");
    let plain = written(|out| RequestError::UnknownMethod.write_text(Protocol::MessagePack, br"a\u0022", out));
    assert_eq!(plain, br"Unknown hub method 'a\u0022'");
    // Cut before the character that does not fit, and nothing after the cut.
    let long = format!("{}é{}", "x".repeat(127), "y\\ny".repeat(50));
    assert_eq!(text(RequestError::UnknownMethod, long.as_bytes()), format!("Unknown hub method '{}'", "x".repeat(127)));
    let exact = format!("{}é\\ny", "x".repeat(126));
    assert_eq!(
        text(RequestError::UnknownMethod, exact.as_bytes()),
        format!("Unknown hub method '{}é'", "x".repeat(126))
    );
}

// ---- Proxy to app server (contract 2.2 to 2.4) ----------------------------------------------------------------------

/// 2024-05-06T07:08:09.1234567Z.
const TICKS: u64 = 1_714_979_289 * 10_000_000 + 1_234_567;

fn prepared(protocol: Protocol) -> Prepared {
    context::prepare(
        protocol,
        &Peer {
            connection_id: "0HM6KABCDEF01",
            local: ("10.0.0.2".parse().unwrap(), 5000),
            remote: ("10.0.0.7".parse().unwrap(), 51234),
            headers: &[("host", b"proxy:5000"), ("user-agent", b"UA/1.0 (x+y)")],
        },
    )
}

fn vector_context(tail: Tail<'_>) -> Context<'_> {
    Context {
        hub_id: b"fRr82pUPRESdT1NCLXmSPg",
        ticks: TICKS,
        connection_id: b"Kx1n2s3d4f5g6h7j8k9lAw",
        tail,
        items: Items::default(),
    }
}

fn upstream(forward: &Forward<'_>) -> String {
    let prepared = prepared(Protocol::Json);
    let context = vector_context(prepared.tail());
    let record = written(|out| forward::write(Protocol::Json, forward, &context, None, out));
    let (separator, text) = record.split_last().unwrap();
    assert_eq!(*separator, record::RECORD_SEPARATOR);
    String::from_utf8(text.to_vec()).unwrap()
}

#[test]
fn upstream_json_vectors_come_out_byte_for_byte() {
    let vm = |call, argument| Forward::Vm { call, vm_id: b"\"HelloWorldVM\"", argument };
    let argument = r#"{"$vmArg":{"Name":"Jé"},"$headers":{"Authorization":"Bearer abc"}}"#;
    assert_eq!(upstream(&vm(Call::RequestVm, Some(argument.as_bytes()))), vector(UPSTREAM_JSON, "REQ"));
    assert_eq!(upstream(&vm(Call::RequestVm, Some(b"null"))), vector(UPSTREAM_JSON, "REQNULL"));
    assert_eq!(upstream(&vm(Call::RequestVm, None)), vector(UPSTREAM_JSON, "REQNULL"));
    assert_eq!(upstream(&vm(Call::DisposeVm, None)), vector(UPSTREAM_JSON, "DSP"));
    assert_eq!(upstream(&Forward::Disconnected), vector(UPSTREAM_JSON, "OFF"));
}

/// The original serialises vmData anew, we copy it: the texts differ, their meaning must not.
#[test]
fn upstream_update_means_what_the_vector_means() {
    let data = r#"{"FirstName":"Jé \"x\"","Age":5}"#;
    let ours =
        upstream(&Forward::Vm { call: Call::UpdateVm, vm_id: b"\"HelloWorldVM\"", argument: Some(data.as_bytes()) });
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (mut ours, mut theirs) = (parse(&ours), parse(vector(UPSTREAM_JSON, "UPD")));
    for frame in [&mut ours, &mut theirs] {
        let inner = &mut frame["arguments"][1][1];
        *inner = parse(inner.as_str().unwrap());
    }
    assert_eq!(ours, theirs);
    // Everything around the data is the same, byte for byte.
    let whole = upstream(&Forward::Vm { call: Call::UpdateVm, vm_id: b"\"HelloWorldVM\"", argument: Some(b"DATA") });
    let theirs = vector(UPSTREAM_JSON, "UPD");
    let (before, after) = whole.split_once("DATA").unwrap();
    assert!(theirs.starts_with(before) && theirs.ends_with(after));
}

/// What else .NET peers send as `Invoke` is a message, but no request of ours.
#[test]
fn upstream_invokes_are_no_requests() {
    for name in ["REQ", "REQNULL", "UPD", "DSP", "OFF", "RSP", "TEL"] {
        let text = vector(UPSTREAM_JSON, name).as_bytes();
        let message = json::parse(text).unwrap();
        assert_eq!(show(text, message.target.unwrap()), "Invoke");
        assert_eq!(request::parse(text, &message), Err(RequestError::UnknownMethod), "{name}");
    }
}

/// Contract 2.2: the argument's JSON text, quotes kept on strings, booleans in lower case.
#[test]
fn arguments_go_as_their_json_text() {
    for argument in
        ["{ \"a\" : 1 }", "[1]", "5.10", "1e3", "\"hello\"", "\"\"", "true", "\"{\\\"a\\\":1}\"", "\"\\ud83d\\u0000\""]
    {
        for call in [Call::RequestVm, Call::UpdateVm] {
            let frame = upstream(&Forward::Vm { call, vm_id: b"\"X\"", argument: Some(argument.as_bytes()) });
            let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
            assert_eq!(frame["arguments"][1][1], *argument);
        }
    }
    for argument in [None, Some(&b"null"[..])] {
        let frame = upstream(&Forward::Vm { call: Call::UpdateVm, vm_id: b"\"X\"", argument });
        assert!(frame.contains(r#"["Update_VM",["X","null"],"#));
    }
}

#[test]
fn acknowledged_lanes_number_their_invocations() {
    let prepared = prepared(Protocol::Json);
    let record = written(|out| {
        forward::write(Protocol::Json, &Forward::Disconnected, &vector_context(prepared.tail()), Some(4711), out)
    });
    let plain = vector(UPSTREAM_JSON, "OFF").replacen("\"type\":1,", "\"type\":1,\"invocationId\":\"4711\",", 1);
    assert_eq!(record, (plain + "\x1e").into_bytes());
}

/// Contract 2.3: further members stand beside the context, and none of the contract's own among them.
#[test]
fn metadata_has_room_for_more() {
    let pairs = [("user", "Jé \"x\""), ("$fwdConnContext", "{}"), ("a\"b", "")];
    for protocol in [Protocol::Json, Protocol::MessagePack] {
        let prepared = prepared(protocol);
        let plain = vector_context(prepared.tail());
        let (count, bytes) = context::prepare_items(protocol, &pairs);
        assert_eq!(count, 2);
        let with_items = Context { items: Items { count, bytes: &bytes }, ..plain };
        let before = written(|out| forward::write(protocol, &Forward::Disconnected, &plain, None, out));
        let after = written(|out| forward::write(protocol, &Forward::Disconnected, &with_items, None, out));
        let (plain, end, added) = match protocol {
            Protocol::Json => (before, 4, r#","user":"Jé \"x\"","a\"b":"""#.as_bytes().to_vec()),
            Protocol::MessagePack => {
                // The map's length is the byte before the key of the context.
                let mut body = single_body(&before).to_vec();
                let at = body.windows(15).position(|window| window == b"$fwdConnContext").unwrap() - 2;
                assert_eq!(body[at], 0x81);
                body[at] = 0x83;
                (body, 1, unhex("a4 75736572 a7 4ac3a9 20 22 78 22 a3 612262 a0"))
            }
        };
        let after = if protocol == Protocol::Json { &after[..] } else { single_body(&after) };
        let (start, end) = plain.split_at(plain.len() - end);
        assert_eq!(after, [start, &added, end].concat());
    }
}

/// The vectors with the toy context are tested beside the encoder, which always writes a time stamp; here the whole record, read
/// back.
#[test]
fn upstream_messagepack_reads_back() {
    let prepared = prepared(Protocol::MessagePack);
    let context = vector_context(prepared.tail());
    let mut text = Vec::new();
    context::write(Protocol::MessagePack, &context, &mut text);
    assert_eq!(text.len(), context::written_len(Protocol::MessagePack, &context));
    for (forward, id, method, arguments) in [
        (
            Forward::Vm { call: Call::RequestVm, vm_id: br#""a\u0022b""#, argument: Some(b"{\"x\": 1}") },
            Some(7),
            "Request_VM",
            vec![Some("a\"b"), Some("{\"x\": 1}")],
        ),
        (
            Forward::Vm { call: Call::RequestVm, vm_id: b"\"X\"", argument: Some(b"null") },
            None,
            "Request_VM",
            vec![Some("X"), None],
        ),
        (
            Forward::Vm { call: Call::UpdateVm, vm_id: b"\"X\"", argument: Some(b"null") },
            None,
            "Update_VM",
            vec![Some("X"), Some("null")],
        ),
        (Forward::Vm { call: Call::DisposeVm, vm_id: b"\"X\"", argument: None }, None, "Dispose_VM", vec![Some("X")]),
        (Forward::Disconnected, Some(u64::MAX), "OnDisconnectedAsync", vec![None]),
    ] {
        let framed = written(|out| forward::write(Protocol::MessagePack, &forward, &context, id, out));
        let body = single_body(&framed);
        let message = msgpack::parse(body).unwrap();
        assert_eq!(show(body, message.target.unwrap()), "Invoke");
        assert_eq!(message.invocation_id.map(|id| show(body, id)), id.map(|id| id.to_string()));
        let [name, list, metadata, _] = message.arguments.spans;
        let plain = |value: &[u8]| msgpack::text(value).map(|text| show(value, text));
        assert_eq!(plain(name.of(body)).unwrap(), method);
        let mut found = Vec::new();
        msgpack::elements(list.of(body), |item| found.push(plain(item.of(list.of(body))))).unwrap();
        assert_eq!(found.iter().map(Option::as_deref).collect::<Vec<_>>(), arguments);
        let metadata = metadata.of(body);
        let mut pairs = Vec::new();
        msgpack::members(metadata, |key, value| pairs.push((plain(key.of(metadata)), plain(value.of(metadata)))))
            .unwrap();
        assert_eq!(pairs, [(Some("$fwdConnContext".into()), Some(String::from_utf8(text.clone()).unwrap()))]);
    }
}

#[test]
fn contexts_of_clients_that_are_gone() {
    let expected = r#"{"HubId":"h-_","TimeStamp":"2024-05-06T07:08:09.1234567+00:00","ConnectionId":"c","Items":{}}"#;
    let written = |protocol| {
        let tail = Tail::Unknown;
        let context = Context { hub_id: b"h-_", ticks: TICKS, connection_id: b"c", tail, items: Items::default() };
        String::from_utf8(written(|out| context::write(protocol, &context, out))).unwrap()
    };
    assert_eq!(written(Protocol::MessagePack), expected);
    assert_eq!(written(Protocol::Json), expected.replace('"', "\\\""));
}

/// Both embeddings carry the same text, with .NET's escapes for whatever its default encoder does not trust.
#[test]
fn contexts_escape_like_dotnet() {
    let peer = Peer {
        connection_id: "a/b",
        local: ("::1".parse().unwrap(), 1),
        remote: ("::ffff:10.0.0.7".parse().unwrap(), 65535),
        headers: &[
            ("X-all", "\"&'+<>`\\/\x7f\u{1}\n\r\t\u{8}\u{c}é\u{1f600}~ ".as_bytes()),
            ("COOKIE", b"a=1"),
            ("x-ALL", b"second"),
            ("latin", b"\xe9"),
            ("cookie", b"b=2"),
        ],
    };
    let tail = |protocol, peer: &Peer<'_>| {
        let prepared = context::prepare(protocol, peer);
        let context = vector_context(prepared.tail());
        let text = String::from_utf8(written(|out| context::write(protocol, &context, out))).unwrap();
        assert_eq!(context::written_len(protocol, &context), text.len());
        let quote = if protocol == Protocol::Json { "\\\"" } else { "\"" };
        text[text.find(&format!("{quote}HttpConnection{quote}")).unwrap()..].to_string()
    };
    let plain = tail(Protocol::MessagePack, &peer);
    let all = r#"\u0022\u0026\u0027\u002B\u003C\u003E\u0060\\/\u007F\u0001\n\r\t\b\f\u00E9\uD83D\uDE00~ "#;
    assert_eq!(
        plain,
        format!(
            r#""HttpConnection":{{"ConnectionId":"a/b","LocalIpAddressString":"::1","RemoteIpAddressString":"::ffff:10.0.0.7","LocalPort":1,"RemotePort":65535}},"HttpRequestHeaders":{{"AllHeaders":{{"X-all":["{all}","second"],"Cookie":["a=1","b=2"],"latin":["\u00E9"]}},"UserAgent":null}},"Items":{{}}}}"#
        )
    );
    let embedded = tail(Protocol::Json, &peer);
    assert_eq!(serde_json::from_str::<String>(&format!("\"{embedded}\"")).unwrap(), plain);
    let bare = Peer { headers: &[], ..peer };
    let bare = tail(Protocol::MessagePack, &bare);
    assert!(bare.ends_with(r#""HttpRequestHeaders":{"AllHeaders":{},"UserAgent":null},"Items":{}}"#));
}

#[test]
fn timestamps_have_seven_digits_and_know_the_calendar() {
    let at = |seconds: u64, ticks: u64| {
        String::from_utf8(written(|out| context::write_timestamp(seconds * 10_000_000 + ticks, out))).unwrap()
    };
    assert_eq!(at(0, 0), "1970-01-01T00:00:00.0000000+00:00");
    assert_eq!(at(1_714_979_289, 1_234_567), "2024-05-06T07:08:09.1234567+00:00");
    assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.0000001+00:00");
    assert_eq!(at(951_868_799, 9_999_999), "2000-02-29T23:59:59.9999999+00:00");
    assert_eq!(at(951_868_800, 0), "2000-03-01T00:00:00.0000000+00:00");
    assert_eq!(at(1_735_689_599, 0), "2024-12-31T23:59:59.0000000+00:00");
    assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.0000000+00:00");
    assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.0000000+00:00");
}

#[test]
fn header_policies() {
    let only = HeaderPolicy::Only(vec!["user-agent".into(), "Connection".into()]);
    for (name, all, some) in [
        ("User-Agent", true, true),
        ("user-agent", true, true),
        ("Cookie", true, false),
        ("Sec-Fetch-Mode", true, false),
        ("Sec-WebSocket", true, false),
        ("é", true, false),
        ("Connection", false, false),
        ("KEEP-ALIVE", false, false),
        ("Proxy-Connection", false, false),
        ("proxy-authenticate", false, false),
        ("proxy-authorization", false, false),
        ("te", false, false),
        ("Trailer", false, false),
        ("transfer-encoding", false, false),
        ("upgrade", false, false),
        ("Upgrade-Insecure-Requests", true, false),
        ("sec-websocket-key", false, false),
        ("Sec-WebSocket-Extensions", false, false),
    ] {
        assert_eq!((HeaderPolicy::All.admits(name), only.admits(name)), (all, some), "{name}");
    }
}

// ---- App server to proxy (contract 3.1, 3.2) ------------------------------------------------------------------------

fn from_json(payload: &str) -> (Vec<u8>, Result<Delivery, ResponseError>) {
    let text = format!(r#"{{"type":1,"target":"Response_VM","arguments":[{payload}]}}"#).into_bytes();
    let delivery = response::parse(Protocol::Json, &text, &json::parse(&text).unwrap());
    (text, delivery)
}

fn listed(record: &[u8], recipients: Recipients) -> Vec<Option<String>> {
    let mut found = Vec::new();
    response::each_recipient(record, recipients, |id| found.push(id.map(|id| String::from_utf8(id.to_vec()).unwrap())));
    found
}

fn ids(names: &[&str]) -> Vec<Option<String>> {
    names.iter().map(|name| (*name != "null").then(|| name.to_string())).collect()
}

/// A delivery written out: method, group, whom, vm, data.
fn describe(record: &[u8], delivery: Delivery) -> (&'static str, String, Vec<Option<String>>, String, String) {
    let text = |span: Span| show(record, span);
    let who =
        |recipients: Option<Recipients>| recipients.map(|recipients| listed(record, recipients)).unwrap_or_default();
    let nothing = String::new;
    match delivery {
        Delivery::Send { to, vm, data } => ("send", nothing(), who(Some(to)), text(vm), text(data)),
        Delivery::SendToMany { to, vm, data } => ("many", nothing(), who(Some(to)), text(vm), text(data)),
        Delivery::SendToGroup { group, vm, data } => ("group", text(group), vec![], text(vm), text(data)),
        Delivery::SendToGroupExcept { group, except, vm, data } => {
            ("except", text(group), who(except), text(vm), text(data))
        }
        Delivery::SendToUsers { users, listed: by_metadata, vm, data } => {
            let by_argument = users.map(Recipients::Many);
            ("users", nothing(), who(by_argument.or(by_metadata)), text(vm), text(data))
        }
        Delivery::AddToGroup { group, who: whom } => ("add", text(group), who(Some(whom)), nothing(), nothing()),
        Delivery::RemoveFromGroup { group, who: whom } => {
            ("remove", text(group), who(Some(whom)), nothing(), nothing())
        }
        Delivery::ToLane => ("lane", nothing(), vec![], nothing(), nothing()),
    }
}

#[test]
fn json_responses_of_the_table() {
    let check = |payload: &str, method, group: &str, who: &[&str], vm: &str, data: &str| {
        let (record, delivery) = from_json(payload);
        let found = describe(&record, delivery.unwrap_or_else(|error| panic!("{payload}: {error:?}")));
        assert_eq!(found, (method, group.to_string(), ids(who), vm.to_string(), data.to_string()), "{payload}");
    };
    check(r#"["AddToGroupAsync",["grp"],{"$fwdConnId":"abc"}]"#, "add", "grp", &["abc"], "", "");
    check(r#"["RemoveFromGroupAsync",["grp"],{"$fwdConnId":"abc"}]"#, "remove", "grp", &["abc"], "", "");
    let (vm, data) = (r#""HelloWorldVM""#, r#""{\"a\":1}""#);
    check(r#"["SendAsync",["HelloWorldVM","{\"a\":1}"],{"$fwdConnId":"abc"}]"#, "send", "", &["abc"], vm, data);
    check(
        r#"["SendToManyAsync",["VM","{}"],{"$fwdConnId":"[\"a-_b\",\"c\"]"}]"#,
        "many",
        "",
        &["a-_b", "c"],
        "\"VM\"",
        "\"{}\"",
    );
    check(r#"["SendToGroupAsync",["grp","VM","{}"],null]"#, "group", "grp", &[], "\"VM\"", "\"{}\"");
    check(
        r#"["SendToGroupExceptAsync",["grp","VM","{}"],{"$fwdConnId":"[null]"}]"#,
        "except",
        "grp",
        &["null"],
        "\"VM\"",
        "\"{}\"",
    );
    check(
        r#"["SendToUsersAsync",[["u1","u2"],"VM","{}"],{"$fwdConnId":"[\"u1\",\"u2\"]"}]"#,
        "users",
        "",
        &["u1", "u2"],
        "\"VM\"",
        "\"{}\"",
    );
    // Leniencies: users in metadata only, real arrays, other data, other members, white space, escapes in names.
    check(r#"["SendToUsersAsync",["VM","{}"],{"$fwdConnId":"[\"u1\"]"}]"#, "users", "", &["u1"], "\"VM\"", "\"{}\"");
    check(
        r#"["SendToUsersAsync",["?","VM","{}"],{"$fwdConnId":"[\"u1\"]"}]"#,
        "users",
        "",
        &["u1"],
        "\"VM\"",
        "\"{}\"",
    );
    check(
        r#"["SendToManyAsync",["VM",{"a":1}],{"$fwdConnId":["a", null,"b"]}]"#,
        "many",
        "",
        &["a", "null", "b"],
        "\"VM\"",
        "{\"a\":1}",
    );
    check(r#"["SendToManyAsync",["VM","{}"],{"$fwdConnId":"one"}]"#, "many", "", &["one"], "\"VM\"", "\"{}\"");
    check(r#"["SendToGroupExceptAsync",["g","VM","{}"],null]"#, "except", "g", &[], "\"VM\"", "\"{}\"");
    check(r#"["SendToGroupExceptAsync",["g","VM","{}"],{"$fwdConnId":null}]"#, "except", "g", &[], "\"VM\"", "\"{}\"");
    check(
        r#"[ "Send\u0041sync" , [ "VM" , "{}" ] , { "x":[1], "$fwd\u0043onnId" : "\u0061bc" } ]"#,
        "send",
        "",
        &["abc"],
        "\"VM\"",
        "\"{}\"",
    );
    check(r#"["HelloWorldVM","{}"]"#, "lane", "", &[], "", "");
}

#[test]
fn wrong_json_responses_say_why() {
    use ResponseError::*;
    for (payload, error) in [
        (r#""SendAsync""#, NotAResponse),
        (r#"[],[]"#, NotAResponse),
        ("", NotAResponse),
        ("[]", Shape),
        (r#"["SendAsync",["VM","{}"],{"$fwdConnId":"a"},0]"#, Shape),
        (r#"["SendAsync",["VM","{}"],{"$fwdConnId":"a"},0,0,0]"#, Shape),
        (r#"[1,["VM","{}"],{"$fwdConnId":"a"}]"#, Shape),
        (r#"["Dispose",["VM","{}"],{"$fwdConnId":"a"}]"#, UnknownMethod),
        (r#"["GetType",[],null]"#, UnknownMethod),
        (r#"["SendAsync",["VM"],{"$fwdConnId":"a"}]"#, Shape),
        (r#"["SendAsync",{},{"$fwdConnId":"a"}]"#, Shape),
        (r#"["SendAsync",["VM","{}"],null]"#, Shape),
        (r#"["SendAsync",["VM","{}"],{}]"#, Shape),
        (r#"["SendAsync",["VM","{}"],{"$fwdConnId":5}]"#, Shape),
        (r#"["SendAsync",["VM","{}"],"a"]"#, Shape),
        (r#"["AddToGroupAsync",[5],{"$fwdConnId":"a"}]"#, Shape),
        (r#"["SendToGroupAsync",[null,"VM","{}"],null]"#, Shape),
    ] {
        assert_eq!(from_json(payload).1, Err(error), "{payload}");
    }
    let text = br#"{"type":1,"target":"Response","arguments":[["VM","{}"]]}"#;
    assert_eq!(response::parse(Protocol::Json, text, &json::parse(text).unwrap()), Err(NotAResponse));
    let text = br#"{"type":6,"target":"Response_VM","arguments":[["VM","{}"]]}"#;
    assert_eq!(response::parse(Protocol::Json, text, &json::parse(text).unwrap()), Err(NotAResponse));
}

#[test]
fn recipient_lists_in_every_spelling() {
    let long = "x".repeat(256);
    for (list, expected) in [
        (r#""[\"a\",\"b\",null]""#.to_string(), vec!["a", "b", "null"]),
        (r#""[\u0022a\u0022,\u0022b\u0022]""#.to_string(), vec!["a", "b"]),
        (r#""\u005b\u0022a\u0022\u002c \"b\"\u005d""#.to_string(), vec!["a", "b"]),
        // The inner encoder's escapes (`\u002B` in the list's own text), escaped for the outer string.
        (r#""[\"a\\u002Bb\",\"\\\"\\\\\\n\"]""#.to_string(), vec!["a+b", "\"\\\n"]),
        (r#""[\"\u005cu0041\u005C\u0075002B\"]""#.to_string(), vec!["A+"]),
        (r#""[\"é\\u00E9\u00e9\",\"\\uD83D\\uDE00\ud83d\ude00\"]""#.to_string(), vec!["ééé", "😀😀"]),
        (
            r#""[\"\\uD83D\",\"\\uD83D\\n\",\"\\uD83D\\u0041\"]""#.to_string(),
            vec!["\u{fffd}", "\u{fffd}\n", "\u{fffd}A"],
        ),
        (r#""[ 5, true, \"a\" ,[\"no\",[\"]\"]], {\"no\":\"\\\"}\"},false,\"b\"]""#.to_string(), vec!["a", "b"]),
        (r#""[]""#.to_string(), vec![]),
        (r#""[null]""#.to_string(), vec!["null"]),
        (r#""[\"a\"""#.to_string(), vec!["a"]),
        (r#""[\"a\",\"b""#.to_string(), vec!["a"]),
        (r#""[\"a\",nul""#.to_string(), vec!["a", "null"]),
        (r#""[\"a\\""#.to_string(), vec![]),
        (r#""[\"\"]""#.to_string(), vec![""]),
        (r#"["a","b\u002B","\\\"",null,7]"#.to_string(), vec!["a", "b+", "\\\"", "null"]),
        (r#"[null]"#.to_string(), vec!["null"]),
        (format!(r#""[\"{long}\",\"{long}x\",\"\\u0078{long}\",\"z\"]""#), vec![&long, "z"]),
        (format!(r#"["{long}","{long}x","\u0078{long}","z"]"#), vec![&long, "z"]),
        (r#""abc""#.to_string(), vec!["abc"]),
        (format!(r#""{long}x""#), vec![]),
    ] {
        let (record, delivery) = from_json(&format!(r#"["SendToManyAsync",["VM","{{}}"],{{"$fwdConnId":{list}}}]"#));
        let Ok(Delivery::SendToMany { to, .. }) = delivery else { panic!("{list}: {delivery:?}") };
        assert_eq!(listed(&record, to), ids(&expected), "{list}");
    }
}

#[test]
fn messagepack_responses_of_the_vectors() {
    let check = |name: &str, method, group: &str, who: &[&str], has_vm: bool| {
        let framed = unhex(vector(UPSTREAM_MSGPACK, name));
        let body = single_body(&framed);
        let message = msgpack::parse(body).unwrap();
        let found = describe(body, response::parse(Protocol::MessagePack, body, &message).unwrap());
        let (vm, data) = if has_vm { ("HelloWorldVM", "{\"a\":1}") } else { ("", "") };
        assert_eq!(found, (method, group.to_string(), ids(who), vm.to_string(), data.to_string()), "{name}");
    };
    check("SEND", "send", "", &["c"], true);
    check("MANY", "many", "", &["c", "d"], true);
    check("GRP", "group", "g", &[], true);
    check("GRPX", "except", "g", &["null"], true);
    check("USERS", "users", "", &["u1", "u2"], true);
    check("ADD", "add", "g", &["c"], false);
    // REQ and OFF go the other way: no responses.
    for name in ["REQ", "OFF"] {
        let framed = unhex(vector(UPSTREAM_MSGPACK, name));
        let body = single_body(&framed);
        let message = msgpack::parse(body).unwrap();
        assert_eq!(response::parse(Protocol::MessagePack, body, &message), Err(ResponseError::NotAResponse));
    }
}

/// A list whose text begins where a str's length byte looks like a quote (34 bytes long).
#[test]
fn messagepack_list_of_thirty_four_bytes() {
    let list = r#"["aaaaaaaaaaaaaa","bbbbbbbbbbbbb"]"#.to_string();
    let framed = written(|out| {
        msgpack::write_record(out, |out| {
            use msgpack::write;
            write::array_len(5, out);
            write::uint(1, out);
            write::map_len(0, out);
            write::nil(out);
            write::text(b"Response_VM", out);
            write::array_len(1, out);
            write::array_len(3, out);
            write::text(b"SendToManyAsync", out);
            write::array_len(2, out);
            write::text(b"VM", out);
            write::text(b"{}", out);
            write::map_len(1, out);
            write::text(b"$fwdConnId", out);
            write::text(list.as_bytes(), out);
        })
    });
    let body = single_body(&framed);
    let Ok(Delivery::SendToMany { to, .. }) =
        response::parse(Protocol::MessagePack, body, &msgpack::parse(body).unwrap())
    else {
        panic!()
    };
    assert_eq!(list.len(), usize::from(b'"'));
    assert_eq!(listed(body, to), ids(&["aaaaaaaaaaaaaa", "bbbbbbbbbbbbb"]));
}

// ---- Proxy to client (contract 1.4) ---------------------------------------------------------------------------------

#[test]
fn client_frames() {
    let (vm, data) = (br#""HelloWorldVM""#, br#""{\"Greetings\":\"hi\"}""#);
    let frame = b"{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[\"HelloWorldVM\",\"{\\\"Greetings\\\":\\\"hi\\\"}\"]]}\x1e";
    assert_eq!(written(|out| response::write_client(Protocol::Json, Protocol::Json, vm, data, out)), frame);
    assert_eq!(
        written(|out| response::write_client(
            Protocol::MessagePack,
            Protocol::Json,
            b"HelloWorldVM",
            b"{\"Greetings\":\"hi\"}",
            out
        )),
        frame
    );

    let framed = written(|out| {
        response::write_client(Protocol::MessagePack, Protocol::MessagePack, b"HelloWorldVM", b"{}", out)
    });
    let expected = "2396 01 80 c0 ab526573706f6e73655f564d 91 92 ac48656c6c6f576f726c64564d a27b7d 90";
    assert_eq!(hex(&framed), hex(&unhex(expected)));
    assert_eq!(
        show(single_body(&framed), msgpack::parse(single_body(&framed)).unwrap().target.unwrap()),
        "Response_VM"
    );
}

/// From lanes of either protocol to clients of either.
#[test]
fn client_frames_across_protocols() {
    let between = |from, to, vm: &str, data: &str| {
        written(|out| response::write_client(from, to, vm.as_bytes(), data.as_bytes(), out))
    };
    use Protocol::{Json, MessagePack};
    // Escapes are undone, and what is no string goes as the text that it is.
    for (vm, data, plain_vm, plain_data) in [
        (r#""X""#, r#""{\"a\":1}""#, "X", "{\"a\":1}"),
        (r#""a\u0022b""#, r#""\u00e9\n\ud83d\ude00""#, "a\"b", "é\n😀"),
        (r#""X""#, r#""""#, "X", ""),
        (r#""X""#, r#""\ud800""#, "X", "\u{fffd}"),
        (r#""X""#, r#"{"a": "\n"}"#, "X", r#"{"a": "\n"}"#),
        ("null", "5", "null", "5"),
    ] {
        assert_eq!(
            between(Json, MessagePack, vm, data),
            between(MessagePack, MessagePack, plain_vm, plain_data),
            "{data}"
        );
        let text = String::from_utf8(between(Json, Json, vm, data)).unwrap();
        assert_eq!(text, format!("{{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[{vm},{data}]]}}\x1e"));
        let record = between(MessagePack, Json, plain_vm, plain_data);
        let frame: serde_json::Value = serde_json::from_slice(&record[..record.len() - 1]).unwrap();
        assert_eq!(frame["arguments"], serde_json::json!([[plain_vm, plain_data]]));
    }
    // Heads of every length, behind something that must stay.
    for length in [0, 1, 31, 32, 255, 256, 65_535, 65_536] {
        let plain = "é".repeat(length / 2) + &"x".repeat(length % 2);
        let escaped = format!("\"{}\"", plain.replace('x', "\\u0078").replace('é', "\\u00e9"));
        let mut out = b"before".to_vec();
        transcode::to_text(escaped.as_bytes(), &mut out);
        let mut expected = b"before".to_vec();
        msgpack::write::text(plain.as_bytes(), &mut expected);
        assert_eq!(out, expected, "{length}");
    }
}

#[test]
fn exceptions_are_ordinary_responses() {
    let record = written(|out| {
        response::write_exception(Protocol::Json, b"\"X\"", "Exception", "[dotNetify] ERROR: 'X' is not known", out)
    });
    assert_eq!(
        String::from_utf8(record).unwrap(),
        "{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[\"X\",\"{\\\"ExceptionType\\\":\\\"Exception\\\",\\\"Message\\\":\\\"[dotNetify] ERROR: 'X' is not known\\\"}\"]]}\x1e"
    );
    let message = "quote \" backslash \\ line\n control \u{1} é";
    let record = written(|out| response::write_exception(Protocol::Json, b"\"X\"", "T\"", message, out));
    let frame: serde_json::Value = serde_json::from_slice(&record[..record.len() - 1]).unwrap();
    let inner: serde_json::Value = serde_json::from_str(frame["arguments"][0][1].as_str().unwrap()).unwrap();
    assert_eq!(inner, serde_json::json!({ "ExceptionType": "T\"", "Message": message }));
    let record = written(|out| response::write_exception(Protocol::MessagePack, br#""a\u0022""#, "T\"", message, out));
    let encoded = msgpack::parse(single_body(&record)).unwrap();
    let list = encoded.arguments.spans[0].of(single_body(&record));
    let mut items = Vec::new();
    msgpack::elements(list, |item| items.push(show(item.of(list), msgpack::text(item.of(list)).unwrap()))).unwrap();
    assert_eq!(items[0], "a\"");
    let inner: serde_json::Value = serde_json::from_str(&items[1]).unwrap();
    assert_eq!(inner, serde_json::json!({ "ExceptionType": "T\"", "Message": message }));
    // Byte for byte: [1, {}, nil, "Response_VM", [["X", text]], []].
    let text = br#"{"ExceptionType":"E","Message":"m"}"#;
    let expected = unhex(&format!("3a 96 01 80 c0 ab 526573706f6e73655f564d 91 92 a1 58 d9 23 {} 90", hex(text)));
    assert_eq!(written(|out| response::write_exception(Protocol::MessagePack, b"\"X\"", "E", "m", out)), expected);
}

// ---- Helpers --------------------------------------------------------------------------------------------------------

fn ask(text: &[u8]) -> Result<Request, RequestError> {
    let message: Message = json::parse(text).unwrap();
    request::parse(text, &message)
}

/// The JSON text made of a MessagePack invocation, and its request.
fn ask_encoded(body: &[u8]) -> (Vec<u8>, Result<Request, RequestError>) {
    let message = msgpack::parse(body).unwrap();
    let mut out = Vec::new();
    let request = request::transcode(body, &message, &mut out);
    (out, request)
}

fn written(f: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    f(&mut out);
    out
}

fn show(bytes: &[u8], span: Span) -> String {
    String::from_utf8(span.of(bytes).to_vec()).unwrap()
}

fn vector<'a>(file: &'a str, name: &str) -> &'a str {
    file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap()
}

fn json_records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while let Some(end) = record::find_separator(bytes) {
        records.push(&bytes[..end]);
        bytes = &bytes[end + 1..];
    }
    assert_eq!(bytes, b"");
    records
}

fn msgpack_bodies(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while !bytes.is_empty() {
        let (prefix, body) = record::length_prefix(bytes).unwrap().unwrap();
        bodies.push(&bytes[prefix..prefix + body as usize]);
        bytes = &bytes[prefix + body as usize..];
    }
    bodies
}

fn single_body(framed: &[u8]) -> &[u8] {
    let bodies = msgpack_bodies(framed);
    assert_eq!(bodies.len(), 1);
    bodies[0]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
