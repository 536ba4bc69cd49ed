//! One client's life: wait for its turn, connect, request, talk and listen, leave. One task, and one timer for everything it waits for.
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{self, Connection, Lost, Record};
use super::profile::{Behaviour, Turn, behaviour};
use super::tally::Tally;
use super::{Phase, Run, Server};
use crate::limits::{LOAD_CLOSE_TIMEOUT_MS, LOAD_CONNECT_TIMEOUT_MS, LOAD_PING_INTERVAL_MS, LOAD_SERVER_TIMEOUT_MS};

const PING_INTERVAL: Duration = Duration::from_millis(LOAD_PING_INTERVAL_MS);
const SERVER_TIMEOUT: Duration = Duration::from_millis(LOAD_SERVER_TIMEOUT_MS);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(LOAD_CONNECT_TIMEOUT_MS);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(LOAD_CLOSE_TIMEOUT_MS);

pub struct Client {
    pub run: Arc<Run>,
    pub server: usize,
    /// Of this server's clients.
    pub index: u32,
    pub thread: usize,
    pub dialling: Arc<Semaphore>,
    pub phase: watch::Receiver<Phase>,
}

impl Client {
    pub async fn live(self) {
        let turn = self.run.started + self.run.part(self.run.options.ramp_up, self.index);
        let dialling = self.dialling.clone();
        let mut phase = self.phase.clone();
        let connecting = async {
            sleep_until(turn).await;
            let _permit = dialling.acquire().await.expect("nobody closes it");
            self.tally().started += 1;
            let begun = Instant::now();
            let mut session = Session::new(&self);
            match timeout(CONNECT_TIMEOUT, session.join()).await {
                Ok(Ok(())) => {
                    self.tally().connect.record(begun.elapsed());
                    Some(session)
                }
                Ok(Err(why)) => self.failed(why),
                Err(_) => self.failed(format!("no state of the view model within {CONNECT_TIMEOUT:?}")),
            }
        };
        let session = tokio::select! {
            session = connecting => session,
            // Too late to begin.
            _ = phase.wait_for(|phase| *phase != Phase::Loading) => return,
        };
        let Some(mut session) = session else { return };
        {
            let mut tally = self.tally();
            tally.connected += 1;
            tally.active += 1;
        }
        self.run.gate.live.add();
        let mut standing = Standing::default();
        let end = session.stay(&self, &mut standing).await;
        self.tally().active -= 1;
        if let Err(why) = end {
            session.behaviour.lost();
            let mut tally = self.tally();
            tally.disconnects += 1;
            tally.fault(why);
        }
        self.run.gate.leave(&standing);
    }

    fn server(&self) -> &Server {
        &self.run.servers[self.server]
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.server().tally(self.thread)
    }

    fn failed<T>(&self, why: String) -> Option<T> {
        let mut tally = self.tally();
        tally.failed_connects += 1;
        tally.fault(why);
        None
    }
}

/// What a client has reported to the gate.
#[derive(Default)]
pub struct Standing {
    pub stopped: bool,
    pub settled: bool,
}

/// A client's connection and what it does with it.
struct Session<'a> {
    client: &'a Client,
    connection: Option<Connection>,
    behaviour: Box<dyn Behaviour>,
    joined: bool,
    /// Names in the view model's state; none before it has come, or if they are too few to know a state by.
    state: BTreeSet<String>,
    /// The view model did not want to be created.
    refused: Option<String>,
    updates: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Exception {
    exception_type: String,
    message: String,
}

