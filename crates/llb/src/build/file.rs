use cooper_proto::pb::{self, file_action::Action};

use super::node::{Kind, Node};
use super::{Constraints, State};

/// What to do with files. Times are nanoseconds since 1970; `None` leaves them as they come.
#[derive(Clone, Debug)]
pub enum FileAction {
    /// Make a directory.
    Mkdir {
        /// The path.
        path: String,
        /// Permissions.
        mode: u32,
        /// With the directories above.
        make_parents: bool,
        /// Whose it is.
        owner: Option<Owner>,
        /// When it was made.
        created: Option<i64>,
    },
    /// Make a file.
    Mkfile {
        /// The path.
        path: String,
        /// Permissions.
        mode: u32,
        /// The content.
        data: Vec<u8>,
        /// Whose it is.
        owner: Option<Owner>,
        /// When it was made.
        created: Option<i64>,
    },
    /// Remove files.
    Rm {
        /// The path.
        path: String,
        /// They may be missing.
        allow_not_found: bool,
        /// The path is a pattern.
        allow_wildcard: bool,
    },
    /// Make a symbolic link.
    Symlink {
        /// What it points at.
        old: String,
        /// The path of the link.
        new: String,
        /// Whose it is.
        owner: Option<Owner>,
        /// When it was made.
        created: Option<i64>,
    },
    /// Copy files from another state.
    Copy(Box<CopySpec>),
}

/// What to copy.
#[derive(Clone, Debug, Default)]
pub struct CopySpec {
    /// From where; the empty state when the output is unknown makes no sense.
    pub source: State,
    /// The path there.
    pub src: String,
    /// The path here.
    pub dest: String,
    /// Whose the copies are; root's when there is none.
    pub owner: Option<Owner>,
    /// Permissions of the copies; their own when there are none.
    pub mode: Option<ChmodSpec>,
    /// Follow a link at the end of the path.
    pub follow_symlinks: bool,
    /// The contents of a directory, not the directory.
    pub dir_contents_only: bool,
    /// Unpack an archive, as `ADD` does.
    pub attempt_unpack: bool,
    /// Make directories on the way to the destination.
    pub create_dest_path: bool,
    /// The path is a pattern.
    pub allow_wildcard: bool,
    /// The pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Only what matches.
    pub include: Vec<String>,
    /// Not what matches.
    pub exclude: Vec<String>,
    /// Paths that have to be there.
    pub required_paths: Vec<String>,
    /// What is in the way is replaced, whatever it is.
    pub replace_existing: bool,
    /// When the copies were made.
    pub created: Option<i64>,
}

/// Permissions to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChmodSpec {
    /// As a number.
    Bits(u32),
    /// As `chmod` takes them: `u=rwX,go=rX`.
    Text(String),
}

/// Whose a file is: ids, or names that are looked up in the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    user: Option<Id>,
    group: Option<Id>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

impl Owner {
    /// Reads `user` or `user:group`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(2, ':').map(|part| match part {
            // A number that has no meaning here is the root's, as BuildKit has it.
            "root" | "" => Id::Number(0),
            part => match part.parse::<i32>() {
                Ok(number) => Id::Number(number.cast_unsigned()),
                Err(_) => Id::Name(part.to_owned()),
            },
        });
        Self {
            user: parts.next(),
            group: parts.next(),
        }
    }

    /// By numbers.
    pub fn ids(uid: u32, gid: u32) -> Self {
        Self {
            user: Some(Id::Number(uid)),
            group: Some(Id::Number(gid)),
        }
    }

    fn to_pb(&self, base: i64) -> pb::ChownOpt {
        let id = |id: &Option<Id>| {
            id.as_ref().map(|id| pb::UserOpt {
                user: Some(match id {
                    Id::Number(number) => pb::user_opt::User::ById(*number),
                    Id::Name(name) => pb::user_opt::User::ByName(pb::NamedUserOpt {
                        name: name.clone(),
                        input: base,
                    }),
                }),
            })
        };
        pb::ChownOpt {
            user: id(&self.user),
            group: id(&self.group),
        }
    }
}

/// An action as it is written but for what depends on the numbers of the inputs.
#[derive(Debug)]
pub(super) struct FileStep {
    pub(super) action: Action,
    pub(super) owner: Option<Owner>,
    /// Place of the state that it changes in the node's inputs.
    pub(super) base: Option<usize>,
    /// Place of the state that it copies from.
    pub(super) source: Option<usize>,
}

impl FileStep {
    /// The action with its owner's names looked up in the input `base`.
    pub(super) fn action(&self, base: i64) -> Action {
        let owner = self.owner.as_ref().map(|owner| owner.to_pb(base));
        let mut action = self.action.clone();
        match &mut action {
            Action::Copy(copy) => copy.owner = owner,
            Action::Mkfile(file) => file.owner = owner,
            Action::Mkdir(dir) => dir.owner = owner,
            Action::Symlink(link) => link.owner = owner,
            Action::Rm(_) => {}
        }
        action
    }
}

