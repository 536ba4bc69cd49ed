//! How many connections each client address has at this node, where there is a limit to that. All shards count together: the kernel spreads
//! an address's connections over them.
//!
//! What is counted is a place in a shard's table: a connection from the moment its client's address is known, and a client that has a
//! place of its own. Behind a trusted proxy the connections are the proxy's, so there only what begins a client counts, for the address
//! that the proxy names. A Unix socket has no address. No more addresses are remembered than there are places.
use super::Shard;
use crate::ids::SlotKey;
use crate::sys::Io;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where a connection is counted. Of an IPv6 address the network of a site, /64, within which a client may choose any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Site(u64);

impl Site {
    fn of(address: IpAddr) -> Site {
        match address.to_canonical() {
            // In ::/8, which is nobody's (RFC 4291 section 2.4).
            IpAddr::V4(v4) => Site(0x0000_0000_ffff_0000_u64 << 16 | u64::from(u32::from(v4))),
            IpAddr::V6(v6) => Site((u128::from(v6) >> 64) as u64),
        }
    }
}

/// What one entry takes, with the room a hash table leaves free; and of each place of a shard's table.
pub const ADDRESS_BYTES: usize = 2 * size_of::<(Site, u32)>() + size_of::<Option<Site>>();

/// The counts of a node. Locked for a moment when a connection begins and when it ends.
#[derive(Debug)]
pub struct Addresses {
    per_site_max: u32,
    counts: Mutex<HashMap<Site, u32>>,
}

impl Addresses {
    pub fn new(per_site_max: u32) -> Addresses {
        Addresses { per_site_max, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Site, u32>> {
        // Each change is one step: what a shard that panicked has left is sound.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; false if it has as many as it may.
    fn enter(&self, site: Site) -> bool {
        let mut counts = self.counts();
        let count = counts.entry(site).or_default();
        let admitted = *count < self.per_site_max;
        *count += u32::from(admitted);
        admitted
    }

    fn leave(&self, site: Site) {
        let mut counts = self.counts();
        if let Some(count) = counts.get_mut(&site) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&site);
            }
        }
        // After a storm from everywhere.
        if counts.capacity() > 1024 && counts.len() < counts.capacity() / 8 {
            counts.shrink_to_fit();
        }
    }
}

impl<I: Io> Shard<I> {
    /// A place in the table is somebody's at this address. False: the address has as many as it may.
    pub(super) fn count_address(&mut self, key: SlotKey, address: IpAddr) -> bool {
        let Some(addresses) = &self.settings.addresses else { return true };
        let slot = key.slot as usize;
        if slot >= self.sites.len() {
            self.sites.resize(slot + 1, None);
        }
        if self.sites[slot].is_some() {
            return true;
        }
        let site = Site::of(address);
        let admitted = addresses.enter(site);
        self.sites[slot] = admitted.then_some(site);
        admitted
    }

    /// The place is free again.
    pub(super) fn uncount_address(&mut self, key: SlotKey) {
        if let Some(addresses) = &self.settings.addresses
            && let Some(site) = self.sites.get_mut(key.slot as usize).and_then(Option::take)
        {
            addresses.leave(site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(address: &str) -> Site {
        Site::of(address.parse().unwrap())
    }

    #[test]
    fn a_site_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(site("::ffff:192.0.2.1"), site("192.0.2.1"));
        assert_ne!(site("192.0.2.1"), site("192.0.2.2"));
        assert_eq!(site("2001:db8:1:2::1"), site("2001:db8:1:2:ffff::9"));
        assert_ne!(site("2001:db8:1:2::1"), site("2001:db8:1:3::1"));
        assert_ne!(site("::1"), site("0.0.0.1"));
    }

    #[test]
    fn each_has_its_own_count_and_nothing_is_kept_of_who_has_left() {
        let addresses = Addresses::new(2);
        let (one, other) = (site("192.0.2.1"), site("192.0.2.2"));
        assert!(addresses.enter(one) && addresses.enter(one) && !addresses.enter(one));
        assert!(addresses.enter(other));
        addresses.leave(one);
        assert!(addresses.enter(one) && !addresses.enter(one));
        for site in [one, one, other] {
            addresses.leave(site);
        }
        assert!(addresses.counts().is_empty());
        for n in 0..10_000u32 {
            assert!(addresses.enter(Site(n.into())));
        }
        for n in 0..10_000u32 {
            addresses.leave(Site(n.into()));
        }
        assert!(addresses.counts().capacity() <= 1024);
    }
}
