//! Faults on real sockets, under load: the node, the app server's double and the clients are processes of their own, every client keeps
//! books (`common::crowd`), and the double says which client is bound to which lane (contract 3.3), before and after.
//!
//! **Healthy** are the clients whose origin id is bound, at the moment of the fault, to a lane that the fault does not touch. They must
//! notice nothing: no message lost, repeated or out of order in either direction, no exception, no new life of their view models, no end
//! of a connection. The others must be served again under a new id, after exactly one new life for one fault; what was under way when
//! their lane was lost may be lost with it and is counted, but nothing before and nothing after, and nothing twice.
//!
//! Each scenario runs with a small crowd in every test run, and with 5,000 clients when asked to.

mod common;

use common::crowd::{Crowd, Load, Mark};
use common::{App, Node, PATIENCE, wait_for};
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};

const SMALL: Load = Load { clients: 200, interval: Duration::from_millis(200), eager: 0 };
const LARGE: Load = Load { clients: 5000, interval: Duration::from_secs(1), eager: 0 };
/// Of the whole node, on two shards.
const LANES: usize = 8;
/// 5,000 clients on two busy cores: the longest that anything may take.
const LONG: Duration = Duration::from_secs(60);
/// When the app server notices a lane that died in silence; 30 s in reality (contract 4.4).
const LATE_NOTICE: Duration = Duration::from_secs(5);
/// Load before and after a fault, in updates of each client.
const UPDATES: u32 = 3;

/// How long the app server may take over a message before its lane is given up.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(1);
/// What becomes known at once, with what was under way and the node's turn.
const AT_ONCE: Duration = Duration::from_secs(1);
/// What becomes known by missing acknowledgements: the oldest one that is owed may be as old as a client's interval.
const BY_ACKNOWLEDGEMENT: Duration = Duration::from_secs(3);

fn node_lines(urls: &[String], lanes: usize) -> String {
    let urls: Vec<String> = urls.iter().map(|url| format!("{url:?}")).collect();
    let timeout = ACKNOWLEDGE_TIMEOUT.as_millis();
    format!(
        "shards = 2\n[[upstream]]\nname = \"app\"\nurls = [{}]\nconnection_pool_size = {lanes}\nacknowledge_timeout = \"{timeout}ms\"\n",
        urls.join(", ")
    )
}

/// App servers, a node in front of them, and a crowd that has been served.
struct Scene {
    apps: Vec<App>,
    node: Node,
    crowd: Crowd,
}

impl Scene {
    fn open(load: Load, apps: usize) -> Scene {
        rlimit::increase_nofile_limit(load.clients as u64 + 500).expect("the limit of open files can be raised");
        let apps: Vec<App> = (0..apps).map(|_| App::start()).collect();
        let urls: Vec<String> = apps.iter().map(App::url).collect();
        let node = Node::configured(&node_lines(&urls, LANES / apps.len()));
        wait_for("every lane", PATIENCE, || {
            (node.metric_where("signalring_lanes", "up") == LANES as f64).then_some(())
        });
        let crowd = Crowd::start(&[node.address], load);
        crowd.is_served(LONG);
        let scene = Scene { apps, node, crowd };
        scene.is_exact();
        scene.goes_on();
        scene
    }

    fn app(&self) -> &App {
        &self.apps[0]
    }

    /// The load goes on for a while.
    fn goes_on(&self) {
        std::thread::sleep(self.crowd.load.interval * UPDATES);
    }

