//! The body half of an HTTP/1.1 connection, for those who read it piece by piece.
//!
//! ```text
//!   Start --> Sized(left) ----------------------------------------> Over
//!         \-> Size line --> Chunk(left) --> its CRLF --> Size line ... --> trailers --> Over
//! ```
//!
//! Invariant: reading, all pieces together, takes no longer than a body may ([`Pace`](crate::proto::pace)); the time between two pieces is
//! the reader's.

use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite};

use super::{H1, Pending, chunk::Overhead, read};
use crate::{
    limits,
    proto::{
        head::{Framing, Malformed},
        pieces::Pieces,
        watch::Phase,
    },
};

/// Where a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Start,
    Sized(u64),
    SizeLine,
    Chunk(u64),
    Over,
}

/// See the module text.
#[derive(Debug)]
pub struct BodyPieces<'a, S> {
    h1: &'a mut H1<S>,
    pending: &'a mut Pending,
    state: State,
    overhead: Overhead,
    /// What the socket is read into, once the connection's own buffer is empty: pieces are exact copies, so that none keeps more than
    /// it holds.
    scratch: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> H1<S> {
    /// The body of the request just read, to be taken piece by piece.
    pub fn pieces<'a>(&'a mut self, pending: &'a mut Pending) -> BodyPieces<'a, S> {
        self.begin_body();
        let overhead = Overhead::default();
        BodyPieces { h1: self, pending, state: State::Start, overhead, scratch: Vec::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> BodyPieces<'_, S> {
    /// The body was read to its end.
    pub fn is_over(&self) -> bool {
        self.state == State::Over || (self.state == State::Start && self.pending.framing == Framing::Length(0))
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, Malformed> {
        loop {
            self.state = match self.state {
                State::Start => self.start().await?,
                State::Sized(0) | State::Over => {
                    self.pending.framing = Framing::Length(0);
                    self.state = State::Over;
                    return Ok(None);
                }
                State::Sized(left) => {
                    let piece = self.some(left).await?;
                    self.state = State::Sized(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                State::SizeLine => match self.h1.chunk_size(&mut self.overhead).await? {
                    0 => {
                        self.h1.trailers().await?;
                        State::Over
                    }
                    size => State::Chunk(size),
                },
                State::Chunk(0) => {
                    if !self.h1.line().await?.is_empty() {
                        return Err(Malformed::Syntax("a chunk does not end where its size says"));
                    }
                    State::SizeLine
                }
                State::Chunk(left) => {
                    let piece = self.some(left).await?;
                    self.state = State::Chunk(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
            };
        }
    }

    async fn start(&mut self) -> Result<State, Malformed> {
        if std::mem::take(&mut self.pending.expects_continue) && self.h1.start == self.h1.end {
            self.h1.say_continue().await?;
        }
        Ok(match self.pending.framing {
            Framing::Length(length) => State::Sized(length),
            Framing::Chunked | Framing::Stream(_) => State::SizeLine,
        })
    }

    /// At least one byte, and no more than `left`.
    async fn some(&mut self, left: u64) -> Result<Bytes, Malformed> {
        let h1 = &mut *self.h1;
        let here = h1.end - h1.start;
        if here > 0 {
            let take = usize::try_from(left).unwrap_or(here).min(here);
            let piece = Bytes::copy_from_slice(&h1.buffer[h1.start..h1.start + take]);
            h1.start += take;
            return Ok(piece);
        }
        let wanted = usize::try_from(left).unwrap_or(limits::BODY_PIECE_BYTES).min(limits::BODY_PIECE_BYTES);
        if self.scratch.len() < wanted {
            self.scratch.resize(wanted, 0);
        }
        match read(&mut h1.stream, &mut self.scratch[..wanted]).await {
            Ok(0) | Err(_) => Err(h1.cut_in_body()),
            Ok(got) => {
                h1.came(got);
                Ok(Bytes::copy_from_slice(&self.scratch[..got]))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pieces for BodyPieces<'_, S> {
    async fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        self.h1.resume_body();
        let piece = self.advance().await;
        if piece.is_ok() {
            self.h1.watch.enter(Phase::Handler, None);
        }
        piece
    }

    async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Malformed> {
        let body = self.h1.body(self.pending, bytes_max).await?;
        self.state = State::Over;
        Ok(body)
    }
}
