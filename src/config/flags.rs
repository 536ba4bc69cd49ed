//! The command line's settings, generated from the table. They are kept as text: what they mean is found out together with file and
//! environment, so that all faults come at once.
use super::env::CONFIG_FILE;
use super::fault::Origin;
use super::secret;
use super::settings::{Key, Kind, SETTINGS, Setting, Table};
use super::value::{Given, Raw};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::fmt;
use std::path::PathBuf;

/// Flags of `run` and `check`.
#[derive(Clone, Default)]
pub struct RunFlags {
    /// `--config`, or `SIGNALRING_CONFIG`.
    pub config: Option<PathBuf>,
    values: Vec<(Key, Vec<String>)>,
}

impl RunFlags {
    /// As if the flag had been given; for tests and the demo.
    pub fn with(mut self, key: Key, value: impl Into<String>) -> Self {
        match self.values.iter_mut().find(|(given, _)| *given == key) {
            Some((_, values)) => values.push(value.into()),
            None => self.values.push((key, vec![value.into()])),
        }
        self
    }

    pub(super) fn read(&self) -> Vec<Given> {
        let given = |(key, values): &(Key, Vec<String>)| {
            let origin = Origin::Flag(format!("--{}", key.setting().flag));
            Given { place: (*key).into(), origin, raw: Raw::Words(values.clone()) }
        };
        self.values.iter().map(given).collect()
    }
}

/// Without secrets.
impl fmt::Debug for RunFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RunFlags");
        shown.field("config", &self.config);
        for (key, values) in &self.values {
            match key.setting().kind {
                Kind::Secret { .. } => shown.field(key.setting().flag, &secret::SHOWN),
                _ => shown.field(key.setting().flag, values),
            };
        }
        shown.finish()
    }
}

fn argument(setting: &'static Setting) -> Arg {
    let choices;
    let value_name = match setting.kind {
        Kind::Listeners => "ADDRESS",
        Kind::Address => "IP:PORT",
        Kind::Count { .. } => "N",
        Kind::Size { .. } => "BYTES",
        Kind::Duration { .. } => "TIME",
        Kind::Boolean => "true|false",
        Kind::NodeName => "NAME",
        Kind::Secret { .. } => "SECRET",
        Kind::SecretFile { .. } | Kind::File | Kind::Files => "FILE",
        Kind::Folder => "FOLDER",
        Kind::Socket => "PATH",
        Kind::Proxies => "PROXY",
        Kind::Transports => "TRANSPORT",
        Kind::Names { .. } => "NAMES",
        Kind::HubPath => "PATH",
        Kind::Origins => "ORIGIN",
        Kind::LogFilter => "LEVEL",
        Kind::Choice(words) => {
            choices = words.join("|");
            &choices
        }
        Kind::UpstreamName => "NAME",
        Kind::Urls => "URL",
        Kind::Filter => "EXPRESSION",
        Kind::Peers => "HOST:PORT",
        Kind::Headers => "NAMES",
    };
    let repeated = if setting.is_list() { ". May be repeated" } else { "" };
    // The value's name says the rest of what it takes.
    let takes = match setting.kind {
        Kind::Count { .. } | Kind::Size { .. } | Kind::Duration { .. } => format!(". {}", setting.takes()),
        Kind::NodeName | Kind::UpstreamName | Kind::Secret { .. } | Kind::Proxies => {
            format!(". Takes {}", setting.takes())
        }
        _ => String::new(),
    };
    let reloads = if setting.reloads { " [SIGHUP: read again]" } else { "" };
    let help =
        format!("{}{repeated}{takes} [default: {}] [env: {}]{reloads}", setting.about, setting.default, setting.env);
    let heading = match setting.table {
        Table::Top => "Node",
        Table::Hub => "Hub",
        Table::Limits => "Limits",
        Table::Tls => "TLS of https listeners",
        Table::Identity => "Identity of users",
        Table::Upstream => "App server (the one upstream; several are described in the file)",
    };
    // Only lists may be given twice; a second --shards is a mistake clap reports.
    let action = if setting.is_list() { ArgAction::Append } else { ArgAction::Set };
    Arg::new(setting.flag)
        .long(setting.flag)
        .value_name(value_name.to_string())
        .help(help)
        .help_heading(heading)
        .action(action)
        .allow_negative_numbers(true)
}

impl clap::Args for RunFlags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .env(CONFIG_FILE)
            .hide_env(true)
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!("TOML file with the settings; environment and flags override it [env: {CONFIG_FILE}]"));
        command.arg(config).args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RunFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = RunFlags { config: matches.get_one::<PathBuf>("config").cloned(), values: Vec::new() };
        for setting in SETTINGS {
            if let Some(values) = matches.get_many::<String>(setting.flag) {
                flags.values.push((setting.key, values.cloned().collect()));
            }
        }
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
