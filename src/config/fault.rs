//! What is wrong with a configuration: every fault says where it stands, which key, why, and what to do about it.
use super::settings::Setting;
use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File {
        path: String,
        line: usize,
    },
    Env(String),
    /// With its dashes.
    Flag(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub origin: Origin,
    /// Setting, or what was written in place of one; empty where none is concerned.
    pub key: String,
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// Never empty when it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub fn add(
        &mut self,
        origin: &Origin,
        key: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(Fault { origin: origin.clone(), key: key.into(), reason: reason.into(), remedy: remedy.into() });
    }

    pub fn about(&mut self, origin: &Origin, setting: &Setting, reason: impl Into<String>, remedy: impl Into<String>) {
        self.add(origin, setting.path(), reason, remedy);
    }

    /// In the order a reader fixes them: the file from top to bottom, then environment, flags, and what is missing everywhere.
    pub fn sorted(mut self) -> Self {
        self.0.sort_by_key(|fault| match &fault.origin {
            Origin::File { line, .. } => (0, *line),
            Origin::Env(_) => (1, 0),
            Origin::Flag(_) => (2, 0),
            Origin::Default => (3, 0),
        });
        self
    }
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "the configuration has a fault:")?,
            n => writeln!(f, "the configuration has {n} faults:")?,
        }
        for fault in &self.0 {
            writeln!(f, "  {fault}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            // Line 0: the file as a whole.
            Origin::File { path, line: 0 } => f.write_str(path),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Env(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// The known name a mistyped one probably meant: within a third of its length, or starting the same way.
pub fn did_you_mean<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    known
        .filter_map(|name| {
            let lower = name.to_ascii_lowercase();
            let distance = strsim::damerau_levenshtein(&typed, &lower);
            let prefix = typed.len() >= 4 && (lower.starts_with(&typed) || typed.starts_with(&lower));
            (distance <= (typed.len() / 3).max(1) || prefix).then_some((distance, name))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The remedy for an unknown name.
pub fn suggestion<'a>(typed: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match did_you_mean(typed, known.clone()) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("known here: {}", known.collect::<Vec<_>>().join(", ")),
    }
}
