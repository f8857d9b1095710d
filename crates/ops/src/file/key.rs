//! What a file operation is, for the cache: BuildKit's rules and bytes
//! (`solver/llbsolver/ops/file.go`).

use std::collections::{BTreeMap, BTreeSet};

use cooper_llb::gojson::{self, Base64, Object, Value};
use cooper_proto::pb::{self, file_action::Action, user_opt::User};
use cooper_session::pattern;
use cooper_solver::Description;

use super::paths;
use crate::content::{Selector, dedupe_selectors};
use crate::{OpsError, describe};

const CACHE_TYPE: &str = "buildkit.file.v0";

pub(super) struct Key {
    /// What is done, the inputs left out; its digest is the key.
    pub(super) text: String,
    /// For each input: what is looked at; `None` for all of it, whoever made it.
    pub(super) deps: Vec<Option<Dep>>,
}

pub(super) struct Dep {
    /// The text whose digest is the selector.
    pub(super) selector: Vec<u8>,
    pub(super) selectors: Vec<Selector>,
}

/// The key of an operation with `inputs` inputs.
pub(super) fn of(op: &pb::FileOp, inputs: usize) -> Result<Key, OpsError> {
    let mut looks = Looks::default();
    let mut actions = Vec::with_capacity(op.actions.len());
    for action in &op.actions {
        actions.push(look(action, inputs, &mut looks)?);
    }
    let text = json(&actions, &op.actions);
    let mut deps: Vec<Option<Dep>> = std::iter::repeat_with(|| None).take(inputs).collect();
    for (input, selectors) in looks.selectors {
        let dep = usize::try_from(input)
            .ok()
            .and_then(|input| deps.get_mut(input))
            .ok_or_else(|| {
                OpsError::invalid(format!(
                    "invalid input index {input} in file op with {inputs} inputs"
                ))
            })?;
        if looks.changed.contains(&input) {
            continue;
        }
        let mut paths: Vec<_> = selectors.iter().map(|s| s.path.as_bytes()).collect();
        // From the last to the first, for historical reasons.
        paths.sort_by(|a, b| b.cmp(a));
        *dep = Some(Dep {
            selector: paths.join(&0),
            selectors: dedupe_selectors(&selectors),
        });
    }
    Ok(Key { text, deps })
}

/// The parts of an operation with `inputs` inputs, as far as it has a key.
pub(super) fn describe(op: &pb::FileOp, inputs: usize, description: &mut Description) {
    let mut looks = Looks::default();
    let mut indexes = String::new();
    for (index, action) in op.actions.iter().enumerate() {
        let Ok(text) = look(action, inputs, &mut looks) else {
            return;
        };
        describe::action(index + 1, action, &text, description);
        indexes.push_str(&format!(
            "{} {} {}; ",
            action.input, action.secondary_input, action.output
        ));
    }
    description.wiring = indexes;
}

/// How the actions look at the inputs.
#[derive(Default)]
struct Looks {
    selectors: BTreeMap<i64, Vec<Selector>>,
    /// Inputs that become the output: all of them counts.
    changed: BTreeSet<i64>,
}

/// The text of an action, and how it looks at the inputs.
fn look(action: &pb::FileAction, inputs: usize, looks: &mut Looks) -> Result<String, OpsError> {
    if action.input != -1 {
        looks.changed.insert(action.input);
    }
    Ok(match &action.action {
        Some(Action::Mkdir(mkdir)) => {
            looks.owner(mkdir.owner.as_ref())?;
            gojson::to_string(mkdir)
        }
        Some(Action::Mkfile(mkfile)) => {
            looks.owner(mkfile.owner.as_ref())?;
            gojson::to_string(mkfile)
        }
        Some(Action::Symlink(symlink)) => gojson::to_string(symlink),
        Some(Action::Rm(rm)) => gojson::to_string(rm),
        Some(Action::Copy(copy)) => {
            looks.owner(copy.owner.as_ref())?;
            let mut copy = copy.clone();
            let source = action.secondary_input;
            if source != -1 && usize::try_from(source).is_ok_and(|source| source < inputs) {
                looks.selectors.entry(source).or_default().push(Selector {
                    path: copy.src.clone(),
                    wildcard: copy.allow_wildcard && pattern::has_wildcards(&copy.src),
                    follow_links: copy.follow_symlink,
                    include: copy.include_patterns.clone(),
                    exclude: copy.exclude_patterns.clone(),
                    required: copy.required_paths.clone(),
                });
                copy.src = paths::base(&copy.src);
            }
            gojson::to_string(&copy)
        }
        None => return Err(OpsError::invalid("invalid action type <nil>")),
    })
}

impl Looks {
    /// Names of owners are looked up in an input.
    fn owner(&mut self, owner: Option<&pb::ChownOpt>) -> Result<(), OpsError> {
        let Some(owner) = owner else { return Ok(()) };
        let files = [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")];
        for (name, file) in files {
            let Some(Some(User::ByName(name))) = name.as_ref().map(|name| &name.user) else {
                continue;
            };
            if name.input < 0 {
                let input = name.input;
                return Err(OpsError::invalid(format!("invalid user index {input}")));
            }
            self.selectors
                .entry(name.input)
                .or_default()
                .push(Selector {
                    path: file.into(),
                    follow_links: true,
                    ..Selector::default()
                });
        }
        Ok(())
    }
}

fn json(texts: &[String], actions: &[pb::FileAction]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| Base64(text.as_bytes())).collect();
    let indexes: Vec<_> = actions
        .iter()
        .map(|action| Numbers([action.input, action.secondary_input, action.output]))
        .collect();
    Object::write(|object| {
        object.field("Type", CACHE_TYPE);
        object.field("Actions", &texts);
        if !is_default(&indexes) {
            object.omit_empty("indexes", &indexes);
        }
    })
}

