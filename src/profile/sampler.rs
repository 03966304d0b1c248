//! The part of a profile that runs on the watched thread: a signal handler that notes where the thread is.
//!
//! One of the files in which `unsafe` is allowed. Invariants: the handler calls nothing but `gettid`, takes no memory and no
//! lock, and ends after [`FRAMES_MAX`] frames; it reads the watched thread's own stack only, between the stack pointer and the
//! stack's end, so a frame pointer that is none (code built without them) ends the walk and cannot harm; all it writes are
//! atomics in a table that is always there, so a signal that comes late finds what it needs.
//!
//! Frame pointers come from `.cargo/config.toml`.

#![allow(unsafe_code)] // timers, signals, registers and stacks have no safe face

use std::{
    ffi::{c_int, c_void},
    io,
    mem::{MaybeUninit, zeroed},
    ptr,
    sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

/// CPU time between two samples; not a part of the core's tick of 5 ms, lest they march in step.
const EVERY: Duration = Duration::from_micros(3_989);
/// Frames of one sample; deeper stacks lose their outermost.
const FRAMES_MAX: usize = 192;
/// Room for samples: each takes its frames and one word. Costs no memory before it is used.
const WORDS_MAX: usize = 1 << 19;

static WORDS: [AtomicUsize; WORDS_MAX] = [const { AtomicUsize::new(0) }; WORDS_MAX];
static USED: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);
/// The watched thread; 0: none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static STACK_START: AtomicUsize = AtomicUsize::new(0);
static STACK_END: AtomicUsize = AtomicUsize::new(0);

/// A thread of this process that can be watched. Immutable, shared.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    id: libc::pid_t,
    clock: libc::clockid_t,
    stack: (usize, usize),
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn done_or_errno(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Thread {
    /// The calling thread.
    pub fn here() -> io::Result<Self> {
        // SAFETY: asks nothing of its caller.
        let (id, this) = unsafe { (libc::gettid(), libc::pthread_self()) };
        let (mut clock, mut start, mut size) = (0, ptr::null_mut(), 0);
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: `this` is the running thread, and `clock` lives across the call.
        done(unsafe { libc::pthread_getcpuclockid(this, &raw mut clock) })?;
        // SAFETY: as above; the attributes are initialised when the call says so.
        done(unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) })?;
        // SAFETY: initialised above, read once, destroyed once.
        let got = unsafe {
            let got = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut size);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            got
        };
        done(got)?;
        Ok(Self { id, clock, stack: (start.addr(), start.addr() + size) })
    }

    /// CPU time the thread has taken so far. An error when it has ended.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` lives across the call; a clock of a thread that has ended is refused.
        done_or_errno(unsafe { libc::clock_gettime(self.clock, &raw mut time) })?;
        Ok(Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0)))
    }
}

/// A thread being watched. There is one at a time; the caller sees to it.
#[derive(Debug)]
pub struct Sampling {
    timer: libc::timer_t,
}

impl Sampling {
    pub fn start(thread: &Thread) -> io::Result<Self> {
        install()?;
        LOST.store(0, Ordering::Relaxed);
        USED.store(0, Ordering::Relaxed);
        STACK_START.store(thread.stack.0, Ordering::Relaxed);
        STACK_END.store(thread.stack.1, Ordering::Relaxed);
        // SAFETY: plain integers and a union of such, for which all zero is a value.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread.id;
        let mut timer = ptr::null_mut();
        // SAFETY: `event` and `timer` live across the call.
        done_or_errno(unsafe { libc::timer_create(thread.clock, &raw mut event, &raw mut timer) })?;
        let sampling = Self { timer };
        WATCHED.store(thread.id, Ordering::Release);
        let every = libc::timespec { tv_sec: 0, tv_nsec: i64::from(EVERY.subsec_nanos()) };
        let times = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: the timer was just made; `times` lives across the call.
        done_or_errno(unsafe { libc::timer_settime(timer, 0, &raw const times, ptr::null_mut()) })?;
        Ok(sampling)
    }

