//! The numbers of system calls.

use std::collections::HashMap;

/// One line for each name; its head says what the columns are.
const TABLE: &str = include_str!("syscalls.txt");

/// A way to call the kernel. The value is its column in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Abi {
    X86_64 = 1,
    X86 = 2,
    X32 = 3,
    Aarch64 = 4,
    Arm = 5,
    Riscv64 = 6,
}

impl Abi {
    /// That of a machine, as [`std::env::consts::ARCH`] names it.
    pub(crate) fn native(arch: &str) -> Option<Self> {
        match arch {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "riscv64" => Some(Self::Riscv64),
            _ => None,
        }
    }

    /// What the kernel calls it in a filter's data (`linux/audit.h`); x32 is not told from
    /// x86_64 there.
    pub(crate) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Its first number.
    pub(crate) fn base(self) -> u32 {
        match self {
            Self::X32 => X32_BIT,
            _ => 0,
        }
    }
}

/// By it numbers of x32 are told from those of x86_64.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// The numbers of an ABI, counted from its first.
pub(crate) fn numbers(abi: Abi) -> HashMap<&'static str, u32> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut columns = line.split(' ');
            let name = columns.next()?;
            let number = columns.nth(abi as usize - 1)?.parse().ok()?;
            Some((name, number))
        })
        .collect()
}
