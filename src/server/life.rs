//! When an HTTP/2 connection has carried enough (`http.max_requests`, `http.max_age_s`): its client is told to go and open another,
//! which a balancer may give to another gateway. HTTP/1.1 says so with its answers ([`crate::proto::h1::H1::is_last`]). Per core.

use std::rc::Rc;

use crate::{config::HttpConfig, proto::watch::Watch, store::notify::Notify};

/// See the module text.
#[derive(Debug)]
pub struct Life {
    watch: Rc<Watch>,
    config: Rc<HttpConfig>,
    enough: Notify,
}

impl Life {
    pub fn new(watch: &Rc<Watch>, config: &Rc<HttpConfig>) -> Rc<Self> {
        Rc::new(Self { watch: Rc::clone(watch), config: Rc::clone(config), enough: Notify::default() })
    }

    pub fn count_request(&self) {
        if self.watch.count_request(self.config.max_requests, self.config.max_age) {
            self.enough.ring();
        }
    }

    /// Resolves when the client is to be told.
    pub async fn over(&self) {
        let enough = self.enough.wait();
        match self.watch.time_left(self.config.max_age) {
            Some(left) => futures_lite::future::or(enough, glommio::timer::sleep(left)).await,
            None => enough.await,
        }
    }
}
