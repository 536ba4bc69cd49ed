//! The environment: `SIGNALRING_…`, one variable a setting. A misspelt one is a fault, like an unknown key in the file.
use super::fault::{Faults, Origin, suggestion};
use super::settings::SETTINGS;
use super::value::{Given, Raw};

const PREFIX: &str = "SIGNALRING_";
/// Names the configuration file; read by `flags`.
pub const CONFIG_FILE: &str = "SIGNALRING_CONFIG";

/// This process's variables that concern us. Bytes that are not UTF-8 become U+FFFD, which no setting takes.
pub fn of_process() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with(PREFIX))
}

pub fn read(variables: impl Iterator<Item = (String, String)>, faults: &mut Faults) -> Vec<Given> {
    let mut given = Vec::new();
    for (name, value) in variables.filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIG_FILE) {
        let origin = Origin::Env(name.clone());
        match SETTINGS.iter().find(|setting| setting.env == name) {
            Some(setting) => {
                let words = if setting.is_list() {
                    value.split(',').map(|word| word.trim().to_string()).collect()
                } else {
                    vec![value]
                };
                given.push(Given { place: setting.key.into(), origin, raw: Raw::Words(words) });
            }
            None => {
                let remedy = suggestion(&name, SETTINGS.iter().map(|setting| setting.env).chain([CONFIG_FILE]));
                faults.add(&origin, "", "unknown variable", remedy);
            }
        }
    }
    given
}
