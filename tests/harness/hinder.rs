//! What a host can do to a gateway: hold one of its threads, forbid it io_uring or huge pages, grant it little locked memory or few files.
//!
//! Method: with the kernel's own means, so that the gateway cannot tell the hindrance from the real thing. A held thread is
//! traced and stopped (ptrace(2)); what a process may do is taken from it between fork and exec (seccomp(2), setrlimit(2)).

use std::io;
use std::marker::PhantomData;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

/// Threads that do not run until this is dropped. Bound to the thread that made it, as ptrace demands.
pub struct Held {
    threads: Vec<libc::pid_t>,
    not_send: PhantomData<*const ()>,
}

/// Stops the threads of a process of ours whose names begin with `prefix`; the others go on.
pub fn hold_threads(pid: u32, prefix: &str) -> Held {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs").flatten();
    let named = threads
        .map(|thread| thread.path())
        .filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with(prefix)));
    let threads: Vec<libc::pid_t> = named.filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect();
    assert!(!threads.is_empty(), "process {pid} has threads named {prefix}..");
    let mut held = Held { threads: Vec::new(), not_send: PhantomData };
    for thread in threads {
        assert!(
            ask(libc::PTRACE_SEIZE, thread),
            "thread {thread} of {pid} can be traced: {}",
            io::Error::last_os_error()
        );
        let stopped = stop(thread);
        assert!(stopped, "thread {thread} of {pid} can be stopped: {}", io::Error::last_os_error());
        held.threads.push(thread);
    }
    held
}

/// Stops a thread that is traced. If that fails it stays traced, and runs, until the tracing thread of ours ends: only a stopped one can
/// be let go.
fn stop(thread: libc::pid_t) -> bool {
    let mut status = 0;
    // SAFETY: waitpid writes one int, which lives across the call.
    let mut is_stopped = || unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } == thread;
    ask(libc::PTRACE_INTERRUPT, thread) && is_stopped()
}

/// A request of ptrace that takes neither address nor data.
fn ask(request: libc::c_uint, thread: libc::pid_t) -> bool {
    let nothing = ptr::null_mut::<libc::c_void>();
    // SAFETY: seizing, interrupting and detaching a thread of another process touch no memory of ours.
    unsafe { libc::ptrace(request, thread, nothing, nothing) == 0 }
}

impl Drop for Held {
    fn drop(&mut self) {
        for thread in &self.threads {
            ask(libc::PTRACE_DETACH, *thread);
        }
    }
}

/// `io_uring_setup` will fail with `errno` in the child.
pub fn forbid_io_uring(command: &mut Command, errno: i32) {
    let errno = u32::try_from(errno).expect("errno is positive");
    let number = u32::try_from(libc::SYS_io_uring_setup).expect("a small number");
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("codes have 16 bits"),
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The first word of what a filter sees is the number of the call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let forbid = move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its four steps live across the call, which copies them.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: prctl is async-signal-safe, and the closure touches nothing but what it owns.
    unsafe { command.pre_exec(forbid) };
}

/// The child may lock `bytes` of memory, and cannot raise that if it is not root.
pub fn limit_locked_memory(command: &mut Command, bytes: u64) {
    limit(command, libc::RLIMIT_MEMLOCK, bytes);
}

/// The child may have `count` descriptors, and cannot raise that if it is not root.
pub fn limit_open_files(command: &mut Command, count: u64) {
    limit(command, libc::RLIMIT_NOFILE, count);
}

/// The child's memory comes in small pages, so that its growth is what it uses (prctl(2)).
pub fn forbid_huge_pages(command: &mut Command) {
    let forbid = || {
        // SAFETY: this prctl takes numbers alone.
        if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: prctl is async-signal-safe, and the closure touches nothing.
    unsafe { command.pre_exec(forbid) };
}

fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, most: u64) {
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: setrlimit reads one rlimit, which lives across the call.
        if unsafe { libc::setrlimit(resource, &raw const limit) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: setrlimit is async-signal-safe, and the closure touches nothing but what it owns.
    unsafe { command.pre_exec(limit) };
}
