//! Upstreams as a shard knows them: what its lanes speak, what they show of clients, and who shares a hub id.
use crate::bus::settings::UpstreamRenewal;
use crate::ids::LanePlace;
use crate::limits::CONTEXT_BYTES_MAX;
use crate::proto::dotnetify::context::{self, HeaderPolicy, Peer, Prepared};
use crate::proto::signalr::Protocol;
use crate::session::groups::Groups;
use crate::session::routing::{Dispatch, HubScope, Route, Routes};
use core::time::Duration;

/// One of the configuration's upstreams.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// For the log.
    pub name: String,
    pub route: Route,
    pub protocol: Protocol,
    /// Largest record it takes (its `MaximumReceiveMessageSize`).
    pub message_bytes_max: u32,
    pub forward_headers: HeaderPolicy,
    /// In place of what clients say in their `Host`.
    pub shown_host: Option<String>,
    pub dispatch: Dispatch,
    pub hub_scope: HubScope,
    /// Invocations are acknowledged; None: they are not, and nothing says what the app server has done.
    pub window: Option<Window>,
    /// Of each url, at least 1.
    pub weights: Vec<u16>,
}

/// How much an app server may owe on one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Invocations that it has not answered, at the most.
    pub messages: u32,
    /// Without any answer for so long a lane is stuck.
    pub timeout: Duration,
}

/// The upstreams of a shard with what follows from them.
#[derive(Clone, Debug)]
pub struct Upstreams {
    all: Vec<Upstream>,
    pub(super) routes: Routes,
    /// The different ways in which clients are shown.
    views: Vec<View>,
    /// Which of them an upstream gets.
    view_of: Vec<usize>,
}

/// What a context's headers depend on.
#[derive(Clone, Debug, PartialEq)]
struct View {
    protocol: Protocol,
    forward_headers: HeaderPolicy,
    shown_host: Option<String>,
}

impl Upstreams {
    /// In the order of the configuration; at least one.
    pub fn new(all: Vec<Upstream>) -> Upstreams {
        let (mut views, mut view_of) = (Vec::new(), Vec::new());
        for upstream in &all {
            let view = View {
                protocol: upstream.protocol,
                forward_headers: upstream.forward_headers.clone(),
                shown_host: upstream.shown_host.clone(),
            };
            let known = views.iter().position(|known| *known == view);
            view_of.push(known.unwrap_or(views.len()));
            if known.is_none() {
                views.push(view);
            }
        }
        let routes = Routes::new(all.iter().map(|upstream| upstream.route.clone()).collect());
        Upstreams { all, routes, views, view_of }
    }

    /// Filters, weights and sizes change. Live view models stay where they are.
    pub(super) fn renew(&mut self, renewals: Vec<UpstreamRenewal>) {
        for (upstream, renewal) in self.all.iter_mut().zip(renewals) {
            let UpstreamRenewal { filter, weights, message_bytes_max, in_flight_max, acknowledge_timeout } = renewal;
            upstream.route.filter = filter;
            (upstream.weights, upstream.message_bytes_max) = (weights, message_bytes_max);
            if let Some(window) = &mut upstream.window {
                *window = Window { messages: in_flight_max, timeout: acknowledge_timeout };
            }
        }
        self.routes = self.routes.with_filters(self.all.iter().map(|upstream| upstream.route.filter.clone()));
    }

    /// What filters are to know of the request that begins a client; nothing else of it is kept, least of all secrets.
    pub(super) fn seen(&self, path: &str, headers: &[(&str, &[u8])]) -> Option<Seen> {
        let needs = self.routes.needs();
        if !needs.headers && !needs.path {
            return None;
        }
        let mut kept: Vec<(Box<str>, Box<str>)> = Vec::new();
        for (name, value) in headers {
            let (name, value) = (name.to_ascii_lowercase(), String::from_utf8_lossy(value));
            if !self.routes.headers().has(&name) {
                continue;
            }
            // RFC 9110 section 5.3: several of one name are a list.
            match kept.iter_mut().find(|(known, _)| **known == *name) {
                Some((_, values)) => *values = format!("{values}, {value}").into(),
                None => kept.push((name.into(), value.into())),
            }
        }
        let path = if needs.path { path } else { "" };
        Some(Seen { path: path.into(), headers: kept.into() })
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, index: usize) -> &Upstream {
        &self.all[index]
    }

    pub(super) fn of(&self, place: LanePlace) -> &Upstream {
        self.get(usize::from(place.upstream.0))
    }

    /// What all lanes together speak.
    pub(super) fn speaks(&self, protocol: Protocol) -> bool {
        self.all.iter().any(|upstream| upstream.protocol == protocol)
    }

