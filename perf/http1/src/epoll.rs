//! Readiness by one edge-triggered epoll set per core, `--readiness epoll`.
//!
//! glommio arms one io_uring poll for each read. Here a socket is registered once, and a driver task collects the ready
//! ones with one `epoll_wait` for many; glommio only watches the epoll descriptor, and only while nothing is ready.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_lite::AsyncRead;
use glommio::net::{TcpStream, UnixStream};

use crate::wire::Wire;

const EVENTS_PER_WAIT: usize = 256;

struct Interest {
    readable: Cell<bool>,
    ended: Cell<bool>,
    writable: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

pub struct Readiness {
    epoll_fd: RawFd,
    interests: Rc<RefCell<Vec<Option<Rc<Interest>>>>>,
}

/// Owns its socket: the stream closes it, which also takes it out of the epoll set.
pub struct EpollWire {
    _stream: TcpStream,
    fd: RawFd,
    interest: Rc<Interest>,
    interests: Rc<RefCell<Vec<Option<Rc<Interest>>>>>,
}

impl Readiness {
    pub fn start() -> Self {
        // SAFETY: a plain system call that returns a new descriptor.
        let epoll_fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(epoll_fd >= 0, "epoll_create1: {}", io::Error::last_os_error());
        let interests = Rc::default();
        glommio::spawn_local(drive(epoll_fd, Rc::clone(&interests))).detach();
        Self { epoll_fd, interests }
    }

    pub fn adopt(&self, stream: TcpStream) -> EpollWire {
        let fd = stream.as_raw_fd();
        let interest = Rc::new(Interest {
            readable: Cell::new(true),
            ended: Cell::new(false),
            writable: Cell::new(true),
            waker: RefCell::new(None),
        });
        let slot = fd as usize;
        let mut interests = self.interests.borrow_mut();
        if interests.len() <= slot {
            interests.resize(slot + 1, None);
        }
        interests[slot] = Some(Rc::clone(&interest));
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
            u64: slot as u64,
        };
        // SAFETY: `event` lives over the call.
        let result = unsafe { libc::epoll_ctl(self.epoll_fd, libc::EPOLL_CTL_ADD, fd, &mut event) };
        assert!(result == 0, "epoll_ctl: {}", io::Error::last_os_error());
        EpollWire { _stream: stream, fd, interest, interests: Rc::clone(&self.interests) }
    }
}

impl Drop for EpollWire {
    fn drop(&mut self) {
        self.interests.borrow_mut()[self.fd as usize] = None;
    }
}

async fn drive(epoll_fd: RawFd, interests: Rc<RefCell<Vec<Option<Rc<Interest>>>>>) {
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_WAIT];
    loop {
        // SAFETY: the kernel writes at most `events.len()` entries.
        let count = unsafe { libc::epoll_wait(epoll_fd, events.as_mut_ptr(), events.len() as i32, 0) };
        if count <= 0 {
            readable(epoll_fd).await;
            continue;
        }
        let interests = interests.borrow();
        for event in &events[..count as usize] {
            let Some(Some(interest)) = interests.get(event.u64 as usize) else { continue };
            let bits = event.events as i32;
            if bits & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
                interest.readable.set(true);
            }
            if bits & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
                interest.ended.set(true);
            }
            if bits & libc::EPOLLOUT != 0 {
                interest.writable.set(true);
            }
            if let Some(waker) = interest.waker.borrow_mut().take() {
                waker.wake();
            }
        }
        drop(interests);
        futures_lite::future::yield_now().await;
    }
}

/// Waits by glommio until the epoll set has something. Its streams poll once when made and then insist on recv(2), which an
/// epoll descriptor lacks; so a duplicate lives for one wait.
async fn readable(epoll_fd: RawFd) {
    // SAFETY: the duplicate is owned by the stream alone, which closes it.
    let mut stream = unsafe {
        let copy = libc::fcntl(epoll_fd, libc::F_DUPFD_CLOEXEC, 0);
        assert!(copy >= 0, "dup: {}", io::Error::last_os_error());
        UnixStream::from_raw_fd(copy)
    };
    let mut nothing = [0; 1];
    // The first poll waits for readiness; the second fails with ENOTSOCK, which says that it came.
    let _ = poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut nothing)).await;
}

impl Interest {
    fn wake_when_changed(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}

impl Wire for EpollWire {
    fn poll_recv(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.interest.readable.get() {
            self.interest.wake_when_changed(context);
            return Poll::Pending;
        }
        // SAFETY: the kernel writes at most `buffer.len()` bytes.
        let count = unsafe { libc::recv(self.fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Poll::Ready(Err(error));
            }
            self.interest.readable.set(false);
            self.interest.wake_when_changed(context);
            return Poll::Pending;
        }
        // A short read emptied the socket: the next byte makes a new edge. The peer's end made its edge already.
        if (count as usize) < buffer.len() && !self.interest.ended.get() {
            self.interest.readable.set(false);
        }
        Poll::Ready(Ok(count as usize))
    }

    fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.interest.writable.get() {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the kernel reads `bytes.len()` bytes.
            let count = unsafe { libc::send(self.fd, bytes.as_ptr().cast(), bytes.len(), flags) };
            if count >= 0 {
                return Poll::Ready(Ok(count as usize));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Poll::Ready(Err(error));
            }
            self.interest.writable.set(false);
        }
        self.interest.wake_when_changed(context);
        Poll::Pending
    }
}
