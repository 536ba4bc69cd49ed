//! From what was written to what is meant: one parser a kind of setting, the same for file, environment and flags.
use super::fault::{Excerpt, Origin};
use super::secret::Secret;
use super::settings::{Kind, Place, Setting};
use super::{Listener, LogFormat, TrustedProxy, WeightedUrl, address, url};
use crate::filter::Filter;
use crate::identity::Required;
use crate::limits::*;
use crate::proto::dotnetify::context::HeaderPolicy;
use crate::proto::http::Transports;
use crate::session::routing::{Dispatch, HubScope, UpstreamKind};
use crate::tls::MinimumVersion;
use core::time::Duration;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// From the environment or the command line: untyped. Lists are several words, or one with commas.
    Words(Vec<String>),
    Text(String),
    /// None: too large for any setting.
    Integer(Option<i64>),
    Boolean(bool),
    List(Vec<Raw>),
    Table(Vec<(String, Raw)>),
    /// Anything no setting takes, by its name for the fault.
    Other(&'static str),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub place: Place,
    pub origin: Origin,
    pub raw: Raw,
}

/// A value as meant, in range.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Listeners(Vec<Listener>),
    Address(SocketAddr),
    Count(u32),
    Duration(Duration),
    Text(String),
    Texts(Vec<String>),
    Secret(Secret),
    /// Absolute; a folder, too.
    File(PathBuf),
    Files(Vec<PathBuf>),
    Proxies(Vec<TrustedProxy>),
    Transports(Transports),
    /// At least one, none twice.
    Urls(Vec<WeightedUrl>),
    Filter(Filter),
    Headers(HeaderPolicy),
    Boolean(bool),
}

/// Why a value is refused, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: String,
    pub remedy: String,
    pub excerpt: Option<Excerpt>,
}

pub fn refused(reason: impl Into<String>, remedy: impl Into<String>) -> Refused {
    Refused { reason: reason.into(), remedy: remedy.into(), excerpt: None }
}

/// `folder` is where relative paths begin.
pub fn parse(setting: &Setting, raw: &Raw, folder: &Path) -> Result<Value, Vec<Refused>> {
    let one = |result: Result<Value, Refused>| result.map_err(|refused| vec![refused]);
    match setting.kind {
        Kind::Listeners => listeners(setting, raw).map(Value::Listeners),
        Kind::Boolean => one(boolean(setting, raw).map(Value::Boolean)),
        Kind::NodeName => one(text(setting, raw).and_then(|text| node_name(&text)).map(Value::Text)),
        Kind::Secret { min } => {
            one(text(setting, raw).and_then(|text| Secret::new(&text, min, None)).map(Value::Secret))
        }
        Kind::SecretFile { min } => one(text(setting, raw)
            .and_then(|text| file(&text, folder))
            .and_then(|path| secret_file(path, min))
            .map(Value::Secret)),
        Kind::File => one(text(setting, raw).and_then(|text| file(&text, folder)).map(Value::File)),
        Kind::Socket => one(text(setting, raw).and_then(|text| address::socket(&text, folder)).map(Value::File)),
        Kind::Files => all_of(setting, raw)
            .and_then(|paths| all_or_faults(paths.iter().map(|path| file(path, folder))))
            .map(Value::Files),
        Kind::Folder => one(text(setting, raw).and_then(|text| folder_of_ours(&text, folder)).map(Value::File)),
        Kind::Proxies => some_of(setting, raw)
            .and_then(|proxies| all_or_faults(proxies.iter().map(|proxy| TrustedProxy::parse(proxy))))
            .map(Value::Proxies),
        Kind::Transports => transports(setting, raw).map(Value::Transports),
        Kind::Names { none } => {
            let names = if none { some_of(setting, raw) } else { all_of(setting, raw) };
            names.and_then(|names| all_or_faults(names.into_iter().map(name))).map(Value::Texts)
        }
        Kind::Origins => origins(raw).map(Value::Texts),
        Kind::Headers => headers(raw).map(Value::Headers),
        Kind::UpstreamName => one(text(setting, raw).and_then(|text| upstream_name(setting, text)).map(Value::Text)),
        Kind::Urls => urls(setting, raw).map(Value::Urls),
        Kind::Filter => one(text(setting, raw).and_then(|text| filter(&text)).map(Value::Filter)),
        Kind::Peers => peers(setting, raw).map(Value::Texts),
        Kind::Address => one(text(setting, raw).and_then(|text| address::tcp("", &text)).map(Value::Address)),
        Kind::Count { min, max } => one(count(setting, raw, min, max).map(Value::Count)),
        Kind::Size { min, max } => one(size(setting, raw, min, max).map(Value::Count)),
        Kind::Duration { min_ms, max_ms } => one(duration(setting, raw, min_ms, max_ms).map(Value::Duration)),
        Kind::HubPath => one(text(setting, raw).and_then(|text| hub_path(&text)).map(Value::Text)),
        Kind::LogFilter => one(text(setting, raw).and_then(|text| log_filter(&text)).map(Value::Text)),
        Kind::Choice(choices) => one(text(setting, raw).and_then(|text| {
            let found = choices.iter().find(|choice| text.eq_ignore_ascii_case(choice));
            found.map(|choice| Value::Text(choice.to_string())).ok_or_else(|| {
                refused(
                    format!("{text:?} is none of {}", choices.join(", ")),
                    super::fault::suggestion(&text, choices.iter().copied()),
                )
            })
        })),
    }
}

