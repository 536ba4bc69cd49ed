//! How a node ends: its clients are sent away, or told at once; and the way to a successor that takes its sockets.
use super::listen::Files;
use super::plane::{Command, ORDER_TRIES, ShardHandle, send_order};
use super::take_over::{Estate, Successor, offer};
use crate::bus::{Heir, ShardOrder};
use crate::limits::{LAST_POLLS_MS, LISTEN_PATIENCE_MS, STOP_MS};
use core::time::Duration;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// How clients are sent away.
#[derive(Clone, Copy)]
pub(super) struct Farewell {
    /// They are served as before for so long.
    pub(super) delay: Duration,
    /// Then each goes at a random moment of this.
    pub(super) window: Duration,
    pub(super) heir: Heir,
}

/// What comes of it.
pub(super) enum Drained {
    /// All shards have ended.
    All,
    /// They have to be stopped.
    No,
    /// A process that had the listening sockets before serves now, and waits to hear that this one listens no more: who is left is to be
    /// sent away once more, over this window.
    Inherited { waits: oneshot::Sender<()>, window: Duration },
}

/// The shards while they end.
pub(super) struct Ending {
    shards: Vec<ShardHandle>,
    /// One word from each that listens no more,
    released: mpsc::Receiver<()>,
    /// and one from each that has ended.
    ended: mpsc::Receiver<()>,
    /// Those that were told to and have not said the one,
    listening: Option<usize>,
    /// or the other; None before anybody was told.
    left: Option<usize>,
    /// When the node will have ended, for its owner.
    deadline: watch::Sender<Option<Instant>>,
}

impl Ending {
    pub(super) fn new(
        shards: Vec<ShardHandle>,
        released: mpsc::Receiver<()>,
        ended: mpsc::Receiver<()>,
        deadline: watch::Sender<Option<Instant>>,
    ) -> Ending {
        Ending { shards, released, ended, listening: None, left: None, deadline }
    }

    /// Sends clients away. `heir_waits`: the heir is told when this node takes no more connections from the sockets they share.
    /// `inherited`: one that comes meanwhile.
    pub(super) async fn drain(
        &mut self,
        farewell: Farewell,
        commanded: &mut mpsc::UnboundedReceiver<Command>,
        inherited: &mut mpsc::Receiver<oneshot::Sender<()>>,
        heir_waits: Option<oneshot::Sender<()>>,
    ) -> Drained {
        let Farewell { delay, window, heir } = farewell;
        let most = window + Duration::from_millis(LAST_POLLS_MS + STOP_MS);
        self.expect_end(delay + most);
        if !delay.is_zero() {
            info!("serving as before for {delay:?}, until balancers have noticed");
            tokio::select! {
                () = stop_is_asked(commanded) => return Drained::No,
                Some(waits) = inherited.recv() => return Drained::Inherited { waits, window },
                () = tokio::time::sleep(delay) => {}
            }
        }
        info!("sending clients away over {window:?}");
        let until = Instant::now() + window;
        self.order(|| ShardOrder::Drain { window, heir }).await;
        if let Some(waits) = heir_waits {
            let listens_no_more = all(&mut self.released, &mut self.listening);
            if tokio::time::timeout(Duration::from_millis(STOP_MS), listens_no_more).await.is_err() {
                warn!("not every shard stopped listening in time");
            }
            let _ = waits.send(());
        }
        tokio::select! {
            () = all(&mut self.ended, &mut self.left) => Drained::All,
            () = stop_is_asked(commanded) => Drained::No,
            Some(waits) = inherited.recv() => {
                Drained::Inherited { waits, window: until.saturating_duration_since(Instant::now()) }
            }
            () = tokio::time::sleep(most) => Drained::No,
        }
    }

    /// Tells everybody at once.
    pub(super) async fn stop(&mut self) {
        self.expect_end(Duration::from_millis(STOP_MS));
        self.order(|| ShardOrder::Stop).await;
        let ended = all(&mut self.ended, &mut self.left);
        if tokio::time::timeout(Duration::from_millis(STOP_MS + 1000), ended).await.is_err() {
            warn!("not every shard ended in time");
        }
    }

