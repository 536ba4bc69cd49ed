//! The hub codecs on the way of a message, each beside a memcpy of the same bytes: `cargo bench --bench hub`.
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use signalring::filter::{Facts, Filter};
use signalring::fuzzing::identity as tokens;
use signalring::identity::Identity;
use signalring::limits::MESSAGE_BYTES_DEFAULT;
use signalring::proto::dotnetify::context::{self, Context, Items, Peer};
use signalring::proto::dotnetify::forward::{self, Forward};
use signalring::proto::dotnetify::request::Call;
use signalring::proto::dotnetify::{headers, request, response};
use signalring::proto::signalr::{self, Protocol, json, msgpack};
use std::hint::black_box;

/// As the npm client writes it.
fn update(data: &str) -> Vec<u8> {
    format!(r#"{{"arguments":["HelloWorldVM",{data}],"invocationId":"3","target":"Update_VM","type":1}}"#).into_bytes()
}

/// A view model's state of about `bytes` bytes: a list of rows, as in a grid.
fn rows(bytes: usize) -> String {
    let mut data = String::from("{\"Rows\":[");
    let mut row = 0;
    while data.len() < bytes {
        data += &format!(r#"{{"Id":{row},"FirstName":"John {row}","City":"Köln","Price":12.50,"IsActive":true}},"#);
        row += 1;
    }
    data.pop();
    data + "]}"
}

fn updates() -> [(&'static str, Vec<u8>); 4] {
    [
        ("typical", update(r#"{"FirstName":"John","Age":5,"Nested":{"a":[1,null,true]}}"#)),
        ("1 KiB", update(&rows(1024))),
        ("16 KiB", update(&rows(16 * 1024))),
        ("16 KiB text", update(&format!("{{\"Text\":\"{}\"}}", "lorem ipsum ".repeat(1365)))),
    ]
}

fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("json::parse + request::parse of an Update_VM");
    for (name, record) in updates() {
        group.throughput(Throughput::Bytes(record.len() as u64));
        group.bench_function(BenchmarkId::new("ours", name), |bencher| {
            bencher.iter(|| {
                let record = black_box(&record[..]);
                let message = json::parse(record).unwrap();
                black_box(request::parse(record, &message).unwrap())
            })
        });
        copy(&mut group, name, &record);
    }
}

/// A browser's upgrade request, as far as it is forwarded.
const BROWSER: [(&str, &[u8]); 9] = [
    ("host", b"app.example.com"),
    ("user-agent", b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"),
    ("accept-encoding", b"gzip, deflate, br, zstd"),
    ("accept-language", b"en-US,en;q=0.9,de;q=0.8"),
    ("cache-control", b"no-cache"),
    ("cookie", b"session=3f7e1c9a5b2d48e6a0c4f8b1d2e3f4a5; theme=dark; consent=yes; _ga=GA1.1.1234567890.1700000000"),
    ("origin", b"https://app.example.com"),
    ("pragma", b"no-cache"),
    ("sec-fetch-site", b"same-origin"),
];

fn invoke(criterion: &mut Criterion) {
    let peer = Peer {
        connection_id: "0HM6KABCDEF01",
        local: ("10.0.0.2".parse().unwrap(), 5000),
        remote: ("10.0.0.7".parse().unwrap(), 51234),
        headers: &BROWSER,
    };
    for protocol in [Protocol::Json, Protocol::MessagePack] {
        let prepared = context::prepare(protocol, &peer);
        let tail = prepared.tail();
        let mut group = criterion.benchmark_group(format!(
            "forward::write to {}, browser's context of {} bytes",
            protocol.name(),
            prepared.connection.len() + prepared.headers.len() + 270
        ));
        for (size, record) in updates() {
            let message = json::parse(&record).unwrap();
            let request = request::parse(&record, &message).unwrap();
            let forward = Forward::Vm {
                call: request.call,
                vm_id: request.vm_id.of(&record),
                argument: request.argument.map(|argument| argument.of(&record)),
            };
            let context = Context {
                hub_id: b"fRr82pUPRESdT1NCLXmSPg",
                ticks: 17_149_792_891_234_567,
                connection_id: b"Kx1n2s3d4f5g6h7j8k9lAw",
                tail,
                items: Items::default(),
            };
            let mut out = Vec::new();
            forward::write(protocol, &forward, &context, Some(12345), &mut out);
            let written = out.clone();
            group.throughput(Throughput::Bytes(out.len() as u64));
            group.bench_function(BenchmarkId::new("ours", size), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    forward::write(protocol, black_box(&forward), black_box(&context), Some(12345), &mut out);
                    black_box(&out[..]);
                })
            });
            copy(&mut group, size, &written);
        }
    }
}

fn back(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Response_VM from lane to client frame");
    for (name, data) in [("typical", rows(64)), ("1 KiB", rows(1024)), ("16 KiB", rows(16 * 1024))] {
        let data = serde_json::to_string(&data).unwrap();
        let record = format!(
            r#"{{"type":1,"target":"Response_VM","arguments":[["SendAsync",["HelloWorldVM",{data}],{{"$fwdConnId":"Kx1n2s3d4f5g6h7j8k9lAw"}}]]}}"#
        )
        .into_bytes();
        group.throughput(Throughput::Bytes(record.len() as u64));
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| {
                let record = black_box(&record[..]);
                let message = json::parse(record).unwrap();
                black_box(response::parse(Protocol::Json, record, &message).unwrap())
            })
        });
        let text: String = serde_json::from_str(&data).unwrap();
        let of_lane = |from| match from {
            Protocol::Json => (&b"\"HelloWorldVM\""[..], data.as_bytes()),
            Protocol::MessagePack => (&b"HelloWorldVM"[..], text.as_bytes()),
        };
        let mut out = Vec::new();
        for from in [Protocol::Json, Protocol::MessagePack] {
            let (vm, data) = of_lane(from);
            for to in [Protocol::Json, Protocol::MessagePack] {
                let id = BenchmarkId::new(format!("encode {} for {}", from.name(), to.name()), name);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        out.clear();
                        response::write_client(from, to, black_box(vm), black_box(data), &mut out);
                        black_box(&out[..]);
                    })
                });
            }
        }
        copy(&mut group, name, &record);
    }
    drop(group);

    let ids: Vec<String> = (0..1000).map(|client| format!("Kx1n2s3d4f5g6h7j8k{client:04}")).collect();
    let list = serde_json::to_string(&serde_json::to_string(&ids).unwrap()).unwrap();
    let record = format!(
        r#"{{"type":1,"target":"Response_VM","arguments":[["SendToManyAsync",["X","{{}}"],{{"$fwdConnId":{list}}}]]}}"#
    )
    .into_bytes();
    let mut group = criterion.benchmark_group("SendToMany to 1000");
    group.throughput(Throughput::Bytes(record.len() as u64));
    group.bench_function("decode and list", |bencher| {
        bencher.iter(|| {
            let record = black_box(&record[..]);
            let message = json::parse(record).unwrap();
            let Ok(response::Delivery::SendToMany { to, .. }) = response::parse(Protocol::Json, record, &message)
            else {
                panic!()
            };
            let mut bytes = 0;
            response::each_recipient(record, to, |id| bytes += id.map_or(0, <[u8]>::len));
            assert_eq!(black_box(bytes), 22 * 1000);
        })
    });
    copy(&mut group, "", &record);
}

