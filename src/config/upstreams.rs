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
        acknowledge: draft.boolean(at(Key::Acknowledge), kind == UpstreamKind::AppServer),
        acknowledge_timeout: draft.duration(at(Key::AcknowledgeTimeout), ACKNOWLEDGE_TIMEOUT_SECONDS_DEFAULT),
        in_flight_max: draft.count(at(Key::InFlight), IN_FLIGHT_DEFAULT),
    }
}

pub fn check(check: &mut Check<'_>, file_is_sound: bool) {
    for index in 0..check.config.upstreams.len() {
        urls(check, index, file_is_sound);
        meaning(check, index);
        identity(check, index);
        name(check, index);
    }
    hubs(check);
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
    let acknowledges = [at(Key::Acknowledge), at(Key::UpstreamKind)];
    if upstream.kind == UpstreamKind::Observer && upstream.acknowledge && check.sound(&acknowledges) {
        check.contradiction(
            &acknowledges[..1],
            "an observer is told and not asked, and what it does not take at once it does not get".into(),
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

/// The hub id of the node is one, whatever upstream has it.
fn hubs(check: &mut Check<'_>) {
    let upstreams = &check.config.upstreams;
    let shares = |upstream: &Upstream| upstream.kind == UpstreamKind::AppServer && upstream.hub_id == HubScope::Node;
    for (index, later) in upstreams.iter().enumerate().filter(|(_, upstream)| shares(upstream)) {
        for (before, earlier) in upstreams[..index].iter().enumerate().filter(|(_, upstream)| shares(upstream)) {
            let Some(shared) = later.urls.iter().find(|later| earlier.has(&later.url)) else { continue };
            let places: Vec<Place> = [index, before]
                .into_iter()
                .flat_map(|upstream| [Key::HubId, Key::Dispatch, Key::Url].map(|key| Place { upstream, key }))
                .collect();
            if check.sound(&places) {
                let reason = format!(
                    "{:?} and {:?} share one hub id at {}: the app server would send groups over the lanes of either, and clients of the other would miss them",
                    earlier.name, later.name, shared.url.text
                );
                let remedy = "join them to one [[upstream]], or write hub_id = \"lane\" and dispatch = \"client\" for one of them";
                check.contradiction(&places[..2], reason, remedy.into());
            }
        }
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

#[cfg(test)]
mod tests {
    use super::super::{Machine, Resolved, RunFlags};
    use super::*;

    const MACHINE: Machine = Machine { cores: 4, nofile: 1 << 20 };
    const PEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    const A: &str = "[[upstream]]\nurl = \"http://a\"\n";

    fn resolve(file: &str, flags: RunFlags) -> Result<Resolved, Vec<String>> {
        let resolved = Resolved::of(Some(("n.toml", file)), std::iter::empty(), &flags, &MACHINE);
        resolved.map_err(|faults| faults.0.iter().map(ToString::to_string).collect())
    }

    fn upstreams(file: &str) -> Vec<Upstream> {
        resolve(file, RunFlags::default()).unwrap_or_else(|faults| panic!("{faults:?}")).config.upstreams
    }

    fn faults(file: &str) -> Vec<String> {
        resolve(file, RunFlags::default()).expect_err(file)
    }

    fn warnings(file: &str) -> Vec<String> {
        resolve(file, RunFlags::default()).unwrap_or_else(|faults| panic!("{faults:?}")).warnings(&MACHINE)
    }

    #[test]
    fn defaults_follow_place_kind_and_dispatch() {
        let file = "[[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\n\
                    [[upstream]]\nname = \"b.2\"\nurl = \"http://b\"\ndispatch = \"message\"\n\
                    [[upstream]]\nurl = \"http://c\"\nhub_id = \"node\"\nhalt_pipeline = false\n";
        let [observer, b, c] = <[Upstream; 3]>::try_from(upstreams(file)).unwrap();
        assert_eq!([&observer.name, &b.name, &c.name], ["upstream-1", "b.2", "upstream-3"]);
        assert_eq!((observer.kind, observer.halt_pipeline, observer.filter), (UpstreamKind::Observer, false, None));
        assert_eq!(observer.forward_headers, HeaderPolicy::Only(vec!["Host".into(), "User-Agent".into()]));
        assert_eq!((b.kind, b.halt_pipeline, b.forward_headers), (UpstreamKind::AppServer, true, HeaderPolicy::All));
        assert_eq!((observer.dispatch, observer.hub_id), (Dispatch::Client, HubScope::Lane));
        assert_eq!((b.dispatch, b.hub_id), (Dispatch::Message, HubScope::Node));
        assert_eq!((c.dispatch, c.hub_id, c.halt_pipeline), (Dispatch::Client, HubScope::Node, false));
    }

    #[test]
    fn urls_are_texts_or_have_weights() {
        let urls = |urls: &str| -> Vec<(String, u16)> {
            let found = upstreams(&format!("[[upstream]]\n{urls}\n")).remove(0).urls;
            found.into_iter().map(|target| (target.url.text, target.weight)).collect()
        };
        assert_eq!(urls("url = \"http://a/\""), [("http://a".into(), 1)]);
        assert_eq!(urls("urls = [\"http://a\", \"http://b\"]"), [("http://a".into(), 1), ("http://b".into(), 1)]);
        assert_eq!(
            urls("urls = [{ url = \"http://a\", weight = 1000 }, \"http://b\", { url = \"http://c\" }]"),
            [("http://a".into(), 1000), ("http://b".into(), 1), ("http://c".into(), 1)]
        );
        for (wrong, said) in [
            ("urls = []", "is empty; give url = \"http://a\", or urls = [...] with one at least"),
            (
                "urls = [3]",
                "wrong type: an entry is neither text nor table; write \"http://a\" or { url = \"http://a\", weight = 3 }",
            ),
            (
                "url = 3",
                "wrong type: expected text in quotes, found an integer; it takes http://, https://, ws:// or wss:// URL, or a list of up to 16",
            ),
            (
                "urls = [{ url = \"http://a\", weight = 0 }]",
                "a weight is out of range; it takes 1 to 1000, in whole numbers",
            ),
            (
                "urls = [{ url = \"http://a\", weight = 1001 }]",
                "a weight is out of range; it takes 1 to 1000, in whole numbers",
            ),
            (
                "urls = [{ url = \"http://a\", weight = \"2\" }]",
                "wrong type: weight of an entry; write { url = \"http://a\", weight = 3 }",
            ),
            ("urls = [{ url = \"http://a\", wieght = 2 }]", "unknown key \"wieght\" in an entry; did you mean weight?"),
            ("urls = [{ weight = 2 }]", "an entry has no url; write { url = \"http://a\", weight = 3 }"),
            (
                "urls = [\"http://a\", \"ws://A:80/\"]",
                "ws://A:80 is given twice; give it once; a larger share of clients is a weight",
            ),
        ] {
            assert_eq!(
                faults(&format!("[[upstream]]\n{wrong}\n")),
                [format!("n.toml:2: upstream.url: {said}")],
                "{wrong}"
            );
        }
        assert_eq!(faults("[[upstream]]\nurls = [\"a\", \"ftp://b\"]\n").len(), 2);
        let seventeen: Vec<String> = (1..=17).map(|host| format!("http://h{host}")).collect();
        let found = resolve("", RunFlags::default().with(Key::Url, seventeen.join(","))).unwrap_err();
        assert_eq!(found, ["--app-server: upstream.url: 17 urls are too many; give 16 at most"]);
        let flags = seventeen[..16].iter().fold(RunFlags::default(), |flags, url| flags.with(Key::Url, url));
        assert_eq!(resolve("", flags).unwrap().config.upstreams[0].urls.len(), 16);
    }

    #[test]
    fn what_upstreams_say_wrongly_is_said_with_its_place() {
        for (file, expected) in [
            (
                "[[upstream]]\nname = \"a b\"\nurl = \"http://a\"\n",
                "n.toml:2: upstream.name: \"a b\" is not a name of upstreams; write 1 to 64 of A-Z a-z 0-9 _ . -",
            ),
            (
                "[[upstream]]\nname = \"a\"\nurl = \"http://a\"\n[[upstream]]\nname = \"a\"\nurl = \"http://b\"\nfilter = 'vm_id == \"A\"'\n",
                "n.toml:5: upstream.name: upstreams 1 and 2 are both called \"a\"; give each a name of its own",
            ),
            (
                "[[upstream]]\nname = \"upstream-2\"\nurl = \"http://a\"\n[[upstream]]\nurl = \"http://b\"\n",
                "n.toml:2: upstream.name: upstreams 1 and 2 are both called \"upstream-2\"; give each a name of its own",
            ),
            (
                "[[upstream]]\nurl = \"http://a\"\n[[upstream]]\nname = \"chat\"\n",
                "n.toml:3: upstream.url: \"chat\" has no url; write url = \"http://...\" below this line",
            ),
            (
                "[[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\n",
                "n.toml:2: upstream.kind: an observer answers nothing, and there is no app server; add an [[upstream]] with the url of an app server",
            ),
            (
                "[[upstream]]\nurl = \"http://a\"\n[[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\nhalt_pipeline = true\n",
                "n.toml:6: upstream.halt_pipeline: an observer answers nothing, so that no message may stop there; leave it out or write false",
            ),
            (
                "[[upstream]]\nkind = \"proxy\"\nurl = \"http://a\"\n",
                "n.toml:2: upstream.kind: \"proxy\" is none of app-server, observer; known here: app-server, observer",
            ),
            (
                "[[upstream]]\nurl = \"http://a\"\ndispatch = \"message\"\nhub_id = \"lane\"\n",
                "n.toml:3: upstream.dispatch: dispatch = \"message\" does not go with hub_id = \"lane\": the app server would address groups through one lane a hub id, and any lane may carry the messages of any client; write hub_id = \"node\" or leave it out, or write dispatch = \"client\"",
            ),
            (
                "[[upstream]]\nurl = \"http://a\"\nhub_id = \"node\"\nfilter = 'vm_id == \"A\"'\n[[upstream]]\nname = \"b\"\nurls = [\"http://b\", \"ws://A:80/\"]\ndispatch = \"message\"\n",
                "n.toml:8: upstream.dispatch: \"upstream-1\" and \"b\" share one hub id at ws://A:80: the app server would send groups over the lanes of either, and clients of the other would miss them; join them to one [[upstream]], or write hub_id = \"lane\" and dispatch = \"client\" for one of them",
            ),
            (
                "[[upstream]]\nurls = [\"http://a\", \"http://127.0.0.1:5000\"]\n",
                "n.toml:2: upstream.url: the app server http://127.0.0.1:5000 is this node's own address; give the address of the dotNetify app server",
            ),
            (
                "[[upstream]]\nurls = [\"http://a\", \"http://b/x/dotnetify\"]\n",
                "n.toml:2: upstream.url: http://b/x/dotnetify ends with the hub path /dotnetify, which is added by itself; write http://b/x",
            ),
            (
                "[hub]\nmaximum_receive_message_size = \"64KiB\"\n[[upstream]]\nname = \"a\"\nurl = \"http://a\"\nfilter = 'vm_id == \"A\"'\nmaximum_receive_message_size = \"48KiB\"\n\
                 [[upstream]]\nname = \"b\"\nurl = \"http://b\"\nmaximum_receive_message_size = \"1MiB\"\n[[upstream]]\nname = \"c\"\nurl = \"http://c\"\n[[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\n",
                "n.toml:2: hub.maximum_receive_message_size: hub.maximum_receive_message_size (64KiB) is more than upstream.maximum_receive_message_size of \"a\" (48KiB), \"c\" (32KiB); raise HubOptions.MaximumReceiveMessageSize of those app servers and say so in upstream.maximum_receive_message_size, or lower hub.maximum_receive_message_size to 32KiB",
            ),
            (
                "shards = 1\n[[upstream]]\nurls = [\"http://a\", \"http://b\"]\nconnection_pool_size = 513\n",
                "n.toml:4: upstream.connection_pool_size: 1026 lanes on each of 1 shards are too many; lower connection_pool_size or take away urls until there are 1024 at most; each url has a pool of its own",
            ),
            (
                "peers = [\"node-2:9090\", \"localhost:9090\"]\n[[upstream]]\nurl = \"http://a\"\n",
                "n.toml:1: peers: localhost:9090 is this node's own admin address (127.0.0.1:9090); list other nodes only; this one is in its own picture anyway",
            ),
            (
                "peers = [\"node-2:9090\", \"http://NODE-2:9090\"]\n[[upstream]]\nurl = \"http://a\"\n",
                "n.toml:1: peers: node-2:9090 is given twice; give it once",
            ),
        ] {
            assert_eq!(faults(file), [expected], "{file}");
        }
    }

    #[test]
    fn tls_is_asked_for_by_one_url_at_least() {
        let with = |urls: &str| {
            format!(
                "{A}[[upstream]]\nurls = {urls}\nca_file = \"{PEM}\"\nclient_key_file = \"{PEM}\"\nclient_certificate_file = \"{PEM}\"\n"
            )
        };
        assert!(upstreams(&with("[\"http://b\", \"https://c\"]"))[1].client_certificate.is_some());
        let found = faults(&with("[\"http://b\", \"ws://c\"]"));
        let said = "it is for TLS, and none of http://b, ws://c is encrypted; write https:// in the app server's url, or leave it out";
        assert_eq!(
            found,
            [
                format!("n.toml:5: upstream.ca_file: {said}"),
                format!("n.toml:6: upstream.client_key_file: {said}"),
                format!("n.toml:7: upstream.client_certificate_file: {said}")
            ]
        );
        let half = format!("{A}[[upstream]]\nurl = \"https://b\"\nclient_key_file = \"{PEM}\"\n");
        assert_eq!(
            faults(&half),
            [
                "n.toml:5: upstream.client_key_file: it is given without client_certificate_file; give upstream.client_certificate_file as well"
            ]
        );
    }

    #[test]
    fn lanes_of_all_upstreams_count_for_open_files_and_shards() {
        let file = "shards = 2\n[[upstream]]\nurls = [\"http://a\", \"http://b\"]\nconnection_pool_size = 3\nfilter = 'vm_id == \"A\"'\n\
                    [[upstream]]\nurl = \"http://c\"\nconnection_pool_size = 1\n";
        let config = resolve(file, RunFlags::default()).unwrap().config;
        assert_eq!(config.lanes(), 2 * 3 + 2);
        let places = |shard| -> Vec<(u8, u8)> {
            let places = config.lanes_of(crate::ids::ShardId(shard));
            places.into_iter().map(|place| (place.upstream.0, place.url)).collect()
        };
        assert_eq!(places(0), [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0)]);
        assert_eq!(places(1), [(0, 0), (0, 1), (1, 0)]);

        let machine = Machine { cores: 2, nofile: 1000 };
        let most = |file: &str| {
            let resolved = Resolved::of(Some(("n.toml", file)), std::iter::empty(), &RunFlags::default(), &machine);
            resolved.unwrap().config.limits.max_clients
        };
        // Slack, two shards, two descriptors a lane.
        assert_eq!(most(file), 1000 - 2 * 64 - 2 * 8 - 8 * 2);
        assert_eq!(most(&format!("peers = [\"x:1\", \"y:1\"]\n{file}")), most(file) - 2);
        // 256 shards with a lane each to 65 urls.
        let many: String = (0..5)
            .map(|upstream| {
                let urls: Vec<String> = (0..13).map(|url| format!("\"http://h{upstream}-{url}\"")).collect();
                format!("[[upstream]]\nurls = [{}]\nfilter = 'vm_id == \"A\"'\n", urls.join(", "))
            })
            .collect();
        let found = faults(&format!("shards = 256\n{many}"));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains(": 16640 lanes of all shards are too many; ") && found[0].contains("16384 at most"),
            "{found:?}"
        );
    }

    #[test]
    fn a_filter_that_asks_who_the_user_is_needs_an_identity() {
        let with = |filter: &str| format!("{A}filter = '{filter}'\n");
        let remedy =
            "give identity.signing_key, signing_key_file, public_key_file or jwks_file, or take it out of the filter";
        assert_eq!(
            faults(&with("user == \"bob\"")),
            [format!(
                "n.toml:3: upstream.filter: the filter looks at user, and user is never there, since no token of users is verified; {remedy}"
            )]
        );
        assert_eq!(
            faults(&with("claims.role == \"a\" || user == \"bob\"")),
            [format!(
                "n.toml:3: upstream.filter: the filter looks at user and claims, and user and claims are never there, since no token of users is verified; {remedy}"
            )]
        );
        let identity = format!("[identity]\njwks_file = \"{PEM}\"\n");
        assert!(upstreams(&format!("{identity}{}", with("user == \"bob\"")))[0].filter.is_some());
        // What is wrong with the identity already is not said twice.
        let found = faults(&format!("[identity]\njwks_file = \"/nonexistent\"\n{}", with("user == \"bob\"")));
        assert!(found.len() == 1 && found[0].contains("jwks_file"), "{found:?}");
    }

    #[test]
    fn a_fault_of_a_filter_has_its_place_in_the_expression() {
        let found = faults(&format!("{A}filter = 'vm_id == \"A\" && vmid == \"B\"'\n"));
        assert!(found.len() == 1 && found[0].starts_with("n.toml:3: upstream.filter: at column 17: "), "{found:?}");
        assert!(found[0].ends_with("\n      vm_id == \"A\" && vmid == \"B\"\n                      ^"), "{found:?}");
        let found = faults(&format!("{A}filter = \"vm_id == \\u0001\"\n"));
        assert!(
            found[0].starts_with("n.toml:3: upstream.filter: at column 10: it has a control character; "),
            "{found:?}"
        );
        let found = faults(&format!("{A}filter = 'vm_id == \"{}\"'\n", "a".repeat(FILTER_BYTES_MAX)));
        assert!(found[0].contains("a filter of 4107 bytes is too long; write 4096 bytes at most"), "{found:?}");
        assert!(faults(&format!("{A}filter = ' '\n"))[0].contains("is empty; give a CEL expression"));
    }

    #[test]
    fn what_is_probably_not_meant_is_warned_of() {
        let b = "[[upstream]]\nname = \"b\"\nurl = \"http://b\"\n";
        let filter = "filter = 'vm_id == \"A\"'\n";
        let observer = "[[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\n";
        let mirror = "halt_pipeline = false\n";
        for (file, expected) in [
            (format!("{A}{filter}{b}{observer}"), ""),
            // An observer sees everything, wherever it stands.
            (format!("{observer}{A}"), ""),
            (format!("{A}{observer}"), ""),
            (format!("{A}{mirror}{b}"), ""),
            (format!("{A}{b}"), "\"upstream-1\" has no filter and halts, so that no message reaches \"b\" behind it"),
            (
                format!("{A}{filter}{b}{mirror}{observer}"),
                "\"b\" is the last app server and has halt_pipeline = false: requests that go there are also answered as those of an unknown view model",
            ),
            (
                format!("{A}{filter}{}", b.replace("http://b", "ws://A:80/")),
                "ws://A:80 is a url of \"upstream-1\" and of \"b\": each has its own lanes to it, where the C# proxy has one pool a url",
            ),
            (
                format!(
                    "{A}{filter}{}",
                    b.replace("url = \"http://b\"", "urls = [\"http://b\", \"http://c\"]\nconnection_pool_size = 2")
                ),
                "connection_pool_size = 2 of \"b\" is less than shards = 4: 4 lanes are used to each url, one a shard",
            ),
        ] {
            let found = warnings(&file);
            assert_eq!(found, if expected.is_empty() { vec![] } else { vec![expected] }, "{file}");
        }
    }

    #[test]
    fn contexts_are_kept_once_for_upstreams_that_are_told_the_same() {
        let kinds = |file: &str| resolve(file, RunFlags::default()).unwrap().config.context_kinds();
        let observer = "[[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\n";
        assert_eq!(kinds(A), 1);
        assert_eq!(kinds(&format!("{A}[[upstream]]\nurl = \"http://b\"\nconnection_pool_size = 9\n")), 1);
        assert_eq!(kinds(&format!("{A}[[upstream]]\nurl = \"http://b\"\nuse_message_pack = true\n{observer}")), 3);
        assert_eq!(kinds(&format!("{A}{observer}forward_headers = \"all\"\n")), 2);
    }
}