impl LogFormat {
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

impl MinimumVersion {
    pub fn name(self) -> &'static str {
        match self {
            MinimumVersion::Tls12 => "1.2",
            MinimumVersion::Tls13 => "1.3",
        }
    }
}

impl Required {
    pub fn name(self) -> &'static str {
        match self {
            Required::Nothing => "none",
            Required::Connection => "connection",
            Required::Request => "request",
        }
    }
}

impl UpstreamKind {
    pub fn name(self) -> &'static str {
        match self {
            UpstreamKind::AppServer => "app-server",
            UpstreamKind::Observer => "observer",
        }
    }
}

impl Dispatch {
    pub fn name(self) -> &'static str {
        match self {
            Dispatch::Client => "client",
            Dispatch::Message => "message",
        }
    }
}

impl HubScope {
    pub fn name(self) -> &'static str {
        match self {
            HubScope::Lane => "lane",
            HubScope::Node => "node",
        }
    }
}

impl Transports {
    /// ASP.NET's names of them.
    const NAMES: [&str; 3] = ["WebSockets", "ServerSentEvents", "LongPolling"];

    pub fn names(self) -> Vec<&'static str> {
        let taken = [self.web_sockets, self.server_sent_events, self.long_polling];
        Self::NAMES.into_iter().zip(taken).filter_map(|(name, taken)| taken.then_some(name)).collect()
    }
}

// ---- one parser a kind ----------------------------------------------------------------------------------------------

fn text(setting: &Setting, raw: &Raw) -> Result<String, Refused> {
    let text = match raw {
        Raw::Words(words) => words.last().cloned().unwrap_or_default(),
        Raw::Text(text) => text.clone(),
        other => return Err(wrong_type(setting, other, "text in quotes")),
    };
    match text.trim() {
        "" => Err(empty(setting)),
        trimmed => Ok(trimmed.to_string()),
    }
}

fn empty(setting: &Setting) -> Refused {
    refused("is empty", format!("give {}, or leave it out for the default ({})", setting.takes(), setting.default))
}

fn wrong_type(setting: &Setting, raw: &Raw, expected: &str) -> Refused {
    let got = match raw {
        Raw::Words(_) | Raw::Text(_) => "text",
        Raw::Integer(_) => "an integer",
        Raw::Boolean(_) => "true or false",
        Raw::List(_) => "a list",
        Raw::Table(_) => "a table",
        Raw::Other(name) => name,
    };
    refused(format!("wrong type: expected {expected}, found {got}"), format!("it takes {}", setting.takes()))
}

