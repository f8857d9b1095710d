//! Operations in parts that a user knows, for who asks why something is not cached.
//!
//! The parts are taken from the very text that the key is made of, so that no difference is
//! without a name, and nothing is told that is not in the key.

use cooper_proto::pb;
use cooper_solver::{Description, Vertex, without_position};
use serde_json::Value;

use crate::Build;

/// The instruction as it is written, before variables are replaced: BuildKit's frontend writes
/// it on the vertex, too.
const COMMAND: &str = "com.docker.dockerfile.v1.command";

/// What a vertex is about.
pub(crate) fn begin(kind: &str, vertex: &Vertex<Build>) -> Description {
    let command = vertex.options.description.get(COMMAND);
    let name = without_position(&vertex.name);
    Description::new(kind, command.map_or(name, String::as_str))
}

/// A value as text; empty for what says nothing.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All that is in a value, each leaf with its path.
fn flatten(path: &str, value: &Value, add: &mut dyn FnMut(&str, String)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{path} {}", field_name(name)), value, add);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(&format!("{path} {}", index + 1), value, add);
            }
        }
        leaf => add(path, text(leaf)),
    }
}

/// Names of fields as words: `secretOpt` is `secret`, `createDestPath` is `create dest path`.
fn field_name(name: &str) -> String {
    let name = match name {
        "ID" => "id",
        "SSHOpt" => "ssh",
        name => name.strip_suffix("Opt").unwrap_or(name),
    };
    let mut words = String::new();
    for letter in name.chars() {
        match letter {
            '_' => words.push(' '),
            letter if letter.is_ascii_uppercase() && !words.is_empty() => {
                words.push(' ');
                words.push(letter.to_ascii_lowercase());
            }
            letter => words.push(letter.to_ascii_lowercase()),
        }
    }
    words
}

fn octal(value: &Value) -> String {
    match value.as_i64() {
        Some(mode) => format!("{mode:04o}"),
        None => text(value),
    }
}

/// The parts of a process, from the text of its key.
pub(crate) fn exec(key: &str, description: &mut Description) {
    let Ok(Value::Object(key)) = serde_json::from_str(key) else {
        return;
    };
    let empty = Value::Null;
    let exec = key.get("Exec").unwrap_or(&empty);
    meta(&exec["meta"], description);
    for (name, value) in exec.as_object().into_iter().flatten() {
        match name.as_str() {
            "meta" | "mounts" => {}
            "network" => description.part("network", &choice(value, &["sandbox", "host", "none"])),
            "security" => description.part("security", &choice(value, &["sandbox", "insecure"])),
            "secretenv" => {
                for secret in value.as_array().into_iter().flatten() {
                    named(description, "secret variable", "name", secret);
                }
            }
            "cdiDevices" => {
                for device in value.as_array().into_iter().flatten() {
                    named(description, "device", "name", device);
                }
            }
            name => flatten(&field_name(name), value, &mut |path, value| {
                description.part(path, &value);
            }),
        }
    }
    mounts(&exec["mounts"], description);
    let platform = ["OS", "Arch", "Variant", "OSVersion"];
    let platform = platform
        .iter()
        .filter_map(|name| Some(text(key.get(*name)?)));
    let mut platform: Vec<String> = platform.collect();
    platform.extend(key.get("OSFeatures").map(text));
    description.part("platform", &platform.join("/"));
}

/// A number that stands for a word; the first one when there is none.
fn choice(value: &Value, words: &[&str]) -> String {
    let number = value.as_u64().unwrap_or_default();
    let word = usize::try_from(number).ok().and_then(|n| words.get(n));
    word.map_or_else(|| text(value), |word| (*word).to_owned())
}

/// The fields of something that has a name.
fn named(description: &mut Description, what: &str, name: &str, value: &Value) {
    let this = format!("{what} {}", text(&value[name]));
    let mut alone = true;
    for (field, value) in value.as_object().into_iter().flatten() {
        if field != name {
            alone = false;
            flatten(
                &format!("{this} {}", field_name(field)),
                value,
                &mut |path, value| {
                    description.part(path, &value);
                },
            );
        }
    }
    if alone {
        description.part(this, "yes");
    }
}