fn message_pack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("an Update_VM from npm in MessagePack");
    let log = include_str!("../tests/vectors/npm-client-msgpack.log");
    let line = log.lines().find(|line| line.starts_with("WS-IN BIN 40")).unwrap();
    let digits = &line.as_bytes()["WS-IN BIN 40".len()..];
    let npm: Vec<u8> =
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    for (name, body) in [("typical", npm), ("16 KiB", encoded_update(16 * 1024))] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| black_box(signalr::parse(Protocol::MessagePack, black_box(&body)).unwrap()))
        });
        let message = msgpack::parse(&body).unwrap();
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new("request::transcode", name), |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(request::transcode(black_box(&body), &message, &mut out).unwrap())
            })
        });
        copy(&mut group, name, &body);
    }
}

/// The rows of `rows`, as a MessagePack client sends them.
fn encoded_update(bytes: usize) -> Vec<u8> {
    use msgpack::write;
    let mut encoded = Vec::new();
    let mut row = 0;
    while encoded.len() < bytes {
        write::map_len(4, &mut encoded);
        write::text(b"Id", &mut encoded);
        write::uint(row, &mut encoded);
        write::text(b"FirstName", &mut encoded);
        write::text(format!("John {row}").as_bytes(), &mut encoded);
        write::text(b"Price", &mut encoded);
        encoded.push(0xcb);
        encoded.extend(12.55f64.to_be_bytes());
        write::text(b"IsActive", &mut encoded);
        write::boolean(true, &mut encoded);
        row += 1;
    }
    // [1, {}, "3", "Update_VM", ["HelloWorldVM", {"Rows": [...]}]]
    let mut body = vec![0x95, 0x01, 0x80];
    write::text(b"3", &mut body);
    write::text(b"Update_VM", &mut body);
    write::array_len(2, &mut body);
    write::text(b"HelloWorldVM", &mut body);
    write::map_len(1, &mut body);
    write::text(b"Rows", &mut body);
    write::array_len(row as u32, &mut body);
    body.extend(encoded);
    body
}

