//! Which system calls of other architectures than its own the kernel takes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};

/// Whether a kernel for x86-64 runs programs of 32-bit x86: only then there is this file
/// (`arch/x86/entry/vdso`, `abi.vsyscall32`).
pub fn ia32() -> bool {
    Path::new("/proc/sys/abi/vsyscall32").exists()
}

/// Whether a kernel for x86-64 runs programs of x32, which few do. Nothing says so, and a filter
/// that is on this process could kill it for such a call: so a program of two instructions is
/// started, from memory, and its end is looked at. Where that cannot be tried the answer is yes.
/// Blocks for about a millisecond.
pub fn x32() -> bool {
    cfg!(target_arch = "x86_64") && run(&exits(62, &X32_EXIT)).unwrap_or(true)
}

/// What the programs end with.
const STATUS: u8 = 42;

/// `exit(42)`: `mov eax, __X32_SYSCALL_BIT | 60; mov edi, 42; syscall`.
const X32_EXIT: [u8; 12] = [0xb8, 60, 0, 0, 0x40, 0xbf, STATUS, 0, 0, 0, 0x0f, 0x05];

/// An ELF program of 32 bits for the `machine` that is just `code` (elf(5)).
fn exits(machine: u8, code: &[u8]) -> Vec<u8> {
    const HEADERS: u8 = 52 + 32;
    const AT: u32 = 0x10000;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // An executable, of version 1.
    file.extend([2, 0, machine, 0, 1, 0, 0, 0]);
    let word = |file: &mut Vec<u8>, word: u32| file.extend(word.to_le_bytes());
    // Where it begins, where its one program header is, and that it has no sections.
    for value in [AT + u32::from(HEADERS), 52, 0, 0] {
        word(&mut file, value);
    }
    file.extend([52, 0, 32, 0, 1, 0, 40, 0, 0, 0, 0, 0]);
    // All of it is loaded, to read and to execute.
    let size = u32::from(HEADERS) + code.len() as u32;
    for value in [1, 0, AT, AT, size, size, 5, 0x1000] {
        word(&mut file, value);
    }
    file.extend(code);
    file
}

/// Whether the kernel runs `program`.
fn run(program: &[u8]) -> io::Result<bool> {
    let mut file = File::from(memfd_create("abi", MemfdFlags::CLOEXEC)?);
    file.write_all(program)?;
    // The kernel runs no file that is open for writing.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reading = File::open(&path)?;
    drop(file);
    let path = format!("/proc/self/fd/{}", reading.as_raw_fd());
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        // A signal is a filter's, and says nothing of the kernel. Another status is that of a
        // shell, which the C library tries for what is no program.
        Ok(status) => match status.code() {
            Some(code) => Ok(code == i32::from(STATUS)),
            None => Ok(true),
        },
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// `exit(42)` of 32-bit x86: `mov eax, 1; mov ebx, 42; int 0x80`.
    const IA32_EXIT: [u8; 12] = [0xb8, 1, 0, 0, 0, 0xbb, STATUS, 0, 0, 0, 0xcd, 0x80];

    #[test]
    fn a_program_runs_where_the_kernel_has_its_calls() {
        assert_eq!(run(&exits(3, &IA32_EXIT)).unwrap(), ia32());
    }

    #[test]
    fn a_program_for_another_machine_does_not_run() {
        // SPARC.
        assert!(!run(&exits(2, &X32_EXIT)).unwrap());
    }

    #[test]
    fn another_end_is_not_taken_for_a_run() {
        let mut other = IA32_EXIT;
        other[6] = 41;
        assert!(!run(&exits(3, &other)).unwrap());
    }
}