fn meta(meta: &Value, description: &mut Description) {
    for (name, value) in meta.as_object().into_iter().flatten() {
        let all = || value.as_array().into_iter().flatten();
        match name.as_str() {
            "args" => args(&all().map(text).collect::<Vec<_>>(), description),
            "env" => {
                for variable in all().map(text) {
                    let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
                    // One that is empty is there all the same.
                    let value = if value.is_empty() { "(empty)" } else { value };
                    description.part(format!("variable {name}"), value);
                }
            }
            "cwd" => description.part("working directory", &text(value)),
            "user" => description.part("user", &text(value)),
            "hostname" => description.part("host name", &text(value)),
            "cgroupParent" => description.part("parent control group", &text(value)),
            "extraHosts" => {
                for host in all() {
                    description.part(format!("extra host {}", text(&host["Host"])), "yes");
                }
            }
            "ulimit" => {
                for limit in all() {
                    let value = |name: &str| text(&limit[name]);
                    let both = format!("{}:{}", value("Soft"), value("Hard"));
                    description.part(format!("ulimit {}", value("Name")), &both);
                }
            }
            "validExitCodes" => description.part("valid exit codes", &text(value)),
            name => flatten(&field_name(name), value, &mut |path, value| {
                description.part(path, &value);
            }),
        }
    }
}

/// A shell and its command, or words.
fn args(args: &[String], description: &mut Description) {
    if let [shell @ .., option, command] = args
        && !shell.is_empty()
        && (option.starts_with('-') || option.starts_with('/'))
        && option.ends_with(['c', 'C'])
    {
        description.part("shell", &format!("{} {option}", shell.join(" ")));
        description.part("command", command);
        return;
    }
    for (index, arg) in args.iter().enumerate() {
        let arg = if arg.is_empty() { "(empty)" } else { arg };
        description.part(format!("argument {index}"), arg);
    }
}

/// The kinds of mounts by BuildKit's numbers (`MountType` in `solver/pb/ops.proto`).
const MOUNTS: [&str; 5] = ["bind", "secret", "ssh", "cache", "tmpfs"];

fn mounts(mounts: &Value, description: &mut Description) {
    let mut inputs = String::new();
    for mount in mounts.as_array().into_iter().flatten() {
        let dest = text(&mount["dest"]);
        let this = format!("mount {dest}");
        // The root file system is there always.
        if dest != "/" {
            description.part(this.clone(), &choice(&mount["mountType"], &MOUNTS));
        }
        for (field, value) in mount.as_object().into_iter().flatten() {
            match field.as_str() {
                "dest" | "mountType" => {}
                "input" | "output" => {
                    inputs.push_str(&format!("{dest} {field} {value}; "));
                }
                "resultID" => description.part(format!("{this} result"), &text(value)),
                "secretOpt" | "SSHOpt" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        let value = match name.as_str() {
                            "mode" => octal(value),
                            _ => text(value),
                        };
                        let path = format!("{this} {} {}", field_name(field), field_name(name));
                        description.part(path, &value);
                    }
                }
                field => flatten(
                    &format!("{this} {}", field_name(field)),
                    value,
                    &mut |p, v| {
                        description.part(p, &v);
                    },
                ),
            }
        }
    }
    description.wiring = inputs;
}

/// What an action is called.
pub(crate) fn action_name(action: &pb::FileAction) -> &'static str {
    use pb::file_action::Action;
    match &action.action {
        Some(Action::Copy(_)) => "copy",
        Some(Action::Mkfile(_)) => "mkfile",
        Some(Action::Mkdir(_)) => "mkdir",
        Some(Action::Rm(_)) => "rm",
        Some(Action::Symlink(_)) => "symlink",
        None => "action",
    }
}

