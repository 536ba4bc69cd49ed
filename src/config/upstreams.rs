//! Upstreams: what each is by default, and what they mean together.
use super::check::{Check, is_itself};
use super::draft::Draft;
use super::fault::Origin;
use super::settings::{Key, Place};
use super::value::{Value, size_text};
use super::{ClientCertificate, Config, Listener, Upstream, UpstreamUrl};
use crate::limits::*;
use crate::proto::dotnetify::context::HeaderPolicy;
use crate::session::routing::{Dispatch, HubScope, UpstreamKind};

/// Headers an observer is shown unless told otherwise: what its pictures are labelled with (contract 7.2). The others may be secrets
/// of users, and an observer is no app server.
const OBSERVER_HEADERS: [&str; 2] = ["Host", "User-Agent"];

pub fn of(draft: &Draft) -> Vec<Upstream> {
    (0..draft.upstreams().len()).map(|index| one(draft, index)).collect()
}

/// Without url if it has none, which is a fault.
fn one(draft: &Draft, upstream: usize) -> Upstream {
    let at = |key| Place { upstream, key };
    let kind = match draft.text(at(Key::UpstreamKind)) {
        Some("observer") => UpstreamKind::Observer,
        _ => UpstreamKind::AppServer,
    };
    let dispatch = match draft.text(at(Key::Dispatch)) {
        Some("message") => Dispatch::Message,
        _ => Dispatch::Client,
    };
    Upstream {
        name: match draft.text(at(Key::UpstreamName)) {
            Some(name) => name.to_string(),
            None => format!("upstream-{}", upstream + 1),
        },
        kind,
        urls: match draft.value(at(Key::Url)) {
            Some(Value::Urls(urls)) => urls.clone(),
            _ => Vec::new(),
        },
        // The range ends far below u16's.
        connection_pool_size: draft.count(at(Key::ConnectionPoolSize), u32::from(POOL_SIZE_DEFAULT)) as u16,
        use_message_pack: draft.boolean(at(Key::UseMessagePack), false),
        maximum_receive_message_size: draft
            .count(at(Key::UpstreamMaximumReceiveMessageSize), UPSTREAM_MESSAGE_BYTES_DEFAULT),
        ca_file: draft.path(at(Key::CaFile)),
        client_certificate: draft.path(at(Key::ClientCertificateFile)).and_then(|certificate_file| {
            Some(ClientCertificate { certificate_file, key_file: draft.path(at(Key::ClientKeyFile))? })
        }),
        forward_headers: match (draft.value(at(Key::ForwardHeaders)), kind) {
            (Some(Value::Headers(policy)), _) => policy.clone(),
            (_, UpstreamKind::AppServer) => HeaderPolicy::All,
            (_, UpstreamKind::Observer) => HeaderPolicy::Only(OBSERVER_HEADERS.map(str::to_string).to_vec()),
        },
        filter: match draft.value(at(Key::Filter)) {
            Some(Value::Filter(filter)) => Some(filter.clone()),
            _ => None,
        },
        halt_pipeline: draft.boolean(at(Key::HaltPipeline), kind == UpstreamKind::AppServer),
        dispatch,
        hub_id: match (draft.text(at(Key::HubId)), dispatch) {
            (Some("node"), _) | (None, Dispatch::Message) => HubScope::Node,
            _ => HubScope::Lane,
        },
    }
}

pub fn check(check: &mut Check<'_>, file_is_sound: bool) {
    for index in 0..check.config.upstreams.len() {
        urls(check, index, file_is_sound);
        meaning(check, index);
        identity(check, index);
        name(check, index);
    }
    kinds(check);
    message_sizes(check);
    lanes(check);
}

