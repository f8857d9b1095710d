//! The order in which files have to come: a directory before its members, names by their bytes.

use cooper_proto::fsutil::Stat;

use crate::SessionError;
use crate::pattern::clean;
use crate::stat::is_dir;

/// Checks one path after the other.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: Option<String>,
    /// The directories that the last path is in, or is.
    dirs: Vec<String>,
}

impl Order {
    /// Takes the next one.
    ///
    /// # Errors
    /// The path leads outside, is not the shortest of its meaning, comes too late, twice, or
    /// without the directory that it is in.
    pub(crate) fn check(&mut self, stat: &Stat) -> Result<(), SessionError> {
        let path = &stat.path;
        let refuse = |text: String| Err(SessionError::Protocol(text));
        if *path != clean(path) || path.contains('\0') {
            return refuse(format!("invalid unclean path {path:?}"));
        }
        if path.starts_with('/') {
            return refuse(format!("absolute path {path} not allowed"));
        }
        if path == "." || path == ".." || path.starts_with("../") {
            return refuse(format!("invalid path: {path}"));
        }
        let last = self.last.as_deref().unwrap_or_default();
        if !last.is_empty() && last.split('/').ge(path.split('/')) {
            return refuse(format!("changes out of order: {path:?} {last:?}"));
        }
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let within = |open: &String| {
            dir.strip_prefix(open.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        while self.dirs.pop_if(|open| !within(open)).is_some() {}
        if self.dirs.last().map_or("", String::as_str) != dir {
            return refuse(format!("changes out of order: {path:?} {last:?}"));
        }
        if is_dir(stat.mode) {
            self.dirs.push(path.clone());
        }
        self.last = Some(path.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::mode;

    fn check(paths: &[&str]) -> Result<(), SessionError> {
        let mut order = Order::default();
        paths.iter().try_for_each(|path| {
            let (path, mode) = match path.strip_suffix('/') {
                Some(dir) => (dir, mode::DIR),
                None => (*path, 0),
            };
            order.check(&Stat {
                path: path.into(),
                mode,
                ..Stat::default()
            })
        })
    }

    #[test]
    fn only_the_order_of_a_walk_passes() {
        let good: [&[&str]; 4] = [
            &["a", "b", "c"],
            &["a/", "a/b/", "a/b/c", "a/b.c", "a.b", "b"],
            &["a/", "b/", "b/..c", "c"],
            &["...", "..a", "é"],
        ];
        for paths in good {
            check(paths).unwrap_or_else(|error| panic!("{paths:?}: {error}"));
        }
        let bad: [&[&str]; 16] = [
            &["b", "a"],
            &["a", "a"],
            &["a/", "a"],
            &["a/b"],
            &["a", "a/b"],
            &["a/", "a/b/c"],
            &["a/", "b/", "a/c"],
            &["a/", "a.b", "a/c"],
            &["/a"],
            &["../a"],
            &[".."],
            &["."],
            &[""],
            &["a//b"],
            &["a/", "a/../b"],
            &["a\0b"],
        ];
        for paths in bad {
            assert!(check(paths).is_err(), "{paths:?}");
        }
    }
}
