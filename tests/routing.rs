//! A node in front of several upstreams, over raw sockets: which app server hears what, on which lane, in which order, and what clients
//! are told. App servers are doubles, or do what a test tells them to.

mod common;

use base64::Engine;
use common::fake::{Fake, Heard, unpack};
use common::talk::{
    call, counts, dispose, is_quiet, json_of, leave, origins_of, request, requested, response, start, update, upstream,
};
use common::ws::{BINARY, FIN, Socket, frame, record};
use common::{App, Node, PATIENCE, Random, wait_for};
use serde_json::{Value, json};
use signalring::demo::app;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

fn unknown(vm: &str) -> String {
    let message = format!(
        "[dotNetify] ERROR: '{vm}' is not a known view model! Its assembly must be registered through VMController.RegisterAssembly."
    );
    format!("{{\"ExceptionType\":\"Exception\",\"Message\":{}}}", json!(message))
}

// ---- Which upstream ---------------------------------------------------------------------------------------------------

/// What a mirror answers with an error, and that it is lost where its client has more than is kept to request it again.
#[test]
fn what_becomes_of_a_mirror_is_nothing_to_a_client() {
    let [mirror, app] = [(); 2].map(|()| Fake::start());
    mirror.acknowledges(false);
    let node = start(
        "[limits]\nclient_replay_bytes = 0\n",
        &[upstream("mirror", &mirror.url(), "halt_pipeline = false"), upstream("app", &app.url(), "")],
        10,
    );
    let mut client = Socket::connect(node.address);
    client.send(&call("Request_VM", "\"A\",{\"a\":1}"));
    app.hears(&["Request_VM A"]);
    let lane = mirror.hears(&["Request_VM A"])[0].lane;
    mirror.send_record(lane, &json!({"type": 3, "invocationId": "1", "error": "no such view model"}));
    counts(&node, "refusals", "reason=\"app_server_error\"", 1);
    mirror.cut(lane);
    counts(&node, "lane_events", "event=\"lost\"", 1);
    client.send(&update("A", "{}"));
    app.hears(&["Update_VM A"]);
    is_quiet(&mut client, Duration::from_millis(200));
    counts(&node, "moved_clients", "result=\"closed\"", 0);
}

#[test]
fn the_first_filter_that_halts_wins_and_mirrors_before_it_see_it_too() {
    let [first, mirror, second, rest] = [(); 4].map(|()| Fake::start());
    let node = start(
        "",
        &[
            upstream("first", &first.url(), "filter = 'vm_id == \"A\"'"),
            upstream("mirror", &mirror.url(), "filter = 'vm_id < \"C\"'\nhalt_pipeline = false"),
            upstream("second", &second.url(), "filter = 'vm_id.startsWith(\"B\") || data.Wanted == true'"),
            upstream("rest", &rest.url(), "filter = 'vm_id.startsWith(\"F\")'"),
        ],
        20,
    );
    let mut client = Socket::connect(node.address);
    for vm in ["A", "AB", "B", "F"] {
        client.send(&request(vm));
    }
    // Only a mirror took it: nobody answers.
    assert_eq!(response(&mut client), ("AB".into(), unknown("AB")));
    first.hears(&["Request_VM A"]);
    mirror.hears(&["Request_VM AB", "Request_VM B"]);
    second.hears(&["Request_VM B"]);
    rest.hears(&["Request_VM F"]);
    client.send(&call("Request_VM", "\"X\",{\"Wanted\":true}"));
    second.hears(&["Request_VM X"]);
    for upstream in ["first", "rest"] {
        counts(&node, "upstream_messages", &format!("result=\"forwarded\",upstream=\"{upstream}\""), 1);
    }
    counts(&node, "upstream_messages", "result=\"mirrored\",upstream=\"mirror\"", 2);
    counts(&node, "upstream_messages", "result=\"forwarded\",upstream=\"second\"", 2);

    // Every one of them hears of the end, once.
    leave(client);
    for fake in [&first, &mirror, &second, &rest] {
        fake.hears(&["OnDisconnectedAsync"]);
    }
}

