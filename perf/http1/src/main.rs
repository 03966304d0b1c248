//! Measuring stand for the HTTP/1 path of the gateway.
//!
//! One glommio executor pinned to one core answers every request whose body it has read completely into `Bytes` with
//! `201 Created`. What differs is only how bytes become requests: `--engine hyper` (hyper's parser with our framing
//! scanner in front), `--engine own` (our loop over httparse); and how readiness is learnt: `--readiness
//! uring` (glommio's way, one io_uring poll per read), `--readiness epoll` (one edge-triggered epoll set per core).
//!
//! The settings of the executor are those of the gateway: 1 ms preempt timer, unbuffered streams, and a kicker thread
//! that wakes a kept waker every 5 ms, because glommio 0.9 can park with runnable tasks.

mod epoll;
mod hyper_engine;
mod own;
mod scanner;
mod sink;
mod wire;

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use glommio::net::TcpListener;
use glommio::{LocalExecutorBuilder, Placement};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sink::{BodyMode, Sink};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KICK_INTERVAL: Duration = Duration::from_millis(5);
const PREEMPT_TIMER: Duration = Duration::from_millis(1);
const LISTEN_BACKLOG: i32 = 1024;
const IO_MEMORY_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Hyper,
    Own,
}

#[derive(Clone, Copy, PartialEq)]
enum ReadinessKind {
    Uring,
    Epoll,
}

#[derive(Clone)]
struct Options {
    engine: Engine,
    readiness: ReadinessKind,
    listen: SocketAddr,
    core: usize,
    ring_depth: usize,
    /// How many bodies are kept alive, as a producer does until the delivery report.
    hold: usize,
    body: BodyMode,
}

fn main() {
    let options = match parse_options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("http1-path: {message}");
            eprintln!(
                "usage: http1-path --engine hyper|own [--readiness uring|epoll] [--listen 127.0.0.1:8080] \
                 [--core 0] [--ring-depth 128] [--hold 64] [--body slice|copy]"
            );
            std::process::exit(64);
        }
    };
    let kicked: Arc<Mutex<Option<Waker>>> = Arc::default();
    spawn_kicker(Arc::clone(&kicked));
    let executor = LocalExecutorBuilder::new(Placement::Fixed(options.core))
        .name("shard")
        .preempt_timer(PREEMPT_TIMER)
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(options.ring_depth)
        .make()
        .expect("an executor: is io_uring allowed and memlock at least 512 KiB?");
    executor.run(async move {
        glommio::spawn_local(be_kickable(kicked)).detach();
        serve(options).await;
    });
}

fn parse_options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        engine: Engine::Own,
        readiness: ReadinessKind::Uring,
        listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
        core: 0,
        ring_depth: 128,
        hold: 64,
        body: BodyMode::Slice,
    };
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} wants a value"))?;
        let bad = || format!("{name}: bad value {value}");
        match name.as_str() {
            "--engine" => {
                options.engine = match value.as_str() {
                    "hyper" => Engine::Hyper,
                    "own" => Engine::Own,
                    _ => return Err(bad()),
                }
            }
            "--readiness" => {
                options.readiness = match value.as_str() {
                    "uring" => ReadinessKind::Uring,
                    "epoll" => ReadinessKind::Epoll,
                    _ => return Err(bad()),
                }
            }
            "--listen" => options.listen = value.parse().map_err(|_| bad())?,
            "--core" => options.core = value.parse().map_err(|_| bad())?,
            "--ring-depth" => options.ring_depth = value.parse().map_err(|_| bad())?,
            "--hold" => options.hold = value.parse().map_err(|_| bad())?,
            "--body" => {
                options.body = match value.as_str() {
                    "slice" => BodyMode::Slice,
                    "copy" => BodyMode::Copy,
                    _ => return Err(bad()),
                }
            }
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}

fn spawn_kicker(kicked: Arc<Mutex<Option<Waker>>>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(KICK_INTERVAL);
            // Kept, not taken: an executor that parks right after this task became runnable needs one more foreign wake.
            if let Some(waker) = &*kicked.lock().expect("no holder panics") {
                waker.wake_by_ref();
            }
        }
    });
}

/// Keeps a waker of this executor where the kicker finds it.
async fn be_kickable(kicked: Arc<Mutex<Option<Waker>>>) {
    poll_fn(|context| {
        *kicked.lock().expect("no holder panics") = Some(context.waker().clone());
        Poll::<()>::Pending
    })
    .await;
}

async fn serve(options: Options) {
    let listener = listen(options.listen);
    println!("ready pub={}", listener.local_addr().expect("a bound socket"));
    let sink = Rc::new(RefCell::new(Sink::new(options.hold, options.body)));
    let readiness = (options.readiness == ReadinessKind::Epoll).then(epoll::Readiness::start);
    loop {
        let stream = listener.accept().await.expect("accept");
        let _ = stream.set_nodelay(true);
        let sink = Rc::clone(&sink);
        match (&readiness, options.engine) {
            (None, Engine::Hyper) => glommio::spawn_local(hyper_engine::serve_connection(stream, sink)).detach(),
            (None, Engine::Own) => glommio::spawn_local(own::serve_connection(stream, sink)).detach(),
            (Some(readiness), Engine::Hyper) => {
                glommio::spawn_local(hyper_engine::serve_connection(readiness.adopt(stream), sink)).detach()
            }
            (Some(readiness), Engine::Own) => {
                glommio::spawn_local(own::serve_connection(readiness.adopt(stream), sink)).detach()
            }
        };
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.bind(&address.into()).expect("bind");
    socket.listen(LISTEN_BACKLOG).expect("listen");
    // SAFETY: the descriptor is a listening socket that nothing else owns any more.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
