//! What one client does and checks, by profile. No sockets and no clocks of their own: a client's life (`super::client`) calls them.
mod broadcast;
mod burst;
mod chat;
mod echo;
mod idle;

pub use broadcast::Ticks;
pub use chat::Rooms;

use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::options::{Options, Profile};
use super::tally::Tally;

/// The client's side of a view model.
pub trait Behaviour: Send {
    /// The view model it requests, which is also the id it has here.
    fn view_model(&self) -> &'static str;

    /// `$vmArg` of the request. Its values are strings, as those of the original (contract 1.3).
    fn argument(&self) -> Value;

    /// The view model's state has come. `response` is told next, with the same data.
    fn joined(&mut self, _data: &str, _turn: &mut Turn) -> Result<(), serde_json::Error> {
        Ok(())
    }

    /// The server began the view model anew by itself, and this is the state: a proxy lost its way to the old one (contract 6.3). `joined`
    /// and `response` are told next. Nobody knows what became of what was under way, so it is not owed any more.
    fn renewed(&mut self) {}

    /// What the view model says, JSON text.
    fn response(&mut self, _data: &str, _turn: &mut Turn) -> Result<(), serde_json::Error> {
        Ok(())
    }

    /// When `timer` wants to be called.
    fn due(&self) -> Option<Instant> {
        None
    }

    fn timer(&mut self, _turn: &mut Turn) {}

    /// The load ends: nothing is sent from here on.
    fn stop(&mut self, _now: Instant) {}

    /// Everything has come that was under way when the load ended; asked once nobody sends any more.
    fn is_settled(&self) -> bool {
        true
    }

    /// The end of waiting: what is still owed is missed.
    fn close_books(&mut self, _tally: &mut Tally) {}

    /// The connection is lost: nobody can tell whether what it sent last was received.
    fn lost(&mut self) {}
}

/// One call of a behaviour.
pub struct Turn<'a> {
    pub now: Instant,
    pub tally: &'a mut Tally,
    /// `Update_VM`s to send, each the object with what changes.
    pub updates: &'a mut Vec<Value>,
}

/// What the clients of one server share.
pub struct Shared {
    pub ticks: Ticks,
    pub rooms: Rooms,
    /// The app server's clock is ours, so its time stamps tell how long a message took.
    pub same_clock: bool,
    /// In front of every client id of this server.
    pub id_prefix: String,
}

pub fn behaviour(options: &Options, shared: &Arc<Shared>, index: u32) -> Box<dyn Behaviour> {
    let (shared, interval) = (shared.clone(), options.interval);
    match options.profile {
        Profile::Echo => Box::new(echo::Echo::new(false, interval, shared)),
        Profile::SharedEcho => Box::new(echo::Echo::new(true, interval, shared)),
        Profile::Broadcast => Box::new(broadcast::Broadcast::new(interval, shared)),
        Profile::ChatRoom => Box::new(chat::Chat::new(interval, shared, index)),
        Profile::Idle => Box::new(idle::Idle),
        Profile::Burst => Box::new(burst::Burst::new(interval, &shared, index)),
    }
}

/// A client's own average of what it measured, in milliseconds.
#[derive(Default)]
struct Average {
    sum: f64,
    count: u32,
}

impl Average {
    fn add(&mut self, time: Duration) {
        self.sum += time.as_secs_f64() * 1000.0;
        self.count += 1;
    }

    fn close(&self, tally: &mut Tally) {
        if self.count > 0 {
            tally.averages.of_client(self.sum / f64::from(self.count));
        }
    }
}

/// How long ago a payload's `Time` is. Clocks are set now and then: what comes from the future took no time.
fn since(time: &str) -> Option<Duration> {
    let then = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    Some(SystemTime::now().duration_since(then.into()).unwrap_or_default())
}

/// Now as .NET writes it.
fn now_text() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).expect("the year has four digits")
}
