//! How a shard ends.
//!
//! ```text
//! serving --Drain--> draining --everybody is gone, or the window is over--> stopping --told, acknowledged--> ended
//!    \________________________________ Stop ______________________________________^
//! ```
//!
//! While it drains, clients are served as before until the moment of each. Listeners stay open, because those with event streams and polls
//! come with new connections; who is new is told to come back later (503), which also reaches a node's own users, where a refused
//! connection would tell them nothing. A balancer has noticed before, or goes on to the next node by that answer.
//!
//! With an heir nobody is refused: the heir listens on the same sockets, so this shard takes nothing from them any more. Who has a
//! connection here and not yet a client becomes one, and is sent to the heir like all others. Event streams and polls go first: their next
//! requests reach the heir, which knows nothing of them. One that is found while clients are sent away already has the rest of them.
use super::Shard;
use super::accept::accept_token;
use super::socket::{Conn, Life, Stage};
use crate::bus::{ControlOrder, Heir};
use crate::ids::{SlotKey, Time};
use crate::limits::{LAST_POLLS_MS, STOP_MS, STOP_REQUEST_MS};
use crate::proto::http::HttpError;
use crate::session::fault::End;
use crate::session::form::Transport;
use crate::sys::Io;
use core::time::Duration;
use std::os::fd::AsRawFd;

/// Clients are sent away.
pub(super) struct Drain {
    heir: Heir,
    /// When each one's turn is, the next one's last.
    moments: Vec<(Time, SlotKey)>,
    window_ends: Time,
}

impl<I: Io> Shard<I> {
    /// Sends everybody away over the window. While it does, an heir may still be found: everybody left gets another moment.
    pub(super) fn drain(&mut self, now: Time, window: Duration, heir: Heir) {
        let before = self.draining.as_ref().map(|drain| drain.heir);
        if self.stopping.is_some() || before.is_some_and(|before| before == heir || before == Heir::Process) {
            return;
        }
        let mut moments = Vec::with_capacity(self.conns.len() as usize);
        for slot in 0..self.conns.slots() {
            let Some(key) = self.conns.key_at(slot) else { continue };
            let at = match self.conns.get(key).map(|conn| &conn.stage) {
                Some(Stage::Client(client)) => {
                    let stays = heir == Heir::None || client.session.form().transport == Transport::WebSockets;
                    if stays { self.random.moment(now, window) } else { now }
                }
                // Its next request is to reach the heir. Otherwise it may be one that a client polls on: it stays to the end.
                Some(Stage::Http(_)) if heir == Heir::Process => now,
                _ => continue,
            };
            moments.push((at, key));
        }
        moments.sort_unstable_by_key(|(at, _)| core::cmp::Reverse(*at));
        self.draining = Some(Drain { heir, moments, window_ends: now.after(window) });
        if heir == Heir::Process {
            self.release_listeners();
        }
    }

    /// Is somebody who is new here told to come back later? `by_web_socket`: it needs this one connection only.
    pub(super) fn refuses(&self, by_web_socket: bool) -> bool {
        let heir = self.draining.as_ref().map(|drain| drain.heir);
        self.stopping.is_some() || heir == Some(Heir::None) || heir == Some(Heir::Process) && !by_web_socket
    }

    /// Are the answers to those who are new the last ones on their connections? The next one is to be made to somebody else.
    pub(super) fn is_leaving(&self) -> bool {
        self.draining.is_some() || self.stopping.is_some()
    }

    /// Does it take connections from its listeners?
    pub(super) fn listens(&self) -> bool {
        self.stopping.is_none() && self.draining.as_ref().is_none_or(|drain| drain.heir == Heir::None)
    }

    /// A client has begun; while others are sent away it gets its moment, too.
    pub(super) fn set_moment(&mut self, now: Time, key: SlotKey) {
        let Shard { draining: Some(drain), random, .. } = self else { return };
        let left = Duration::from_nanos(drain.window_ends.0.saturating_sub(now.0));
        let at = random.moment(now, left);
        let place = drain.moments.partition_point(|(other, _)| *other > at);
        drain.moments.insert(place, (at, key));
    }

    /// When a shard that ends has something to do.
    pub(super) fn next_farewell(&self) -> Time {
        // What ends it (a socket that closes, a lane's last answer) mostly wakes it by itself; this is for the rest.
        let soon = self.io.now().after(Duration::from_millis(10));
        match (&self.draining, self.stopping) {
            (_, Some(until)) => until.min(soon),
            (Some(drain), None) => drain.moments.last().map_or(soon, |(at, _)| *at),
            (None, None) => Time::NEVER,
        }
    }

