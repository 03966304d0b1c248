//! HTTP/2 by hyper, over glommio: the adapter of streams and executor, request heads, answer bodies.
//!
//! hyper keeps the frames, flow control and header compression; this file gives it a stream, a way to spawn on this core, and
//! turns its requests into [`Head`]s and our [`Reply`]s into its responses ([`body`]). Per core: nothing here leaves the executor.

mod body;

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_lite::{AsyncRead, AsyncWrite, FutureExt};
use http_body::Body as _;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};

use self::body::{Flushes, Handing, ResponseBody, Stuck};
use super::{
    head::{Framing, Head, Malformed, Method, Version, parse_length},
    pieces::Pieces,
    reply::Reply,
    watch::{Phase, Watch},
};
use crate::{config::resolve::HttpConfig, limits, metrics::ShardMetrics, within::within};

/// Streams one client may have open at once.
const STREAMS_MAX: u32 = 256;
/// What hyper still decodes of a head; a head over the contract's limit, which is lower, is answered by a problem of ours.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Flow-control windows: one full message fits without waiting for an update.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// hyper's view of our stream; `unread` are the bytes read before hyper came.
struct HyperIo<S> {
    stream: S,
    pulse: Rc<Pulse>,
    unread: Bytes,
    scratch: Box<[u8]>,
    flushes: Rc<Flushes>,
    metrics: Arc<ShardMetrics>,
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for HyperIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unread.is_empty() {
            let take = this.unread.len().min(buf.remaining());
            buf.put_slice(&this.unread.split_to(take));
            return Poll::Ready(Ok(()));
        }
        let room = this.scratch.len().min(buf.remaining());
        let read = std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut this.scratch[..room]))?;
        buf.put_slice(&this.scratch[..read]);
        this.pulse.read();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for HyperIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.flushes.wrote();
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        match written {
            Poll::Ready(Ok(1..)) => self.pulse.wrote(),
            Poll::Ready(_) => {}
            Poll::Pending => self.pulse.blocked(),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flushes.flushed(|took| self.metrics.pub_stages.write.record(took));
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// Keeps a connection's deadline. While the socket takes nothing of what is written: the time to write. While answers stand in
/// windows that the client does not open: bytes of an answer must move within the longest wait an answer may have and the time to
/// write it, whatever else the client says. Else any byte must, within that time while requests are open (an endless answer has its
/// heartbeats) and within the idle time when none is.
#[derive(Debug)]
struct Pulse {
    watch: Rc<Watch>,
    open: Cell<usize>,
    /// Pieces of answers that were given and not yet taken.
    owed: Cell<usize>,
    is_blocked: Cell<bool>,
    idle: Duration,
    busy: Duration,
    write: Duration,
}

impl Pulse {
    fn new(watch: Rc<Watch>, config: &HttpConfig) -> Rc<Self> {
        let busy = Duration::from_secs(limits::WAIT_S_MAX) + config.write_timeout;
        let (idle, write) = (config.idle_timeout, config.write_timeout);
        let (open, owed, is_blocked) = Default::default();
        let this = Self { watch, open, owed, is_blocked, idle, busy, write };
        this.beat();
        Rc::new(this)
    }

    fn beat(&self) {
        let within = if self.open.get() == 0 { self.idle } else { self.busy };
        self.watch.enter(Phase::Stream, Some(within));
    }

    fn read(&self) {
        if self.owed.get() == 0 && !self.is_blocked.get() {
            self.beat();
        }
    }

    fn wrote(&self) {
        if self.is_blocked.replace(false) || self.owed.get() == 0 {
            self.beat();
        }
    }

    /// The socket takes no more.
    fn blocked(&self) {
        if !self.is_blocked.replace(true) {
            self.watch.enter(Phase::Stream, Some(self.write));
        }
    }

    /// Bytes of an answer went through its window.
    fn moved(&self) {
        if !self.is_blocked.get() {
            self.beat();
        }
    }

    fn change(&self, open: usize) {
        self.open.set(open);
        self.read();
    }

    fn owe(&self, pieces: isize) {
        let owed_before = self.owed.get();
        self.owed.set(owed_before.saturating_add_signed(pieces));
        if owed_before == 0 {
            self.moved();
        }
    }
}

/// One open request.
#[derive(Debug)]
struct OpenRequest(Rc<Pulse>);

impl OpenRequest {
    fn new(pulse: &Rc<Pulse>) -> Self {
        pulse.change(pulse.open.get() + 1);
        Self(Rc::clone(pulse))
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.change(self.0.open.get() - 1);
    }
}

/// Spawns hyper's stream tasks on this core. A panic ends its stream, not the core; so does a client that does not take its answer.
#[derive(Clone)]
struct LocalExecutor {
    /// Of the request that hyper has just given to the service: it spawns that one's task next.
    born: Rc<RefCell<Option<Rc<Handing>>>>,
    write_timeout: Duration,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        let (handing, write_timeout) = (self.born.take(), self.write_timeout);
        glommio::spawn_local(async move {
            let mut stuck = Stuck::default();
            let mut future = std::pin::pin!(AssertUnwindSafe(future).catch_unwind());
            let ended = poll_fn(|cx| {
                if let Poll::Ready(ended) = future.as_mut().poll(cx) {
                    return Poll::Ready(Some(ended));
                }
                let Some(handing) = &handing else { return Poll::Pending };
                stuck.poll(handing, write_timeout, cx).map(|()| None)
            })
            .await;
            match ended {
                Some(Ok(())) => {}
                Some(Err(_)) => tracing::error!("a stream task panicked"),
                // Dropping the task resets the stream.
                None => tracing::debug!("a client did not take its answer; the stream is reset"),
            }
        })
        .detach();
    }
}

