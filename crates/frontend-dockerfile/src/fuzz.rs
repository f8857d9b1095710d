//! What holds for whatever a client may ask for.

use std::collections::BTreeMap;

use cooper_frontend::BuildOpts;

use crate::gitref::{GitRef, Parsed};
use crate::options::Options;

/// Options of a build, `name=value`, one in each line.
pub fn options(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().take(64);
    let raw: BTreeMap<String, String> = lines
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            (name.to_owned(), value.to_owned())
        })
        .collect();
    match Options::parse(raw.clone(), &BuildOpts::default()) {
        Ok(options) => {
            let asked = raw.keys().filter_map(|key| key.strip_prefix("build-arg:"));
            assert!(options.build_args.len() <= asked.count());
            assert!(options.shm_size >= 0 || raw.contains_key("shm-size"));
            for limit in &options.ulimits {
                assert!(!limit.name.is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The address of a repository as Dockerfiles write it.
pub fn git_address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for known in [false, true] {
        match GitRef::parse_as(text, known) {
            Parsed::Git(git) => {
                let again = match GitRef::parse_as(text, known) {
                    Parsed::Git(again) => again,
                    _ => panic!("read once and not twice: {text}"),
                };
                assert_eq!(git, again);
                let _ = git.state(false, "", cooper_llb::build::Constraints::default());
            }
            Parsed::Invalid(error) => assert!(!error.is_empty()),
            Parsed::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        cooper_testkit::seeds("options", super::options);
        cooper_testkit::seeds("git-address", super::git_address);
    }
}
