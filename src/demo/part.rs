//! Something of the demonstration that can be stopped, and started again at the same address.
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Starting,
    Running,
    Stopping,
    Stopped,
}

/// What is seen of a part.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub state: State,
    /// Where it is, or was and will be.
    pub url: String,
    /// Why it did not start, a sentence.
    pub trouble: Option<String>,
}

pub struct Part<T> {
    pub address: SocketAddr,
    now: Mutex<Now<T>>,
}

struct Now<T> {
    state: State,
    running: Option<T>,
    trouble: Option<String>,
}

impl<T> Part<T> {
    /// One that is stopped.
    pub fn new(address: SocketAddr) -> Part<T> {
        Part { address, now: Mutex::new(Now { state: State::Stopped, running: None, trouble: None }) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn shown(&self) -> Shown {
        let now = self.now();
        Shown { state: now.state, url: self.url(), trouble: now.trouble.clone() }
    }

    /// Does nothing if it runs. Whoever starts and stops does one at a time, and waits for its end.
    pub async fn start(&self, start: impl Future<Output = io::Result<T>>) -> io::Result<()> {
        {
            let mut now = self.now();
            if now.running.is_some() {
                return Ok(());
            }
            now.state = State::Starting;
            now.trouble = None;
        }
        let started = start.await;
        let mut now = self.now();
        match started {
            Ok(running) => {
                (now.state, now.running) = (State::Running, Some(running));
                Ok(())
            }
            Err(error) => {
                (now.state, now.trouble) = (State::Stopped, Some(error.to_string()));
                Err(error)
            }
        }
    }

    /// Does nothing if it is stopped.
    pub async fn stop<S: Future<Output = ()>>(&self, stop: impl FnOnce(T) -> S) {
        let running = {
            let mut now = self.now();
            let Some(running) = now.running.take() else { return };
            now.state = State::Stopping;
            running
        };
        stop(running).await;
        self.now().state = State::Stopped;
    }

    fn now(&self) -> MutexGuard<'_, Now<T>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
