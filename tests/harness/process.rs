//! Child processes that never outlive the run.
//!
//! Every child asks the kernel for SIGKILL when its parent dies (`PR_SET_PDEATHSIG`). The kernel means the parent
//! *thread*, and trials run on threads that come and go, so one thread that lives as long as the process does all the
//! spawning. With that, ctrl-c, a panic and `kill -9` of the suite all leave nothing behind. In the ordinary case a
//! [`Process`] is stopped by its pid when it is dropped; nothing here ever signals by name.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use crate::wait::wait_for;

/// How long the output of a child that was killed is waited for.
const SAID_WITHIN: Duration = Duration::from_secs(5);

type Job = (Command, mpsc::Sender<io::Result<Child>>);

static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
    let (jobs, inbox) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            for (mut command, answer) in inbox {
                // Nobody waits for the answer only if the trial's thread is gone, and then the child is of no use.
                let _ = answer.send(command.spawn());
            }
        })
        .expect("a thread can be started");
    jobs
});

/// Starts `command` so that it dies with this process.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    // SAFETY: these calls are async-signal-safe and touch only the closure's own stack, which is what pre_exec demands
    // after fork.
    unsafe {
        command.pre_exec(|| {
            // A blocked signal stays blocked across exec; the child must be stoppable whatever we block for ourselves.
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    let (answer, child) = mpsc::channel();
    SPAWNER.send((command, answer)).expect("the spawner lives as long as the process");
    child.recv().expect("the spawner answers every job")
}

/// Runs `command` to its end and gives what it wrote; one that takes longer than `limit` is killed, and the trial fails.
pub fn output(name: &str, command: Command, limit: Duration) -> io::Result<Output> {
    let child = spawn(command)?;
    let pid = i32::try_from(child.id()).expect("Linux pids are positive i32");
    let (sender, done) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    done.recv_timeout(limit).unwrap_or_else(|_| {
        // SAFETY: kill has no memory effects. Should the child have ended this moment, its pid is not given out again so soon.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // What it had to say is most of the diagnosis. A child of its own may hold the pipes open: that is not waited for.
        let said = match done.recv_timeout(SAID_WITHIN) {
            Ok(Ok(output)) => {
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
            }
            nothing => format!("{nothing:?}"),
        };
        panic!("{name} (pid {pid}) has not ended after {limit:?}; it said:\n{said}")
    })
}

/// A running child; killed and reaped on drop.
pub struct Process {
    child: Child,
    name: String,
    status: Option<ExitStatus>,
}

impl Process {
    pub fn start(name: impl Into<String>, command: Command) -> io::Result<Self> {
        Ok(Self { child: spawn(command)?, name: name.into(), status: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("stdout was piped and not yet taken")
    }

    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("stdin was piped and not yet taken")
    }

    /// Sends `signal` unless the child was already reaped (its pid may then belong to somebody else).
    pub fn signal(&self, signal: i32) {
        if self.status.is_none() {
            let pid = i32::try_from(self.pid()).expect("Linux pids are positive i32");
            // SAFETY: kill has no memory effects; the pid is our own unreaped child, so it cannot have been reused.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// The exit status if the child has ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("our own child can be waited for");
        }
        self.status
    }

    /// Waits for the end; panics when it does not come within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} (pid {}) ends", self.name, self.pid());
        wait_for(limit, what, || self.poll())
    }

    /// SIGKILL, and reaped when this returns.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(10));
    }

    /// SIGTERM, then SIGKILL after `patience`. Returns how long the end took.
    pub fn stop(&mut self, patience: Duration) -> Duration {
        let start = Instant::now();
        self.signal(libc::SIGTERM);
        while self.poll().is_none() && start.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        start.elapsed()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.poll().is_none() {
            self.signal(libc::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Blocks SIGTERM and SIGINT for this thread and those it starts from now on, so that [`wait_for_signal`] alone
/// receives them.
pub fn block_end_signals() -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset before use, and all three calls only write to it or to the thread's
    // mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    }
}

/// Returns when one of the blocked signals arrives.
pub fn wait_for_signal(set: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: both pointers are valid for the call.
    unsafe { libc::sigwait(set, &raw mut signal) };
}

/// Whether `status` says the process was ended by `signal`.
pub fn ended_by(status: ExitStatus, signal: i32) -> bool {
    status.signal() == Some(signal)
}

/// Number of open file descriptors of a process.
pub fn open_fds(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A TCP socket of a process, as the kernel has it.
#[derive(Debug)]
pub struct TcpSocket {
    pub fd: i32,
    pub is_listening: bool,
    pub is_close_on_exec: bool,
    /// TCP_NODELAY.
    pub is_without_delay: bool,
}

/// The TCP sockets of a child of ours. One that closes meanwhile is left out.
pub fn sockets(pid: u32) -> Vec<TcpSocket> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").flatten();
    let fds = fds.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    fds.filter_map(|fd| tcp_socket(pid, fd)).collect()
}

fn tcp_socket(pid: u32, fd: i32) -> Option<TcpSocket> {
    let target = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    if !target.to_string_lossy().starts_with("socket:") {
        return None;
    }
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
    let flags = i32::from_str_radix(flags, 8).expect("flags are octal");
    let socket = duplicate(pid, fd)?;
    // Another kind of socket has no such option.
    let is_without_delay = option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY)? != 0;
    let is_listening = option(&socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0;
    Some(TcpSocket { fd, is_listening, is_close_on_exec: flags & libc::O_CLOEXEC != 0, is_without_delay })
}

/// A descriptor of ours for what is behind one of a child of ours.
fn duplicate(pid: u32, fd: i32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open(2) and pidfd_getfd(2) take numbers and touch no memory.
    let call = |number, first: i64, second: i64| unsafe { libc::syscall(number, first, second, 0) };
    // SAFETY: a number the kernel has just made a descriptor of, which nobody else knows.
    let own = |fd: i64| i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let process = own(call(libc::SYS_pidfd_open, pid.into(), 0))?;
    own(call(libc::SYS_pidfd_getfd, process.as_raw_fd().into(), fd.into()))
}

/// An option that is a number.
fn option(socket: &OwnedFd, level: i32, name: i32) -> Option<i32> {
    let mut value = 0;
    let mut len = libc::socklen_t::try_from(size_of::<i32>()).expect("a few bytes");
    // SAFETY: the number and its length live across the call, which writes no more than that.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    (done == 0).then_some(value)
}

/// Number of threads of a process that have this name.
pub fn threads_named(pid: u32, name: &str) -> usize {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let names = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|found| found.trim_end() == name).count()
}

/// CPU time so far of a process's threads whose names begin so.
pub fn threads_cpu(pid: u32, prefix: &str) -> Duration {
    // USER_HZ, which Linux fixes at 100 for everything it shows in /proc.
    const TICK: Duration = Duration::from_millis(10);
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let ticks = |line: String| -> Option<u32> {
        let (head, tail) = line.rsplit_once(')')?;
        // user and system time: fields 14 and 15, of which `tail` begins with field 3
        let mut fields = tail.split_ascii_whitespace().skip(11);
        let mut next = || fields.next()?.parse::<u32>().ok();
        head.split_once('(')?.1.starts_with(prefix).then_some(next()? + next()?)
    };
    let lines = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    TICK * lines.filter_map(ticks).sum::<u32>()
}

/// The most memory it had since [`forget_peak`], in KiB.
pub fn peak_kib(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:")
}

/// Has the kernel count the peak anew.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process is ours");
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

fn status_kib(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0)
}
