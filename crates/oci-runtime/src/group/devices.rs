//! Which devices the processes of a group can use: by files in version 1, by a program in
//! version 2 (`struct bpf_cgroup_dev_ctx`).

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::Group;
use crate::RuntimeError;

/// What every container can use besides what it is told: making any device file, null, zero,
/// full, random, urandom, tty, console, ptmx and terminals (runc, `AllowedDevices`).
const DEFAULTS: [Rule; 11] = [
    Rule::new(true, Some(CHARACTER), None, None, MAKE),
    Rule::new(true, Some(BLOCK), None, None, MAKE),
    Rule::new(true, Some(CHARACTER), Some(1), Some(3), ALL),
    Rule::new(true, Some(CHARACTER), Some(1), Some(5), ALL),
    Rule::new(true, Some(CHARACTER), Some(1), Some(7), ALL),
    Rule::new(true, Some(CHARACTER), Some(1), Some(8), ALL),
    Rule::new(true, Some(CHARACTER), Some(1), Some(9), ALL),
    Rule::new(true, Some(CHARACTER), Some(5), Some(0), ALL),
    Rule::new(true, Some(CHARACTER), Some(5), Some(1), ALL),
    Rule::new(true, Some(CHARACTER), Some(5), Some(2), ALL),
    Rule::new(true, Some(CHARACTER), Some(136), None, ALL),
];

/// As the program sees them.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MAKE | READ | WRITE;

/// A rule; what it does not say is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

pub(super) fn set(group: &Group, rules: &[LinuxDeviceCgroup]) -> Result<(), RuntimeError> {
    let rules = rules.iter().map(Rule::parse);
    let mut rules = rules.collect::<Result<Vec<_>, _>>()?;
    rules.extend(DEFAULTS);
    if group.unified() {
        let directory = &group.directories[0];
        let attach = || {
            let open = std::fs::File::open(directory)?;
            cooper_sys::bpf::attach_device_program(&program(&rules), open)
        };
        return attach().map_err(RuntimeError::group("set the devices of", directory));
    }
    // After what allows everything nothing else needs to be allowed.
    for rule in rules {
        let file = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        group.write(file, rule.line())?;
    }
    Ok(())
}

impl Rule {
    const fn new(
        allow: bool,
        kind: Option<u32>,
        major: Option<u32>,
        minor: Option<u32>,
        access: u32,
    ) -> Self {
        Self {
            allow,
            kind,
            major,
            minor,
            access,
        }
    }

    fn parse(rule: &LinuxDeviceCgroup) -> Result<Self, RuntimeError> {
        let refused = || RuntimeError::unsupported(format!("the device rule {rule:?}"));
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            Some(LinuxDeviceType::P) => return Err(refused()),
        };
        // A negative number is any.
        let number = |number: Option<i64>| match number {
            Some(number) if number >= 0 => u32::try_from(number).map(Some).map_err(|_| refused()),
            _ => Ok(None),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                _ => return Err(refused()),
            };
        }
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access,
        })
    }

    /// For a file of version 1.
    fn line(&self) -> String {
        let kind = match self.kind {
            None => 'a',
            Some(BLOCK) => 'b',
            Some(_) => 'c',
        };
        let number =
            |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
        let access = letters.iter().filter(|(bit, _)| self.access & bit != 0);
        let access: String = access.map(|(_, letter)| *letter).collect();
        format!(
            "{kind} {}:{} {access}",
            number(self.major),
            number(self.minor)
        )
    }
}

/// The program for rules of which the last that fits decides, and without any nothing is
/// allowed. Registers: 1 the question, 2 kind, 3 access, 4 major, 5 minor number.
fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const COPY: u8 = 0xbf;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const SET: u8 = 0xb7;
    const IF_NOT: u8 = 0x55;
    const IF_DIFFERENT: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut checks: Vec<Vec<(u8, u8, u8, u32)>> = Vec::new();
        if let Some(kind) = rule.kind {
            checks.push(vec![(IF_NOT, 2, 0, kind)]);
        }
        if rule.access != ALL {
            // All that is asked for must be among what the rule is about.
            checks.push(vec![
                (COPY, 1, 3, 0),
                (AND, 1, 0, rule.access),
                (IF_DIFFERENT, 1, 3, 0),
            ]);
        }
        if let Some(major) = rule.major {
            checks.push(vec![(IF_NOT, 4, 0, major)]);
        }
        if let Some(minor) = rule.minor {
            checks.push(vec![(IF_NOT, 5, 0, minor)]);
        }
        let checks: Vec<_> = checks.concat();
        let end = checks.len() + 2;
        for (place, (code, to, from, value)) in checks.iter().enumerate() {
            let jumps = matches!(*code, IF_NOT | IF_DIFFERENT);
            let skip = if jumps { end - place - 1 } else { 0 };
            let skip = i16::try_from(skip).unwrap_or(i16::MAX);
            program.push(instruction(*code, *to, *from, skip, *value));
        }
        program.push(instruction(SET, 0, 0, 0, u32::from(rule.allow)));
        program.push(instruction(EXIT, 0, 0, 0, 0));
        if checks.is_empty() {
            // The kernel refuses what can never be reached.
            return program;
        }
    }
    program.push(instruction(SET, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: u32) -> u64 {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = value.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") {
        from << 4 | to
    } else {
        to << 4 | from
    };
    u64::from_ne_bytes([code, registers, low, high, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    #[test]
    fn rules_become_lines() {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .typ(LinuxDeviceType::A)
            .access("rwm")
            .build()
            .unwrap();
        assert_eq!(Rule::parse(&rule).unwrap().line(), "a *:* rwm");
        assert_eq!(DEFAULTS[0].line(), "c *:* m");
        assert_eq!(DEFAULTS[10].line(), "c 136:* rwm");
    }

    /// The kernel proves programs before it takes them; this also decides by one.
    #[test]
    fn the_kernel_takes_the_program_and_decides_by_it() {
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let unified = unified
            .iter()
            .map(std::path::Path::new)
            .find(|dir| dir.join("cgroup.controllers").exists());
        let Some(unified) = unified else {
            return;
        };
        let group = unified.join(format!("cooper-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let mut rules = vec![Rule::new(false, None, None, None, ALL)];
        rules.extend(DEFAULTS.iter().filter(|rule| rule.minor != Some(8)));
        let open = std::fs::File::open(&group).unwrap();
        cooper_sys::bpf::attach_device_program(&program(&rules), open).unwrap();
        let script = format!(
            "echo 0 > {}/cgroup.procs && true < /dev/zero && ! true < /dev/random",
            group.display()
        );
        let status = std::process::Command::new("sh")
            .args(["-c", &script])
            .status();
        std::fs::remove_dir(&group).unwrap();
        assert!(status.unwrap().success());
    }
}