fn out_of_range(setting: &Setting, shown: impl std::fmt::Display) -> Refused {
    refused(format!("{shown} is out of range"), format!("it takes {}", setting.takes()))
}

fn count(setting: &Setting, raw: &Raw, min: u32, max: u32) -> Result<u32, Refused> {
    let value = match raw {
        Raw::Integer(value) => *value,
        Raw::Words(_) => {
            let text = text(setting, raw)?;
            let digits = text.replace('_', "");
            match digits.parse::<i64>() {
                Ok(value) => Some(value),
                Err(_) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => None,
                Err(_) => {
                    return Err(refused(
                        format!("{text:?} is not a whole number"),
                        format!("it takes {}", setting.takes()),
                    ));
                }
            }
        }
        other => return Err(wrong_type(setting, other, "an integer")),
    };
    in_range(setting, value, min, max)
}

fn in_range(setting: &Setting, value: Option<i64>, min: u32, max: u32) -> Result<u32, Refused> {
    let value = value.ok_or_else(|| out_of_range(setting, "the number"))?;
    match u32::try_from(value) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(out_of_range(setting, value)),
    }
}

fn size(setting: &Setting, raw: &Raw, min: u32, max: u32) -> Result<u32, Refused> {
    let text = match raw {
        Raw::Integer(value) => return in_range(setting, *value, min, max),
        Raw::Words(_) | Raw::Text(_) => text(setting, raw)?,
        other => return Err(wrong_type(setting, other, "bytes as an integer, or text such as \"32KiB\"")),
    };
    let malformed = || {
        refused(
            format!("{text:?} is not a size"),
            "write bytes as a whole number, or with a unit: \"32KiB\", \"1MiB\"".to_string(),
        )
    };
    let (number, unit) = split_unit(&text).ok_or_else(malformed)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" | "K" | "k" | "kib" => 1 << 10,
        "MiB" | "M" | "m" | "mib" => 1 << 20,
        "GiB" | "G" | "g" | "gib" => 1 << 30,
        // A kB of 1000 bytes and one of 1024 are both common; nobody's guess is as good as saying which.
        "kB" | "KB" | "MB" | "GB" | "kb" | "mb" | "gb" => {
            let unit = unit[..1].to_ascii_uppercase();
            return Err(refused(format!("{text:?} is ambiguous (1000 or 1024?)"), format!("write {number}{unit}iB")));
        }
        _ => return Err(malformed()),
    };
    match number.checked_mul(factor).and_then(|bytes| u32::try_from(bytes).ok()) {
        Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
        _ => Err(out_of_range(setting, &text)),
    }
}

fn duration(setting: &Setting, raw: &Raw, min_ms: u64, max_ms: u64) -> Result<Duration, Refused> {
    let text = match raw {
        Raw::Integer(Some(value)) => format!("{value}s"),
        Raw::Integer(None) => return Err(out_of_range(setting, "the number")),
        Raw::Words(_) | Raw::Text(_) => text(setting, raw)?,
        other => return Err(wrong_type(setting, other, "text such as \"15s\", or whole seconds")),
    };
    if text.starts_with('-') {
        return Err(out_of_range(setting, &text));
    }
    let malformed = || {
        refused(format!("{text:?} is not a duration"), "write a whole number with a unit: \"500ms\", \"15s\", \"2m\"")
    };
    let (number, unit) = split_unit(&text).ok_or_else(malformed)?;
    let factor: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(malformed()),
    };
    match number.checked_mul(factor) {
        Some(ms) if (min_ms..=max_ms).contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(out_of_range(setting, &text)),
    }
}

/// `32KiB` -> (32, "KiB"). None: no number, or one beyond u64.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'_').count();
    let number = text[..digits].replace('_', "").parse().ok()?;
    Some((number, text[digits..].trim()))
}

