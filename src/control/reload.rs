//! The configuration read again while the node runs: everything is prepared first, then what can change changes. A fault anywhere changes
//! nothing.
use super::credentials::{self, Credentials};
use super::plane::{ORDER_TRIES, ShardHandle, State, send_order};
use crate::bus::settings::{Renewal, UpstreamRenewal};
use crate::bus::{ShardOrder, Unsent};
use crate::config::{Budget, Config, Faults, Running, TrustedProxy};
use crate::identity::{Authentication, Identity};
use crate::limits::{CREDENTIALS_LOOK_MS, POST_BODY_MESSAGES_MAX};
use crate::logging;
use crate::proto::http::{HttpPolicy, OriginPolicy, Trusted};
use crate::session::client::ClientSettings;
use crate::session::pace::Rate;
use core::cell::RefCell;
use rustls::ServerConfig;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

/// What was read, and who waits for what comes of it: whether it holds.
pub(super) struct Reload {
    pub(super) read: Result<Box<Config>, Faults>,
    pub(super) done: oneshot::Sender<bool>,
}

/// Keeps certificates and keys as they are in their files, and settings as they were last read.
pub(super) struct Reloader {
    pub(super) running: Rc<RefCell<Running>>,
    pub(super) credentials: Credentials,
    pub(super) shards: Vec<ShardHandle>,
    pub(super) state: Rc<State>,
}

impl Reloader {
    /// Looks at the files of certificates and keys now and then, and at everything when asked; for ever.
    pub(super) async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Reload>) {
        loop {
            self.credentials.look(&self.shards).await;
            match tokio::time::timeout(Duration::from_millis(CREDENTIALS_LOOK_MS), asked.recv()).await {
                Ok(None) => return,
                Ok(Some(Reload { read, done })) => {
                    let holds = self.reload(read).await;
                    self.state.reloaded(holds);
                    // Nobody has to wait for it.
                    let _ = done.send(holds);
                }
                Err(_) => {}
            }
        }
    }

    async fn reload(&mut self, read: Result<Box<Config>, Faults>) -> bool {
        let fresh = match read {
            Ok(fresh) => fresh,
            Err(faults) => {
                for fault in &faults.0 {
                    error!("the configuration was read again and has a fault: {fault}");
                }
                error!("everything stays as it was");
                return false;
            }
        };
        let (renewed, changes) = self.running.borrow().renewed(&fresh);
        let config = renewed.config();
        let lanes = config.upstreams.iter().map(credentials::lane_tls).collect::<Result<Vec<_>, _>>();
        let prepared = lanes.map_err(|error| error.to_string()).and_then(|lanes| {
            let identity = self.credentials.renew(config)?;
            Ok((lanes, identity))
        });
        let (lanes, identity) = match prepared {
            Ok(prepared) => prepared,
            Err(fault) => {
                error!("the configuration was read again and has a fault: {fault}; everything stays as it was");
                return false;
            }
        };
        for (upstream, tls) in self.state.upstreams.0.iter().zip(lanes) {
            upstream.renew(tls);
        }
        if config.log != self.running.borrow().config().log {
            logging::set_filter(&config.log);
        }
        let renewal = renewal(config, identity.as_ref(), self.credentials.server_tls());
        for shard in &self.shards {
            let order = ShardOrder::Settings(Box::new(renewal.clone()));
            if let Err(Unsent::Full(_)) = send_order(&shard.orders, order, ORDER_TRIES).await {
                warn!("a shard takes no orders, and goes on with the old settings");
            }
        }
        for change in &changes {
            match change.holds {
                true => info!("changed: {change}"),
                false => warn!("not changed, this needs a new process (a restart, or one that takes over): {change}"),
            }
        }
        info!("the configuration, certificates and keys were read again");
        for line in Budget::of(config).to_string().lines() {
            debug!("{}", line.trim_start_matches("# "));
        }
        *self.running.borrow_mut() = renewed;
        true
    }
}

/// What a shard is told of a configuration at its start, and whenever it was read again.
pub(super) fn renewal(config: &Config, identity: Option<&Arc<Identity>>, tls: Option<&Arc<ServerConfig>>) -> Renewal {
    Renewal {
        http: HttpPolicy {
            hub_path: config.hub_path.clone(),
            origins: OriginPolicy { allowed: config.allowed_origins.clone() },
            transports: config.hub.transports,
            post_body_bytes_max: POST_BODY_MESSAGES_MAX as u64 * u64::from(config.hub.maximum_receive_message_size),
        },
        client: ClientSettings {
            handshake_timeout: config.hub.handshake_timeout,
            client_timeout: config.hub.client_timeout_interval,
            keep_alive: config.hub.keep_alive_interval,
            message_bytes_max: config.hub.maximum_receive_message_size,
            rate: Rate {
                per_second: config.limits.client_message_rate,
                // Its range ends far below u16's.
                burst: config.limits.client_message_burst as u16,
            },
        },
        trusted: trusted(config),
        proxy_protocol: config.proxy_protocol,
        authentication: config.identity.as_ref().zip(identity).map(|(settings, identity)| Authentication {
            identity: identity.clone(),
            required: settings.required,
            closes_on_expiry: config.hub.close_on_authentication_expiration,
        }),
        resume_bytes_max: config.hub.allow_stateful_reconnects.then_some(config.hub.stateful_reconnect_buffer_size),
        poll_timeout: config.hub.poll_timeout,
        disconnect_timeout: config.hub.disconnect_timeout,
        send_queue_bytes_max: config.limits.client_send_queue_bytes,
        send_queue_time: config.limits.client_send_queue_time,
        send_buffer_bytes: config.limits.client_send_buffer_bytes,
        accept_rate: config.limits.accept_rate,
        begins_unavailable: config.hub.negotiate_when_unavailable,
        request_head_timeout: config.limits.request_head_timeout,
        lane_queue_bytes_max: config.limits.upstream_queue_bytes,
        lane_queue_timeout: config.limits.upstream_queue_timeout,
        replay_bytes_max: config.limits.client_replay_bytes,
        tls: tls.cloned(),
        upstreams: config
            .upstreams
            .iter()
            .map(|upstream| UpstreamRenewal {
                filter: upstream.filter.clone(),
                weights: upstream.urls.iter().map(|target| target.weight).collect(),
                message_bytes_max: upstream.maximum_receive_message_size,
                in_flight_max: upstream.in_flight_max,
                acknowledge_timeout: upstream.acknowledge_timeout,
            })
            .collect(),
    }
}

fn trusted(config: &Config) -> Trusted {
    let proxies = &config.trusted_proxies;
    let networks = proxies.iter().filter_map(|proxy| match proxy {
        TrustedProxy::Network(network) => Some(*network),
        TrustedProxy::Unix => None,
    });
    Trusted {
        networks: networks.collect(),
        unix: proxies.contains(&TrustedProxy::Unix),
        header: config.forwarded_header,
    }
}
