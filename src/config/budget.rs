//! What a configuration may cost in memory: one term per holder, so that "how much does it need" has an answer before it needs it.
use super::Config;
use core::fmt;

/// What one of each thing takes. The constants belong to the modules that hold the things; they are handed in so that this one
/// stays arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Slot of a client or HTTP connection.
    pub client_bytes: u64,
    /// What a client keeps outside its slot: prepared context, view models, groups.
    pub client_heap_bytes: u64,
    /// Kernel memory of an idle TCP socket with its poll.
    pub client_kernel_bytes: u64,
    /// Provided receive buffers of a shard.
    pub recv_buffer_bytes: u64,
    pub recv_buffers_per_shard: u64,
    /// Submission and completion queues of a shard.
    pub ring_bytes: u64,
    /// Encoded frames a shard keeps for re-use.
    pub frame_pool_bytes: u64,
    /// Timing wheel of a shard.
    pub timers_bytes: u64,
    /// Slot of a lane.
    pub lane_bytes: u64,
    pub lane_recv_buffer_bytes: u64,
    pub lane_send_buffer_bytes: u64,
    /// Queues of a shard towards the others and the control plane.
    pub bus_bytes: u64,
    /// Control plane: thread stacks, admin endpoint, dialling.
    pub control_bytes: u64,
}

impl Sizes {
    /// Estimates from `reference/io-architecture.md`, until the holders give their own.
    pub const ESTIMATED: Sizes = Sizes {
        client_bytes: 256,
        client_heap_bytes: 256,
        client_kernel_bytes: 4 * 1024,
        recv_buffer_bytes: 16 * 1024,
        recv_buffers_per_shard: 256,
        ring_bytes: 512 * 1024,
        frame_pool_bytes: 1024 * 1024,
        timers_bytes: 64 * 1024,
        lane_bytes: 1024,
        lane_recv_buffer_bytes: 64 * 1024,
        lane_send_buffer_bytes: 64 * 1024,
        bus_bytes: 64 * 1024,
        control_bytes: 4 * 1024 * 1024,
    };
}

/// When a term is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paid {
    /// At start, whoever comes.
    Start,
    /// By each idle client.
    Client,
    /// Only while peers are slow or lanes are down; the bound of the worst case.
    Worst,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub name: &'static str,
    pub paid: Paid,
    pub count: u64,
    pub bytes_each: u64,
    pub reason: &'static str,
}

impl Term {
    pub fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.bytes_each)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub terms: Vec<Term>,
}

impl Budget {
    pub fn of(config: &Config, sizes: &Sizes) -> Budget {
        let (shards, lanes) = (u64::from(config.shards), u64::from(config.lanes()));
        let clients = u64::from(config.limits.max_clients);
        let message_bytes = u64::from(config.hub.maximum_receive_message_size);
        let term = |name, paid, count, bytes_each, reason| Term { name, paid, count, bytes_each, reason };
        use Paid::{Client, Start, Worst};
        let terms = vec![
            term("control plane", Start, 1, sizes.control_bytes, "stacks, admin endpoint, dialling"),
            term("rings", Start, shards, sizes.ring_bytes, "submission and completion queues, one ring a shard"),
            term("receive buffers", Start, shards * sizes.recv_buffers_per_shard, sizes.recv_buffer_bytes, "provided buffers, shared by a shard's clients"),
            term("frame pools", Start, shards, sizes.frame_pool_bytes, "encoded frames kept for re-use"),
            term("timers", Start, shards, sizes.timers_bytes, "one wheel a shard"),
            term("bus", Start, shards, sizes.bus_bytes, "queues between shards and control plane"),
            term("lane slots", Start, lanes, sizes.lane_bytes, "one a lane"),
            term("lane receive buffers", Start, lanes, sizes.lane_recv_buffer_bytes, "one a lane"),
            term("lane send buffers", Start, lanes, sizes.lane_send_buffer_bytes, "one a lane"),
            term("client slots", Client, clients, sizes.client_bytes, "one of max_clients"),
            term("client state", Client, clients, sizes.client_heap_bytes, "prepared context, view models, groups"),
            term("client sockets (kernel)", Client, clients, sizes.client_kernel_bytes, "socket and poll; not in the process's own memory"),
            term("messages in pieces", Worst, clients, message_bytes, "maximum_receive_message_size, while a client's message is incomplete"),
            term("client send queues", Worst, clients, u64::from(config.limits.client_send_queue_bytes), "client_send_queue_bytes; then a client is disconnected"),
            term("client send buffers (kernel)", Worst, clients, u64::from(config.limits.client_send_buffer_bytes), "client_send_buffer_bytes; the kernel may double it"),
            term("messages waiting for lanes", Worst, lanes, u64::from(config.limits.upstream_queue_bytes), "upstream_queue_bytes; then clients get an error"),
        ];
        Budget { terms }
    }

