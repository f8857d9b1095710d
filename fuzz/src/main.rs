//! Fuzzing of every parser of bytes from outside, by libFuzzer. One program with all targets:
//! the environment says which one is meant. What has to hold is beside each parser, in its
//! crate's module `fuzz`, where ordinary tests hold it against the seeds.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// What has to hold for every input.
enum Property {
    Plain(fn(&[u8])),
    /// It writes files, into a folder that it is given.
    Writing(fn(&[u8], &Path)),
}

use Property::{Plain, Writing};

/// By the name of the folder with the seeds.
const TARGETS: &[(&str, Property)] = &[
    ("add", Writing(cooper_ops::fuzz::add)),
    ("challenge", Plain(cooper_registry::fuzz::challenge)),
    ("config", Plain(cooper_daemon::fuzz::config)),
    ("definition", Plain(cooper_llb::fuzz::definition)),
    ("dockerfile", Plain(cooper_dockerfile::fuzz::dockerfile)),
    ("download", Plain(cooper_source::fuzz::download)),
    (
        "git-address",
        Plain(cooper_frontend_dockerfile::fuzz::git_address),
    ),
    ("ignore", Plain(cooper_session::fuzz::ignore)),
    ("layer", Writing(cooper_layer::fuzz::layer)),
    ("manifest", Plain(cooper_source::fuzz::manifest)),
    ("options", Plain(cooper_frontend_dockerfile::fuzz::options)),
    ("packets", Writing(cooper_session::fuzz::packets)),
    ("platform", Plain(cooper_llb::fuzz::platforms)),
    ("reference", Plain(cooper_registry::fuzz::reference)),
    ("repository", Plain(cooper_source::fuzz::repository)),
];

static TARGET: LazyLock<&Property> = LazyLock::new(|| {
    let name = std::env::var("COOPER_FUZZ").expect("COOPER_FUZZ names the target");
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    &found.unwrap_or_else(|| panic!("no target {name}")).1
});

/// A folder of this process; whoever started it removes what is in the one above.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("make a folder");
    folder
});

fuzz_target!(|data: &[u8]| match *TARGET {
    Plain(property) => property(data),
    Writing(property) => property(data, &FOLDER),
});