    /// Waits until the bindings of all app servers are those of the clients that there are, each to a lane that lives.
    fn is_exact(&self) {
        let deadline = Instant::now() + LONG;
        loop {
            let live: HashSet<String> = self.crowd.by_origin().into_keys().collect();
            let lanes: Vec<_> = self.apps.iter().flat_map(App::lanes).collect();
            let dead = lanes.iter().filter(|lane| !lane.alive && !lane.clients.is_empty()).count();
            let bound: HashSet<String> = lanes.into_iter().flat_map(|lane| lane.clients).collect();
            if dead == 0 && bound == live {
                return;
            }
            let (stale, missing) = (bound.difference(&live).count(), live.difference(&bound).count());
            assert!(
                Instant::now() < deadline,
                "after {LONG:?} {stale} ids are bound that nobody has, {missing} clients are not bound, {dead} dead lanes have bindings"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The clients of these lanes.
    fn clients_of(&self, app: usize, is_meant: impl Fn(&str) -> bool) -> HashSet<usize> {
        let by_origin = self.crowd.by_origin();
        let lanes = self.apps[app].lanes().into_iter().filter(|lane| is_meant(&lane.lane));
        lanes.flat_map(|lane| lane.clients).map(|origin| by_origin[&origin]).collect()
    }

    /// The lane with the most clients, and them.
    fn busiest(&self) -> (String, HashSet<usize>) {
        let lane = self.app().lanes().into_iter().max_by_key(|lane| lane.clients.len()).expect("there are lanes").lane;
        let clients = self.clients_of(0, |id| id == lane);
        assert!(clients.len() >= self.crowd.load.clients / LANES, "the busiest of {LANES}: {}", clients.len());
        (lane, clients)
    }

    /// The fault is over: the moved are served, the load goes on and ends, the books are right, and the app servers remember nobody but
    /// who is there, and in the end nobody. `noticed` bounds from the fault on when the last message was sent that may be lost.
    fn closes(self, title: &str, mark: &Mark, moved: &HashSet<usize>, noticed: Duration) {
        let is_moved = |client: usize| moved.contains(&client);
        self.crowd.is_served_again(mark, is_moved, LONG);
        self.goes_on();
        self.is_exact();
        self.crowd.falls_silent(LONG);
        self.crowd.assert_books(mark, is_moved, 1);
        self.crowd.assert_nobody_was_disconnected();
        self.tells(title, mark, moved, noticed);
        self.ends();
    }

    /// Prints what the fault cost, and checks that only what was under way is lost.
    fn tells(&self, title: &str, mark: &Mark, moved: &HashSet<usize>, noticed: Duration) {
        let is_moved = |client: usize| moved.contains(&client);
        let mut lost = 0;
        for ledger in self.crowd.all() {
            for message in ledger.lost.iter().filter(|message| message.sent >= mark.at) {
                let after = message.sent - mark.at;
                assert!(after <= noticed, "{title}: lost although sent {after:?} after the fault");
            }
            lost += ledger.lost.len();
        }
        let recoveries = self.crowd.recoveries(mark, is_moved);
        let exchanges = self.crowd.exchanges(mark, |client| !is_moved(client));
        println!(
            "| {title} | {} of {} | {} / {} | {lost} | {} / {} |",
            moved.len(),
            self.crowd.load.clients,
            at(&recoveries, 0.5),
            at(&recoveries, 1.0),
            at(&exchanges, 0.99),
            at(&exchanges, 1.0)
        );
    }

    /// Everybody leaves, and nothing is left behind.
    fn ends(self) {
        self.crowd.leaves();
        for app in &self.apps {
            for left in ["bindings", "controllers", "view_models", "shared_view_models"] {
                wait_for(&format!("no {left}: {}", app.double()), LONG, || (app.figure(left) == 0).then_some(()));
            }
            for wrong in ["leaks", "dropped_updates", "failed_invocations", "repeated_requests", "protocol_errors"] {
                assert_eq!(app.figure(wrong), 0, "{wrong}: {}", app.double());
            }
        }
        wait_for("the node to count nobody", PATIENCE, || {
            (self.node.metric("signalring_clients") == 0.0).then_some(())
        });
    }
}

/// A share of sorted durations, for people.
fn at(sorted: &[Duration], share: f64) -> String {
    match sorted.get((sorted.len().saturating_sub(1) as f64 * share) as usize) {
        Some(duration) => format!("{:.0} ms", duration.as_secs_f64() * 1000.0),
        None => "-".into(),
    }
}

fn one_lane_is_reset(load: Load) {
    let scene = Scene::open(load, 1);
    let (lane, clients) = scene.busiest();
    let mark = scene.crowd.mark();
    assert_eq!(scene.app().disturb("close", json!({ "lane": lane, "how": "reset" })), 1);
    scene.closes("one lane of 8 reset", &mark, &clients, Duration::from_secs(1));
}

fn all_lanes_are_reset(load: Load) {
    let scene = Scene::open(load, 1);
    let clients: HashSet<usize> = (0..load.clients).collect();
    let mark = scene.crowd.mark();
    assert_eq!(scene.app().disturb("close", json!({ "how": "reset" })), LANES as u64);
    scene.closes("all 8 lanes reset", &mark, &clients, Duration::from_secs(1));
}

fn a_lane_is_half_open(load: Load) {
    let scene = Scene::open(load, 1);
    let (lane, clients) = scene.busiest();
    let mark = scene.crowd.mark();
    assert_eq!(scene.app().disturb("freeze", json!({ "lane": lane, "notice_ms": LATE_NOTICE.as_millis() as u64 })), 1);
    scene.crowd.is_served_again(&mark, |client| clients.contains(&client), LATE_NOTICE);
    // The app server's late disconnect must find nobody who lives.
    std::thread::sleep(LATE_NOTICE.saturating_sub(mark.at.elapsed()));
    scene.closes("one lane of 8 half-open", &mark, &clients, LATE_NOTICE);
}

fn the_app_server_is_killed(load: Load) {
    const AWAY: Duration = Duration::from_secs(1);
    let mut scene = Scene::open(load, 1);
    let clients: HashSet<usize> = (0..load.clients).collect();
    let mark = scene.crowd.mark();
    let address = scene.app().address;
    scene.apps[0].process.kill();
    std::thread::sleep(AWAY);
    scene.apps[0] = App::start_at(address);
    scene.closes("app server killed, back after 1 s", &mark, &clients, Duration::from_secs(1));
}

fn app_servers_are_restarted_one_after_the_other(load: Load) {
    let mut scene = Scene::open(load, 2);
    for app in 0..2 {
        let clients = scene.clients_of(app, |_| true);
        let mark = scene.crowd.mark();
        let address = scene.apps[app].address;
        scene.apps[app].process.kill();
        std::thread::sleep(Duration::from_secs(1));
        scene.apps[app] = App::start_at(address);
        scene.crowd.is_served_again(&mark, |client| clients.contains(&client), LONG);
        wait_for("every lane", LONG, || {
            (scene.node.metric_where("signalring_lanes", "up") == LANES as f64).then_some(())
        });
        scene.goes_on();
        scene.is_exact();
        scene.crowd.falls_silent(LONG);
        scene.crowd.assert_nobody_was_disconnected();
        // Where those of the other one are healthy.
        scene.crowd.assert_books(&mark, |client| clients.contains(&client), 1);
        scene.tells(&format!("app server {} of 2 restarted", app + 1), &mark, &clients, Duration::from_secs(1));
        scene.crowd.speaks();
        scene.goes_on();
    }
    scene.crowd.falls_silent(LONG);
    scene.ends();
}

/// Clients come back by themselves, after two seconds as dotNetify's npm client; what the dead node's clients left at the app server
/// has to go by itself, too.
fn the_node_is_killed(load: Load) {
    let mut scene = Scene::open(load, 1);
    let mark = scene.crowd.mark();
    scene.node.process.kill();
    scene.node = Node::configured_at(&scene.node.address.to_string(), &node_lines(&[scene.app().url()], LANES));
    scene.crowd.is_served_again(&mark, |_| true, LONG);
    scene.goes_on();
    scene.is_exact();
    let exact = mark.at.elapsed();
    scene.crowd.falls_silent(LONG);
    scene.crowd.assert_books(&mark, |_| true, 1);
    let ends: Vec<usize> = scene.crowd.all().map(|ledger| ledger.ends.len()).collect();
    assert!(
        ends.iter().all(|ends| (1..=2).contains(ends)),
        "a connection ends with the node, and one may come too early"
    );
    scene.tells("node killed and started again", &mark, &(0..load.clients).collect(), Duration::from_secs(1));
    println!("the dead node's bindings were gone after {exact:.1?}");
    scene.ends();
}

/// The app server does not get on with what one lane carries, and its pings go on: only acknowledgements can tell.
fn a_lane_is_stuck(load: Load) {
    let scene = Scene::open(load, 1);
    let (lane, clients) = scene.busiest();
    let mark = scene.crowd.mark();
    assert_eq!(scene.app().disturb("hold", json!({ "lane": lane, "hold": true })), 1);
    scene.crowd.is_served_again(&mark, |client| clients.contains(&client), LONG);
    let others = scene.crowd.exchanges(&mark, |client| !clients.contains(&client));
    let (slowest, moved_after) = (*others.last().expect("others are served"), mark.at.elapsed());
    assert!(slowest < moved_after / 2, "others waited {slowest:?}, those of the stuck lane {moved_after:?}");
    // What the lane was sent before it was given up is processed now, and must not bring anybody back.
    assert_eq!(scene.app().disturb("hold", json!({ "lane": lane, "hold": false })), 1);
    scene.closes("one lane of 8 stuck", &mark, &clients, moved_after);
}

fn requests_and_updates_at_once(load: Load) {
    let load = Load { eager: 20, ..load };
    let scene = Scene::open(load, 1);
    let mark = scene.crowd.mark();
    scene.closes("no fault, 20 updates behind each request", &mark, &HashSet::new(), Duration::ZERO);
}

#[test]
fn a_lane_is_lost_and_only_its_clients_move() {
    one_lane_is_reset(SMALL);
}

#[test]
fn all_lanes_are_lost_and_nobody_is_disconnected() {
    all_lanes_are_reset(SMALL);
}

#[test]
fn a_half_open_lane_is_found_and_its_late_end_hits_nobody() {
    a_lane_is_half_open(SMALL);
}

#[test]
fn an_app_server_is_killed_and_everybody_stays() {
    the_app_server_is_killed(SMALL);
}

#[test]
fn a_rolling_restart_keeps_everybody() {
    app_servers_are_restarted_one_after_the_other(SMALL);
}

#[test]

fn a_node_is_killed_and_leaves_nothing_behind() {
    the_node_is_killed(SMALL);
}

#[test]
fn a_stuck_lane_delays_only_its_own_clients() {
    a_lane_is_stuck(SMALL);
}

#[test]
fn updates_right_behind_a_request_keep_their_order() {
    requests_and_updates_at_once(SMALL);
}
