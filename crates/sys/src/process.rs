//! What a process does to itself before it runs something else.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// One instruction of a filter (seccomp(2), `struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FilterInstruction {
    /// What it does.
    pub code: u16,
    /// How many instructions are skipped if a comparison holds.
    pub if_true: u8,
    /// How many if not.
    pub if_false: u8,
    /// Its operand.
    pub operand: u32,
}

/// Filters this thread's system calls from now on, for it and what it starts.
///
/// # Errors
/// Those of seccomp(2): `EACCES` without privilege and without no-new-privs, `EINVAL` for a
/// program that is none or flags that the kernel does not know.
pub fn filter_system_calls(program: &[FilterInstruction], flags: u32) -> io::Result<()> {
    let length = u16::try_from(program.len());
    let length = length.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `FilterInstruction` has the layout of `sock_filter`, the kernel reads `len` of
    // them and copies; it writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    check(result)
}

/// Gives every signal its default action and blocks none. What is ignored stays ignored
/// through execve(2), and a Rust program ignores SIGPIPE.
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default action runs no code of this process. SIGKILL and SIGSTOP, and
        // those that the C library keeps, are refused, which is what they should be.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: all zeroes is a set of signals, made empty by the call that gets it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Has every descriptor from `first` on closed when this process runs another program.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no descriptor is closed, only marked.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    check(result)
}

/// Has a command that is to be started get nothing but its standard input, output and error,
/// whatever descriptors others have made in this process without thinking of it. It costs a
/// fork, which other commands do without.
pub fn inherit_nothing(command: &mut Command) {
    // SAFETY: between fork and exec only a system call is made, and nothing allocated.
    unsafe {
        command.pre_exec(|| close_on_exec_from(3));
    }
}

/// Begins a session keyring of its own (keyctl(2)), so that the keys of the one before cannot
/// be read. A kernel without keys is no error.
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the kernel reads the name up to its end.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result,
    }
}

pub(crate) fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_inherits_what_it_is_given() {
        let (kept, _other) = rustix::pipe::pipe().unwrap();
        let place = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&kept));
        let there = |prepare: fn(&mut Command)| {
            let mut command = Command::new("test");
            command.args(["-e", &place]);
            prepare(&mut command);
            command.status().unwrap().success()
        };
        assert!(there(|_| ()));
        assert!(!there(inherit_nothing));
    }

    #[test]
    fn a_program_that_is_none_is_refused() {
        let error = filter_system_calls(&[], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let endless = FilterInstruction {
            code: 0x05,
            if_true: 0,
            if_false: 0,
            operand: u32::MAX,
        };
        assert!(filter_system_calls(&[endless], 0).is_err());
    }
}
