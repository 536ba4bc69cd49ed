//! What the shard shows to whoever looks at the node. A look at a large table takes several turns, so that it stalls none of them.
use super::Shard;
use super::socket::{Client, Conn, Stage};
use crate::bus::sight::{ClientDetail, ClientSight, LaneSight, PinDetail, Sight};
use crate::ids::SlotKey;
use crate::limits::{DETAIL_NAMES_MAX, LOOK_SLOTS_MAX, LOOK_SLOTS_PER_TURN, LOOKS_MAX};
use crate::metrics::Gauge;
use crate::proto::dotnetify::context;
use crate::sys::Io;
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

impl<I: Io> Shard<I> {
    pub(super) fn on_look(&mut self, clients_max: u32, answer: oneshot::Sender<Sight>) {
        if self.looks.len() < LOOKS_MAX {
            let order = Order::new(self.conns.slots());
            self.looks.push(Look { clients_max, answer, order, shown: Vec::new() });
        }
    }

    /// Goes on with the first look, for as long as a turn may take.
    pub(super) fn look(&mut self) {
        let Some(Look { clients_max, order, shown, .. }) = self.looks.first_mut() else { return };
        for slot in order.by_ref().take(LOOK_SLOTS_PER_TURN as usize).flatten() {
            if shown.len() as u32 >= *clients_max {
                break;
            }
            if let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.at_mut(slot) {
                let Client { origin, received, sent, .. } = client;
                shown.push(ClientSight { origin: *origin, received: *received, sent: *sent });
            }
        }
        if !order.is_over() && (shown.len() as u32) < *clients_max {
            return;
        }
        let Look { answer, shown, .. } = self.looks.remove(0);
        let lanes = self.lanes.iter().map(|lane| LaneSight {
            clients: lane.clients,
            waiting: lane.waiting() as u32,
            sent: lane.sent,
            received: lane.received,
        });
        // The gauge is of the last turn; whoever came in this one may be among the shown.
        let clients = (self.metrics.gauge(Gauge::Clients) as u32).max(shown.len() as u32);
        let sight = Sight { clients, shown, lanes: lanes.collect() };
        // Who does not wait for it any more needs it no more.
        let _ = answer.send(sight);
    }

    pub(super) fn on_look_at(&self, key: SlotKey, answer: oneshot::Sender<Option<Box<ClientDetail>>>) {
        let _ = answer.send(self.detail(key).map(Box::new));
    }

    fn detail(&self, key: SlotKey) -> Option<ClientDetail> {
        let Some(Conn { socket, stage: Stage::Client(client) }) = self.conns.get(key) else { return None };
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
    use super::*;

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
