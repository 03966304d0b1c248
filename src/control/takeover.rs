//! A successor takes over: the listening sockets go from the running gateway to the next over a Unix socket.
//!
//! ```text
//!   successor: connect, Hello           -->  running gateway: is it of this user?
//!              its own cores on them    <--  Sockets: every listening socket, by SCM_RIGHTS, with what it serves
//!              clusters reached, accept
//!              Ready                    -->  accepts no more, and drains
//!                                       <--  Released
//! ```
//!
//! A socket that both hold is one socket with one queue: nothing that the kernel has taken in is lost when the old one closes its end,
//! which closing a listener of its own would do (`net.ipv4.tcp_migrate_req` is off by default). Invariants: who connects is of the
//! same user, by the kernel's word and the file's mode; until `Ready` the old one serves as if nothing was, so a successor that fails
//! costs nothing; one successor at a time. The messages are JSON with room for fields to come: the two are of different builds.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use futures_lite::AsyncReadExt;
use rustix::{
    io::retry_on_intr,
    net::{
        self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        context::Context,
        frame::{Frame, Listening},
        status,
    },
    config::Roles,
    limits,
    readiness::{ListenSocket, Socket},
    server::listener::Listener,
    within::within,
};

/// Of what is said. One that says another is refused.
const VERSION: u32 = 1;
/// Longer than a successor takes to be ready; then it is given up, and its connection closed.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What one message may take.
const SAY_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries to write to a full socket.
const WRITE_PAUSE: Duration = Duration::from_millis(5);

/// What one socket serves, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    pub addr: SocketAddr,
    #[serde(rename = "pub")]
    pub publish: bool,
    #[serde(rename = "sub")]
    pub subscribe: bool,
    #[serde(rename = "man")]
    pub manage: bool,
    #[serde(default)]
    pub tls: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Hello { version: u32, pid: u32, build: String },
    Sockets { places: Vec<Place>, is_last: bool },
    Refused { reason: String },
    Ready {},
    Released {},
}

impl Place {
    pub fn new(addr: SocketAddr, roles: Roles) -> Self {
        let Roles { publish, subscribe, manage, tls } = roles;
        Self { addr, publish, subscribe, manage, tls }
    }
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    // Whole messages, each with its descriptors.
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketFlags::empty())?;
    // One takeover at a time: whoever knocks meanwhile waits in the queue, or for a place in it.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SAY_WITHIN))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(SAY_WITHIN))?;
    let addr = SocketAddrUnix::new(path)?;
    retry_on_intr(|| net::connect(&socket, &addr))?;
    Ok(socket)
}

/// Nobody else is handed a socket, nor taken one from, whoever may have come to the file.
fn check_user(socket: &OwnedFd) -> io::Result<()> {
    let (theirs, ours) = (sockopt::socket_peercred(socket)?.uid, rustix::process::geteuid());
    if theirs == ours {
        return Ok(());
    }
    Err(io::Error::other(format!("the other side is of user {}, not {}", theirs.as_raw(), ours.as_raw())))
}

fn encode(message: &Message) -> io::Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(io::Error::other)
}

fn decode(bytes: &[u8]) -> io::Result<Message> {
    if bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side has gone"));
    }
    serde_json::from_slice(bytes).map_err(io::Error::other)
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::other(format!("the other side says {message:?}"))
}

/// Sends one message with its descriptors.
fn send(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::TAKEOVER_SOCKETS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors in one message"));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    retry_on_intr(|| net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags))?;
    Ok(())
}

// === the running gateway ===

/// Control thread. Where successors knock.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    socket: OwnedFd,
    /// Of the file, which another may have replaced.
    file: (u64, u64),
}

