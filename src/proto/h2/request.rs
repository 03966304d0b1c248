//! The body of one request on its way in: whole, or piece by piece, at the pace that a body has to keep.
//!
//! hyper holds the flow-control window: what is not asked for is not acknowledged, so a reader that waits slows its client. A client that
//! lets its time pass is counted here, because its connection lives on. Per core.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use hyper::body::Incoming;

use super::pulse::Pulse;
use crate::{
    config::resolve::HttpConfig,
    limits,
    proto::{head::Malformed, pace::Pace, pieces::Pieces, watch::Watch},
};

/// The body of one request, read by the handler's plan.
#[derive(Debug)]
pub struct RequestBody {
    pub(super) incoming: Incoming,
    pub(super) pulse: Rc<Pulse>,
}

impl RequestBody {
    /// How long reading may take, from now.
    pub fn pace(&self, config: &HttpConfig) -> Pace {
        Pace::new(config, self.pulse.watch.now_ms())
    }

    /// Reads the whole body, at most `bytes_max` of it; the rest of a larger one is passed by.
    pub async fn read(self, bytes_max: usize, pace: Pace) -> Result<Bytes, Malformed> {
        let mut body = self.paced(pace);
        let whole = body.whole(bytes_max).await;
        if whole == Err(Malformed::BodyTooLarge) {
            // On the heap: few bodies are, and each request has room for this future.
            Box::pin(body.skip()).await;
        }
        whole
    }

    /// Passes by what comes of it, within reason: an answer before the end of the body resets the stream, which many clients take for a
    /// failure. What became of the body does not matter.
    pub async fn pass_by(self) {
        let pace = Pace::within(Duration::from_millis(limits::REFUSED_BODY_MS_MAX), self.pulse.watch.now_ms());
        self.paced(pace).drop_rest().await;
    }

    /// To be read piece by piece; the time between two pieces is the reader's.
    pub fn paced(self, pace: Pace) -> PacedBody {
        PacedBody { body: self, pace: Cell::new(pace), is_over: false }
    }

    /// The next bytes; `None` at the end.
    async fn data(&mut self) -> Result<Option<Bytes>, Malformed> {
        loop {
            let Some(frame) = poll_fn(|cx| Pin::new(&mut self.incoming).poll_frame(cx)).await else { return Ok(None) };
            match frame.map_err(|_| Malformed::Cut)?.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            }
        }
    }
}

/// A body that is read at a pace.
#[derive(Debug)]
pub struct PacedBody {
    body: RequestBody,
    pace: Cell<Pace>,
    is_over: bool,
}

impl PacedBody {
    /// The body was read to its end.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Passes by what is left of it; see [`RequestBody::pass_by`].
    pub async fn skip(self) {
        self.body.pass_by().await;
    }

    async fn drop_rest(&mut self) {
        let watch = Rc::clone(&self.body.pulse.watch);
        let mut passed = 0;
        while passed < limits::REFUSED_BODY_BYTES_MAX {
            match at_pace(&self.pace, &watch, self.body.data()).await {
                Ok(Ok(Some(piece))) => passed += piece.len(),
                _ => return,
            }
        }
    }

    fn counted<T>(&self, read: Result<T, Malformed>) -> Result<T, Malformed> {
        let cells = &self.body.pulse.metrics.cells;
        match read {
            Err(Malformed::BodyTimeout) => cells.expired_body.add(1),
            Err(Malformed::BodyTooSlow) => cells.expired_body_rate.add(1),
            _ => {}
        }
        read
    }
}

/// Waits for what is read of a body, no longer than its pace allows. A timer is only made for what is not there yet.
async fn at_pace<T>(pace: &Cell<Pace>, watch: &Watch, read: impl Future<Output = T>) -> Result<T, Malformed> {
    let late = async {
        loop {
            // What came meanwhile has bought time.
            match pace.get().left(watch.now_ms()) {
                Ok(left) => glommio::timer::sleep(left).await,
                Err(cause) => return Err(cause),
            }
        }
    };
    futures_lite::future::or(async { Ok(read.await) }, late).await
}

fn came(pace: &Cell<Pace>, bytes: usize, watch: &Watch) {
    let mut bought = pace.get();
    bought.got(bytes, watch.now_ms());
    pace.set(bought);
}

/// Joins the pieces of a body; most have one, which is given as it is.
async fn gather(
    body: &mut RequestBody,
    bytes_max: usize,
    pace: &Cell<Pace>,
    watch: &Watch,
) -> Result<Bytes, Malformed> {
    let Some(first) = body.data().await? else { return Ok(Bytes::new()) };
    let mut rest = BytesMut::new();
    let (mut last, mut len) = (first.len(), first.len());
    loop {
        if len > bytes_max {
            return Err(Malformed::BodyTooLarge);
        }
        came(pace, last, watch);
        let Some(data) = body.data().await? else { break };
        (last, len) = (data.len(), len + data.len());
        rest.extend_from_slice(&data);
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(len);
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

impl Pieces for PacedBody {
    async fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        let watch = Rc::clone(&self.body.pulse.watch);
        let mut pace = self.pace.get();
        pace.resume(watch.now_ms());
        self.pace.set(pace);
        let piece = at_pace(&self.pace, &watch, self.body.data()).await.and_then(|piece| piece);
        if let Ok(Some(piece)) = &piece {
            came(&self.pace, piece.len(), &watch);
        }
        self.is_over |= matches!(piece, Ok(None));
        self.counted(piece)
    }

    async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let watch = Rc::clone(&self.body.pulse.watch);
        let gathered = gather(&mut self.body, bytes_max, &self.pace, &watch);
        let body = at_pace(&self.pace, &watch, gathered).await.and_then(|body| body);
        self.is_over |= body.is_ok();
        self.counted(body)
    }
}
