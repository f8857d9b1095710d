//! The system calls that a confined container may make: Docker's default profile
//! (`moby/profiles`, `seccomp/default.json`) as it comes out for a container with the default
//! capabilities, which is what BuildKit uses.

use std::sync::OnceLock;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// What is refused fails with this (`EPERM`).
const REFUSED: u32 = 1;
/// clone3 seems not to be there (`ENOSYS`): its flags are in memory, where a filter cannot look,
/// and C libraries then use clone.
const MISSING: u32 = 38;

/// Flags of clone(2) that make namespaces: mount, UTS, IPC, user, process, network and control
/// group.
const NAMESPACES: u64 = 0x7e02_0000;

/// What may be called with any arguments. The last line is what `CAP_SYS_CHROOT` and a kernel
/// from 4.8 add.
const ALLOWED: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset \
    chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range \
    connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve \
    execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate \
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 \
    geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid \
    getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
    getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid \
    gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen \
    listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat \
    lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat \
    mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap \
    mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at \
    nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe \
    pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv \
    preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall \
    riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max \
    sched_get_priority_min sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 \
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 \
    setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 \
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount \
    statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times \
    tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat \
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev \
    chroot process_vm_readv process_vm_writev ptrace";

/// Address families of socket(2) below this one are allowed.
const FAMILIES_BELOW: u64 = 12;
/// And these. Not among them are AF_ALG and AF_VSOCK, and what is long forgotten.
const FAMILIES: [u64; 25] = [
    13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44,
    45,
];

/// Arguments of personality(2): Linux and 32-bit Linux, each with or without the name of 2.6,
/// and the question what it is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What a kernel takes of the system calls of other architectures than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherCalls {
    /// Those of 32-bit x86, on x86-64.
    pub ia32: bool,
    /// Those of x32, on x86-64.
    pub x32: bool,
}

impl OtherCalls {
    /// All that there are.
    pub const ALL: Self = Self {
        ia32: true,
        x32: true,
    };

    /// What this kernel takes. Blocks for a moment when it is first asked.
    pub fn of_kernel() -> Self {
        static FOUND: OnceLock<OtherCalls> = OnceLock::new();
        *FOUND.get_or_init(|| Self {
            ia32: cooper_sys::abi::ia32(),
            x32: cooper_sys::abi::x32(),
        })
    }
}

/// The profile for the machine's architecture, as [`std::env::consts::ARCH`] names it. An
/// architecture without one runs without.
///
/// It has rules for the system calls of others only where the kernel takes them: libseccomp puts
/// the program together anew for each container, and needs 1 ms for x86-64 alone, 6 with x86, 13
/// with x32 as well.
pub(crate) fn profile(
    arch: &str,
    others: OtherCalls,
) -> Result<Option<LinuxSeccomp>, OciSpecError> {
    let (architectures, more): (Vec<Arch>, &str) = match arch {
        "x86_64" => {
            let mut architectures = vec![Arch::ScmpArchX86_64];
            architectures.extend(others.ia32.then_some(Arch::ScmpArchX86));
            architectures.extend(others.x32.then_some(Arch::ScmpArchX32));
            (architectures, "arch_prctl modify_ldt")
        }
        "aarch64" => (
            vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
            "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
        ),
        "riscv64" => (vec![Arch::ScmpArchRiscv64], "riscv_flush_icache"),
        "s390x" => (
            vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
            "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
        ),
        _ => return Ok(None),
    };
    let names: Vec<&str> = ALLOWED.split_whitespace().chain(more.split(' ')).collect();
    let mut rules = vec![allow(&names, None)?];
    let socket = |value, op| allow(&["socket"], Some(argument(0, value, op)?));
    rules.push(socket(FAMILIES_BELOW, LinuxSeccompOperator::ScmpCmpLt)?);
    for family in FAMILIES {
        rules.push(socket(family, LinuxSeccompOperator::ScmpCmpEq)?);
    }
    for personality in PERSONALITIES {
        let argument = argument(0, personality, LinuxSeccompOperator::ScmpCmpEq)?;
        rules.push(allow(&["personality"], Some(argument))?);
    }
    // On s390 the flags are the second argument.
    let flags = usize::from(arch == "s390x");
    let flags = argument(flags, NAMESPACES, LinuxSeccompOperator::ScmpCmpMaskedEq)?;
    rules.push(allow(&["clone"], Some(flags))?);
    rules.push(
        LinuxSyscallBuilder::default()
            .names(vec!["clone3".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(MISSING)
            .build()?,
    );
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(REFUSED)
        .architectures(architectures)
        .syscalls(rules)
        .build()
        .map(Some)
}

fn allow(names: &[&str], argument: Option<LinuxSeccompArg>) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()?;
    rule.set_args(argument.map(|argument| vec![argument]));
    Ok(rule)
}

fn argument(
    index: usize,
    value: u64,
    op: LinuxSeccompOperator,
) -> Result<LinuxSeccompArg, OciSpecError> {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op);
    // Of the masked bits none may be set.
    builder.value(value).value_two(0_u64).build()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_profile_is_what_docker_makes_of_it() {
        let profile = profile("x86_64", OtherCalls::ALL).unwrap().unwrap();
        let json = serde_json::to_value(profile).unwrap();
        assert_eq!(json["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(json["architectures"][2], "SCMP_ARCH_X32");
        let rules = json["syscalls"].as_array().unwrap();
        let names = rules[0]["names"].as_array().unwrap();
        for name in ["execve", "chroot", "ptrace", "arch_prctl", "futex_waitv"] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
        for name in [
            "mount",
            "clone3",
            "io_uring_setup",
            "bpf",
            "keyctl",
            "setns",
        ] {
            assert!(!names.iter().any(|known| known == name), "{name}");
        }
        let mut sorted: Vec<_> = names.iter().map(|name| name.as_str().unwrap()).collect();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len());
        let families = rules.iter().filter(|rule| rule["names"][0] == "socket");
        assert_eq!(families.count(), 26);
        let last = &rules[rules.len() - 1];
        assert_eq!(last["names"][0], "clone3");
        assert_eq!(last["errnoRet"], 38);
    }

    #[test]
    fn calls_that_the_kernel_does_not_take_need_no_rules() {
        let of = |ia32, x32| {
            let profile = profile("x86_64", OtherCalls { ia32, x32 }).unwrap();
            serde_json::to_value(profile).unwrap()["architectures"].clone()
        };
        assert_eq!(
            of(true, false),
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
        );
        assert_eq!(of(false, false), json!(["SCMP_ARCH_X86_64"]));
    }

    #[test]
    fn an_unknown_architecture_has_none() {
        assert_eq!(profile("vax", OtherCalls::ALL).unwrap(), None);
    }
}
