//! Renewed certificates: the files are looked at every few seconds, and what changed goes to every core.
//!
//! Control thread; the looking is done in the offload pool. Connections keep the certificate they were made with. Files that cannot be
//! used change nothing, and the log says so, once for each change.

use std::{rc::Rc, time::Duration};

use crate::{
    api::{context::Context, frame::Frame},
    proto::tls::Keeper,
    server::Connections,
};

/// Between two looks. SIGHUP needs none of its own: what it changed in the configuration is seen by the next.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Never ends.
pub(super) async fn watch(ctx: Rc<Context>, connections: Rc<Connections>, mut keeper: Keeper) {
    loop {
        glommio::timer::sleep(LOOK_EVERY).await;
        let (config, held) = (ctx.config().tls.clone(), keeper.clone());
        // A full pool, or a panic: the next look finds the same.
        let Ok((looked, held)) = ctx.offload.run(move || held.look(config)).await else { continue };
        keeper = held;
        match looked {
            None => {}
            Some(Ok(acceptor)) => {
                tracing::info!("new connections get the certificates as they are now");
                connections.tls.replace(Some(acceptor.clone()));
                for shard in ctx.mesh.shard_ids() {
                    ctx.mesh.settle(shard, Frame::Certificates(acceptor.clone()));
                }
            }
            Some(Err(error)) => tracing::error!(%error, "tls.certificates: the earlier ones stay in use"),
        }
    }
}
