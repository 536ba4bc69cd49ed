//! Properties of the hub codecs on generated and on mutated input. The oracles are those of the fuzz targets.
use proptest::prelude::*;
use signalring::fuzzing::{hub, session};
use signalring::proto::dotnetify::forward::Forward;
use signalring::proto::dotnetify::request::Call;
use signalring::proto::signalr::{Protocol, json, msgpack, record, transcode};
use signalring::session::form::{Form, Transport};

/// JSON text with all the liberties the grammar gives.
fn white() -> impl Strategy<Value = String> {
    prop_oneof![6 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
}

fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z_$0-9]{0,20}",
        1 => "[^\"\\\\\\x00-\\x1f]{0,5}",
        1 => Just("\\u0041".to_string()),
        1 => "\\\\[\"\\\\/bfnrt]",
        1 => "\\\\u[0-9a-fA-F]{4}",
        1 => Just("\\ud83d\\ude00".to_string()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_string()),
        Just("true".to_string()),
        Just("false".to_string()),
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
        string(),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_flat_map(|items| joined("[", items, "]")),
            prop::collection::vec((string(), inner), 0..5).prop_flat_map(|members| {
                joined("{", members.into_iter().map(|(name, value)| format!("{name}:{value}")).collect(), "}")
            }),
        ]
    })
}

fn joined(open: &'static str, items: Vec<String>, close: &'static str) -> impl Strategy<Value = String> {
    (white(), white(), white()).prop_map(move |(before, between, after)| {
        format!("{open}{before}{}{after}{close}", items.join(&format!("{between},{after}")))
    })
}

/// Objects that look like hub messages, right and wrong ones.
fn message() -> impl Strategy<Value = String> {
    let arguments = || prop::collection::vec(value(), 0..6).prop_flat_map(|items| joined("[", items, "]"));
    let vm = || {
        prop_oneof![
            Just("Request_VM"),
            Just("update_vm"),
            Just("Dispose\\u005fVM"),
            Just("Response_VM"),
            Just("Invoke")
        ]
    };
    let object = || {
        prop::collection::vec((string(), value()), 0..3).prop_map(|members| {
            format!(
                "{{{}}}",
                members.into_iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ")
            )
        })
    };
    let member = prop_oneof![
        3 => (0i32..11).prop_map(|kind| format!("\"type\":{kind}")),
        3 => vm().prop_map(|target| format!("\"target\":\"{target}\"")),
        1 => string().prop_map(|target| format!("\"target\" : {target}")),
        3 => (string(), object()).prop_map(|(vm, data)| format!("\"arguments\":[{vm},{data}]")),
        1 => string().prop_map(|vm| format!("\"arguments\":[{vm}]")),
        2 => arguments().prop_map(|arguments| format!("\"arguments\" :{arguments}")),
        2 => string().prop_map(|id| format!("\"invocationId\":{id}")),
        1 => string().prop_map(|error| format!("\"error\": {error}")),
        1 => value().prop_map(|result| format!("\"result\":{result}")),
        1 => value().prop_map(|item| format!("\"item\":{item}")),
        1 => string().prop_map(|id| format!("\"streamIds\":[{id}]")),
        1 => (string(), string()).prop_map(|(name, value)| format!("\"headers\":{{{name}:{value}}}")),
        1 => (string(), value()).prop_map(|(name, value)| format!("{name}:{value}")),
        1 => Just("\"\\u0074ype\":1".to_string()),
    ];
    let invocation = (vm(), string(), object(), any::<bool>()).prop_map(|(target, vm, data, single)| {
        let rest = if single { String::new() } else { format!(",{data}") };
        format!("{{\"arguments\":[{vm}{rest}],\"invocationId\":\"7\",\"target\":\"{target}\",\"type\":1}}")
    });
    prop_oneof![prop::collection::vec(member, 0..7).prop_flat_map(|members| joined("{", members, "}")), invocation]
}

