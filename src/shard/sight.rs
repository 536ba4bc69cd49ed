//! What the shard shows to whoever looks at the node. A look at a large table takes several turns, so that it stalls none of them.
use super::Shard;
use super::socket::{Client, Conn, Stage};
use crate::bus::sight::{ClientDetail, ClientSight, LaneSight, PinDetail, Sight};
use crate::ids::{OriginId, Time};
use crate::limits::{DETAIL_NAMES_MAX, LOOK_SLOTS_MAX, LOOK_SLOTS_PER_TURN, LOOKS_MAX};
use crate::mem::slab::Slab;
use crate::metrics::Gauge;
use crate::proto::dotnetify::context;
use crate::sys::Io;
use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::sync::oneshot;

/// A look under way.
pub(super) struct Look {
    clients_max: u32,
    answer: oneshot::Sender<Sight>,
    order: Order,
    shown: Vec<ClientSight>,
}

/// The slots of a table, each once, in an order whose every beginning is spread evenly over the table: 0, then the half, the quarters,
/// the eighths. It changes only when the table has doubled, so the first so many clients in it are the same at every look.
struct Order {
    slots: u32,
    bits: u32,
    next: u32,
}

impl Order {
    fn new(slots: u32) -> Order {
        Order { slots, bits: slots.next_power_of_two().trailing_zeros(), next: 0 }
    }

    fn is_over(&self) -> bool {
        self.next >= (1 << self.bits).min(LOOK_SLOTS_MAX)
    }
}

impl Iterator for Order {
    /// None is a step outside of the table: it counts against a turn's steps, too.
    type Item = Option<u32>;

    fn next(&mut self) -> Option<Option<u32>> {
        if self.is_over() {
            return None;
        }
        let slot = self.next.reverse_bits().checked_shr(u32::BITS - self.bits).unwrap_or(0);
        self.next += 1;
        Some((slot < self.slots).then_some(slot))
    }
}

