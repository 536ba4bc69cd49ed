//! Settings that change while the shard runs.
use super::{Settings, Shard};
use crate::bus::settings::Renewal;
use crate::sys::Io;
use tracing::debug;

impl Settings {
    /// Takes over what a configuration that was read again says.
    pub fn renew(&mut self, renewal: Renewal) {
        let Renewal {
            http,
            client,
            trusted,
            proxy_protocol,
            authentication,
            resume_bytes_max,
            poll_timeout,
            disconnect_timeout,
            send_queue_bytes_max,
            send_queue_time,
            send_buffer_bytes,
            accept_rate,
            begins_unavailable,
            request_head_timeout,
            lane_queue_bytes_max,
            lane_queue_timeout,
            replay_bytes_max,
            // The listeners'.
            tls: _,
            upstreams,
        } = renewal;
        (self.http, self.client, self.trusted, self.proxy_protocol) = (http, client, trusted, proxy_protocol);
        (self.authentication, self.resume_bytes_max) = (authentication, resume_bytes_max);
        (self.poll_timeout, self.disconnect_timeout) = (poll_timeout, disconnect_timeout);
        (self.send_queue_bytes_max, self.send_buffer_bytes) = (send_queue_bytes_max, send_buffer_bytes);
        (self.send_queue_time, self.accept_rate) = (send_queue_time, accept_rate);
        (self.begins_unavailable, self.replay_bytes_max) = (begins_unavailable, replay_bytes_max);
        self.request_head_timeout = request_head_timeout;
        (self.lane_queue_bytes_max, self.lane_queue_timeout) = (lane_queue_bytes_max, lane_queue_timeout);
        self.upstreams.renew(upstreams);
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn on_renewal(&mut self, renewal: Renewal) {
        for listener in self.listeners.iter_mut().flatten().filter(|listener| listener.tls.is_some()) {
            listener.tls.clone_from(&renewal.tls);
        }
        self.settings.renew(renewal);
        debug!(shard = self.settings.shard.0, "new settings hold");
    }
}