pub(super) fn node(state: &State, actions: Vec<FileAction>, mut constraints: Constraints) -> Node {
    constraints.cap("file.base");
    if constraints.platform.is_none() {
        constraints.platform.clone_from(&state.platform);
    }
    let mut inputs: Vec<_> = state.output.iter().cloned().collect();
    let base = state.output.as_ref().map(|_| 0);
    let dir = state.current_dir();
    let steps = actions
        .into_iter()
        .map(|action| {
            let mut source = None;
            let (action, owner) = match action {
                FileAction::Copy(copy) => {
                    if let Some(output) = &copy.source.output {
                        inputs.push(output.clone());
                        source = Some(inputs.len() - 1);
                    }
                    copy_action(*copy, dir, &mut constraints)
                }
                other => simple_action(other, dir, &mut constraints),
            };
            FileStep {
                action,
                owner,
                base,
                source,
            }
        })
        .collect();
    Node {
        kind: Kind::File(steps),
        inputs,
        constraints,
    }
}

/// Permission bits without the special ones fit an `i32`.
fn mode_bits(mode: u32) -> i32 {
    (mode & 0o777).cast_signed()
}

fn simple_action(
    action: FileAction,
    dir: &str,
    constraints: &mut Constraints,
) -> (Action, Option<Owner>) {
    match action {
        FileAction::Mkdir {
            path,
            mode,
            make_parents,
            owner,
            created,
        } => (
            Action::Mkdir(pb::FileActionMkDir {
                path: normalize(dir, &path, false),
                mode: mode_bits(mode),
                make_parents,
                owner: None,
                timestamp: created.unwrap_or(-1),
            }),
            owner,
        ),
        FileAction::Mkfile {
            path,
            mode,
            data,
            owner,
            created,
        } => (
            Action::Mkfile(pb::FileActionMkFile {
                path: normalize(dir, &path, false),
                mode: mode_bits(mode),
                data,
                owner: None,
                timestamp: created.unwrap_or(-1),
            }),
            owner,
        ),
        FileAction::Rm {
            path,
            allow_not_found,
            allow_wildcard,
        } => {
            if allow_wildcard {
                constraints.cap("file.rm.wildcard");
            }
            (
                Action::Rm(pb::FileActionRm {
                    path: normalize(dir, &path, false),
                    allow_not_found,
                    allow_wildcard,
                }),
                None,
            )
        }
        FileAction::Symlink {
            old,
            new,
            owner,
            created,
        } => {
            constraints.cap("file.symlink.create");
            (
                Action::Symlink(pb::FileActionSymlink {
                    oldpath: old,
                    newpath: normalize(dir, &new, false),
                    owner: None,
                    timestamp: created.unwrap_or(-1),
                }),
                owner,
            )
        }
        FileAction::Copy(copy) => copy_action(*copy, dir, constraints),
    }
}

fn copy_action(
    copy: CopySpec,
    dir: &str,
    constraints: &mut Constraints,
) -> (Action, Option<Owner>) {
    if !copy.include.is_empty() || !copy.exclude.is_empty() {
        constraints.cap("file.copy.includeexcludepatterns");
    }
    if !copy.required_paths.is_empty() {
        constraints.cap("file.copy.requiredpaths");
    }
    if copy.replace_existing {
        constraints.cap("file.copy.alwaysreplaceexistingdestpaths");
    }
    let (mode, mode_str) = match copy.mode {
        None => (-1, String::new()),
        Some(ChmodSpec::Bits(bits)) => (bits.cast_signed(), String::new()),
        Some(ChmodSpec::Text(text)) => (0, text),
    };
    let action = pb::FileActionCopy {
        src: join(copy.source.current_dir(), &copy.src),
        dest: normalize(dir, &copy.dest, true),
        owner: None,
        mode,
        follow_symlink: copy.follow_symlinks,
        dir_copy_contents: copy.dir_contents_only,
        attempt_unpack_docker_compatibility: copy.attempt_unpack,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp: copy.created.unwrap_or(-1),
        include_patterns: copy.include,
        exclude_patterns: copy.exclude,
        always_replace_existing_dest_paths: copy.replace_existing,
        mode_str,
        required_paths: copy.required_paths,
    };
    (Action::Copy(action), copy.owner)
}

/// `path`, in `dir` unless it is absolute, without `.`, `..` and doubled slashes.
pub fn join(dir: &str, path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    let dir = if absolute { "" } else { dir };
    for part in dir.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// [`join`]. A slash or `/.` at the end says that a directory is meant: `keep_slash` keeps it.
pub fn normalize(dir: &str, path: &str, keep_slash: bool) -> String {
    let mut out = join(dir, path);
    if keep_slash {
        if path.ends_with('/') && !out.ends_with('/') {
            out.push('/');
        } else if path.ends_with("/.") {
            if out != "/" {
                out.push('/');
            }
            out.push('.');
        }
    }
    out
}