#[test]
fn what_nobody_takes_is_answered_as_dotnetify_answers_an_unknown_view_model() {
    let app = Fake::start();
    let node = start("", &[upstream("app", &app.url(), "filter = 'vm_id == \"Known\"'")], 5);
    let mut client = Socket::connect(node.address);
    for vm in ["X", "", "a\"b\\c", "Grüße, 世界 😀", "tab\tnew\nline", "\u{1}", "Known.Sub", "known"] {
        client.send(&request(vm));
        assert_eq!(response(&mut client), (vm.to_string(), unknown(vm)));
    }
    // However it is spelled.
    client.send(&call("Request_VM", r#""\u0058\u00e9\ud83d\ude00\/",{}"#));
    let (vm, data) = response(&mut client);
    assert_eq!((vm.as_str(), json_of(&data)), ("Xé😀/", json_of(&unknown("Xé😀/"))));

    // Updates and disposes of it are nobody's business, and counted.
    client.send(&update("X", "{\"a\":1}"));
    client.send(&dispose("X"));
    client.send(&request("X"));
    assert_eq!(response(&mut client).0, "X");
    for (call, count) in [("request_vm", 10), ("update_vm", 1), ("dispose_vm", 1)] {
        counts(&node, "unrouted", &format!("call=\"{call}\""), count);
    }

    let mut client = Socket::open(node.address);
    client.send(&record(r#"{"protocol":"messagepack","version":1}"#));
    client.frame("the handshake's answer");
    for vm in ["X", "a\"b\\c", "Grüße, 世界 😀"] {
        let body = [&b"\x95\x01\x80\xc0\xaaRequest_VM\x92"[..], &[0xa0 | vm.len() as u8], vm.as_bytes(), b"\xc0"];
        let body = body.concat();
        client.send(&frame(FIN | BINARY, &[&[body.len() as u8][..], &body].concat()));
        let answer = client.frame("the answer");
        assert_eq!(answer.opcode(), BINARY);
        // Two bytes of length.
        let message = unpack(&mut &answer.payload[2..]);
        assert_eq!((&message[3], &message[4][0][0]), (&json!("Response_VM"), &json!(vm)));
        assert_eq!(message[4][0][1], json!(unknown(vm)));
    }
    leave(client);
    app.hears(&[]);
}

// ---- The choice holds -------------------------------------------------------------------------------------------------

#[test]
fn the_choice_made_at_the_request_holds_until_the_dispose() {
    let [gold, asked, beta, ada, rest] = [(); 5].map(|()| Fake::start());
    let node = start(
        &format!("[identity]\nsigning_key = \"{SECRET}\""),
        &[
            upstream("gold", &gold.url(), "filter = 'has(data.Plan) && data.Plan == \"gold\"'"),
            upstream("asked", &asked.url(), "filter = 'call_type == \"Request_VM\" && vm_id.startsWith(\"T\")'"),
            upstream("beta", &beta.url(), "filter = '\"x-beta\" in headers && vm_id == \"H\"'"),
            upstream("ada", &ada.url(), "filter = 'user == \"ada\"'"),
            upstream("rest", &rest.url(), ""),
        ],
        25,
    );
    let mut client =
        Socket::upgrade(node.address, "/dotnetify", "X-Beta: 1\r\n").unwrap_or_else(|_| panic!("an upgrade"));
    client.send(&record(r#"{"protocol":"json","version":1}"#));
    client.frame("the handshake's answer");
    let ask = |vm: &str, argument: &str| call("Request_VM", &format!("{},{argument}", json!(vm)));

    client.send(&ask("P", "{\"Plan\":\"gold\"}"));
    client.send(&update("P", "{\"Plan\":\"iron\"}"));
    client.send(&ask("P", "{\"Plan\":\"iron\"}"));
    client.send(&update("P", "{\"a\":1}"));
    client.send(&dispose("P"));
    gold.hears(&["Request_VM P", "Update_VM P", "Request_VM P", "Update_VM P", "Dispose_VM P"]);
    client.send(&ask("P", "{\"Plan\":\"iron\"}"));
    client.send(&update("P", "{\"Plan\":\"gold\"}"));
    rest.hears(&["Request_VM P", "Update_VM P"]);

    client.send(&ask("T", "null"));
    client.send(&update("T", "{}"));
    client.send(&dispose("T"));
    asked.hears(&["Request_VM T", "Update_VM T", "Dispose_VM T"]);
    // Never requested: each message by itself.
    client.send(&update("T2", "{}"));
    client.send(&dispose("T2"));
    rest.hears(&["Update_VM T2", "Dispose_VM T2"]);
    client.send(&ask("H", "{}"));
    client.send(&update("H", "{}"));
    beta.hears(&["Request_VM H", "Update_VM H"]);

    // The same name, spelled otherwise.
    client.send(&call("Request_VM", r#""\u0041\u00e9\/b",{"Plan":"gold"}"#));
    client.send(&update("Aé/b", "{}"));
    client.send(&call("Update_VM", r#""A\u00E9/b",{}"#));
    client.send(&call("Dispose_VM", r#""\u0041é\/\u0062""#));
    client.send(&update("Aé/b", "{}"));
    gold.hears(&["Request_VM Aé/b", "Update_VM Aé/b", "Update_VM Aé/b", "Dispose_VM Aé/b"]);
    rest.hears(&["Update_VM Aé/b"]);

    // A user who says so later.
    let token = jwt("ada");
    client.send(&ask("U", "{}"));
    client.send(&update("U", &format!("{{\"$headers\":{{\"Authorization\":\"Bearer {token}\"}}}}")));
    client.send(&update("U", "{}"));
    rest.hears(&["Request_VM U", "Update_VM U", "Update_VM U"]);
    client.send(&ask("U2", "{}"));
    ada.hears(&["Request_VM U2"]);
    leave(client);
    for fake in [&gold, &asked, &beta, &ada, &rest] {
        fake.hears(&["OnDisconnectedAsync"]);
    }
}

#[test]
fn disposing_of_a_master_reaches_everybody_who_had_a_part_of_it() {
    let [gold, mirror, rest] = [(); 3].map(|()| Fake::start());
    let node = start(
        "",
        &[
            upstream("mirror", &mirror.url(), "filter = 'vm_id == \"Master.Sub.Deep\"'\nhalt_pipeline = false"),
            upstream("gold", &gold.url(), "filter = 'has(data.Plan)'"),
            upstream("rest", &rest.url(), ""),
        ],
        15,
    );
    let mut client = Socket::connect(node.address);
    let plan = |vm: &str| call("Request_VM", &format!("{},{{\"Plan\":1}}", json!(vm)));
    client.send(&request("Master"));
    client.send(&plan("Master.Sub"));
    client.send(&request("Master.Sub.Deep"));
    client.send(&plan("Masterpiece"));
    client.send(&dispose("Master"));
    client.send(&update("Masterpiece", "{}"));
    client.send(&update("Master.Sub", "{}"));
    rest.hears(&["Request_VM Master", "Request_VM Master.Sub.Deep", "Dispose_VM Master", "Update_VM Master.Sub"]);
    gold.hears(&["Request_VM Master.Sub", "Request_VM Masterpiece", "Dispose_VM Master", "Update_VM Masterpiece"]);
    mirror.hears(&["Request_VM Master.Sub.Deep", "Dispose_VM Master"]);
    // Both app servers that had a part of it took the dispose.
    counts(&node, "upstream_messages", "result=\"forwarded\",upstream=\"gold\"", 4);
    counts(&node, "upstream_messages", "result=\"forwarded\",upstream=\"rest\"", 4);
    counts(&node, "upstream_messages", "result=\"mirrored\",upstream=\"mirror\"", 2);
    leave(client);
}

#[test]
fn a_client_with_too_many_view_models_is_told_so_and_may_dispose_of_some() {
    let app = Fake::start();
    let node = start("", &[upstream("app", &app.url(), "connection_pool_size = 1")], 1);
    let mut client = Socket::connect(node.address);
    let max = signalring::limits::VIEWS_PER_CLIENT_MAX as usize;
    for n in 0..=max {
        client.send(&request(&format!("V{n}")));
    }
    let (vm, data) = response(&mut client);
    assert_eq!(vm, format!("V{max}"));
    assert_eq!(json_of(&data)["ExceptionType"], "ForwardingException", "{data}");
    assert_eq!(app.hears_so_many(max).len(), max);
    app.forget();
    client.send(&request("V7"));
    client.send(&dispose("V7"));
    client.send(&request("One more"));
    app.hears(&["Request_VM V7", "Dispose_VM V7", "Request_VM One more"]);
    leave(client);
}

const SECRET: &str = "a secret of thirty-two bytes....";

/// A token of this user for a minute.
fn jwt(user: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_secs();
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let claims = json!({"sub": user, "exp": now + 60, "role": "admin", "team": ["a", "b"]});
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token")
}

// ---- Ends -------------------------------------------------------------------------------------------------------------

#[test]
fn the_end_of_a_client_is_the_last_that_those_hear_who_saw_it() {
    let [even, odd] = [(); 2].map(|()| Fake::start());
    let node = start(
        "shards = 2",
        &[
            upstream(
                "even",
                &even.url(),
                "connection_pool_size = 6\nfilter = 'vm_id == \"Even\" || vm_id == \"Both\"'",
            ),
            upstream("odd", &odd.url(), "connection_pool_size = 6\nfilter = 'vm_id == \"Odd\"'"),
        ],
        12,
    );
    let mut clients: Vec<Socket> = (0..24).map(|_| Socket::connect(node.address)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        // A quarter says nothing, a quarter speaks to both.
        let vms: &[&str] = [&["Even"][..], &["Odd"], &["Even", "Odd"], &[]][n % 4];
        for vm in vms {
            client.send(&[request(vm), update(vm, "{}"), update(vm, "{}"), dispose(vm)].concat());
        }
    }
    for fake in [&even, &odd] {
        assert_eq!(fake.hears_so_many(12 * 4).len(), 12 * 4);
    }
    // Some say goodbye, some are cut off.
    for (n, client) in clients.into_iter().enumerate() {
        match n % 3 {
            0 => leave(client),
            _ => drop(client),
        }
    }
    for fake in [&even, &odd] {
        fake.hears_so_many(12 * 5);
        std::thread::sleep(Duration::from_millis(200));
        let heard = fake.heard();
        assert_eq!(heard.len(), 12 * 5);
        let mut of_clients: HashMap<String, Vec<&Heard>> = Default::default();
        for one in &heard {
            of_clients.entry(one.origin()).or_default().push(one);
        }
        assert_eq!(of_clients.len(), 12);
        for messages in of_clients.values() {
            let methods: Vec<&str> = messages.iter().map(|one| one.method()).collect();
            assert_eq!(methods, ["Request_VM", "Update_VM", "Update_VM", "Dispose_VM", "OnDisconnectedAsync"]);
            let place = |one: &Heard| (one.lane, one.hub_id());
            assert!(messages.iter().all(|one| place(one) == place(messages[0])), "{messages:?}");
        }
        let mut lanes: Vec<usize> = heard.iter().map(|one| one.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        assert!(lanes.len() > 2, "clients are spread: {lanes:?}");
        assert_eq!(fake.told_again(), [""; 0]);
    }
    counts(&node, "queued_disconnects", "", 0);
    counts(&node, "groups", "", 0);
}

// ---- Groups, users, many ----------------------------------------------------------------------------------------------

#[test]
fn groups_users_and_ids_are_those_of_one_upstream() {
    let [first, second] = [(); 2].map(|()| Fake::start());
    let lines = |name: &str| format!("connection_pool_size = 1\nfilter = 'vm_id == \"{name}\"'");
    let node = start(
        &format!("[identity]\nsigning_key = \"{SECRET}\""),
        &[upstream("first", &first.url(), &lines("A")), upstream("second", &second.url(), &lines("B"))],
        2,
    );
    let user = format!("Authorization: Bearer {}\r\n", jwt("ada"));
    let (mut a, a_id) = requested(&node, &user, &[("A", &first)]);
    let (mut b, b_id) = requested(&node, &user, &[("B", &second)]);
    let (mut both, both_id) = requested(&node, &user, &[("A", &first), ("B", &second)]);
    for (fake, id) in [(&first, &a_id), (&second, &b_id), (&second, &both_id)] {
        fake.send(0, "AddToGroupAsync", json!(["g"]), json!(id));
    }
    let list = |ids: &[&String]| json!(serde_json::to_string(ids).expect("a list"));
    // To each: what only those may hear who are in the group, or are users, or were named, there.
    first.send(0, "SendToGroupAsync", json!(["g", "A", "{\"group\":1}"]), Value::Null);
    second.send(0, "SendToGroupExceptAsync", json!(["g", "B", "{\"group\":2}"]), json!("[null]"));
    first.send(0, "SendToUsersAsync", json!([["ada"], "A", "{\"user\":1}"]), json!("[\"ada\"]"));
    second.send(0, "SendToUsersAsync", json!([["ada"], "B", "{\"user\":2}"]), json!("[\"ada\"]"));
    first.send(0, "SendToManyAsync", json!(["A", "{\"many\":1}"]), list(&[&a_id, &b_id, &both_id]));
    second.send(0, "SendToManyAsync", json!(["B", "{\"many\":2}"]), list(&[&a_id, &b_id, &both_id]));
    first.send(0, "SendAsync", json!(["A", "{\"one\":1}"]), json!(b_id));
    second.send(0, "SendAsync", json!(["B", "{\"one\":2}"]), json!(a_id));
    for (fake, id, data) in [(&first, &a_id, "1"), (&second, &b_id, "2")] {
        fake.send(0, "SendAsync", json!(["Last", data]), json!(id));
        fake.send(0, "SendAsync", json!(["Last", data]), json!(both_id));
    }
    let heard = |client: &mut Socket, lasts: usize| {
        let (mut all, mut last) = (Vec::new(), 0);
        while last < lasts {
            let (vm, data) = response(client);
            if vm == "Last" { last += 1 } else { all.push(data) }
        }
        all.sort();
        all
    };
    assert_eq!(heard(&mut a, 1), ["{\"group\":1}", "{\"many\":1}", "{\"user\":1}"]);
    assert_eq!(heard(&mut b, 1), ["{\"group\":2}", "{\"many\":2}", "{\"user\":2}"]);
    assert_eq!(heard(&mut both, 2), ["{\"group\":2}", "{\"many\":1}", "{\"many\":2}", "{\"user\":1}", "{\"user\":2}"]);
    for client in [a, b, both] {
        leave(client);
    }
}

// ---- Dead ones --------------------------------------------------------------------------------------------------------

/// Round trips of an update through the double; the slowest but one in a hundred.
fn p99(client: &mut Socket, prefix: &str) -> Duration {
    let mut times: Vec<Duration> = (0..300)
        .map(|n| {
            let begun = Instant::now();
            client.send(&update("HelloWorldVM", &format!("{{\"FirstName\":\"{prefix}{n}\"}}")));
            let full = format!("{prefix}{n} World");
            client.response("the new name", |data| data["FullName"] == full.as_str());
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() * 99 / 100 - 1]
}

/// Accepts and never answers.
fn black_hole() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (listener, url)
}

/// Nobody listens there.
fn refused() -> String {
    let (listener, url) = black_hole();
    drop(listener);
    url
}

fn hello(node: &Node) -> Socket {
    let mut client = Socket::connect(node.address);
    client.send(&call("Request_VM", "\"HelloWorldVM\",{\"$vmArg\":{\"TickInterval\":0}}"));
    client.response("the state", |data| data.get("FullName").is_some());
    client
}

/// Updates of 24 KiB: 800 are more than a lane's send queue and the kernel's buffers hold, for an app server that does not read.
fn flood(client: &mut Socket, vm: &str, count: usize) {
    let big = update(vm, &format!("{{\"a\":\"{}\"}}", "x".repeat(24 * 1024)));
    for _ in 0..count {
        client.send(&big);
    }
}

#[test]
fn an_upstream_that_is_dead_in_any_way_delays_nobody_elses_clients() {
    let (live, deaf) = (App::start(), Fake::start());
    let (_hole, hole_url) = black_hole();
    let node = start(
        "[limits]\nupstream_queue_timeout = \"1s\"\nupstream_queue_bytes = \"64KiB\"",
        &[
            upstream("refused", &refused(), "filter = 'vm_id == \"Refused\"'"),
            upstream("hole", &hole_url, "filter = 'vm_id == \"Hole\"'"),
            upstream("deaf", &deaf.url(), "filter = 'vm_id == \"Deaf\"'\nconnection_pool_size = 1"),
            upstream("live", &live.url(), ""),
        ],
        6,
    );
    let mut client = hello(&node);
    let before = p99(&mut client, "before");
    deaf.reads(false);
    let mut lost = Socket::connect(node.address);
    let begun = Instant::now();
    lost.send(&request("Refused"));
    lost.send(&request("Hole"));
    flood(&mut lost, "Deaf", 800);
    let during = p99(&mut client, "during");
    assert!(
        during < before * 5 + Duration::from_millis(100),
        "p99 {before:?} before, {during:?} with three dead upstreams"
    );

    // The same client is served by the live one while its requests to the others wait.
    lost.send(&call("Request_VM", "\"HelloWorldVM\",{\"$vmArg\":{\"TickInterval\":0}}"));
    let (mut refusals, mut has_state, mut full) = (Vec::new(), false, 0);
    while refusals.len() < 2 || !has_state {
        let (vm, data) = response(&mut lost);
        let data = json_of(&data);
        match vm.as_str() {
            "HelloWorldVM" => has_state = true,
            "Deaf" => {
                assert_eq!(data["ExceptionType"], "ForwardingException");
                full += 1;
            }
            _ => {
                assert_eq!(data["ExceptionType"], "ForwardingException");
                assert!(begun.elapsed() >= Duration::from_secs(1), "{vm} was refused after {:?}", begun.elapsed());
                refusals.push(vm);
            }
        }
    }
    assert!(full > 0, "the deaf one takes 64 KiB and no more");
    refusals.sort();
    assert_eq!(refusals, ["Hole", "Refused"]);
    wait_for("what waited to be answered", PATIENCE, || {
        (node.metric("signalring_queued_messages") == 0.0).then_some(())
    });
    assert!(node.metric_where("signalring_refusals", "reason=\"queue_timeout\"") >= 2.0);
    drop(lost);
    leave(client);
}

#[test]
fn a_mirror_that_is_dead_in_any_way_costs_nobody_anything() {
    let (live, deaf) = (App::start(), Fake::start());
    let (_hole, hole_url) = black_hole();
    let lines = "halt_pipeline = false\nconnection_pool_size = 1";
    let node = start(
        "",
        &[
            upstream("refused", &refused(), lines),
            upstream("hole", &hole_url, lines),
            upstream("deaf", &deaf.url(), lines),
            upstream("observer", &refused(), "kind = \"observer\""),
            // It is not to be flooded.
            upstream("live", &live.url(), "filter = 'vm_id != \"Flood\"'"),
        ],
        6,
    );
    let mut client = hello(&node);
    let before = p99(&mut client, "before");
    deaf.reads(false);
    let mut talker = hello(&node);
    for round in 0..16 {
        flood(&mut talker, "Flood", 50);
        talker.send(&update("HelloWorldVM", &format!("{{\"FirstName\":\"R{round}\"}}")));
        let full = format!("R{round} World");
        talker.response("the name", |data| data["FullName"] == full.as_str());
    }
    let during = p99(&mut client, "during");
    assert!(
        during < before * 5 + Duration::from_millis(100),
        "p99 {before:?} before, {during:?} with four dead mirrors"
    );
    assert_eq!(node.metric("signalring_queued_messages"), 0.0, "nothing waits for a mirror");
    let dropped = |name: &str, why: &str| {
        node.metric_where("signalring_upstream_messages", &format!("result=\"dropped_{why}\",upstream=\"{name}\""))
    };
    // Two requests, 600 updates, the big ones and those between them.
    for name in ["refused", "hole", "observer"] {
        assert_eq!(dropped(name, "lane_down"), 2.0 + 600.0 + 816.0, "{name}");
    }
    assert!(dropped("deaf", "queue_full") > 0.0);
    assert_eq!(node.metric("signalring_refusals"), 0.0);
    leave(client);
    leave(talker);
}

#[test]
fn a_request_that_waited_in_vain_holds_nothing() {
    let rest = Fake::start();
    let node = start(
        "[limits]\nupstream_queue_timeout = \"300ms\"",
        &[
            upstream("gold", &refused(), "filter = 'has(data.Plan)'"),
            upstream("rest", &rest.url(), "connection_pool_size = 1"),
        ],
        1,
    );
    let mut client = Socket::connect(node.address);
    client.send(&call("Request_VM", "\"P\",{\"Plan\":\"gold\"}"));
    let (vm, data) = response(&mut client);
    assert_eq!((vm.as_str(), &json_of(&data)["ExceptionType"]), ("P", &json!("ForwardingException")));
    // Asked again, it is decided again; and that choice holds.
    client.send(&request("P"));
    client.send(&update("P", "{\"Plan\":\"gold\"}"));
    rest.hears(&["Request_VM P", "Update_VM P"]);
    // A repeated request does not end what the first began.
    client.send(&call("Request_VM", "\"P\",{\"Plan\":\"gold\"}"));
    client.send(&update("P", "{}"));
    rest.hears(&["Request_VM P", "Update_VM P"]);
    leave(client);
}

#[test]
fn a_request_that_waited_in_vain_does_not_end_what_a_later_one_began() {
    let rest = Fake::start();
    let node = start(
        "[limits]\nupstream_queue_timeout = \"2s\"",
        &[upstream("gold", &refused(), "filter = 'has(data.Plan)'"), upstream("rest", &rest.url(), "")],
        5,
    );
    let mut client = Socket::connect(node.address);
    let ask = call("Request_VM", "\"P\",{\"Plan\":\"gold\"}");
    client.send(&ask);
    std::thread::sleep(Duration::from_secs(1));
    client.send(&[dispose("P"), ask].concat());
    let (vm, data) = response(&mut client);
    assert_eq!((vm.as_str(), &json_of(&data)["ExceptionType"]), ("P", &json!("ForwardingException")));
    // It waits for the same app server as the second request, and is refused behind it; nobody asks what became of the disposal.
    client.send(&update("P", "{}"));
    for _ in 0..2 {
        assert_eq!(response(&mut client).0, "P");
    }
    rest.hears(&[]);
    counts(&node, "drops", "reason=\"needless_disposal\"", 1);
    // Nothing is left of either request: the next one is decided anew.
    client.send(&request("P"));
    rest.hears(&["Request_VM P"]);
    leave(client);
}

// ---- Lost lanes -------------------------------------------------------------------------------------------------------

#[test]
fn a_lost_lane_of_a_mirror_is_no_loss_to_clients() {
    let [app, mirror] = [(); 2].map(|()| Fake::start());
    let node = start(
        "",
        &[
            upstream("mirror", &mirror.url(), "halt_pipeline = false\nconnection_pool_size = 1"),
            upstream("app", &app.url(), "connection_pool_size = 1"),
        ],
        2,
    );
    let (mut client, origin) = requested(&node, "", &[("V", &app)]);
    let (mut other, other_origin) = requested(&node, "", &[("V", &app)]);
    let idle = Socket::connect(node.address);
    let first = mirror.hears(&["Request_VM V", "Request_VM V"]);
    assert_eq!(first[0].origin(), origin);
    for id in [&origin, &other_origin] {
        mirror.send(0, "AddToGroupAsync", json!(["g"]), json!(id));
    }
    mirror.send(0, "SendToGroupAsync", json!(["g", "V", "{\"n\":1}"]), Value::Null);
    for client in [&mut client, &mut other] {
        assert_eq!(response(client).1, "{\"n\":1}");
    }

    mirror.cut(0);
    wait_for("a new lane", PATIENCE, || (mirror.lanes() == [1]).then_some(()));
    wait_for("the lane", PATIENCE, || (node.metric_where("signalring_lanes", "state=\"up\"") == 2.0).then_some(()));
    client.send(&update("V", "{\"a\":1}"));
    app.hears(&["Update_VM V"]);
    // Both have new names there and what they had; then the old ones end. What is said goes on behind it.
    let heard =
        mirror.hears(&["Request_VM V", "Request_VM V", "OnDisconnectedAsync", "OnDisconnectedAsync", "Update_VM V"]);
    assert_eq!(origins_of(&heard[2..4]), BTreeSet::from([origin, other_origin.clone()]));
    let new = heard[4].origin();
    assert!(origins_of(&heard[..2]).contains(&new) && origins_of(&heard[..2]).is_disjoint(&origins_of(&heard[2..4])));
    assert_ne!(heard[4].hub_id(), first[0].hub_id());

    // Who was in a group of the lane that is gone is in none: the mirror has been told that it is not there any more.
    mirror.send(1, "AddToGroupAsync", json!(["g"]), json!(new));
    mirror.send(1, "SendToGroupAsync", json!(["g", "V", "{\"n\":2}"]), Value::Null);
    assert_eq!(response(&mut client).1, "{\"n\":2}");
    is_quiet(&mut other, Duration::from_millis(100));

    counts(&node, "clients", "", 3);
    leave(client);
    leave(other);
    leave(idle);
    mirror.hears(&["OnDisconnectedAsync", "OnDisconnectedAsync"]);
    assert!(origins_of(&app.hears(&["OnDisconnectedAsync", "OnDisconnectedAsync"])).contains(&other_origin));
    counts(&node, "groups", "", 0);
}

#[test]
fn a_mirror_with_another_lane_up_goes_on_there_in_order() {
    let [app, mirror] = [(); 2].map(|()| Fake::start());
    let node = start(
        "",
        &[
            upstream("mirror", &mirror.url(), "halt_pipeline = false\nconnection_pool_size = 2"),
            upstream("app", &app.url(), "connection_pool_size = 1"),
        ],
        3,
    );
    let (mut client, origin) = requested(&node, "", &[("V", &app)]);
    let lane = mirror.hears(&["Request_VM V"])[0].lane;
    mirror.opens(false);
    mirror.cut(lane);
    mirror.has_lanes(1);
    wait_for("the loss", PATIENCE, || (node.metric_where("signalring_lanes", "state=\"down\"") == 1.0).then_some(()));
    client.send(&update("V", "{}"));
    let heard = mirror.hears(&["Request_VM V", "OnDisconnectedAsync", "Update_VM V"]);
    assert!(heard.iter().all(|one| one.lane != lane), "{heard:?}");
    assert_eq!((heard[0].origin(), heard[1].origin()), (heard[2].origin(), origin.clone()));
    assert_ne!(heard[0].origin(), origin);
    leave(client);
    mirror.hears(&["OnDisconnectedAsync"]);
}

#[test]
fn a_lost_lane_that_answers_gives_its_clients_new_names_there_and_nobody_else() {
    let [first, second] = [(); 2].map(|()| Fake::start());
    let lines = |name: &str| format!("connection_pool_size = 2\nfilter = 'vm_id == \"{name}\"'");
    let node =
        start("", &[upstream("first", &first.url(), &lines("A")), upstream("second", &second.url(), &lines("B"))], 4);
    let (mut here, here_id) = requested(&node, "", &[("A", &first), ("B", &second)]);
    let (mut there, there_id) = requested(&node, "", &[("A", &first), ("B", &second)]);
    let (mut elsewhere, elsewhere_id) = requested(&node, "", &[("B", &second)]);
    here.send(&update("A", "{}"));
    there.send(&update("A", "{}"));
    let heard = first.hears(&["Update_VM A", "Update_VM A"]);
    let lost = heard.iter().find(|one| one.origin() == here_id).expect("it was heard").lane;
    assert_ne!(heard[0].lane, heard[1].lane);
    first.cut(lost);
    let heard = first.hears(&["Request_VM A", "OnDisconnectedAsync"]);
    assert_eq!(heard[1].origin(), here_id);
    let new = heard[0].origin();
    assert!(new != here_id && heard[0].lane != lost);
    // The other upstream knows it as before, and nobody else has noticed anything.
    here.send(&[update("A", "{}"), update("B", "{}")].concat());
    assert_eq!(first.hears(&["Update_VM A"])[0].origin(), new);
    assert_eq!(second.hears(&["Update_VM B"])[0].origin(), here_id);
    there.send(&update("A", "{}"));
    elsewhere.send(&update("B", "{}"));
    assert_eq!(first.hears(&["Update_VM A"])[0].origin(), there_id);
    assert_eq!(second.hears(&["Update_VM B"])[0].origin(), elsewhere_id);
    leave(here);
    assert_eq!(first.hears(&["OnDisconnectedAsync"])[0].origin(), new);
    assert_eq!(second.hears(&["OnDisconnectedAsync"])[0].origin(), here_id);
    counts(&node, "client_ends", "reason=\"lane_lost\"", 0);
    leave(there);
    leave(elsewhere);
}

// ---- Observers --------------------------------------------------------------------------------------------------------

#[test]
fn an_observer_sees_clients_without_payloads_byte_for_byte() {
    let [app, observer] = [(); 2].map(|()| Fake::start());
    let node = start(
        "node_name = \"node-a\"",
        &[
            upstream("app", &app.url(), "connection_pool_size = 2"),
            upstream("observer", &observer.url(), "kind = \"observer\"\nconnection_pool_size = 1"),
        ],
        3,
    );
    let headers = "User-Agent: UA/1.0\r\nCookie: secret=1\r\nAuthorization: Basic x\r\nX-Other: y\r\n";
    let (mut client, origin) = requested(&node, headers, &[("V", &app)]);
    client.send(&call("Request_VM", "\"W\\\"é\",{\"$vmArg\":{\"Password\":\"secret\"}}"));
    client.send(&update("V", "{\"Password\":\"secret\"}"));
    client.send(&dispose("V"));
    leave(client);
    let at_app = app.hears(&["Request_VM W\"é", "Update_VM V", "Dispose_VM V", "OnDisconnectedAsync"]);
    let expected = [
        ("Request_VM V", "\"Request_VM\",[\"V\",null]"),
        ("Request_VM W\"é", "\"Request_VM\",[\"W\\\"é\",null]"),
        ("Update_VM V", "\"Update_VM\",[\"V\",\"{}\"]"),
        ("Dispose_VM V", "\"Dispose_VM\",[\"V\"]"),
        ("OnDisconnectedAsync", "\"OnDisconnectedAsync\",[null]"),
    ];
    let heard = observer.hears(&expected.map(|(line, _)| line));
    let connection = &at_app[0].context()["HttpConnection"];
    let mut last = String::new();
    for (one, (_, call)) in heard.iter().zip(expected) {
        let time = one.context()["TimeStamp"].as_str().expect("a time").to_string();
        // Seven digits, so texts compare as times do.
        assert!(time > last && time.len() == 33, "{time} after {last}");
        let context = format!(
            "{{\"HubId\":\"{}\",\"TimeStamp\":\"{time}\",\"ConnectionId\":\"{origin}\",\"HttpConnection\":{{\"ConnectionId\":{},\
             \"LocalIpAddressString\":{},\"RemoteIpAddressString\":{},\"LocalPort\":{},\"RemotePort\":{}}},\
             \"HttpRequestHeaders\":{{\"AllHeaders\":{{\"Host\":[\"node-a\"],\"User-Agent\":[\"UA/1.0\"]}},\"UserAgent\":\"UA/1.0\"}},\"Items\":{{}}}}",
            at_app[0].hub_id(),
            connection["ConnectionId"],
            connection["LocalIpAddressString"],
            connection["RemoteIpAddressString"],
            connection["LocalPort"],
            connection["RemotePort"],
        );
        let record = format!(
            "{{\"type\":1,\"target\":\"Invoke\",\"arguments\":[{call},{{\"$fwdConnContext\":{}}}]}}",
            json!(context)
        );
        assert_eq!(String::from_utf8_lossy(&one.bytes), record);
        last = time;
    }
    assert!(!format!("{heard:?}").contains("secret"));
    // The app server saw everything.
    assert_eq!(at_app[1].argument(), "{\"Password\":\"secret\"}");
    assert_eq!(at_app[0].context()["HttpRequestHeaders"]["AllHeaders"]["Cookie"], json!(["secret=1"]));
    counts(&node, "upstream_messages", "result=\"mirrored\",upstream=\"observer\"", 4);
}

#[test]
fn observers_of_both_protocols_are_told_of_every_hub_once_a_second_on_the_second() {
    let [app, other, plain, packed] = [(); 4].map(|()| Fake::start());
    let node = start(
        "shards = 2",
        &[
            upstream("app", &app.url(), "connection_pool_size = 2\nfilter = 'vm_id == \"A\"'"),
            upstream("other", &other.url(), "connection_pool_size = 2\nhub_id = \"node\""),
            upstream("plain", &plain.url(), "kind = \"observer\"\nconnection_pool_size = 1"),
            upstream("packed", &packed.url(), "kind = \"observer\"\nconnection_pool_size = 1\nuse_message_pack = true"),
        ],
        8,
    );
    // The hub ids in use: two of lanes, one of the node.
    let mut clients: Vec<Socket> = (0..16).map(|_| Socket::connect(node.address)).collect();
    for client in &mut clients {
        client.send(&[request("A"), request("B")].concat());
    }
    let mut hubs: Vec<String> =
        [app.hears_so_many(16), other.hears_so_many(16)].concat().iter().map(Heard::hub_id).collect();
    hubs.sort();
    hubs.dedup();
    assert_eq!(hubs.len(), 3, "{hubs:?}");
    for observer in [&plain, &packed] {
        assert_eq!(observer.hears_so_many(32).len(), 32);
        let mut seen: Vec<String> = observer.heard().iter().map(Heard::hub_id).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, hubs);
        // Whole seconds, from now on.
        let from = SystemTime::now();
        std::thread::sleep(Duration::from_millis(3200));
        let telemetry: Vec<Heard> = observer.telemetry().into_iter().filter(|one| one.at > from).collect();
        let mut rounds: BTreeMap<u64, Vec<String>> = Default::default();
        for one in &telemetry {
            let since = one.at.duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
            assert!(since.subsec_millis() < 500, "{since:?} is not on the second");
            let [usage] = one.message["arguments"][1].as_array().expect("a list").as_slice() else { panic!("{one:?}") };
            for name in ["proc_cpu", "total_cpu", "proc_mem", "total_mem"] {
                let value = &usage[name];
                assert!(value.as_f64().is_none_or(|value| (0.0..1e7).contains(&value)), "{name} is {value}");
            }
            assert!(usage["proc_mem"].as_f64().is_some_and(|megabytes| megabytes > 1.0), "{usage}");
            assert_eq!(one.metadata().as_object().map(|members| members.len()), Some(1), "no context: {one:?}");
            let hub = one.metadata()["HubId"].as_str().expect("an id").to_string();
            rounds.entry(since.as_secs()).or_default().push(hub);
        }
        assert!((3..=4).contains(&rounds.len()), "{rounds:?}");
        for told in rounds.values_mut() {
            told.sort();
            assert_eq!(*told, hubs);
        }
    }
    clients.into_iter().for_each(leave);
}

#[test]
fn an_observer_that_answers_is_not_heard() {
    let [app, observer] = [(); 2].map(|()| Fake::start());
    let node = start(
        &format!("[identity]\nsigning_key = \"{SECRET}\""),
        &[
            upstream("observer", &observer.url(), "kind = \"observer\"\nconnection_pool_size = 1"),
            upstream("app", &app.url(), "connection_pool_size = 1"),
        ],
        2,
    );
    let user = format!("Authorization: Bearer {}\r\n", jwt("ada"));
    let (mut client, origin) = requested(&node, &user, &[("V", &app)]);
    observer.hears(&["Request_VM V"]);
    observer.send(0, "SendAsync", json!(["V", "{\"a\":1}"]), json!(origin));
    observer.send(0, "SendToManyAsync", json!(["V", "{\"a\":2}"]), json!(format!("[\"{origin}\"]")));
    observer.send(0, "AddToGroupAsync", json!(["g"]), json!(origin));
    observer.send(0, "SendToGroupAsync", json!(["g", "V", "{\"a\":3}"]), Value::Null);
    observer.send(0, "SendToUsersAsync", json!([["ada"], "V", "{\"a\":4}"]), json!("[\"ada\"]"));
    counts(&node, "drops", "reason=\"observer_message\"", 5);
    app.send(0, "SendAsync", json!(["V", "{\"b\":1}"]), json!(origin));
    assert_eq!(response(&mut client).1, "{\"b\":1}");
    assert_eq!(node.metric("signalring_groups"), 0.0);
    leave(client);
    observer.hears(&["OnDisconnectedAsync"]);
}

#[test]
fn an_observer_hears_of_clients_that_lost_their_app_server_as_behind_the_hub_it_saw_them() {
    let [app, observer] = [(); 2].map(|()| Fake::start());
    let node = start(
        &format!("[identity]\nsigning_key = \"{SECRET}\"\nforward_claims = [\"role\"]"),
        &[
            upstream("observer", &observer.url(), "kind = \"observer\"\nconnection_pool_size = 1"),
            upstream("app", &app.url(), "connection_pool_size = 1"),
        ],
        2,
    );
    let user = format!("Authorization: Bearer {}\r\n", jwt("ada"));
    let (mut client, origin) = requested(&node, &user, &[("V", &app)]);
    let before = observer.hears(&["Request_VM V"]).remove(0);
    app.opens(false);
    app.cut_all();
    let end = observer.hears(&["OnDisconnectedAsync"]).remove(0);
    assert_eq!((end.origin(), end.hub_id()), (origin.clone(), before.hub_id()));
    // What the app server is told of users is not the Observer's.
    for one in [&before, &end] {
        assert_eq!(one.metadata().as_object().map(|members| members.len()), Some(1), "{one:?}");
    }
    // A hub that is gone is not told of any more.
    std::thread::sleep(Duration::from_millis(1100));
    let told = observer.telemetry().len();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(observer.telemetry().len(), told);
    app.opens(true);
    let heard = app.hears(&["Request_VM V", "OnDisconnectedAsync"]);
    assert_eq!(heard[1].origin(), origin);
    // It comes back to both under the same new name.
    client.send(&update("V", "{}"));
    let [at_app, at_observer] = [&app, &observer].map(|fake| fake.hears(&["Update_VM V"]).remove(0));
    assert_eq!((at_app.origin(), at_app.hub_id()), (heard[0].origin(), heard[0].hub_id()));
    assert_eq!((at_observer.origin(), at_observer.hub_id()), (at_app.origin(), at_app.hub_id()));
    assert!(at_app.origin() != origin && at_app.hub_id() != before.hub_id());
    leave(client);
}

#[test]
fn an_observer_with_another_lane_up_goes_on_there_and_hears_of_ends() {
    let [app, observer] = [(); 2].map(|()| Fake::start());
    let node = start(
        "",
        &[
            upstream("observer", &observer.url(), "kind = \"observer\"\nconnection_pool_size = 2"),
            upstream("app", &app.url(), "connection_pool_size = 1"),
        ],
        3,
    );
    let (mut client, origin) = requested(&node, "", &[("V", &app)]);
    let (quiet, quiet_origin) = requested(&node, "", &[("V", &app)]);
    let (last, last_origin) = requested(&node, "", &[("V", &app)]);
    let first = observer.hears(&["Request_VM V", "Request_VM V", "Request_VM V"]);
    let hub = first[0].hub_id();
    observer.opens(false);
    observer.cut(first[0].lane);
    observer.has_lanes(1);
    client.send(&update("V", "{}"));
    assert_eq!(observer.hears(&["Update_VM V"])[0].origin(), origin);
    leave(quiet);
    assert_eq!(observer.hears(&["OnDisconnectedAsync"])[0].origin(), quiet_origin);
    // None is up: the Observer hears later who went meanwhile, as behind the hub where it saw them.
    observer.cut_all();
    observer.has_lanes(0);
    counts(&node, "lanes", "state=\"up\"", 1);
    leave(last);
    leave(client);
    // Who was told of a moment before the lane was lost is told of again: it may not have arrived.
    counts(&node, "queued_disconnects", "", 3);
    observer.forget();
    observer.opens(true);
    let heard = observer.hears(&["OnDisconnectedAsync"; 2]);
    assert_eq!(origins_of(&heard), BTreeSet::from([origin, last_origin]));
    wait_for("what it has heard before", PATIENCE, || (observer.told_again() == [quiet_origin.as_str()]).then_some(()));
    for one in &heard {
        let context = one.context();
        assert_eq!(context["HubId"], hub.as_str());
        assert!(context["HttpConnection"].is_object() && context["Items"].is_object(), "{context}");
    }
}

// ---- Several urls -----------------------------------------------------------------------------------------------------

/// Clients that have requested a view model, each answered by a fake's silence; waits until the fakes have heard so many more.
fn clients_of(node: &Node, count: usize, fakes: &[&Fake]) -> Vec<Socket> {
    let before: usize = fakes.iter().map(|fake| fake.heard().len()).sum();
    let mut clients: Vec<Socket> = (0..count).map(|_| Socket::connect(node.address)).collect();
    for client in &mut clients {
        client.send(&[request("V"), update("V", "{}"), update("V", "{}")].concat());
    }
    wait_for("all to be heard", PATIENCE, || {
        let now: usize = fakes.iter().map(|fake| fake.heard().len()).sum();
        (now == before + 3 * count).then_some(())
    });
    clients
}

/// Clients that an app server knows.
fn origins(fake: &Fake) -> BTreeSet<String> {
    origins_of(&fake.heard())
}

#[test]
fn clients_are_dealt_over_urls_by_weight_and_a_url_that_is_lost_is_left_out_until_it_is_back() {
    let [light, heavy] = [(); 2].map(|()| Fake::start());
    let urls = format!("urls = [{:?}, {{ url = {:?}, weight = 3 }}]", light.url(), heavy.url());
    let node = start("", &[format!("[[upstream]]\nname = \"app\"\n{urls}\nconnection_pool_size = 2\n")], 4);
    let both = [&light, &heavy];
    let mut clients = clients_of(&node, 40, &both);
    assert_eq!((origins(&light).len(), origins(&heavy).len()), (10, 30));
    // All messages of a client go one way.
    assert!(origins(&light).is_disjoint(&origins(&heavy)));
    for fake in both {
        let lanes: BTreeSet<(String, usize)> = fake.heard().iter().map(|one| (one.origin(), one.lane)).collect();
        assert_eq!(lanes.len(), origins(fake).len());
    }
    light.forget();

    heavy.opens(false);
    heavy.cut_all();
    // Its clients go on at the other, with everything they have.
    let moved = light.hears_so_many(30);
    assert!(moved.iter().all(|one| one.line() == "Request_VM V"));
    // Those that it knew for a moment over its other lane among them.
    let known = heavy.heard();
    let lost = origins_of(&known);
    assert!(lost.is_disjoint(&origins(&light)));
    let (ends, _): (Vec<Heard>, Vec<Heard>) = known.into_iter().partition(|one| one.method() == "OnDisconnectedAsync");
    let untold: BTreeSet<String> = lost.difference(&origins_of(&ends)).cloned().collect();
    heavy.forget();
    light.forget();
    for client in &mut clients {
        client.send(&update("V", "{}"));
    }
    let (heard, new) = (light.hears_so_many(40), origins_of(&moved));
    assert!(new.is_subset(&origins_of(&heard)) && heard.iter().all(|one| one.line() == "Update_VM V"));
    light.forget();
    clients.extend(clients_of(&node, 10, &both));
    assert_eq!((origins(&light).len(), origins(&heavy).len()), (10, 0));
    light.forget();

    heavy.opens(true);
    heavy.has_lanes(2);
    wait_for("lanes", PATIENCE, || (node.metric_where("signalring_lanes", "state=\"up\"") == 4.0).then_some(()));
    // It hears of all who left it, though some were said to it over its other lane when that was dead as well; and then takes everybody
    // until it has three times as many.
    wait_for("the ends of thirty", PATIENCE, || origins(&heavy).is_superset(&untold).then_some(()));
    assert!(heavy.heard().iter().all(|one| one.method() == "OnDisconnectedAsync"));
    heavy.forget();
    clients.extend(clients_of(&node, 30, &both));
    assert_eq!((origins(&light).len(), origins(&heavy).len()), (0, 30));
    counts(&node, "client_ends", "", 0);
    clients.into_iter().for_each(leave);
    counts(&node, "upstream_clients", "upstream=\"app\"", 0);
}

// ---- Over which lane --------------------------------------------------------------------------------------------------

#[test]
fn dealt_message_by_message_a_clients_messages_take_every_lane_and_groups_still_work() {
    let app = Fake::start();
    let node = start("", &[upstream("app", &app.url(), "connection_pool_size = 3\ndispatch = \"message\"")], 3);
    let (mut client, origin) = requested(&node, "", &[("V", &app)]);
    let (mut other, other_origin) = requested(&node, "", &[("V", &app)]);
    for n in 0..30 {
        client.send(&update("V", &format!("{{\"n\":{n}}}")));
    }
    let heard = app.hears_so_many(30);
    for lane in 0..3 {
        assert_eq!(heard.iter().filter(|one| one.lane == lane).count(), 10, "lane {lane}");
    }
    // One hub id for all, or an app server could not reach its group (contract 3.3).
    let hubs: BTreeSet<String> = heard.iter().map(Heard::hub_id).collect();
    assert_eq!(hubs.len(), 1);
    for (lane, id) in [(0, &origin), (1, &other_origin)] {
        app.send(lane, "AddToGroupAsync", json!(["g"]), json!(id));
    }
    // What comes over different lanes has no order, so wait for both to be in.
    counts(&node, "groups", "", 1);
    counts(&node, "app_messages", "kind=\"group_add\"", 2);
    app.send(2, "SendToGroupAsync", json!(["g", "V", "{\"all\":1}"]), Value::Null);
    for client in [&mut client, &mut other] {
        assert_eq!(response(client).1, "{\"all\":1}");
    }
    app.forget();
    leave(client);
    leave(other);
    app.hears(&["OnDisconnectedAsync", "OnDisconnectedAsync"]);
}

#[test]
fn whoever_spoke_last_on_a_lost_lane_has_a_new_name_wherever_it_belongs() {
    let app = Fake::start();
    let node = start("", &[upstream("app", &app.url(), "connection_pool_size = 3\ndispatch = \"message\"")], 3);
    let mut clients: Vec<(Socket, String, usize)> = (0..2)
        .map(|_| {
            let mut client = Socket::connect(node.address);
            client.send(&request("V"));
            let first = app.hears(&["Request_VM V"]).remove(0);
            (client, first.origin(), first.lane)
        })
        .collect();
    let third = (0..3).find(|lane| clients.iter().all(|(_, _, own)| own != lane)).expect("each has its own");
    // Both speak on the lane that is nobody's own; the second one last.
    for (client, ..) in &mut clients {
        while {
            client.send(&update("V", "{}"));
            app.hears(&["Update_VM V"])[0].lane != third
        } {}
    }
    app.cut(third);
    // Its old name ends on whatever lane, so that may be heard first.
    let mut heard = app.hears_so_many(2);
    heard.sort_by_key(|one| one.method() == "OnDisconnectedAsync");
    assert_eq!((heard[0].line(), heard[1].method()), ("Request_VM V".into(), "OnDisconnectedAsync"));
    app.forget();
    let (new, last) = (heard[0].origin(), &clients[1]);
    assert_eq!((heard[0].lane, heard[1].origin()), (last.2, last.1.clone()));
    assert_ne!(new, last.1);
    let names = [clients[0].1.clone(), new];
    for ((client, ..), origin) in clients.iter_mut().zip(names) {
        client.send(&update("V", "{}"));
        assert_eq!(app.hears(&["Update_VM V"])[0].origin(), origin);
    }
    counts(&node, "client_ends", "", 0);
    clients.into_iter().for_each(|(client, ..)| leave(client));
}

#[test]
fn dealt_by_client_messages_stay_in_order_while_a_lane_is_slow_and_others_are_not() {
    let app = Fake::start();
    let node = start("", &[upstream("app", &app.url(), "connection_pool_size = 3")], 3);
    app.is_slow(Duration::from_millis(20));
    let mut clients: Vec<Socket> = (0..9).map(|_| Socket::connect(node.address)).collect();
    for n in 0..20 {
        for client in &mut clients {
            client.send(&if n == 0 { request("V") } else { update("V", &format!("{{\"n\":{n}}}")) });
        }
    }
    let heard = app.hears_so_many(9 * 20);
    let mut of_clients: BTreeMap<String, Vec<&Heard>> = BTreeMap::new();
    for one in &heard {
        of_clients.entry(one.origin()).or_default().push(one);
    }
    assert_eq!(of_clients.len(), 9);
    for messages in of_clients.values() {
        assert!(messages.iter().all(|one| one.lane == messages[0].lane));
        let order: Vec<&Value> = messages.iter().skip(1).map(|one| one.argument()).collect();
        assert_eq!(
            order,
            (1..20).map(|n| json!(format!("{{\"n\":{n}}}"))).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
    }
    let last = |is_slow: bool| heard.iter().filter(|one| (one.lane == 0) == is_slow).map(|one| one.at).max();
    let first = heard.iter().map(|one| one.at).min();
    // Sixty messages of 20 ms on the slow lane.
    let took = |last: Option<SystemTime>| last.zip(first).and_then(|(last, first)| last.duration_since(first).ok());
    let (slow, others) = (took(last(true)).expect("times"), took(last(false)).expect("times"));
    assert!(
        slow >= Duration::from_millis(1000) && others < slow / 2,
        "the slow lane took {slow:?}, the others {others:?}"
    );
    clients.into_iter().for_each(leave);
}

/// The shard that an origin id names.
fn shard_of(origin: &str) -> u8 {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(origin).expect("base64url")[0]
}

/// Ten members of a group on both shards, each in it by the lane of its request.
fn members(node: &Node, app: &Fake) -> Vec<(Socket, Heard)> {
    let headers = format!("Authorization: Bearer {}\r\n", jwt("ada"));
    let mut members = Vec::new();
    let on = |members: &[(Socket, Heard)], shard: u8| {
        members.iter().filter(|(_, one)| shard_of(&one.origin()) == shard).count()
    };
    while members.len() < 10 || on(&members, 0) < 2 || on(&members, 1) < 2 {
        let mut client =
            Socket::upgrade(node.address, "/dotnetify", &headers).unwrap_or_else(|reply| panic!("{}", reply.text));
        client.send(&record(r#"{"protocol":"json","version":1}"#));
        client.frame("the handshake's answer");
        client.send(&request("V"));
        let one = app.hears(&["Request_VM V"]).remove(0);
        app.send(one.lane, "AddToGroupAsync", json!(["g"]), json!(one.origin()));
        members.push((client, one));
    }
    counts(node, "app_messages", "kind=\"group_add\"", members.len());
    members
}

#[test]
fn with_one_hub_id_for_the_node_a_message_over_one_lane_reaches_members_on_every_shard_once() {
    let app = Fake::start();
    let identity = format!("shards = 2\n[identity]\nsigning_key = \"{SECRET}\"");
    let node = start(&identity, &[upstream("app", &app.url(), "connection_pool_size = 4\nhub_id = \"node\"")], 4);
    let mut members = members(&node, &app);
    let hubs: BTreeSet<String> = members.iter().map(|(_, one)| one.hub_id()).collect();
    let lanes: BTreeSet<usize> = members.iter().map(|(_, one)| one.lane).collect();
    assert_eq!(
        (hubs.len(), lanes.len()),
        (1, 4),
        "{members:?}",
        members = members.iter().map(|m| &m.1).collect::<Vec<_>>()
    );
    let ids: Vec<String> = members.iter().map(|(_, one)| one.origin()).collect();
    // One on each shard.
    let left_out: Vec<&String> =
        [0, 1].map(|shard| ids.iter().find(|id| shard_of(id) == shard).expect("it has some")).to_vec();
    let list = |ids: &[&String]| json!(serde_json::to_string(ids).expect("a list"));
    for lane in [1, 3] {
        let data = |what: &str| format!("{{\"{what}\":{lane}}}");
        app.send(lane, "SendToGroupAsync", json!(["g", "V", data("group")]), Value::Null);
        app.send(lane, "SendToGroupExceptAsync", json!(["g", "V", data("except")]), list(&left_out));
        app.send(lane, "SendToManyAsync", json!(["V", data("many")]), list(&ids.iter().collect::<Vec<_>>()));
        app.send(lane, "SendToUsersAsync", json!([["ada", "ada"], "V", data("users")]), json!("[\"ada\",\"ada\"]"));
    }
    for (client, one) in &mut members {
        let kinds: &[&str] = if left_out.contains(&&one.origin()) {
            &["group", "many", "users"]
        } else {
            &["except", "group", "many", "users"]
        };
        let mut expected: Vec<String> =
            [1, 3].iter().flat_map(|lane| kinds.iter().map(move |kind| format!("{{\"{kind}\":{lane}}}"))).collect();
        expected.sort();
        let mut heard: Vec<String> = expected.iter().map(|_| response(client).1).collect();
        heard.sort();
        assert_eq!(heard, expected);
    }
    for (client, _) in &mut members {
        is_quiet(client, Duration::from_millis(10));
    }
    counts(&node, "relayed", "", 8);
    counts(&node, "drops", "", 0);
    members.into_iter().for_each(|(client, _)| leave(client));
    counts(&node, "groups", "", 0);
}

#[test]
fn with_a_hub_id_for_each_lane_a_group_message_reaches_its_own_members_only() {
    let app = Fake::start();
    let identity = format!("shards = 2\n[identity]\nsigning_key = \"{SECRET}\"");
    let node = start(&identity, &[upstream("app", &app.url(), "connection_pool_size = 4")], 4);
    let mut members = members(&node, &app);
    let hubs: BTreeSet<(usize, String)> = members.iter().map(|(_, one)| (one.lane, one.hub_id())).collect();
    let different: BTreeSet<&String> = hubs.iter().map(|(_, hub)| hub).collect();
    assert_eq!((hubs.len(), different.len()), (4, 4));
    app.send(1, "SendToGroupAsync", json!(["g", "V", "{\"group\":1}"]), Value::Null);
    app.send(1, "SendToUsersAsync", json!([["ada"], "V", "{\"users\":1}"]), json!("[\"ada\"]"));
    for (client, one) in &mut members {
        if one.lane == 1 {
            assert_eq!([response(client).1, response(client).1], ["{\"group\":1}", "{\"users\":1}"]);
        }
    }
    for (client, _) in &mut members {
        is_quiet(client, Duration::from_millis(10));
    }
    counts(&node, "relayed", "", 0);
    members.into_iter().for_each(|(client, _)| leave(client));
}

// ---- What each is shown -----------------------------------------------------------------------------------------------

#[test]
fn each_upstream_is_shown_clients_in_its_own_protocol_with_its_own_headers() {
    let [plain, packed, observer] = [(); 3].map(|()| Fake::start());
    let node = start(
        &format!(
            "node_name = \"node-b\"\n[identity]\nsigning_key = \"{SECRET}\"\nforward_claims = [\"role\", \"team\"]"
        ),
        &[
            upstream("plain", &plain.url(), "filter = 'vm_id == \"A\"'"),
            upstream("observer", &observer.url(), "kind = \"observer\"\nuse_message_pack = true"),
            upstream("packed", &packed.url(), "use_message_pack = true\nforward_headers = []"),
        ],
        15,
    );
    let headers = format!("Authorization: Bearer {}\r\nUser-Agent: UA\r\nX-One: 1\r\nX-One: 2\r\n", jwt("ada"));
    let (mut client, _) = requested(&node, &headers, &[("A", &plain), ("B", &packed)]);
    client.send(&[update("A", "{\"a\":\"\\\"é\"}"), update("B", "{\"b\":\"\\\"é\"}")].concat());
    leave(client);
    let at_plain = plain.hears(&["Update_VM A", "OnDisconnectedAsync"]);
    let at_packed = packed.hears(&["Update_VM B", "OnDisconnectedAsync"]);
    let at_observer =
        observer.hears(&["Request_VM A", "Request_VM B", "Update_VM A", "Update_VM B", "OnDisconnectedAsync"]);
    assert_eq!(
        (at_plain[0].argument(), at_packed[0].argument()),
        (&json!("{\"a\":\"\\\"é\"}"), &json!("{\"b\":\"\\\"é\"}"))
    );
    let shown = |one: &Heard| one.context()["HttpRequestHeaders"].clone();
    for one in &at_plain {
        assert_eq!(shown(one)["AllHeaders"]["X-One"], json!(["1", "2"]));
        assert_eq!(
            (&shown(one)["UserAgent"], &shown(one)["AllHeaders"]["Host"]),
            (&json!("UA"), &json!([node.address.to_string()]))
        );
    }
    for one in &at_packed {
        assert_eq!(shown(one), json!({"AllHeaders": {}, "UserAgent": null}));
    }
    for one in &at_observer {
        assert_eq!(shown(one), json!({"AllHeaders": {"Host": ["node-b"], "User-Agent": ["UA"]}, "UserAgent": "UA"}));
        assert_eq!(one.metadata().as_object().map(|members| members.len()), Some(1), "no claims: {one:?}");
    }
    for one in at_plain.iter().chain(&at_packed) {
        let Value::Object(mut metadata) = one.metadata().clone() else { panic!("{one:?}") };
        metadata.remove("$fwdConnContext");
        assert_eq!(Value::Object(metadata), json!({"claim:role": "admin", "claim:team": "[\"a\",\"b\"]"}));
        assert_eq!(one.origin(), at_observer[0].origin());
        assert_eq!(one.context()["HttpConnection"], at_observer[0].context()["HttpConnection"]);
    }
    // The Observer knows it by the hub of the app server that answers.
    let at = |one: &Heard, hub: &Heard| one.hub_id() == hub.hub_id();
    assert!(
        at(&at_observer[2], &at_plain[0]) && at(&at_observer[3], &at_packed[0]) && at(&at_observer[4], &at_plain[0])
    );
}

// ---- All at once ------------------------------------------------------------------------------------------------------

/// A client that does what chance says, and what it has live.
struct Rioter {
    socket: Socket,
    live: BTreeSet<(usize, String)>,
}

impl Rioter {
    fn new(node: &Node) -> Rioter {
        Rioter { socket: Socket::connect(node.address), live: BTreeSet::new() }
    }

    fn request(&mut self, upstream: usize, vm: String) {
        let argument = "{\"$vmArg\":{\"TickInterval\":0,\"ChatRoom\":\"R\"}}";
        self.socket.send(&call("Request_VM", &format!("{},{argument}", json!(vm))));
        self.live.insert((upstream, vm));
    }

    /// Throws away what has come. Was it asked to come back?
    fn is_over(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        self.socket.stream.set_nonblocking(true).expect("a socket can be");
        let is_over = loop {
            match self.socket.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) if String::from_utf8_lossy(&chunk[..count]).contains("{\"type\":7") => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
            }
        };
        self.socket.stream.set_nonblocking(false).expect("a socket can be");
        is_over
    }
}

#[test]
fn after_a_riot_every_app_server_knows_exactly_who_is_left() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let options = app::AppOptions::default;
    let doubles: Vec<app::AppServer> = (0..3)
        .map(|_| runtime.block_on(app::bind("127.0.0.1:0".parse().expect("an address"), options())).expect("a double"))
        .collect();
    let kinds = ["HelloWorldVM", "EchoVM", "ChatRoomVM"];
    let node = start(
        "shards = 2",
        &[
            upstream("hello", &doubles[0].url(), "filter = 'vm_id.contains(\"Hello\")'\nconnection_pool_size = 4"),
            upstream("echo", &doubles[1].url(), "filter = 'vm_id.contains(\"Echo\")'\nconnection_pool_size = 4"),
            upstream("rest", &doubles[2].url(), "connection_pool_size = 4"),
        ],
        12,
    );
    let mut random = Random(20_261_123);
    let mut chance = |bound: usize| random.below(bound as u64) as usize;
    let mut clients: Vec<Rioter> = (0..200).map(|_| Rioter::new(&node)).collect();
    let mut cuts = 0;
    for step in 0..6000 {
        let one = &mut clients[chance(200)];
        let upstream = chance(3);
        let vm = format!("{}$i{}", kinds[upstream], chance(3));
        match chance(100) {
            0..45 => one.request(upstream, vm),
            45..70 => {
                if let Some((_, vm)) = one.live.iter().next() {
                    one.socket.send(&update(vm, "{\"FirstName\":\"N\",\"SendMessage\":{\"MessageId\":1}}"));
                }
            }
            70..90 => {
                if let Some(live) = one.live.iter().nth(1).cloned() {
                    one.socket.send(&dispose(&live.1));
                    one.live.remove(&live);
                }
            }
            90..99 => *one = Rioter::new(&node),
            // The first half is quiet: nothing is lost, and nobody comes back from the dead.
            _ if step < 3000 => assert!(doubles.iter().all(|double| double.state().leaks == 0)),
            _ => {
                let double = &doubles[chance(3)];
                let bindings = double.bindings();
                let Some(binding) = bindings.get(chance(bindings.len().max(1))) else { continue };
                cuts += u64::from(double.cut(&binding.lane));
            }
        }
        if step % 100 == 0 {
            assert!(clients.iter_mut().all(|one| !one.is_over()), "nobody is asked to come back");
        }
    }
    assert!(cuts > 10, "{cuts} lanes were cut");
    wait_for("all lanes", PATIENCE, || (node.metric_where("signalring_lanes", "state=\"up\"") == 12.0).then_some(()));
    // Who had disposed of everything is not known any more where its lane was lost. Now all are to be known everywhere.
    for one in clients.iter_mut() {
        for (upstream, kind) in kinds.iter().enumerate() {
            one.request(upstream, format!("{kind}$last"));
        }
    }
    let expected: Vec<(usize, usize)> = (0..3)
        .map(|upstream| {
            let live = clients.iter().flat_map(|one| &one.live).filter(|(of, _)| *of == upstream).count();
            (clients.len(), live)
        })
        .collect();
    let now = || doubles.iter().map(|double| (double.state().bindings, double.state().view_models)).collect::<Vec<_>>();
    let deadline = Instant::now() + PATIENCE;
    while now() != expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(now(), expected, "bindings and view models of each double");
    for double in &doubles {
        let state = double.state();
        // An app server that has closed a lane may still work at what came on it, and meet a client whose end it has heard over another
        // lane meanwhile: the one thing that no proxy can know of.
        assert!(state.leaks <= cuts, "{state:?}");
        assert_eq!((state.dropped_updates, state.failed_invocations), (0, 0), "{state:?}");
        assert!(double.bindings().iter().all(|binding| binding.lane_alive));
    }
    drop(clients);
    wait_for("all to be forgotten", PATIENCE, || {
        doubles.iter().all(|double| double.state().bindings + double.state().view_models == 0).then_some(())
    });
    for gauge in ["clients", "groups", "frames", "queued_messages", "queued_disconnects", "upstream_clients"] {
        counts(&node, gauge, "", 0);
    }
}

/// The app server has what a disposal is about, so it is told of it some day; what stands behind that has its answer in time.
#[test]
fn who_waits_behind_a_disposal_that_waits_on_is_answered_in_time() {
    let app = Fake::start();
    app.acknowledges(false);
    let lines = "connection_pool_size = 1\nin_flight_max = 1";
    let node = start("[limits]\nupstream_queue_timeout = \"300ms\"", &[upstream("app", &app.url(), lines)], 1);
    let mut client = Socket::connect(node.address);
    client.send(&request("A"));
    app.hears(&["Request_VM A"]);
    client.send(&dispose("A"));
    client.send(&request("B"));
    let (vm, data) = response(&mut client);
    assert_eq!((vm.as_str(), &json_of(&data)["ExceptionType"]), ("B", &json!("ForwardingException")));
    app.send_record(app.lanes()[0], &json!({"type": 3, "invocationId": "1", "result": null}));
    app.hears(&["Dispose_VM A"]);
}
