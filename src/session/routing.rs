//! Which upstreams a message goes to (contract 5): the configured ones in order, until one takes it and halts.
use super::views::Upstreams;
use crate::filter::{Facts, Filter, HeaderNames, Needs, Undecided};
use crate::ids::{LanePlace, UpstreamIndex};

/// What an upstream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamKind {
    #[default]
    AppServer,
    /// A DotNetify-Observer (contract 7.2): sees the traffic of clients without payloads, and never answers.
    Observer,
}

/// How a client's messages are dealt over an upstream's lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dispatch {
    /// All take one lane: they stay in order.
    #[default]
    Client,
    /// Each takes the next lane, as in the original: they may overtake each other (contract 4.2).
    Message,
}

/// What shares a hub id (contract 6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HubScope {
    /// Every incarnation of a lane has its own.
    #[default]
    Lane,
    /// All lanes of the node, as in the original.
    Node,
}

/// An upstream as routing sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub kind: UpstreamKind,
    /// None takes everything.
    pub filter: Option<Filter>,
    /// A message that is taken stops here.
    pub halts: bool,
}

/// The upstreams of a node, as routing sees them.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    halting: Upstreams,
    observers: Upstreams,
    /// There is nothing to choose: one app server that takes everything, and perhaps observers that see everything.
    plain: Option<Upstreams>,
    needs: Needs,
    headers: HeaderNames,
}

impl Routes {
    /// At most `UPSTREAMS_MAX`, in the order of the configuration.
    pub fn new(routes: Vec<Route>) -> Routes {
        let of = |wanted: &dyn Fn(&Route) -> bool| {
            let mut upstreams = Upstreams::default();
            routes.iter().enumerate().filter(|(_, route)| wanted(route)).for_each(|(index, _)| upstreams.add(index));
            upstreams
        };
        let observers = of(&|route| route.kind == UpstreamKind::Observer);
        let halting = of(&|route| route.kind == UpstreamKind::AppServer && route.halts);
        let all = of(&|_| true);
        let app_servers = routes.iter().filter(|route| route.kind == UpstreamKind::AppServer).count();
        let is_plain = app_servers == 1 && !halting.is_empty() && routes.iter().all(|route| route.filter.is_none());
        let (mut needs, mut headers) = (Needs::default(), HeaderNames::default());
        for filter in routes.iter().filter_map(|route| route.filter.as_ref()) {
            needs = needs.with(filter.needs());
            headers = headers.with(filter.headers());
        }
        Routes { routes, halting, observers, plain: is_plain.then_some(all), needs, headers }
    }

    /// The same with other filters, one each, of which these `know` what they need.
    pub fn with_filters(&self, filters: impl IntoIterator<Item = Option<Filter>>) -> Routes {
        let mut routes = self.clone();
        for (route, filter) in routes.routes.iter_mut().zip(filters) {
            route.filter = filter;
        }
        // What is gathered of clients stays as much as it was, for filters to come.
        let all = Routes::new(core::mem::take(&mut routes.routes));
        Routes {
            plain: self.plain.and(all.plain),
            needs: self.needs.with(all.needs),
            headers: self.headers.clone(),
            ..all
        }
    }

    /// Is everything that other filters ask for known of the clients and view models that began under these?
    pub fn know(&self, other: &Routes) -> bool {
        let (known, asked) = (self.needs, other.needs);
        let is_gathered = (known.headers || !asked.headers)
            && (known.path || !asked.path)
            && (known.claims || !asked.claims)
            && self.headers.include(&other.headers);
        is_gathered && (self.plain.is_none() || other.plain.is_some())
    }

    /// What the filters look at.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// The headers they look at.
    pub fn headers(&self) -> &HeaderNames {
        &self.headers
    }

    /// Where everything goes, if there is nothing to choose.
    pub fn plain(&self) -> Option<Upstreams> {
        self.plain
    }

    /// Those whose filters take a message: in order, up to the first that halts. Observers see what their filters admit, whatever place
    /// they have: in the original one behind a forwarder that halts would see nothing. `undecided` hears of the filters that could
    /// not be evaluated, which take nothing.
    pub fn choose(&self, facts: &Facts<'_>, mut undecided: impl FnMut(usize, Undecided)) -> Upstreams {
        let mut chosen = Upstreams::default();
        let mut halted = false;
        for (index, route) in self.routes.iter().enumerate() {
            if halted && !self.observers.has(index) {
                continue;
            }
            let takes = route.filter.as_ref().is_none_or(|filter| {
                filter.matches(facts).unwrap_or_else(|error| {
                    undecided(index, error);
                    false
                })
            });
            if takes {
                chosen.add(index);
                halted |= self.halting.has(index);
            }
        }
        chosen
    }

    /// The one of them that answers: where the message stops.
    pub fn answering(&self, chosen: Upstreams) -> Option<usize> {
        Upstreams(chosen.0 & self.halting.0).each().next()
    }

    pub fn has_observers(&self) -> bool {
        !self.observers.is_empty()
    }

    pub fn is_observer(&self, index: usize) -> bool {
        self.observers.has(index)
    }

    /// Is it one whose clients expect answers from it? The loss of a mirror or an observer is nothing to them.
    pub fn is_answering(&self, index: usize) -> bool {
        self.halting.has(index)
    }
}

