//! Oracles for hub messages and for dotNetify's contract; serde_json says what the bytes really mean.
use crate::proto::dotnetify::context::{Context, Items, Tail};
use crate::proto::dotnetify::forward::{self, Forward};
use crate::proto::dotnetify::headers;
use crate::proto::dotnetify::request::{self, Call};
use crate::proto::dotnetify::response::{self, Delivery, Recipients};
use crate::proto::signalr::{Kind, Message, MessageError, Protocol, Span, handshake, json, msgpack, record, transcode};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The scanner accepts what serde_json accepts, and its view says what serde_json reads. What it accepts as a request goes to an
/// app server as valid JSON with the client's own text inside.
pub fn signalr_json(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let ours = json::parse(data);
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    match ours {
        Err(MessageError::TooDeep) => assert!(data.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > 64),
        Err(MessageError::Syntax) => assert!(!is_json, "serde_json accepts it"),
        Err(MessageError::NotAMessage) => assert!(is_json && !text.trim_start().starts_with('{')),
        Err(_) => assert!(is_json, "serde_json refuses it"),
        Ok(message) => {
            assert!(is_json, "serde_json refuses it");
            check_view(text, &message);
            check_tools(text);
            if let Kind::Invocation | Kind::StreamInvocation = message.kind {
                check_request(data, &message);
            }
        }
    }
}

/// Records are found however the bytes are cut; no body makes the MessagePack reader panic, allocate or point outside of it.
pub fn signalr_record(data: &[u8]) {
    assert_eq!(record::find_separator(data), data.iter().position(|&byte| byte == record::RECORD_SEPARATOR));
    match record::length_prefix(data) {
        Ok(Some((prefix, length))) => {
            for cut in 0..prefix {
                assert_eq!(record::length_prefix(&data[..cut]), Ok(None));
            }
            let mut shortest = Vec::new();
            record::write_length_prefix(length, &mut shortest);
            assert!(shortest.len() <= prefix);
            assert_eq!(record::length_prefix(&shortest), Ok(Some((shortest.len(), length))));
        }
        Ok(None) => assert!(data.len() < 5),
        Err(record::PrefixError::TooLarge) => assert!(data[4] > 7),
    }
    if let Ok(view) = msgpack::parse(data) {
        let kept = view.arguments.spans.iter().take(view.arguments.count as usize);
        let parts = [view.target, view.invocation_id, view.error, view.result];
        for span in kept.chain(parts.iter().flatten()) {
            assert!(span.start <= span.end && span.end as usize <= data.len());
        }
        // Bytes behind the array are not looked at; a cut array is never a message.
        let mut longer = data.to_vec();
        longer.push(0xc1);
        assert_eq!(msgpack::parse(&longer), Ok(view));
        let last = view.arguments.spans.iter().map(|span| span.end).max().unwrap_or(0);
        assert!(last == 0 || msgpack::parse(&data[..last as usize - 1]).is_err());
    }
    if let Ok(handshake) = handshake::parse_request(data) {
        assert!(matches!(handshake.version, 1 | 2));
        let mut again = Vec::new();
        handshake::write_request(handshake.protocol, handshake.version, &mut again);
        assert_eq!(handshake::parse_request(&again[..again.len() - 1]), Ok(handshake));
    }
    let _never_panics = handshake::parse_answer(data);
}

