//! Between threads: bounded crossbeam queues with a doorbell. They carry ownership (a dialled lane, a connection for another shard, new
//! keys, an order to stop). A message of a client passes only as what was read of a connection that is handed over.
pub mod settings;
pub mod sight;

use crate::identity::Identity;
use crate::ids::{HubId, LaneIndex, LaneKey, LanePlace, OriginId, ShardId};
use crate::limits::{BUS_ORDERS, RELAY_BYTES_MAX};
use crate::sys::doorbell::Doorbell;
use crate::tls::Tls;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use crossbeam::channel;
use settings::Renewal;
use sight::{ClientDetail, Sight};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What the control plane tells a shard.
#[derive(Debug)]
pub enum ShardOrder {
    /// A lane is connected: the socket is the shard's from now on.
    LaneUp {
        index: LaneIndex,
        socket: OwnedFd,
        /// The name this incarnation of the lane gives itself.
        hub_id: HubId,
        /// Bytes that arrived behind the handshake's answer; with TLS, as plaintext.
        early: Vec<u8>,
        /// The state of the connection's TLS, if the app server is reached by it. May carry a cut record.
        tls: Option<Box<Tls>>,
    },
    /// A connection that another shard accepted and whose request belongs here.
    Connection(Box<Handover>),
    /// What an app server sent for many clients over another shard's lane, where all lanes of the node share a hub id: the one
    /// conversation between shards, which only that option brings about.
    Relay(Relayed),
    /// Tokens are verified with these keys from now on.
    Identity(Arc<Identity>),
    /// Show yourself, with so many clients at most. Dropped unanswered by a shard that ends.
    Look { clients_max: u32, answer: oneshot::Sender<Sight> },
    /// Show one client; None if it is gone.
    LookAt { client: OriginId, answer: oneshot::Sender<Option<Box<ClientDetail>>> },
    /// Clients of a process that is dead: their app server is told that they are gone. Dropped unanswered by a shard that ends.
    Bury { place: LanePlace, ids: Vec<OriginId>, answer: oneshot::Sender<()> },
    /// These settings hold from now on.
    Settings(Box<Renewal>),
    /// Take what waits in the queues of the listeners. Another process had them as well and leaves, and the kernel wakes one of those who
    /// wait for a connection: one that stops waiting in that moment takes the call and not the connection.
    Accept,
    /// Send everybody away, each at a random moment of the window, serve them until then, and end.
    Drain { window: Duration, heir: Heir },
    /// Tell everybody at once and end.
    Stop,
}

/// Who serves the clients that come while a node sends its own away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heir {
    /// Nobody: they are told to come back later, and meanwhile perhaps reach another node.
    None,
    /// Another process, which has the same listening sockets and the same key for tokens.
    Process,
}

/// A record on its way to another shard.
#[derive(Debug)]
pub struct Relayed {
    pub place: LanePlace,
    pub record: Arc<[u8]>,
    _under_way: UnderWay,
}

/// Counts as many bytes as under way to a shard as long as it lives.
#[derive(Debug)]
struct UnderWay {
    bytes: usize,
    of_shard: Arc<AtomicUsize>,
}

impl UnderWay {
    /// None: it would be more than `RELAY_BYTES_MAX`.
    fn begin(of_shard: &Arc<AtomicUsize>, bytes: usize) -> Option<UnderWay> {
        let more = |before: usize| before.checked_add(bytes).filter(|after| *after <= RELAY_BYTES_MAX);
        of_shard.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(UnderWay { bytes, of_shard: of_shard.clone() })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.of_shard.fetch_sub(self.bytes, Relaxed);
    }
}

/// A connection on its way to the shard that owns what it asks for.
#[derive(Debug)]
pub struct Handover {
    pub socket: OwnedFd,
    pub peer: Peer,
    /// What was read of its next request, and more.
    pub buffer: Vec<u8>,
    pub tls: Option<Box<Tls>>,
}

/// Whose connection it is, before any header of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub local: SocketAddr,
    /// Unspecified on a Unix socket.
    pub remote: SocketAddr,
    pub is_unix: bool,
}

/// What a shard tells the control plane.
#[derive(Debug)]
pub enum ControlOrder {
    /// The lane's socket is closed; dial it again.
    LaneLost { lane: LaneKey },
    /// The shard listens no more.
    Released { shard: ShardId },
    /// The shard has ended in order.
    Stopped { shard: ShardId },
}

/// The sending end. Never waits.
pub struct Sender<T> {
    queue: channel::Sender<T>,
    bell: Doorbell,
    /// Bytes of records that are under way to a shard, from all others together.
    relayed: Arc<AtomicUsize>,
}

