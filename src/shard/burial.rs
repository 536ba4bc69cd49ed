//! Clients of a process that is dead: their app servers hear of their end on lanes of this one (contract 6.4), behind everything that
//! its own clients say.
use super::Shard;
use super::lane::{Gate, Lane};
use crate::ids::{LanePlace, OriginId, Time};
use crate::limits::{BURIALS_AT_ONCE, BURIALS_PAUSE_MS};
use crate::metrics::Counter;
use crate::sys::Io;
use core::time::Duration;
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// What is to be told at one place.
struct Burial {
    place: LanePlace,
    ids: Vec<OriginId>,
    /// How many of them have been told.
    said: usize,
    /// Lanes that owe an answer, and to what.
    told: Vec<Told>,
    answer: oneshot::Sender<()>,
}

/// The last that was told on one connection of a lane.
struct Told {
    lane: usize,
    incarnation: u32,
    number: u64,
}

impl Burial {
    /// What was on a lane that is lost may never have been heard: all of the page is told again, which is harmless (contract 2.5).
    fn look(&mut self, lanes: &[Lane]) {
        let is_lost = |told: &Told| !lanes[told.lane].is_up() || lanes[told.lane].incarnation() != told.incarnation;
        if self.told.iter().any(is_lost) {
            self.said = 0;
            self.told.clear();
        }
        self.told.retain(|told| !lanes[told.lane].flight.is_settled(told.number));
    }
}

/// Everything of that kind, first come, first served. The control plane has one of them under way for each place, with
/// `JOURNAL_PAGE_IDS` at most.
#[derive(Default)]
pub(super) struct Burials {
    queue: VecDeque<Burial>,
    /// Nothing before.
    next: Time,
}

impl Burials {
    pub(super) fn next_wake(&self) -> Time {
        if self.queue.is_empty() { Time::NEVER } else { self.next }
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn on_bury(&mut self, place: LanePlace, ids: Vec<OriginId>, answer: oneshot::Sender<()>) {
        self.burials.queue.push_back(Burial { place, ids, said: 0, told: Vec::new(), answer });
    }

    /// Tells some of them, on lanes that have nothing else to do. Who is not told before the shard ends is told by the next process.
    pub(super) fn bury(&mut self, now: Time) {
        if self.stopping.is_some() {
            // Or there would be something to do at once, for ever.
            self.burials.queue.clear();
        }
        if self.burials.queue.is_empty() || now < self.burials.next {
            return;
        }
        self.burials.next = now.after(Duration::from_millis(BURIALS_PAUSE_MS));
        let Shard { burials, lanes, frames, dirty, random, clock, metrics, settings, relieved, .. } = self;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        for burial in &mut burials.queue {
            let is_acknowledged = gate.settings.upstreams.of(burial.place).window.is_some();
            burial.look(lanes);
            for (index, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| lane.place == burial.place) {
                for _ in 0..BURIALS_AT_ONCE {
                    if !lane.has_nothing_to_tell(gate.settings) {
                        break;
                    }
                    let Some(id) = burial.ids.get(burial.said) else { break };
                    let number = lane.flight.next();
                    lane.bury(now, *id, &mut gate);
                    gate.metrics.add(Counter::Buried, 1);
                    burial.said += 1;
                    if is_acknowledged {
                        burial.told.retain(|told| told.lane != index);
                        burial.told.push(Told { lane: index, incarnation: lane.incarnation(), number });
                    }
                }
            }
        }
        let is_done = |burial: &Burial| burial.said == burial.ids.len() && burial.told.is_empty();
        while let Some(index) = burials.queue.iter().position(is_done) {
            let done = burials.queue.remove(index);
            // Nobody waits for it any more where the control plane stops.
            let _ = done.map(|burial| burial.answer.send(()));
        }
    }
}