/// What is said of any bytes as a MessagePack body stays inside of them, and what a client's invocation is turned into is JSON to
/// serde_json, and the very request that a JSON client would have made with that text.
pub fn signalr_msgpack(data: &[u8]) {
    check_transcoded(data);
    let Ok(message) = msgpack::parse(data) else { return };
    let kept = message.arguments.spans.iter().take(message.arguments.count as usize);
    let whole = Span::new(0, data.len());
    for value in kept.chain([&whole]).map(|span| span.of(data)) {
        let inside = |span: Span| assert!(span.start <= span.end && span.end as usize <= value.len());
        let mut found = 0;
        let counted = msgpack::elements(value, |item| {
            inside(item);
            found += 1;
            check_transcoded(item.of(value));
        });
        assert!(counted.is_none_or(|count| count == found));
        let counted = msgpack::members(value, |key, item| {
            inside(key);
            inside(item);
        });
        assert!(counted.is_none() || msgpack::is_map(value));
        msgpack::text(value).into_iter().for_each(inside);
    }
    if !matches!(message.kind, Kind::Invocation | Kind::StreamInvocation) {
        return;
    }
    let target = message.target.expect("an invocation has a target").of(data);
    let mut out = Vec::new();
    let request = match request::transcode(data, &message, &mut out) {
        Ok(request) => request,
        Err(error) => {
            let mut text = Vec::new();
            error.write_text(Protocol::MessagePack, target, &mut text);
            assert!(core::str::from_utf8(&text).is_ok_and(|text| text.len() < 256));
            return;
        }
    };
    let vm_id = request.vm_id.of(&out);
    let argument = request.argument.map(|argument| argument.of(&out));
    assert_eq!([vm_id, argument.unwrap_or_default()].concat(), out, "the spans are all there is");
    serde_json::from_slice::<String>(vm_id).expect("vmId is a JSON string");
    let arguments = [vm_id, argument.map_or(&b""[..], |_| b","), argument.unwrap_or_default()].concat();
    let text = format!(
        "{{\"type\":1,\"target\":\"{}\",\"arguments\":[{}]}}",
        request.call.name(),
        core::str::from_utf8(&arguments).expect("JSON text is UTF-8")
    );
    serde_json::from_str::<IgnoredAny>(&text).expect("a JSON client's message");
    let theirs = json::parse(text.as_bytes()).expect("a JSON client's message");
    let theirs = request::parse(text.as_bytes(), &theirs).expect("a JSON client's request");
    assert_eq!(theirs.call, request.call);
    assert_eq!(theirs.vm_id.of(text.as_bytes()), vm_id);
    assert_eq!(theirs.argument.map(|argument| argument.of(text.as_bytes())), argument);
    check_forward(&Forward::Vm { call: request.call, vm_id, argument }, Some(vm_id), argument);
    for to in [Protocol::Json, Protocol::MessagePack] {
        let mut record = Vec::new();
        response::write_exception(to, vm_id, "T", "m", &mut record);
        let record = match to {
            Protocol::Json => &record[..record.len() - 1],
            Protocol::MessagePack => {
                &record[record::length_prefix(&record).expect("a prefix").expect("a whole one").0..]
            }
        };
        let message = crate::proto::signalr::parse(to, record).expect("a client's record");
        assert_eq!(response::parse(to, record, &message), Ok(Delivery::ToLane), "two items, like any client's");
    }
}

/// Whatever becomes text is JSON, of bounded length; whatever does not leaves nothing behind.
fn check_transcoded(value: &[u8]) {
    let mut out = b"before".to_vec();
    let result = transcode::to_json(value, &mut out);
    let text = out.strip_prefix(b"before").expect("it appends");
    match result {
        Ok(()) => {
            serde_json::from_slice::<IgnoredAny>(text).expect("a value becomes JSON");
            assert!(text.len() <= 7 * value.len() + 2);
        }
        Err(_) => assert!(text.is_empty()),
    }
}

