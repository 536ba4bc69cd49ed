//! Which upstreams a message goes to (contract 5): the configured ones in order, until one takes it and halts.
use crate::filter::Filter;

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
