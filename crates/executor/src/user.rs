//! Users of a root file system, found in its own `/etc/passwd` and `/etc/group`.
//!
//! The rules and messages are those of `moby/sys/user`, which BuildKit and runc use.

use std::io::Read;

use cooper_sys::Root;
use rustix::fs::{FileType, Gid, Uid};

use crate::ExecError;

/// Files of users that are longer are read up to here: they come from an image.
const MAX_FILE: u64 = 16 << 20;

/// The largest number that a user or group can have.
const MAX_ID: u64 = i32::MAX as u64;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The number of the main group.
    pub gid: u32,
    /// The numbers of the groups besides it.
    pub groups: Vec<u32>,
}

impl User {
    pub(crate) fn raw(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }
}

/// Finds the user that `text` names: `name`, `uid`, `name:group`, `uid:gid` or nothing, which
/// is root.
pub fn find_user(root: &Root, text: &str) -> Result<User, ExecError> {
    if let Some(user) = numeric(text) {
        return Ok(user);
    }
    let (passwd, group) = (read(root, "etc/passwd"), read(root, "etc/group"));
    let wanted = if text.is_empty() { "0" } else { text };
    search(wanted, passwd.as_deref(), group.as_deref())
}

/// Both numbers given: nothing needs to be looked up, and there are no further groups.
fn numeric(text: &str) -> Option<User> {
    let number = |part: &str| {
        if part == "root" {
            return Some(0);
        }
        part.parse::<u32>().ok()
    };
    let (user, group) = text.split_once(':')?;
    Some(User {
        uid: number(user)?,
        gid: number(group)?,
        groups: Vec::new(),
    })
}

/// The text of a file of users, if it is there.
fn read(root: &Root, path: &str) -> Option<String> {
    let file = root.open_file(path).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn search(text: &str, passwd: Option<&str>, group: Option<&str>) -> Result<User, ExecError> {
    let (user_text, group_text) = text.split_once(':').unwrap_or((text, ""));
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let uid = id(user_text)?;
    // A number is always a number, even if somebody is called that.
    let known = fields(passwd).find_map(|line| {
        let (name, number) = (*line.first()?, line.get(2)?.parse::<u32>().ok()?);
        let matches = uid.map_or(name == user_text, |uid| uid == number);
        let gid = line.get(3).and_then(|gid| gid.parse().ok()).unwrap_or(0);
        matches.then_some((name, number, gid))
    });
    let mut user = match (known, uid) {
        (Some((_, uid, gid)), _) => User {
            uid,
            gid,
            groups: Vec::new(),
        },
        (None, Some(uid)) => User {
            uid,
            ..User::default()
        },
        (None, None) => {
            let user = user_text.to_owned();
            return Err(ExecError::UnknownUser { user });
        }
    };
    let groups = || {
        fields(group).filter_map(|line| {
            let number = line.get(2)?.parse::<u32>().ok()?;
            Some((*line.first()?, number, *line.get(3).unwrap_or(&"")))
        })
    };
    if group_text.is_empty() {
        if let Some((name, _, _)) = known {
            let member = |list: &str| list.split(',').any(|member| member.trim() == name);
            user.groups = groups()
                .filter(|(_, _, list)| member(list))
                .map(|(_, gid, _)| gid)
                .collect();
        }
        return Ok(user);
    }
    let gid = id(group_text)?;
    let known =
        groups().find(|(name, number, _)| gid.map_or(*name == group_text, |gid| gid == *number));
    user.gid = match known.map(|(_, number, _)| number).or(gid) {
        Some(gid) => gid,
        None => {
            let group = group_text.to_owned();
            return Err(ExecError::UnknownGroup { group });
        }
    };
    Ok(user)
}

/// A number, if it is one; one that is out of range is an error and no name.
fn id(text: &str) -> Result<Option<u32>, ExecError> {
    match text.parse::<i64>() {
        Ok(number) if !(0..=MAX_ID as i64).contains(&number) => Err(ExecError::IdRange),
        Ok(number) => Ok(u32::try_from(number).ok()),
        Err(_) => Ok(None),
    }
}

/// The lines of a file in the form of passwd(5), each in its parts. Lines that refer to other
/// services, and comments, are left out.
fn fields(text: Option<&str>) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.unwrap_or("").lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '+', '-']))
        .map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        daemon:x:1:2:daemon:/:/bin/false\n\
        # a comment\n+nis::::::\nbroken:x:zero:0::/:\n\
        42:x:99:99::/:\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nadm:x:4:app,daemon\nwheel:x:10:root,app\napp:x:1001:\n";

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn users_are_found_as_moby_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(dir.path().join("etc/group"), GROUP).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let cases = [
            ("", Ok(user(0, 0, &[0, 10]))),
            ("root", Ok(user(0, 0, &[0, 10]))),
            ("app", Ok(user(1000, 1001, &[4, 10]))),
            ("1000", Ok(user(1000, 1001, &[4, 10]))),
            ("1000:1000", Ok(user(1000, 1000, &[]))),
            ("app:wheel", Ok(user(1000, 10, &[]))),
            ("app:77", Ok(user(1000, 77, &[]))),
            ("5000", Ok(user(5000, 0, &[]))),
            ("42", Ok(user(42, 0, &[]))),
            (":adm", Ok(user(0, 4, &[]))),
            (
                "nobody",
                Err("unable to find user nobody: no matching entries in passwd file"),
            ),
            (
                "broken",
                Err("unable to find user broken: no matching entries in passwd file"),
            ),
            (
                "app:none",
                Err("unable to find group none: no matching entries in group file"),
            ),
            ("-1", Err("uids and gids must be in range 0-2147483647")),
            (
                "4294967295",
                Err("uids and gids must be in range 0-2147483647"),
            ),
        ];
        for (text, expected) in cases {
            let found = find_user(&root, text).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn without_files_numbers_still_work() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(find_user(&root, "").unwrap(), user(0, 0, &[]));
        assert_eq!(find_user(&root, "12").unwrap(), user(12, 0, &[]));
        assert!(find_user(&root, "root").is_err());
    }

    #[test]
    fn a_link_out_of_the_root_is_not_followed_out() {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("passwd"), "evil:x:1:1::/:\n").unwrap();
        let inner = outer.path().join("root");
        std::fs::create_dir_all(inner.join("etc")).unwrap();
        std::os::unix::fs::symlink("../../passwd", inner.join("etc/passwd")).unwrap();
        let root = Root::open(&inner).unwrap();
        assert!(find_user(&root, "evil").is_err());
    }
}