/// A response lists the recipients that serde_json finds in it, and its client frame is JSON. The bytes are taken for the one
/// argument on a JSON lane, and for a whole body on a MessagePack lane.
pub fn dotnetify_response(data: &[u8]) {
    if let Ok(message) = msgpack::parse(data)
        && let Ok(delivery) = response::parse(Protocol::MessagePack, data, &message)
        && let Some((vm, data)) = check_recipients(data, delivery, |_, _| {})
    {
        let mut frame = Vec::new();
        response::write_client(Protocol::MessagePack, Protocol::Json, vm, data, &mut frame);
        let (_, frame) = frame.split_last().expect("a frame is not empty");
        let frame: serde_json::Value = serde_json::from_slice(frame).expect("client frame is JSON");
        assert_eq!(frame["arguments"][0][0].as_str().map(str::as_bytes), Some(vm));
        assert_eq!(frame["arguments"][0][1].as_str().map(str::as_bytes), Some(data));
        check_encoded_frame(Protocol::MessagePack, vm, data, [vm, data]);
    }
    let Ok(argument) = core::str::from_utf8(data) else { return };
    if serde_json::from_str::<IgnoredAny>(argument).is_err() {
        return;
    }
    let text = format!("{{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[{argument}]}}");
    let record = text.as_bytes();
    let Ok(message) = json::parse(record) else { return };
    let Ok(delivery) = response::parse(Protocol::Json, record, &message) else { return };
    let copied = check_recipients(record, delivery, |recipients, found| {
        if let Some(expected) = expected_recipients(record, recipients) {
            assert_eq!(found, expected);
        }
    });
    if let Some((vm, data)) = copied {
        let mut frame = Vec::new();
        response::write_client(Protocol::Json, Protocol::Json, vm, data, &mut frame);
        let (_, frame) = frame.split_last().expect("a frame is not empty");
        serde_json::from_slice::<IgnoredAny>(frame).expect("client frame is JSON");
        assert!(json::parse(frame).is_ok());
        let texts = [vm, data].map(|value| match value {
            [b'"', contents @ .., b'"'] => {
                let mut text = Vec::new();
                json::unescape(contents, &mut text);
                text
            }
            _ => value.to_vec(),
        });
        check_encoded_frame(Protocol::Json, vm, data, [&texts[0], &texts[1]]);
    }
}

/// A MessagePack client gets the texts, from a lane of either protocol.
fn check_encoded_frame(from: Protocol, vm: &[u8], data: &[u8], texts: [&[u8]; 2]) {
    let mut frame = Vec::new();
    response::write_client(from, Protocol::MessagePack, vm, data, &mut frame);
    let (prefix, length) = record::length_prefix(&frame).expect("a prefix").expect("a whole prefix");
    let body = &frame[prefix..];
    assert_eq!(body.len(), length as usize);
    let message = msgpack::parse(body).expect("client frame is MessagePack");
    let list = message.arguments.spans[0].of(body);
    let mut found = Vec::new();
    msgpack::elements(list, |item| {
        let item = item.of(list);
        found.push(msgpack::text(item).expect("a str").of(item));
    });
    assert_eq!(found, texts);
}

fn check_view(text: &str, message: &Message) {
    // Names with half a surrogate pair are beyond what a `String` can hold.
    let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text) else { return };
    let string = |name: &str| serde_json::from_str::<String>(members[name].get()).expect("a string");
    let shown = |span: Span| {
        let mut plain = Vec::new();
        json::unescape(span.of(text.as_bytes()), &mut plain);
        String::from_utf8(plain).expect("unescaped text is UTF-8")
    };
    // Not serde_json here: to it `-0` is a float, to .NET's `GetInt32` an integer.
    members["type"].get().parse::<i32>().expect("the type is an integer");
    if let Some(target) = message.target {
        assert_eq!(shown(target), string("target"));
    }
    if let Some(id) = message.invocation_id {
        assert_eq!(shown(id), string("invocationId"));
    }
    if let Some(error) = message.error {
        assert_eq!(shown(error), string("error"));
    }
    if let Some(arguments) = members.get("arguments") {
        let arguments: Vec<&RawValue> = serde_json::from_str(arguments.get()).expect("arguments are an array");
        assert_eq!(arguments.len(), message.arguments.count as usize);
        for (span, argument) in message.arguments.spans.iter().zip(arguments) {
            assert_eq!(span.of(text.as_bytes()), argument.get().as_bytes());
        }
    }
}

