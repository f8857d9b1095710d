//! User namespaces: how an ordinary user becomes one who may mount and start containers, and
//! which users and groups there are then (user_namespaces(7), newuidmap(1), subuid(5)).

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::UnshareFlags;

use crate::Clone;

/// Whether this program has entered one by itself.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// The most of a file of ids that is looked at.
const MOST: u64 = 4 << 20;

/// What to do about ids that are missing.
pub const HINT: &str = "add a range of subordinate ids for this user to /etc/subuid and /etc/subgid (usermod \
     --add-subuids, --add-subgids) and install newuidmap and newgidmap";

/// Whether this process is in a user namespace other than the machine's.
pub fn inside() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    let first = [words.next(), words.next(), words.next()];
    // A kernel without user namespaces has no such file.
    !map.is_empty() && first != [Some("0"), Some("0"), Some("4294967295")]
}

/// Whether files are kept where those of an ordinary user are: after [`enter`], and where
/// somebody else has made the namespace and left the user's name in the environment, as
/// RootlessKit does.
pub fn of_ordinary_user() -> bool {
    let name = std::env::var_os("USER").unwrap_or_default();
    ENTERED.load(Ordering::Relaxed) || (inside() && !name.is_empty() && name != "root")
}

/// Whether groups cannot be given up in this namespace, because only one id is mapped.
pub fn groups_are_fixed() -> bool {
    let text = std::fs::read_to_string("/proc/self/setgroups").unwrap_or_default();
    text.trim() == "deny"
}

/// The users and groups that there are in this namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
}

impl Mapped {
    /// Those of this process.
    pub fn read() -> io::Result<Self> {
        let read = |name| std::fs::read_to_string(name).map(|text| ranges(&text));
        Ok(Self {
            users: read("/proc/self/uid_map")?,
            groups: read("/proc/self/gid_map")?,
        })
    }

    /// Whether there is such a user.
    pub fn user(&self, id: u32) -> bool {
        has(&self.users, id)
    }

    /// Whether there is such a group.
    pub fn group(&self, id: u32) -> bool {
        has(&self.groups, id)
    }
}

fn ranges(map: &str) -> Vec<(u32, u32)> {
    let lines = map.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let first = words.next()?.parse().ok()?;
        Some((first, words.nth(1)?.parse().ok()?))
    });
    lines.collect()
}

fn has(ranges: &[(u32, u32)], id: u32) -> bool {
    let inside = |(first, count): &(u32, u32)| id >= *first && id - *first < *count;
    ranges.iter().any(inside)
}

/// Adds to the error of a change of owner, if it is because there is no such user or group in
/// this namespace, that this is so and what to do.
pub fn explain_owner(error: io::Error, uid: u32, gid: u32) -> io::Error {
    if error.raw_os_error() != Some(libc::EINVAL) || !inside() {
        return error;
    }
    let message = format!("{uid}:{gid} is not mapped for an ordinary user, {HINT}: {error}");
    io::Error::new(error.kind(), message)
}

