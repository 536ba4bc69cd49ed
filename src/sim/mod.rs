//! A world in which a shard is tried out: the real loop of `crate::shard` on a simulated kernel, network, clock, clients and app servers.
//! Everything that happens follows from one number, the seed, so that what went wrong once goes wrong again.
//!
//! ```text
//! scenario   what a seed decides        ledger      the rules, and what was sent and heard      chance   what is left to chance
//! network    time, sockets, a kernel    world       `sys::Io` on top of it                      faults   what goes wrong, counted
//! client     users and their clients    app_server  what is behind lanes (contract 8)           wire     how both of them speak
//! ```
//!
//! A run has five parts: things go wrong; all becomes calm, and is judged; everybody is asked once more and has to answer; everybody
//! leaves, and nothing may be left; the shards stop. The rules are in `ledger`.
mod app_server;
mod chance;
mod client;
mod faults;
mod ledger;
mod network;
mod scenario;
mod simulation;
mod trace;
mod wire;
mod world;

pub use faults::{Fault, Faults};

use crate::ids::LaneKey;
use network::{Side, SocketId};
use simulation::Simulation;

/// What happens at a moment.
enum Event {
    Arrives {
        socket: SocketId,
        to: Side,
    },
    ClientActs {
        client: usize,
    },
    ClientPing {
        client: usize,
    },
    ClientReads {
        client: usize,
        socket: SocketId,
    },
    UserReturns {
        user: usize,
    },
    LaneWorks {
        lane: usize,
    },
    LanePing {
        lane: usize,
    },
    Dial {
        lane: LaneKey,
    },
    ServerStarts {
        server: usize,
    },
    ControlListens,
    /// Something goes wrong.
    Fault,
}

/// A rule that is broken on purpose, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Origin ids without their serial number: who takes a place takes the name of who had it.
    ReuseOriginIds,
    /// An app server does not hear of some clients' ends.
    SkipDisconnect,
    /// Two updates of a client change places.
    Reorder,
    LoseMessage,
    RepeatMessage,
    /// An answer goes to another client.
    Misdeliver,
    /// Some receive buffers are not given back.
    KeepBuffer,
    /// Some sockets become readable and nobody says so.
    MissWake,
}

impl Sabotage {
    pub const ALL: [Sabotage; 8] = [
        Sabotage::ReuseOriginIds,
        Sabotage::SkipDisconnect,
        Sabotage::Reorder,
        Sabotage::LoseMessage,
        Sabotage::RepeatMessage,
        Sabotage::Misdeliver,
        Sabotage::KeepBuffer,
        Sabotage::MissWake,
    ];
}

/// What a run saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of everything that happened.
    pub checksum: u64,
    pub steps: u64,
    pub turns: u64,
    /// Connections that became clients.
    pub clients: u64,
    /// Messages of clients, and for them.
    pub sent: u64,
    pub delivered: u64,
    /// Those that the node refused, and those that may have been lost with a lane.
    pub refused: u64,
    pub excused: u64,
    pub lanes: u64,
    pub faults: Faults,
}

impl Report {
    pub fn add(&mut self, other: &Report) {
        self.checksum ^= other.checksum;
        self.steps += other.steps;
        self.turns += other.turns;
        self.clients += other.clients;
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.refused += other.refused;
        self.excused += other.excused;
        self.lanes += other.lanes;
        self.faults.add(&other.faults);
    }
}

impl core::fmt::Display for Report {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Report { turns, clients, sent, delivered, refused, excused, lanes, .. } = self;
        writeln!(
            f,
            "{clients} clients sent {sent} messages and were told {delivered}, over {lanes} lanes, in {turns} turns;"
        )?;
        write!(f, "{refused} messages were refused, {excused} went down with a lane")?;
        for fault in Fault::ALL {
            write!(f, "\n{:>9} {}", self.faults.of(*fault), fault.words())?;
        }
        Ok(())
    }
}

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    pub rule: String,
    /// Events before it, and the last of them: what, and numbers of sockets, clients or lanes with it.
    pub step: u64,
    pub last: Vec<String>,
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(f, "seed {} at step {}: {}", self.seed, self.step, self.rule)?;
        self.last.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// How a run is watched and what is done to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    pub sabotage: Option<Sabotage>,
    /// Who does what and what goes wrong, in place of chance: three bytes a step. Chance remains for everything else.
    pub script: Option<&'a [u8]>,
    /// Every event is printed.
    pub is_told: bool,
}

/// Runs a world from its beginning to its end.
pub fn run(seed: u64) -> Result<Report, Failure> {
    run_with(seed, Options::default())
}

pub fn run_with(seed: u64, options: Options<'_>) -> Result<Report, Failure> {
    let mut simulation = Simulation::new(seed, options);
    match simulation.live(options.script) {
        Ok(()) => Ok(simulation.report()),
        Err(rule) => Err(simulation.failure(seed, rule)),
    }
}
