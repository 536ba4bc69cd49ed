//! What clients notice of lanes that are lost, full, stuck or answer with errors, and what app servers hear then: over raw sockets, with
//! fake app servers (contract 6.2 to 6.6).

mod common;

use common::fake::{Fake, Heard};
use common::talk::{
    call, counts, dispose, is_quiet, json_of, leave, origins_of, request, requested, response, start, update, upstream,
};
use common::web::{Events, Polling, message_pack_call, update as unframed_update};
use common::ws::{BINARY, FIN, Socket, frame, record, text};
use common::{Node, PATIENCE, get, wait_for};
use serde_json::{Value, json};
use signalring::limits::{CLIENT_WAITING_MAX, REPLAYS_IN_FLIGHT_MAX, SUSPECT_TIMES};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Long enough for what is not to happen.
const A_MOMENT: Duration = Duration::from_millis(300);
const ONE_LANE: &str = "connection_pool_size = 1";

/// A node in front of one app server.
fn one(before: &str, more: &str) -> (Fake, Node) {
    let app = Fake::start();
    let lanes = if more.contains("connection_pool_size = 2") { 2 } else { 1 };
    let pool = if lanes == 1 { ONE_LANE } else { "" };
    let node = start(before, &[upstream("app", &app.url(), &format!("{pool}\n{more}"))], lanes);
    (app, node)
}

/// Loses every lane to an app server, which takes no new ones.
fn goes(app: &Fake, node: &Node) {
    app.opens(false);
    app.cut_all();
    app.has_lanes(0);
    counts(node, "lanes", "state=\"up\"", 0);
}

fn update_number(vm: &str, number: usize) -> Vec<u8> {
    update(vm, &format!("{{\"n\":{number}}}"))
}

fn ask(vm: &str, argument: &str) -> Vec<u8> {
    call("Request_VM", &format!("{},{argument}", json!(vm)))
}

fn number(heard: &Heard) -> usize {
    json_of(heard.argument().as_str().expect("an update"))["n"].as_u64().expect("a number") as usize
}

/// The exception that a view model is told.
fn exception(client: &mut Socket, vm: &str) -> String {
    let (told, data) = response(client);
    let data = json_of(&data);
    assert_eq!((told.as_str(), &data["ExceptionType"]), (vm, &json!("ForwardingException")), "{data}");
    data["Message"].as_str().expect("a message").to_string()
}

// ---- Lost lanes -------------------------------------------------------------------------------------------------------

#[test]
fn who_loses_a_lane_is_known_by_a_new_id_with_everything_that_is_live_and_then_by_the_old_one_no_more() {
    for scope in ["lane", "node"] {
        let (app, node) = one("", &format!("hub_id = \"{scope}\""));
        let (mut client, old) = requested(&node, "", &[("Last", &app), ("A\"é", &app)]);
        let said = [
            ask("B", "{\"$vmArg\":{\"x\":1}}"),
            request("C.D"),
            request("C"),
            request("Cs"),
            update("A\"é", "{}"),
            ask("B", "{\"$vmArg\":{\"x\":2}}"),
            dispose("C"),
        ];
        client.send(&said.concat());
        let before = app.hears(&[
            "Request_VM B",
            "Request_VM C.D",
            "Request_VM C",
            "Request_VM Cs",
            "Update_VM A\"é",
            "Request_VM B",
            "Dispose_VM C",
        ]);
        app.cut(0);
        let live = ["Request_VM Last", "Request_VM A\"é", "Request_VM B", "Request_VM Cs"];
        let heard = match scope {
            // A view model that is shared keeps its state as long as somebody has it (contract 6.3).
            "lane" => app.hears(&[&live[..], &["OnDisconnectedAsync"]].concat()),
            // A dead binding may swallow what is for groups of the whole node.
            _ => {
                let mut heard = app.hears(&[&["OnDisconnectedAsync"], &live[..]].concat());
                heard.rotate_left(1);
                heard
            }
        };
        let new = heard[0].origin();
        assert!(new != old && origins_of(&heard[..4]).len() == 1);
        assert_eq!(heard[4].origin(), old);
        let arguments: Vec<&Value> = heard[..4].iter().map(Heard::argument).collect();
        assert_eq!(arguments, [&Value::Null, &Value::Null, &json!("{\"$vmArg\":{\"x\":2}}"), &Value::Null]);
        assert_eq!(heard[0].hub_id() != before[0].hub_id(), scope == "lane");
        assert_eq!(heard[0].context()["HttpConnection"], before[0].context()["HttpConnection"]);
        assert!(heard.iter().all(|one| one.lane == 1));

        // The new id is the client's; the old one is nobody's.
        app.send(1, "SendAsync", json!(["B", "1"]), json!(old));
        app.send(1, "SendAsync", json!(["B", "2"]), json!(new));
        assert_eq!(response(&mut client), ("B".into(), "2".into()));
        counts(&node, "drops", "reason=\"unknown_client\"", 1);
        client.send(&update("B", "{}"));
        assert_eq!(app.hears(&["Update_VM B"])[0].origin(), new);
        leave(client);
        assert_eq!(app.hears(&["OnDisconnectedAsync"])[0].origin(), new);
        counts(&node, "moved_clients", "result=\"replay\"", 1);
        counts(&node, "moved_clients", "", 1);
        counts(&node, "replayed_requests", "", 4);
        counts(&node, "unknown_fates", "", 0);
        counts(&node, "lane_events", "event=\"lost\"", 1);
    }
}

