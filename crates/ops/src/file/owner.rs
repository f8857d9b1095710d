//! Whom files belong to: numbers, or names that are looked up in a file system.

use std::io::{self, BufRead};

use cooper_proto::pb::{self, user_opt::User};
use cooper_sys::Root;

use super::paths::{Failure, reason};

/// The largest passwd or group file that is read, in bytes.
const MAX_SIZE: u64 = 16 << 20;

/// User and group of an owner. Names are looked up in the roots that `root_of` gives by input;
/// a name that is not there stands for root, as with BuildKit. A user without a group brings
/// along its own.
pub(super) fn ids<'a>(
    owner: &pb::ChownOpt,
    root_of: impl Fn(i64) -> Option<&'a Root>,
) -> Result<(u32, u32), Failure> {
    let (mut uid, mut gid) = (0, 0);
    match owner.user.as_ref().and_then(|user| user.user.as_ref()) {
        Some(User::ById(id)) => (uid, gid) = (*id, *id),
        Some(User::ByName(name)) => {
            let root = root_of(name.input).ok_or("invalid missing user mount")?;
            if let Some(fields) = find(root, "/etc/passwd", &name.name)? {
                uid = number(&fields, 2)?;
                gid = number(&fields, 3)?;
            }
        }
        None => {}
    }
    match owner.group.as_ref().and_then(|group| group.user.as_ref()) {
        Some(User::ById(id)) => gid = *id,
        Some(User::ByName(name)) => {
            let root = root_of(name.input).ok_or("invalid missing group mount")?;
            if let Some(fields) = find(root, "/etc/group", &name.name)? {
                gid = number(&fields, 2)?;
            }
        }
        None => {}
    }
    Ok((uid, gid))
}

fn number(fields: &[String], place: usize) -> Result<u32, Failure> {
    let field = fields.get(place).map(String::as_str).unwrap_or_default();
    let named = || format!("invalid id {field:?} of {}", fields[0]);
    field.parse().map_err(|_| named())
}

/// The fields of the first line for `name`.
fn find(root: &Root, file: &str, name: &str) -> Result<Option<Vec<String>>, Failure> {
    let opened = match root.open_file(file) {
        Ok(opened) => opened,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(format!("open {file}: {}", reason(&error))),
    };
    let lines = io::BufReader::new(io::Read::take(opened, MAX_SIZE)).split(b'\n');
    for line in lines {
        let line = line.map_err(|error| format!("read {file}: {}", reason(&error)))?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split(':');
        if fields.next() == Some(name) {
            return Ok(Some(line.split(':').map(str::to_owned).collect()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_id(id: u32) -> Option<pb::UserOpt> {
        Some(pb::UserOpt {
            user: Some(User::ById(id)),
        })
    }

    fn by_name(name: &str) -> Option<pb::UserOpt> {
        Some(pb::UserOpt {
            user: Some(User::ByName(pb::NamedUserOpt {
                name: name.into(),
                input: 0,
            })),
        })
    }

    #[test]
    fn names_are_looked_up_and_users_bring_their_group() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let of = |user, group| ids(&pb::ChownOpt { user, group }, |_| Some(&root));
        // Without the files a name is not found.
        assert_eq!(of(by_name("me"), None), Ok((0, 0)));
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(
            dir.path().join("etc/passwd"),
            "# x\nroot:x:0:0::/:/bin/sh\nme:x:7:8::/:/bin/sh\nbad:x:y:z\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("etc/group"), "staff:x:9:me\n").unwrap();
        for (user, group, expected) in [
            (by_id(3), None, (3, 3)),
            (by_id(3), by_id(4), (3, 4)),
            (None, by_id(4), (0, 4)),
            (by_name("me"), None, (7, 8)),
            (by_name("me"), by_name("staff"), (7, 9)),
            (by_name("nobody"), by_name("none"), (0, 0)),
        ] {
            assert_eq!(of(user, group), Ok(expected));
        }
        assert!(of(by_name("bad"), None).is_err());
        let missing = ids(
            &pb::ChownOpt {
                user: by_name("me"),
                group: None,
            },
            |_| None,
        );
        assert_eq!(missing.unwrap_err(), "invalid missing user mount");
    }
}