impl Door {
    /// Opens the door, unless another gateway stands behind it. The file appears whole, with its mode, in place of one that nobody
    /// listens at, or, for a successor, of its predecessor's.
    pub fn open(path: &Path, is_successor: bool) -> io::Result<Self> {
        let is_there = |knocked: io::Result<OwnedFd>| match knocked {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if !is_successor && is_there(connect(path)) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another gateway listens there (kateway takeover?)"));
        }
        // Accepted from on the control thread, which must not wait there.
        let socket = unix_socket(SocketFlags::NONBLOCK)?;
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        net::bind(&socket, &SocketAddrUnix::new(&new)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        net::listen(&socket, 1)?;
        fs::rename(&new, path)?;
        let file = fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), socket, file: (file.dev(), file.ino()) })
    }

    /// Resolves once a successor serves; this gateway has then stopped accepting. `man`: the control thread's own listeners.
    pub async fn wait(&self, ctx: &Rc<Context>, man: &[Rc<Listener>]) {
        let listener = self.socket.try_clone().and_then(ListenSocket::adopt);
        let Ok(listener) = listener.inspect_err(|error| tracing::error!(%error, "no successor can take over")) else {
            return std::future::pending().await;
        };
        loop {
            let handed = match listener.accept().await {
                Ok(mut socket) => self.hand_over(ctx, man, &mut socket).await,
                Err(error) => Err(error),
            };
            match handed {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "no takeover; this gateway goes on"),
            }
            // A failing accept must not spin.
            glommio::timer::sleep(WRITE_PAUSE).await;
        }
    }
}

impl Door {
    /// Removes the file, if it is still this door's.
    fn remove(&self) {
        let is_ours = fs::metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if is_ours {
            // A file that stays does no harm: nobody listens at it.
            let _ = fs::remove_file(&self.path);
        }
    }

    async fn hand_over(&self, ctx: &Rc<Context>, man: &[Rc<Listener>], socket: &mut Socket) -> io::Result<()> {
        check_user(&socket.handle())?;
        let Message::Hello { version, pid, build } = hear(socket, SAY_WITHIN).await? else {
            return Err(io::Error::other("what connects is no successor"));
        };
        tracing::info!(pid, build, "a successor asks for the listeners");
        let listening = match listening(ctx, man).await {
            Ok(listening) if version == VERSION => listening,
            Ok(_) => return refuse(socket, format!("it speaks version {version}, not {VERSION}")).await,
            Err(error) => return refuse(socket, error.to_string()).await,
        };
        let count = listening.len();
        let mut rest = listening.into_iter().peekable();
        while rest.peek().is_some() {
            let some: Vec<Listening> = rest.by_ref().take(limits::TAKEOVER_SOCKETS_PER_MESSAGE).collect();
            let places = some.iter().map(|one| Place::new(one.addr, one.roles)).collect();
            let fds: Vec<OwnedFd> = some.into_iter().map(|one| one.fd).collect();
            say(socket, &Message::Sockets { places, is_last: rest.peek().is_none() }, &fds).await?;
        }
        let Message::Ready {} = hear(socket, READY_WITHIN).await? else {
            return Err(io::Error::other("the successor is not ready"));
        };
        for listener in man {
            listener.close();
        }
        for shard in ctx.mesh.shard_ids() {
            ctx.mesh.settle(shard, Frame::StopAccepting);
        }
        tracing::info!(pid, sockets = count, "the successor serves");
        // Before the successor puts its own there.
        self.remove();
        if let Err(error) = say(socket, &Message::Released {}, &[]).await {
            tracing::warn!(%error, "the successor does not hear that it serves alone");
        }
        Ok(())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.remove();
    }
}

async fn refuse(socket: &mut Socket, reason: String) -> io::Result<()> {
    let error = io::Error::other(reason.clone());
    say(socket, &Message::Refused { reason }, &[]).await?;
    Err(error)
}

/// Every listening socket of this gateway.
async fn listening(ctx: &Context, man: &[Rc<Listener>]) -> io::Result<Vec<Listening>> {
    let mut all =
        man.iter().filter_map(|listener| listener.listening().transpose()).collect::<io::Result<Vec<Listening>>>()?;
    for (shard, of_core) in status::ask(ctx, |answer| Frame::Listening { answer }).await {
        let of_core = of_core.ok_or_else(|| io::Error::other(format!("core {} does not answer", shard.0)))?;
        all.extend(of_core?);
    }
    if all.is_empty() {
        return Err(io::Error::other("it accepts no more: it is draining"));
    }
    Ok(all)
}

