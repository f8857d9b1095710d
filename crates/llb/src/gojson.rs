//! JSON byte for byte as Go's `encoding/json` writes it.
//!
//! BuildKit's cache keys are digests of such texts (`solver/llbsolver/ops`, `solver/pb/json.go`):
//! fields in the order of declaration, empty ones left out where the Go type says `omitempty`,
//! `<`, `>`, `&`, U+2028 and U+2029 escaped, bytes in base64. A cache is shared between the two
//! builders only if every byte is the same.
//!
//! ```
//! use cooper_llb::gojson::Object;
//!
//! let text = Object::write(|object| {
//!     object.field("Type", "a&b");
//!     object.omit_empty("Variant", "");
//! });
//! assert_eq!(text, r#"{"Type":"a\u0026b"}"#);
//! ```

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cooper_proto::pb;

/// A value that Go's encoder knows how to write.
pub trait Value {
    /// Appends the value.
    fn write(&self, out: &mut String);

    /// Whether `omitempty` leaves it out: false, 0, nothing, the empty string or list.
    fn is_empty(&self) -> bool {
        false
    }
}

/// An object that is being written, field by field in the order of Go's declaration.
pub struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl Object<'_> {
    /// The text of an object with the fields that `fields` adds.
    pub fn write(fields: impl FnOnce(&mut Object<'_>)) -> String {
        let mut out = String::new();
        Object::append(&mut out, fields);
        out
    }

    fn append(out: &mut String, fields: impl FnOnce(&mut Object<'_>)) {
        out.push('{');
        fields(&mut Object { out, first: true });
        out.push('}');
    }

    /// A field.
    pub fn field<V: Value + ?Sized>(&mut self, name: &str, value: &V) {
        self.key(name);
        value.write(self.out);
    }

    /// A field that is left out when it is empty.
    pub fn omit_empty<V: Value + ?Sized>(&mut self, name: &str, value: &V) {
        if !value.is_empty() {
            self.field(name, value);
        }
    }

    fn object(&mut self, name: &str, fields: impl FnOnce(&mut Object<'_>)) {
        self.key(name);
        Object::append(self.out, fields);
    }

    fn key(&mut self, name: &str) {
        if !self.first {
            self.out.push(',');
        }
        self.first = false;
        name.write(self.out);
        self.out.push(':');
    }
}

impl Value for str {
    fn write(&self, out: &mut String) {
        out.push('"');
        for c in self.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                // Since Go 1.22; before it they were written as numbers.
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes all");
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }

    fn is_empty(&self) -> bool {
        str::is_empty(self)
    }
}

impl Value for String {
    fn write(&self, out: &mut String) {
        self.as_str().write(out);
    }

    fn is_empty(&self) -> bool {
        String::is_empty(self)
    }
}

/// A byte slice, which Go writes in base64.
#[derive(Clone, Copy, Debug)]
pub struct Base64<'a>(pub &'a [u8]);

impl Value for Base64<'_> {
    fn write(&self, out: &mut String) {
        out.push('"');
        BASE64_STANDARD.encode_string(self.0, out);
        out.push('"');
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Value for bool {
    fn write(&self, out: &mut String) {
        out.push_str(if *self { "true" } else { "false" });
    }

    fn is_empty(&self) -> bool {
        !self
    }
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl Value for $kind {
            fn write(&self, out: &mut String) {
                write!(out, "{self}").expect("a String takes all");
            }

            fn is_empty(&self) -> bool {
                *self == 0
            }
        }
    )*};
}

numbers!(i32, i64, u32, u64);

impl<V: Value> Value for [V] {
    fn write(&self, out: &mut String) {
        out.push('[');
        for (index, value) in self.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            value.write(out);
        }
        out.push(']');
    }

    fn is_empty(&self) -> bool {
        <[V]>::is_empty(self)
    }
}

impl<V: Value> Value for Vec<V> {
    fn write(&self, out: &mut String) {
        self.as_slice().write(out);
    }

    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

/// A nil slice or pointer.
impl<V: Value> Value for Option<V> {
    fn write(&self, out: &mut String) {
        match self {
            Some(value) => value.write(out),
            None => out.push_str("null"),
        }
    }

