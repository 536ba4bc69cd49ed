//! A table with generations: a key to what is gone finds nothing, however often the slot was used since.
use crate::ids::SlotKey;

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Fixed capacity, taken at once (untouched pages cost nothing), so that nothing ever moves.
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    capacity: u32,
}

impl<T> Slab<T> {
    /// What one slot takes: its entry, and its place in the list of free ones.
    pub const SLOT_BYTES: usize = size_of::<Entry<T>>() + size_of::<u32>();

    pub fn new(capacity: u32) -> Slab<T> {
        assert!(capacity <= crate::ids::SLOT_MAX);
        Slab { entries: Vec::with_capacity(capacity as usize), free: Vec::new(), capacity }
    }

    pub fn len(&self) -> u32 {
        self.entries.len() as u32 - self.free.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    /// Slots that have ever been used: the bound for walking the table.
    pub fn slots(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Puts a value made from its own key into the table. None when it is full.
    pub fn insert_with(&mut self, make: impl FnOnce(SlotKey) -> T) -> Option<SlotKey> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.entries.len() < self.capacity as usize => {
                self.entries.push(Entry { generation: 0, value: None });
                self.entries.len() as u32 - 1
            }
            None => return None,
        };
        let entry = &mut self.entries[slot as usize];
        assert!(entry.value.is_none(), "a free slot holds a value");
        let key = SlotKey { slot, generation: entry.generation };
        entry.value = Some(make(key));
        Some(key)
    }

    pub fn get(&self, key: SlotKey) -> Option<&T> {
        let entry = self.entries.get(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    /// By slot alone, for walking the table.
    pub fn at(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize)?.value.as_ref()
    }

    /// By slot alone, for lists that are kept in step with the table (dirty list, wheel).
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.value.as_mut()
    }

    pub fn key_at(&self, slot: u32) -> Option<SlotKey> {
        let entry = self.entries.get(slot as usize)?;
        entry.value.as_ref().map(|_| SlotKey { slot, generation: entry.generation })
    }

    /// Takes a value out; its key and every copy of it are dead from now on.
    pub fn remove(&mut self, key: SlotKey) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        // A slot whose generations are used up is never used again: an id must not repeat.
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.free.push(key.slot);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_to_what_is_gone_finds_nothing() {
        let mut slab = Slab::new(2);
        let a = slab.insert_with(|_| "a").unwrap();
        let b = slab.insert_with(|key| if key.slot == 1 { "b" } else { "?" }).unwrap();
        assert!(slab.is_full() && slab.insert_with(|_| "c").is_none());
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        let c = slab.insert_with(|_| "c").unwrap();
        assert_eq!((c.slot, c.generation), (a.slot, a.generation + 1));
        assert_eq!((slab.get(a), slab.get(b), slab.get(c)), (None, Some(&"b"), Some(&"c")));
        assert_eq!(slab.get_mut(a), None);
        assert_eq!(slab.key_at(0), Some(c));
        assert_eq!(slab.len(), 2);
    }

    #[test]
    fn a_slot_with_no_generation_left_is_retired() {
        let mut slab = Slab::new(1);
        let key = slab.insert_with(|_| 1).unwrap();
        slab.entries[0].generation = u32::MAX;
        assert_eq!(slab.remove(SlotKey { generation: u32::MAX, ..key }), Some(1));
        assert!(slab.insert_with(|_| 2).is_none());
    }
}
