//! Which sockets are ready: one edge-triggered epoll set per core, and the sockets in it.
//!
//! ```text
//!   epoll_wait(0) --> many ready sockets --> wake their tasks --> let them run --> again
//!        | nothing ready: glommio (io_uring) watches the epoll descriptor itself, so the core sleeps in one place
//! ```
//!
//! glommio's own streams arm one io_uring poll for every read, which costs an interrupt of the running core each; collecting
//! readiness this way takes 24 to 47 % less CPU per request (`perf/results/2026-11-23-http1-path`). Invariant: a socket is
//! marked not ready only by a call that found it empty or full, so an edge is never lost. Per core: a socket stays on the core
//! that adopted it until it is released.
#![allow(unsafe_code)] // One block: glommio takes a descriptor only raw.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    io,
    net::{IpAddr, Shutdown},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use futures_lite::{AsyncRead, AsyncWrite};
use rustix::{
    event::epoll,
    net::{self, RecvFlags, SendFlags, SocketFlags},
};

/// Ready sockets collected by one call.
const EVENTS_PER_WAIT: usize = 256;

thread_local! {
    static CORE: OnceCell<Rc<Set>> = const { OnceCell::new() };
}

/// The core's epoll set.
#[derive(Debug)]
struct Set {
    epoll: OwnedFd,
    /// By descriptor number.
    interests: RefCell<Vec<Option<Rc<Interest>>>>,
    /// See [`each_pass`].
    looks: RefCell<Vec<Look>>,
}

/// Something cheap to look at between two rounds of ready sockets.
struct Look(Box<dyn Fn()>);

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

/// What is known of one socket.
#[derive(Debug)]
struct Interest {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer has closed its side: reads go on until they give 0.
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A connected socket (TCP, or one end of a pair) of this core.
#[derive(Debug)]
pub struct Socket {
    /// Shared with the deadline watch, which may shut it.
    fd: Rc<OwnedFd>,
    interest: Rc<Interest>,
    set: Rc<Set>,
}

/// A listening socket of this core.
#[derive(Debug)]
pub struct ListenSocket(Socket);

impl Set {
    /// This core's set; made, and its driver started, when first asked for.
    fn of_this_core() -> io::Result<Rc<Self>> {
        CORE.with(|core| {
            if let Some(set) = core.get() {
                return Ok(Rc::clone(set));
            }
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let set = Rc::new(Self { epoll, interests: RefCell::default(), looks: RefCell::default() });
            glommio::spawn_local(drive(Rc::clone(&set))).detach();
            Ok(Rc::clone(core.get_or_init(|| set)))
        })
    }

    fn add(self: &Rc<Self>, fd: OwnedFd) -> io::Result<Socket> {
        let slot = usize::try_from(fd.as_raw_fd()).map_err(io::Error::other)?;
        // Ready until a call says otherwise.
        let interest = Rc::new(Interest {
            readable: Cell::new(true),
            writable: Cell::new(true),
            ended: Cell::new(false),
            waker: RefCell::default(),
        });
        let mut interests = self.interests.borrow_mut();
        if interests.len() <= slot {
            interests.resize(slot + 1, None);
        }
        interests[slot] = Some(Rc::clone(&interest));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(slot as u64), flags)?;
        Ok(Socket { fd: Rc::new(fd), interest, set: Rc::clone(self) })
    }

    /// Wakes the tasks of the sockets that became ready; gives how many there were.
    fn collect(&self, events: &mut Vec<epoll::Event>) -> usize {
        events.clear();
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let spare = rustix::buffer::spare_capacity(events);
        // Interrupted: as if nothing was ready; the caller waits and looks again.
        if epoll::wait(&self.epoll, spare, Some(&at_once)).is_err() {
            return 0;
        }
        for event in &*events {
            let slot = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            let interest = self.interests.borrow().get(slot).cloned().flatten();
            // A socket closed in this very round has no interest any more.
            if let Some(interest) = interest {
                interest.note(event.flags);
            }
        }
        events.len()
    }
}

/// Calls `look` between two rounds of ready sockets. glommio notices a wake from another thread only when it polls io_uring, which
/// a busy core does once per preempt timer (1 ms); what must be sooner is looked for here. An idle core needs no look: the wake
/// itself ends its sleep.
pub fn each_pass(look: impl Fn() + 'static) -> io::Result<()> {
    Set::of_this_core()?.looks.borrow_mut().push(Look(Box::new(look)));
    Ok(())
}

async fn drive(set: Rc<Set>) {
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        if set.collect(&mut events) > 0 {
            for look in &*set.looks.borrow() {
                look.0();
            }
            futures_lite::future::yield_now().await;
        } else if let Err(error) = something_ready(&set.epoll).await {
            tracing::error!(%error, "the core's epoll set cannot be watched");
            glommio::timer::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// Waits, through glommio, until the set has something. glommio's streams poll once when made and then insist on recv(2), which
/// an epoll descriptor lacks; so a duplicate lives for one wait.
async fn something_ready(epoll: &OwnedFd) -> io::Result<()> {
    let duplicate = epoll.try_clone()?;
    // SAFETY: `into_raw_fd` gives up the only owner of the duplicate, and the stream becomes its new one.
    let mut stream = unsafe { glommio::net::UnixStream::from_raw_fd(duplicate.into_raw_fd()) };
    let mut nothing = [0; 1];
    // The first poll waits for readiness; the second fails with ENOTSOCK, which says that it came.
    let _ = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut nothing)).await;
    Ok(())
}

