//! Bytes to requests and back. Knows no Kafka, no topic and no route.
//!
//! HTTP/1.1 is our own loop over httparse ([`h1`]): one pass decides strictly what a message's length is, so no second reading
//! of it exists anywhere; HTTP/2 is hyper's ([`h2`]), and what a connection becomes after an upgrade tungstenite's ([`ws`]). Both give the API the same [`Head`] and take the same [`Reply`].
//! Everything malformed is answered here, by the problem the caller gives for each [`Malformed`].

pub mod client;
pub mod compress;
pub mod date;
pub mod h1;
pub mod h2;
pub mod head;
pub mod pace;
pub mod pieces;
pub mod proxy_protocol;
pub mod reply;
pub mod stream;
pub mod tls;
pub mod watch;
pub mod ws;

pub use head::{Head, Malformed, Method, Version};
pub use pieces::Pieces;
pub use reply::{Body, BodySource, Reply, Sent};
pub use stream::Stream;