async fn say(socket: &Socket, message: &Message, fds: &[OwnedFd]) -> io::Result<()> {
    let (handle, bytes) = (socket.handle(), encode(message)?);
    let written = within(SAY_WITHIN, async {
        loop {
            match send(&handle, &bytes, fds, SendFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => glommio::timer::sleep(WRITE_PAUSE).await,
                done => return done,
            }
        }
    });
    written.await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

/// The next message, which brings no descriptor. There is never more than one on its way.
async fn hear(socket: &mut Socket, limit: Duration) -> io::Result<Message> {
    let mut bytes = vec![0; limits::TAKEOVER_MESSAGE_BYTES_MAX];
    let late = || Err(io::Error::new(io::ErrorKind::TimedOut, "the other side says nothing"));
    let got = within(limit, socket.read(&mut bytes)).await.unwrap_or_else(late)?;
    decode(&bytes[..got])
}

// === the successor ===

/// A listening socket of the predecessor.
#[derive(Debug)]
pub struct Handed {
    pub place: Place,
    pub socket: socket2::Socket,
}

/// What a successor has of its predecessor: its sockets, until they are given to cores, and its ear.
#[derive(Debug)]
pub struct Predecessor {
    pub sockets: Vec<Handed>,
    socket: OwnedFd,
}

impl Predecessor {
    /// Asks the gateway behind `path` for its listeners. Blocks: no core runs yet.
    pub fn ask(path: &Path) -> io::Result<Self> {
        let busy = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(error.kind(), "another takeover is under way, or it hangs"),
            _ => error,
        };
        let socket = connect(path).map_err(busy)?;
        check_user(&socket)?;
        let (pid, build) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
        send(&socket, &encode(&Message::Hello { version: VERSION, pid, build })?, &[], SendFlags::empty())?;
        let mut sockets = Vec::new();
        loop {
            let (message, fds) = receive(&socket).map_err(busy)?;
            match message {
                Message::Sockets { places, is_last } if places.len() == fds.len() => {
                    let handed = places.into_iter().zip(fds);
                    sockets.extend(handed.map(|(place, fd)| Handed { place, socket: fd.into() }));
                    if is_last {
                        return Ok(Self { sockets, socket });
                    }
                }
                Message::Refused { reason } => return Err(io::Error::other(reason)),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Takes out what serves as this does at this address; with port 0 at any.
    pub fn take(&mut self, wanted: Place) -> Vec<Handed> {
        let is_it = |handed: &mut Handed| {
            let mut place = handed.place;
            if wanted.addr.port() == 0 {
                place.addr.set_port(0);
                return place == wanted;
            }
            place.addr == wanted.addr && place.tls == wanted.tls
        };
        self.sockets.extract_if(.., is_it).collect()
    }

    /// Says that this gateway serves, and waits for the word that it serves alone. Without it both do, until the other one ends.
    pub async fn relieve(self) {
        let said = async {
            let mut socket = Socket::adopt(self.socket)?;
            say(&socket, &Message::Ready {}, &[]).await?;
            match hear(&mut socket, SAY_WITHIN).await? {
                Message::Released {} => Ok(()),
                other => Err(unexpected(&other)),
            }
        };
        match said.await {
            Ok(()) => tracing::info!("took over; the predecessor drains"),
            Err(error) => tracing::warn!(%error, "the predecessor did not confirm; this gateway serves"),
        }
    }
}

/// One message with its descriptors.
fn receive(socket: &OwnedFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::TAKEOVER_SOCKETS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; limits::TAKEOVER_MESSAGE_BYTES_MAX];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags))?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    Ok((decode(&bytes[..got.bytes])?, fds))
}