struct Numbers([i64; 3]);

impl Value for Numbers {
    fn write(&self, out: &mut String) {
        self.0.as_slice().write(out);
    }
}

/// Whether each action continues the one before, from the first input to the only output: then
/// the numbers are left out, as they were before BuildKit 0.9.
fn is_default(indexes: &[Numbers]) -> bool {
    let count = indexes.len();
    !indexes.is_empty()
        && indexes.iter().enumerate().all(|(place, numbers)| {
            let [input, secondary, output] = numbers.0;
            let before = place.checked_sub(1).map_or(0, |before| count + before);
            let last = place + 1 == count;
            usize::try_from(input) == Ok(before)
                && (secondary == -1 || secondary == 1)
                && output == if last { 0 } else { -1 }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(input: i64, secondary_input: i64, output: i64, action: Action) -> pb::FileAction {
        pb::FileAction {
            input,
            secondary_input,
            output,
            action: Some(action),
        }
    }

    fn copy(src: &str) -> pb::FileActionCopy {
        pb::FileActionCopy {
            src: src.into(),
            dest: "/dest/".into(),
            mode: -1,
            timestamp: -1,
            allow_wildcard: true,
            ..pb::FileActionCopy::default()
        }
    }

    fn op(actions: Vec<pb::FileAction>) -> pb::FileOp {
        pb::FileOp { actions }
    }

    #[test]
    fn the_bytes_are_those_of_go() {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let copied = r#"{"src":"b","dest":"/dest/","mode":-1,"allowWildcard":true,"timestamp":-1}"#;
        let encoded = BASE64_STANDARD.encode(copied);
        let simple = op(vec![action(0, 1, 0, Action::Copy(copy("/a/b")))]);
        let expected = format!(r#"{{"Type":"buildkit.file.v0","Actions":["{encoded}"]}}"#);
        let key = of(&simple, 2).unwrap();
        assert_eq!(key.text, expected);
        let scratch = op(vec![action(-1, 0, 0, Action::Copy(copy("/a/b")))]);
        let expected = format!(
            r#"{{"Type":"buildkit.file.v0","Actions":["{encoded}"],"indexes":[[-1,0,0]]}}"#
        );
        let key = of(&scratch, 1).unwrap();
        assert_eq!(key.text, expected);
    }

    #[test]
    fn sources_are_selected_and_the_base_is_not() {
        let one = op(vec![action(0, 1, 0, Action::Copy(copy("/a/*")))]);
        let key = of(&one, 2).unwrap();
        assert!(key.deps[0].is_none());
        let dep = key.deps[1].as_ref().unwrap();
        assert_eq!(dep.selector, b"/a/*");
        assert!(dep.selectors[0].wildcard);
        let two = op(vec![
            action(0, 1, -1, Action::Copy(copy("/a"))),
            action(2, 1, 0, Action::Copy(copy("/b"))),
        ]);
        let key = of(&two, 2).unwrap();
        let dep = key.deps[1].as_ref().unwrap();
        assert_eq!(dep.selector, b"/b\0/a");
        // From the very input that is changed: nothing less than all of it will do.
        let inside = op(vec![action(0, 0, 0, Action::Copy(copy("/a")))]);
        assert!(of(&inside, 1).unwrap().deps[0].is_none());
    }

    #[test]
    fn names_of_owners_are_looked_up_where_they_say() {
        let by_name = |input| {
            Some(pb::UserOpt {
                user: Some(User::ByName(pb::NamedUserOpt {
                    name: "me".into(),
                    input,
                })),
            })
        };
        let mkdir = |user, group| {
            op(vec![action(
                0,
                -1,
                0,
                Action::Mkdir(pb::FileActionMkDir {
                    path: "/x".into(),
                    owner: Some(pb::ChownOpt { user, group }),
                    ..pb::FileActionMkDir::default()
                }),
            )])
        };
        let key = of(&mkdir(by_name(1), by_name(1)), 2).unwrap();
        let dep = key.deps[1].as_ref().unwrap();
        assert_eq!(dep.selector, b"/etc/passwd\0/etc/group");
        assert!(of(&mkdir(by_name(-1), None), 2).is_err());
        assert!(of(&mkdir(None, by_name(5)), 2).is_err());
    }

    #[test]
    fn a_line_of_actions_needs_no_numbers() {
        let numbers = |all: &[[i64; 3]]| all.iter().copied().map(Numbers).collect::<Vec<_>>();
        assert!(is_default(&numbers(&[[0, -1, -1], [2, 1, 0]])));
        for other in [
            &[[1, -1, 0]][..],
            &[[0, 2, 0]],
            &[[0, -1, 0], [2, -1, -1]],
            &[[0, -1, -1], [0, -1, 0]],
            &[],
        ] {
            assert!(!is_default(&numbers(other)), "{other:?}");
        }
    }
}