/// The body of one request, read by the handler's plan.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Incoming,
}

impl RequestBody {
    /// Reads the whole body, at most `bytes_max` of it.
    pub async fn read(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut self.incoming).poll_frame(cx)).await {
            let Ok(data) = frame.map_err(|_| Malformed::Cut)?.into_data() else { continue };
            if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > bytes_max {
                return Err(Malformed::BodyTooLarge);
            }
            match &first {
                None => first = Some(data),
                Some(_) => rest.extend_from_slice(&data),
            }
        }
        let Some(first) = first else { return Ok(Bytes::new()) };
        if rest.is_empty() {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(whole.freeze())
    }
}

/// A body that is read piece by piece, all of it within `left`.
#[derive(Debug)]
pub struct TimedBody {
    body: RequestBody,
    left: Duration,
    is_over: bool,
}

impl RequestBody {
    /// To be read piece by piece, which may take `limit` in all; the time between two pieces is the reader's.
    pub fn within(self, limit: Duration) -> TimedBody {
        TimedBody { body: self, left: limit, is_over: false }
    }
}

impl TimedBody {
    /// The body was read to its end.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Passes by what is left of it, within reason: an answer before the end of the body resets the stream, which many clients take
    /// for a failure.
    pub async fn skip(&mut self) {
        self.left = Duration::from_millis(limits::REFUSED_BODY_MS_MAX);
        let mut passed = 0;
        while passed < limits::REFUSED_BODY_BYTES_MAX {
            match self.next().await {
                Ok(Some(piece)) => passed += piece.len(),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

impl Pieces for TimedBody {
    async fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        let began = Instant::now();
        let next = async {
            loop {
                let Some(frame) = poll_fn(|cx| Pin::new(&mut self.body.incoming).poll_frame(cx)).await else {
                    return Ok(None);
                };
                match frame.map_err(|_| Malformed::Cut)?.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                }
            }
        };
        let piece = within(self.left, next).await.unwrap_or(Err(Malformed::BodyTimeout));
        self.left = self.left.saturating_sub(began.elapsed());
        self.is_over |= matches!(piece, Ok(None));
        piece
    }

    async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let body = within(self.left, self.body.read(bytes_max)).await.unwrap_or(Err(Malformed::BodyTimeout))?;
        self.is_over = true;
        Ok(body)
    }
}

/// Where a connection is when hyper takes it over.
#[derive(Debug)]
pub struct Start<S> {
    pub stream: S,
    /// Bytes read before.
    pub unread: Bytes,
    pub watch: Rc<Watch>,
    pub config: Rc<HttpConfig>,
    pub metrics: Arc<ShardMetrics>,
}

/// Serves one HTTP/2 connection until it ends. `draining` resolves when the client is to be told to go (GOAWAY).
pub async fn serve<S, P, A>(start: Start<S>, draining: impl Future<Output = ()>, plan: P, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    P: PlanFn,
    A: AnswerFn<P::Planned>,
{
    let Start { stream, unread, watch, config, metrics } = start;
    let write_timeout = config.write_timeout;
    let pulse = Pulse::new(watch, &config);
    let flushes = Rc::<Flushes>::default();
    let scratch = vec![0; 16 * 1024].into();
    let record = {
        let metrics = Arc::clone(&metrics);
        move |took| metrics.pub_stages.write.record(took)
    };
    let io = HyperIo { stream, pulse: Rc::clone(&pulse), unread, scratch, flushes: Rc::clone(&flushes), metrics };
    let executor = LocalExecutor { born: Rc::default(), write_timeout };
    let (born, flushing) = (Rc::clone(&executor.born), Rc::clone(&flushes));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let handing = Handing::new(Rc::clone(&flushing), OpenRequest::new(&pulse));
        born.replace(Some(Rc::clone(&handing)));
        let planned = with_head(request.uri(), &request, |head| plan.plan(head));
        let answered = answer.answer(planned, RequestBody { incoming: request.into_body() });
        // On the heap: hyper and the executor move it several times, and it has room for every kind of answer.
        let answered = Box::pin(answered);
        async move { Ok::<_, std::convert::Infallible>(response(answered.await, handing)) }
    });
    let connection = http2::Builder::new(executor)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(64 * 1024)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut draining = std::pin::pin!(draining);
    let mut told = false;
    let ended = poll_fn(|cx| {
        if !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        flushes.polled(true, &record);
        let polled = connection.as_mut().poll(cx);
        flushes.polled(false, &record);
        polled
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection ended early");
    }
}

/// Turns a head into a plan; synchronous, because the head is only borrowed.
pub trait PlanFn: 'static {
    type Planned: 'static;
    fn plan(&self, head: &Head<'_>) -> Self::Planned;
}

/// Carries a plan out.
pub trait AnswerFn<T>: 'static {
    fn answer(&self, planned: T, body: RequestBody) -> impl Future<Output = Reply> + use<Self, T>;
}

