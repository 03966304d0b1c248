//! A wire between two processes that can be held: what one end has sent is kept on the way until it is let go.
//!
//! Method: a proxy on a port of its own, a thread for each direction of each connection. [`Link::hold`] stops what comes back from the
//! server side, not what goes there; nothing is lost, and a connection that ends on one side ends on the other once what was held is
//! through. So "the answer is on its way" is a state a trial can wait in, rather than a race it may win. [`Link::cut`] is the wire that breaks:
//! every connection ends on both sides, and what was held is lost.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

#[derive(Debug, Default)]
struct State {
    is_held: Mutex<bool>,
    changed: Condvar,
    /// Both ends of every connection there was.
    ends: Mutex<Vec<TcpStream>>,
}

/// See the module text. Its threads end with the connections.
#[derive(Debug)]
pub struct Link {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Link {
    /// A way to `server`, which need not be there yet.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::<State>::default();
        let link = Self { address, state: Arc::clone(&state) };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (Ok(to_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { continue };
                let ends = [&client, &server].map(|end| end.try_clone().expect("a socket can be cloned"));
                state.ends.lock().unwrap_or_else(PoisonError::into_inner).extend(ends);
                let held = Arc::clone(&state);
                std::thread::spawn(move || pass(client, server, None));
                std::thread::spawn(move || pass(from_server, to_client, Some(&held)));
            }
        });
        link
    }

    /// What the server sends from now on stays on the way.
    pub fn hold(&self) {
        self.set(true);
    }

    pub fn release(&self) {
        self.set(false);
    }

    /// Ends all connections; what is held does not arrive. New ones are taken as before.
    pub fn cut(&self) {
        for end in self.state.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be gone already.
            let _ = end.shutdown(Shutdown::Both);
        }
        self.release();
    }

    fn set(&self, is_held: bool) {
        *self.state.is_held.lock().unwrap_or_else(PoisonError::into_inner) = is_held;
        self.state.changed.notify_all();
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, held: Option<&State>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if let Some(state) = held {
            let mut is_held = state.is_held.lock().unwrap_or_else(PoisonError::into_inner);
            while *is_held {
                is_held = state.changed.wait(is_held).unwrap_or_else(PoisonError::into_inner);
            }
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // Either end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}