    /// Stops: no new connections; everybody who is still there is told to come back (to another node, or later).
    pub(super) fn stop(&mut self, now: Time) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now.after(Duration::from_millis(STOP_MS)));
        self.release_listeners();
        // Clients first: what carries them is needed for their last words. Who is on the way out already is left alone.
        for is_client in [true, false] {
            for slot in 0..self.conns.slots() {
                let Some(key) = self.conns.key_at(slot) else { continue };
                let Some(conn) = self.conns.get(key) else { continue };
                let is_open = matches!(conn.socket.life, Life::Open | Life::Leaving);
                if is_open && is_client == matches!(conn.stage, Stage::Client(_)) && !self.await_request(now, key) {
                    self.connection_ends(now, key, End::Stopping);
                }
            }
        }
    }

    /// A connection that has not been answered anything yet gets a moment for its request, and a 503. False: it is none.
    fn await_request(&mut self, now: Time, key: SlotKey) -> bool {
        let Some(Conn { socket, stage: Stage::Http(http) }) = self.conns.get_mut(key) else { return false };
        let is_new = socket.life == Life::Open && !http.is_served && http.parked.is_none();
        if is_new {
            http.surplus = Some(HttpError::Stopping);
            http.until = http.until.min(now.after(Duration::from_millis(STOP_REQUEST_MS)));
            self.wheel.set(key.slot, http.until);
        }
        is_new
    }

    /// Whose moment has come is told; the shard ends when everybody is gone.
    pub(super) fn on_stopping(&mut self, now: Time) {
        if self.draining.is_some() && self.stopping.is_none() {
            self.on_draining(now);
        }
        let Some(until) = self.stopping else { return };
        let clients_told = self.conns.is_empty() || now.after(Duration::from_secs(1)) >= until;
        let is_late = now.after(Duration::from_millis(500)) >= until;
        let lanes_closed = clients_told && self.close_lanes(now, is_late);
        let is_over = self.conns.is_empty() && lanes_closed && self.listeners.iter().all(Option::is_none);
        if is_over || now >= until {
            self.stopped = true;
            let stopped = ControlOrder::Stopped { shard: self.settings.shard };
            // A control plane that does not listen any more needs not be told.
            let _ = self.control.send(stopped);
        }
    }

    fn on_draining(&mut self, now: Time) {
        let Some(drain) = &mut self.draining else { return };
        let (window_ends, mut due) = (drain.window_ends, Vec::new());
        while let Some((_, key)) = drain.moments.pop_if(|(at, _)| *at <= now) {
            due.push(key);
        }
        for key in due {
            match self.conns.get(key) {
                Some(Conn { stage: Stage::Client(_), .. }) => self.connection_ends(now, key, End::Stopping),
                Some(Conn { socket, stage: Stage::Http(http) }) if socket.life == Life::Open && http.is_idle() => {
                    self.connection_ends(now, key, End::Stopping);
                }
                // A request is under way, or its poll waits: that is its client's affair.
                _ => {}
            }
        }
        let is_over = now >= window_ends.after(Duration::from_millis(LAST_POLLS_MS));
        let Some(drain) = &self.draining else { return };
        if is_over || drain.moments.is_empty() && self.clients == 0 && !self.is_expected(drain.heir) {
            self.stop(now);
        }
    }

    /// May somebody still come, who would be lost? A poll for the last words of its client; with an heir, the first request of a connection
    /// that was taken before.
    fn is_expected(&self, heir: Heir) -> bool {
        (0..self.conns.slots()).any(|slot| match self.conns.key_at(slot).and_then(|key| self.conns.get(key)) {
            Some(Conn { stage: Stage::LastPolls(..), .. }) => true,
            Some(Conn { socket, stage: Stage::Http(http) }) => {
                heir == Heir::Process && matches!(socket.life, Life::Open | Life::Leaving) && !http.is_idle()
            }
            _ => false,
        })
    }

    /// Listens no more. A listener that is closed while an accept holds it would keep its port: the accepts are called back first.
    fn release_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            if self.listeners[index].is_none() {
                continue;
            }
            match self.accepts[index] {
                0 => self.listener_released(index),
                _ => self.io.cancel(accept_token(index)),
            }
        }
        self.resting.clear();
        self.accept_again = None;
    }

    /// The kernel has let go of a listener. Who waits in its queue would be reset when it closes, unless somebody else has it as well:
    /// they are taken first.
    pub(super) fn listener_released(&mut self, index: usize) {
        let is_inherited = self.draining.as_ref().is_some_and(|drain| drain.heir == Heir::Process);
        while !is_inherited
            && let Some(Some(listener)) = self.listeners.get(index)
            && let Some(fd) = self.io.accept_waiting(listener.socket.as_raw_fd())
        {
            let now = self.io.now();
            self.on_accepted_socket(now, index, fd);
        }
        if let Some(listener) = self.listeners.get_mut(index) {
            *listener = None;
        }
        if self.listeners.iter().all(Option::is_none) {
            // Whoever waits for it does not wait for ever.
            let _ = self.control.send(ControlOrder::Released { shard: self.settings.shard });
        }
    }
}