    /// Prepares what upstreams are shown of a client: the values of its connection, and the headers in every way one of them is shown
    /// them, ready for `headers`. The second is whether any had to be left out.
    pub(super) fn show(&self, peer: &Peer<'_>) -> (Box<[u8]>, Vec<u8>, bool) {
        let mut connection = Box::default();
        let (mut shown, mut shortened) = (Vec::new(), false);
        for view in &self.views {
            let (prepared, short) = view.prepare(peer);
            shortened |= short;
            if self.views.len() > 1 {
                shown.extend_from_slice(&(prepared.headers.len() as u32).to_ne_bytes());
            }
            shown.extend_from_slice(&prepared.headers);
            connection = prepared.connection;
        }
        (connection, shown, shortened)
    }

    /// An upstream's part of what `show` prepared.
    pub(super) fn headers<'a>(&self, upstream: usize, mut shown: &'a [u8]) -> &'a [u8] {
        if self.views.len() == 1 {
            return shown;
        }
        let mut skip = self.view_of[upstream];
        loop {
            let Some((length, rest)) = shown.split_first_chunk() else { return &[] };
            let (headers, rest) = rest.split_at(u32::from_ne_bytes(*length) as usize);
            if skip == 0 {
                return headers;
            }
            (skip, shown) = (skip - 1, rest);
        }
    }
}

impl View {
    fn prepare(&self, peer: &Peer<'_>) -> (Prepared, bool) {
        let bytes = |prepared: &Prepared| prepared.connection.len() + prepared.headers.len();
        let prepared = self.prepare_with(peer, |_| true);
        if bytes(&prepared) <= CONTEXT_BYTES_MAX {
            return (prepared, false);
        }
        // It goes with every message and is kept as long as the client lives. First what identifies the client is kept
        // (contract 6.6), then nothing.
        let few =
            self.prepare_with(peer, |name| ["host", "user-agent"].iter().any(|few| few.eq_ignore_ascii_case(name)));
        if bytes(&few) <= CONTEXT_BYTES_MAX {
            return (few, true);
        }
        (self.prepare_with(peer, |_| false), true)
    }

    fn prepare_with(&self, peer: &Peer<'_>, admits: impl Fn(&str) -> bool) -> Prepared {
        let shown = peer.headers.iter().filter(|(name, _)| admits(name) && self.forward_headers.admits(name));
        let shown: Vec<(&str, &[u8])> = shown
            .map(|(name, value)| match &self.shown_host {
                Some(host) if name.eq_ignore_ascii_case("host") => (*name, host.as_bytes()),
                _ => (*name, *value),
            })
            .collect();
        context::prepare(self.protocol, &Peer { headers: &shown, ..*peer })
    }
}

/// Clients that an app server takes to be behind one hub id: their groups and users. One for each lane, or for all lanes to one url.
#[derive(Default)]
pub(super) struct Hub {
    pub(super) groups: Groups,
    /// Clients by user id.
    pub(super) users: Groups,
}

/// What filters are told of the request that began a client.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) path: Box<str>,
    pub(super) headers: Box<[(Box<str>, Box<str>)]>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use crate::session::routing::UpstreamKind;

    fn with(filters: &[&str]) -> Upstreams {
        let upstream = |filter: &&str| Upstream {
            name: "a".into(),
            route: Route { kind: UpstreamKind::AppServer, filter: Some(Filter::compile(filter).unwrap()), halts: true },
            protocol: Protocol::Json,
            message_bytes_max: 32 * 1024,
            forward_headers: HeaderPolicy::All,
            shown_host: None,
            dispatch: Dispatch::Client,
            hub_scope: HubScope::Lane,
            window: None,
            weights: vec![1],
        };
        Upstreams::new(filters.iter().map(upstream).collect())
    }

    #[test]
    fn of_a_request_nothing_is_kept_but_what_filters_ask_for() {
        let headers: &[(&str, &[u8])] =
            &[("Cookie", b"secret"), ("X-Beta", b"1"), ("Authorization", b"Bearer secret"), ("x-beta", b"2")];
        let kept = |filters: &[&str]| {
            let seen = with(filters).seen("/hub", headers)?;
            let names = seen.headers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
            Some(format!("{} {}", seen.path, names.join(" ")))
        };
        assert_eq!(kept(&["vm_id == \"A\"", "data.x == 1"]), None);
        assert_eq!(kept(&["vm_id == \"A\"", "\"x-beta\" in headers"]).as_deref(), Some(" x-beta=1, 2"));
        assert_eq!(kept(&["path == \"/\"", "headers.x == \"1\""]).as_deref(), Some("/hub "));
        assert_eq!(
            kept(&["has(headers.cookie)", "size(headers) > 3"]).as_deref(),
            Some(" cookie=secret x-beta=1, 2 authorization=Bearer secret")
        );
    }
}