/// A lane as dealing clients over lanes sees it.
#[derive(Clone, Copy)]
pub struct Candidate {
    pub place: LanePlace,
    pub is_up: bool,
    /// Pinned to it.
    pub clients: u32,
}

/// The lane for a client that is new to an upstream. Among the urls with a lane that is up, or among all if there is none, the one with
/// the fewest clients for its weight; of its lanes the one with the fewest. Lanes to one url stand together. Each is looked at once or
/// twice: there may be a thousand, and a hundred thousand clients to be dealt. None if the upstream has no lane.
pub fn least_loaded<L>(
    lanes: &[L],
    upstream: UpstreamIndex,
    weights: &[u16],
    seen: impl Fn(&L) -> Candidate,
) -> Option<usize> {
    let mut best = None;
    let mut start = 0;
    for pool in lanes.chunk_by(|lane, next| seen(lane).place == seen(next).place) {
        let (place, first) = (seen(pool.first()?).place, start);
        start += pool.len();
        if place.upstream != upstream {
            continue;
        }
        let clients: u64 = pool.iter().map(|lane| u64::from(seen(lane).clients)).sum();
        let weight = weights.get(usize::from(place.url)).map_or(1, |weight| u64::from(*weight).max(1));
        // Of two urls with the same number of clients for their weight the heavier is first.
        let key = (!pool.iter().any(|lane| seen(lane).is_up), (clients + 1) * 1_000_000 / weight);
        if best.as_ref().is_none_or(|(least, _)| key < *least) {
            best = Some((key, first..start));
        }
    }
    best?.1.min_by_key(|index| {
        let Candidate { is_up, clients, .. } = seen(&lanes[*index]);
        (!is_up, clients)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::dotnetify::request::Call;

    fn route(kind: UpstreamKind, filter: Option<&str>, halts: bool) -> Route {
        Route { kind, filter: filter.map(|text| Filter::compile(text).unwrap()), halts }
    }

    fn facts(vm_id: &'static str) -> Facts<'static> {
        Facts {
            call: Call::RequestVm,
            vm_id: vm_id.as_bytes(),
            connection_id: "",
            user: None,
            path: "",
            headers: &[],
            claims: None,
            data: None,
        }
    }

    #[test]
    fn the_first_that_halts_ends_it_and_observers_see_everything() {
        use UpstreamKind::{AppServer, Observer};
        let routes = Routes::new(vec![
            route(AppServer, Some("vm_id == 'A'"), true),
            route(AppServer, Some("vm_id != 'C'"), false),
            route(AppServer, Some("vm_id == 'A' || vm_id == 'B'"), true),
            route(Observer, None, false),
        ]);
        let chosen = |vm_id| routes.choose(&facts(vm_id), |_, _| unreachable!()).each().collect::<Vec<_>>();
        assert_eq!(chosen("\"A\""), [0, 3]);
        assert_eq!(chosen("\"B\""), [1, 2, 3]);
        assert_eq!(chosen("\"C\""), [3]);
        assert_eq!(chosen("\"D\""), [1, 3]);
        let answering = |vm_id| routes.answering(routes.choose(&facts(vm_id), |_, _| ()));
        assert_eq!([answering("\"A\""), answering("\"B\""), answering("\"D\"")], [Some(0), Some(2), None]);
        assert!(routes.plain().is_none() && routes.is_observer(3) && !routes.is_answering(1));
        let plain = Routes::new(vec![route(Observer, None, false), route(AppServer, None, true)]);
        assert_eq!(plain.plain(), Some(Upstreams(3)));
        assert!(Routes::new(vec![route(AppServer, None, false)]).plain().is_none(), "nobody answers");
    }

    #[test]
    fn clients_are_dealt_by_weight_over_the_urls_that_are_up() {
        let lane = |upstream, url, is_up| Candidate {
            place: LanePlace { upstream: UpstreamIndex(upstream), url },
            is_up,
            clients: 0,
        };
        // Upstream 1 has three urls: of the weights 1 and 3, and one whose second lane only is up.
        let mut lanes = vec![lane(0, 0, true), lane(1, 0, true), lane(1, 0, true), lane(1, 1, true), lane(1, 1, true)];
        lanes.extend([lane(1, 2, false), lane(1, 2, true), lane(2, 0, true)]);
        let deal = |lanes: &mut Vec<Candidate>, count| {
            for _ in 0..count {
                let index = least_loaded(lanes, UpstreamIndex(1), &[1, 3, 1], |lane| *lane).unwrap();
                lanes[index].clients += 1;
            }
            lanes.iter().map(|lane| lane.clients).collect::<Vec<_>>()
        };
        assert_eq!(deal(&mut lanes, 1), [0, 0, 0, 1, 0, 0, 0, 0], "the heavier first");
        assert_eq!(deal(&mut lanes, 99), [0, 10, 10, 30, 30, 0, 20, 0]);
        // A url that is down is left out, however few clients it has.
        lanes[6].is_up = false;
        assert_eq!(deal(&mut lanes, 40), [0, 15, 15, 45, 45, 0, 20, 0]);
        // With all down they are dealt all the same.
        lanes.iter_mut().for_each(|lane| lane.is_up = false);
        assert_eq!(deal(&mut lanes, 10)[5..7], [10, 20]);
        assert_eq!(least_loaded(&lanes, UpstreamIndex(3), &[], |lane| *lane), None);
    }
}
