//! A node that is killed tells nobody: the next one tells the app server, from the journal (contract 6.4 and 4.5). Real processes, real
//! SIGKILLs, and a double that counts what it has of clients.

mod common;

use common::fake::Fake;
use common::ws::{Socket, record};
use common::{App, Node, PATIENCE, Process, address, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

fn text(folder: &TempDir) -> &str {
    folder.path().to_str().expect("it is UTF-8")
}

fn files(folder: &TempDir) -> BTreeSet<PathBuf> {
    fs::read_dir(folder.path()).expect("it is there").map(|entry| entry.expect("an entry").path()).collect()
}

fn start(app: &App, folder: &TempDir) -> Node {
    Node::start(app, &["--shards", "2", "--pool-size", "4", "--journal", text(folder)])
}

/// A client with two view models, whose states are there.
fn client(node: SocketAddr) -> Socket {
    let mut client = Socket::connect(node);
    for vm in ["HelloWorldVM", "HelloWorldVM$2"] {
        client.send(&record(&format!(r#"{{"type":1,"target":"Request_VM","arguments":["{vm}",null]}}"#)));
        client.response("the state", |data| data["Greetings"] == "Hello World!");
    }
    client
}

fn clients(node: SocketAddr, count: usize) -> Vec<Socket> {
    (0..count).map(|_| client(node)).collect()
}

/// As `kill -9` does, and waits until it is gone.
fn kill(process: &mut Process) {
    let status = Command::new("kill").args(["-KILL", &process.id().to_string()]).status().expect("kill is there");
    assert!(status.success());
    process.wait(PATIENCE).expect("nobody survives SIGKILL");
}

/// As a service manager does, and waits until it has ended in order.
fn stop(process: &mut Process) {
    let status = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().expect("kill is there");
    assert!(status.success() && process.wait(PATIENCE).is_some_and(|status| status.success()));
}

fn waits_for(app: &App, figure: &str, count: u64) {
    wait_for(&format!("{count} {figure}: {}", app.double()), PATIENCE, || (app.figure(figure) == count).then_some(()));
}

/// So many ids of killed processes have come to this end.
fn recovers(node: &Node, result: &str, count: u64) {
    wait_for(&format!("{count} ids that are {result}"), PATIENCE, || {
        (node.metric_where("signalring_recovered_ids", result) == count as f64).then_some(())
    });
}

fn says_hello(client: &mut Socket, name: &str) {
    client.send(&record(&format!(
        r#"{{"type":1,"target":"Update_VM","arguments":["HelloWorldVM",{{"FirstName":"{name}"}}]}}"#
    )));
    client.response("the answer", |data| data["FullName"] == format!("{name} World"));
}

#[test]
fn what_an_app_server_has_of_a_killed_nodes_clients_goes_while_the_next_node_serves_others() {
    const DEAD: usize = 300;
    const GONE: usize = 30;
    let (app, folder) = (App::start(), folder());
    let mut node = start(&app, &folder);
    let mut dead = clients(node.address, DEAD + GONE);
    dead.truncate(DEAD);
    waits_for(&app, "bindings", DEAD as u64);
    assert_eq!(app.figure("view_models"), 2 * DEAD as u64);
    wait_for("the journal", PATIENCE, || {
        (node.metric_where("signalring_journal_ids", "live") == DEAD as f64).then_some(())
    });
    let left = files(&folder);
    assert_eq!(left.len(), 1);
    kill(&mut node.process);
    waits_for(&app, "lanes", 0);
    // Of each lane one client, at most, is found out by the app server itself (contract 4.4).
    assert!(app.figure("bindings") >= (DEAD - 4) as u64, "{}", app.double());

    let mut node = start(&app, &folder);
    let mut living = clients(node.address, 20);
    waits_for(&app, "bindings", 20);
    waits_for(&app, "view_models", 40);
    recovers(&node, "signed_off", DEAD as u64);
    assert_eq!((node.metric("signalring_recovering_ids"), node.metric("signalring_journal_errors")), (0.0, 0.0));
    assert_eq!(node.metric("signalring_buried"), DEAD as f64);
    let said = node.process.output();
    assert!(
        said.contains(&format!("without saying goodbye: {DEAD} clients are being signed off at {}", app.url())),
        "{said}"
    );
    for client in &mut living {
        says_hello(client, "Ada");
    }
    assert_eq!((app.figure("bindings"), app.figure("leaks")), (20, 0));

    // A clean stop leaves what is to be told again.
    stop(&mut node.process);
    assert_eq!((files(&folder), app.figure("bindings")), (left, 0));
}

#[test]
#[ignore = "takes more than a minute: so long after the first time everybody is told of again"]
fn a_killed_nodes_clients_are_told_of_again_and_then_its_journal_goes() {
    const DEAD: usize = 50;
    let (app, folder) = (App::start(), folder());
    let mut node = start(&app, &folder);
    let dead = clients(node.address, DEAD);
    waits_for(&app, "bindings", DEAD as u64);
    let left = files(&folder);
    kill(&mut node.process);
    drop(dead);
    let mut node = start(&app, &folder);
    let mut living = clients(node.address, 20);
    recovers(&node, "signed_off", DEAD as u64);
    // When everybody has been told of again the dead one's journal goes, and nobody who lives has noticed.
    wait_for("the old journal to go", 5 * PATIENCE, || files(&folder).is_disjoint(&left).then_some(()));
    assert_eq!(node.metric("signalring_buried"), 2.0 * DEAD as f64);
    recovers(&node, "signed_off", DEAD as u64);
    assert_eq!((app.figure("bindings"), app.figure("leaks")), (20, 0));
    says_hello(&mut living[0], "Grace");
    // A clean stop tells everybody, and leaves nothing.
    stop(&mut node.process);
    assert_eq!((files(&folder), app.figure("bindings")), (BTreeSet::new(), 0));
}

#[test]
fn a_node_that_lives_is_left_alone_by_others_that_share_its_folder_and_buried_by_them_when_it_is_killed() {
    let (app, folder) = (App::start(), folder());
    let mut first = start(&app, &folder);
    let mut clients = clients(first.address, 10);
    let second = start(&app, &folder);
    assert_eq!(files(&folder).len(), 2);
    // Longer than a recovery rests before it begins.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((second.metric("signalring_recovered_ids"), second.metric("signalring_buried")), (0.0, 0.0));
    assert_eq!(app.figure("bindings"), 10);
    says_hello(&mut clients[9], "Grace");
    // Nobody starts it again, and the other finds out.
    kill(&mut first.process);
    waits_for(&app, "view_models", 0);
    recovers(&second, "signed_off", 10);
}

#[test]
fn a_recovery_that_is_killed_itself_is_finished_by_the_next_node() {
    let (app, folder) = (App::start(), folder());
    let mut node = start(&app, &folder);
    let mut dead = clients(node.address, 25);
    waits_for(&app, "bindings", 25);
    let left = files(&folder);
    // The lanes are lost and do not come back: whoever stays or leaves, the app server is yet to hear of the ids it knows.
    app.refuse(true);
    let bindings: Value = serde_json::from_str(&common::get(app.address, "/__double/bindings").body).unwrap();
    let lanes: BTreeSet<&str> = bindings.as_array().unwrap().iter().map(|of| of["lane"].as_str().unwrap()).collect();
    lanes.iter().for_each(|lane| assert_eq!(app.disturb("close", json!({ "lane": lane })), 1));
    dead.truncate(15);
    let ids = |state| node.metric_where("signalring_journal_ids", state);
    // Some had another id on the lane that was cut next.
    let owed = wait_for("all ends to be owed", PATIENCE, || {
        let (live, owed) = (ids("live"), ids("pending"));
        (live == 0.0 && owed >= 25.0).then_some(owed)
    });
    kill(&mut node.process);
    drop(dead);
    // It finds the journal and reaches nobody.
    let url = app.url();
    let flags =
        ["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--app-server", &url, "--journal", text(&folder)];
    let mut second = Process::signalring("second node", &flags);
    let admin = address(&second.printed("admin on "));
    let page = || common::get(admin, "/metrics").body;
    wait_for("the second node to wait", PATIENCE, || {
        page().contains(&format!("\nsignalring_recovering_ids {owed}\n")).then_some(())
    });
    kill(&mut second);
    // The second had no clients, so nothing of its own is left.
    assert!(files(&folder).is_superset(&left));
    app.refuse(false);
    let node = start(&app, &folder);
    waits_for(&app, "bindings", 0);
    waits_for(&app, "view_models", 0);
    // Of the second none: it had no clients.
    recovers(&node, "signed_off", owed as u64);
}

#[test]
fn clients_of_an_app_server_that_is_not_configured_wait_for_a_node_that_knows_it() {
    let (app, other, folder) = (App::start(), App::start(), folder());
    let lines = |apps: &[&App]| {
        let upstream = |app: &&App| {
            format!("[[upstream]]\nurl = \"{}\"\nhalt_pipeline = false\nconnection_pool_size = 2\n", app.url())
        };
        let last = format!("[[upstream]]\nurl = \"{}\"\nconnection_pool_size = 2\n", apps.last().unwrap().url());
        let before: String = apps[..apps.len() - 1].iter().map(upstream).collect();
        format!("shards = 1\njournal = \"{}\"\n{before}{last}", text(&folder))
    };
    let mut node = Node::configured(&lines(&[&app, &other]));
    // The mirror gets nothing before its lane is up.
    wait_for("all lanes", PATIENCE, || (node.metric_where("signalring_lanes", "up") >= 4.0).then_some(()));
    let dead = clients(node.address, 8);
    waits_for(&app, "bindings", 8);
    waits_for(&other, "bindings", 8);
    kill(&mut node.process);
    drop(dead);
    let mut node = Node::configured(&lines(&[&other]));
    waits_for(&other, "bindings", 0);
    recovers(&node, "unknown_url", 8);
    recovers(&node, "signed_off", 8);
    let said = node.process.output();
    assert!(said.contains(&format!("leak at {}: no upstream has this url", app.url())), "{said}");
    kill(&mut node.process);
    assert!(app.figure("bindings") >= 6);
    let node = Node::configured(&lines(&[&app]));
    waits_for(&app, "bindings", 0);
    recovers(&node, "signed_off", 8);
}

#[test]
fn what_was_on_a_lane_that_is_lost_is_not_taken_for_heard() {
    let (fake, folder) = (Fake::start(), folder());
    let lines = format!(
        "shards = 1\njournal = \"{}\"\n[[upstream]]\nurl = \"{}\"\nconnection_pool_size = 1\n",
        text(&folder),
        fake.url()
    );
    let mut node = Node::configured(&lines);
    let mut dead = Socket::connect(node.address);
    dead.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["V",null]}"#));
    let id = fake.hears(&["Request_VM V"]).remove(0).origin();
    fake.acknowledges(false);
    kill(&mut node.process);

    let node = Node::configured(&lines);
    assert_eq!(fake.hears(&["OnDisconnectedAsync"])[0].origin(), id);
    fake.cut_all();
    wait_for("the next lane to be told", PATIENCE, || (fake.told_again() == [id.clone()]).then_some(()));
    // The new lane owes the answer.
    assert_eq!(node.metric("signalring_recovering_ids"), 1.0);
    assert_eq!(node.metric_where("signalring_recovered_ids", "signed_off"), 0.0);
    fake.acknowledges(true);
    fake.cut_all();
    recovers(&node, "signed_off", 1);
}

/// Neither of them says that it has heard of an end.
#[test]
fn observers_and_app_servers_that_acknowledge_nothing_are_told_as_well() {
    let (app, observer, folder) = (App::start(), App::start_with(&["--observer"]), folder());
    let lines = format!(
        "shards = 1\njournal = \"{}\"\n[[upstream]]\nname = \"observer\"\nkind = \"observer\"\nurl = \"{}\"\n\
         [[upstream]]\nname = \"app\"\nurl = \"{}\"\nacknowledge = false\n",
        text(&folder),
        observer.url(),
        app.url()
    );
    let start = || {
        let node = Node::configured(&lines);
        wait_for("all lanes", PATIENCE, || (node.metric_where("signalring_lanes", "down") == 0.0).then_some(()));
        node
    };
    let shown = |gone: bool| {
        let seen: Value = serde_json::from_str(&common::get(observer.address, "/__double/observer").body).unwrap();
        seen["clients"].as_object().unwrap().values().filter(|client| client["gone"] == gone).count()
    };
    let mut node = start();
    let dead = clients(node.address, 20);
    wait_for("the Observer to see them", PATIENCE, || (shown(false) == 20).then_some(()));
    let left = files(&folder);
    kill(&mut node.process);
    drop(dead);
    let mut node = start();
    waits_for(&app, "bindings", 0);
    wait_for("the Observer to see them gone", PATIENCE, || (shown(true) == 20).then_some(()));
    recovers(&node, "signed_off", 40);
    let living = clients(node.address, 5);
    wait_for("the Observer to see others", PATIENCE, || (shown(false) == 5).then_some(()));
    stop(&mut node.process);
    drop(living);
    assert_eq!((files(&folder), app.figure("bindings"), shown(false)), (left, 0, 0), "its own journal is gone");
}

#[test]
fn a_folder_in_which_nothing_can_be_made_ends_the_start_with_what_to_do() {
    let run = |folder: &str| {
        let flags = ["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--app-server", "http://127.0.0.1:9"];
        let mut node = Process::signalring("node", &[&flags[..], &["--journal", folder]].concat());
        let status = node.wait(PATIENCE).expect("it ends");
        (status.code(), node.output())
    };
    let (code, said) = run("/proc");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no journal can be made in /proc") && said.contains("write access"), "{said}");
    for wrong in ["/no/such/folder", "/proc/version"] {
        assert!(Path::new(wrong).parent().is_some());
        let (code, said) = run(wrong);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(wrong) && said.contains("install -d -m 700"), "{said}");
    }
}
