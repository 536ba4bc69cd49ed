//! The part of a DotNetify-Observer: what nodes report is recorded and never answered (contract 7.2).
//!
//! The original draws a graph; this one keeps what it would draw from, for `GET /__double/observer`. Its traps are here too: an id that
//! was reported gone is ignored for ten minutes, a report that is not newer than the last one of its id changes nothing, and a context
//! without its three objects throws.
use super::clock;
use super::context;
use super::hub::Failed;
use super::protocol::Argument;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

/// How long the original ignores an id after its disconnect.
const GONE_FOR: Duration = Duration::from_secs(600);
/// Ids of clients that are gone are remembered, the oldest forgotten first.
const GONE_MAX: usize = 100_000;

/// What the Observer knows, as `GET /__double/observer` shows it. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverSnapshot {
    /// By hub id.
    pub hubs: BTreeMap<String, HubReport>,
    /// By origin id; those that are gone too.
    pub clients: BTreeMap<String, ClientReport>,
    /// Counter: disconnects reported.
    pub disconnects: u64,
    /// Counter: clients that were taken for gone because their message was the last on a connection that ended (contract 4.4).
    pub innocents: u64,
    /// Counter: messages of ids that were reported gone.
    pub ignored: u64,
    /// Counter: messages not newer than the last one of their id.
    pub stale: u64,
    /// Counter: messages whose context lacks something that is dereferenced, and telemetry that cannot be read.
    pub faults: u64,
}

/// A node: everything that comes with one hub id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubReport {
    /// Its label: the first `Host` header in the contexts of its clients; none before there is a client.
    pub label: Option<String>,
    /// Clients of it that are there.
    pub clients: u64,
    /// `ReceiveTelemetry` records.
    pub reports: u64,
    /// The latest record's argument as JSON text.
    pub telemetry: String,
}

/// A client, as its latest message shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientReport {
    pub hub_id: Option<String>,
    /// Its label: the remote address.
    pub label: Option<String>,
    /// Messages by call: `Request_VM`, `Update_VM`, `Dispose_VM`.
    pub calls: BTreeMap<String, u64>,
    pub last_vm_id: Option<String>,
    /// Text of the second argument.
    pub last_data: Option<String>,
    /// Text of the latest context.
    pub last_context: String,
    pub gone: bool,
}

#[derive(Default)]
pub struct Observer {
    hubs: BTreeMap<String, HubReport>,
    clients: HashMap<String, Client>,
    gone: VecDeque<String>,
    disconnects: u64,
    innocents: u64,
    ignored: u64,
    stale: u64,
    faults: u64,
}

#[derive(Default)]
struct Client {
    report: ClientReport,
    time_stamp: Option<SystemTime>,
    gone: Option<Instant>,
}

