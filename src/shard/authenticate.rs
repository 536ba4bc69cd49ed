//! Who a request comes from: tokens of the connection and of messages, verified with the keys of the configuration.
use super::Shard;
use super::socket::User;
use super::upstreams::Upstreams;
use crate::identity::{self, Authentication, Identity, Required};
use crate::metrics::{Counter, ShardMetrics};
use crate::proto::dotnetify::context;
use crate::proto::dotnetify::headers;
use crate::proto::http::{Head, HttpError};
use crate::proto::signalr::Protocol;
use crate::session::fault::Refusal;
use crate::sys::Io;
use std::sync::Arc;

impl Authentication {
    fn verify(
        &self,
        token: &str,
        now_unix_seconds: u64,
        upstreams: &Upstreams,
        is_connections: bool,
        metrics: &mut ShardMetrics,
    ) -> Option<Box<User>> {
        match self.identity.verify(token, now_unix_seconds) {
            Ok(identity::User { id, expires_unix_seconds: expires, claims, all_claims }) => {
                metrics.add(Counter::TokenAccepted, 1);
                let named: Vec<(String, &str)> =
                    claims.iter().map(|(name, value)| (format!("claim:{name}"), value.as_str())).collect();
                let pairs: Vec<(&str, &str)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                let items = [Protocol::Json, Protocol::MessagePack].map(|protocol| {
                    if upstreams.speaks(protocol) {
                        context::prepare_items(protocol, &pairs)
                    } else {
                        Default::default()
                    }
                });
                let claims = upstreams.routes.needs().claims.then_some(all_claims);
                Some(Box::new(User { id, expires, items, claims, is_connections }))
            }
            Err(fault) => {
                metrics.add(Counter::token(fault.label()), 1);
                None
            }
        }
    }

    /// The user of a request for a view model, from its `$headers`: new, or None where they name nobody.
    pub(super) fn of_message(
        &self,
        argument: &[u8],
        now_unix_seconds: u64,
        upstreams: &Upstreams,
        metrics: &mut ShardMetrics,
    ) -> Option<Box<User>> {
        let authorization = headers::authorization(argument)?;
        let mut room = Vec::new();
        let token = authorization.bearer(argument, &mut room)?;
        self.verify(token, now_unix_seconds, upstreams, false, metrics)
    }

    /// May this client ask for a view model?
    pub(super) fn admits(&self, user: Option<&User>) -> Result<(), Refusal> {
        if self.required == Required::Request && user.is_none() { Err(Refusal::Unauthorized) } else { Ok(()) }
    }
}

impl<I: Io> Shard<I> {
    /// The user of a request, if it has one; 401 where it needs one.
    pub(super) fn authenticate(&mut self, head: &Head<'_>) -> Result<Option<Box<User>>, HttpError> {
        let Some(authentication) = &self.settings.authentication else { return Ok(None) };
        let is_required = authentication.required == Required::Connection;
        let Some(token) = head.bearer() else {
            return if is_required { Err(HttpError::Unauthorized) } else { Ok(None) };
        };
        let now = self.unix_seconds();
        let user = authentication.verify(&token, now, &self.settings.upstreams, true, &mut self.metrics);
        // As ASP.NET does: a bad token where none is needed makes an anonymous client.
        if user.is_none() && is_required { Err(HttpError::InvalidToken) } else { Ok(user) }
    }

    pub(super) fn on_new_keys(&mut self, identity: Arc<Identity>) {
        if let Some(authentication) = &mut self.settings.authentication {
            authentication.identity = identity;
        }
    }
}
