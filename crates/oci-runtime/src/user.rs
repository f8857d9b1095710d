//! The home of a user.

use std::path::Path;

use crate::process::read_bounded;

/// The most of a passwd file that is looked at.
const MAX_PASSWD: u64 = 4 << 20;

/// The environment with `HOME`, if it has none: what the container's `/etc/passwd` says of the
/// user, or else `/` (runc, `setupUser`).
pub(crate) fn with_home(env: &[String], uid: u32) -> Vec<String> {
    let mut env = env.to_vec();
    let home = env
        .iter()
        .position(|variable| variable.starts_with("HOME="));
    if home.is_some_and(|place| env[place] != "HOME=") {
        return env;
    }
    let passwd = read_bounded(Path::new("/etc/passwd"), MAX_PASSWD).unwrap_or_default();
    let found = home_of(&String::from_utf8_lossy(&passwd), uid);
    let found = format!("HOME={}", found.unwrap_or_else(|| "/".to_owned()));
    match home {
        Some(place) => env[place] = found,
        None => env.push(found),
    }
    env
}

fn home_of(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let mut lines = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&uid.as_str()))?;
    let home = found.get(5).filter(|home| !home.is_empty())?;
    Some((*home).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_is_there_stays() {
        let env = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(with_home(&env(&["HOME=/x", "A=b"]), 0), ["HOME=/x", "A=b"]);
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbad\napp:x:1000:1001::/home:/bin/sh\nno:x:5:5:::\n";
        assert_eq!(home_of(passwd, 1000).as_deref(), Some("/home"));
        assert_eq!(home_of(passwd, 5), None);
        assert_eq!(home_of(passwd, 7), None);
        let unknown = with_home(&env(&["A=b", "HOME="]), 4_000_000_000);
        assert_eq!(unknown, ["A=b", "HOME=/"]);
    }
}