fn with_head<T, B>(uri: &http::Uri, request: &http::Request<B>, plan: impl FnOnce(&Head<'_>) -> T) -> T {
    let method = Method::parse(request.method().as_str().as_bytes());
    let fields = request.headers().iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    plan(&Head {
        method,
        version: Version::Http2,
        path: uri.path().as_bytes(),
        query: uri.query().map(str::as_bytes),
        fields: fields.collect(),
        framing: Framing::Stream(announced(request)),
        keep_alive: true,
        expects_continue: false,
        takes_trailers: false,
    })
}

fn announced<B>(request: &http::Request<B>) -> Option<u64> {
    request.headers().get(http::header::CONTENT_LENGTH).and_then(|value| parse_length(value.as_bytes()).ok())
}

/// Whether a head that HTTP/2's own coding let through is over the contract's limits.
pub fn check_size(head: &Head<'_>, config: &HttpConfig) -> Result<(), Malformed> {
    let target = head.path.len() + head.query.map_or(0, |query| query.len() + 1);
    if target > config.target_bytes_max {
        return Err(Malformed::TargetTooLong);
    }
    let fields: usize = head.fields.iter().map(|(name, value)| name.len() + value.len() + ": \r\n".len()).sum();
    if target + fields > config.head_bytes_max {
        return Err(Malformed::HeadTooLarge);
    }
    Ok(())
}

fn response(mut reply: Reply, handing: Rc<Handing>) -> http::Response<ResponseBody> {
    let mut response = http::Response::builder()
        .status(reply.status)
        .header("server", "kateway")
        .header("date", &super::date::cached()[..]);
    for (name, value) in reply.fields() {
        response = response.header(name, value);
    }
    response.body(ResponseBody::new(&mut reply, Rc::clone(&handing))).unwrap_or_else(|error| {
        // Our own fields are clean; a field that is not is our defect and must not take the connection with it.
        tracing::error!(%error, "an answer could not be built");
        let mut response = http::Response::new(ResponseBody::new(&mut Reply::new(500), handing));
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