fn urls(check: &mut Check<'_>, index: usize, file_is_sound: bool) {
    let config = check.config;
    let upstream = &config.upstreams[index];
    let at = |key| Place { upstream: index, key };
    check.pair([at(Key::ClientCertificateFile), at(Key::ClientKeyFile)]);
    if !check.sound(&[at(Key::Url)]) {
        return;
    }
    if upstream.urls.is_empty() {
        if file_is_sound {
            let setting = Key::Url.setting();
            let begins = &check.draft.upstreams()[index];
            let (reason, remedy) = match begins {
                Origin::Default => (
                    "no app server is configured".to_string(),
                    format!("give --{} URL, {}, or [[upstream]] url in the file", setting.flag, setting.env),
                ),
                _ => (
                    format!("{:?} has no url", upstream.name),
                    "write url = \"http://...\" below this line".to_string(),
                ),
            };
            check.faults.about(begins, setting, reason, remedy);
        }
        return;
    }

    if !upstream.urls.iter().any(|target| target.url.tls) {
        let shown: Vec<&str> = upstream.urls.iter().map(|target| target.url.text.as_str()).collect();
        for place in [Key::CaFile, Key::ClientCertificateFile, Key::ClientKeyFile].map(at) {
            if check.sound(&[place]) && check.draft.is_given(place) {
                let reason = match shown.as_slice() {
                    [only] => format!("it is for TLS, and {only} is not encrypted"),
                    several => format!("it is for TLS, and none of {} is encrypted", several.join(", ")),
                };
                let remedy = "write https:// in the app server's url, or leave it out";
                check.contradiction(&[place], reason, remedy.into());
            }
        }
    }
    for target in &upstream.urls {
        let url = &target.url;
        let places = [at(Key::Url), Key::Listen.into()];
        let mut listens = config.listen.iter().filter_map(Listener::tcp);
        if check.sound(&places) && listens.any(|listen| is_itself(&host_and_port(url), listen)) {
            check.contradiction(
                &places,
                format!("the app server {} is this node's own address", url.text),
                "give the address of the dotNetify app server".into(),
            );
        }
        if check.sound(&[at(Key::Url), Key::HubPath.into()])
            && let Some(suffix) = url.hub_suffix(&config.hub_path)
        {
            let origin = check.draft.origin(at(Key::Url));
            let reason = format!("{} ends with the hub path {suffix}, which is added by itself", url.text);
            let remedy = format!("write {}", &url.text[..url.text.len() - suffix.len()]);
            check.faults.about(origin, Key::Url.setting(), reason, remedy);
        }
    }
}

fn host_and_port(url: &UpstreamUrl) -> String {
    format!("{}:{}", url.host, url.port)
}

fn meaning(check: &mut Check<'_>, index: usize) {
    let upstream = &check.config.upstreams[index];
    let at = |key| Place { upstream: index, key };
    let halts = [at(Key::HaltPipeline), at(Key::UpstreamKind)];
    if upstream.kind == UpstreamKind::Observer && upstream.halt_pipeline && check.sound(&halts) {
        check.contradiction(
            &halts[..1],
            "an observer answers nothing, so that no message may stop there".into(),
            "leave it out or write false".into(),
        );
    }
    let hubs = [at(Key::HubId), at(Key::Dispatch)];
    if upstream.dispatch == Dispatch::Message && upstream.hub_id == HubScope::Lane && check.sound(&hubs) {
        check.contradiction(
            &hubs,
            "dispatch = \"message\" does not go with hub_id = \"lane\": the app server would address groups through one lane a hub id, and any lane may carry the messages of any client"
                .into(),
            "write hub_id = \"node\" or leave it out, or write dispatch = \"client\"".into(),
        );
    }
}

/// A filter that asks who the user is, where nobody ever is anyone.
fn identity(check: &mut Check<'_>, index: usize) {
    let place = Place { upstream: index, key: Key::Filter };
    let Some(filter) = &check.config.upstreams[index].filter else { return };
    let needs = filter.needs();
    let asked: Vec<&str> = [(needs.user, "user"), (needs.claims, "claims")]
        .into_iter()
        .filter_map(|(is, name)| is.then_some(name))
        .collect();
    if check.config.identity.is_some() || asked.is_empty() || !check.sound(&super::check::KEY_SOURCES) {
        return;
    }
    let (names, are) = (asked.join(" and "), if asked.len() > 1 { "are" } else { "is" });
    check.contradiction(
        &[place],
        format!("the filter looks at {names}, and {names} {are} never there, since no token of users is verified"),
        "give identity.signing_key, signing_key_file, public_key_file or jwks_file, or take it out of the filter"
            .into(),
    );
}

fn name(check: &mut Check<'_>, index: usize) {
    let upstreams = &check.config.upstreams;
    let at = |upstream| Place { upstream, key: Key::UpstreamName };
    let Some(earlier) = upstreams[..index].iter().position(|earlier| earlier.name == upstreams[index].name) else {
        return;
    };
    let places = [at(index), at(earlier)];
    if check.sound(&places) {
        // A name by place is nothing that could be changed.
        let place = if check.draft.is_given(places[0]) { places[0] } else { places[1] };
        let reason = format!("upstreams {} and {} are both called {:?}", earlier + 1, index + 1, upstreams[index].name);
        check.contradiction(&[place], reason, "give each a name of its own".into());
    }
}

fn kinds(check: &mut Check<'_>) {
    let upstreams = &check.config.upstreams;
    let places: Vec<Place> = (0..upstreams.len()).map(|upstream| Place { upstream, key: Key::UpstreamKind }).collect();
    if check.sound(&places) && upstreams.iter().all(|upstream| upstream.kind == UpstreamKind::Observer) {
        check.contradiction(
            &places,
            "an observer answers nothing, and there is no app server".into(),
            "add an [[upstream]] with the url of an app server".into(),
        );
    }
}

