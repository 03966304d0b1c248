//! HTTP/2 by hyper, over glommio: the adapter of streams and executor, request heads, answer bodies.
//!
//! hyper keeps the frames, flow control and header compression; this file gives it a stream, a way to spawn on this core, and
//! turns its requests into [`Head`]s and our [`Reply`]s into its responses ([`body`]). Per core: nothing here leaves the executor.

mod body;
mod floods;
mod pulse;
mod request;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite, FutureExt};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};

pub use self::request::{PacedBody, RequestBody};
use self::{
    body::{Flushes, Handing, ResponseBody, Stuck},
    floods::{Flood, Frames},
    pulse::{OpenRequest, Pulse},
};
use super::{
    head::{Framing, Head, Malformed, Method, Version, parse_length},
    reply::Reply,
    watch::Watch,
};
use crate::{
    config::resolve::HttpConfig,
    limits,
    metrics::{Cells, Counter, ShardMetrics},
};

/// Streams one client may have open at once.
const STREAMS_MAX: u32 = 256;
/// What hyper still decodes of a head; a head over the contract's limit, which is lower, is answered by a problem of ours.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Flow-control windows: one full message fits without waiting for an update.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The least that RFC 9113 allows: what is read at once is no longer, and h2spec takes it for given.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Streams of a connection that hyper resets because the client broke a rule; hyper then ends the connection.
const LOCAL_ERROR_RESETS_MAX: usize = 1024;
/// What is still read of a client that is cut for a flood: what its kernel sent already must not become a reset over our GOAWAY.
const FLOOD_BYTES_DROPPED_MAX: usize = 1024 * 1024;

/// hyper's view of our stream; `unread` are the bytes read before hyper came.
struct HyperIo<S> {
    stream: S,
    pulse: Rc<Pulse>,
    unread: Bytes,
    scratch: Box<[u8]>,
    flushes: Rc<Flushes>,
    frames: Frames,
    metrics: Arc<ShardMetrics>,
}