    fn is_empty(&self) -> bool {
        self.as_ref().is_none_or(Value::is_empty)
    }
}

/// The messages: a pointer to one is never empty. `name = field` is a field with `omitempty`.
macro_rules! message {
    ($kind:ty { $($name:literal = $field:ident),* $(,)? }) => {
        impl Value for $kind {
            fn write(&self, out: &mut String) {
                Object::append(out, |object| {
                    $(object.omit_empty($name, &self.$field);)*
                });
            }
        }
    };
}

message!(pb::ExecOp {
    "meta" = meta,
    "mounts" = mounts,
    "network" = network,
    "security" = security,
    "secretenv" = secretenv,
    "cdiDevices" = cdi_devices,
});

message!(pb::Meta {
    "args" = args,
    "env" = env,
    "cwd" = cwd,
    "user" = user,
    "proxy_env" = proxy_env,
    "extraHosts" = extra_hosts,
    "hostname" = hostname,
    "ulimit" = ulimit,
    "cgroupParent" = cgroup_parent,
    "removeMountStubsRecursive" = remove_mount_stubs_recursive,
    "validExitCodes" = valid_exit_codes,
});

message!(pb::ProxyEnv {
    "http_proxy" = http_proxy,
    "https_proxy" = https_proxy,
    "ftp_proxy" = ftp_proxy,
    "no_proxy" = no_proxy,
    "all_proxy" = all_proxy,
});

message!(pb::HostIp { "Host" = host, "IP" = ip });
message!(pb::Ulimit { "Name" = name, "Soft" = soft, "Hard" = hard });
message!(pb::SecretEnv { "ID" = id, "name" = name, "optional" = optional });
message!(pb::CdiDevice { "name" = name, "optional" = optional });

message!(pb::Mount {
    "input" = input,
    "selector" = selector,
    "dest" = dest,
    "output" = output,
    "readonly" = readonly,
    "mountType" = mount_type,
    "TmpfsOpt" = tmpfs_opt,
    "cacheOpt" = cache_opt,
    "secretOpt" = secret_opt,
    "SSHOpt" = ssh_opt,
    "resultID" = result_id,
    "contentCache" = content_cache,
});

message!(pb::TmpfsOpt { "size" = size });
message!(pb::CacheOpt { "ID" = id, "sharing" = sharing });

message!(pb::SecretOpt {
    "ID" = id,
    "uid" = uid,
    "gid" = gid,
    "mode" = mode,
    "optional" = optional,
});

message!(pb::SshOpt {
    "ID" = id,
    "uid" = uid,
    "gid" = gid,
    "mode" = mode,
    "optional" = optional,
});

message!(pb::FileActionCopy {
    "src" = src,
    "dest" = dest,
    "owner" = owner,
    "mode" = mode,
    "followSymlink" = follow_symlink,
    "dirCopyContents" = dir_copy_contents,
    "attemptUnpackDockerCompatibility" = attempt_unpack_docker_compatibility,
    "createDestPath" = create_dest_path,
    "allowWildcard" = allow_wildcard,
    "allowEmptyWildcard" = allow_empty_wildcard,
    "timestamp" = timestamp,
    "include_patterns" = include_patterns,
    "exclude_patterns" = exclude_patterns,
    "alwaysReplaceExistingDestPaths" = always_replace_existing_dest_paths,
    "modeStr" = mode_str,
    "required_paths" = required_paths,
});

impl Value for pb::FileActionMkFile {
    fn write(&self, out: &mut String) {
        Object::append(out, |object| {
            object.omit_empty("path", &self.path);
            object.omit_empty("mode", &self.mode);
            object.omit_empty("data", &Base64(&self.data));
            object.omit_empty("owner", &self.owner);
            object.omit_empty("timestamp", &self.timestamp);
        });
    }
}

message!(pb::FileActionSymlink {
    "oldpath" = oldpath,
    "newpath" = newpath,
    "owner" = owner,
    "timestamp" = timestamp,
});

message!(pb::FileActionMkDir {
    "path" = path,
    "mode" = mode,
    "makeParents" = make_parents,
    "owner" = owner,
    "timestamp" = timestamp,
});

message!(pb::FileActionRm {
    "path" = path,
    "allowNotFound" = allow_not_found,
    "allowWildcard" = allow_wildcard,
});

message!(pb::ChownOpt { "user" = user, "group" = group });
message!(pb::NamedUserOpt { "name" = name, "input" = input });
message!(pb::MergeOp { "inputs" = inputs });
message!(pb::MergeInput { "input" = input });
message!(pb::DiffOp { "lower" = lower, "upper" = upper });
message!(pb::LowerDiffInput { "input" = input });
message!(pb::UpperDiffInput { "input" = input });
message!(pb::PassthroughOp { "id" = id, "outputs" = outputs });

/// A oneof is written by hand in BuildKit, as an object inside.
impl Value for pb::UserOpt {
    fn write(&self, out: &mut String) {
        Object::append(out, |object| {
            object.object("User", |user| match &self.user {
                Some(pb::user_opt::User::ByName(name)) => user.field("byName", name),
                Some(pb::user_opt::User::ById(id)) => user.omit_empty("byId", id),
                None => {}
            });
        });
    }
}

/// The text of a message.
pub fn to_string<V: Value>(value: &V) -> String {
    let mut out = String::new();
    value.write(&mut out);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // The expected texts are those of BuildKit's `solver/pb/json_test.go`.
    #[test]
    fn messages_are_written_as_buildkit_writes_them() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: ["echo", "Hello", "World"].map(str::to_owned).to_vec(),
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                readonly: true,
                ..pb::Mount::default()
            }],
            ..pb::ExecOp::default()
        };
        assert_eq!(
            to_string(&exec),
            r#"{"meta":{"args":["echo","Hello","World"]},"mounts":[{"dest":"/","readonly":true}]}"#
        );
        let file = pb::FileActionMkFile {
            path: "/foo".into(),
            data: b"Hello, World!".to_vec(),
            ..pb::FileActionMkFile::default()
        };
        assert_eq!(
            to_string(&file),
            r#"{"path":"/foo","data":"SGVsbG8sIFdvcmxkIQ=="}"#
        );
        let dir = pb::FileActionMkDir {
            path: "/foo/bar".into(),
            make_parents: true,
            timestamp: -1,
            ..pb::FileActionMkDir::default()
        };
        assert_eq!(
            to_string(&dir),
            r#"{"path":"/foo/bar","makeParents":true,"timestamp":-1}"#
        );
        let merge = pb::MergeOp {
            inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
        };
        assert_eq!(to_string(&merge), r#"{"inputs":[{},{"input":1}]}"#);
    }

    #[test]
    fn owners_have_an_object_of_their_own() {
        let by_id = |id| pb::UserOpt {
            user: Some(pb::user_opt::User::ById(id)),
        };
        let by_name = pb::UserOpt {
            user: Some(pb::user_opt::User::ByName(pb::NamedUserOpt {
                name: "foo".into(),
                input: 0,
            })),
        };
        assert_eq!(to_string(&by_name), r#"{"User":{"byName":{"name":"foo"}}}"#);
        assert_eq!(to_string(&by_id(2)), r#"{"User":{"byId":2}}"#);
        assert_eq!(to_string(&by_id(0)), r#"{"User":{}}"#);
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        for (text, expected) in [
            ("a && b > c < d", r#""a \u0026\u0026 b \u003e c \u003c d""#),
            (
                "\u{2028}\u{2029}\u{1}\u{7f}é",
                "\"\\u2028\\u2029\\u0001\u{7f}é\"",
            ),
            ("q\"\\\n\r\t\u{8}\u{c}/", r#""q\"\\\n\r\t\b\f/""#),
        ] {
            assert_eq!(to_string(&text.to_owned()), expected);
        }
        let nothing: Option<Vec<String>> = None;
        assert_eq!(to_string(&nothing), "null");
        assert_eq!(to_string(&Some(Vec::<String>::new())), "[]");
        assert_eq!(to_string(&vec![Base64(b"a")]), r#"["YQ=="]"#);
    }
}