fn hub_path(text: &str) -> Result<String, Refused> {
    let remedy = "write a path such as /dotnetify: letters, digits and - . _ ~ / only";
    if !text.starts_with('/') {
        return Err(refused(
            format!("{text:?} does not begin with /"),
            format!("write /{}", text.trim_end_matches('/')),
        ));
    }
    if text == "/" {
        return Err(refused("the root cannot be the hub", remedy));
    }
    if text.ends_with('/') {
        return Err(refused(format!("{text:?} ends with /"), format!("write {}", text.trim_end_matches('/'))));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    if !text.bytes().all(plain) || text.contains("//") || text.split('/').any(|part| part == "." || part == "..") {
        return Err(refused(format!("{text:?} is not a plain path"), remedy));
    }
    Ok(text.to_string())
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log_filter(text: &str) -> Result<String, Refused> {
    for directive in text.split(',').map(str::trim) {
        // tracing takes a bare word as the name of a module whose everything is shown, so that `--log debgu` would show nothing at all.
        let bare = !directive.contains(['=', '[', ':']);
        if bare && !LEVELS.iter().any(|level| directive.eq_ignore_ascii_case(level)) {
            return Err(refused(
                format!("{directive:?} is not a log level"),
                super::fault::suggestion(directive, LEVELS.iter().copied()),
            ));
        }
    }
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(refused(
            format!("{text:?} is not a log filter: {error}"),
            "write a level, or directives such as info,signalring::control=debug",
        )),
    }
}

fn boolean(setting: &Setting, raw: &Raw) -> Result<bool, Refused> {
    match raw {
        Raw::Boolean(value) => Ok(*value),
        Raw::Words(_) => {
            let text = text(setting, raw)?;
            let found = ["true", "false"].into_iter().position(|word| text.eq_ignore_ascii_case(word));
            found
                .map(|at| at == 0)
                .ok_or_else(|| refused(format!("{text:?} is not true or false"), "write true or false"))
        }
        other => Err(wrong_type(setting, other, "true or false, without quotes")),
    }
}

fn node_name(text: &str) -> Result<String, Refused> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if text.len() > NODE_NAME_BYTES_MAX || !text.bytes().all(plain) {
        return Err(refused(
            format!("{text:?} cannot be part of a token"),
            format!("write 1 to {NODE_NAME_BYTES_MAX} letters, digits, - and _, e.g. node-1"),
        ));
    }
    Ok(text.to_string())
}

fn upstream_name(setting: &Setting, text: String) -> Result<String, Refused> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if text.len() > UPSTREAM_NAME_BYTES_MAX || !text.bytes().all(plain) {
        return Err(refused(format!("{text:?} is not a name of upstreams"), format!("write {}", setting.takes())));
    }
    Ok(text)
}

fn filter(text: &str) -> Result<Filter, Refused> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(refused(
            format!("a filter of {} bytes is too long", text.len()),
            format!("write {FILTER_BYTES_MAX} bytes at most, or several upstreams with shorter ones"),
        ));
    }
    let pointing = |offset, reason: String, remedy: String| Refused {
        reason,
        remedy,
        excerpt: Some(Excerpt { text: text.to_string(), offset }),
    };
    // It is shown in logs and pictures.
    if let Some(offset) = text.find(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(pointing(
            offset,
            "it has a control character".into(),
            "write it as an escape, e.g. \\u0001".into(),
        ));
    }
    Filter::compile(text).map_err(|fault| pointing(fault.offset, fault.reason, fault.remedy))
}

