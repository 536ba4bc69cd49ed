//! View models whose request was what an app server had before it when its lane was lost. One that loses lane after lane is not requested
//! again for its client: everybody on those lanes would go on moving for its sake, for as long as the client stays.
use crate::ids::{SlotKey, Time};
use crate::limits::{SUSPECT_MS, SUSPECT_TIMES, SUSPECTS_MAX};
use core::time::Duration;
use std::collections::VecDeque;

struct Suspect {
    client: SlotKey,
    upstream: usize,
    /// Raw JSON string.
    vm_id: Vec<u8>,
    times: u32,
    until: Time,
}

/// Those of a shard, the latest last.
#[derive(Default)]
pub(super) struct Suspects(VecDeque<Suspect>);

impl Suspects {
    /// One more lane is lost that way. True: that is enough.
    pub(super) fn again(&mut self, now: Time, client: SlotKey, upstream: usize, vm_id: &[u8]) -> bool {
        self.0.retain(|suspect| now < suspect.until);
        let is_it =
            |suspect: &Suspect| (suspect.client, suspect.upstream) == (client, upstream) && suspect.vm_id == vm_id;
        let known = self.0.iter().position(is_it).and_then(|index| self.0.remove(index));
        let times = known.map_or(0, |known| known.times) + 1;
        if times >= SUSPECT_TIMES {
            return true;
        }
        if self.0.len() >= SUSPECTS_MAX {
            self.0.pop_front();
        }
        let until = now.after(Duration::from_millis(SUSPECT_MS));
        self.0.push_back(Suspect { client, upstream, vm_id: vm_id.to_vec(), times, until });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_some_times_in_a_row_of_one_view_model_of_one_client() {
        let (mut suspects, now) = (Suspects::default(), Time::from_millis(7));
        let client = |slot| SlotKey { slot, generation: 1 };
        for _ in 1..SUSPECT_TIMES {
            for (slot, upstream, vm_id) in [(1, 0, "\"A\""), (2, 0, "\"A\""), (1, 1, "\"A\""), (1, 0, "\"B\"")] {
                assert!(!suspects.again(now, client(slot), upstream, vm_id.as_bytes()));
            }
        }
        assert!(suspects.again(now, client(1), 0, b"\"A\""));
        assert!(!suspects.again(now, client(1), 0, b"\"A\""), "it begins anew");
        // Long ago, or behind many others, does not count.
        let later = now.after(Duration::from_millis(SUSPECT_MS));
        for _ in 0..SUSPECT_TIMES {
            assert!(!suspects.again(later, client(2), 0, b"\"A\""));
            for slot in 0..SUSPECTS_MAX as u32 {
                suspects.again(later, client(100 + slot), 0, b"\"A\"");
            }
        }
    }
}
