//! A request body that is read piece by piece, by whoever wants it before it is whole.
//!
//! Invariants: what is not asked for is not read, so a reader that waits slows its client; the end is said once, and only of a body
//! that came to its end.

use std::future::Future;

use bytes::Bytes;

use super::Malformed;

/// See the module text.
pub trait Pieces {
    /// What has come of the body, once there is something; `None` at its end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Malformed>>;

    /// The whole body, at most `bytes_max` of it. Nothing of it was read before.
    fn whole(&mut self, bytes_max: usize) -> impl Future<Output = Result<Bytes, Malformed>>;
}
