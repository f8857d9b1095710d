//! The options of a mount, in the words of the specification (config-linux.md, "Linux mount
//! options"), as the mount API takes them.

use cooper_sys::mount::Attributes;
use oci_spec::runtime::Mount;

/// `MOUNT_ATTR_*` (linux/mount.h).
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const RELATIME: u64 = 0;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// `MS_*` of propagation (linux/mount.h).
const UNBINDABLE: u64 = 1 << 17;
const PRIVATE: u64 = 1 << 18;
const SLAVE: u64 = 1 << 19;
const SHARED: u64 = 1 << 20;

/// Only that a mount cannot be written to.
pub(crate) const READ_ONLY: Attributes = Attributes {
    set: RDONLY,
    clear: 0,
    propagation: 0,
};

/// Options, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Whether it is a bind, and whether with what is mounted below.
    pub(crate) bind: Option<bool>,
    /// For the mount itself.
    pub(crate) own: Attributes,
    /// For it and all below it.
    pub(crate) all: Attributes,
    /// Propagation of it, and of all below it.
    pub(crate) propagation: u64,
    pub(crate) all_propagation: u64,
    /// What the file system itself takes.
    pub(crate) data: Vec<String>,
    /// `sync` and the like, which are for the file system and have no value.
    pub(crate) flags: Vec<&'static str>,
}

impl Options {
    /// # Errors
    /// The option that is known and not supported.
    pub(crate) fn parse(mount: &Mount) -> Result<Self, String> {
        let mut parsed = Self::default();
        for option in mount.options().as_deref().unwrap_or_default() {
            let (own, all) = (&mut parsed.own, &mut parsed.all);
            match option.as_str() {
                "bind" => parsed.bind = Some(false),
                "rbind" => parsed.bind = Some(true),
                "defaults" | "async" => {}
                "private" => parsed.propagation = PRIVATE,
                "slave" => parsed.propagation = SLAVE,
                "shared" => parsed.propagation = SHARED,
                "unbindable" => parsed.propagation = UNBINDABLE,
                "rprivate" => parsed.all_propagation = PRIVATE,
                "rslave" => parsed.all_propagation = SLAVE,
                "rshared" => parsed.all_propagation = SHARED,
                "runbindable" => parsed.all_propagation = UNBINDABLE,
                "sync" => parsed.flags.push("sync"),
                "dirsync" => parsed.flags.push("dirsync"),
                "mand" => parsed.flags.push("mand"),
                "nomand" => {}
                "silent" | "loud" | "iversion" | "noiversion" | "acl" | "noacl" | "remount"
                | "tmpcopyup" | "idmap" | "ridmap" => return Err(option.clone()),
                name => match attribute(name) {
                    Some((bits, clear)) => change(own, bits, clear),
                    None => match name.strip_prefix('r').and_then(attribute) {
                        Some((bits, clear)) => change(all, bits, clear),
                        None => parsed.data.push(option.clone()),
                    },
                },
            }
        }
        Ok(parsed)
    }
}

/// What a word sets and clears.
fn attribute(name: &str) -> Option<(u64, u64)> {
    Some(match name {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (RELATIME, ATIME),
        _ => return None,
    })
}

/// The last word counts.
fn change(attributes: &mut Attributes, set: u64, clear: u64) {
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !(set & !ATIME)) | clear;
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn parse(options: &str) -> Result<Options, String> {
        let options: Vec<String> = options.split(',').map(Into::into).collect();
        let mount = MountBuilder::default().destination("/x").options(options);
        Options::parse(&mount.build().unwrap())
    }

    #[test]
    fn words_are_sorted() {
        let parsed = parse("rbind,ro,nosuid,noatime,rnodev,rslave,size=5m").unwrap();
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.own.set, RDONLY | NOSUID | NOATIME);
        assert_eq!(parsed.own.clear, ATIME);
        assert_eq!(parsed.all.set, NODEV);
        assert_eq!(parsed.all_propagation, SLAVE);
        assert_eq!(parsed.data, ["size=5m"]);
        let parsed = parse("ro,rw,noatime,strictatime").unwrap();
        assert_eq!(
            (parsed.own.set, parsed.own.clear),
            (STRICTATIME, RDONLY | ATIME)
        );
        let parsed = parse("rw,ro").unwrap();
        assert_eq!((parsed.own.set, parsed.own.clear), (RDONLY, 0));
        assert_eq!(parse("rro").unwrap().all.set, RDONLY);
        assert_eq!(parse("ro,tmpcopyup").unwrap_err(), "tmpcopyup");
    }
}