    fn expect_end(&self, within: Duration) {
        self.deadline.send_replace(Some(Instant::now() + within));
    }

    /// One that never started, or is gone, says no goodbye.
    async fn order(&mut self, order: impl Fn() -> ShardOrder) {
        let mut shards = std::mem::take(&mut self.shards);
        for shard in std::mem::take(&mut shards) {
            if send_order(&shard.orders, order(), ORDER_TRIES).await.is_ok() {
                shards.push(shard);
            }
        }
        self.listening.get_or_insert(shards.len());
        self.left.get_or_insert(shards.len());
        self.shards = shards;
    }
}

/// Waits for a word from each of them.
async fn all(words: &mut mpsc::Receiver<()>, left: &mut Option<usize>) {
    while let Some(count @ 1..) = left
        && words.recv().await.is_some()
    {
        *count -= 1;
    }
}

/// Waits for a second word to stop. Whoever asks to reload, or to take over, hears that it is too late by nobody's answer.
async fn stop_is_asked(commanded: &mut mpsc::UnboundedReceiver<Command>) {
    while !matches!(commanded.recv().await, Some(Command::Stop | Command::Drain) | None) {}
}

/// Waits for nodes that want to take over, one at a time, until one does; gives them what `estate` has. Called off when this node ends
/// otherwise; one that has the sockets by then may still say that it serves.
pub(super) async fn await_successor(
    listener: UnixListener,
    estate: Arc<Estate>,
    inherit: mpsc::Sender<oneshot::Sender<()>>,
    files: Files,
    shards: Vec<ShardHandle>,
) {
    let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return error!("no node can take over from this one: {error}"),
    };
    loop {
        let accepted = listener.accept().await.and_then(|(stream, _)| stream.into_std());
        let stream = match accepted.and_then(|stream| stream.set_nonblocking(false).map(|()| stream)) {
            Ok(stream) => stream,
            Err(error) => {
                warn!("no node can take over from this one for now: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        // A thread of its own, because it waits for the other process; and the node's end does not wait for it.
        let (estate, inherit, files) = (estate.clone(), inherit.clone(), files.clone());
        let (over, done) = oneshot::channel();
        let talks = move || {
            let result = offer(stream, &estate).and_then(|successor| {
                // Copies of its sockets would outlive this node's.
                drop(estate);
                hand_over(successor, &inherit, &files)
            });
            let _ = over.send(result);
        };
        if let Err(error) = thread::Builder::new().name("take-over".into()).spawn(talks) {
            warn!("no node can take over from this one for now: {error}");
            continue;
        }
        match done.await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => warn!("a process that was to take over does not: {error}; this node goes on"),
            Err(_) => warn!("a process that was to take over does not; this node goes on"),
        }
        accept_anew(shards.clone()).await;
    }
}

/// Another process leaves the listening sockets they had together, or has gone, and its ring a moment later.
pub(super) async fn accept_anew(shards: Vec<ShardHandle>) {
    for wait in [0, LISTEN_PATIENCE_MS] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        for shard in &shards {
            // A shard that takes no orders accepts nothing, either.
            let _ = send_order(&shard.orders, ShardOrder::Accept, 1).await;
        }
    }
}

fn hand_over(mut successor: Successor, inherit: &mpsc::Sender<oneshot::Sender<()>>, files: &Files) -> io::Result<()> {
    info!("another process has the listening sockets, and will take over when it serves");
    files.lend();
    successor.serves().inspect_err(|_| files.take_back())?;
    let (left, leaves) = oneshot::channel();
    if inherit.blocking_send(left).is_ok() {
        // A node that stops at once says nothing, and has stopped when nobody can say it any more.
        let _ = leaves.blocking_recv();
    }
    info!("another process has taken over");
    successor.leave()
}
