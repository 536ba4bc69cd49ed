//! Numbered messages as one client sees them: which are missing, late or repeated.
use crate::limits::LOAD_GAPS_MAX;

/// One sender's numbers, or one server's. Eight bytes: a chat room has as many for each member as it has senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The first number that is owed; what came before is nobody's business.
    first: u32,
    next: u32,
}

/// What one arrival means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    InOrder,
    /// So many in front of it have not come, or not yet.
    Ahead(u32),
    /// It fills a gap: not missed after all, but out of order.
    Late,
    Repeated,
    /// Older than what is owed.
    Unowed,
}

/// Numbers that one client has been skipped, by stream. Those beyond `LOAD_GAPS_MAX` ranges are not remembered: they stay missed, and
/// would count as repeated when they came late.
#[derive(Debug, Default)]
pub struct Gaps(Vec<Gap>);

#[derive(Debug)]
struct Gap {
    stream: u32,
    from: u32,
    /// Not in it.
    to: u32,
}

impl Sequence {
    pub fn starting_with(first: u32) -> Sequence {
        Sequence { first, next: first }
    }

    /// The number that should come next.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// `stream` tells the streams of one client's `Gaps` apart.
    pub fn arrives(&mut self, number: u32, stream: u32, gaps: &mut Gaps) -> Arrival {
        if number < self.first {
            return Arrival::Unowed;
        }
        if number < self.next {
            return if gaps.fill(stream, number) { Arrival::Late } else { Arrival::Repeated };
        }
        // A first number of 0 has none in front of it.
        let skipped = number.checked_sub(1).map_or(0, |last| self.ends_with(last, stream, gaps));
        self.next = number.saturating_add(1);
        if skipped == 0 { Arrival::InOrder } else { Arrival::Ahead(skipped) }
    }

    /// Everything up to `last` was sent. Returns how many of these are missing that were not known to be.
    pub fn ends_with(&mut self, last: u32, stream: u32, gaps: &mut Gaps) -> u32 {
        let end = last.saturating_add(1);
        let missing = end.saturating_sub(self.next);
        if missing > 0 {
            gaps.open(Gap { stream, from: self.next, to: end });
            self.next = end;
        }
        missing
    }
}

impl Gaps {
    fn open(&mut self, gap: Gap) {
        if self.0.len() < LOAD_GAPS_MAX {
            self.0.push(gap);
        }
    }

    fn fill(&mut self, stream: u32, number: u32) -> bool {
        let holds = |gap: &Gap| gap.stream == stream && (gap.from..gap.to).contains(&number);
        let Some(index) = self.0.iter().position(holds) else { return false };
        let gap = &mut self.0[index];
        let rest = Gap { stream, from: number + 1, to: gap.to };
        gap.to = number;
        if gap.from == gap.to {
            self.0.swap_remove(index);
        }
        if rest.from < rest.to {
            // A late message splits a gap in two: one more at most.
            self.0.push(rest);
        }
        true
    }

    /// The ranges as text, `[4, 7-9]`; `None` without any.
    pub fn shown(&self) -> Option<String> {
        let range = |gap: &Gap| match gap.to - gap.from {
            1 => gap.from.to_string(),
            _ => format!("{}-{}", gap.from, gap.to - 1),
        };
        (!self.0.is_empty()).then(|| format!("[{}]", self.0.iter().map(range).collect::<Vec<_>>().join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn gaps_late_ones_and_repetitions_are_told_apart() {
        let (mut sequence, mut gaps) = (Sequence::starting_with(3), Gaps::default());
        let mut arrives = |number| sequence.arrives(number, 0, &mut gaps);
        assert_eq!(arrives(2), Arrival::Unowed);
        assert_eq!(arrives(3), Arrival::InOrder);
        assert_eq!(arrives(3), Arrival::Repeated);
        assert_eq!(arrives(8), Arrival::Ahead(4));
        assert_eq!(arrives(5), Arrival::Late);
        assert_eq!(arrives(5), Arrival::Repeated);
        assert_eq!(gaps.shown().unwrap(), "[4, 6-7]");
        assert_eq!(sequence.ends_with(10, 0, &mut gaps), 2);
        assert_eq!(sequence.ends_with(10, 0, &mut gaps), 0);
        assert_eq!(sequence.arrives(10, 1, &mut gaps), Arrival::Repeated, "another stream's gap is no excuse");
        assert_eq!(sequence.arrives(10, 0, &mut gaps), Arrival::Late);
    }

    #[test]
    fn numbers_at_the_end_of_their_range_do_no_harm() {
        let (mut sequence, mut gaps) = (Sequence::starting_with(1), Gaps::default());
        assert_eq!(sequence.arrives(u32::MAX, 0, &mut gaps), Arrival::Ahead(u32::MAX - 1));
        assert_eq!(sequence.ends_with(u32::MAX, 0, &mut gaps), 0);
        assert_eq!(sequence.arrives(0, 0, &mut gaps), Arrival::Unowed);
    }

    proptest! {
        #[test]
        fn whatever_order_they_come_in_the_counts_are_those_of_a_set(numbers in prop::collection::vec(1u32..60, 0..120)) {
            let (mut sequence, mut gaps) = (Sequence::starting_with(1), Gaps::default());
            let (mut missed, mut repeated, mut late, mut highest) = (0, 0, 0, 0);
            let mut expected_late = 0;
            let mut seen = HashSet::new();
            for &number in &numbers {
                expected_late += u32::from(number < highest && !seen.contains(&number));
                highest = highest.max(number);
                seen.insert(number);
                match sequence.arrives(number, 7, &mut gaps) {
                    Arrival::InOrder => {}
                    Arrival::Ahead(skipped) => missed += skipped,
                    Arrival::Late => { missed -= 1; late += 1 }
                    Arrival::Repeated => repeated += 1,
                    Arrival::Unowed => unreachable!("the first is owed"),
                }
            }
            missed += sequence.ends_with(60, 7, &mut gaps);
            prop_assert_eq!(missed as usize, 60 - seen.len());
            prop_assert_eq!(repeated, numbers.len() - seen.len());
            prop_assert_eq!(late, expected_late);
        }
    }
}
