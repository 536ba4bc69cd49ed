//! What happened, in order: a checksum of all of it, and the last of it in words.
use crate::ids::Time;
use std::collections::VecDeque;

/// Events that a failure shows.
const KEPT: usize = 50;

#[derive(Clone, Copy)]
struct Entry {
    at: Time,
    what: &'static str,
    numbers: [u64; 3],
}

#[derive(Default)]
pub(super) struct Trace {
    pub(super) steps: u64,
    checksum: u64,
    last: VecDeque<Entry>,
    /// Print each as it happens.
    pub(super) is_told: bool,
}

impl Trace {
    pub(super) fn add(&mut self, at: Time, what: &'static str, numbers: [u64; 3]) {
        self.steps += 1;
        self.mix(at.0);
        self.mix(what.len() as u64);
        numbers.iter().for_each(|number| self.mix(*number));
        let entry = Entry { at, what, numbers };
        if self.is_told {
            println!("{entry}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(entry);
    }

    /// What was said, too: eight bytes at a time, or it would be what a run takes longest for.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.mix(u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        chunks.remainder().iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn mix(&mut self, word: u64) {
        self.checksum = (self.checksum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    pub(super) fn checksum(&self) -> u64 {
        self.checksum
    }

    pub(super) fn last(&self) -> Vec<String> {
        self.last.iter().map(Entry::to_string).collect()
    }
}

impl core::fmt::Display for Entry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c] = self.numbers;
        write!(f, "{:>13.6} s  {:<28} {a} {b} {c}", self.at.0 as f64 / 1e9, self.what)
    }
}
