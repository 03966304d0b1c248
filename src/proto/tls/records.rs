//! The socket under TLS, watched for records that are there in part.
//!
//! rustls keeps the beginning of a record without a word: to whoever reads, a connection in the middle of one looks like an idle one.
//! So the length of each record is read as it goes by (RFC 8446 section 5.1; the same in TLS 1.2), and the [`Watch`] is told. Per core.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use futures_lite::{AsyncRead, AsyncWrite};

use crate::{proto::watch::Watch, readiness::Socket};

/// See the module text.
#[derive(Debug)]
pub struct Records {
    socket: Socket,
    watch: Rc<Watch>,
    place: Place,
}

impl Records {
    pub(super) fn new(socket: Socket, watch: Rc<Watch>) -> Self {
        Self { socket, watch, place: Place::default() }
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl AsyncRead for Records {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.socket).poll_read(cx, buffer);
        if let Poll::Ready(Ok(got)) = read {
            this.place.pass(&buffer[..got]);
            this.watch.set_begun(this.place.is_inside());
        }
        read
    }
}

impl AsyncWrite for Records {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx)
    }
}

/// Where in a record the bytes read so far end.
#[derive(Clone, Copy, Default, Debug)]
struct Place {
    /// Of the header: kind, two of version, two of length.
    header_bytes: u8,
    /// Of what follows the header; while that is read: the length as far as it is known.
    left: u16,
}

impl Place {
    const HEADER_BYTES: u8 = 5;

    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.header_bytes < Self::HEADER_BYTES {
                self.header_bytes += 1;
                if self.header_bytes > 3 {
                    self.left = self.left << 8 | u16::from(first);
                }
                bytes = rest;
            } else {
                let here = bytes.len().min(usize::from(self.left));
                self.left -= u16::try_from(here).unwrap_or(self.left);
                bytes = &bytes[here..];
            }
            if self.header_bytes == Self::HEADER_BYTES && self.left == 0 {
                *self = Self::default();
            }
        }
    }

    fn is_inside(self) -> bool {
        self.header_bytes > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_record_is_found_however_it_is_cut() {
        let lengths = [1, 0, 300, 16_640, 2];
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for length in lengths {
            bytes.extend_from_slice(&[23, 3, 3]);
            bytes.extend_from_slice(&u16::to_be_bytes(length));
            bytes.resize(bytes.len() + usize::from(length), 0xff);
            ends.push(bytes.len());
        }
        for step in [1, 2, 3, 7, 4_096, bytes.len()] {
            let (mut place, mut passed) = (Place::default(), 0);
            for piece in bytes.chunks(step) {
                place.pass(piece);
                passed += piece.len();
                assert_eq!(place.is_inside(), !ends.contains(&passed), "{passed} bytes, {step} at a time");
            }
        }
    }
}