/// Arguments of requests with something like `$headers` in them.
fn argument() -> impl Strategy<Value = String> {
    let object = |names: &'static [&'static str], value: BoxedStrategy<String>| {
        prop::collection::vec((prop::sample::select(names), white(), value), 0..4).prop_flat_map(|members| {
            let member = |(name, white, value)| format!("\"{name}\"{white}:{white}{value}");
            joined("{", members.into_iter().map(member).collect(), "}")
        })
    };
    let header = prop_oneof![string(), value(), "\"(Bearer|bearer|Basic) ?[a-z.]{0,5}\""].boxed();
    let names = &["Authorization", "authorization", "\\u0041uthorization", "Accept", "$headers"];
    let headers = prop_oneof![4 => object(names, header), 1 => value()].boxed();
    object(&["$headers", "$vmArg", "\\u0024headers", "$header\\u0073", "$Headers", "\\\\u0024headers"], headers)
}

fn mutate(text: String, edits: Vec<(prop::sample::Index, u8, u8)>) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    for (index, how, byte) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = index.index(bytes.len());
        // Mostly bytes that mean something to the grammar.
        let byte = *b"\"\\{}[],:01-+.eEtfnu \n".get(usize::from(byte % 32)).unwrap_or(&byte);
        match how % 4 {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..4)
}

/// A lane's envelope with recipients in every form.
fn envelope() -> impl Strategy<Value = String> {
    let method = prop_oneof![
        Just("SendAsync"),
        Just("SendToManyAsync"),
        Just("SendToGroupAsync"),
        Just("SendToGroupExceptAsync"),
        Just("SendToUsersAsync"),
        Just("AddToGroupAsync"),
        Just("RemoveFromGroupAsync"),
    ];
    let ids = || {
        prop::collection::vec(prop_oneof![4 => string(), 1 => Just("null".to_string()), 1 => value()], 0..5)
            .prop_flat_map(|items| joined("[", items, "]"))
    };
    let whom = prop_oneof![
        string(),
        ids(),
        ids().prop_map(|list| serde_json::to_string(&list).unwrap()),
        ids().prop_map(|list| serde_json::to_string(&list).unwrap().replace("\\\"", "\\u0022")),
    ];
    let arguments = prop_oneof![
        prop::collection::vec(string(), 0..4).prop_flat_map(|items| joined("[", items, "]")),
        (ids(), string(), value()).prop_map(|(users, vm, data)| format!("[{users},{vm},{data}]")),
    ];
    (method, arguments, whom, white()).prop_map(|(method, arguments, whom, white)| {
        format!("[{white}\"{method}\",{arguments},{{\"$fwdConnId\"{white}:{whom}}}]")
    })
}

/// What rmp writes, which cannot fail on its own buffer.
fn written<R>(f: impl FnOnce(&mut rmp::encode::ByteBuf) -> R) -> Vec<u8> {
    let mut out = rmp::encode::ByteBuf::new();
    f(&mut out);
    out.into_vec()
}

/// A MessagePack value of any kind.
fn encoded() -> impl Strategy<Value = Vec<u8>> {
    use rmp::encode as w;
    let leaf = prop_oneof![
        Just(vec![0xc0]),
        any::<bool>().prop_map(|value| written(|out| w::write_bool(out, value))),
        any::<u64>().prop_map(|value| written(|out| w::write_uint(out, value))),
        any::<i64>().prop_map(|value| written(|out| w::write_sint(out, value))),
        any::<f64>().prop_map(|value| written(|out| w::write_f64(out, value))),
        any::<f32>().prop_map(|value| written(|out| w::write_f32(out, value))),
        ".{0,300}".prop_map(|value| written(|out| w::write_str(out, &value))),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|value| written(|out| w::write_bin(out, &value))),
        (0usize..300, any::<i8>()).prop_map(|(length, kind)| {
            let mut bytes = written(|out| w::write_ext_meta(out, length as u32, kind));
            bytes.extend(vec![0xc1; length]);
            bytes
        }),
    ];
    leaf.prop_recursive(5, 40, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(|items| {
                let mut bytes = written(|out| w::write_array_len(out, items.len() as u32));
                bytes.extend(items.concat());
                bytes
            }),
            prop::collection::vec((inner.clone(), inner), 0..10).prop_map(|pairs| {
                let mut bytes = written(|out| w::write_map_len(out, pairs.len() as u32));
                for (key, value) in pairs {
                    bytes.extend(key);
                    bytes.extend(value);
                }
                bytes
            }),
        ]
    })
}