#[test]
fn who_has_nothing_live_is_told_of_and_comes_again_by_a_new_id_when_it_has_something_to_say() {
    let (app, node) = one("", "");
    let (mut client, old) = requested(&node, "", &[("A", &app)]);
    client.send(&dispose("A"));
    app.hears(&["Dispose_VM A"]);
    app.cut(0);
    assert_eq!(app.hears(&["OnDisconnectedAsync"])[0].origin(), old);
    client.send(&request("B"));
    let new = app.hears(&["Request_VM B"])[0].origin();
    assert_ne!(new, old);
    leave(client);
    assert_eq!(app.hears(&["OnDisconnectedAsync"])[0].origin(), new);
    counts(&node, "moved_clients", "result=\"idle\"", 1);
    counts(&node, "replayed_requests", "", 0);
}

#[test]
fn headers_of_an_update_are_those_that_a_view_model_is_requested_with_again() {
    let (app, node) = one("[limits]\nclient_replay_bytes = 200", "");
    let (mut client, _) = requested(&node, "", &[("W", &app)]);
    let new = "{\"$headers\":{\"Authorization\":\"Bearer 2\"},\"x\":1}";
    client.send(&ask("V", "{\"$headers\":{\"Authorization\":\"Bearer 1\"},\"$vmArg\":{\"Id\":5}}"));
    client.send(&[update("V", new), update("V", "{\"y\":1}"), update("W", new)].concat());
    app.hears(&["Request_VM V", "Update_VM V", "Update_VM V", "Update_VM W"]);
    app.cut(0);
    let heard = app.hears(&["Request_VM W", "Request_VM V", "OnDisconnectedAsync"]);
    let headers = json!({"Authorization": "Bearer 2"});
    let argument = |heard: &Heard| json_of(heard.argument().as_str().expect("an argument"));
    assert_eq!(argument(&heard[0]), json!({"$headers": headers}));
    assert_eq!(argument(&heard[1]), json!({"$headers": headers, "$vmArg": {"Id": 5}}));

    // Headers alone are not what was too much to be kept.
    let large = format!("{{\"$vmArg\":\"{}\"}}", "x".repeat(300));
    client.send(&[ask("Large", &large), update("Large", new)].concat());
    app.hears(&["Request_VM Large", "Update_VM Large"]);
    app.cut(1);
    assert_eq!(client.record("the hub's Close")["allowReconnect"], true);
}

#[test]
fn what_cannot_be_requested_again_is_for_its_client_to_request() {
    let (app, node) = one("[limits]\nclient_replay_bytes = 100", "");
    let large = format!("{{\"$vmArg\":\"{}\"}}", "x".repeat(100));
    let [(mut large_one, large_id), (mut small_one, _), (mut former, _)] =
        [(); 3].map(|()| requested(&node, "", &[("V", &app)]));
    large_one.send(&ask("L", &large));
    app.hears(&["Request_VM L"]);
    former.send(&[ask("L", &large), dispose("L")].concat());
    app.hears(&["Request_VM L", "Dispose_VM L"]);
    small_one.send(&ask("S", "{\"$vmArg\":1}"));
    app.hears(&["Request_VM S"]);
    app.cut(0);
    let close = large_one.record("the hub's Close");
    assert_eq!((&close["type"], &close["allowReconnect"], &close["error"]), (&json!(7), &json!(true), &Value::Null));
    assert_eq!(large_one.closed("the end"), Some(1000));
    let heard = app.hears_so_many(3 + 3);
    let ended: Vec<String> =
        heard.iter().filter(|one| one.method() == "OnDisconnectedAsync").map(Heard::origin).collect();
    assert!(ended.len() == 3 && ended.contains(&large_id));
    let mut again: Vec<String> = heard.iter().map(Heard::line).filter(|line| line.starts_with("Request")).collect();
    again.sort();
    assert_eq!(again, ["Request_VM S", "Request_VM V", "Request_VM V"]);
    app.forget();
    for client in [&mut small_one, &mut former] {
        client.send(&update("V", "{}"));
        app.hears(&["Update_VM V"]);
    }
    counts(&node, "client_ends", "reason=\"lane_lost\"", 1);
    counts(&node, "moved_clients", "result=\"closed\"", 1);
    counts(&node, "moved_clients", "result=\"replay\"", 2);
    leave(small_one);
    leave(former);
}

#[test]
fn what_waited_keeps_its_order_behind_what_is_requested_again() {
    let (app, node) = one("", "");
    let (mut client, old) = requested(&node, "", &[("A", &app), ("B", &app)]);
    goes(&app, &node);
    // More than are read while they wait.
    let count = 3 * usize::from(CLIENT_WAITING_MAX);
    client.send(&dispose("B"));
    (0..count).for_each(|n| client.send(&update_number("A", n)));
    client.send(&request("C"));
    let mut late = Socket::connect(node.address);
    late.send(&[request("Late"), update("Late", "{}")].concat());
    wait_for("both to wait", PATIENCE, || (node.metric("signalring_queued_messages") >= 6.0).then_some(()));
    app.opens(true);
    let heard = app.hears_so_many(2 + 1 + count + 1 + 1 + 2);
    let of: BTreeMap<String, Vec<&Heard>> = heard.iter().fold(BTreeMap::new(), |mut of: BTreeMap<_, Vec<_>>, one| {
        of.entry(one.origin()).or_default().push(one);
        of
    });
    assert_eq!(of.len(), 3);
    let lines = |of: &[&Heard]| of.iter().map(|one| one.line()).collect::<Vec<_>>();
    for (origin, messages) in &of {
        let lines = lines(messages);
        if *origin == old {
            assert_eq!(lines, ["OnDisconnectedAsync"]);
        } else if lines.len() == 2 {
            assert_eq!(lines, ["Request_VM Late", "Update_VM Late"]);
        } else {
            // What was said before it is disposed of had a view model to go to.
            assert_eq!(lines[..3], ["Request_VM A", "Request_VM B", "Dispose_VM B"]);
            assert_eq!(
                messages[3..3 + count].iter().map(|one| number(one)).collect::<Vec<_>>(),
                Vec::from_iter(0..count)
            );
            assert_eq!(lines[3 + count..], ["Request_VM C"]);
        }
    }
    app.forget();
    app.cut_all();
    // What was disposed of meanwhile is not requested once more.
    let heard = app.hears_so_many(3 + 2);
    let mut again: Vec<String> = heard.iter().map(Heard::line).collect();
    again.sort();
    assert_eq!(again[2..], ["Request_VM A", "Request_VM C", "Request_VM Late"]);
    leave(client);
    leave(late);
}

