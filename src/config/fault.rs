//! What is wrong with a configuration: every fault says where it stands, which key, why, and what to do about it.
use super::settings::Setting;
use super::value::{Refused, refused};
use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    #[default]
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
    /// Where in a value of many words it is.
    pub excerpt: Option<Excerpt>,
}

/// A place in a text that is shown with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    pub text: String,
    /// In bytes, from 0.
    pub offset: usize,
}

/// Characters shown on either side of the place.
const EXCERPT_CHARACTERS: usize = 60;

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
        let refused = refused(reason, remedy);
        self.refuse(origin, key, refused);
    }

    pub fn about(&mut self, origin: &Origin, setting: &Setting, reason: impl Into<String>, remedy: impl Into<String>) {
        self.add(origin, setting.path(), reason, remedy);
    }

    pub fn refuse(&mut self, origin: &Origin, key: impl Into<String>, refused: Refused) {
        let Refused { reason, remedy, excerpt } = refused;
        self.0.push(Fault { origin: origin.clone(), key: key.into(), reason, remedy, excerpt });
    }

    /// In the order a reader fixes them: the file from top to bottom, then environment, flags, and what is missing everywhere.
    pub fn sorted(mut self) -> Self {
        self.0.sort_by_key(|fault| match &fault.origin {
            Origin::File { .. } => (0, fault.origin.line()),
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
        match &self.excerpt {
            None => write!(f, "{}; {}", self.reason, self.remedy),
            Some(excerpt) => write!(f, "at {}: {}; {}{excerpt}", excerpt.place(), self.reason, self.remedy),
        }
    }
}

impl Excerpt {
    /// The line the place is in, and line and column from 0, in characters.
    fn locate(&self) -> (&str, usize, usize) {
        let offset = self.text.floor_char_boundary(self.offset);
        let start = self.text[..offset].rfind('\n').map_or(0, |end| end + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        (line, self.text[..start].matches('\n').count(), self.text[start..offset].chars().count())
    }

    /// In words.
    fn place(&self) -> String {
        match (self.locate(), self.text.contains('\n')) {
            ((_, _, column), false) => format!("column {}", column + 1),
            ((_, line, column), true) => format!("line {}, column {}", line + 1, column + 1),
        }
    }
}

/// On two lines of their own: the text, and below it a caret.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, _, column) = self.locate();
        let skipped = column.saturating_sub(EXCERPT_CHARACTERS);
        let [before, after] =
            [skipped > 0, line.chars().count() > column + EXCERPT_CHARACTERS].map(|is_cut| match is_cut {
                true => "...",
                false => "",
            });
        let shown: String = line.chars().skip(skipped).take(column - skipped + EXCERPT_CHARACTERS).collect();
        let indent = before.len() + column - skipped;
        write!(f, "\n      {before}{}{after}\n      {:indent$}^", shown.replace(char::is_control, " "), "")
    }
}

impl Origin {
    /// In the file; 0 elsewhere.
    pub fn line(&self) -> usize {
        match self {
            Origin::File { line, .. } => *line,
            _ => 0,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_points_into_the_value() {
        let shown = |text: &str, offset| {
            let excerpt = Some(Excerpt { text: text.into(), offset });
            let origin = Origin::File { path: "n.toml".into(), line: 3 };
            Faults(vec![Fault {
                origin,
                key: "upstream.filter".into(),
                reason: "no".into(),
                remedy: "go".into(),
                excerpt,
            }])
            .to_string()
        };
        assert_eq!(
            shown("vmid == \"A\"", 5),
            "the configuration has a fault:\n  n.toml:3: upstream.filter: at column 6: no; go\n      vmid == \"A\"\n           ^\n"
        );
        assert!(shown("a ==\n  b\tc", 7).contains(": at line 2, column 3: no; go\n        b c\n        ^\n"));
        // The end, a place behind it, and one inside a character.
        assert!(shown("ä", 2).ends_with("column 2: no; go\n      ä\n       ^\n"));
        assert!(shown("ä", 99).ends_with("column 2: no; go\n      ä\n       ^\n"));
        assert!(shown("ä", 1).ends_with("column 1: no; go\n      ä\n      ^\n"));
        assert!(shown("", 0).ends_with("\n      \n      ^\n"));
        // Of a long one only what is around it.
        let long = format!("{}X{}", "a".repeat(1000), "b".repeat(1000));
        let said = shown(&long, 1000);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[2].trim(), format!("...{}X{}...", "a".repeat(60), "b".repeat(59)));
        assert_eq!(lines[2].find('X'), lines[3].find('^'));
    }
}
