//! A shard's world, simulated: what it asks of the kernel goes to the `Network`. Nothing here waits; whoever runs the shard moves time.
use super::network::Network;
use crate::ids::{SlotKey, Time};
use crate::sys::{BufferGroup, Completion, Io, Received, SendBatch, SendSink, ShortSend, Token};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;

pub(super) struct World {
    network: Rc<RefCell<Network>>,
    shard: usize,
    /// Buffers that the shard has.
    lent: HashMap<(u16, u16), Vec<u8>>,
}

impl World {
    pub(super) fn new(network: Rc<RefCell<Network>>, shard: usize) -> World {
        World { network, shard, lent: HashMap::new() }
    }
}

/// The sends of a batch, gathered.
#[derive(Default)]
struct Sends(Vec<(SlotKey, RawFd, Vec<u8>)>);

impl SendSink for Sends {
    fn begin(&mut self, key: SlotKey, fd: RawFd) {
        self.0.push((key, fd, Vec::new()));
    }
    fn part(&mut self, bytes: &[u8]) {
        self.0.last_mut().expect("a part belongs to a send").2.extend_from_slice(bytes);
    }
}

impl Io for World {
    fn now(&self) -> Time {
        self.network.borrow().now
    }

    fn wall_ticks(&self) -> u64 {
        let network = self.network.borrow();
        network.wall + network.now.0 / 100
    }

    fn arm_accept(&mut self, listener: RawFd, token: Token) {
        self.network.borrow_mut().queue_accept(self.shard, listener, token);
    }

    fn arm_readable(&mut self, fd: RawFd, token: Token) {
        self.network.borrow_mut().queue_readable(self.shard, fd, token);
    }

    fn arm_writable(&mut self, fd: RawFd, token: Token) {
        self.network.borrow_mut().queue_writable(self.shard, fd, token);
    }

    fn receive(&mut self, fd: RawFd, key: SlotKey, group: BufferGroup) {
        self.network.borrow_mut().queue_receive(self.shard, fd, key, group);
    }

    fn cancel(&mut self, token: Token) {
        self.network.borrow_mut().queue_cancel(self.shard, token);
    }

    fn send_batch<'b>(&mut self, fill: impl FnOnce(&mut SendBatch<'_, 'b>), short: &mut Vec<ShortSend>) {
        let mut sends = Sends::default();
        fill(&mut SendBatch { sink: &mut sends, bytes: core::marker::PhantomData });
        let mut network = self.network.borrow_mut();
        network.submit(self.shard);
        for (key, fd, bytes) in sends.0.into_iter().filter(|(_, _, bytes)| !bytes.is_empty()) {
            let result = network.send(fd, &bytes);
            if result != bytes.len() as i32 {
                short.push(ShortSend { key, result });
            }
        }
    }

    fn wait(&mut self, _until: Time, completions: &mut Vec<Completion>) {
        let mut network = self.network.borrow_mut();
        network.submit(self.shard);
        for (completion, bytes) in network.take_completions(self.shard) {
            if let Some(received) = &completion.received {
                self.lent.insert((received.group as u16, received.id), bytes);
            }
            completions.push(completion);
        }
    }

    fn buffer(&mut self, received: &Received) -> &mut [u8] {
        self.lent.get_mut(&(received.group as u16, received.id)).expect("a buffer is looked into while it is lent")
    }

    fn give_back(&mut self, received: Received) {
        let mut network = self.network.borrow_mut();
        if self.lent.remove(&(received.group as u16, received.id)).is_none() {
            network.violated("a buffer is given back that was not lent".into());
        }
        network.give_back(self.shard, received.group, received.id);
    }

    fn adopt(&mut self, socket: OwnedFd) -> RawFd {
        self.network.borrow_mut().adopt(self.shard, socket)
    }

    fn disown(&mut self, fd: RawFd) -> OwnedFd {
        self.network.borrow_mut().disown(fd)
    }

    fn addresses(&self, fd: RawFd) -> Option<(SocketAddr, SocketAddr)> {
        let network = self.network.borrow();
        let id = network.socket_of(fd).filter(|_| !network.is_gone(fd))?;
        let remote = SocketAddr::from((Ipv4Addr::new(10, 0, (id >> 8) as u8, id as u8), 40_000));
        Some((SocketAddr::from((Ipv4Addr::new(10, 1, 0, 1), 5000)), remote))
    }

    fn prepare_client(&self, _fd: RawFd, _send_buffer_bytes: u32) {}

    fn shutdown_write(&mut self, fd: RawFd) {
        self.network.borrow_mut().shutdown_write(fd);
    }

    fn shutdown(&mut self, fd: RawFd) {
        self.network.borrow_mut().shutdown(fd);
    }

    fn close(&mut self, fd: RawFd) {
        self.network.borrow_mut().close(fd);
    }

    fn quiet(&mut self, doorbell: RawFd) {
        crate::sys::doorbell::quiet(doorbell);
    }
}
