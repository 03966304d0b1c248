//! What the kernel tells about this host and this process, where only a system call tells it.
//!
//! One of the files in which `unsafe` is allowed: three system calls, each behind a function that cannot be misused. What can be
//! read from `/proc` is read from there, without them. This file judges nothing; that is [`super::doctor`]'s.

#![allow(unsafe_code)] // io_uring_setup, setrlimit and adjtimex have no safe face in std

use std::{
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// A limit on a resource of this process; `None` is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// Resources the gateway needs more of than a default shell grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    OpenFiles,
    LockedBytes,
}

/// `struct io_uring_params`: 120 bytes, all zero for a ring without wishes. The kernel writes offsets into it.
#[repr(C, align(8))]
struct RingParams([u8; 120]);

/// Makes an io_uring and gives it back at once.
pub fn try_io_uring() -> io::Result<()> {
    const ENTRIES: libc::c_uint = 4;
    let mut params = RingParams([0; 120]);
    // SAFETY: io_uring_setup(2) reads and writes one io_uring_params, which `params` has the size and alignment of.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// The limit in force, read from `/proc/self/limits`.
pub fn limit(resource: Resource) -> Option<Limit> {
    limit_in(&fs::read_to_string("/proc/self/limits").ok()?, resource)
}

/// Raises the soft limit to the hard one, which needs no privilege.
pub fn raise(resource: Resource) -> io::Result<()> {
    let hard = limit(resource).and_then(|limit| limit.hard).unwrap_or(libc::RLIM_INFINITY);
    let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    let which = match resource {
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::LockedBytes => libc::RLIMIT_MEMLOCK,
    };
    // SAFETY: setrlimit(2) reads one rlimit, which lives across the call.
    match unsafe { libc::setrlimit(which, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether something (NTP, the hypervisor) keeps the clock right. `None` where the kernel does not say.
pub fn is_clock_synchronised() -> Option<bool> {
    // SAFETY: a timex is plain integers, for which all zero is a value; its mode 0 asks and sets nothing.
    let mut asked: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: adjtimex(2) reads and writes one timex, which lives across the call.
    match unsafe { libc::adjtimex(&raw mut asked) } {
        -1 => None,
        state => Some(state != libc::TIME_ERROR),
    }
}

fn limit_in(table: &str, resource: Resource) -> Option<Limit> {
    let name = match resource {
        Resource::OpenFiles => "Max open files",
        Resource::LockedBytes => "Max locked memory",
    };
    let mut columns = table.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    let mut column = || match columns.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Limit { soft: column()?, hard: column()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_the_kernel_s_table() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max open files            1024                 524288               files     \n\
                     Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(limit_in(table, Resource::OpenFiles), Some(Limit { soft: Some(1024), hard: Some(524_288) }));
        assert_eq!(limit_in(table, Resource::LockedBytes), Some(Limit { soft: None, hard: None }));
        assert_eq!(limit_in("", Resource::OpenFiles), None);
    }

    #[test]
    fn raising_a_limit_to_what_it_may_be_succeeds() {
        raise(Resource::OpenFiles).expect("the soft limit may always become the hard one");
        let limit = limit(Resource::OpenFiles).expect("Linux has /proc/self/limits");
        assert_eq!(limit.soft, limit.hard);
    }
}