    /// Bytes of the terms paid so.
    pub fn total(&self, paid: Paid) -> u64 {
        self.terms.iter().filter(|term| term.paid == paid).map(Term::bytes).fold(0, u64::saturating_add)
    }
}

/// As TOML comments, so that it can follow the configuration in one file.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Memory budget")?;
        writeln!(f, "# {:<30} {:>10} x {:>10} = {:>10}", "holder", "count", "each", "bytes")?;
        for (paid, heading, sum) in [
            (Paid::Start, "held from start", "at start"),
            (Paid::Client, "with max_clients connected and idle", "all clients idle"),
            (Paid::Worst, "at most, if every queue is full at once", "all queues full"),
        ] {
            writeln!(f, "# {heading}:")?;
            for term in self.terms.iter().filter(|term| term.paid == paid) {
                let (each, bytes) = (short(term.bytes_each), short(term.bytes()));
                writeln!(f, "#   {:<28} {:>10} x {each:>10} = {bytes:>10}  {}", term.name, term.count, term.reason)?;
            }
            writeln!(f, "#   {:<54} {:>10}", sum, short(self.total(paid)))?;
        }
        Ok(())
    }
}

/// Three or four digits and a unit.
fn short(bytes: u64) -> String {
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 10_000.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

#[cfg(test)]
mod tests {
    use super::super::{Key, Machine, RunFlags};
    use super::*;

    fn budget(flags: RunFlags) -> Budget {
        let machine = Machine { cores: 2, nofile: 1 << 22 };
        let config = Config::resolve(None, std::iter::empty(), &flags.with(Key::Url, "http://app"), &machine).unwrap();
        Budget::of(&config, &Sizes::ESTIMATED)
    }

    #[test]
    fn what_is_paid_follows_the_settings() {
        let small = budget(RunFlags::default().with(Key::MaxClients, "1000"));
        let large = budget(RunFlags::default().with(Key::MaxClients, "2000"));
        assert_eq!(small.total(Paid::Start), large.total(Paid::Start));
        assert_eq!(small.total(Paid::Client) * 2, large.total(Paid::Client));
        let per_client = Sizes::ESTIMATED.client_bytes + Sizes::ESTIMATED.client_heap_bytes + Sizes::ESTIMATED.client_kernel_bytes;
        assert_eq!(small.total(Paid::Client), 1000 * per_client);
        let more_shards = budget(RunFlags::default().with(Key::MaxClients, "1000").with(Key::Shards, "4"));
        assert!(more_shards.total(Paid::Start) > small.total(Paid::Start));
    }

    #[test]
    fn the_largest_configuration_does_not_overflow_and_prints_comments_only() {
        let largest = budget(
            RunFlags::default()
                .with(Key::MaxClients, "4000000")
                .with(Key::Shards, "256")
                .with(Key::ClientSendQueueBytes, "64MiB")
                .with(Key::UpstreamQueueBytes, "1GiB")
                .with(Key::ConnectionPoolSize, "1024"),
        );
        assert!(largest.total(Paid::Worst) > 4_000_000 * (64 << 20));
        for line in largest.to_string().lines() {
            assert!(line.starts_with('#') && line.len() < 160, "{line}");
        }
    }
}
