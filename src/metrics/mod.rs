//! temporary: replaced at merge
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter { Accepted, X }
#[derive(Default)]
pub struct ShardMetrics { c: [u64; 64] }
