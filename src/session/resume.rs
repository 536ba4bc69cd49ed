//! Stateful reconnect (reference 14): what survives a client's socket. Messages of types 1 to 5 are counted in each direction, from
//! 1 on; each side acknowledges what it has, keeps what is not acknowledged, and after a new socket says with Sequence where it goes on.
use crate::ids::Time;
use crate::limits::{ACK_AFTER_BYTES, ACK_AFTER_MS};
use crate::mem::frames::{FramePool, FrameRef, SendQueue};
use core::time::Duration;
use std::collections::VecDeque;

/// What has arrived.
#[derive(Debug)]
pub struct Inbound {
    /// The highest message taken.
    taken: u64,
    /// The number of the next message that arrives; lower than `taken` while a replay overlaps.
    next: u64,
    /// Bytes taken since the last Ack.
    unacknowledged: usize,
    ack_due: Time,
    /// On a new socket, and its Sequence has not come yet.
    is_waiting: bool,
}

/// The peer's Sequence leaves messages out: nothing can be made whole any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap;

impl Default for Inbound {
    fn default() -> Self {
        Inbound { taken: 0, next: 1, unacknowledged: 0, ack_due: Time::NEVER, is_waiting: false }
    }
}

impl Inbound {
    /// A counted message of `bytes` has arrived. False: it is to be dropped, because it was taken already.
    pub fn counts(&mut self, now: Time, bytes: usize) -> bool {
        if self.is_waiting {
            return false;
        }
        let number = self.next;
        self.next += 1;
        if number <= self.taken {
            return false;
        }
        self.taken = number;
        self.unacknowledged += bytes;
        if self.unacknowledged >= ACK_AFTER_BYTES {
            // The peer stops sending when its own buffer is full: it should not wait for our timer.
            self.ack_due = now;
        } else if self.ack_due == Time::NEVER {
            self.ack_due = now.after(Duration::from_millis(ACK_AFTER_MS));
        }
        true
    }

    /// The client has a new socket: what arrives on it means nothing until its Sequence.
    pub fn resumed(&mut self) {
        self.is_waiting = true;
    }

    /// The next message that arrives has this number.
    pub fn on_sequence(&mut self, now: Time, number: u64) -> Result<(), Gap> {
        if number > self.taken + 1 {
            return Err(Gap);
        }
        self.next = number;
        self.is_waiting = false;
        if number <= self.taken {
            // It is about to send what we have: our Ack was lost with the old socket. Its buffer may be full, and then it sends
            // nothing new that would bring about another Ack.
            self.ack_due = now;
        }
        Ok(())
    }

    /// When an Ack is to be sent; never if everything is acknowledged.
    pub fn ack_due(&self) -> Time {
        self.ack_due
    }

    /// The number to acknowledge; takes it for sent.
    pub fn acknowledge(&mut self) -> u64 {
        self.ack_due = Time::NEVER;
        self.unacknowledged = 0;
        self.taken
    }
}

/// What was sent and is not acknowledged: whole frames, one message each, ready to be sent again.
#[derive(Debug)]
pub struct Outbound {
    kept: VecDeque<FrameRef>,
    /// What they cost, each with what a frame takes beside its bytes.
    kept_bytes: usize,
    /// The number of the oldest frame kept, or of the next one if none is.
    first: u64,
    /// The highest number the peer has acknowledged.
    acknowledged: u64,
}

impl Default for Outbound {
    fn default() -> Self {
        Outbound { kept: VecDeque::new(), kept_bytes: 0, first: 1, acknowledged: 0 }
    }
}

impl Outbound {
    /// Keeps a frame that holds exactly one counted message. Past `bytes_max` the oldest are forgotten, which ends the chance to resume
    /// until the peer has acknowledged those, too; returns how many were.
    pub fn keep(&mut self, frame: &FrameRef, frames: &mut FramePool, bytes_max: usize) -> u32 {
        self.kept_bytes += frames.cost_of(frame);
        frames.tighten(frame);
        self.kept.push_back(frames.another(frame));
        let mut forgotten = 0;
        while self.kept_bytes > bytes_max {
            self.forget(frames);
            forgotten += 1;
        }
        forgotten
    }

    pub fn on_ack(&mut self, number: u64, frames: &mut FramePool) {
        let sent = self.first + self.kept.len() as u64 - 1;
        self.acknowledged = self.acknowledged.max(number.min(sent));
        while self.first <= self.acknowledged && !self.kept.is_empty() {
            self.forget(frames);
        }
    }

    fn forget(&mut self, frames: &mut FramePool) {
        if let Some(frame) = self.kept.pop_front() {
            self.kept_bytes -= frames.cost_of(&frame);
            frames.release(frame);
            self.first += 1;
        }
    }

    /// Is every message the peer may lack still here?
    pub fn is_whole(&self) -> bool {
        self.first <= self.acknowledged + 1
    }

    /// The number of the first message that `replay` sends, or of the next one: what our Sequence says.
    pub fn sequence(&self) -> u64 {
        self.first
    }

