//! Which upstreams a message goes to (contract 5): the configured ones in order, until one takes it and halts.
use super::views::Upstreams;
use crate::filter::{Facts, Filter, Needs, Undecided};

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
        let mut needs = Needs::default();
        for filter in routes.iter().filter_map(|route| route.filter.as_ref()) {
            needs = needs.with(filter.needs());
        }
        Routes { routes, halting, observers, plain: is_plain.then_some(all), needs }
    }

    /// What the filters look at.
    pub fn needs(&self) -> Needs {
        self.needs
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

    pub fn is_observer(&self, index: usize) -> bool {
        self.observers.has(index)
    }

    /// Is it one whose clients expect answers from it? The loss of a mirror or an observer is nothing to them.
    pub fn is_answering(&self, index: usize) -> bool {
        self.halting.has(index)
    }
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
}
