//! Where things are kept when nobody says it (`util/appdefaults` in BuildKit).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cooper_sys::userns;

/// The places of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What it keeps.
    pub root: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Places {
    /// An ordinary user's are in the user's folders: `$XDG_DATA_HOME/cooper` (in
    /// `$HOME/.local/share`) and `$XDG_RUNTIME_DIR/cooper/cooperd.sock`.
    pub fn of_this_user() -> Self {
        Self::of(userns::of_ordinary_user(), |name| std::env::var_os(name))
    }

    fn of(ordinary: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let folder = |name: &str| {
            let value = variable(name).filter(|_| ordinary).map(PathBuf::from);
            value.filter(|folder| folder.is_absolute())
        };
        let data = folder("XDG_DATA_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".local/share")))
            .unwrap_or_else(|| "/var/lib".into());
        let run = folder("XDG_RUNTIME_DIR").unwrap_or_else(|| "/run".into());
        Self {
            root: data.join("cooper"),
            socket: run.join(Path::new("cooper/cooperd.sock")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_places_of_its_own() {
        let home = |name: &str| (name == "HOME").then(|| "/home/me".into());
        let places = |ordinary, variable: &dyn Fn(&str) -> Option<OsString>| {
            let places = Places::of(ordinary, variable);
            [places.root, places.socket].map(|path| path.display().to_string())
        };
        let machine = ["/var/lib/cooper", "/run/cooper/cooperd.sock"];
        assert_eq!(places(false, &home), machine);
        assert_eq!(places(true, &|_| None), machine);
        let own = ["/home/me/.local/share/cooper", "/run/cooper/cooperd.sock"];
        assert_eq!(places(true, &home), own);
        let xdg = |name: &str| Some(format!("/{name}").into());
        let own = [
            "/XDG_DATA_HOME/cooper",
            "/XDG_RUNTIME_DIR/cooper/cooperd.sock",
        ];
        assert_eq!(places(true, &xdg), own);
    }
}