    /// Every sample's addresses, the innermost first, and how many samples had no room.
    pub fn stop(self) -> (Vec<Vec<usize>>, u64) {
        drop(self);
        let used = USED.load(Ordering::Acquire).min(WORDS_MAX);
        let mut samples = Vec::new();
        let mut at = 0;
        while at < used {
            let len = WORDS[at].load(Ordering::Relaxed);
            let end = at + 1 + len;
            if end > used {
                break;
            }
            samples.push(WORDS[at + 1..end].iter().map(|word| word.load(Ordering::Relaxed)).collect());
            at = end;
        }
        (samples, LOST.load(Ordering::Relaxed))
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        // SAFETY: made in `start`, deleted once.
        unsafe { libc::timer_delete(self.timer) };
        WATCHED.store(0, Ordering::Release);
    }
}

/// The handler stays for good: a signal may still be on its way when a profile ends.
fn install() -> io::Result<()> {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    // SAFETY: plain integers, a set of bits and a null pointer, for which all zero is a value.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler has the form SA_SIGINFO asks for and is safe in a signal's context (see the module text).
    done_or_errno(unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) })
}

extern "C" fn on_signal(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: asks nothing of its caller, and is one system call.
    if WATCHED.load(Ordering::Acquire) != unsafe { libc::gettid() } {
        return;
    }
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context, alive until the handler returns.
    let context = unsafe { &*context.cast_const().cast::<libc::ucontext_t>() };
    sample(&Registers::of(context));
}

struct Registers {
    pc: usize,
    frame: usize,
    stack: usize,
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Registers hold addresses.
    fn of(context: &libc::ucontext_t) -> Self {
        let register = |name: c_int| context.uc_mcontext.gregs[name as usize] as usize;
        Self { pc: register(libc::REG_RIP), frame: register(libc::REG_RBP), stack: register(libc::REG_RSP) }
    }

    #[cfg(target_arch = "aarch64")]
    #[allow(clippy::cast_possible_truncation)] // Registers hold addresses.
    fn of(context: &libc::ucontext_t) -> Self {
        let machine = &context.uc_mcontext;
        Self { pc: machine.pc as usize, frame: machine.regs[29] as usize, stack: machine.sp as usize }
    }
}

/// Notes one stack: the pc, then the return addresses the frame pointers lead to.
fn sample(registers: &Registers) {
    const WORD: usize = size_of::<usize>();
    let at = USED.load(Ordering::Relaxed);
    let end = STACK_END.load(Ordering::Relaxed);
    let on_its_stack = (STACK_START.load(Ordering::Relaxed)..end).contains(&registers.stack);
    if !on_its_stack || at + 1 + FRAMES_MAX > WORDS_MAX {
        LOST.fetch_add(1, Ordering::Relaxed);
        return;
    }
    WORDS[at + 1].store(registers.pc, Ordering::Relaxed);
    let (mut len, mut frame, mut lowest) = (1, registers.frame, registers.stack);
    // A frame is two words, the caller's frame and the return address; each lies above the one before.
    while len < FRAMES_MAX && frame >= lowest && frame.is_multiple_of(WORD) && frame <= end - 2 * WORD {
        let words = ptr::without_provenance::<usize>(frame);
        // SAFETY: aligned, and between this thread's stack pointer and its stack's end, which is mapped as long as it runs.
        let (caller, back) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
        if back == 0 {
            break;
        }
        // Inside the call, not behind it: the next instruction may be another line's or another function's.
        WORDS[at + 1 + len].store(back - 1, Ordering::Relaxed);
        len += 1;
        lowest = frame + 2 * WORD;
        frame = caller;
    }
    WORDS[at].store(len, Ordering::Relaxed);
    USED.store(at + 1 + len, Ordering::Release);
}