impl Look {
    fn is_done_after_a_turn(&mut self, conns: &Slab<Conn>) -> bool {
        let wanted = (self.clients_max as usize).saturating_sub(self.shown.len());
        let steps = self.order.by_ref().take(LOOK_SLOTS_PER_TURN as usize);
        let clients = steps.flatten().filter_map(|slot| match &conns.at(slot)?.stage {
            Stage::Client(Client { origin, received, sent, .. }) => {
                Some(ClientSight { origin: *origin, received: *received, sent: *sent })
            }
            _ => None,
        });
        self.shown.extend(clients.take(wanted));
        self.order.is_over() || self.shown.len() >= self.clients_max as usize
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn on_look(&mut self, clients_max: u32, answer: oneshot::Sender<Sight>) {
        if self.looks.len() < LOOKS_MAX {
            let order = Order::new(self.conns.slots());
            self.looks.push(Look { clients_max, answer, order, shown: Vec::new() });
        }
    }

    /// Goes on with the first look, for as long as a turn may take.
    pub(super) fn look(&mut self, now: Time) {
        // Who has given up waiting needs nothing any more.
        self.looks.retain(|look| !look.answer.is_closed());
        let Some(look) = self.looks.first_mut() else { return };
        if !look.is_done_after_a_turn(&self.conns) {
            return;
        }
        let Look { answer, shown, .. } = self.looks.remove(0);
        let lanes = self.lanes.iter().map(|lane| LaneSight {
            clients: lane.clients,
            waiting: lane.waiting() as u32,
            in_flight: lane.flight.len() as u32,
            owed: lane.flight.owed_since().map_or(Duration::ZERO, |since| now.since(since)),
            replays: lane.replays.len() as u32,
            sent: lane.sent,
            received: lane.received,
        });
        // The gauge is of the last turn; whoever came in this one may be among the shown.
        let clients = (self.metrics.gauge(Gauge::Clients) as u32).max(shown.len() as u32);
        let sight = Sight { clients, shown, lanes: lanes.collect() };
        let _ = answer.send(sight);
    }

    pub(super) fn on_look_at(&self, client: OriginId, answer: oneshot::Sender<Option<Box<ClientDetail>>>) {
        let _ = answer.send(self.detail(client).map(Box::new));
    }

    fn detail(&self, origin: OriginId) -> Option<ClientDetail> {
        let slot = self.settings.origin_key.open(&origin.0)?.slot;
        let Some(Conn { socket, stage: Stage::Client(client) }) = self.conns.at(slot) else { return None };
        if client.origin != origin {
            return None;
        }
        let upstreams = &self.settings.upstreams;
        let told = |upstream: usize| {
            let shown = upstreams.headers(upstream, &client.headers);
            context::read_back(upstreams.get(upstream).protocol, &client.connection, shown)
        };
        let address =
            |place: Option<(IpAddr, u16)>| SocketAddr::from(place.unwrap_or((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)));
        let (remote, local) = told(0).map(|told| (told.remote, told.local)).unzip();
        let (views, view_count) = names(self.views.each(client.views).map(|(name, _)| name));
        let pins = client.pins.iter().filter_map(|pin| {
            let lane = pin.lane?;
            let hub = &self.hubs[self.lanes[usize::from(lane.0)].hub];
            let (groups, group_count) = names(hub.groups.each(pin.memberships));
            Some(PinDetail { lane, groups, group_count })
        });
        Some(ClientDetail {
            origin: client.origin,
            remote: address(remote),
            local: address(local),
            // An upstream may be shown headers that another is not.
            user_agent: (0..upstreams.len()).find_map(|upstream| told(upstream)?.user_agent),
            user: client.user.as_ref().and_then(|user| user.id.as_deref()).map(str::to_string),
            form: client.session.form(),
            is_open: client.session.is_open(),
            is_away: client.carried.as_ref().is_some_and(|carried| carried.carrier.is_none()),
            received: client.received,
            sent: client.sent,
            queued_bytes: socket.queue.bytes(),
            views,
            view_count,
            pins: pins.collect(),
        })
    }
}

/// As many as are shown, and how many there are. They come from the network: what is not UTF-8 is shown as such.
fn names<'a>(each: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, u32) {
    let (mut shown, mut count) = (Vec::new(), 0);
    for name in each {
        count += 1;
        if shown.len() < DETAIL_NAMES_MAX {
            shown.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    (shown, count)
}

#[cfg(test)]
mod tests {
    use super::super::socket::{NO_SOCKET, Pins, Socket};
    use super::*;
    use crate::ids::{Address, OriginKey, Serial, ShardId, SlotKey, Time};
    use crate::session::client::{ClientSession, ClientSettings};
    use crate::session::form::Transport;
    use crate::session::pace::Rate;
    use crate::session::views::ViewList;
    use core::time::Duration;
    use std::rc::Rc;
    use std::time::Instant;

    fn table(clients: u32) -> Slab<Conn> {
        let settings = ClientSettings {
            handshake_timeout: Duration::from_secs(15),
            client_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            message_bytes_max: 32 * 1024,
            rate: Rate::ANY,
        };
        let mut conns = Slab::new(clients);
        let headers: Rc<[u8]> = Rc::from(&b"{}"[..]);
        for n in 0..clients {
            let client = |key: SlotKey| Client {
                session: ClientSession::new(Time(0), Transport::WebSockets, false, &settings),
                origin: OriginKey([7; 16]).seal(Address { shard: ShardId(0), slot: key.slot, serial: Serial(0) }),
                pins: Pins::default(),
                views: ViewList::default(),
                received: n,
                sent: 2 * n,
                connection: Box::default(),
                headers: headers.clone(),
                seen: None,
                user: None,
                carried: None,
            };
            conns.insert_with(|key| Conn { socket: Socket::new(key, NO_SOCKET), stage: Stage::Client(client(key)) });
        }
        conns
    }

    fn look(conns: &Slab<Conn>, clients_max: u32) -> (Vec<u32>, u32) {
        let (answer, _) = oneshot::channel();
        let mut look = Look { clients_max, answer, order: Order::new(conns.slots()), shown: Vec::new() };
        let mut turns = 1;
        while !look.is_done_after_a_turn(conns) {
            turns += 1;
        }
        (look.shown.iter().map(|client| client.received).collect(), turns)
    }

    #[test]
    fn a_look_at_a_full_table_takes_one_turn_and_at_an_empty_one_several() {
        const CLIENTS: u32 = 100_000;
        let mut conns = table(CLIENTS);
        let begun = Instant::now();
        let (shown, turns) = look(&conns, 2000);
        println!("a look at 2000 of {CLIENTS} clients: {:?}", begun.elapsed());
        assert_eq!((shown.len(), turns), (2000, 1));
        assert_eq!(look(&conns, 2000).0, shown, "the same again");

        // Of those who were shown all but the gone are shown again.
        for slot in (0..CLIENTS).step_by(3) {
            conns.remove(conns.key_at(slot).unwrap());
        }
        let (again, _) = look(&conns, 2000);
        let left: Vec<u32> = shown.into_iter().filter(|slot| slot % 3 != 0).collect();
        assert_eq!((again.len(), &again[..left.len()]), (2000, &left[..]));

        // Only a few are left in what was a large table, and all of them are found.
        for slot in 0..CLIENTS - 50 {
            if let Some(key) = conns.key_at(slot) {
                conns.remove(key);
            }
        }
        let (mut few, turns) = look(&conns, 2000);
        few.sort_unstable();
        assert_eq!(few, (CLIENTS - 50..CLIENTS).filter(|slot| slot % 3 != 0).collect::<Vec<u32>>());
        assert_eq!(turns, CLIENTS.next_power_of_two() / LOOK_SLOTS_PER_TURN);
        assert_eq!(look(&conns, 0), (Vec::new(), 1));
    }

    fn slots(count: u32) -> Vec<u32> {
        Order::new(count).flatten().collect()
    }

    #[test]
    fn every_slot_is_looked_at_once() {
        for count in [0, 1, 2, 3, 7, 8, 9, 1000] {
            let mut order = slots(count);
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<u32>>());
        }
        assert!(Order::new(4_000_000).count() == LOOK_SLOTS_MAX as usize, "and no more than the bound");
    }

    #[test]
    fn every_beginning_is_spread_evenly_and_stays_while_the_table_grows_to_the_next_power_of_two() {
        for count in [1000u32, 65_000] {
            let order = slots(count);
            for shown in [10, 100, 500] {
                let mut sample = order[..shown].to_vec();
                sample.sort_unstable();
                let widest = sample.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
                assert!(widest <= 4 * count / shown as u32, "{shown} of {count}: a gap of {widest}");
            }
        }
        let (small, large) = (slots(40_000), slots(65_536));
        let kept: Vec<u32> = large.into_iter().filter(|slot| *slot < 40_000).collect();
        assert_eq!(small, kept);
    }
}
