//! What a user reads when the client gave no name. The forms are BuildKit's.

use cooper_proto::pb::{self, file_action::Action};

use crate::Op;

/// The key in a vertex's description that overrides its name.
pub(crate) const CUSTOM_NAME: &str = "llb.customname";

/// The name of an operation whose inputs have the names that `input` gives.
pub(crate) fn of(op: &Op, inputs: &[&str]) -> String {
    match op {
        Op::Source(source) => source.identifier.clone(),
        Op::Exec(exec) => exec
            .meta
            .as_ref()
            .map(|meta| meta.args.join(" "))
            .unwrap_or_default(),
        Op::File(file) => file
            .actions
            .iter()
            .filter_map(action)
            .collect::<Vec<_>>()
            .join(", "),
        Op::Build(_) => "build".to_owned(),
        Op::Passthrough(passthrough) => format!("passthrough {}", passthrough.id),
        Op::Merge(_) => format!("merge ({})", inputs.join(", ")),
        Op::Diff(diff) => {
            let side = |input: Option<i64>| match input {
                None | Some(-1) => "scratch".to_owned(),
                Some(index) => usize::try_from(index)
                    .ok()
                    .and_then(|index| inputs.get(index))
                    .map_or_else(|| "scratch".to_owned(), |name| format!("({name})")),
            };
            format!(
                "diff {} -> {}",
                side(diff.lower.as_ref().map(|lower| lower.input)),
                side(diff.upper.as_ref().map(|upper| upper.input)),
            )
        }
    }
}

fn action(action: &pb::FileAction) -> Option<String> {
    Some(match action.action.as_ref()? {
        Action::Mkdir(mkdir) => format!("mkdir {}", mkdir.path),
        Action::Mkfile(mkfile) => format!("mkfile {}", mkfile.path),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
        Action::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
    })
}
