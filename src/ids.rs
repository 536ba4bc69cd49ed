//! Names of things, one newtype each: shards, slots, clients, lanes, origin ids, hub ids; and time.
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use core::hash::Hasher;
use core::time::Duration;
use siphasher::sip::SipHasher24;

/// Bytes of an origin id and of a hub id: 16 bytes in base64url without padding, the form of every SignalR connection id.
pub const ID_BYTES: usize = 22;

/// A moment on the node's monotonic clock, in nanoseconds since the process began to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// Later than any moment that is ever reached.
    pub const NEVER: Time = Time(u64::MAX);

    pub const fn from_millis(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }
    pub fn after(self, duration: Duration) -> Time {
        // A token may be good for longer than nanoseconds count: 584 years.
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A thread with its own ring, listener, clients and lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u8);

/// A lane by its place in its shard's slice of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneIndex(pub u16);

/// A lane of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    pub shard: ShardId,
    pub index: LaneIndex,
}

/// An upstream by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamIndex(pub u8);

/// Where a lane leads: one of an upstream's urls, by its place among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LanePlace {
    pub upstream: UpstreamIndex,
    pub url: u8,
}

impl core::fmt::Display for LaneKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.shard.0, self.index.0)
    }
}

/// A slot of a shard's connection table together with how often it has been used: what is gone is recognised, never mistaken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    pub slot: u32,
    pub generation: u32,
}

/// Largest slot number: an origin id and a ring token have 24 bits for it.
pub const SLOT_MAX: u32 = (1 << 24) - 1;

/// How many ids a shard has made before this one: 40 bits, which at 100,000 a second last for four months.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub u64);

impl Serial {
    pub const MAX: Serial = Serial((1 << 40) - 1);

    /// This one, and the next one is its successor.
    pub fn take(&mut self) -> Serial {
        assert!(*self < Serial::MAX, "a shard has used up its origin ids");
        let taken = *self;
        self.0 += 1;
        taken
    }
}

/// Where a client lives, and which of the ids it has had it is, as an origin id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub shard: ShardId,
    pub slot: u32,
    pub serial: Serial,
}

/// The connection id an app server knows a client by: base64url of shard (1 byte), slot (3), serial (5) and a keyed check (7).
///
/// It leads to the client without a table, cannot be forged without the process's key, and never repeats: a shard counts the ids it
/// makes, and every process has a new key. A client may get a new one while it lives: whoever has the present one knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginId(pub [u8; ID_BYTES]);

/// The id a lane gives itself in the contexts it carries; fresh at every connect (contract 6.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HubId(pub [u8; ID_BYTES]);

impl HubId {
    pub fn from_random(random: [u8; 16]) -> HubId {
        HubId(base64url(&random))
    }
}

impl core::fmt::Debug for OriginId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(&self.0).unwrap_or("?"))
    }
}

impl core::fmt::Debug for HubId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(&self.0).unwrap_or("?"))
    }
}

/// Of an origin id: whoever guesses is right once in 2^56 times.
const CHECK_MASK: u64 = (1 << 56) - 1;

/// The process's secret for origin ids.
#[derive(Clone, Copy)]
pub struct OriginKey(pub [u8; 16]);

impl OriginKey {
    /// Writes a client's address as its origin id.
    pub fn seal(&self, address: Address) -> OriginId {
        debug_assert!(address.slot <= SLOT_MAX && address.serial <= Serial::MAX);
        let Address { shard, slot, serial } = address;
        let mut bytes = [0u8; 16];
        let place = u128::from(shard.0) << 120 | u128::from(slot) << 96 | u128::from(serial.0) << 56;
        bytes.copy_from_slice(&(place | u128::from(self.check(place))).to_be_bytes());
        OriginId(base64url(&bytes))
    }

    /// Reads an origin id that came from an app server. None: not one of this process.
    pub fn open(&self, id: &[u8]) -> Option<Address> {
        let mut bytes = [0u8; 18];
        if id.len() != ID_BYTES || URL_SAFE_NO_PAD.decode_slice(id, &mut bytes) != Ok(16) {
            return None;
        }
        let whole = u128::from_be_bytes(bytes[..16].try_into().ok()?);
        let place = whole & !u128::from(CHECK_MASK);
        if whole as u64 & CHECK_MASK != self.check(place) {
            return None;
        }
        Some(Address {
            shard: ShardId((place >> 120) as u8),
            slot: (place >> 96) as u32 & SLOT_MAX,
            serial: Serial((place >> 56) as u64 & Serial::MAX.0),
        })
    }

    fn check(&self, place: u128) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(&place.to_be_bytes());
        hasher.finish() & CHECK_MASK
    }
}

/// 16 bytes as 22 characters of `[A-Za-z0-9_-]`.
pub fn base64url(bytes: &[u8; 16]) -> [u8; ID_BYTES] {
    let mut text = [0u8; ID_BYTES];
    let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
    debug_assert_eq!(written, Ok(ID_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_has_an_end_and_no_beginning_behind_it() {
        assert_eq!(Time(5).after(Duration::from_secs(1)), Time(1_000_000_005));
        for seconds in [u64::MAX / 1_000_000_000, 18_446_744_074, 36_893_488_148, u64::MAX] {
            assert_eq!(Time(2_000_000_000).after(Duration::from_secs(seconds)), Time::NEVER, "{seconds}");
        }
    }

    #[test]
    fn an_origin_id_leads_back_to_its_client_and_no_other_key_reads_it() {
        let key = OriginKey([7; 16]);
        for (shard, slot, serial) in [(0, 0, 0), (3, 12345, 9), (255, SLOT_MAX, Serial::MAX.0)] {
            let address = Address { shard: ShardId(shard), slot, serial: Serial(serial) };
            let id = key.seal(address);
            assert!(id.0.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_'));
            assert_eq!(key.open(&id.0), Some(address));
            assert_eq!(OriginKey([8; 16]).open(&id.0), None);
            for i in 0..ID_BYTES - 1 {
                let mut forged = id.0;
                forged[i] = if forged[i] == b'A' { b'B' } else { b'A' };
                assert_eq!(key.open(&forged), None, "character {i} changed");
            }
        }
        for bad in [&b""[..], b"short", b"Kx1n2s3d4f5g6h7j8k9lA!", b"Kx1n2s3d4f5g6h7j8k9lAwww"] {
            assert_eq!(key.open(bad), None);
        }
    }
}
