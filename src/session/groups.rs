//! Who is in which group, for one lane: group names are those of one app server, and only clients pinned to the lane are members.
//!
//! A membership is one entry in a table, linked into its client's list and numbered in its group's, so that joining, leaving and
//! a client's end cost only what they touch. An idle client that is in no group costs four bytes.
use crate::ids::SlotKey;
use crate::limits::GROUPS_PER_CLIENT_MAX;
use std::collections::HashMap;

const NONE: u32 = u32::MAX;

/// A client's memberships: the head of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memberships(u32);

impl Default for Memberships {
    fn default() -> Self {
        Memberships(NONE)
    }
}

struct Group {
    name: Box<[u8]>,
    /// Indices into `memberships`.
    members: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Membership {
    client: SlotKey,
    group: u32,
    /// Its index in the group's list.
    place: u32,
    /// The same client's next membership.
    next: u32,
}

/// What being in one group takes: the entry, its place in the group's list, and its place in the list of free ones.
pub const MEMBERSHIP_BYTES: usize = size_of::<Membership>() + 2 * size_of::<u32>();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    New,
    /// A group is a set: joining again is no change (contract 3.2).
    Already,
    /// The client is in `GROUPS_PER_CLIENT_MAX` groups.
    TooMany,
}

#[derive(Default)]
pub struct Groups {
    by_name: HashMap<Box<[u8]>, u32>,
    groups: Vec<Group>,
    free_groups: Vec<u32>,
    memberships: Vec<Membership>,
    free_memberships: Vec<u32>,
}

impl Groups {
    /// Groups with at least one member.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn join(&mut self, client: SlotKey, list: &mut Memberships, name: &[u8]) -> Joined {
        let mut count = 0;
        let mut at = list.0;
        while at != NONE {
            let membership = self.memberships[at as usize];
            debug_assert_eq!(membership.client, client);
            if *self.groups[membership.group as usize].name == *name {
                return Joined::Already;
            }
            count += 1;
            at = membership.next;
        }
        if count >= GROUPS_PER_CLIENT_MAX {
            return Joined::TooMany;
        }
        let group = self.group_named(name);
        let members = &mut self.groups[group as usize].members;
        let membership = Membership { client, group, place: members.len() as u32, next: list.0 };
        let index = match self.free_memberships.pop() {
            Some(index) => {
                self.memberships[index as usize] = membership;
                index
            }
            None => {
                self.memberships.push(membership);
                self.memberships.len() as u32 - 1
            }
        };
        members.push(index);
        list.0 = index;
        Joined::New
    }

    /// Was it a member?
    pub fn leave(&mut self, list: &mut Memberships, name: &[u8]) -> bool {
        let mut before = NONE;
        let mut at = list.0;
        while at != NONE {
            let Membership { group, next, .. } = self.memberships[at as usize];
            if *self.groups[group as usize].name == *name {
                if before == NONE {
                    list.0 = next;
                } else {
                    self.memberships[before as usize].next = next;
                }
                self.drop_membership(at);
                return true;
            }
            before = at;
            at = next;
        }
        false
    }

    /// The client is gone: on a disconnect the app server sends no removals (contract 3.2).
    pub fn leave_all(&mut self, list: &mut Memberships) {
        while list.0 != NONE {
            let at = list.0;
            list.0 = self.memberships[at as usize].next;
            self.drop_membership(at);
        }
    }

    pub fn members(&self, name: &[u8]) -> impl Iterator<Item = SlotKey> + '_ {
        let group = self.by_name.get(name).map(|group| &self.groups[*group as usize]);
        group.into_iter().flat_map(|group| &group.members).map(|index| self.memberships[*index as usize].client)
    }

    /// Names of the groups in a client's list, latest first.
    pub fn each(&self, list: Memberships) -> impl Iterator<Item = &[u8]> {
        let mut at = list.0;
        core::iter::from_fn(move || {
            let membership = self.memberships.get(at as usize)?;
            at = membership.next;
            Some(&*self.groups[membership.group as usize].name)
        })
    }

    fn group_named(&mut self, name: &[u8]) -> u32 {
        if let Some(group) = self.by_name.get(name) {
            return *group;
        }
        let group = Group { name: name.into(), members: Vec::new() };
        let index = match self.free_groups.pop() {
            Some(index) => {
                self.groups[index as usize] = group;
                index
            }
            None => {
                self.groups.push(group);
                self.groups.len() as u32 - 1
            }
        };
        self.by_name.insert(name.into(), index);
        index
    }

    fn drop_membership(&mut self, index: u32) {
        let Membership { group, place, .. } = self.memberships[index as usize];
        let members = &mut self.groups[group as usize].members;
        debug_assert_eq!(members[place as usize], index);
        members.swap_remove(place as usize);
        if let Some(moved) = members.get(place as usize) {
            self.memberships[*moved as usize].place = place;
        }
        self.free_memberships.push(index);
        if members.is_empty() {
            let name = core::mem::take(&mut self.groups[group as usize].name);
            self.by_name.remove(&name);
            self.free_groups.push(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn agrees_with_a_map_of_sets(ops in proptest::collection::vec((0u32..6, 0u8..5, 0u8..4), 0..300)) {
            let mut groups = Groups::default();
            let mut lists = [Memberships::default(); 6];
            let mut model: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
            for (slot, name, op) in ops {
                let client = SlotKey { slot, generation: slot + 10 };
                let list = &mut lists[slot as usize];
                match op {
                    0 | 1 => {
                        let new = model.entry(name).or_default().insert(slot);
                        prop_assert_eq!(groups.join(client, list, &[name]) == Joined::New, new);
                    }
                    2 => {
                        let was = model.get_mut(&name).is_some_and(|set| set.remove(&slot));
                        prop_assert_eq!(groups.leave(list, &[name]), was);
                    }
                    _ => {
                        groups.leave_all(list);
                        model.values_mut().for_each(|set| { set.remove(&slot); });
                    }
                }
                model.retain(|_, set| !set.is_empty());
                prop_assert_eq!(groups.len(), model.len());
                for (slot, list) in lists.iter().enumerate() {
                    let names: BTreeSet<u8> = groups.each(*list).map(|name| name[0]).collect();
                    let expected = model.iter().filter(|(_, set)| set.contains(&(slot as u32)));
                    prop_assert_eq!(names, expected.map(|(name, _)| *name).collect());
                }
                for name in 0..5 {
                    let members: BTreeSet<u32> = groups.members(&[name]).map(|key| key.slot).collect();
                    prop_assert_eq!(members, model.get(&name).cloned().unwrap_or_default());
                }
            }
            lists.iter_mut().for_each(|list| groups.leave_all(list));
            prop_assert!(groups.is_empty());
            prop_assert_eq!(groups.free_memberships.len(), groups.memberships.len());
        }
    }

    #[test]
    fn a_client_cannot_join_without_bound() {
        let mut groups = Groups::default();
        let mut list = Memberships::default();
        let client = SlotKey { slot: 1, generation: 1 };
        for n in 0..GROUPS_PER_CLIENT_MAX {
            assert_eq!(groups.join(client, &mut list, &n.to_be_bytes()), Joined::New);
        }
        assert_eq!(groups.join(client, &mut list, b"one more"), Joined::TooMany);
    }
}