/// A url, or a list of them, each as text or as a table with its weight.
fn urls(setting: &Setting, raw: &Raw) -> Result<Vec<WeightedUrl>, Vec<Refused>> {
    let plain = |text: &str| url::parse(text.trim()).map(|url| WeightedUrl { url, weight: 1 });
    let urls = match raw {
        Raw::List(entries) => all_or_faults(entries.iter().map(|entry| match entry {
            Raw::Text(text) => plain(text),
            Raw::Table(entries) => weighted_url(entries),
            _ => Err(refused(
                "wrong type: an entry is neither text nor table",
                "write \"http://a\" or { url = \"http://a\", weight = 3 }",
            )),
        }))?,
        Raw::Words(_) => all_or_faults(all_of(setting, raw)?.iter().map(|text| plain(text)))?,
        raw => vec![text(setting, raw).and_then(|text| plain(&text)).map_err(|refused| vec![refused])?],
    };
    let [one, several] = [&setting.name, &setting.plural().unwrap_or(setting.name)];
    if urls.is_empty() {
        return Err(vec![refused(
            "is empty",
            format!("give {one} = \"http://a\", or {several} = [...] with one at least"),
        )]);
    }
    at_most(UPSTREAM_URLS_MAX, urls.len(), "urls", "")?;
    none_in_the_way(urls, |earlier, later| {
        let remedy = "give it once; a larger share of clients is a weight";
        earlier.url.is_same_place(&later.url).then(|| refused(format!("{} is given twice", later.url.text), remedy))
    })
}

fn weighted_url(entries: &[(String, Raw)]) -> Result<WeightedUrl, Refused> {
    let example = "write { url = \"http://a\", weight = 3 }";
    let (mut found, mut weight) = (None, 1);
    for (name, raw) in entries {
        match (name.as_str(), raw) {
            ("url", Raw::Text(text)) => found = Some(url::parse(text.trim())?),
            ("weight", Raw::Integer(number)) => {
                let in_range = number.and_then(|number| u16::try_from(number).ok());
                weight = in_range.filter(|weight| (1..=UPSTREAM_WEIGHT_MAX).contains(&u32::from(*weight))).ok_or_else(
                    || {
                        refused(
                            "a weight is out of range",
                            format!("it takes 1 to {UPSTREAM_WEIGHT_MAX}, in whole numbers"),
                        )
                    },
                )?;
            }
            ("url" | "weight", _) => return Err(refused(format!("wrong type: {name} of an entry"), example)),
            (other, _) => {
                let remedy = super::fault::suggestion(other, ["url", "weight"].into_iter());
                return Err(refused(format!("unknown key {other:?} in an entry"), remedy));
            }
        }
    }
    match found {
        Some(url) => Ok(WeightedUrl { url, weight }),
        None => Err(refused("an entry has no url", example)),
    }
}

/// Addresses of other nodes' admin endpoints, as `host:port`.
fn peers(setting: &Setting, raw: &Raw) -> Result<Vec<String>, Vec<Refused>> {
    let entries = some_of(setting, raw)?;
    at_most(PEERS_MAX, entries.len(), "peers", "")?;
    let peers = all_or_faults(entries.iter().map(|entry| url::peer(entry)))?;
    none_in_the_way(peers, |earlier, later| {
        (earlier == later).then(|| refused(format!("{later} is given twice"), "give it once"))
    })
}

/// The absolute path of a file that can be read now.
fn file(text: &str, folder: &Path) -> Result<PathBuf, Refused> {
    let refuse = |path: &Path, error: io::Error| {
        refused(
            format!("{:?} cannot be read: {error}", path.display().to_string()),
            "name a file this user may read; relative paths begin at the folder of the configuration file, or where the node is started",
        )
    };
    let path = std::path::absolute(folder.join(text)).map_err(|error| refuse(Path::new(text), error))?;
    match std::fs::metadata(&path) {
        // A pipe or terminal gives what it has once, and it is read again later.
        Ok(found) if !found.is_file() => {
            Err(refused(format!("{:?} is not a file", path.display().to_string()), "name a file, not a folder or pipe"))
        }
        Ok(_) => File::open(&path).map(|_| ()).map_err(|error| refuse(&path, error)),
        Err(error) => Err(refuse(&path, error)),
    }
    .map(|()| path)
}