// === impl Interest ===

impl Interest {
    fn note(&self, flags: epoll::EventFlags) {
        let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ended) {
            self.readable.set(true);
        }
        if flags.intersects(ended) {
            self.ended.set(true);
        }
        if flags.intersects(epoll::EventFlags::OUT | ended) {
            self.writable.set(true);
        }
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// One task waits on a socket at a time; the latest is the one to wake.
    fn wake_when_changed(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

// === impl Socket ===

impl Socket {
    /// Takes over a connected socket for this core.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        Set::of_this_core()?.add(fd)
    }

    /// Gives the socket up, for another core to adopt.
    pub fn release(self) -> io::Result<OwnedFd> {
        epoll::delete(&self.set.epoll, &*self.fd)?;
        let fd = Rc::clone(&self.fd);
        drop(self);
        // Whoever still holds a handle lets it go soon; a duplicate is the same socket.
        Rc::try_unwrap(fd).or_else(|fd| fd.try_clone())
    }

    /// Where the other side is; none once it has gone.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        let peer = net::getpeername(&*self.fd).ok()??;
        std::net::SocketAddr::try_from(peer).ok().map(|peer| peer.ip())
    }

    /// Looks at what there is to read without taking it, once that is more than `seen` bytes. An error when no more can come.
    pub fn poll_peek(&mut self, cx: &Context<'_>, buffer: &mut [u8], seen: usize) -> Poll<io::Result<usize>> {
        if self.interest.readable.get() {
            match net::recv(&*self.fd, buffer, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
                Ok((got, _)) if got > seen => return Poll::Ready(Ok(got)),
                Ok((got, _)) if got == 0 || self.interest.ended.get() => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            // Whatever comes next makes a new edge, although what was looked at is still there.
            self.interest.readable.set(false);
        }
        self.interest.wake_when_changed(cx);
        Poll::Pending
    }

    /// A handle for [`shut`], which outlives no more than the socket's own life needs.
    pub fn handle(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.fd)
    }
}

/// Shuts one or both directions; a socket that is gone already is as good.
pub fn shut(fd: &OwnedFd, how: Shutdown) {
    let how = match how {
        Shutdown::Read => net::Shutdown::Read,
        Shutdown::Write => net::Shutdown::Write,
        Shutdown::Both => net::Shutdown::Both,
    };
    let _ = net::shutdown(fd, how);
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Ok(slot) = usize::try_from(self.fd.as_raw_fd())
            && let Some(interest) = self.set.interests.borrow_mut().get_mut(slot)
        {
            *interest = None;
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.interest.readable.get() {
            self.interest.wake_when_changed(cx);
            return Poll::Pending;
        }
        let room = buffer.len();
        match net::recv(&*self.fd, buffer, RecvFlags::DONTWAIT) {
            Ok((got, _)) => {
                // A short read emptied the socket: the next byte makes a new edge. The peer's end made its edge already.
                if got < room && !self.interest.ended.get() {
                    self.interest.readable.set(false);
                }
                Poll::Ready(Ok(got))
            }
            Err(rustix::io::Errno::AGAIN) => {
                self.interest.readable.set(false);
                self.interest.wake_when_changed(cx);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.interest.writable.get() {
            match net::send(&*self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(taken) => return Poll::Ready(Ok(taken)),
                Err(rustix::io::Errno::AGAIN) => self.interest.writable.set(false),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        self.interest.wake_when_changed(cx);
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is kept here: what was written is the kernel's.
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(net::shutdown(&*self.fd, net::Shutdown::Write).map_err(Into::into))
    }
}

// === impl ListenSocket ===

impl ListenSocket {
    /// Takes over a listening socket, which must be non-blocking.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        Socket::adopt(fd).map(Self)
    }

    /// The next connection. Dropping this loses nothing: a connection leaves the queue only when it resolves.
    pub async fn accept(&self) -> io::Result<Socket> {
        poll_fn(|cx| {
            let interest = &self.0.interest;
            if interest.readable.get() {
                match self.accept_now() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => interest.readable.set(false),
                    accepted => return Poll::Ready(accepted),
                }
            }
            interest.wake_when_changed(cx);
            Poll::Pending
        })
        .await
    }

    /// The same socket, for another process or executor.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.fd.try_clone()
    }

    /// No more of what happens to it is told here. One that others hold too would be told of for as long as they hold it.
    pub fn unwatch(&self) {
        let _ = epoll::delete(&self.0.set.epoll, &*self.0.fd);
    }

    /// Has the kernel take connections in; one that does already goes on.
    pub fn listen(&self, backlog: i32) -> io::Result<()> {
        Ok(net::listen(&*self.0.fd, backlog)?)
    }

    /// A connection the kernel already holds; `WouldBlock` when there is none.
    pub fn accept_now(&self) -> io::Result<Socket> {
        let fd = net::accept_with(&*self.0.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        self.0.set.add(fd)
    }
}