impl<'a> Session<'a> {
    fn new(client: &'a Client) -> Session<'a> {
        let behaviour = behaviour(&client.run.options, &client.server().shared, client.index);
        Session {
            client,
            connection: None,
            behaviour,
            joined: false,
            state: BTreeSet::new(),
            refused: None,
            updates: Vec::new(),
        }
    }

    /// Connects, requests the view model and waits for its state.
    async fn join(&mut self) -> Result<(), Lost> {
        let (client, options) = (self.client, &self.client.run.options);
        let socket = client.server().dialler.connect(client.index).await?;
        self.connection = Some(Connection::open(socket, options.protocol).await?);
        let argument = json!({ "$vmArg": self.behaviour.argument(), "$headers": {} });
        self.call("Request_VM", vec![json!([self.behaviour.view_model(), argument])]).await?;
        client.tally().requests += 1;
        while !self.joined {
            self.connection().receive().await?;
            self.read()?;
            if let Some(refused) = self.refused.take() {
                return Err(refused);
            }
        }
        self.update().await
    }

    /// Until it is time to leave, and out.
    async fn stay(&mut self, client: &Client, standing: &mut Standing) -> Result<(), Lost> {
        let mut phase = client.phase.clone();
        let mut leave_at: Option<Instant> = None;
        let mut next_ping = Instant::now() + PING_INTERVAL;
        let mut heard = Instant::now();
        let timer = sleep_until(next_ping);
        tokio::pin!(timer);
        loop {
            let now_phase = *phase.borrow_and_update();
            if now_phase != Phase::Loading && !standing.stopped {
                self.behaviour.stop(Instant::now());
                standing.stopped = true;
                client.run.gate.stopped.add();
            }
            if matches!(now_phase, Phase::Settling | Phase::Leaving { .. })
                && !standing.settled
                && self.behaviour.is_settled()
            {
                standing.settled = true;
                client.run.gate.settled.add();
            }
            if let Phase::Leaving { since, over } = now_phase
                && leave_at.is_none()
            {
                self.behaviour.close_books(&mut client.tally());
                leave_at = Some(since + client.run.part(over, client.index));
            }
            let mut deadline = next_ping.min(heard + SERVER_TIMEOUT);
            for due in [self.behaviour.due(), leave_at].into_iter().flatten() {
                deadline = deadline.min(due);
            }
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            tokio::select! {
                received = self.connection().receive() => {
                    received?;
                    heard = Instant::now();
                    self.read()?;
                    self.update().await?;
                }
                () = &mut timer => {
                    let now = Instant::now();
                    if leave_at.is_some_and(|leave_at| now >= leave_at) {
                        return self.leave().await;
                    }
                    if now >= heard + SERVER_TIMEOUT {
                        return Err(format!("the server was silent for {SERVER_TIMEOUT:?}"));
                    }
                    if now >= next_ping {
                        next_ping = now + PING_INTERVAL;
                        let ping = connection::ping(client.run.options.protocol);
                        self.connection().send([ping]).await?;
                    }
                    if self.behaviour.due().is_some_and(|due| now >= due) {
                        let mut updates = std::mem::take(&mut self.updates);
                        self.behaviour.timer(&mut Turn { now, tally: &mut client.tally(), updates: &mut updates });
                        self.updates = updates;
                        self.update().await?;
                    }
                }
                _ = phase.changed() => {}
            }
        }
    }

    /// What comes while it closes is still counted: a proxy has counted it, too.
    async fn leave(&mut self) -> Result<(), Lost> {
        self.call("Dispose_VM", vec![json!([self.behaviour.view_model()])]).await?;
        self.client.tally().disposes += 1;
        self.connection().close().await?;
        let rest = async {
            while self.connection().receive().await.is_ok() {
                self.read()?;
                // It has nothing more to say.
                self.updates.clear();
            }
            Ok(())
        };
        timeout(CLOSE_TIMEOUT, rest).await.unwrap_or_else(|_| Err("the server did not answer the close".to_owned()))
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("it is opened before anything is done with it")
    }

    async fn call(&mut self, target: &str, arguments: Vec<Value>) -> Result<(), Lost> {
        let protocol = self.client.run.options.protocol;
        let calls = arguments.into_iter().map(|arguments| connection::invocation(protocol, target, arguments));
        self.connection.as_mut().expect("see `connection`").send(calls).await
    }

    /// Sends what the behaviour wanted sent.
    async fn update(&mut self) -> Result<(), Lost> {
        if self.updates.is_empty() {
            return Ok(());
        }
        let view_model = self.behaviour.view_model();
        let updates: Vec<Value> = self.updates.drain(..).map(|data| json!([view_model, data])).collect();
        let count = updates.len() as u64;
        self.call("Update_VM", updates).await?;
        self.client.tally().updates += count;
        Ok(())
    }

    /// Takes in all records that have come.
    fn read(&mut self) -> Result<(), Lost> {
        let now = Instant::now();
        let mut tally = self.client.tally();
        let Session { behaviour, joined, state, refused, updates, .. } = self;
        let connection = self.connection.as_mut().expect("see `connection`");
        let mut closed = None;
        connection.records(|record| match record {
            Record::Response { vm_id, data } => {
                tally.responses += 1;
                if vm_id != behaviour.view_model() {
                    tally.misdelivered += 1;
                    tally.fault(format!("a response of {vm_id}, which this client did not request"));
                } else if let Some(Exception { exception_type, message }) = exception(&data) {
                    let text = format!("{exception_type}: {message}");
                    tally.errors += 1;
                    if *joined {
                        tally.fault(text);
                    } else {
                        *refused = Some(text);
                    }
                } else {
                    let mut turn = Turn { now, tally: &mut tally, updates };
                    let is_first = !std::mem::replace(joined, true);
                    if is_first {
                        *state = names_of_state(&data);
                    }
                    let is_renewed = !is_first && is_state(&data, state);
                    if is_renewed {
                        turn.tally.renewed += 1;
                        behaviour.renewed();
                    }
                    let read = if is_first || is_renewed { behaviour.joined(&data, &mut turn) } else { Ok(()) };
                    if let Err(error) = read.and_then(|()| behaviour.response(&data, &mut turn)) {
                        tally.errors += 1;
                        tally.fault(format!("a response that cannot be read: {error}"));
                    }
                }
            }
            Record::Failed(error) => {
                tally.errors += 1;
                tally.fault(format!("a call failed: {error}"));
            }
            Record::Close(reason) => closed = Some(reason),
            Record::Other => {}
        })?;
        match closed {
            None => Ok(()),
            Some(None) => Err("the server closed the connection".into()),
            Some(Some(reason)) => Err(format!("the server closed the connection: {reason}")),
        }
    }
}

/// What a state names. One that names a single property cannot be told from a change of it.
fn names_of_state(data: &str) -> BTreeSet<String> {
    let names = serde_json::from_str::<BTreeMap<String, IgnoredAny>>(data).unwrap_or_default();
    if names.len() > 1 { names.into_keys().collect() } else { BTreeSet::new() }
}

/// A response that names everything the first state named is a state: changes name what has changed.
fn is_state(data: &str, state: &BTreeSet<String>) -> bool {
    !state.is_empty()
        && serde_json::from_str::<BTreeMap<Cow<'_, str>, IgnoredAny>>(data)
            .is_ok_and(|names| names.len() == state.len() && names.keys().all(|name| state.contains(name.as_ref())))
}

/// A response that is an error has both members (contract 1.4).
fn exception(data: &str) -> Option<Exception> {
    if !data.contains("\"ExceptionType\"") {
        return None;
    }
    serde_json::from_str(data).ok()
}
