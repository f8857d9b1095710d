//! Copying between two file systems, as BuildKit does it (`tonistiigi/fsutil/copy`).

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use cooper_proto::pb;
use cooper_session::pattern::{self, Matcher};
use cooper_sys::Root;
use cooper_sys::copy::{CopyError, CopyOptions, ModeFor, Select, copy_tree};
use rustix::fs::{FileType, Stat};

use super::act::{Scene, bits, make_dirs};
use super::mode::Changes;
use super::paths::{Failure, base, failed, follow, reason, wildcards};
use super::unpack::unpack;

/// Copies what an action names.
pub(super) fn copy(scene: &Scene<'_>, action: &pb::FileActionCopy) -> Result<(), Failure> {
    let source = scene.source.ok_or("invalid missing source mount")?;
    if !action.create_dest_path {
        has_parent(scene.target, &action.dest)?;
    }
    let rules = Rules::new(scene, action)?;
    let found = if action.allow_wildcard {
        wildcards(source, &action.src, action.follow_symlink)?
    } else {
        vec![action.src.clone()]
    };
    if found.is_empty() && !action.allow_empty_wildcard {
        return Err(format!("{} not found", action.src));
    }
    for path in &found {
        if action.attempt_unpack_docker_compatibility && unpack(scene, source, path, action)? {
            continue;
        }
        rules.copy(source, path)?;
    }
    Ok(())
}

fn has_parent(target: &Root, dest: &str) -> Result<(), Failure> {
    let named = Path::new(dest);
    let path = follow(target, named, true).map_err(failed("lstat", named))?;
    let parent = path.parent().unwrap_or(Path::new(""));
    match target.lstat(parent) {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = failed("lstat", parent)(error);
            Err(format!("failed to stat {dest}: {error}"))
        }
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// How an action copies.
struct Rules<'a> {
    scene: &'a Scene<'a>,
    action: &'a pb::FileActionCopy,
    include: Option<Matcher>,
    exclude: Option<Matcher>,
    mode: Option<Changes>,
}

impl<'a> Rules<'a> {
    fn new(scene: &'a Scene<'a>, action: &'a pb::FileActionCopy) -> Result<Self, Failure> {
        let matcher = |patterns: &[String], which: &str| {
            if patterns.is_empty() {
                return Ok(None);
            }
            let named = |error| format!("invalid {which}patterns: {patterns:?}: {error}");
            Matcher::new(patterns.iter().cloned())
                .map(Some)
                .map_err(named)
        };
        let mode = if action.mode_str.is_empty() {
            None
        } else {
            Some(Changes::parse(&action.mode_str)?)
        };
        Ok(Self {
            scene,
            action,
            include: matcher(&action.include_patterns, "include")?,
            exclude: matcher(&action.exclude_patterns, "exclude")?,
            mode,
        })
    }

