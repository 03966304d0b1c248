//! WebSocket: `/v1/ws/msgs/:topic/:ver` publishes ([`publish`]), `/v1/ws/msgs/:appid/:topic/:ver` subscribes ([`subscribe`]).
//!
//! ```text
//!   handshake --plan--> Asked --open (topic, first look)--> Session --101--> serve, until one side says goodbye
//! ```
//!
//! What is wrong is answered as to any other request, before the 101; afterwards by a text on the connection, and its close code. The
//! names a browser gives besides (`kateway.app.<appid>`, `kateway.token.<JWT>`) are never chosen, never shown and never logged.
//!
//! Invariants: a session ends within the drain, with 1001, once what is under way is told; it is counted as long as it is open. Per core.

mod command;
mod publish;
mod subscribe;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use futures_lite::{AsyncRead, AsyncWrite};

use self::publish::{Publishes, Publishing};
use super::{
    admit, codes,
    context::Context,
    format::Format,
    frame::DrainPhase,
    origin,
    reply::{Problem, Stamp},
    subscribe::{Opened, Subscribe},
};
use crate::{
    limits,
    mesh::ShardId,
    proto::{
        Head, Reply,
        watch::Watch,
        ws::{
            Alarm, Close, Goodbye, Incoming, Opcode, Spec, Ws,
            handshake::{Offer, Refusal},
        },
    },
};

/// A subprotocol: how messages stand in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Binary,
    Json,
}

impl Protocol {
    const ALL: [Self; 2] = [Self::Binary, Self::Json];

    fn format(self) -> Format {
        match self {
            Self::Binary => Format::Frames,
            Self::Json => Format::Ndjson,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Binary => "kateway.v1.bin",
            Self::Json => "kateway.v1.json",
        }
    }
}

/// Prefixes of what a browser says of itself, which can set no fields.
const APP_PREFIX: &[u8] = b"kateway.app.";
const TOKEN_PREFIX: &[u8] = b"kateway.token.";

/// A handshake that was found good.
#[derive(Debug)]
pub struct Asked {
    /// Ready but for its going out.
    reply: Reply,
    session: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Publish(Publishing),
    Subscribe(Box<Subscribe>),
    Echo,
}

/// What a handshake says beside what every request says.
#[derive(Debug)]
struct Terms<'a> {
    offer: Offer<'a>,
    /// What was chosen; `None`: nothing was offered, and [`Protocol::Binary`] is meant.
    protocol: Option<Protocol>,
    appid: &'a str,
}

impl Asked {
    pub fn publish(
        ctx: &Rc<Context>,
        head: &Head<'_>,
        stamp: &Stamp,
        topic: &[u8],
        ver: &[u8],
    ) -> Result<Self, Problem> {
        let terms = Terms::read(ctx, head)?;
        let publishing = Publishing::plan(ctx, head, terms.appid, terms.meant(), [topic, ver])?;
        Ok(terms.asked(stamp, Wanted::Publish(publishing)))
    }

    pub fn subscribe(
        ctx: &Rc<Context>,
        head: &Head<'_>,
        stamp: &Stamp,
        client: Option<std::net::IpAddr>,
        parts: [&[u8]; 3],
    ) -> Result<Self, Problem> {
        let terms = Terms::read(ctx, head)?;
        let subscribe = Subscribe::plan_ws(ctx, head, terms.appid, client, parts, terms.meant().format())?;
        Ok(terms.asked(stamp, Wanted::Subscribe(Box::new(subscribe))))
    }

    pub fn echo(ctx: &Rc<Context>, head: &Head<'_>, stamp: &Stamp) -> Result<Self, Problem> {
        Ok(Terms::read(ctx, head)?.asked(stamp, Wanted::Echo))
    }

    /// The core where the group lives that is to be read.
    pub fn home(&self, ctx: &Context) -> Option<ShardId> {
        if let Wanted::Subscribe(subscribe) = &self.session { Some(subscribe.home(ctx)) } else { None }
    }

    /// Looks up what it is about. Then the answer is to go out, and the session be served.
    pub async fn open(self, ctx: &Rc<Context>) -> Result<(Reply, Session), Problem> {
        if ctx.drain_phase() == DrainPhase::Closing {
            return Err(Problem::new(&codes::STARTING, "the gateway goes away"));
        }
        let kind = match self.session {
            Wanted::Publish(publishing) => Kind::Publish(publishing.open(ctx).await?),
            Wanted::Subscribe(subscribe) => Kind::Subscribe(Box::new(subscribe.open(ctx).await?)),
            Wanted::Echo => Kind::Echo,
        };
        Ok((self.reply, Session { ctx: Rc::clone(ctx), kind }))
    }
}

impl<'a> Terms<'a> {
    fn read(ctx: &Context, head: &Head<'a>) -> Result<Self, Problem> {
        let offer = Offer::read(head).map_err(refused)?;
        origin::check(ctx, head)?;
        let (mut chosen, mut appid) = (None, None);
        for name in &offer.protocols {
            if let Some(text) = name.strip_prefix(APP_PREFIX) {
                let text = admit::name("the appid in the subprotocols", text)?;
                if appid.replace(text).is_some() {
                    return Err(Problem::new(&codes::INVALID_FIELD, "the subprotocols name two apps"));
                }
            } else if !name.starts_with(TOKEN_PREFIX) {
                // Tokens mean nothing while tenancy is open.
                chosen = chosen.or(Protocol::ALL.into_iter().find(|known| known.name().as_bytes() == *name));
            }
        }
        if !offer.protocols.is_empty() && chosen.is_none() {
            // RFC 6455 leaves it to the client what to make of an answer without one; a browser fails the connection and shows no reason.
            let detail = "none of the subprotocols offered is spoken here: kateway.v1.bin, kateway.v1.json";
            return Err(Problem::new(&codes::INVALID_FIELD, detail));
        }
        let appid = match (appid, head.field("appid")) {
            (Some(appid), Some(field)) if field != appid.as_bytes() => {
                return Err(Problem::new(&codes::INVALID_FIELD, "Appid and the subprotocols name two apps"));
            }
            (Some(appid), _) => appid,
            (None, _) => admit::appid(head)?,
        };
        Ok(Self { offer, protocol: chosen, appid })
    }