/// What a node with identity does to every Request_VM, and what a connection's token costs.
fn identity(criterion: &mut Criterion) {
    let [token, ..] = tokens::FOREIGN;
    let arguments = [
        ("no options", "{}".to_string()),
        ("$vmArg only", r#"{"$vmArg":{"Id":5,"Name":"John","Filter":{"City":"Köln","Page":1}}}"#.to_string()),
        ("$vmArg and $headers", format!(r#"{{"$vmArg":{{"Id":5}},"$headers":{{"Authorization":"Bearer {token}"}}}}"#)),
        ("1 KiB without", rows(1024)),
    ];
    let mut group = criterion.benchmark_group("headers::authorization");
    for (name, argument) in &arguments {
        let argument = argument.as_bytes();
        group.bench_function(*name, |bencher| bencher.iter(|| headers::authorization(black_box(argument))));
    }
    drop(group);

    let identity = Identity::new(&tokens::settings()).unwrap();
    let mut group = criterion.benchmark_group("Identity::verify");
    for (name, token) in ["HS256", "RS256", "ES256"].into_iter().zip(tokens::FOREIGN) {
        group.bench_function(name, |bencher| bencher.iter(|| identity.verify(black_box(token), tokens::NOW).unwrap()));
    }
}

/// What a filter costs a message, by what it looks at.
fn filter(criterion: &mut Criterion) {
    let headers: Vec<(Box<str>, Box<str>)> =
        BROWSER.iter().map(|(name, value)| ((*name).into(), String::from_utf8_lossy(value).into())).collect();
    let data = [r#"{"FirstName":"John","Age":5,"Nested":{"a":[1,null,true]}}"#.to_string(), rows(16 * 1024)];
    let facts = Facts {
        call: Call::UpdateVm,
        vm_id: br#""ChatRoomVM""#,
        connection_id: "0HM6KABCDEF01",
        user: Some("ada"),
        path: "/dotnetify",
        headers: &headers,
        claims: None,
        data: Some(data[0].as_bytes()),
    };
    let escaped = Facts { vm_id: br#""Chat\u0052oomVM""#, ..facts };
    let large = Facts { data: Some(data[1].as_bytes()), ..facts };
    let hostile = format!("[{}]", vec!["1"; MESSAGE_BYTES_DEFAULT as usize / 2 - 1].join(","));
    let hostile = Facts { data: Some(hostile.as_bytes()), ..facts };
    let mut group = criterion.benchmark_group("Filter::matches");
    for (name, text, facts) in [
        ("one vmId", r#"vm_id == "ChatRoomVM""#, &facts),
        ("one vmId, escaped", r#"vm_id == "ChatRoomVM""#, &escaped),
        ("a prefix", r#"vm_id.startsWith("ChatRoom")"#, &facts),
        ("one of ten", r#"vm_id in ["A", "B", "C", "D", "E", "F", "G", "H", "I", "ChatRoomVM"]"#, &facts),
        ("a part", r#"vm_id.contains("Room")"#, &facts),
        ("prefix, call and user", r#"vm_id.startsWith("Chat") && call_type != "Dispose_VM" && user != """#, &facts),
        ("data, not looked at", r#"data.Age > 3 && vm_id == "BroadcastVM""#, &facts),
        ("a pattern", r#"vm_id.matches("^Chat(Room|Box)")"#, &facts),
        ("a header", r#"headers["sec-fetch-site"] == "same-origin""#, &facts),
        ("data of 57 bytes", "data.Age > 3", &facts),
        ("data of 16 KiB", "size(data.Rows) > 3", &large),
        ("a loop over 16 KiB", "data.Rows.all(row, row.Id >= 0)", &large),
        ("a loop over 16,000 numbers", "data.all(x, x == 1)", &hostile),
        ("a loop that is given up", "data.all(x, x == 1 && size(data) > 1)", &hostile),
    ] {
        let filter = Filter::compile(text).expect("a filter");
        group.bench_function(name, |bencher| bencher.iter(|| filter.matches(black_box(facts))));
    }
    group.finish();
    criterion.bench_function("Filter::compile", |bencher| {
        bencher.iter(|| Filter::compile(black_box(r#"vm_id.startsWith("ChatRoom") && data.Age > 3"#)))
    });
}

fn copy(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, name: &str, bytes: &[u8]) {
    let mut out = Vec::with_capacity(bytes.len());
    group.bench_function(BenchmarkId::new("memcpy", name), |bencher| {
        bencher.iter(|| {
            out.clear();
            out.extend_from_slice(black_box(bytes));
            black_box(&out[..]);
        })
    });
}

criterion_group!(hub, scan, invoke, back, message_pack, identity, filter);
criterion_main!(hub);
