//! HTTP/2 by hyper, over glommio: the adapter of streams and executor, request heads, answer bodies.
//!
//! hyper keeps the frames, flow control and header compression; this file gives it a stream, a way to spawn on this core, and
//! turns its requests into [`Head`]s and our [`Reply`]s into its responses. An answer counts as sent when its last piece was
//! taken by hyper and the connection's next flush finished. Per core: nothing here leaves the executor.

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
use http_body::{Body as _, Frame};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};

use super::{
    head::{Framing, Head, Malformed, Method, Version, parse_length},
    reply::{Aborted, Body, BodySource, Reply, Sent},
    watch::{Phase, Watch},
};
use crate::{config::resolve::HttpConfig, limits, metrics::ShardMetrics};

/// Streams one client may have open at once.
const STREAMS_MAX: u32 = 256;
/// What hyper still decodes of a head; a head over the contract's limit, which is lower, is answered by a problem of ours.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Flow-control windows: one full message fits without waiting for an update.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Answers whose last piece hyper has taken; settled by the connection's next finished flush.
type Flushing = Rc<RefCell<Flushes>>;

#[derive(Default)]
struct Flushes {
    sent: Vec<Box<dyn Sent>>,
    timed_from: Vec<Instant>,
}

/// hyper's view of our stream; `unread` are the bytes read before hyper came.
struct HyperIo<S> {
    stream: S,
    pulse: Rc<Pulse>,
    unread: Bytes,
    scratch: Box<[u8]>,
    flushing: Flushing,
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
        this.pulse.beat();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for HyperIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.pulse.beat();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let flushed = {
            let mut flushing = self.flushing.borrow_mut();
            if !flushing.timed_from.is_empty() {
                let now = Instant::now();
                for from in flushing.timed_from.drain(..) {
                    self.metrics.pub_stages.write.record(now - from);
                }
            }
            std::mem::take(&mut flushing.sent)
        };
        for on_sent in flushed {
            on_sent.sent();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// Keeps a connection's deadline: bytes must move within the idle time, or, while requests are open, within the longest wait an
/// answer may have and the time to write it.
#[derive(Debug)]
struct Pulse {
    watch: Rc<Watch>,
    open: Cell<usize>,
    idle: Duration,
    busy: Duration,
}

impl Pulse {
    fn beat(&self) {
        let within = if self.open.get() == 0 { self.idle } else { self.busy };
        self.watch.enter(Phase::Stream, Some(within));
    }

    fn change(&self, open: usize) {
        self.open.set(open);
        self.beat();
    }
}

/// One open request.
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

/// Spawns hyper's stream tasks on this core. A panic ends its stream, not the core.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        glommio::spawn_local(async {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!("a stream task panicked");
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
    pub async fn read(mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
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
    let busy = Duration::from_secs(limits::WAIT_S_MAX) + config.write_timeout;
    let pulse = Rc::new(Pulse { watch, open: Cell::new(0), idle: config.idle_timeout, busy });
    pulse.beat();
    let flushing = Flushing::default();
    let scratch = vec![0; 16 * 1024].into();
    let io = HyperIo { stream, pulse: Rc::clone(&pulse), unread, scratch, flushing: Rc::clone(&flushing), metrics };
    let service = service_fn(move |request: http::Request<Incoming>| {
        let open = OpenRequest::new(&pulse);
        let planned = with_head(request.uri(), &request, |head| plan.plan(head));
        let answered = answer.answer(planned, RequestBody { incoming: request.into_body() });
        let flushing = Rc::clone(&flushing);
        // On the heap: hyper and the executor move it several times, and it has room for every kind of answer.
        let answered = Box::pin(answered);
        async move { Ok::<_, std::convert::Infallible>(response(answered.await, flushing, open)) }
    });
    let connection = http2::Builder::new(LocalExecutor)
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
        connection.as_mut().poll(cx)
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

fn response(mut reply: Reply, flushing: Flushing, open: OpenRequest) -> http::Response<ResponseBody> {
    let mut response = http::Response::builder()
        .status(reply.status)
        .header("server", "kateway")
        .header("date", &super::date::cached()[..]);
    for (name, value) in reply.fields() {
        response = response.header(name, value);
    }
    let body = std::mem::replace(&mut reply.body, Body::Empty);
    let (on_sent, timed_from) = (reply.on_sent.take(), reply.timed_from);
    let mut body = ResponseBody { body, on_sent, timed_from, flushing, _open: Some(open) };
    if matches!(body.body, Body::Empty) {
        body.finish();
    }
    response.body(body).unwrap_or_else(|error| {
        // Our own fields are clean; a field that is not is our defect and must not take the connection with it.
        tracing::error!(%error, "an answer could not be built");
        let flushing = Flushing::default();
        let body = ResponseBody { body: Body::Empty, on_sent: None, timed_from: None, flushing, _open: None };
        let mut response = http::Response::new(body);
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// hyper's view of a [`Body`].
struct ResponseBody {
    body: Body,
    on_sent: Option<Box<dyn Sent>>,
    timed_from: Option<Instant>,
    flushing: Flushing,
    /// Open until the answer is over.
    _open: Option<OpenRequest>,
}

impl ResponseBody {
    /// The body is over. Where somebody wants to know that it was sent, this is reached by a poll of its own after the last piece:
    /// hyper makes it only once the flow-control window has taken that piece whole.
    fn finish(&mut self) {
        self.body = Body::Empty;
        let mut flushing = self.flushing.borrow_mut();
        flushing.sent.extend(self.on_sent.take());
        flushing.timed_from.extend(self.timed_from.take());
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AbortError>>> {
        let Body::Source(source) = &mut self.body else { return Poll::Ready(None) };
        let piece = gather(source.as_mut(), cx);
        match piece {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok((bytes, _))) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Poll::Ready(Ok(_)) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Err(Aborted)) => Poll::Ready(Some(Err(AbortError))),
        }
    }
}

/// Gathers what the source has ready, up to one write's worth. Gives whether more is to come.
fn gather(source: &mut dyn BodySource, cx: &mut Context<'_>) -> Poll<Result<(Bytes, bool), Aborted>> {
    let mut out = Vec::new();
    loop {
        match source.poll_piece(cx, &mut out) {
            Poll::Ready(Some(Ok(()))) if out.len() < limits::WRITE_CHUNK_BYTES => {}
            Poll::Ready(None) => return Poll::Ready(Ok((out.into(), false))),
            Poll::Ready(Some(Err(aborted))) => return Poll::Ready(Err(aborted)),
            Poll::Pending if out.is_empty() => return Poll::Pending,
            Poll::Ready(Some(Ok(()))) | Poll::Pending => return Poll::Ready(Ok((out.into(), true))),
        }
    }
}

/// Makes hyper reset the stream.
#[derive(Debug)]
struct AbortError;

impl std::fmt::Display for AbortError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the answer was cut on purpose")
    }
}

impl std::error::Error for AbortError {}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = AbortError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AbortError>>> {
        let this = self.get_mut();
        match &mut this.body {
            Body::Empty => Poll::Ready(None),
            Body::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                if this.on_sent.is_none() || bytes.is_empty() {
                    this.finish();
                }
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Body::Source(_) => this.poll_source(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.body, Body::Empty)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match &self.body {
            Body::Empty => http_body::SizeHint::with_exact(0),
            Body::Bytes(bytes) => http_body::SizeHint::with_exact(bytes.len() as u64),
            Body::Source(_) => http_body::SizeHint::default(),
        }
    }
}
