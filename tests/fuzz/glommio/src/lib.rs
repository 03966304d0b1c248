//! What the included parsers ask of glommio, without an executor: there is nobody to yield to.

pub struct Executor;

pub fn executor() -> Executor {
    Executor
}

impl Executor {
    pub async fn yield_if_needed(&self) {}
}

pub mod timer {
    use std::{
        future::Future,
        pin::Pin,
        task::{Context, Poll},
        time::{Duration, Instant},
    };

    /// Never wakes: whoever has one is polled again and again.
    #[derive(Debug)]
    pub struct Timer;

    impl Timer {
        pub fn new(_: Duration) -> Self {
            Self
        }
    }

    impl Future for Timer {
        type Output = Instant;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Instant> {
            Poll::Pending
        }
    }
}