/// The receiving end: its owner sleeps until the bell rings.
pub struct Receiver<T> {
    queue: channel::Receiver<T>,
    bell: Doorbell,
}

/// What a queue takes: crossbeam's array has a stamp beside each place.
pub const fn queue_bytes<T>() -> usize {
    BUS_ORDERS * (size_of::<T>() + size_of::<usize>())
}

pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    let (sender, receiver) = channel::bounded(BUS_ORDERS);
    let bell = Doorbell::new()?;
    Ok((Sender { queue: sender, bell: bell.clone(), relayed: Arc::default() }, Receiver { queue: receiver, bell }))
}

// Not derived: that would ask for `T: Clone`, and orders carry what has one owner.
impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { queue: self.queue.clone(), bell: self.bell.clone(), relayed: self.relayed.clone() }
    }
}

impl<T> Sender<T> {
    /// Gives the order back when the queue is full or its receiver has ended.
    pub fn send(&self, order: T) -> Result<(), T> {
        match self.queue.try_send(order) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(error) => Err(error.into_inner()),
        }
    }
}

impl<T> Sender<T> {
    /// Has the receiver taken everything?
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// An order that was not taken.
#[derive(Debug)]
pub enum Unsent<T> {
    /// For now.
    Full(T),
    /// The receiver has ended.
    Closed(T),
}

impl<T> Sender<T> {
    /// As `send`, for those who would wait: says whether that has any sense.
    pub fn offer(&self, order: T) -> Result<(), Unsent<T>> {
        match self.queue.try_send(order) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(channel::TrySendError::Full(order)) => Err(Unsent::Full(order)),
            Err(channel::TrySendError::Disconnected(order)) => Err(Unsent::Closed(order)),
        }
    }
}

impl Sender<ShardOrder> {
    /// Hands another shard what an app server sent for many. False: it has too much of that before it, or has ended. Half of the queue
    /// is left to orders that nobody sends again, such as lanes and connections.
    pub fn relay(&self, place: LanePlace, record: Arc<[u8]>) -> bool {
        if self.queue.len() >= BUS_ORDERS / 2 {
            return false;
        }
        let Some(under_way) = UnderWay::begin(&self.relayed, record.len()) else { return false };
        self.send(ShardOrder::Relay(Relayed { place, record, _under_way: under_way })).is_ok()
    }
}

impl<T> Receiver<T> {
    pub fn try_next(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_rings_and_a_full_queue_gives_it_back() {
        let (sender, receiver) = channel::<usize>().unwrap();
        for n in 0..BUS_ORDERS {
            sender.send(n).unwrap();
        }
        assert_eq!(sender.send(7), Err(7));
        receiver.bell().quiet();
        assert_eq!((0..=BUS_ORDERS).map_while(|_| receiver.try_next()).count(), BUS_ORDERS);
        assert!(matches!((0..=BUS_ORDERS).find_map(|n| sender.offer(n).err()), Some(Unsent::Full(BUS_ORDERS))));
        drop(receiver);
        assert!(matches!(sender.offer(9), Err(Unsent::Closed(9))));
        assert_eq!(sender.send(1), Err(1));
    }

    #[test]
    fn records_for_another_shard_are_bounded_in_bytes_and_leave_room_for_other_orders() {
        let (sender, receiver) = channel::<ShardOrder>().unwrap();
        let other = sender.clone();
        let place = LanePlace { upstream: crate::ids::UpstreamIndex(0), url: 0 };
        let large: Arc<[u8]> = vec![0; RELAY_BYTES_MAX / 2].into();
        let one: Arc<[u8]> = vec![0].into();
        assert!(sender.relay(place, large.clone()) && other.relay(place, large.clone()));
        assert!(!sender.relay(place, one.clone()) && !other.relay(place, one.clone()));
        let taken = receiver.try_next();
        assert!(matches!(&taken, Some(ShardOrder::Relay(relayed)) if relayed.record.len() == large.len()));
        assert!(!sender.relay(place, one.clone()), "its receiver still has it");
        drop(taken);
        assert!(sender.relay(place, one.clone()));
        while receiver.try_next().is_some() {}

        assert_eq!((0..BUS_ORDERS).filter(|_| sender.relay(place, one.clone())).count(), BUS_ORDERS / 2);
        assert_eq!((0..BUS_ORDERS).filter(|_| sender.send(ShardOrder::Stop).is_ok()).count(), BUS_ORDERS / 2);
        while receiver.try_next().is_some() {}
        drop(receiver);
        assert!(!sender.relay(place, one));
        assert_eq!(sender.relayed.load(Relaxed), 0);
    }
}