/// A JSON value in MessagePack.
fn encode(value: &serde_json::Value) -> Vec<u8> {
    use rmp::encode as w;
    use serde_json::Value;
    match value {
        Value::Null => vec![0xc0],
        Value::Bool(value) => written(|out| w::write_bool(out, *value)),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => written(|out| w::write_uint(out, number)),
            (None, Some(number)) => written(|out| w::write_sint(out, number)),
            (None, None) => written(|out| w::write_f64(out, number.as_f64().unwrap())),
        },
        Value::String(text) => written(|out| w::write_str(out, text)),
        Value::Array(items) => {
            let mut bytes = written(|out| w::write_array_len(out, items.len() as u32));
            items.iter().for_each(|item| bytes.extend(encode(item)));
            bytes
        }
        Value::Object(members) => {
            let mut bytes = written(|out| w::write_map_len(out, members.len() as u32));
            for (name, value) in members {
                bytes.extend(written(|out| w::write_str(out, name)));
                bytes.extend(encode(value));
            }
            bytes
        }
    }
}

/// Equal, but for the spelling of whole floats, which lose their point.
fn means(found: &serde_json::Value, expected: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) if expected.is_f64() => {
            // serde_json's own reading may be off by the last bit; `floats_come_back_whole` is exact.
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            (found - expected).abs() <= expected.abs() * 1e-15
        }
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| means(found, expected))
        }
        (Value::Object(found), Value::Object(expected)) => {
            found.keys().eq(expected.keys())
                && found.values().zip(expected.values()).all(|(found, expected)| means(found, expected))
        }
        _ => found == expected,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn scanner_agrees_with_serde_json(text in message()) {
        hub::signalr_json(text.as_bytes());
    }

    #[test]
    fn scanner_agrees_with_serde_json_on_any_value(text in value(), white in white()) {
        hub::signalr_json(format!("{white}{text}{white}").as_bytes());
        hub::signalr_json(format!("{{\"type\":6,\"x\":{text}}}").as_bytes());
    }

    #[test]
    fn scanner_agrees_with_serde_json_on_mutants(text in message(), edits in edits()) {
        hub::signalr_json(&mutate(text, edits));
    }

    #[test]
    fn authorization_is_what_serde_json_finds(text in argument(), edits in edits()) {
        hub::authorization(text.as_bytes());
        hub::authorization(&mutate(text, edits));
    }

    #[test]
    fn scanner_agrees_with_serde_json_on_what_looks_like_a_scalar(number in "[-+0-9.eE]{1,5}", word in "[truefalsn]{3,6}", text in "[\\x00-\\x7f]{0,9}") {
        for scalar in [number, word, format!("\"{text}\"")] {
            hub::signalr_json(format!("{{\"type\":6,\"x\":{scalar}}}").as_bytes());
        }
    }

    #[test]
    fn members_and_elements_agree_with_serde_json(items in prop::collection::vec((string(), value()), 0..6)) {
        let array = format!("[{}]", items.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(" ,\t"));
        let mut found = Vec::new();
        let count = json::elements(array.as_bytes(), |span| found.push(span.of(array.as_bytes()).to_vec()));
        prop_assert_eq!(count, Some(items.len() as u32));
        prop_assert!(found.iter().map(Vec::as_slice).eq(items.iter().map(|(_, value)| value.as_bytes())));
        let object = format!("{{{}}}", items.iter().map(|(name, value)| format!("{name} : {value}")).collect::<Vec<_>>().join("\n,"));
        let mut found = Vec::new();
        let count = json::members(object.as_bytes(), |name, value| {
            let of = |span: signalring::proto::signalr::Span| String::from_utf8(span.of(object.as_bytes()).to_vec()).unwrap();
            found.push((format!("\"{}\"", of(name)), of(value)));
        });
        prop_assert_eq!(count, Some(items.len() as u32));
        prop_assert_eq!(found, items);
        prop_assert_eq!(json::elements(object.as_bytes(), |_| {}), None);
        prop_assert_eq!(json::members(array.as_bytes(), |_, _| {}), None);
    }

    #[test]
    fn escaping_agrees_with_serde_json(text in any::<String>(), ascii in "[\\x00-\\x7f]{0,40}") {
        hub::check_escape(&text);
        hub::check_escape(&ascii);
    }

    #[test]
    fn unescaping_agrees_with_serde_json(string in string()) {
        let mut plain = Vec::new();
        json::unescape(&string.as_bytes()[1..string.len() - 1], &mut plain);
        let plain = String::from_utf8(plain).unwrap();
        match serde_json::from_str::<String>(&string) {
            Ok(theirs) => prop_assert_eq!(plain, theirs),
            // Half a surrogate pair, which serde_json refuses.
            Err(_) => prop_assert!(plain.contains(char::REPLACEMENT_CHARACTER)),
        }
    }

    #[test]
    fn names_compare_however_they_are_spelt(escapes in prop::collection::vec(0u8..4, 10)) {
        let mut name = String::new();
        for (character, how) in "Request_VM".chars().zip(escapes) {
            match how {
                0 => name.push(character),
                1 => name.push(character.to_ascii_uppercase()),
                2 => name += &format!("\\u{:04x}", character as u32),
                _ => name += &format!("\\u{:04X}", character.to_ascii_lowercase() as u32),
            }
        }
        prop_assert!(json::eq_ignore_case(name.as_bytes(), "Request_VM"));
        prop_assert!(!json::eq_ignore_case(name.as_bytes(), "Request_V"));
        prop_assert!(!json::eq_ignore_case(name.as_bytes(), "Request_VN"));
        prop_assert!(!json::eq_ignore_case(name.as_bytes(), "Request_VM_"));
    }

    #[test]
    fn forwarded_text_is_the_clients(vm in ".{0,20}", argument in value()) {
        let vm = serde_json::to_string(&vm).unwrap();
        for call in Call::ALL {
            let argument = (call != Call::DisposeVm).then_some(argument.as_bytes());
            hub::check_forward(&Forward::Vm { call, vm_id: vm.as_bytes(), argument }, Some(vm.as_bytes()), argument);
        }
        hub::check_forward(&Forward::Disconnected, None, None);
    }

    #[test]
    fn recipients_are_those_serde_json_finds(text in envelope()) {
        hub::dotnetify_response(text.as_bytes());
    }

    #[test]
    fn mutated_responses_do_no_harm(text in envelope(), edits in edits()) {
        hub::dotnetify_response(&mutate(text, edits));
    }

    #[test]
    fn messagepack_values_are_stepped_over_whole(items in prop::collection::vec(encoded(), 1..20)) {
        let mut array = Vec::new();
        msgpack::write::array_len(items.len() as u32, &mut array);
        array.extend(items.concat());
        let mut found = Vec::new();
        let count = msgpack::elements(&array, |span| found.push(span.of(&array).to_vec()));
        prop_assert_eq!(count, Some(items.len() as u32));
        prop_assert_eq!(&found, &items);
        // As the arguments of an invocation.
        let mut body = vec![0x95, 0x01, 0x80, 0xc0, 0xa1, b'T'];
        body.extend(&array);
        let message = msgpack::parse(&body).unwrap();
        prop_assert_eq!(message.arguments.count, items.len() as u32);
        for (span, item) in message.arguments.spans.iter().zip(&items) {
            prop_assert_eq!(span.of(&body), &item[..]);
        }
        prop_assert!(msgpack::parse(&body[..body.len() - 1]).is_err());
        hub::signalr_record(&body);
        hub::signalr_msgpack(&body);
        hub::dotnetify_response(&body);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        hub::signalr_json(&bytes);
        hub::signalr_record(&bytes);
        hub::signalr_msgpack(&bytes);
        hub::dotnetify_response(&bytes);
    }

    #[test]
    fn encoded_requests_become_a_json_clients(target in "Request_VM|UPDATE_vm|Dispose_VM", vm in ".{0,40}", argument in encoded(), is_map in any::<bool>()) {
        let count = if target.starts_with('D') { 1 } else { 2 };
        let mut body = vec![0x95, 0x01, 0x80, 0xc0];
        msgpack::write::text(target.as_bytes(), &mut body);
        msgpack::write::array_len(count, &mut body);
        msgpack::write::text(vm.as_bytes(), &mut body);
        if count == 2 {
            if is_map {
                body.extend([0x81, 0xa1, b'a']);
            }
            body.extend(&argument);
        }
        hub::signalr_msgpack(&body);
        body.pop();
        hub::signalr_msgpack(&body);
    }

    #[test]
    fn values_keep_their_meaning(text in value()) {
        // Half a surrogate pair, or a number beyond f64.
        let Ok(expected) = serde_json::from_str::<serde_json::Value>(&text) else { return Ok(()) };
        let mut out = Vec::new();
        transcode::to_json(&encode(&expected), &mut out).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&out).unwrap();
        prop_assert!(means(&found, &expected), "{} became {}", text, String::from_utf8_lossy(&out));
    }

    #[test]
    fn floats_come_back_whole(single in any::<f32>(), double in any::<f64>()) {
        let text = |bytes: Vec<u8>| {
            let mut out = Vec::new();
            transcode::to_json(&bytes, &mut out).is_ok().then(|| String::from_utf8(out).unwrap())
        };
        let found = text(written(|out| rmp::encode::write_f32(out, single)));
        prop_assert_eq!(found.map(|text| text.parse::<f32>().unwrap().to_bits()), single.is_finite().then_some(single.to_bits()));
        let found = text(written(|out| rmp::encode::write_f64(out, double)));
        prop_assert_eq!(found.map(|text| text.parse::<f64>().unwrap().to_bits()), double.is_finite().then_some(double.to_bits()));
    }

    #[test]
    fn length_prefixes_round_trip(length in 0u32..=i32::MAX as u32, shift in 0u32..31) {
        let length = length >> shift;
        let mut prefix = Vec::new();
        record::write_length_prefix(length, &mut prefix);
        prop_assert_eq!(record::length_prefix(&prefix), Ok(Some((prefix.len(), length))));
        hub::signalr_record(&prefix);
    }

    #[test]
    fn what_is_sent_is_what_a_client_reads(
        texts in prop::collection::vec(prop::collection::vec(message(), 1..3), 0..3),
        bodies in prop::collection::vec(prop::collection::vec(encoded(), 1..3), 0..3),
    ) {
        let texts: Vec<Vec<u8>> = texts.iter().map(|records| records.iter().map(|text| format!("{text}\u{1e}")).collect::<String>().into_bytes()).collect();
        let bodies: Vec<Vec<u8>> = bodies.iter().map(|records| {
            let mut payload = Vec::new();
            for body in records {
                msgpack::write_record(&mut payload, |out| out.extend_from_slice(body));
            }
            payload
        }).collect();
        for transport in [Transport::WebSockets, Transport::ServerSentEvents, Transport::LongPolling] {
            session::form(Form { transport, protocol: Protocol::Json }, &texts);
        }
        for transport in [Transport::WebSockets, Transport::LongPolling] {
            session::form(Form { transport, protocol: Protocol::MessagePack }, &bodies);
        }
    }

    #[test]
    fn an_event_is_its_payload_whatever_its_lines(payload in "[a: \r\n\u{feff}é\u{1e}]{1,12}") {
        // A payload ends with its last record.
        let payload = format!("{payload}\u{1e}").into_bytes();
        session::form(Form { transport: Transport::ServerSentEvents, protocol: Protocol::Json }, &[payload.clone(), payload]);
    }
}
