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
use std::sync::Arc;
use std::vec::IntoIter;
use tokio::sync::oneshot;

/// What is to be told at one place.
struct Burial {
    place: LanePlace,
    ids: IntoIter<OriginId>,
    _pledge: Arc<Pledge>,
}

/// That everybody of one order is told of: whoever still has a part of it to do holds it, and the last who lets go answers. A
/// shard that ends lets go of what it has not done, too; the control plane, which ended it, knows.
pub(super) struct Pledge(Option<oneshot::Sender<()>>);

impl Drop for Pledge {
    fn drop(&mut self) {
        // Nobody waits for it any more where the control plane has ended.
        let _ = self.0.take().map(|answer| answer.send(()));
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
        let pledge = Arc::new(Pledge(Some(answer)));
        self.burials.queue.push_back(Burial { place, ids: ids.into_iter(), _pledge: pledge });
    }

    /// Tells some of them, on lanes that have nothing else to do. Who is not told before the shard ends is told by the next process.
    pub(super) fn bury(&mut self, now: Time) {
        if self.burials.queue.is_empty() || now < self.burials.next || self.stopping.is_some() {
            return;
        }
        self.burials.next = now.after(Duration::from_millis(BURIALS_PAUSE_MS));
        let Shard { burials, lanes, frames, dirty, random, clock, metrics, settings, .. } = self;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics };
        for burial in &mut burials.queue {
            for lane in lanes.iter_mut().filter(|lane| lane.place == burial.place) {
                for _ in 0..BURIALS_AT_ONCE {
                    if !lane.is_free() {
                        break;
                    }
                    let Some(id) = burial.ids.next() else { break };
                    lane.bury(now, id, &mut gate);
                    gate.metrics.add(Counter::Buried, 1);
                }
            }
        }
        burials.queue.retain(|burial| !burial.ids.as_slice().is_empty());
    }
}
