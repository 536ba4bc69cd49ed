//! A timing wheel: one deadline per connection, set and cleared in constant time, twelve bytes of links each.
//!
//! Deadlines fire at the first tick after them, up to `TICK` late, never early. One further away than the wheel reaches fires at
//! the wheel's end; its owner looks at its own clock and sets it again.
use crate::ids::Time;

/// Length of a tick. Protocol timeouts are seconds; a tenth is exact enough.
pub const TICK_NS: u64 = 100_000_000;
const BUCKETS: usize = 256;
const NONE: u32 = u32::MAX;
const IDLE: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
    bucket: u16,
}

/// What one connection's deadline takes.
pub const LINK_BYTES: usize = size_of::<Link>();
const _: () = assert!(LINK_BYTES == 12);

pub struct Wheel {
    links: Vec<Link>,
    heads: [u32; BUCKETS],
    /// One bit a bucket: is anything in it?
    occupied: [u64; BUCKETS / 64],
    /// Every tick up to this one has been fired.
    tick: u64,
}

impl Wheel {
    pub fn new(capacity: u32, now: Time) -> Wheel {
        Wheel {
            links: Vec::with_capacity(capacity as usize),
            heads: [NONE; BUCKETS],
            occupied: [0; BUCKETS / 64],
            tick: now.0 / TICK_NS,
        }
    }

    /// Sets the deadline of a slot, replacing the one it had.
    pub fn set(&mut self, slot: u32, at: Time) {
        self.clear(slot);
        if slot as usize >= self.links.len() {
            self.links.resize(slot as usize + 1, Link { prev: NONE, next: NONE, bucket: IDLE });
        }
        // Rounded up, so that it never fires early; and at least one tick ahead, because this one has been fired.
        let tick = at.0.div_ceil(TICK_NS).clamp(self.tick + 1, self.tick + BUCKETS as u64 - 1);
        let bucket = tick as usize % BUCKETS;
        let head = self.heads[bucket];
        self.links[slot as usize] = Link { prev: NONE, next: head, bucket: bucket as u16 };
        if head != NONE {
            self.links[head as usize].prev = slot;
        }
        self.heads[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
    }

    /// Sets the deadline of a slot, unless it has one that comes earlier: then its owner looks again at that.
    pub fn set_no_later(&mut self, slot: u32, at: Time) {
        let present = self.links.get(slot as usize).filter(|link| link.bucket != IDLE).map(|link| {
            let ahead = (u64::from(link.bucket) + BUCKETS as u64 - self.tick % BUCKETS as u64) % BUCKETS as u64;
            self.tick + ahead
        });
        if present.is_none_or(|tick| at.0.div_ceil(TICK_NS) < tick) {
            self.set(slot, at);
        }
    }

    pub fn clear(&mut self, slot: u32) {
        let Some(&Link { prev, next, bucket }) = self.links.get(slot as usize) else { return };
        if bucket == IDLE {
            return;
        }
        if prev == NONE {
            self.heads[bucket as usize] = next;
            if next == NONE {
                self.occupied[bucket as usize / 64] &= !(1 << (bucket % 64));
            }
        } else {
            self.links[prev as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        self.links[slot as usize].bucket = IDLE;
    }

    /// Takes one slot whose deadline has passed. Call until None.
    pub fn expired(&mut self, now: Time) -> Option<u32> {
        let target = now.0 / TICK_NS;
        while self.tick < target {
            let bucket = (self.tick + 1) as usize % BUCKETS;
            let slot = self.heads[bucket];
            if slot != NONE {
                self.clear(slot);
                return Some(slot);
            }
            // Jump over empty buckets, however long nobody looked.
            self.tick = match self.next_tick() {
                Some(next) => (next - 1).min(target),
                None => target,
            };
        }
        None
    }

    /// When to look again; `Time::NEVER` if nothing is set.
    pub fn next(&self) -> Time {
        self.next_tick().map_or(Time::NEVER, |tick| Time(tick * TICK_NS))
    }

    fn next_tick(&self) -> Option<u64> {
        // The 255 buckets ahead, a word of the bitmap at a time.
        let mut ahead = 1;
        while ahead < BUCKETS as u64 {
            let bucket = (self.tick + ahead) as usize % BUCKETS;
            let word = self.occupied[bucket / 64] >> (bucket % 64);
            if word != 0 {
                let tick = self.tick + ahead + u64::from(word.trailing_zeros());
                // The word may reach past the wheel's end, into the tick that has been fired (and is empty).
                return (tick < self.tick + BUCKETS as u64).then_some(tick);
            }
            ahead += 64 - bucket as u64 % 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn fires_each_deadline_once_in_time(ops in proptest::collection::vec((0u32..20, 0u64..60_000, 0u8..5), 1..300)) {
            let mut now = Time::from_millis(1_000_000);
            let mut wheel = Wheel::new(20, now);
            let mut model: HashMap<u32, Time> = HashMap::new();
            let reach = |now: Time| (now.0 / TICK_NS + BUCKETS as u64 - 1) * TICK_NS;
            for (slot, ms, kind) in ops {
                match kind {
                    0 => { wheel.clear(slot); model.remove(&slot); }
                    1 | 2 => {
                        let at = Time(now.0 + ms * 1_000_000);
                        wheel.set(slot, at);
                        model.insert(slot, Time(at.0.min(reach(now))));
                    }
                    3 => {
                        let at = Time(now.0 + ms * 1_000_000);
                        wheel.set_no_later(slot, at);
                        let at = Time(at.0.min(reach(now)));
                        model.entry(slot).and_modify(|present| *present = at.min(*present)).or_insert(at);
                    }
                    _ => {
                        let before = wheel.next();
                        now = Time(now.0 + ms * 1_000_000);
                        let mut fired = false;
                        while let Some(slot) = wheel.expired(now) {
                            fired = true;
                            let at = model.remove(&slot);
                            prop_assert!(at.is_some(), "fired what was not set");
                            prop_assert!(at.unwrap() <= now, "fired early");
                        }
                        prop_assert_eq!(fired, before <= now);
                        for at in model.values() {
                            prop_assert!(at.0 + TICK_NS > now.0, "a deadline was passed over");
                        }
                    }
                }
                if !model.is_empty() {
                    prop_assert!(wheel.next() < Time::NEVER);
                }
            }
        }
    }

    #[test]
    fn a_clock_that_stood_still_for_days_costs_nothing() {
        let mut wheel = Wheel::new(1, Time(0));
        assert_eq!(wheel.next(), Time::NEVER);
        assert_eq!(wheel.expired(Time(u64::MAX / 2)), None);
        wheel.set(0, Time(u64::MAX / 2 + 1));
        assert_eq!(wheel.expired(Time(u64::MAX / 2 + 2 * TICK_NS)), Some(0));
    }
}
