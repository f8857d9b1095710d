//! Which commit a name stands for now, as the server says.

use super::program::Program;
use super::spec::{Spec, is_commit};
use crate::SourceError;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// The full name, `refs/heads/main`; of a commit its own.
    pub(super) reference: String,
    /// The commit, or the tag that has a text of its own.
    pub(super) object: String,
    /// The commit that such a tag names.
    pub(super) peeled: Option<String>,
    /// Whether the tag matters: its text is kept with the files.
    pub(super) keep_tag: bool,
}

impl Resolved {
    /// The commit that the key is made of.
    pub(super) fn key_commit(&self) -> &str {
        match &self.peeled {
            Some(commit) if !self.keep_tag => commit,
            _ => &self.object,
        }
    }

    /// The same for another that wants the same name, if it may be that.
    pub(super) fn shared_with(&self, spec: &Spec) -> Option<Self> {
        let objects = [Some(&self.object), self.peeled.as_ref()];
        let mut objects = objects.into_iter().flatten();
        let fits = objects.any(|object| object.starts_with(&spec.checksum));
        fits.then(|| Self {
            keep_tag: spec.keep_git_dir,
            ..self.clone()
        })
    }

    pub(super) fn is_sha256(&self) -> bool {
        self.object.len() == 64
    }
}

pub(super) async fn resolve(git: &Program<'_>, spec: &Spec) -> Result<Resolved, SourceError> {
    let reference = match spec.reference.as_str() {
        "" => default_branch(git, spec).await?,
        reference => reference.to_owned(),
    };
    let peeled = format!("{reference}^{{}}");
    let answer = git
        .run(&["ls-remote", &spec.remote, &reference, &peeled])
        .await
        .map_err(|error| error.at(format!("failed to fetch remote {}", spec.shown())))?;
    choose(spec, &reference, &answer)
}

/// The branch that a clone checks out.
pub(super) async fn default_branch(git: &Program<'_>, spec: &Spec) -> Result<String, SourceError> {
    let answer = git
        .run(&["ls-remote", "--symref", &spec.remote, "HEAD"])
        .await
        .map_err(|error| {
            let shown = spec.shown();
            error.at(format!(
                "error fetching default branch for repository {shown}"
            ))
        })?;
    let branch = answer
        .split_once("refs/heads/")
        .and_then(|(_, rest)| rest.split_whitespace().next());
    branch
        .map(str::to_owned)
        .ok_or_else(|| SourceError::GitNoBranch { url: spec.shown() })
}

/// The object among those that the server named. A branch comes before a tag of the same name,
/// as `git checkout` has it.
fn choose(spec: &Spec, reference: &str, answer: &str) -> Result<Resolved, SourceError> {
    let full = |prefix: &str| {
        let name = reference.strip_prefix(prefix).unwrap_or(reference);
        format!("{prefix}{name}")
    };
    let find = |name: &str| {
        let mut lines = answer.lines().filter_map(|line| line.split_once('\t'));
        lines.find(|(_, found)| *found == name)
    };
    let tag = full("refs/tags/");
    let found = [full("refs/"), full("refs/heads/"), tag.clone()]
        .into_iter()
        .find_map(|name| Some((find(&name)?.0, name)));
    let Some((object, name)) = found else {
        return Err(SourceError::GitNoReference {
            reference: reference.to_owned(),
            output: answer.to_owned(),
        });
    };
    if !is_commit(object) {
        return Err(SourceError::GitNoCommit {
            object: object.to_owned(),
        });
    }
    let peeled = find(&format!("{tag}^{{}}")).map(|(object, _)| object);
    let peeled = peeled.filter(|peeled| name == tag && is_commit(peeled));
    let matches = |object: &str| object.starts_with(&spec.checksum);
    if !matches(object) && !peeled.is_some_and(matches) {
        let found = match peeled {
            Some(peeled) => format!("{object} or {peeled}"),
            None => object.to_owned(),
        };
        return Err(spec.mismatch(found));
    }
    Ok(Resolved {
        object: object.to_owned(),
        peeled: peeled.map(str::to_owned),
        keep_tag: spec.keep_git_dir,
        reference: name,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn branches_come_before_tags() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let both = format!("{a}\trefs/heads/x\n{b}\trefs/tags/x\n{c}\trefs/tags/x^{{}}\n");
        let tags = format!("{b}\trefs/tags/x\n{c}\trefs/tags/x^{{}}\n");
        let spec = |checksum: &str, keep_git_dir| Spec {
            checksum: checksum.into(),
            keep_git_dir,
            ..Spec::default()
        };
        let chosen = |answer: &str, name: &str| choose(&spec("", false), name, answer).unwrap();
        let branch = chosen(&both, "x");
        assert_eq!((&branch.object, branch.peeled.as_ref()), (&a, None));
        assert_eq!(branch.reference, "refs/heads/x");
        let tag = chosen(&tags, "x");
        assert_eq!((&tag.object, tag.key_commit()), (&b, c.as_str()));
        assert_eq!(chosen(&both, "refs/tags/x"), tag);
        let kept = choose(&spec("c", true), "x", &tags).unwrap();
        assert_eq!(kept.key_commit(), b);
        assert_eq!(
            choose(&spec("d", false), "x", &tags)
                .unwrap_err()
                .to_string(),
            format!("expected checksum to match d, got {b} or {c}")
        );
        assert_eq!(
            choose(&spec("", false), "y", "").unwrap_err().to_string(),
            "repository does not contain ref y, output: \"\""
        );
        // Of a branch `a/x` there is no branch `x`.
        let longer = format!("{a}\trefs/heads/a/x\n");
        assert!(choose(&spec("", false), "x", &longer).is_err());
    }
}
