//! From the `seccomp` section of a configuration to a filter for the kernel (seccomp(2)).
//!
//! System calls are looked up by halving: the numbers of an architecture fall into a few dozen
//! ranges with one answer each, so that a call costs half a dozen comparisons and not hundreds.

mod assemble;
mod table;

use std::collections::BTreeMap;

use cooper_sys::process::FilterInstruction;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};

use crate::RuntimeError;
use assemble::{Comparison, Rule, Section, Verdict};
use table::Abi;

/// `ENOSYS`.
const MISSING: u32 = 38;
/// The most that a filter can have (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// A filter that is ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub program: Vec<FilterInstruction>,
    /// Flags of seccomp(2).
    pub flags: u32,
}

impl Filter {
    /// Makes a filter for a machine of the architecture `native`
    /// ([`std::env::consts::ARCH`]).
    ///
    /// Names that an architecture does not have are passed over. Where the default is a refusal,
    /// calls that are newer than every one the profile names fail with `ENOSYS`: a C library
    /// that tries them then takes what it used before, as with runc.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] for architectures, actions and flags that it does not know.
    pub fn compile(profile: &LinuxSeccomp, native: &str) -> Result<Self, RuntimeError> {
        if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
            return Err(RuntimeError::unsupported("seccomp listeners"));
        }
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let syscalls = profile.syscalls().as_deref().unwrap_or_default();
        let mut sections: BTreeMap<u32, Section> = BTreeMap::new();
        for abi in abis(profile, native)? {
            let section = sections.entry(abi.audit()).or_default();
            ranges(abi, syscalls, default, section)?;
        }
        let program = assemble::program(sections, default);
        if program.len() > MAX_INSTRUCTIONS {
            return Err(RuntimeError::unsupported(format!(
                "a seccomp profile of {} instructions",
                program.len()
            )));
        }
        Ok(Self {
            program,
            flags: flags(profile)?,
        })
    }
}

fn abis(profile: &LinuxSeccomp, native: &str) -> Result<Vec<Abi>, RuntimeError> {
    let own = Abi::native(native);
    let own = own.ok_or_else(|| RuntimeError::unsupported(format!("seccomp on {native}")))?;
    // The machine's own is always among them (libseccomp, seccomp_init(3)).
    let mut abis = vec![own];
    for arch in profile.architectures().as_deref().unwrap_or_default() {
        let abi = match arch {
            Arch::ScmpArchNative => own,
            Arch::ScmpArchX86_64 => Abi::X86_64,
            Arch::ScmpArchX86 => Abi::X86,
            Arch::ScmpArchX32 => Abi::X32,
            Arch::ScmpArchAarch64 => Abi::Aarch64,
            Arch::ScmpArchArm => Abi::Arm,
            Arch::ScmpArchRiscv64 => Abi::Riscv64,
            other => {
                let what = format!("the seccomp architecture {other}");
                return Err(RuntimeError::unsupported(what));
            }
        };
        if !abis.contains(&abi) {
            abis.push(abi);
        }
    }
    Ok(abis)
}

/// What is decided for which numbers of an ABI.
fn ranges(
    abi: Abi,
    syscalls: &[LinuxSyscall],
    default: u32,
    section: &mut Section,
) -> Result<(), RuntimeError> {
    let numbers = table::numbers(abi);
    let mut verdicts: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut newest = None;
    for syscall in syscalls {
        let verdict = action(syscall.action(), syscall.errno_ret())?;
        let alternatives = alternatives(syscall.args().as_deref().unwrap_or_default())?;
        for name in syscall.names() {
            let Some(number) = numbers.get(name.as_str()) else {
                continue;
            };
            newest = newest.max(Some(*number));
            let rules = verdicts.entry(*number).or_default();
            rules.extend(alternatives.iter().map(|comparisons| Rule {
                comparisons: comparisons.clone(),
                verdict,
            }));
        }
    }
    let first = abi.base();
    let refuses = default & 0xffff_0000 != action(LinuxSeccompAction::ScmpActAllow, None)?
        && !matches!(
            default & 0xffff_0000,
            0x7ffc_0000 | 0x7ff0_0000 // LOG and TRACE let the call happen.
        );
    section.put(first, Verdict::Return(default));
    for (number, rules) in verdicts {
        let number = first + number;
        section.put(number, Verdict::of(rules, default));
        section.put(number + 1, Verdict::Return(default));
    }
    if let Some(newest) = newest
        && refuses
    {
        let missing = action(LinuxSeccompAction::ScmpActErrno, Some(MISSING))?;
        section.put(first + newest + 1, Verdict::Return(missing));
    }
    Ok(())
}

/// Comparisons of different arguments must all hold. Of several for one argument each is enough
/// (runc, `libcontainer/seccomp`).
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Comparison>>, RuntimeError> {
    let comparisons = args
        .iter()
        .map(Comparison::new)
        .collect::<Result<Vec<_>, _>>()?;
    let twice = args.iter().enumerate().any(|(place, arg)| {
        args[..place]
            .iter()
            .any(|other| other.index() == arg.index())
    });
    Ok(if twice {
        comparisons.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![comparisons]
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, RuntimeError> {
    match action {
        LinuxSeccompAction::ScmpActNotify => Err(RuntimeError::unsupported(
            "the seccomp action SCMP_ACT_NOTIFY",
        )),
        // What does not fit would be another action.
        _ if errno.is_some_and(|errno| errno > 0xffff) => Err(RuntimeError::unsupported(format!(
            "the seccomp errno {}",
            errno.unwrap_or_default()
        ))),
        action => Ok(action.as_u32(errno)),
    }
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, RuntimeError> {
    const LOG: u32 = 1 << 1;
    const SPEC_ALLOW: u32 = 1 << 2;
    let Some(flags) = profile.flags() else {
        // runc's choice, and that of kernels from 5.16 on.
        return Ok(SPEC_ALLOW);
    };
    let mut all = 0;
    for flag in flags {
        all |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
            // There is one thread when it is loaded.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                let what = "the seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
                return Err(RuntimeError::unsupported(what));
            }
        };
    }
    Ok(all)
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
