//! Where one core's CPU time goes: a sampling profile of its thread, as folded stacks or as a picture.
//!
//! ```text
//!   any other thread: record > a timer on the core's own CPU clock --SIGPROF, to that thread alone--> sampler: pc and frame pointers
//!                            > after N seconds: addresses > names (offloaded, takes a lock and reads debug information) > folded
//! ```
//!
//! Made by hand and not with the `pprof` crate: that one's timer is the whole process's, so its handler runs on every thread,
//! takes a lock there and writes to a file when its table is full; a core must do neither. The CPU clock stands still while the
//! core sleeps, so an idle core gives no samples. What the kernel does for a core counts for the call that asked for it.
//!
//! One profile at a time. [`record`] blocks: it belongs into the offload pool. This module knows no cores and no HTTP.

pub mod sampler;
pub mod svg;

use std::{
    collections::HashMap,
    fmt::Write,
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

pub use sampler::Thread;

/// Why there is no profile.
#[derive(Debug)]
pub enum ProfileError {
    /// Another one is being made.
    Busy,
    /// The kernel gave no timer, for one because the thread has ended.
    Host(io::Error),
}

/// What a thread did.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Stacks, the outermost function first, with how many samples found the thread there.
    pub stacks: Vec<(Vec<String>, u64)>,
    pub samples: u64,
    /// Samples there was no room for.
    pub lost: u64,
    /// CPU time the thread took meanwhile.
    pub cpu: Duration,
    pub lasted: Duration,
}

/// The one profile there may be.
struct Turn;

impl Turn {
    fn take() -> Option<Self> {
        // Lazily: one that is made and dropped would give back what is another's.
        (!TAKEN.swap(true, Ordering::Acquire)).then(|| Self)
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

/// Watches `thread` for so long. Blocks.
#[allow(clippy::disallowed_methods)] // Called in the offload pool, where sleeping stops nobody.
pub fn record(thread: &Thread, lasting: Duration) -> Result<Profile, ProfileError> {
    let _turn = Turn::take().ok_or(ProfileError::Busy)?;
    let before = thread.cpu_time().map_err(ProfileError::Host)?;
    let sampling = sampler::Sampling::start(thread).map_err(ProfileError::Host)?;
    thread::sleep(lasting);
    let (stacks, lost) = sampling.stop();
    let cpu = thread.cpu_time().map_err(ProfileError::Host)?.saturating_sub(before);
    let samples = stacks.len() as u64;
    // In a thread of its own: reading the debug information takes some 90 MB, which the allocator gives back to the host with the
    // next load once that thread has ended.
    let naming = thread::Builder::new().name("profile".to_owned()).spawn(move || named(&stacks));
    let stacks = naming.map_err(ProfileError::Host)?.join();
    let stacks = stacks.map_err(|_| ProfileError::Host(io::Error::other("the naming of addresses panicked")))?;
    Ok(Profile { stacks, samples, lost, cpu, lasted: lasting })
}

/// Names for addresses (innermost first); equal stacks are added up, the heaviest first.
fn named(stacks: &[Vec<usize>]) -> Vec<(Vec<String>, u64)> {
    let mut names: HashMap<usize, Vec<String>> = HashMap::new();
    let mut counts: HashMap<Vec<String>, u64> = HashMap::new();
    for addresses in stacks {
        let mut stack: Vec<String> = Vec::new();
        for address in addresses.iter().rev() {
            stack.extend(names.entry(*address).or_insert_with(|| functions_at(*address)).iter().cloned());
        }
        *counts.entry(stack).or_default() += 1;
    }
    backtrace::clear_symbol_cache();
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a_stack, a), (b_stack, b)| b.cmp(a).then_with(|| a_stack.cmp(b_stack)));
    counts
}

/// The function at an address and those inlined there, the outermost first.
fn functions_at(address: usize) -> Vec<String> {
    let mut functions = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        if let Some(name) = symbol.name() {
            // Without the hash; `;` and line ends would break the format.
            functions.push(format!("{name:#}").replace([';', '\n'], ":"));
        }
    });
    functions.reverse();
    if functions.is_empty() {
        functions.push(format!("{address:#x}"));
    }
    functions
}

impl Profile {
    /// A line per stack: `outermost;..;innermost count`, as flame graph tools take it.
    pub fn folded(&self, root: &str) -> String {
        let mut out = String::new();
        for (stack, count) in &self.stacks {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{root};{} {count}", stack.join(";"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, sync::mpsc, time::Instant};

    use super::*;

    #[inline(never)]
    fn burn_in_the_test(until: Instant) -> u64 {
        let mut x = 1_u64;
        while Instant::now() < until {
            for n in 0..10_000 {
                x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n));
            }
        }
        x
    }

    #[test]
    fn a_busy_thread_is_found_where_it_is_busy_and_nobody_else() {
        let (send, receive) = mpsc::channel();
        let busy = thread::spawn(move || {
            send.send(Thread::here().expect("a thread knows itself")).expect("the test waits");
            burn_in_the_test(Instant::now() + Duration::from_millis(800))
        });
        let thread = receive.recv().expect("it starts");
        let profile = record(&thread, Duration::from_millis(400)).expect("nobody else is recorded");
        busy.join().expect("it ends");
        let folded = profile.folded("root");
        assert!(profile.samples > 5 && profile.cpu > Duration::from_millis(20), "{profile:?}");
        assert!(folded.contains("burn_in_the_test"), "{folded}");
        assert!(
            folded.lines().all(|line| line.starts_with("root;")
                && line.rsplit_once(' ').is_some_and(|(_, n)| n.parse::<u64>().is_ok()))
        );
        // Whoever joins a thread may run before the kernel has forgotten it.
        let by = Instant::now() + Duration::from_secs(5);
        while !matches!(record(&thread, Duration::ZERO), Err(ProfileError::Host(_))) {
            assert!(Instant::now() < by, "the thread has ended");
            thread::yield_now();
        }
    }
}