/// Whether this process is that of an ordinary user, who may not mount.
pub fn is_needed() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Makes this process the root of a user and a mount namespace of its own, in which its user is
/// root and the user's subordinate ids are the other users. Files that root makes there are the
/// user's outside.
///
/// Returns what cannot be done, in words for the user, when only one id could be had.
///
/// # Errors
/// This process has more than one thread, or the machine does not let ordinary users do this.
pub fn enter() -> io::Result<Option<String>> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    let name = name_of(uid);
    let users = subordinate("/etc/subuid", uid, name.as_deref());
    let groups = subordinate("/etc/subgid", uid, name.as_deref());
    let mut missing = None;
    if users.is_empty() || groups.is_empty() {
        let who = name.unwrap_or_else(|| uid.to_string());
        missing = Some(format!("there are no subordinate ids for {who}"));
    }
    let (mut unshared, wait) = pipe()?;
    let (mut tell, told) = pipe()?;
    let own = std::process::id().to_string();
    let clone = Clone {
        namespaces: UnshareFlags::empty(),
        sibling: false,
        cgroup: None,
    };
    // Somebody outside of the namespace has to write who is mapped.
    let wanted = missing.is_none();
    let mapper = wanted.then(|| {
        clone.spawn(|| {
            let mut waits = &wait.0;
            let mut byte = [0];
            if !matches!(waits.read(&mut byte), Ok(1)) || byte != [1] {
                return 1;
            }
            let mapped = map("newuidmap", &own, uid, &users)
                .and_then(|()| map("newgidmap", &own, gid, &groups));
            match mapped {
                Ok(()) => 0,
                Err(message) => {
                    let _ = tell.0.write_all(message.as_bytes());
                    1
                }
            }
        })
    });
    let mapper = mapper.transpose()?;
    drop(tell);
    drop(wait);
    // SAFETY: the namespaces of this process change; it has one thread, of which the kernel
    // makes sure, and no memory is touched.
    let result = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) };
    let result = crate::process::check(result.into());
    if let Some(mapper) = mapper {
        // The mapper has a copy of this end, so that it would not see it closed.
        unshared.0.write_all(&[u8::from(result.is_ok())])?;
        let mut message = String::new();
        let mut told = &told.0;
        told.read_to_string(&mut message)?;
        mapper.pidfd.reap()?;
        if !message.is_empty() {
            missing = Some(message);
        }
    }
    result.map_err(refused)?;
    if missing.is_some() {
        one(uid, gid).map_err(refused)?;
    }
    ENTERED.store(true, Ordering::Relaxed);
    Ok(missing
        .map(|why| format!("{why}: root is the only user that steps and files can have; {HINT}")))
}

fn refused(error: io::Error) -> io::Error {
    let message = format!(
        "an ordinary user cannot make a user namespace on this machine: {error} (look at the \
         settings user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns, and at the profile of the container that \
         this is in)"
    );
    io::Error::new(error.kind(), message)
}

/// One end of a pipe as a file.
struct End(std::fs::File);

/// The end that is written to, and the one that is read.
fn pipe() -> io::Result<(End, End)> {
    let (read, write): (OwnedFd, OwnedFd) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((End(write.into()), End(read.into())))
}

/// Maps root to `own`, and from one on the ids of `ranges`.
fn map(program: &str, process: &str, own: u32, ranges: &[(u32, u32)]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(process).args(["0", &own.to_string(), "1"]);
    let mut next = 1_u32;
    for (first, count) in ranges {
        let count = (*count).min(u32::MAX - next);
        command.args([next, *first, count].map(|number| number.to_string()));
        next += count;
    }
    let output = command.output();
    let output = output.map_err(|error| format!("{program} cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}", said.trim()));
    }
    Ok(())
}

/// Maps one user and one group, which needs nobody's help.
fn one(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn read_bounded(path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MOST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The name of a user.
fn name_of(uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let passwd = read_bounded("/etc/passwd");
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// The ranges of ids that a user may use besides the own one, by name or by number.
fn subordinate(path: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    of_user(&read_bounded(path), uid, name)
}

fn of_user(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (owner == number || Some(owner) == name).then_some(range)
    });
    lines.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "other:1:2\nme:100000:65536\n1000:500000:10\nbad\nme:x:1\nme:7:0\n";
        let found = of_user(text, 1000, Some("me"));
        assert_eq!(found, [(100_000, 65_536), (500_000, 10)]);
        assert_eq!(of_user(text, 1, None), []);
    }

    #[test]
    fn an_id_is_mapped_or_not() {
        let ranges = ranges("         0       1000          1\n         1     100000      65536\n");
        for (id, mapped) in [(0, true), (1, true), (65_536, true), (65_537, false)] {
            assert_eq!(has(&ranges, id), mapped, "{id}");
        }
    }

    #[test]
    fn a_process_of_several_threads_stays_outside() {
        assert!(enter().is_err());
        assert!(!ENTERED.load(Ordering::Relaxed));
    }
}