/// Whether it can be written to is seen when the node starts, by whoever it is then.
fn folder_of_ours(text: &str, folder: &Path) -> Result<PathBuf, Refused> {
    let remedy = "make the folder, for this user alone (install -d -m 700); relative paths begin at the folder of the configuration file, or where the node is started";
    let refuse = |path: &Path, why: &str| refused(format!("{:?} {why}", path.display().to_string()), remedy);
    let path = std::path::absolute(folder.join(text)).map_err(|error| refuse(Path::new(text), &error.to_string()))?;
    match std::fs::metadata(&path) {
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err(refuse(&path, "is not a folder")),
        Err(error) => Err(refuse(&path, &format!("cannot be used: {error}"))),
    }
}

fn secret_file(path: PathBuf, min: usize) -> Result<Secret, Refused> {
    let shown = path.display().to_string();
    let text = read_text(&path)
        .map_err(|reason| refused(format!("{shown:?} {reason}"), "name a file with one line of text"))?;
    Secret::new(&text, min, Some(path))
        .map_err(|Refused { reason, remedy, .. }| refused(format!("{shown:?}: {reason}"), remedy))
}

/// A text file of bounded size. The error goes behind the file's name.
pub fn read_text(path: &Path) -> Result<String, String> {
    String::from_utf8(read_bytes(path)?)
        .map_err(|error| format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

/// A file of bounded size. The error goes behind the file's name.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(CONFIG_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(format!("is larger than {} KiB", CONFIG_FILE_BYTES_MAX / 1024));
    }
    Ok(bytes)
}

/// The entries of a list that may be empty; one text is a list of one.
fn some_of(setting: &Setting, raw: &Raw) -> Result<Vec<String>, Vec<Refused>> {
    match raw {
        Raw::Text(text) => Ok(vec![text.trim().to_string()]),
        raw => entries(raw)
            .unwrap_or_else(|| Err(wrong_type(setting, raw, "a list of texts")))
            .map_err(|refused| vec![refused]),
    }
}

/// The entries of a list that says nothing when it is empty.
fn all_of(setting: &Setting, raw: &Raw) -> Result<Vec<String>, Vec<Refused>> {
    match some_of(setting, raw)? {
        entries if entries.is_empty() => Err(vec![empty(setting)]),
        entries => Ok(entries),
    }
}

fn listeners(setting: &Setting, raw: &Raw) -> Result<Vec<Listener>, Vec<Refused>> {
    let entries = all_of(setting, raw)?;
    at_most(LISTENERS_MAX, entries.len(), "addresses", "; 0.0.0.0:PORT stands for every interface")?;
    let listeners = all_or_faults(entries.iter().map(|entry| Listener::parse(entry)))?;
    none_in_the_way(listeners, |earlier, later| {
        let remedy = match earlier == later {
            true => "give it once",
            false => "give them different ports, or one of them only",
        };
        earlier.overlaps(later).then(|| refused(format!("{earlier} and {later} are the same address"), remedy))
    })
}

fn at_most(max: usize, count: usize, what: &str, advice: &str) -> Result<(), Vec<Refused>> {
    if count > max {
        return Err(vec![refused(format!("{count} {what} are too many"), format!("give {max} at most{advice}"))]);
    }
    Ok(())
}

/// The entries, if none is in the way of an earlier one.
fn none_in_the_way<T>(items: Vec<T>, clash: impl Fn(&T, &T) -> Option<Refused>) -> Result<Vec<T>, Vec<Refused>> {
    let clashes: Vec<Refused> = items
        .iter()
        .enumerate()
        .filter_map(|(index, later)| items[..index].iter().find_map(|earlier| clash(earlier, later)))
        .collect();
    if clashes.is_empty() { Ok(items) } else { Err(clashes) }
}