    fn meant(&self) -> Protocol {
        self.protocol.unwrap_or(Protocol::Binary)
    }

    fn asked(&self, stamp: &Stamp, session: Wanted) -> Asked {
        Asked { reply: self.offer.reply(&stamp.request_id, self.protocol.map(Protocol::name)), session }
    }
}

fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::NotAsked => Problem::new(&codes::UPGRADE_REQUIRED, "this route is a WebSocket (RFC 6455)"),
        Refusal::OtherVersion => Problem::new(&codes::UPGRADE_REQUIRED, "Sec-WebSocket-Version is not 13"),
        Refusal::NotHttp11 => Problem::new(&codes::WEBSOCKET_NEEDS_HTTP1, "this route is a WebSocket on HTTP/1.1"),
        Refusal::Malformed(detail) => Problem::new(&codes::INVALID_FIELD, detail),
    }
}

/// What is to be served once the 101 is out.
#[derive(Debug)]
pub struct Session {
    ctx: Rc<Context>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Publish(Publishes),
    Subscribe(Box<Opened>),
    Echo,
}

/// Counts a WebSocket while it is open.
struct Open<'a>(&'a Context);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.metrics.cells.ws_connections.sub(1);
    }
}

/// Resolves when the session is to end, with what the client is told of it.
type Closing = Pin<Box<dyn Future<Output = &'static str>>>;

impl Session {
    /// Serves the connection to its end.
    pub async fn serve<S>(self, stream: S, unread: &[u8], watch: Rc<Watch>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { ctx, kind } = self;
        ctx.metrics.cells.ws_connections.add(1);
        let _open = Open(&ctx);
        let closing = closing(&ctx, &watch);
        let mut ws = Ws::new(stream, unread, watch, spec(&ctx, &kind));
        let goodbye = match kind {
            Kind::Publish(publishes) => publishes.serve(&ctx, &mut ws, closing).await,
            Kind::Subscribe(opened) => subscribe::serve(*opened, &ctx, &mut ws, closing).await,
            Kind::Echo => echo(&mut ws, closing).await,
        };
        if goodbye == Goodbye::Ours(Close::silent()) {
            ctx.metrics.cells.ws_silent.add(1);
        } else if goodbye == Goodbye::Ours(Close::slow()) {
            ctx.metrics.cells.expired_body_rate.add(1);
        }
        ws.end(goodbye).await;
    }
}

fn spec(ctx: &Context, kind: &Kind) -> Spec {
    let config = ctx.config.borrow();
    let message_bytes_max = match kind {
        Kind::Publish(publishes) => publishes.frame_bytes_max(),
        // A burial may carry a message, as text or base64.
        Kind::Subscribe(_) => limits::ACK_BODY_BYTES_MAX.max(2 * config.publish.message_bytes_max),
        Kind::Echo => limits::WS_ECHO_BYTES_MAX,
    };
    Spec {
        message_bytes_max,
        ping_every: config.http.ws_ping,
        pace_every: config.http.ws_ping.max(Duration::from_millis(limits::WS_PACE_MS)),
        write_timeout: config.http.write_timeout,
        bytes_per_s_min: config.http.body_bytes_per_s_min,
    }
}

fn closing(ctx: &Rc<Context>, watch: &Watch) -> Closing {
    let ctx = Rc::clone(ctx);
    // It may have been used for requests before, by a proxy that keeps connections.
    let lasts = watch.own_age(ctx.config.borrow().http.max_age);
    Box::pin(async move {
        let drained = async {
            while ctx.drain_phase() != DrainPhase::Closing {
                ctx.drain_bell.wait().await;
            }
            "drain"
        };
        let Some(lasts) = lasts else { return drained.await };
        let aged = async {
            let mut age = Alarm::after(lasts);
            poll_fn(|cx| age.poll(cx)).await;
            "the session has lasted http.max_age_s"
        };
        futures_lite::future::or(drained, aged).await
    })
}

/// Gives back what it is sent.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(ws: &mut Ws<S>, mut closing: Closing) -> Goodbye {
    poll_fn(|cx| {
        if let Poll::Ready(reason) = closing.as_mut().poll(cx) {
            return Poll::Ready(Goodbye::Ours(Close::going_away(reason)));
        }
        if let Poll::Ready(goodbye) = ws.poll_pulse(cx) {
            return Poll::Ready(goodbye);
        }
        for read in 0..=limits::LOOP_ITEMS_MAX {
            match ws.poll_message(cx) {
                Poll::Ready(Incoming::Message { bytes, is_text, .. }) => {
                    ws.put(if is_text { Opcode::Text } else { Opcode::Binary }, &[&bytes]);
                }
                Poll::Ready(Incoming::End(goodbye)) => return Poll::Ready(goodbye),
                Poll::Pending => break,
            }
            if read == limits::LOOP_ITEMS_MAX {
                cx.waker().wake_by_ref();
            }
        }
        match ws.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Goodbye::Gone),
            _ => Poll::Pending,
        }
    })
    .await
}
