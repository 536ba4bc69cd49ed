//! Clients of a process that is dead: their app servers hear of their end on lanes of this one (contract 6.4), behind everything that
//! its own clients say.
use super::Shard;
use super::lane::Gate;
use crate::ids::{LanePlace, OriginId, Time};
use crate::limits::{BURIALS_AT_ONCE, BURIALS_PAUSE_MS};
use crate::metrics::Counter;
use crate::sys::Io;
use core::time::Duration;
use std::collections::VecDeque;
use std::vec::IntoIter;
use tokio::sync::oneshot;

/// What is to be told at one place.
struct Burial {
    place: LanePlace,
    ids: IntoIter<OriginId>,
    /// Lanes that were used, and the number of the last invocation on each.
    told: Vec<(usize, u64)>,
    answer: oneshot::Sender<()>,
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
        self.burials.queue.push_back(Burial { place, ids: ids.into_iter(), told: Vec::new(), answer });
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
            for (index, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| lane.place == burial.place) {
                for _ in 0..BURIALS_AT_ONCE {
                    if !lane.has_nothing_to_tell(gate.settings) {
                        break;
                    }
                    let Some(id) = burial.ids.next() else { break };
                    let number = lane.flight.next();
                    lane.bury(now, id, &mut gate);
                    gate.metrics.add(Counter::Buried, 1);
                    burial.told.retain(|(other, _)| *other != index);
                    burial.told.push((index, number));
                }
            }
        }
        let is_done = |burial: &Burial| {
            let mut told = burial.told.iter();
            burial.ids.as_slice().is_empty() && told.all(|(lane, number)| lanes[*lane].flight.is_settled(*number))
        };
        while let Some(index) = burials.queue.iter().position(is_done) {
            let done = burials.queue.remove(index);
            // Nobody waits for it any more where the control plane stops.
            let _ = done.map(|burial| burial.answer.send(()));
        }
    }
}
