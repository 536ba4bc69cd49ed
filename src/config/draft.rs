//! What was said of each setting: source laid over source, before the settings mean anything together.
use super::Secret;
use super::fault::{Faults, Origin};
use super::settings::{Key, Place, Table};
use super::value::{Given, Value, parse};
use core::time::Duration;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The settings while they are gathered.
pub struct Draft {
    said: BTreeMap<Place, Said>,
    /// Where each upstream begins in the file. One at least: environment and flags may describe it all.
    upstreams: Vec<Origin>,
}

#[derive(Default)]
struct Said {
    value: Option<Value>,
    origin: Origin,
    /// Somebody said something wrong about it: it takes no part in contradictions.
    is_faulty: bool,
}

impl Draft {
    /// `upstreams` is where each of them begins in the file.
    pub fn new(mut upstreams: Vec<Origin>) -> Self {
        if upstreams.is_empty() {
            upstreams.push(Origin::Default);
        }
        Draft { said: BTreeMap::new(), upstreams }
    }

    /// Lays a source over what was said before. A wrong value is a fault even where a later source overrides it.
    pub fn take(&mut self, given: Vec<Given>, faults: &mut Faults) {
        for Given { place, origin, raw } in given {
            let setting = place.key.setting();
            // A variable or flag does not say which upstream it is about.
            if setting.table == Table::Upstream && origin.line() == 0 && self.upstreams.len() > 1 {
                let places: Vec<String> = self.upstreams.iter().map(ToString::to_string).collect();
                faults.about(
                    &origin,
                    setting,
                    format!(
                        "the file has {} upstreams ({}), and this could be meant for any",
                        places.len(),
                        places.join(", ")
                    ),
                    format!("write {} in the file, below the [[upstream]] it is meant for", setting.name),
                );
                continue;
            }
            let said = self.said.entry(place).or_default();
            match parse(setting, &raw, origin.folder()) {
                Ok(value) => said.value = Some(value),
                Err(all_refused) => {
                    said.is_faulty = true;
                    for refused in all_refused {
                        faults.refuse(&origin, setting.path(), refused);
                    }
                }
            }
            said.origin = origin;
        }
    }

    pub fn upstreams(&self) -> &[Origin] {
        &self.upstreams
    }

    /// Where each setting that was said came from.
    pub fn origins(self) -> BTreeMap<Place, Origin> {
        self.said.into_iter().map(|(place, said)| (place, said.origin)).collect()
    }

    pub fn origin(&self, place: impl Into<Place>) -> &Origin {
        self.said.get(&place.into()).map_or(&Origin::Default, |said| &said.origin)
    }

    pub fn is_given(&self, place: impl Into<Place>) -> bool {
        self.value(place).is_some()
    }

    pub fn is_sound(&self, place: impl Into<Place>) -> bool {
        self.said.get(&place.into()).is_none_or(|said| !said.is_faulty)
    }

    pub fn value(&self, place: impl Into<Place>) -> Option<&Value> {
        self.said.get(&place.into()).and_then(|said| said.value.as_ref())
    }

    pub fn text(&self, place: impl Into<Place>) -> Option<&str> {
        match self.value(place) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn texts(&self, key: Key) -> Option<Vec<String>> {
        match self.value(key) {
            Some(Value::Texts(texts)) => Some(texts.clone()),
            _ => None,
        }
    }

    pub fn path(&self, place: impl Into<Place>) -> Option<PathBuf> {
        match self.value(place) {
            Some(Value::File(path)) => Some(path.clone()),
            _ => None,
        }
    }

    /// The secret that one of the two settings gives; both together are a contradiction.
    pub fn secret(&self, keys: [Key; 2]) -> Option<Secret> {
        keys.into_iter().find_map(|key| match self.value(key) {
            Some(Value::Secret(secret)) => Some(secret.clone()),
            _ => None,
        })
    }

    pub fn duration(&self, place: impl Into<Place>, default_seconds: u64) -> Duration {
        match self.value(place) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::from_secs(default_seconds),
        }
    }

    pub fn boolean(&self, place: impl Into<Place>, default: bool) -> bool {
        match self.value(place) {
            Some(Value::Boolean(value)) => *value,
            _ => default,
        }
    }

    pub fn count(&self, place: impl Into<Place>, default: u32) -> u32 {
        match self.value(place) {
            Some(Value::Count(count)) => *count,
            _ => default,
        }
    }
}

impl Origin {
    /// Where relative paths begin: at the file they stand in, or where the node was started.
    fn folder(&self) -> &Path {
        match self {
            Origin::File { path, .. } => Path::new(path).parent().unwrap_or(Path::new("")),
            _ => Path::new(""),
        }
    }

    /// Precedence.
    pub fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::File { .. } => 1,
            Origin::Env(_) => 2,
            Origin::Flag(_) => 3,
        }
    }
}