/// What of a context is dereferenced without looking.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Dereferenced {
    hub_id: Option<String>,
    time_stamp: Option<String>,
    http_connection: Connection,
    http_request_headers: Headers,
    #[serde(rename = "Items")]
    _items: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Connection {
    remote_ip_address_string: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Headers {
    all_headers: Option<HashMap<String, Vec<String>>>,
}

impl Observer {
    /// An `Invoke` and its metadata.
    pub fn receive(
        &mut self,
        method: Option<&str>,
        arguments: &[Argument],
        metadata: &[(String, Argument)],
        own_hub_id: &std::sync::Arc<str>,
    ) -> Result<(), Failed> {
        let received = match context::origin(metadata, own_hub_id) {
            Ok(Some(origin)) => self.message(method, arguments, &origin.connection_id, &origin.text),
            Ok(None) if method == Some("ReceiveTelemetry") => self.telemetry(arguments, metadata),
            // No report, and no method of its own either.
            Ok(None) => Ok(()),
            Err(_) => Err(Failed),
        };
        self.faults += u64::from(received.is_err());
        received
    }

    /// A connection has ended, and this id is the one of its latest message.
    pub fn lane_lost(&mut self, id: &str) {
        self.innocents += u64::from(self.leaves(id));
    }

    /// Returns whether it was there.
    fn leaves(&mut self, id: &str) -> bool {
        let client = self.clients.entry(id.to_owned()).or_default();
        let was_there = client.gone.replace(Instant::now()).is_none();
        if was_there {
            client.report.gone = true;
            self.gone.push_back(id.to_owned());
        }
        if self.gone.len() > GONE_MAX
            && let Some(oldest) = self.gone.pop_front()
        {
            self.clients.remove(&oldest);
        }
        was_there
    }

    fn message(&mut self, method: Option<&str>, arguments: &[Argument], id: &str, text: &str) -> Result<(), Failed> {
        if method == Some("OnDisconnectedAsync") {
            self.disconnects += 1;
            self.leaves(id);
            return Ok(());
        }
        let context: Dereferenced = serde_json::from_str(text).map_err(|_| Failed)?;
        let time_stamp = context.time_stamp.as_deref().and_then(clock::parse);
        if let Some(gone) = self.clients.get(id).and_then(|client| client.gone) {
            if gone.elapsed() < GONE_FOR {
                self.ignored += 1;
                return Ok(());
            }
            self.gone.retain(|listed| listed != id);
            self.clients.remove(id);
        }
        let client = self.clients.entry(id.to_owned()).or_default();
        if client.time_stamp.is_some() && time_stamp <= client.time_stamp {
            self.stale += 1;
            return Ok(());
        }
        client.time_stamp = time_stamp;
        let report = &mut client.report;
        *report.calls.entry(method.unwrap_or_default().to_owned()).or_default() += 1;
        report.hub_id = context.hub_id.clone();
        report.label = context.http_connection.remote_ip_address_string;
        report.last_vm_id = arguments.first().map(|vm_id| vm_id.text().to_owned());
        report.last_data = arguments.get(1).map(|data| data.text().to_owned());
        report.last_context = text.to_owned();
        let host = context.http_request_headers.all_headers.and_then(|headers| headers.get("Host")?.first().cloned());
        let hub = self.hubs.entry(context.hub_id.unwrap_or_default()).or_default();
        hub.label = hub.label.take().or(host);
        Ok(())
    }

    fn telemetry(&mut self, arguments: &[Argument], metadata: &[(String, Argument)]) -> Result<(), Failed> {
        let hub_id = metadata.iter().rev().find(|(key, _)| key == "HubId").map(|(_, value)| value.text());
        let (Some(hub_id), [Argument::Json(usage) | Argument::Dictionary(usage)]) = (hub_id, arguments) else {
            return Err(Failed);
        };
        let _is_an_object: serde_json::Map<String, Value> = serde_json::from_str(usage).map_err(|_| Failed)?;
        let hub = self.hubs.entry(hub_id.to_owned()).or_default();
        hub.reports += 1;
        hub.telemetry = usage.clone();
        Ok(())
    }

    pub fn snapshot(&self) -> ObserverSnapshot {
        let mut hubs = self.hubs.clone();
        for client in self.clients.values().filter(|client| client.gone.is_none()) {
            if let Some(hub) = client.report.hub_id.as_ref().and_then(|id| hubs.get_mut(id)) {
                hub.clients += 1;
            }
        }
        ObserverSnapshot {
            hubs,
            clients: self.clients.iter().map(|(id, client)| (id.clone(), client.report.clone())).collect(),
            disconnects: self.disconnects,
            innocents: self.innocents,
            ignored: self.ignored,
            stale: self.stale,
            faults: self.faults,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(id: &str, second: u32) -> Vec<(String, Argument)> {
        let text = format!(
            r#"{{"HubId":"hub","TimeStamp":"2024-05-06T07:08:{second:02}Z","ConnectionId":"{id}","HttpConnection":{{"RemoteIpAddressString":"10.0.0.7"}},"HttpRequestHeaders":{{"AllHeaders":{{"Host":["node-a"]}}}},"Items":{{}}}}"#
        );
        vec![(context::KEY.into(), Argument::Text(text))]
    }

    fn text(text: &str) -> Argument {
        Argument::Text(text.into())
    }

    fn told(observer: &mut Observer, method: &str, arguments: &[Argument], metadata: &[(String, Argument)]) -> bool {
        observer.receive(Some(method), arguments, metadata, &"own".into()).is_ok()
    }

    #[test]
    fn clients_appear_with_their_first_message_and_stay_gone() {
        let mut observer = Observer::default();
        let (vm, data) = (text("EchoVM"), text("{}"));
        assert!(told(&mut observer, "Request_VM", &[vm.clone(), Argument::Null], &context("a", 1)));
        assert!(told(&mut observer, "Update_VM", &[vm.clone(), data.clone()], &context("a", 3)));
        for stale in [3, 2] {
            assert!(told(&mut observer, "Update_VM", &[vm.clone(), data.clone()], &context("a", stale)));
        }
        let seen = observer.snapshot();
        assert_eq!((seen.stale, seen.hubs["hub"].clients), (2, 1));
        assert_eq!(seen.hubs["hub"].label.as_deref(), Some("node-a"));
        let client = &seen.clients["a"];
        assert_eq!((client.calls["Request_VM"], client.calls["Update_VM"]), (1, 1));
        assert_eq!(client.label.as_deref(), Some("10.0.0.7"));
        assert!(client.last_context.contains("07:08:03Z"));

        assert!(told(&mut observer, "OnDisconnectedAsync", &[Argument::Null], &context("a", 4)));
        assert!(told(&mut observer, "Request_VM", &[vm, Argument::Null], &context("a", 5)));
        let seen = observer.snapshot();
        assert_eq!((seen.disconnects, seen.ignored, seen.hubs["hub"].clients), (1, 1, 0));
        assert!(seen.clients["a"].gone && seen.clients["a"].calls["Request_VM"] == 1);

        observer.lane_lost("a");
        assert_eq!(observer.snapshot().innocents, 0);
        assert!(told(&mut observer, "Request_VM", &[text("EchoVM"), Argument::Null], &context("b", 1)));
        observer.lane_lost("b");
        assert_eq!((observer.snapshot().innocents, observer.snapshot().hubs["hub"].clients), (1, 0));
    }

    #[test]
    fn telemetry_belongs_to_its_hub_and_needs_no_client() {
        let mut observer = Observer::default();
        let usage = Argument::Json(r#"{"proc_cpu":1.25,"total_cpu":10.5,"proc_mem":85.31,"total_mem":null}"#.into());
        let hub_id = vec![("HubId".to_owned(), text("hub"))];
        assert!(told(&mut observer, "ReceiveTelemetry", std::slice::from_ref(&usage), &hub_id));
        assert!(told(&mut observer, "ReceiveTelemetry", std::slice::from_ref(&usage), &hub_id));
        let seen = observer.snapshot();
        assert_eq!((seen.hubs["hub"].reports, seen.hubs["hub"].label.clone()), (2, None));
        assert_eq!(seen.hubs["hub"].telemetry, usage.text());
        assert!(!told(&mut observer, "ReceiveTelemetry", &[usage], &[]), "whose?");
        assert!(!told(&mut observer, "ReceiveTelemetry", &[text("{}")], &hub_id), "a string is no dictionary");
        // With a context it is a client's message.
        let usage = Argument::Json("{}".into());
        assert!(told(&mut observer, "ReceiveTelemetry", &[usage], &context("a", 1)));
        assert!(observer.snapshot().clients.contains_key("a"));
    }

    #[test]
    fn what_is_dereferenced_must_be_there() {
        for member in ["HttpConnection", "HttpRequestHeaders", "Items"] {
            let [(key, Argument::Text(text))] = &context("a", 1)[..] else { panic!("one text") };
            let mut without: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
            without[member] = Value::Null;
            let metadata = [(key.clone(), Argument::Text(Value::Object(without).to_string()))];
            let mut observer = Observer::default();
            assert!(!told(&mut observer, "Dispose_VM", &[Argument::Text("VM".into())], &metadata), "{member}");
            assert_eq!((observer.snapshot().faults, observer.snapshot().clients.len()), (1, 0));
        }
    }
}