#[test]
fn few_are_requested_again_at_a_time_those_who_speak_first_and_others_go_on_meanwhile() {
    const CLIENTS: usize = 60;
    let few = REPLAYS_IN_FLIGHT_MAX as usize;
    let (app, node) = one("", "");
    let mut clients: Vec<(Socket, String)> = (0..CLIENTS)
        .map(|n| {
            let vm = format!("V{n}");
            (requested(&node, "", &[(&vm, &app)]).0, vm)
        })
        .collect();
    app.acknowledges(false);
    app.cut(0);
    let first = app.hears_so_many(few);
    std::thread::sleep(A_MOMENT);
    assert_eq!(app.heard().len(), few, "no more at a time");
    counts(&node, "waiting_replays", "", CLIENTS - few);
    counts(&node, "in_flight", "", few);
    app.forget();
    // One of them, one whose turn is yet to come, and one that is new.
    let requested: BTreeSet<&str> = first.iter().map(Heard::vm).collect();
    let at = |is_requested: bool| clients.iter().position(|(_, vm)| requested.contains(vm.as_str()) == is_requested);
    let (done, waits) = (at(true).expect("some are done"), at(false).expect("some wait"));
    for index in [done, waits] {
        let (client, vm) = &mut clients[index];
        client.send(&[update_number(vm, 1), update_number(vm, 2)].concat());
    }
    let mut new = Socket::connect(node.address);
    new.send(&request("New"));
    let meanwhile = app.hears_so_many(2 + 3 + 1);
    std::thread::sleep(A_MOMENT);
    assert_eq!(app.heard().len(), 6, "{:?}", app.lines());
    for (index, expected) in
        [(done, &["Update_VM", "Update_VM"][..]), (waits, &["Request_VM", "Update_VM", "Update_VM"])]
    {
        let own: Vec<&Heard> = meanwhile.iter().filter(|one| one.vm() == clients[index].1).collect();
        assert_eq!(own.iter().map(|one| one.method()).collect::<Vec<_>>(), expected);
        assert_eq!(own[expected.len() - 2..].iter().map(|one| number(one)).collect::<Vec<_>>(), [1, 2]);
    }
    // Each answer makes room for one.
    app.forget();
    app.completes(&first[0], None);
    app.completes(&first[1], None);
    // Seventeen were on their way, with that of the client that spoke.
    app.hears_so_many(1);
    std::thread::sleep(A_MOMENT);
    let more = app.heard();
    assert_eq!(more.len(), 1);
    app.acknowledges(true);
    for heard in first[2..].iter().chain(&meanwhile).chain(&more) {
        app.completes(heard, None);
    }
    let rest = app.hears_so_many(1 + (CLIENTS - few - 2) + CLIENTS);
    // Behind all of them the old ids end.
    let ends = rest.iter().position(|one| one.method() == "OnDisconnectedAsync").expect("there are ends");
    assert!(rest[ends..].iter().all(|one| one.method() == "OnDisconnectedAsync"));
    assert_eq!(rest.len() - ends, CLIENTS);
    counts(&node, "moved_clients", "result=\"replay\"", CLIENTS);
    counts(&node, "replayed_requests", "", CLIENTS);
    counts(&node, "waiting_replays", "", 0);
    counts(&node, "in_flight", "", 0);
    counts(&node, "answer_seconds_count", "", 2 * CLIENTS + CLIENTS + 5);
    for (client, _) in &mut clients {
        is_quiet(client, Duration::ZERO);
    }
}

#[test]
fn what_was_on_its_way_is_not_repeated_and_counted() {
    let (app, node) = one("", "");
    let (mut client, _) = requested(&node, "", &[("V", &app)]);
    app.acknowledges(false);
    client.send(&[update_number("V", 1), update_number("V", 2), request("W")].concat());
    app.hears(&["Update_VM V", "Update_VM V", "Request_VM W"]);
    app.acknowledges(true);
    app.cut(0);
    app.hears(&["Request_VM V", "Request_VM W", "OnDisconnectedAsync"]);
    counts(&node, "unknown_fates", "", 3);
    client.send(&update_number("V", 3));
    assert_eq!(number(&app.hears(&["Update_VM V"])[0]), 3);
    leave(client);
}

#[test]
fn with_another_url_up_clients_go_on_there_and_the_old_id_ends_where_it_was_known() {
    let [first, second] = [(); 2].map(|()| Fake::start());
    let urls = format!("urls = [{:?}, {:?}]", first.url(), second.url());
    let node = start("", &[format!("[[upstream]]\nname = \"app\"\n{urls}\n{ONE_LANE}\n")], 2);
    let mut client = Socket::connect(node.address);
    client.send(&ask("V", "{}"));
    let known = wait_for("the request", PATIENCE, || first.heard().into_iter().chain(second.heard()).next());
    let (here, there) = if first.heard().is_empty() { (&second, &first) } else { (&first, &second) };
    here.opens(false);
    here.cut_all();
    let new = there.hears(&["Request_VM V"]).remove(0);
    assert!(new.origin() != known.origin() && *new.argument() == json!("{}"));
    client.send(&update("V", "{}"));
    assert_eq!(there.hears(&["Update_VM V"])[0].origin(), new.origin());
    here.forget();
    here.opens(true);
    assert_eq!(here.hears(&["OnDisconnectedAsync"])[0].origin(), known.origin());
    // It stays where it is.
    client.send(&update("V", "{}"));
    there.hears(&["Update_VM V"]);
    leave(client);
    assert_eq!(there.hears(&["OnDisconnectedAsync"])[0].origin(), new.origin());
    std::thread::sleep(A_MOMENT);
    here.hears(&[]);
}