fn counter(flood: Flood, cells: &Cells) -> &Counter {
    match flood {
        Flood::Reset => &cells.h2_floods_reset,
        Flood::Ping => &cells.h2_floods_ping,
        Flood::Settings => &cells.h2_floods_settings,
        Flood::EmptyData => &cells.h2_floods_empty_data,
        Flood::Continuation => &cells.h2_floods_continuation,
        Flood::WindowUpdate => &cells.h2_floods_window_update,
        Flood::Other => &cells.h2_floods_other,
        Flood::Hyper => &cells.h2_floods_hyper,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HyperIo<S> {
    /// Counts the flood, says so to the client if it can be told at once, and closes our side; the error has hyper drop the rest.
    fn end(&mut self, flood: Flood, cx: &mut Context<'_>) -> io::Error {
        counter(flood, &self.metrics.cells).add(1);
        tracing::debug!(?flood, "an HTTP/2 connection is ended");
        if let Some(goaway) = self.frames.goaway(flood) {
            // A socket that takes nothing has a client that does not listen either.
            let _ = Pin::new(&mut self.stream).poll_write(cx, &goaway);
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        let _ = Pin::new(&mut self.stream).poll_close(cx);
        let mut dropped = 0;
        while dropped < FLOOD_BYTES_DROPPED_MAX {
            match Pin::new(&mut self.stream).poll_read(cx, &mut self.scratch) {
                Poll::Ready(Ok(read)) if read > 0 => dropped += read,
                _ => break,
            }
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "the client floods")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> hyper::rt::Read for HyperIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unread.is_empty() {
            let take = this.unread.len().min(buf.remaining());
            let unread = this.unread.split_to(take);
            if let Err(flood) = this.frames.read(&unread, this.pulse.watch.now_ms()) {
                return Poll::Ready(Err(this.end(flood, cx)));
            }
            buf.put_slice(&unread);
            this.pulse.read(this.frames.is_cut_short());
            return Poll::Ready(Ok(()));
        }
        let room = this.scratch.len().min(buf.remaining());
        let read = std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut this.scratch[..room]))?;
        if let Err(flood) = this.frames.read(&this.scratch[..read], this.pulse.watch.now_ms()) {
            return Poll::Ready(Err(this.end(flood, cx)));
        }
        buf.put_slice(&this.scratch[..read]);
        this.pulse.read(this.frames.is_cut_short());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> hyper::rt::Write for HyperIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flushes.wrote();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        match written {
            Poll::Ready(Ok(taken)) if taken > 0 => {
                this.pulse.wrote();
                match this.frames.written(&buf[..taken], this.pulse.watch.now_ms()) {
                    Ok(()) => {}
                    // hyper has said so itself, and ends the connection.
                    Err(Flood::Hyper) => counter(Flood::Hyper, &this.metrics.cells).add(1),
                    Err(flood) => return Poll::Ready(Err(this.end(flood, cx))),
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => this.pulse.blocked(),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        match &flushed {
            Poll::Ready(Ok(())) => self.pulse.flushed(),
            Poll::Ready(Err(_)) => {}
            // Over TLS what was written may be here still.
            Poll::Pending => self.pulse.blocked(),
        }
        std::task::ready!(flushed)?;
        self.flushes.flushed(|took| self.metrics.pub_stages.write.record(took));
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
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
                None => {
                    if let Some(handing) = &handing {
                        handing.count_stuck();
                    }
                    tracing::debug!("a client did not take its answer; the stream is reset");
                }
            }
        })
        .detach();
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
    let pulse = Pulse::new(watch, &config, Arc::clone(&metrics));
    let flushes = Rc::<Flushes>::default();
    let scratch = vec![0; 16 * 1024].into();
    let record = {
        let metrics = Arc::clone(&metrics);
        move |took| metrics.pub_stages.write.record(took)
    };
    let executor = LocalExecutor { born: Rc::default(), write_timeout };
    let io = HyperIo {
        stream,
        pulse: Rc::clone(&pulse),
        unread,
        scratch,
        flushes: Rc::clone(&flushes),
        frames: Frames::new(),
        metrics,
    };
    let (born, flushing) = (Rc::clone(&executor.born), Rc::clone(&flushes));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let handing = Handing::new(Rc::clone(&flushing), OpenRequest::new(&pulse));
        born.replace(Some(Rc::clone(&handing)));
        let planned = with_head(request.uri(), &request, |head| plan.plan(head));
        let answered = answer.answer(planned, RequestBody { incoming: request.into_body(), pulse: Rc::clone(&pulse) });
        // On the heap: hyper and the executor move it several times, and it has room for every kind of answer.
        let answered = Box::pin(answered);
        async move { Ok::<_, std::convert::Infallible>(response(answered.await, handing)) }
    });
    let connection = http2::Builder::new(executor)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_pending_accept_reset_streams(limits::H2_RESETS_MAX as usize)
        .max_local_error_reset_streams(LOCAL_ERROR_RESETS_MAX)
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

/// Whether a head that HTTP/2's own coding let through is over the contract's limits, or expects what nobody can meet.
pub fn check(head: &Head<'_>, config: &HttpConfig) -> Result<(), Malformed> {
    let target = head.path.len() + head.query.map_or(0, |query| query.len() + 1);
    if target > config.target_bytes_max {
        return Err(Malformed::TargetTooLong);
    }
    let fields: usize = head.fields.iter().map(|(name, value)| name.len() + value.len() + ": \r\n".len()).sum();
    if target + fields > config.head_bytes_max {
        return Err(Malformed::HeadTooLarge);
    }
    if head.fields_named("expect").any(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(Malformed::Expectation);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hyper::rt::Write as _;

    use super::*;
    use crate::proto::watch::Clock;

    /// Takes what is written, and keeps it while it is stuck, as TLS does.
    struct Keeping(Rc<Cell<bool>>);

    impl AsyncRead for Keeping {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Keeping {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.0.get() { Poll::Pending } else { Poll::Ready(Ok(())) }
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // A test is no core.
    fn what_is_written_and_not_sent_has_the_time_to_write() {
        let config = HttpConfig {
            body_bytes_per_s_min: 0,
            write_timeout: Duration::from_millis(10),
            ..HttpConfig::of_a_test(Duration::from_hours(1))
        };
        let clock = Clock::default();
        let socket = std::fs::File::open("/dev/null").expect("it is there").into();
        let watch = Rc::new(Watch::new(Rc::new(socket), clock.clone(), 0));
        let stuck = Rc::<Cell<bool>>::default();
        let (flushes, metrics): (_, Arc<ShardMetrics>) = Default::default();
        let pulse = Pulse::new(Rc::clone(&watch), &config, Arc::clone(&metrics));
        let (stream, unread, scratch) = (Keeping(Rc::clone(&stuck)), Bytes::new(), Box::default());
        let mut io = HyperIo { stream, pulse, unread, scratch, flushes, frames: Frames::new(), metrics };
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let mut is_cut_after = |is_stuck: bool| {
            stuck.set(is_stuck);
            assert!(Pin::new(&mut io).poll_write(cx, b"answer").is_ready());
            for _ in 0..3 {
                assert_eq!(Pin::new(&mut io).poll_flush(cx).is_pending(), is_stuck);
                std::thread::sleep(config.write_timeout);
                clock.advance();
            }
            watch.expire_if_overdue()
        };
        assert!(!is_cut_after(false));
        assert!(is_cut_after(true));
    }
}
