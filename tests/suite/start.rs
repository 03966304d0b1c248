//! A gateway comes up, always: on a busy machine, with many cores, whatever the preempt timer is.
//!
//! An executor of glommio 0.9 that is preempted before its first task ran parks for ever, and no wake reaches it then.
//! Method: many gateways start side by side with sixteen cores each and the shortest preempt timer there is, which makes
//! that likely: without the queue of `boot::in_quick_queue` about one start in twenty-five hangs. Each must print its
//! ready line, and each core and the management listener must answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kateway_tests::kateway::Kateway;
use kateway_tests::{figures, wait_until};

use crate::Case;

pub const CASES: &[Case] = &[Case::new("start::many_cores_with_a_short_timer", many_cores_with_a_short_timer).alone()];

const STARTS: usize = 100;
const AT_ONCE: usize = 8;
const CORES: u32 = 16;
/// Sixteen cores share two CPUs with seven other gateways; one that hangs answers never.
const PATIENCE: Duration = Duration::from_secs(10);

fn many_cores_with_a_short_timer() {
    let started = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while started.fetch_add(1, Ordering::Relaxed) < STARTS {
                    let gateway = Kateway::null().shards(CORES).set("shard.preempt_us", 100).start();
                    wait_until(PATIENCE, "every core answers", || {
                        let status = gateway.status();
                        assert_eq!(status["shards"].as_array().map(Vec::len), Some(CORES as usize), "{status}");
                        status["silent_shards"].as_array().is_some_and(Vec::is_empty)
                    });
                }
            });
        }
    });
    figures::note(format!("{STARTS} starts of {CORES} cores"), format!("{:?}", begun.elapsed()));
}
