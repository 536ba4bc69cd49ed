//! Which headers a filter looks at: most name the one they ask for, so that the others, secrets among them, need not be kept.
use std::collections::BTreeSet;

/// Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderNames {
    Only(BTreeSet<Box<str>>),
    /// It goes through all of them, or finds out with the message which one it wants.
    All,
}

impl Default for HeaderNames {
    fn default() -> HeaderNames {
        HeaderNames::Only(BTreeSet::new())
    }
}

impl HeaderNames {
    pub fn add(&mut self, name: &str) {
        if let HeaderNames::Only(names) = self {
            names.insert(name.into());
        }
    }

    pub fn with(self, other: &HeaderNames) -> HeaderNames {
        match (self, other) {
            (HeaderNames::Only(mut names), HeaderNames::Only(others)) => {
                names.extend(others.iter().cloned());
                HeaderNames::Only(names)
            }
            _ => HeaderNames::All,
        }
    }

    /// All of the others?
    pub fn include(&self, other: &HeaderNames) -> bool {
        match (self, other) {
            (HeaderNames::All, _) => true,
            (HeaderNames::Only(names), HeaderNames::Only(others)) => others.is_subset(names),
            (HeaderNames::Only(_), HeaderNames::All) => false,
        }
    }

    /// `name` in lower case.
    pub fn has(&self, name: &str) -> bool {
        match self {
            HeaderNames::Only(names) => names.contains(name),
            HeaderNames::All => true,
        }
    }
}