#[test]
fn nobody_is_sent_away_while_an_app_server_starts_again() {
    let (app, node) = one("[limits]\nupstream_queue_timeout = \"1s\"", "");
    let (mut client, old) = requested(&node, "", &[("V", &app)]);
    goes(&app, &node);
    let begun = Instant::now();
    client.send(&[update("V", "{}"), request("W")].concat());
    for vm in ["V", "W"] {
        exception(&mut client, vm);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    }
    counts(&node, "refusals", "reason=\"queue_timeout\"", 2);
    is_quiet(&mut client, A_MOMENT);
    app.opens(true);
    // What was refused was never asked for.
    let heard = app.hears(&["Request_VM V", "OnDisconnectedAsync"]);
    assert_eq!(heard[1].origin(), old);
    client.send(&[request("W"), update("V", "{}")].concat());
    let served = app.hears(&["Request_VM W", "Update_VM V"]);
    app.send(1, "SendAsync", json!(["V", "1"]), json!(served[0].origin()));
    assert_eq!(response(&mut client).1, "1");
    counts(&node, "client_ends", "", 0);
    leave(client);
}

#[test]
fn who_goes_while_everything_is_down_is_told_of_and_not_requested_again() {
    let (app, node) = one("", "");
    let (mut client, old) = requested(&node, "", &[("V", &app)]);
    let (other, other_id) = requested(&node, "", &[("V", &app)]);
    goes(&app, &node);
    client.send(&update("V", "{}"));
    counts(&node, "queued_messages", "", 1);
    leave(client);
    leave(other);
    counts(&node, "waiting_replays", "", 2);
    app.opens(true);
    let heard = app.hears(&["OnDisconnectedAsync", "OnDisconnectedAsync"]);
    assert_eq!(origins_of(&heard), BTreeSet::from([old, other_id]));
    counts(&node, "waiting_replays", "", 0);
    counts(&node, "queued_messages", "", 0);
    for gauge in ["clients", "frames", "groups", "queued_disconnects", "in_flight"] {
        counts(&node, gauge, "", 0);
    }
}

#[test]
fn a_view_model_that_ends_lane_after_lane_is_requested_no_more_and_everybody_else_goes_on() {
    let (app, node) = one("", "");
    let (mut other, _) = requested(&node, "", &[("V", &app)]);
    let (mut client, _) = requested(&node, "", &[("W", &app)]);
    app.dies_of("Deadly");
    client.send(&request("Deadly"));
    assert!(exception(&mut client, "Deadly").contains("each time"));
    counts(&node, "refusals", "reason=\"ends_lanes\"", 1);
    counts(&node, "lane_events", "event=\"lost\"", SUSPECT_TIMES as usize);
    app.has_lanes(1);
    wait_for("everybody to be known again", PATIENCE, || {
        (node.metric("signalring_waiting_replays") + node.metric("signalring_queued_disconnects") == 0.0).then_some(())
    });
    app.forget();
    other.send(&update("V", "{}"));
    app.hears(&["Update_VM V"]);
    // To its client it is as if it had never been asked for; the others are there.
    client.send(&[update("W", "{}"), call("Dispose_VM", "\"Deadly\"")].concat());
    app.hears(&["Update_VM W", "Dispose_VM Deadly"]);
    app.has_lanes(1);
    counts(&node, "client_ends", "", 0);
    leave(client);
    leave(other);
}

#[test]
fn disposals_of_nothing_wait_as_long_as_there_is_room_and_those_of_something_always() {
    let (app, node) = one("[limits]\nupstream_queue_bytes = \"64KiB\"\nupstream_queue_timeout = \"2s\"", "");
    let (mut client, old) = requested(&node, "", &[("V", &app)]);
    goes(&app, &node);
    let disposal = |n| format!("{{\"type\":1,\"target\":\"Dispose_VM\",\"arguments\":[\"N{n}\"]}}\u{1e}");
    let disposals: String = (0..400).map(disposal).collect();
    let begun = Instant::now();
    let mut flooding: Vec<Socket> = (0..3).map(|_| Socket::connect(node.address)).collect();
    flooding.iter_mut().for_each(|socket| socket.send(&text(&disposals)));
    wait_for("what there is no room for", PATIENCE, || {
        (node.metric_where("signalring_drops", "reason=\"needless_disposal\"") > 600.0).then_some(())
    });
    let waiting = node.metric("signalring_queued_messages");
    assert!(waiting < 600.0, "{waiting} wait");
    // That of a view model that there is finds room.
    client.send(&call("Dispose_VM", "\"V\""));
    counts(&node, "queued_messages", "", waiting as usize + 1);
    counts(&node, "queued_messages", "", 0);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    flooding.iter_mut().for_each(|socket| is_quiet(socket, Duration::ZERO));
    app.opens(true);
    // Nothing is left to be requested again.
    assert_eq!(app.hears(&["OnDisconnectedAsync"])[0].origin(), old);
    counts(&node, "queued_messages", "", 0);
    leave(client);
}

// ---- Mirrors and Observers --------------------------------------------------------------------------------------------

