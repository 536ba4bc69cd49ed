//! What can go wrong in a world, and how often it did.

macro_rules! faults {
    ($($name:ident = $words:literal),* $(,)?) => {
        /// What can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Fault { $($name),* }

        impl Fault {
            pub const ALL: &'static [Fault] = &[$(Fault::$name),*];

            /// In words, for a report.
            pub fn words(self) -> &'static str {
                [$($words),*][self as usize]
            }
        }
    };
}

faults! {
    PartialReceive = "receives of a part",
    ShortSend = "short sends",
    FullSocket = "sends to a full socket",
    Interrupted = "interrupted receives",
    NoBuffers = "receives without a free buffer",
    SpuriousWake = "wakes without a reason",
    PollEnds = "multishot polls that ended by themselves",
    Reordered = "completions in another order",
    AcceptFails = "accepts that failed",
    Stall = "stalls of a shard",
    ClockJump = "jumps of the wall clock",
    ControlFull = "control queues that were full",
    ClientReset = "connections of clients reset",
    ClientSilent = "clients gone in silence",
    ClientSlow = "clients that stop reading",
    LaneReset = "lanes reset",
    LaneClosed = "lanes closed by their app server",
    LaneSilent = "lanes cut in silence",
    LaneFrozen = "lanes that froze",
    ServerRestart = "restarts of app servers",
}

impl Fault {
    /// Those that are done to somebody; the others are the weather.
    pub(super) const BY_CHANCE: [Fault; 12] = [
        Fault::AcceptFails,
        Fault::Stall,
        Fault::ClockJump,
        Fault::ControlFull,
        Fault::ClientReset,
        Fault::ClientSilent,
        Fault::ClientSlow,
        Fault::LaneReset,
        Fault::LaneClosed,
        Fault::LaneSilent,
        Fault::LaneFrozen,
        Fault::ServerRestart,
    ];
}

/// How often each happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults([u64; Fault::ALL.len()]);

impl Faults {
    pub(super) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub fn add(&mut self, other: &Faults) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }
}