fn transports(setting: &Setting, raw: &Raw) -> Result<Transports, Vec<Refused>> {
    let entries = all_of(setting, raw)?;
    let named = all_or_faults(entries.iter().map(|entry| {
        Transports::NAMES.into_iter().find(|name| entry.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let remedy = super::fault::suggestion(entry, Transports::NAMES.into_iter());
            refused(format!("{entry:?} is not a transport"), remedy)
        })
    }))?;
    let [web_sockets, server_sent_events, long_polling] = Transports::NAMES.map(|name| named.contains(&name));
    Ok(Transports { web_sockets, server_sent_events, long_polling })
}

fn name(text: String) -> Result<String, Refused> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(refused(
            format!("{text:?} is empty or has control characters"),
            "write it out or take it off the list",
        ));
    }
    Ok(text)
}

/// The entries of a list, each still to be checked.
fn entries(raw: &Raw) -> Option<Result<Vec<String>, Refused>> {
    match raw {
        Raw::Words(words) => {
            let entries =
                words.iter().flat_map(|word| word.split(',')).map(str::trim).filter(|entry| !entry.is_empty());
            Some(Ok(entries.map(str::to_string).collect()))
        }
        Raw::List(items) => Some(
            items
                .iter()
                .map(|item| match item {
                    Raw::Text(text) => Ok(text.trim().to_string()),
                    _ => Err(refused("wrong type: a list entry is not text", "put every entry in quotes")),
                })
                .collect(),
        ),
        _ => None,
    }
}

fn origins(raw: &Raw) -> Result<Vec<String>, Vec<Refused>> {
    let entries = match entries(raw) {
        Some(entries) => entries.map_err(|refused| vec![refused])?,
        None => return Err(vec![refused("wrong type: expected a list", "write [\"https://app.example.com\"]")]),
    };
    all_or_faults(entries.iter().map(|entry| url::origin(entry)))
}

fn headers(raw: &Raw) -> Result<HeaderPolicy, Vec<Refused>> {
    let wrong = || {
        vec![refused(
            "wrong type: expected \"all\" or a list of header names",
            "write \"all\" or [\"User-Agent\", \"Cookie\"]",
        )]
    };
    let names = match raw {
        Raw::Text(text) if text.eq_ignore_ascii_case("all") => return Ok(HeaderPolicy::All),
        Raw::Text(_) => return Err(wrong()),
        raw => entries(raw).ok_or_else(wrong)?.map_err(|refused| vec![refused])?,
    };
    if let (Raw::Words(_), [only]) = (raw, names.as_slice())
        && only.eq_ignore_ascii_case("all")
    {
        return Ok(HeaderPolicy::All);
    }
    all_or_faults(names.iter().map(|name| header_name(name))).map(HeaderPolicy::Only)
}

/// RFC 9110 §7.6.1, and the older names still seen.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn header_name(name: &str) -> Result<String, Refused> {
    // RFC 9110 §5.6.2: a field name is a token.
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(refused(format!("{name:?} is not a header name"), "write names such as User-Agent, without colon"));
    }
    if name == "*" || name.eq_ignore_ascii_case("all") {
        return Err(refused(format!("{name:?} in a list of names"), "write \"all\" alone to forward every header"));
    }
    let lower = name.to_ascii_lowercase();
    if HOP_BY_HOP.contains(&lower.as_str()) || lower.starts_with("sec-websocket-") {
        return Err(refused(
            format!("{name} belongs to one connection and is never forwarded"),
            "take it off the list",
        ));
    }
    Ok(name.to_string())
}

fn all_or_faults<T>(results: impl Iterator<Item = Result<T, Refused>>) -> Result<Vec<T>, Vec<Refused>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(refused) => bad.push(refused),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

// ---- and back to text -----------------------------------------------------------------------------------------------

/// `32KiB`; bytes where no unit divides it.
pub fn size_text(bytes: u32) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => b.to_string(),
    }
}