/// The parts of an action on files, the number `number` of them, from 1.
pub(crate) fn action(
    number: usize,
    action: &pb::FileAction,
    key: &str,
    description: &mut Description,
) {
    use pb::file_action::Action;
    let kind = action_name(action);
    let kind = match number {
        1 => kind.to_owned(),
        number => format!("{kind} {number}"),
    };
    if let Some(Action::Copy(copy)) = &action.action {
        // The key has the name alone, and the content.
        description.part(format!("{kind} source"), &copy.src);
    }
    let fields = serde_json::from_str::<Value>(key).unwrap_or_default();
    for (field, value) in fields.as_object().into_iter().flatten() {
        match (field.as_str(), &action.action) {
            ("src", Some(Action::Copy(_))) => {}
            ("data", Some(Action::Mkfile(mkfile))) => {
                let data = String::from_utf8_lossy(&mkfile.data);
                description.part(format!("{kind} content"), &data);
            }
            // What an action does not ask for is -1.
            ("mode", _) if value.as_i64() != Some(-1) => {
                description.part(format!("{kind} mode"), &octal(value));
            }
            ("mode", _) => {}
            (field, _) => {
                let path = format!("{kind} {}", field_name(field));
                flatten(&path, value, &mut |path, value| {
                    description.part(path, &value)
                });
            }
        }
    }
}

/// The parts of any other operation, from the text of its key.
pub(crate) fn other(key: &str, description: &mut Description) {
    let key = serde_json::from_str::<Value>(key).unwrap_or_default();
    flatten("", &key, &mut |path, value| {
        description.part(path.trim_start(), &value)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(describe: impl FnOnce(&mut Description)) -> Vec<String> {
        let mut description = Description::new("x", "x");
        describe(&mut description);
        let parts = description.parts.iter();
        parts
            .map(|part| format!("{}={}", part.name, part.value))
            .collect()
    }

    #[test]
    fn a_process_has_the_parts_that_users_write() {
        let key = r#"{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["/bin/sh","-c","make"],
            "env":["PATH=/bin","EMPTY="],"cwd":"/src","user":"me","ulimit":[{"Name":"nofile",
            "Soft":1,"Hard":2}],"extraHosts":[{"Host":"h"}]},"mounts":[{"dest":"/"},
            {"input":1,"dest":"/run/secrets/a","output":-1,"mountType":1,
            "secretOpt":{"ID":"token","mode":256}},{"input":-1,"dest":"/tmp","output":-1,
            "mountType":4,"TmpfsOpt":{"size":10}}],"network":2,
            "secretenv":[{"ID":"token","name":"TOKEN"}],
            "somethingNew":{"deepField":7}},"OS":"linux","Arch":"arm64","Variant":"v8"}"#;
        assert_eq!(
            parts(|description| exec(key, description)),
            [
                "shell=/bin/sh -c",
                "command=make",
                "variable PATH=/bin",
                "variable EMPTY=(empty)",
                "working directory=/src",
                "user=me",
                "ulimit nofile=1:2",
                "extra host h=yes",
                "network=none",
                "secret variable TOKEN id=token",
                "something new deep field=7",
                "mount /run/secrets/a=secret",
                "mount /run/secrets/a secret id=token",
                "mount /run/secrets/a secret mode=0400",
                "mount /tmp=tmpfs",
                "mount /tmp tmpfs size=10",
                "platform=linux/arm64/v8",
            ]
        );
        let words = r#"{"Exec":{"meta":{"args":["make","","-j"]}}}"#;
        assert_eq!(
            parts(|description| exec(words, description)),
            ["argument 0=make", "argument 1=(empty)", "argument 2=-j"]
        );
        assert_eq!(parts(|description| exec("no text", description)).len(), 0);
    }

    #[test]
    fn actions_on_files_have_theirs() {
        let copy = pb::FileAction {
            action: Some(pb::file_action::Action::Copy(pb::FileActionCopy {
                src: "/deep/a".into(),
                ..pb::FileActionCopy::default()
            })),
            ..pb::FileAction::default()
        };
        let key = r#"{"src":"a","dest":"/b","mode":420,"owner":{"user":{"byName":{"name":"me"}}},
            "createDestPath":true}"#;
        assert_eq!(
            parts(|description| action(1, &copy, key, description)),
            [
                "copy source=/deep/a",
                "copy dest=/b",
                "copy mode=0644",
                "copy owner user by name name=me",
                "copy create dest path=true"
            ]
        );
        let mkfile = pb::FileAction {
            action: Some(pb::file_action::Action::Mkfile(pb::FileActionMkFile {
                data: b"text".to_vec(),
                ..pb::FileActionMkFile::default()
            })),
            ..pb::FileAction::default()
        };
        assert_eq!(
            parts(|description| action(2, &mkfile, r#"{"data":"x","mode":-1}"#, description)),
            ["mkfile 2 content=text"]
        );
    }
}