#[test]
fn a_mirror_is_given_everything_anew_and_what_it_cannot_have_or_do_is_no_clients_concern() {
    let [app, mirror, observer] = [(); 3].map(|()| Fake::start());
    let node = start(
        "[limits]\nclient_replay_bytes = 100",
        &[
            upstream(
                "mirror",
                &mirror.url(),
                &format!("halt_pipeline = false\n{ONE_LANE}\nacknowledge_timeout = \"1s\""),
            ),
            upstream("observer", &observer.url(), &format!("kind = \"observer\"\n{ONE_LANE}")),
            upstream("app", &app.url(), ONE_LANE),
        ],
        3,
    );
    let (mut client, origin) = requested(&node, "", &[("V", &app)]);
    let large = format!("{{\"$vmArg\":\"{}\"}}", "x".repeat(100));
    client.send(&ask("Large", &large));
    app.hears(&["Request_VM Large"]);
    mirror.hears(&["Request_VM V", "Request_VM Large"]);
    observer.hears(&["Request_VM V", "Request_VM Large"]);
    mirror.cut(0);
    let new = mirror.hears(&["Request_VM V", "OnDisconnectedAsync"]).remove(0);
    assert_ne!(new.origin(), origin);
    // It answers nobody, so its errors are nobody's; but it is not asked for that view model again.
    mirror.acknowledges(false);
    client.send(&request("Failed"));
    let failed = mirror.hears(&["Request_VM Failed"]).remove(0);
    mirror.completes(&failed, Some("No."));
    mirror.acknowledges(true);
    client.send(&[update("Failed", "{}"), update("V", "{}")].concat());
    app.hears(&["Request_VM Failed", "Update_VM Failed", "Update_VM V"]);
    mirror.hears(&["Update_VM V"]);
    counts(&node, "refusals", "reason=\"app_server_error\"", 1);
    // Neither is what makes it stick.
    mirror.sticks(1);
    client.send(&request("Stuck"));
    counts(&node, "lane_events", "event=\"stuck\"", 1);
    mirror.hears(&["Request_VM Stuck", "OnDisconnectedAsync", "Request_VM V"]);
    client.send(&update("Stuck", "{}"));
    app.hears(&["Request_VM Stuck", "Update_VM Stuck"]);
    is_quiet(&mut client, A_MOMENT);
    mirror.hears(&[]);
    counts(&node, "refusals", "reason=\"stuck\"", 1);
    counts(&node, "client_ends", "", 0);
    // The app server and the Observer know nothing of all that.
    let seen = observer.hears(&[
        "Request_VM Failed",
        "Update_VM Failed",
        "Update_VM V",
        "Request_VM Stuck",
        "Update_VM Stuck",
    ]);
    assert_eq!(origins_of(&seen), BTreeSet::from([origin]));
    leave(client);
}

#[test]
fn an_observer_sees_a_client_that_lost_its_lane_go_and_come_by_the_id_that_its_app_server_knows() {
    let [app, observer] = [(); 2].map(|()| Fake::start());
    let node = start(
        "",
        &[
            upstream("observer", &observer.url(), &format!("kind = \"observer\"\n{ONE_LANE}")),
            upstream("app", &app.url(), "connection_pool_size = 2"),
        ],
        3,
    );
    let (mut client, old) = requested(&node, "", &[("V", &app)]);
    let (mut other, other_id) = requested(&node, "", &[("V", &app)]);
    let seen = observer.hears(&["Request_VM V", "Request_VM V"]);
    client.send(&update("V", "{}"));
    let lane = app.hears(&["Update_VM V"])[0].lane;
    app.cut(lane);
    let new = app.hears(&["Request_VM V", "OnDisconnectedAsync"]).remove(0);
    let end = &observer.hears(&["Update_VM V", "OnDisconnectedAsync"])[1];
    assert_eq!((end.origin(), end.hub_id()), (old, seen[0].hub_id()));
    client.send(&update("V", "{}"));
    let seen = observer.hears(&["Update_VM V"]).remove(0);
    assert_eq!((seen.origin(), seen.hub_id()), (new.origin(), new.hub_id()));
    other.send(&update("V", "{}"));
    assert_eq!(observer.hears(&["Update_VM V"])[0].origin(), other_id);
    leave(client);
    assert_eq!(observer.hears(&["OnDisconnectedAsync"])[0].origin(), new.origin());
    leave(other);
}

#[test]
fn each_url_of_an_observer_is_told_the_end_of_those_it_saw() {
    let (app, observers) = (Fake::start(), [(); 2].map(|()| Fake::start()));
    let urls = observers.each_ref().map(Fake::url);
    let observing = format!("[[upstream]]\nname = \"observer\"\nurls = {urls:?}\nkind = \"observer\"\n{ONE_LANE}\n");
    let node = start("", &[observing, upstream("app", &app.url(), ONE_LANE)], 3);
    let (mut client, origin) = requested(&node, "", &[("V", &app)]);
    let [one, other] = &observers;
    wait_for("one of them to see it", PATIENCE, || (one.heard().len() + other.heard().len() == 1).then_some(()));
    let (first, second) = if one.heard().len() == 1 { (one, other) } else { (other, one) };
    first.hears(&["Request_VM V"]);
    first.opens(false);
    first.cut_all();
    counts(&node, "lanes", "state=\"up\"", 2);
    client.send(&update("V", "{}"));
    second.hears(&["Update_VM V"]);
    first.opens(true);
    let end = first.hears(&["OnDisconnectedAsync"]).remove(0);
    assert_eq!(end.origin(), origin);
    // It stays where it is now.
    client.send(&update("V", "{}"));
    second.hears(&["Update_VM V"]);
    leave(client);
    assert_eq!(second.hears(&["OnDisconnectedAsync"])[0].origin(), origin);
    first.hears(&[]);
}

// ---- Acknowledgements -------------------------------------------------------------------------------------------------