    /// Queues everything kept once more.
    pub fn replay(&self, frames: &mut FramePool, queue: &mut SendQueue) {
        for frame in &self.kept {
            frames.share(frame, queue);
        }
    }

    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    pub fn release(&mut self, frames: &mut FramePool) {
        for frame in self.kept.drain(..) {
            frames.release(frame);
        }
        self.kept_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::frames::FRAME_BYTES;
    use proptest::prelude::*;

    #[test]
    fn a_message_counts_once_and_a_gap_is_noticed() {
        let mut inbound = Inbound::default();
        assert!(inbound.counts(Time(0), 10) && inbound.counts(Time(0), 10));
        inbound.resumed();
        assert!(!inbound.counts(Time(0), 10), "before the Sequence");
        assert_eq!(inbound.on_sequence(Time(0), 4), Err(Gap));
        assert_eq!(inbound.on_sequence(Time(0), 2), Ok(()));
        assert!(!inbound.counts(Time(0), 10), "2 was taken before");
        assert!(inbound.counts(Time(0), 10));
        assert_eq!(inbound.acknowledge(), 3);
        assert_eq!(inbound.ack_due(), Time::NEVER);
    }

    #[test]
    fn acks_are_due_a_second_after_the_first_message_or_at_once_after_many_bytes() {
        let mut inbound = Inbound::default();
        assert!(inbound.counts(Time::from_millis(5000), 10) && inbound.counts(Time::from_millis(5900), 10));
        assert_eq!(inbound.ack_due(), Time::from_millis(6000));
        assert!(inbound.counts(Time::from_millis(5950), ACK_AFTER_BYTES));
        assert_eq!(inbound.ack_due(), Time::from_millis(5950));
    }

    #[test]
    fn an_ack_that_was_lost_is_said_again() {
        let mut inbound = Inbound::default();
        assert!(inbound.counts(Time(0), 10) && inbound.counts(Time(0), 10));
        assert_eq!(inbound.acknowledge(), 2);
        // The peer knows of none of it, has no room for a third message, and waits.
        inbound.resumed();
        assert_eq!(inbound.on_sequence(Time(7), 1), Ok(()));
        assert_eq!((inbound.ack_due(), inbound.acknowledge()), (Time(7), 2));
        // It knows: there is nothing to say.
        inbound.resumed();
        assert_eq!(inbound.on_sequence(Time(8), 3), Ok(()));
        assert_eq!(inbound.ack_due(), Time::NEVER);
    }

    #[test]
    fn what_is_forgotten_cannot_be_replayed_until_it_is_acknowledged() {
        let (mut frames, mut outbound) = (FramePool::new(), Outbound::default());
        for _ in 0..3 {
            let frame = frames.create();
            frames.bytes_mut(&frame).extend_from_slice(b"0123456789");
            outbound.keep(&frame, &mut frames, 2 * (10 + FRAME_BYTES));
            frames.release(frame);
        }
        assert!(!outbound.is_whole());
        assert_eq!((outbound.sequence(), outbound.kept_bytes()), (2, 2 * (10 + FRAME_BYTES)));
        outbound.on_ack(1, &mut frames);
        assert!(outbound.is_whole());
        outbound.on_ack(99, &mut frames);
        assert_eq!((outbound.sequence(), outbound.kept_bytes()), (4, 0));
        assert_eq!(frames.live(), 0);
    }

    #[test]
    fn messages_of_a_few_bytes_are_kept_by_what_they_take_in_memory() {
        const GRANTED: usize = 100_000;
        let (mut frames, mut outbound) = (FramePool::new(), Outbound::default());
        for _ in 0..20_000 {
            let frame = frames.create();
            frames.bytes_mut(&frame).extend_from_slice(b"a dozen byte");
            outbound.keep(&frame, &mut frames, GRANTED);
            frames.release(frame);
        }
        assert_eq!(frames.live(), GRANTED / (12 + FRAME_BYTES));
        assert!(!outbound.is_whole() && outbound.kept_bytes() <= GRANTED);
        outbound.on_ack(20_000, &mut frames);
        assert!(outbound.is_whole() && outbound.kept_bytes() == 0 && frames.live() == 0);
    }

    proptest! {
        /// Two ends over sockets that lose everything in flight: each message is taken once, in order.
        #[test]
        fn nothing_is_lost_or_doubled(steps in proptest::collection::vec((0u8..4, 1usize..5), 1..80)) {
            let (mut frames, mut outbound, mut inbound) = (FramePool::new(), Outbound::default(), Inbound::default());
            let (mut sent, mut taken) = (0u8, Vec::new());
            // Messages on their way, as their first byte; a Sequence as None.
            let mut flight: VecDeque<Option<u8>> = VecDeque::new();
            let mut sequence = 0;
            for (kind, count) in steps.into_iter().chain([(2, 1), (1, 400)]) {
                match kind {
                    0 => for _ in 0..count {
                        sent = sent.wrapping_add(1);
                        let frame = frames.create();
                        frames.bytes_mut(&frame).push(sent);
                        outbound.keep(&frame, &mut frames, usize::MAX);
                        frames.release(frame);
                        flight.push_back(Some(sent));
                    },
                    1 => for _ in 0..count {
                        match flight.pop_front() {
                            Some(Some(byte)) => taken.extend(inbound.counts(Time(0), 1).then_some(byte)),
                            Some(None) => inbound.on_sequence(Time(0), sequence).unwrap(),
                            None => {}
                        }
                    },
                    2 => {
                        prop_assert!(outbound.is_whole());
                        flight.clear();
                        inbound.resumed();
                        sequence = outbound.sequence();
                        flight.push_back(None);
                        let mut queue = SendQueue::default();
                        outbound.replay(&mut frames, &mut queue);
                        frames.unsent(&queue, |part| { flight.extend(part.iter().map(|byte| Some(*byte))); true });
                        frames.clear(&mut queue);
                    }
                    _ => outbound.on_ack(inbound.acknowledge(), &mut frames),
                }
            }
            let all: Vec<u8> = (1..=taken.len()).map(|n| n as u8).collect();
            prop_assert_eq!(taken.last().copied().unwrap_or_default(), sent);
            prop_assert_eq!(taken, all);
            outbound.release(&mut frames);
            prop_assert_eq!(frames.live(), 0);
        }
    }
}
