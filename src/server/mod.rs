//! Connections: accepted, served, watched, closed. Used by the data cores and by the control thread alike.
//!
//! What a request means is the API's business, how its bytes look is `proto`'s; this module owns the sockets and the order of
//! things on one connection. Per core.

pub mod conn;
mod life;
pub mod listener;
pub mod preface;
pub mod socket;

use std::{cell::RefCell, io, net::Shutdown, rc::Rc, sync::Arc};

use slab::Slab;

use crate::{
    mesh::Kick,
    metrics::Cells,
    proto::{
        tls::Acceptor,
        watch::{Clock, Phase, Watch},
    },
    readiness::{self, Socket},
};

/// A connection whose requests could come only so lately may have its first one still on the wire.
const FRESH_MS: u64 = 1_000;
/// A client that has said nothing for so long is not in the middle of its work.
const QUIET_MS: u64 = 300;
/// Between two sweeps of the deadlines, on every core.
pub const SWEEP_MS: u64 = 100;

/// Every open connection of one core, for deadlines and drain.
#[derive(Debug, Default)]
pub struct Connections {
    pub clock: Clock,
    open: RefCell<Slab<Rc<Watch>>>,
    /// Does the handshakes; none without `tls.certificates`.
    pub tls: RefCell<Option<Acceptor>>,
}

/// A connection's place in the list; left when dropped.
#[derive(Debug)]
pub struct Listed {
    connections: Rc<Connections>,
    key: usize,
    pub watch: Rc<Watch>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(self.key);
    }
}

impl Connections {
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Has each pass that finds work tell the kicker so. Deadlines count from the first, however long ago the last tick of an idle core was.
    pub fn note_work(&self, kick: Arc<Kick>) -> io::Result<()> {
        let clock = self.clock.clone();
        readiness::each_pass(move || {
            if kick.busy() {
                clock.advance();
            }
        })
    }

    fn list(self: &Rc<Self>, socket: &Socket) -> Listed {
        let mut open = self.open.borrow_mut();
        // Neighbours are far apart (a step of the golden ratio).
        let spread = open.vacant_key().wrapping_mul(158).to_le_bytes()[0];
        let watch = Rc::new(Watch::new(socket.handle(), self.clock.clone(), spread));
        let key = open.insert(Rc::clone(&watch));
        drop(open);
        Listed { connections: Rc::clone(self), key, watch }
    }

    /// Ends what is overdue, and counts it by what was waited for.
    pub fn sweep(&self, cells: &Cells) {
        for (_, watch) in &*self.open.borrow() {
            if watch.expire_if_overdue() {
                // The reader finds the end of the stream and then what it was waiting for; a writer must be cut.
                let (counter, how) = match watch.phase() {
                    Phase::Preface => (&cells.expired_preface, Shutdown::Both),
                    Phase::Idle => (&cells.expired_idle, Shutdown::Read),
                    Phase::Head => (&cells.expired_head, Shutdown::Read),
                    Phase::Body => (&cells.expired_body, Shutdown::Read),
                    Phase::BodyRate => (&cells.expired_body_rate, Shutdown::Read),
                    Phase::Write | Phase::StreamWrite => (&cells.expired_write, Shutdown::Both),
                    Phase::Stream => (&cells.expired_silent, Shutdown::Both),
                    Phase::StreamIdle => (&cells.expired_idle, Shutdown::Both),
                    Phase::StreamHead => (&cells.expired_head, Shutdown::Both),
                    Phase::Handler => continue,
                    Phase::Discard => {
                        // The patience was ours, and what it was for is counted already.
                        readiness::shut(&watch.socket, Shutdown::Both);
                        continue;
                    }
                };
                counter.add(1);
                readiness::shut(&watch.socket, how);
            }
        }
    }

    /// Ends connections that have waited a while for a next request; a request already in the socket is still read and answered. One
    /// whose client is at work is not closed under a request that is on its way: its next answer says that it ends.
    pub fn close_idle(&self) {
        for (_, watch) in &*self.open.borrow() {
            if watch.phase() == Phase::Idle && watch.ready_for_ms() > FRESH_MS && watch.unchanged_ms() >= QUIET_MS {
                watch.close_when_idle();
            }
        }
    }
}
