//! What many holders have alike, kept once: the request headers that an app server is shown, which all browsers of one kind on one page
//! send the same, and what filters see of them.
use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::rc::Rc;

pub struct Interner<T: ?Sized> {
    kept: HashSet<Rc<T>>,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Interner { kept: HashSet::new() }
    }
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    /// The one copy of this value. Give it back with `release`.
    pub fn intern(&mut self, value: impl Borrow<T> + Into<Rc<T>>) -> Rc<T> {
        if let Some(kept) = self.kept.get(value.borrow()) {
            return kept.clone();
        }
        let kept: Rc<T> = value.into();
        self.kept.insert(kept.clone());
        kept
    }

    /// A holder is gone; after the last one the value is.
    pub fn release(&mut self, value: Rc<T>) {
        // Two: this one and ours.
        if Rc::strong_count(&value) == 2 {
            self.kept.remove(&value);
        }
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_kept_once_and_as_long_as_they_are_held() {
        let mut interner = Interner::<[u8]>::default();
        let (a, b, c) = (interner.intern(&b"same"[..]), interner.intern(&b"same"[..]), interner.intern(&b"other"[..]));
        assert!(Rc::ptr_eq(&a, &b) && !Rc::ptr_eq(&a, &c));
        assert_eq!(interner.len(), 2);
        interner.release(a);
        assert_eq!(interner.len(), 2);
        interner.release(c);
        interner.release(b);
        assert!(interner.is_empty());
    }
}
