//! The app server's memory of which lane answers for an origin id (contract 3.3): made by an origin id's first message and never
//! changed until the id is disconnected, even when the lane is long gone.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A SignalR connection id, or an origin id: one namespace, as in dotNetify.
pub type ConnectionId = Arc<str>;
/// `None` where the context says `"HubId":null`.
pub type HubId = Option<Arc<str>>;

pub struct Binding {
    pub lane: ConnectionId,
    pub hub_id: HubId,
    /// The context text of the first message, kept as it was.
    pub context: Arc<str>,
    order: u64,
}

#[derive(Default)]
pub struct Bindings {
    by_origin: HashMap<ConnectionId, Binding>,
    /// The bindings of a hub id, oldest first: group, user and many-sends use the first.
    by_hub: HashMap<HubId, BTreeMap<u64, ConnectionId>>,
    next_order: u64,
}

impl Bindings {
    /// Binds an origin id unless it is bound already. Returns whether it was new.
    pub fn bind(&mut self, origin: &ConnectionId, lane: &ConnectionId, hub_id: &HubId, context: &str) -> bool {
        if self.by_origin.contains_key(origin) {
            return false;
        }
        let order = self.next_order;
        self.next_order += 1;
        let binding = Binding { lane: lane.clone(), hub_id: hub_id.clone(), context: context.into(), order };
        self.by_origin.insert(origin.clone(), binding);
        self.by_hub.entry(hub_id.clone()).or_default().insert(order, origin.clone());
        true
    }

    pub fn remove(&mut self, origin: &str) {
        let Some(binding) = self.by_origin.remove(origin) else { return };
        let hub = self.by_hub.get_mut(&binding.hub_id).expect("every binding is listed under its hub id");
        hub.remove(&binding.order);
        if hub.is_empty() {
            self.by_hub.remove(&binding.hub_id);
        }
    }

    pub fn of(&self, origin: &str) -> Option<&Binding> {
        self.by_origin.get(origin)
    }

    /// The lane of the oldest binding with this hub id.
    pub fn first_lane(&self, hub_id: &HubId) -> Option<&ConnectionId> {
        let (_, origin) = self.by_hub.get(hub_id)?.first_key_value()?;
        Some(&self.by_origin[origin].lane)
    }

    /// One lane per distinct hub id, each through its oldest binding, in the order of these.
    pub fn hub_lanes(&self) -> Vec<ConnectionId> {
        self.hubs_in_order().into_iter().map(|(_, _, origin)| self.by_origin[origin].lane.clone()).collect()
    }

    pub fn hub_ids(&self) -> Vec<HubId> {
        self.hubs_in_order().into_iter().map(|(_, hub_id, _)| hub_id.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.by_origin.len()
    }

    /// All, oldest first.
    pub fn in_order(&self) -> Vec<(&ConnectionId, &Binding)> {
        let mut all: Vec<_> = self.by_origin.iter().collect();
        all.sort_unstable_by_key(|(_, binding)| binding.order);
        all
    }

    fn hubs_in_order(&self) -> Vec<(u64, &HubId, &ConnectionId)> {
        let oldest = |(hub_id, origins)| {
            let origins: &BTreeMap<u64, ConnectionId> = origins;
            let (order, origin) = origins.first_key_value().expect("a hub id without bindings is removed");
            (*order, hub_id, origin)
        };
        let mut hubs: Vec<_> = self.by_hub.iter().map(oldest).collect();
        hubs.sort_unstable_by_key(|(order, ..)| *order);
        hubs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(name: &str) -> HubId {
        Some(name.into())
    }

    #[test]
    fn the_first_lane_stays_and_hubs_use_their_oldest_binding() {
        let mut bindings = Bindings::default();
        let (a, b, c): (ConnectionId, ConnectionId, ConnectionId) = ("a".into(), "b".into(), "c".into());
        let (one, two): (ConnectionId, ConnectionId) = ("lane1".into(), "lane2".into());
        assert!(bindings.bind(&a, &one, &hub("h"), "first"));
        assert!(!bindings.bind(&a, &two, &hub("g"), "second"));
        assert_eq!(&*bindings.of("a").unwrap().context, "first");
        bindings.bind(&b, &two, &hub("h"), "");
        bindings.bind(&c, &two, &hub("g"), "");
        assert_eq!(bindings.hub_lanes(), [one.clone(), two.clone()]);
        bindings.remove("a");
        assert_eq!(bindings.first_lane(&hub("h")), Some(&two));
        assert_eq!(bindings.hub_ids(), [hub("h"), hub("g")]);
        bindings.remove("c");
        bindings.remove("c");
        assert_eq!(bindings.first_lane(&hub("g")), None);
        assert_eq!(bindings.len(), 1);
    }
}