pub fn duration_text(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms >= 60_000 && ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms >= 1000 && ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Key;
    use super::*;
    use proptest::prelude::*;

    fn text_value(key: Key, text: &str) -> Result<Value, Vec<Refused>> {
        parse(key.setting(), &Raw::Text(text.into()), Path::new("/"))
    }

    #[test]
    fn durations_take_their_units_and_keep_their_range() {
        let parse = |text: &str| match text_value(Key::HandshakeTimeout, text) {
            Ok(Value::Duration(duration)) => Ok(duration.as_millis() as u64),
            Ok(other) => panic!("{other:?}"),
            Err(refused) => Err(refused[0].reason.clone()),
        };
        assert_eq!(parse("15s"), Ok(15_000));
        assert_eq!(parse("500 ms"), Ok(500));
        assert_eq!(parse("2m"), Ok(120_000));
        assert_eq!(parse("7"), Ok(7_000));
        assert!(parse("1h").unwrap_err().contains("out of range"));
        assert!(parse("-1s").unwrap_err().contains("out of range"));
        assert!(parse("0").unwrap_err().contains("out of range"));
        assert!(parse("99999999999999999999s").unwrap_err().contains("not a duration"));
        assert!(parse("18446744073709551615m").unwrap_err().contains("out of range"));
        assert!(parse("1.5s").unwrap_err().contains("not a duration"));
        assert!(parse("fast").unwrap_err().contains("not a duration"));
    }

    #[test]
    fn sizes_take_binary_units_only() {
        let parse = |text: &str| match text_value(Key::MaximumReceiveMessageSize, text) {
            Ok(Value::Count(bytes)) => Ok(bytes),
            Ok(other) => panic!("{other:?}"),
            Err(refused) => Err(format!("{}; {}", refused[0].reason, refused[0].remedy)),
        };
        assert_eq!(parse("32KiB"), Ok(32768));
        assert_eq!(parse("1MiB"), Ok(1 << 20));
        assert_eq!(parse("4096"), Ok(4096));
        assert!(parse("32kB").unwrap_err().contains("write 32KiB"));
        assert!(parse("2MiB").unwrap_err().contains("1KiB to 1MiB"));
        assert!(parse("17179869184GiB").unwrap_err().contains("out of range"));
    }

    #[test]
    fn a_mistyped_level_is_not_taken_for_a_module() {
        assert!(text_value(Key::Log, "debug").is_ok());
        assert!(text_value(Key::Log, "info,signalring::control=trace").is_ok());
        assert_eq!(text_value(Key::Log, "debgu").unwrap_err()[0].remedy, "did you mean debug?");
        assert!(text_value(Key::Log, "signalring=louder").is_err());
    }

    #[test]
    fn headers_that_never_pass_cannot_be_listed() {
        let list = |names: &[&str]| {
            let names = names.iter().map(|n| Raw::Text(n.to_string())).collect();
            parse(Key::ForwardHeaders.setting(), &Raw::List(names), Path::new("/"))
        };
        assert_eq!(
            list(&["Cookie", "User-Agent"]),
            Ok(Value::Headers(HeaderPolicy::Only(vec!["Cookie".into(), "User-Agent".into()])))
        );
        assert_eq!(list(&[]), Ok(Value::Headers(HeaderPolicy::Only(vec![]))));
        assert_eq!(list(&["Upgrade", "sec-websocket-key", "a b", "ok"]).unwrap_err().len(), 3);
        assert_eq!(text_value(Key::ForwardHeaders, "all"), Ok(Value::Headers(HeaderPolicy::All)));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_printed_reads_back(text in ".{0,24}", bytes in 1024u32..=1 << 20, ms in 100u64..=300_000) {
            for key in Key::all() {
                let _ = parse(key.setting(), &Raw::Text(text.clone()), Path::new("/"));
                let _ = parse(key.setting(), &Raw::Words(vec![text.clone()]), Path::new("/"));
            }
            prop_assert_eq!(text_value(Key::MaximumReceiveMessageSize, &size_text(bytes)), Ok(Value::Count(bytes)));
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(text_value(Key::HandshakeTimeout, &duration_text(duration)), Ok(Value::Duration(duration)));
        }
    }
}