/// A message has to be small enough for every app server: a client does not know which of them it talks to. Of an observer's messages
/// the payload is taken out.
fn message_sizes(check: &mut Check<'_>) {
    let config = check.config;
    let most = config.hub.maximum_receive_message_size;
    let too_small: Vec<(usize, &Upstream)> = config
        .upstreams
        .iter()
        .enumerate()
        .filter(|(_, upstream)| {
            upstream.kind == UpstreamKind::AppServer && upstream.maximum_receive_message_size < most
        })
        .collect();
    let of_upstreams =
        too_small.iter().map(|(index, _)| Place { upstream: *index, key: Key::UpstreamMaximumReceiveMessageSize });
    let places: Vec<Place> = [Key::MaximumReceiveMessageSize.into()].into_iter().chain(of_upstreams).collect();
    let Some(least) = too_small.iter().map(|(_, upstream)| upstream.maximum_receive_message_size).min() else { return };
    if !check.sound(&places) {
        return;
    }
    let (takers, servers) = if config.upstreams.len() == 1 {
        (
            format!("the app server takes, upstream.maximum_receive_message_size ({})", size_text(least)),
            "the app server",
        )
    } else {
        let each: Vec<String> = too_small
            .iter()
            .map(|(_, upstream)| format!("{:?} ({})", upstream.name, size_text(upstream.maximum_receive_message_size)))
            .collect();
        (format!("upstream.maximum_receive_message_size of {}", each.join(", ")), "those app servers")
    };
    check.contradiction(
        &places,
        format!("hub.maximum_receive_message_size ({}) is more than {takers}", size_text(most)),
        format!(
            "raise HubOptions.MaximumReceiveMessageSize of {servers} and say so in upstream.maximum_receive_message_size, or lower hub.maximum_receive_message_size to {}",
            size_text(least)
        ),
    );
}

fn lanes(check: &mut Check<'_>) {
    let config = check.config;
    let shards = config.shards;
    let of = |upstream: &Upstream| upstream.lanes_each(shards).div_ceil(u32::from(shards)) * upstream.urls.len() as u32;
    let per_shard: u32 = config.upstreams.iter().map(of).sum();
    let all = config.lanes();
    let (reason, most) = if per_shard > u32::from(LANES_PER_SHARD_MAX) {
        (format!("{per_shard} lanes on each of {shards} shards are too many"), u32::from(LANES_PER_SHARD_MAX))
    } else if all > LANES_MAX {
        (format!("{all} lanes of all shards are too many"), LANES_MAX)
    } else {
        return;
    };
    // Where most can be saved.
    let largest = (0..config.upstreams.len()).max_by_key(|index| of(&config.upstreams[*index])).unwrap_or_default();
    let at = |key| Place { upstream: largest, key };
    let place = if check.draft.is_given(at(Key::ConnectionPoolSize)) { Key::ConnectionPoolSize } else { Key::Url };
    let places = [at(place), Key::Shards.into()];
    if check.sound(&places) {
        check.contradiction(
            &places[..1],
            reason,
            format!("lower connection_pool_size or take away urls until there are {most} at most; each url has a pool of its own"),
        );
    }
}

/// What is allowed but probably not meant.
pub fn warn(config: &Config, warnings: &mut Vec<String>) {
    let upstreams = &config.upstreams;
    for upstream in upstreams {
        if upstream.connection_pool_size < config.shards {
            let each = if upstream.urls.len() > 1 { " to each url" } else { "" };
            warnings.push(format!(
                "connection_pool_size = {} of {:?} is less than shards = {}: {} lanes are used{each}, one a shard",
                upstream.connection_pool_size, upstream.name, config.shards, config.shards
            ));
        }
    }
    for (index, later) in upstreams.iter().enumerate() {
        for earlier in &upstreams[..index] {
            for shared in later.urls.iter().filter(|later| earlier.has(&later.url)) {
                warnings.push(format!(
                    "{} is a url of {:?} and of {:?}: each has its own lanes to it, where the C# proxy has one pool a url",
                    shared.url.text, earlier.name, later.name
                ));
            }
        }
    }
    let app_servers = || upstreams.iter().filter(|upstream| upstream.kind == UpstreamKind::AppServer);
    let mut stopped_by: Option<&Upstream> = None;
    for upstream in app_servers() {
        if let Some(first) = stopped_by {
            warnings.push(format!(
                "{:?} has no filter and halts, so that no message reaches {:?} behind it",
                first.name, upstream.name
            ));
        } else if upstream.filter.is_none() && upstream.halt_pipeline {
            stopped_by = Some(upstream);
        }
    }
    if let (None, Some(last)) = (stopped_by, app_servers().next_back())
        && !last.halt_pipeline
    {
        warnings.push(format!(
            "{:?} is the last app server and has halt_pipeline = false: requests that go there are also answered as those of an unknown view model",
            last.name
        ));
    }
}

impl Upstream {
    fn has(&self, url: &UpstreamUrl) -> bool {
        self.urls.iter().any(|target| target.url.is_same_place(url))
    }
}
