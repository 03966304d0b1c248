//! A bound in time for anything that is waited for. Per core: the timer is glommio's.

use std::{future::Future, time::Duration};

/// What the future gives, or `None` when that takes longer than `limit`: it is dropped then. What is there at once makes no timer.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let late = async {
        glommio::timer::sleep(limit).await;
        None
    };
    futures_lite::future::or(async { Some(future.await) }, late).await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn what_is_in_time_is_given() {
        let executor = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().expect("an executor");
        executor.run(async {
            assert_eq!(within(Duration::ZERO, ready(1)).await, Some(1), "what is there needs no time");
            assert_eq!(within(Duration::from_millis(1), pending::<()>()).await, None);
        });
    }
}
