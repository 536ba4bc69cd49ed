//! Bytes that many holders have alike, kept once: the request headers that an app server is shown, which all browsers of one kind
//! on one page send the same.
use std::collections::HashSet;
use std::rc::Rc;

#[derive(Default)]
pub struct Interner {
    kept: HashSet<Rc<[u8]>>,
}

impl Interner {
    /// The one copy of these bytes. Give it back with `release`.
    pub fn intern(&mut self, bytes: &[u8]) -> Rc<[u8]> {
        if let Some(kept) = self.kept.get(bytes) {
            return kept.clone();
        }
        let kept: Rc<[u8]> = bytes.into();
        self.kept.insert(kept.clone());
        kept
    }

    /// A holder is gone; after the last one the bytes are.
    pub fn release(&mut self, bytes: Rc<[u8]>) {
        // Two: this one and ours.
        if Rc::strong_count(&bytes) == 2 {
            self.kept.remove(&bytes);
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
    fn equal_bytes_are_kept_once_and_as_long_as_they_are_held() {
        let mut interner = Interner::default();
        let (a, b, c) = (interner.intern(b"same"), interner.intern(b"same"), interner.intern(b"other"));
        assert!(Rc::ptr_eq(&a, &b) && !Rc::ptr_eq(&a, &c));
        assert_eq!(interner.len(), 2);
        interner.release(a);
        assert_eq!(interner.len(), 2);
        interner.release(c);
        interner.release(b);
        assert!(interner.is_empty());
    }
}