/// `elements`, `members`, `escape` and `unescape` on a whole object and on each member of it.
fn check_tools(text: &str) {
    let bytes = text.as_bytes();
    let mut values = Vec::new();
    let count = json::members(bytes, |name, value| values.push((name, value)));
    assert_eq!(count, Some(values.len() as u32));
    for (name, value) in values {
        let name = name.of(bytes);
        let mut unescaped = Vec::new();
        json::unescape(name, &mut unescaped);
        let unescaped = String::from_utf8(unescaped).expect("unescaped text is UTF-8");
        let quoted = format!("\"{}\"", core::str::from_utf8(name).expect("a name is UTF-8"));
        if let Ok(theirs) = serde_json::from_str::<String>(&quoted) {
            assert_eq!(unescaped, theirs);
        }
        check_escape(&unescaped);
        let value = value.of(bytes);
        let mut elements = Vec::new();
        if json::elements(value, |element| elements.push(element.of(value))).is_some() {
            let theirs: Vec<&RawValue> = serde_json::from_slice(value).expect("an array");
            assert!(theirs.iter().map(|element| element.get().as_bytes()).eq(elements));
        } else {
            assert_ne!(json::kind(value), Some(json::ValueKind::Array));
        }
    }
}

/// Escaped text means itself, also to serde_json.
pub fn check_escape(text: &str) {
    let mut escaped = Vec::new();
    json::escape(text.as_bytes(), &mut escaped);
    let mut back = Vec::new();
    json::unescape(&escaped, &mut back);
    assert_eq!(back, text.as_bytes());
    let quoted = [b"\"", &escaped[..], b"\""].concat();
    assert_eq!(serde_json::from_slice::<String>(&quoted).expect("escaped text is JSON"), text);
}

fn check_request(record: &[u8], message: &Message) {
    let request = match request::parse(record, message) {
        Ok(request) => request,
        Err(error) => {
            let mut text = Vec::new();
            error.write_text(Protocol::Json, message.target.map_or(&[][..], |target| target.of(record)), &mut text);
            assert!(core::str::from_utf8(&text).is_ok_and(|text| text.len() < 256));
            return;
        }
    };
    let vm_id = request.vm_id.of(record);
    let argument = request.argument.map(|argument| argument.of(record));
    let forward = Forward::Vm { call: request.call, vm_id, argument };
    check_forward(&forward, Some(vm_id), argument);
    if let Some(argument) = argument {
        authorization(argument);
    }
}