#[test]
fn whoever_fills_its_lane_is_read_no_further_while_others_go_on() {
    const WINDOW: usize = 8;
    const COUNT: usize = 800;
    let (app, node) = one(
        "[hub]\nclient_timeout_interval = \"1s\"\nkeep_alive_interval = \"500ms\"",
        &format!("connection_pool_size = 2\nin_flight_max = {WINDOW}"),
    );
    let mut clients: Vec<(Socket, Heard)> = (0..4)
        .map(|n| {
            let mut client = Socket::connect(node.address);
            client.send(&request(&format!("V{n}")));
            (client, app.hears(&[&format!("Request_VM V{n}")]).remove(0))
        })
        .collect();
    // Two on each lane.
    clients.sort_by_key(|(_, heard)| heard.lane);
    let [(client, first), (mut neighbour, near), (mut other, far), _far_too] =
        clients.try_into().unwrap_or_else(|_| unreachable!());
    let (lane, vm) = (first.lane, first.vm().to_string());
    assert!(near.lane == lane && far.lane != lane);
    app.sticks(lane);
    // Its timeout runs from its first ping on.
    let mut stream = client.stream.try_clone().expect("a descriptor is free");
    let said = vm.clone();
    let flood = std::thread::spawn(move || {
        use std::io::Write;
        let text = "x".repeat(24 * 1024);
        stream.write_all(&record(r#"{"type":6}"#)).expect("it is taken");
        for n in 0..COUNT {
            let update = update(&said, &format!("{{\"n\":{n},\"text\":\"{text}\"}}"));
            stream.write_all(&update).expect("it is taken some day");
        }
    });
    let begun = Instant::now();
    let window = app.hears_so_many(WINDOW);
    counts(&node, "read_pauses", "reason=\"lane_full\"", 1);
    assert!(
        window.iter().all(|one| one.origin() == first.origin() && one.lane == lane),
        "{:?}",
        window.iter().map(|one| (one.lane, one.line())).collect::<Vec<_>>()
    );
    counts(&node, "in_flight", "", WINDOW);
    // Four wait, and what came in one piece with them.
    let waiting = || node.metric("signalring_queued_messages");
    wait_for("what came before the pause", PATIENCE, || (waiting() >= f64::from(CLIENT_WAITING_MAX)).then_some(()));
    let taken = waiting();
    app.forget();
    while begun.elapsed() < Duration::from_millis(2500) {
        other.send(&update(far.vm(), "{}"));
        assert_ne!(app.hears(&[&format!("Update_VM {}", far.vm())])[0].lane, lane);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(waiting(), taken, "nothing more is taken");
    assert!(taken < 40.0 && !flood.is_finished(), "{taken} wait");
    // Who says less than is too much is read all the time, though it has the same lane.
    neighbour.send(&update(near.vm(), "{}"));
    wait_for("the neighbour's to wait", PATIENCE, || (waiting() == taken + 1.0).then_some(()));
    is_quiet(&mut neighbour, Duration::ZERO);
    counts(&node, "client_ends", "", 0);
    app.frees(lane);
    for heard in &window {
        app.completes(heard, None);
    }
    flood.join().expect("everything is taken in the end");
    wait_for("all to be heard", Duration::from_secs(60), || {
        (app.heard().iter().filter(|one| one.vm() == vm).count() == COUNT - WINDOW).then_some(())
    });
    let numbers: Vec<usize> = app.heard().iter().filter(|one| one.vm() == vm).map(number).collect();
    assert_eq!(numbers, Vec::from_iter(WINDOW..COUNT));
    counts(&node, "refusals", "", 0);
    counts(&node, "queued_messages", "", 0);
    counts(&node, "client_ends", "reason=\"client_timeout\"", 0);
}

#[test]
fn what_an_app_server_fails_at_its_view_model_is_told_in_its_words() {
    let (app, node) = one("", "");
    let mut client = Socket::connect(node.address);
    app.acknowledges(false);
    client.send(&[request("V"), request("W\"é"), update("W\"é", "{}")].concat());
    let heard = app.hears(&["Request_VM V", "Request_VM W\"é", "Update_VM W\"é"]);
    let text = "An unexpected error occurred invoking 'Invoke' on the server. HubException: \"no\" é";
    app.completes(&heard[0], Some(text));
    app.completes(&heard[1], None);
    app.completes(&heard[2], Some("Not so."));
    assert_eq!(exception(&mut client, "V"), text);
    assert_eq!(exception(&mut client, "W\"é"), "Not so.");
    counts(&node, "refusals", "reason=\"app_server_error\"", 2);
    // What could not be requested is not there; what could not be updated is.
    app.acknowledges(true);
    app.cut(0);
    app.hears(&["Request_VM W\"é", "OnDisconnectedAsync"]);
    // And a completion of what was completed is nothing.
    app.completes(&Heard { lane: 1, ..heard[0].clone() }, Some("Again."));
    is_quiet(&mut client, A_MOMENT);
    leave(client);
}

#[test]
fn a_lane_whose_app_server_does_nothing_is_replaced_and_what_it_sticks_at_is_not_tried_again() {
    for what in ["Request_VM", "Update_VM"] {
        let (app, node) = one("", "acknowledge_timeout = \"1s\"");
        let (mut client, old) = requested(&node, "", &[("V", &app)]);
        let (mut other, other_id) = requested(&node, "", &[("Other", &app)]);
        app.sticks(0);
        let begun = Instant::now();
        let vm = if what == "Request_VM" { "Stuck" } else { "V" };
        client.send(&call(what, &format!("{},null", json!(vm))));
        app.hears(&[&format!("{what} {vm}")]);
        other.send(&update("Other", "{}"));
        app.hears(&["Update_VM Other"]);
        // It hears behind what it sticks at who goes on elsewhere, and then what is live there.
        let heard = app.hears_so_many(4);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        let (on_stuck, on_new): (Vec<Heard>, Vec<Heard>) = heard.into_iter().partition(|one| one.lane == 0);
        assert_eq!(origins_of(&on_stuck), BTreeSet::from([old.clone(), other_id.clone()]));
        assert!(on_stuck.iter().all(|one| one.method() == "OnDisconnectedAsync"));
        let mut lines: Vec<String> = on_new.iter().map(Heard::line).collect();
        lines.sort();
        assert_eq!(lines, ["Request_VM Other", "Request_VM V"]);
        assert!(origins_of(&on_new).is_disjoint(&origins_of(&on_stuck)));
        wait_for("both to end on the new lane as well", PATIENCE, || (app.told_again().len() == 2).then_some(()));
        if what == "Request_VM" {
            exception(&mut client, "Stuck");
        }
        is_quiet(&mut client, A_MOMENT);
        is_quiet(&mut other, Duration::ZERO);
        app.forget();
        client.send(&update("V", "{}"));
        app.hears(&["Update_VM V"]);
        counts(&node, "lane_events", "event=\"stuck\"", 1);
        counts(&node, "lane_events", "event=\"lost\"", 1);
        counts(&node, "refusals", "reason=\"stuck\"", usize::from(what == "Request_VM"));
        counts(&node, "unknown_fates", "", 2);
        counts(&node, "client_ends", "", 0);
        assert!(node.process.output().contains("does nothing of what it was asked"), "it is said in the log");
        leave(client);
        leave(other);
    }
}

#[test]
fn without_acknowledgements_nothing_is_asked_for_and_a_lost_lane_is_no_less_harmless() {
    let (app, node) = one("", "acknowledge = false\nin_flight_max = 1\nacknowledge_timeout = \"1s\"");
    app.acknowledges(false);
    let headers = "User-Agent: UA\r\n";
    let (mut client, old) = requested(&node, headers, &[("V", &app)]);
    client.send(&[ask("W", "{\"a\":1}"), update("V", "{}"), dispose("W")].concat());
    let heard = app.hears(&["Request_VM W", "Update_VM V", "Dispose_VM W"]);
    let expected = [r#""Request_VM",["W","{\"a\":1}"]"#, r#""Update_VM",["V","{}"]"#, r#""Dispose_VM",["W"]"#];
    for (one, call) in heard.iter().zip(expected) {
        let context = one.metadata()["$fwdConnContext"].as_str().expect("a context");
        let whole = format!(
            "{{\"type\":1,\"target\":\"Invoke\",\"arguments\":[{call},{{\"$fwdConnContext\":{}}}]}}",
            json!(context)
        );
        assert_eq!(String::from_utf8_lossy(&one.bytes), whole);
    }
    counts(&node, "in_flight", "", 0);
    // Nothing is owed, so nothing is late.
    std::thread::sleep(Duration::from_millis(1500));
    counts(&node, "lane_events", "event=\"lost\"", 0);
    let others: Vec<Socket> = (0..50).map(|_| requested(&node, "", &[("V", &app)]).0).collect();
    app.cut(0);
    let heard = app.hears_so_many(51 * 2);
    assert!(heard[..51].iter().all(|one| one.line() == "Request_VM V"));
    assert!(heard[51..].iter().all(|one| one.method() == "OnDisconnectedAsync"));
    assert!(origins_of(&heard[51..]).contains(&old) && !origins_of(&heard[..51]).contains(&old));
    app.forget();
    client.send(&update("V", "{}"));
    app.hears(&["Update_VM V"]);
    counts(&node, "moved_clients", "result=\"replay\"", 51);
    leave(client);
    others.into_iter().for_each(leave);
}

#[test]
fn the_last_words_of_who_leaves_at_once_are_heard_though_its_lane_is_full() {
    let (app, node) = one("", "in_flight_max = 2");
    app.acknowledges(false);
    let mut other = Socket::connect(node.address);
    other.send(&[request("O"), update_number("O", 1)].concat());
    let window = app.hears(&["Request_VM O", "Update_VM O"]);
    other.send(&update_number("O", 2));
    counts(&node, "queued_messages", "", 1);
    let mut client = Socket::connect(node.address);
    client.send(&[request("V"), update_number("V", 1), update_number("V", 2)].concat());
    leave(client);
    let last = app.hears(&["Request_VM V", "Update_VM V", "Update_VM V"]);
    assert_eq!((number(&last[1]), number(&last[2])), (1, 2));
    counts(&node, "queued_disconnects", "", 1);
    app.acknowledges(true);
    window.iter().chain(&last).for_each(|heard| app.completes(heard, None));
    let rest = app.hears_so_many(2);
    let mut lines: Vec<String> = rest.iter().map(Heard::line).collect();
    lines.sort();
    assert_eq!(lines, ["OnDisconnectedAsync", "Update_VM O"]);
    let end = rest.iter().find(|one| one.method() == "OnDisconnectedAsync").expect("an end");
    assert_eq!(end.origin(), last[0].origin());
    counts(&node, "drops", "", 0);
    leave(other);
}

// ---- Whoever it is ----------------------------------------------------------------------------------------------------

#[test]
fn clients_and_lanes_that_speak_message_pack_are_given_back_the_same() {
    let (app, node) = one("", "use_message_pack = true");
    let mut packed = Socket::open(node.address);
    packed.send(&record(r#"{"protocol":"messagepack","version":1}"#));
    packed.frame("the handshake's answer");
    // {"$vmArg": {"Id": 5}}
    let argument = b"\x81\xa6$vmArg\x81\xa2Id\x05";
    packed.send(&frame(FIN | BINARY, &message_pack_call("Request_VM", argument, None)));
    let before = app.hears(&["Request_VM HelloWorldVM"]).remove(0);
    assert_eq!(json_of(before.argument().as_str().expect("text")), json!({"$vmArg": {"Id": 5}}));
    assert_eq!(before.message["invocationId"], "1");
    let (mut plain, _) = requested(&node, "", &[("V", &app)]);
    app.cut(0);
    let heard = app.hears_so_many(4);
    let again = heard.iter().find(|one| one.line() == "Request_VM HelloWorldVM").expect("it is requested again");
    assert_eq!(again.argument(), before.argument());
    assert_ne!(again.origin(), before.origin());
    assert_eq!(again.context()["HttpConnection"], before.context()["HttpConnection"]);
    app.forget();
    packed.send(&frame(FIN | BINARY, &message_pack_call("Update_VM", b"\x81\xa1a\x01", None)));
    assert_eq!(app.hears(&["Update_VM HelloWorldVM"])[0].origin(), again.origin());
    plain.send(&update("V", "{}"));
    app.hears(&["Update_VM V"]);
    counts(&node, "in_flight", "", 0);
    leave(packed);
    leave(plain);
}

#[test]
fn headers_are_left_out_of_what_would_be_too_large_with_them_and_the_lane_lives() {
    let (app, node) = one("", "");
    let cookie = |length: usize| format!("Cookie: {}\r\n", "c".repeat(length));
    let (mut client, origin) = requested(&node, &cookie(12 * 1024), &[("V", &app)]);
    let text = |length: usize| format!("{{\"text\":\"{}\"}}", "x".repeat(length));
    client.send(&[update("V", &text(1000)), update("V", &text(20 * 1024))].concat());
    let heard = app.hears(&["Update_VM V", "Update_VM V"]);
    let headers = |one: &Heard| one.context()["HttpRequestHeaders"].clone();
    let cookie_bytes = |one: &Heard| headers(one)["AllHeaders"]["Cookie"][0].as_str().map(str::len);
    assert_eq!(cookie_bytes(&heard[0]), Some(12 * 1024));
    assert_eq!(headers(&heard[1]), json!({"AllHeaders": {}, "UserAgent": null}));
    assert_eq!((heard[1].argument(), heard[1].origin()), (&json!(text(20 * 1024)), origin.clone()));
    assert_eq!(heard[1].context()["HttpConnection"], heard[0].context()["HttpConnection"]);
    counts(&node, "drops", "reason=\"context_headers\"", 1);
    // A cookie that leaves too little room for what its client says is never shown.
    let (mut other, _) = requested(&node, &cookie(20 * 1024), &[("W", &app)]);
    other.send(&update("W", &text(20 * 1024)));
    let all = headers(&app.hears(&["Update_VM W"])[0]);
    assert_eq!(all["AllHeaders"], json!({"Host": [node.address.to_string()]}));
    counts(&node, "drops", "reason=\"context_headers\"", 2);
    leave(other);
    app.hears(&["OnDisconnectedAsync"]);
    // Each of its quotes takes two bytes inside a string.
    let quotes = format!("{{\"text\":[{}1]}}", "\"\",".repeat(9000));
    client.send(&[update("V", &quotes), ask("Large", &quotes), update("V", "{}")].concat());
    assert!(exception(&mut client, "V").contains("too large"));
    assert!(exception(&mut client, "Large").contains("too large"));
    assert_eq!(app.hears(&["Update_VM V"])[0].origin(), origin);
    counts(&node, "refusals", "reason=\"too_large_upstream\"", 2);
    assert_eq!(app.lanes(), [0]);
    // It was never requested.
    app.cut(0);
    let again = app.hears(&["Request_VM V", "OnDisconnectedAsync"]).remove(0);
    assert_eq!(cookie_bytes(&again), Some(12 * 1024));
    leave(client);
}

#[test]
fn event_streams_and_long_polling_outlive_their_lane() {
    let (app, node) = one("", "");
    let ask = b"{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"HelloWorldVM\",{\"$vmArg\":{\"Id\":5}}]}\x1e";
    let mut events = Events::connect(node.address);
    events.post(ask);
    let events_id = app.hears(&["Request_VM HelloWorldVM"])[0].origin();
    let mut polling = Polling::connect(node.address);
    polling.post(ask);
    let polling_id = app.hears(&["Request_VM HelloWorldVM"])[0].origin();
    polling.begin_poll();
    app.cut(0);
    let heard = app.hears(&[
        "Request_VM HelloWorldVM",
        "Request_VM HelloWorldVM",
        "OnDisconnectedAsync",
        "OnDisconnectedAsync",
    ]);
    assert_eq!(origins_of(&heard[2..]), BTreeSet::from([events_id, polling_id]));
    assert!(heard[..2].iter().all(|one| *one.argument() == json!("{\"$vmArg\":{\"Id\":5}}")));
    for one in &heard[..2] {
        app.send(1, "SendAsync", json!(["HelloWorldVM", "{\"back\":1}"]), json!(one.origin()));
    }
    events.stream.event_response("the state", |data| data["back"] == 1);
    let answer = polling.polls.answer("the poll that began before");
    assert!(answer.text().contains("\\\"back\\\":1"), "{answer:?}");
    events.post(&unframed_update("E"));
    polling.post(&unframed_update("P"));
    let heard_now = app.hears(&["Update_VM HelloWorldVM", "Update_VM HelloWorldVM"]);
    assert_eq!(origins_of(&heard_now), origins_of(&heard[..2]));
    counts(&node, "client_ends", "", 0);
}

#[test]
fn the_picture_knows_a_client_by_its_first_id_whatever_app_servers_call_it() {
    let (app, node) = one("", "");
    let (client, first) = requested(&node, "", &[("V", &app)]);
    for lane in 0..2 {
        app.cut(lane);
        let heard = app.hears(&["Request_VM V", "OnDisconnectedAsync"]);
        assert_eq!(heard[1].origin() == first, lane == 0);
        assert_ne!(heard[0].origin(), first);
        std::thread::sleep(Duration::from_millis(signalring::limits::LOOK_KEPT_MS + 50));
        let picture = json_of(&get(node.admin, "/api/picture").body);
        let shown = &picture["nodes"][0];
        assert_eq!((&shown["clients"], &shown["sample"][0][0]), (&json!(1), &json!(first)), "{picture}");
        let key = shown["id"].as_str().expect("an id");
        let details = get(node.admin, &format!("/api/client?node={key}&id={first}"));
        assert_eq!(details.status, 200, "{}", details.text);
        assert!(details.body.contains("\"V\""), "{}", details.body);
    }
    leave(client);
}