    fn copy(&self, source: &Root, path: &str) -> Result<(), Failure> {
        let (action, target) = (self.action, self.scene.target);
        let clean = pattern::clean(&format!("/{path}"));
        let named = Path::new(&clean);
        let from = follow(source, named, action.follow_symlink).map_err(failed("lstat", named))?;
        let to = self.destination()?;
        let stat = source.lstat(&from).map_err(failed("lstat", named))?;
        self.has_required(source)?;
        let to = self.place(&stat, path, to)?;
        let parent = if action.dir_copy_contents && is_dir(&stat) && !exists(target, &to)? {
            to.clone()
        } else {
            to.parent().unwrap_or(Path::new("")).to_owned()
        };
        make_dirs(self.scene, &parent, self.mode_above(), action.timestamp)?;

        let filter = |path: &Path, directory: bool| self.select(path, directory);
        let mode = |mode: u32, directory: bool| self.mode_of(mode, directory);
        let changes_mode = self.mode.is_some() || action.mode != -1;
        let options = CopyOptions {
            owner: self.scene.owner,
            mode: changes_mode.then_some(&mode as &ModeFor<'_>),
            timestamp: (action.timestamp != -1).then_some(i128::from(action.timestamp)),
            filter: Some(&filter),
            replace: action.always_replace_existing_dest_paths,
            overwrite_metadata: true,
            keep_top: true,
        };
        let copied = copy_tree(source, &from, target, &to, &options);
        if self.scene.stop.load(Ordering::Relaxed) {
            return Err("context canceled".into());
        }
        copied.map_err(|error| worded(&clean, &error))
    }

    /// Whether the paths are there that have to be.
    fn has_required(&self, source: &Root) -> Result<(), Failure> {
        for required in &self.action.required_paths {
            let path = pattern::clean(&format!("/{required}"));
            let missing = || format!("{path:?}: not found");
            let found = wildcards(source, &path, false)?;
            if found.is_empty() {
                return Err(missing());
            }
            for path in &found {
                exists(source, Path::new(path))?
                    .then_some(())
                    .ok_or_else(missing)?;
            }
        }
        Ok(())
    }

    /// The destination with its links followed; the directories above it, and it itself if it
    /// is written as one, are made.
    fn destination(&self) -> Result<PathBuf, Failure> {
        let dest = &self.action.dest;
        let target = self.scene.target;
        let above = match dest.rsplit_once('/') {
            Some((_, "" | ".")) => dest.as_str(),
            Some((above, _)) => above,
            None => "",
        };
        let named = Path::new(above);
        let above = follow(target, named, true).map_err(failed("mkdir", named))?;
        make_dirs(self.scene, &above, self.mode_above(), self.action.timestamp)?;
        let named = Path::new(dest);
        follow(target, named, true).map_err(failed("lstat", named))
    }

    /// Where it goes: to the destination, or into it.
    fn place(&self, stat: &Stat, path: &str, to: PathBuf) -> Result<PathBuf, Failure> {
        let there = match self.scene.target.stat(&to) {
            Ok(there) => there,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(to),
            Err(error) => {
                let error = failed("stat", &to)(error);
                return Err(format!("failed to lstat destination path: {error}"));
            }
        };
        let into = if is_dir(stat) {
            !self.action.dir_copy_contents
        } else {
            is_dir(&there)
        };
        Ok(match base(path) {
            name if into && !["/", ".", ".."].contains(&name.as_str()) => to.join(name),
            _ => to,
        })
    }

    fn select(&self, path: &Path, directory: bool) -> Select {
        if self.scene.stop.load(Ordering::Relaxed) {
            return Select::Skip;
        }
        if self.include.is_none() && self.exclude.is_none() {
            return Select::Take;
        }
        let path = path.to_string_lossy();
        let included = self.include.as_ref().is_none_or(|m| m.is_match(&path));
        let excluded = self.exclude.as_ref().is_some_and(|m| m.is_match(&path));
        match (included && !excluded, directory) {
            (true, _) => Select::Take,
            // What is left out may have members that are not.
            (false, true) => Select::Descend,
            (false, false) => Select::Skip,
        }
    }

    /// The mode of directories that are made to copy into: the one that is asked for, too.
    fn mode_above(&self) -> u32 {
        if self.mode.is_some() || self.action.mode == -1 {
            return 0o755;
        }
        bits(self.action.mode) & 0o7777
    }

    fn mode_of(&self, mode: u32, directory: bool) -> u32 {
        match &self.mode {
            Some(changes) => changes.apply(mode, directory),
            None => bits(self.action.mode) & 0o7777,
        }
    }
}

fn exists(target: &Root, path: &Path) -> Result<bool, Failure> {
    match target.lstat(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("lstat", path)(error)),
    }
}

fn worded(from: &str, error: &CopyError) -> Failure {
    let reason = reason(&error.source);
    if error.source.raw_os_error().is_none() {
        return reason;
    }
    let path = Path::new(from).join(&error.path);
    format!("failed to copy files: {}: {reason}", path.display())
}

#[cfg(test)]
mod tests;
