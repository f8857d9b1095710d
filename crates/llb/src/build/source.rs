//! Sources and their attributes (`solver/pb/attr.go`).

use std::collections::BTreeMap;

use cooper_proto::pb;

use super::node::{Kind, Node};
use super::{Constraints, State};
use crate::gojson;

/// How to pull an image.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// `default`, `pull` or `local`; `default` and empty say nothing.
    pub resolve_mode: String,
    /// The kind of the cache record; empty for an ordinary one.
    pub record_type: String,
}

/// Files of the client.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// The session; empty for any that has them.
    pub session: String,
    /// Only what matches.
    pub include: Vec<String>,
    /// Not what matches.
    pub exclude: Vec<String>,
    /// Only these paths, and what links on the way point at.
    pub follow: Vec<String>,
    /// Syncs with the same hint continue each other.
    pub shared_key_hint: String,
    /// Transfer all files anew instead of comparing their metadata.
    pub no_differ: bool,
}

/// A download.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// The digest that it must have; empty for any.
    pub checksum: String,
    /// The name of the file; empty for the one that the server says.
    pub filename: String,
}

/// A commit of a repository.
#[derive(Clone, Debug, Default)]
pub struct Git {
    /// `host/path`, the name that is the same for all protocols.
    pub id: String,
    /// The address.
    pub url: String,
    /// A branch, tag or commit; empty for the default branch.
    pub reference: String,
    /// A directory in it.
    pub subdir: String,
    /// The commit that it must be.
    pub checksum: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// Reached over ssh.
    pub ssh: bool,
}

/// An image in an OCI layout that a session serves.
#[derive(Clone, Debug, Default)]
pub struct OciLayout {
    /// The session.
    pub session: String,
    /// The store in it.
    pub store: String,
    /// Only as many of its lowest layers; 0 is all.
    pub layer_limit: u32,
}

type Attrs = BTreeMap<String, String>;

fn put(attrs: &mut Attrs, key: &str, value: &str) {
    if !value.is_empty() {
        attrs.insert(key.to_owned(), value.to_owned());
    }
}

/// A list as Go's JSON; nothing for an empty one.
fn list(values: &[String]) -> String {
    let mut out = String::new();
    if values.is_empty() {
        return out;
    }
    for (i, value) in values.iter().enumerate() {
        out.push(if i == 0 { '[' } else { ',' });
        gojson::Value::write(value, &mut out);
    }
    out.push(']');
    out
}

fn source(identifier: String, attrs: Attrs, constraints: Constraints) -> State {
    State::from_node(Node {
        kind: Kind::Source(pb::SourceOp { identifier, attrs }),
        inputs: Vec::new(),
        constraints,
    })
}

impl State {
    /// An image by its full name, such as `docker.io/library/alpine:latest`.
    pub fn image(reference: &str, image: Image, mut constraints: Constraints) -> Self {
        constraints.cap("source.image");
        let mut attrs = Attrs::new();
        if image.resolve_mode != "default" {
            put(&mut attrs, "image.resolvemode", &image.resolve_mode);
        }
        // Asked for where it is a matter of safety only.
        if image.resolve_mode == "pull" {
            constraints.cap("source.image.resolvemode");
        }
        put(&mut attrs, "image.recordtype", &image.record_type);
        source(format!("docker-image://{reference}"), attrs, constraints)
    }

    /// Files of the client, by the name that it gave them.
    pub fn local(name: &str, local: Local, mut constraints: Constraints) -> Self {
        let mut attrs = Attrs::new();
        for (key, value, cap) in [
            ("local.session", &local.session, "source.local.sessionid"),
            (
                "local.includepattern",
                &list(&local.include),
                "source.local.includepatterns",
            ),
            (
                "local.followpaths",
                &list(&local.follow),
                "source.local.followpaths",
            ),
            (
                "local.excludepatterns",
                &list(&local.exclude),
                "source.local.excludepatterns",
            ),
            (
                "local.sharedkeyhint",
                &local.shared_key_hint,
                "source.local.sharedkeyhint",
            ),
        ] {
            if !value.is_empty() {
                put(&mut attrs, key, value);
                constraints.cap(cap);
            }
        }
        if local.no_differ {
            put(&mut attrs, "local.differ", "none");
        }
        constraints.cap("source.local");
        source(format!("local://{name}"), attrs, constraints)
    }

    /// A download.
    pub fn http(url: &str, http: Http, mut constraints: Constraints) -> Self {
        let mut attrs = Attrs::new();
        put(&mut attrs, "http.checksum", &http.checksum);
        put(&mut attrs, "http.filename", &http.filename);
        if !http.checksum.is_empty() {
            constraints.cap("source.http.checksum");
        }
        constraints.cap("source.http");
        source(url.to_owned(), attrs, constraints)
    }

    /// A commit of a repository.
    pub fn git(git: Git, mut constraints: Constraints) -> Self {
        let mut identifier = format!("git://{}", git.id);
        if !git.reference.is_empty() || !git.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&git.reference);
            if !git.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&git.subdir);
            }
        }
        let mut attrs = Attrs::new();
        if git.keep_git_dir {
            put(&mut attrs, "git.keepgitdir", "true");
            constraints.cap("source.git.keepgitdir");
        }
        put(&mut attrs, "git.fullurl", &git.url);
        constraints.cap("source.git.fullurl");
        put(&mut attrs, "git.authtokensecret", "GIT_AUTH_TOKEN");
        put(&mut attrs, "git.authheadersecret", "GIT_AUTH_HEADER");
        if git.ssh {
            constraints.cap("source.git.knownsshhosts");
            put(&mut attrs, "git.mountsshsock", "default");
            constraints.cap("source.git.mountsshsock");
        }
        if !git.checksum.is_empty() {
            put(&mut attrs, "git.checksum", &git.checksum);
            constraints.cap("source.git.checksum");
        }
        if git.skip_submodules {
            put(&mut attrs, "git.skipsubmodules", "true");
            constraints.cap("source.git.skipsubmodules");
        }
        constraints.cap("source.git");
        source(identifier, attrs, constraints)
    }

    /// An image in an OCI layout that a session serves, by a name with a digest.
    pub fn oci_layout(reference: &str, layout: OciLayout, mut constraints: Constraints) -> Self {
        let mut attrs = Attrs::new();
        put(&mut attrs, "oci.session", &layout.session);
        put(&mut attrs, "oci.store", &layout.store);
        if layout.layer_limit > 0 {
            put(
                &mut attrs,
                "oci.layerlimit",
                &layout.layer_limit.to_string(),
            );
        }
        constraints.cap("source.ocilayout");
        source(format!("oci-layout://{reference}"), attrs, constraints)
    }
}