/// `headers::authorization` finds in an argument what serde_json finds. Where it is found twice under names that differ in case, serde_json's map
/// does not say which was the last.
pub fn authorization(argument: &[u8]) {
    // As a view of a message gives it: without the white space around it.
    let argument = argument.trim_ascii();
    type Members<'a> = BTreeMap<String, &'a RawValue>;
    let ours = headers::authorization(argument);
    if let Some(ours) = ours {
        let mut buffer = Vec::new();
        let _never_panics = ours.bearer(argument, &mut buffer);
    }
    // serde_json reads no names with lone surrogates, which ours passes over.
    let Ok(members) = serde_json::from_slice::<Members<'_>>(argument) else { return };
    let members = members.get("$headers").map(|headers| serde_json::from_str::<Members<'_>>(headers.get()));
    let values: Vec<&str> = match members {
        Some(Ok(members)) => {
            let named = members.iter().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
            named.map(|(_, value)| value.get()).collect()
        }
        _ => Vec::new(),
    };
    if let [] | [_] = values[..] {
        let theirs = values.first().and_then(|value| value.strip_prefix('"')?.strip_suffix('"'));
        assert_eq!(ours.map(|ours| ours.contents.of(argument)), theirs.map(str::as_bytes));
    }
}

/// An `Invoke` is valid JSON, and valid MessagePack, whose inner texts are the client's.
pub fn check_forward(forward: &Forward<'_>, vm_id: Option<&[u8]>, argument: Option<&[u8]>) {
    let context = |_| Context {
        hub_id: b"hub",
        ticks: 17_149_792_891_234_567,
        connection_id: b"origin",
        tail: Tail::Unknown,
        items: Items::default(),
    };
    let mut out = Vec::new();
    forward::write(Protocol::Json, forward, &context(Protocol::Json), Some(1), &mut out);
    let (separator, text) = out.split_last().expect("a record is not empty");
    assert_eq!(*separator, record::RECORD_SEPARATOR);
    assert_eq!(record::find_separator(text), None);
    assert!(json::parse(text).is_ok());
    let frame: serde_json::Value = serde_json::from_slice(text).expect("an Invoke is JSON");
    let list = &frame["arguments"][1];
    let inner = frame["arguments"][2]["$fwdConnContext"].as_str().expect("the context is a string");
    serde_json::from_str::<IgnoredAny>(inner).expect("the context is JSON");
    if let Some(vm_id) = vm_id {
        assert_eq!(list[0], serde_json::from_slice::<serde_json::Value>(vm_id).expect("vmId is a string"));
    }
    let is_null_request = matches!(forward, Forward::Vm { call: Call::RequestVm, argument: None | Some(b"null"), .. });
    if let Some(argument) = argument.filter(|_| !is_null_request) {
        assert_eq!(list[1].as_str().map(str::as_bytes), Some(argument));
    }

    let mut out = Vec::new();
    forward::write(Protocol::MessagePack, forward, &context(Protocol::MessagePack), Some(1), &mut out);
    let (prefix, length) = record::length_prefix(&out).expect("a prefix").expect("a whole prefix");
    let body = &out[prefix..];
    assert_eq!(body.len(), length as usize);
    let message = msgpack::parse(body).expect("an Invoke is MessagePack");
    let list_of_body = message.arguments.spans[1].of(body);
    let mut index = 0;
    msgpack::elements(list_of_body, |item| {
        let item = item.of(list_of_body);
        let plain = msgpack::text(item).map(|text| text.of(item));
        assert_eq!(plain, list[index].as_str().map(str::as_bytes), "both protocols carry the same text");
        index += 1;
    });
}

/// Reads out whom a delivery addresses, for `check`; returns its vm and data.
fn check_recipients(
    record: &[u8],
    delivery: Delivery,
    mut check: impl FnMut(Recipients, Vec<Option<Vec<u8>>>),
) -> Option<(&[u8], &[u8])> {
    let (recipients, copied) = match delivery {
        Delivery::Send { to, vm, data } | Delivery::SendToMany { to, vm, data } => (vec![to], Some((vm, data))),
        Delivery::SendToGroup { vm, data, .. } => (vec![], Some((vm, data))),
        Delivery::SendToGroupExcept { except, vm, data, .. } => (except.into_iter().collect(), Some((vm, data))),
        Delivery::SendToUsers { users, listed, vm, data } => {
            (users.map(Recipients::Many).into_iter().chain(listed).collect(), Some((vm, data)))
        }
        Delivery::AddToGroup { who, .. } | Delivery::RemoveFromGroup { who, .. } => (vec![who], None),
        Delivery::ToLane => (vec![], None),
    };
    for recipients in recipients {
        let mut found = Vec::new();
        response::each_recipient(record, recipients, |id| found.push(id.map(<[u8]>::to_vec)));
        assert!(found.iter().flatten().all(|id| id.len() <= crate::limits::RECIPIENT_BYTES_MAX));
        check(recipients, found);
    }
    copied.map(|(vm, data)| (vm.of(record), data.of(record)))
}

/// What serde_json finds in a list; None where it finds no list, or half a surrogate pair.
fn expected_recipients(record: &[u8], recipients: Recipients) -> Option<Vec<Option<Vec<u8>>>> {
    let values: Vec<serde_json::Value> = match recipients {
        Recipients::One(span) => vec![serde_json::Value::String(quoted(span.of(record))?)],
        Recipients::Many(span) => {
            let list = span.of(record);
            match serde_json::from_slice(list) {
                Ok(values) => values,
                Err(_) => serde_json::from_str(&quoted(list)?).ok()?,
            }
        }
    };
    let short = |id: String| (id.len() <= crate::limits::RECIPIENT_BYTES_MAX).then(|| Some(id.into_bytes()));
    Some(
        values
            .into_iter()
            .filter_map(|value| match value {
                serde_json::Value::Null => Some(None),
                serde_json::Value::String(id) => short(id),
                _ => None,
            })
            .collect(),
    )
}

fn quoted(contents: &[u8]) -> Option<String> {
    serde_json::from_slice(&[b"\"", contents, b"\""].concat()).ok()
}
