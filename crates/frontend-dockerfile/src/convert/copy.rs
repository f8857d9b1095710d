//! `COPY` and `ADD`.

use cooper_dockerfile::{Add, Command, Copy, SourcesAndDest};
use cooper_frontend::FrontendError;
use cooper_llb::build::{
    ChmodSpec, Constraints, CopySpec, FileAction, Http, Owner, State, join, normalize,
};
use cooper_llb::{Digest, digest_of};
use cooper_session::pattern::has_wildcards;

use super::{Converter, Result};
use crate::context::internal;
use crate::gitref::{GitRef, Parsed, is_git, is_http};
use crate::source::ranges;

/// One of the two, with what they have in common.
pub(super) struct CopyOrAdd {
    sources: SourcesAndDest,
    source: State,
    is_add: bool,
    chown: String,
    chmod: String,
    link: bool,
    parents: bool,
    exclude: Vec<String>,
    keep_git_dir: Option<bool>,
    checksum: String,
    unpack: Option<bool>,
    /// The source is the build context, to which the ignore file goes.
    pub(super) from_context: bool,
}

impl CopyOrAdd {
    pub(super) fn copy(copy: Copy, source: State, from_context: bool) -> Self {
        Self {
            sources: copy.sources,
            source,
            is_add: false,
            chown: copy.chown,
            chmod: copy.chmod,
            link: copy.link,
            parents: copy.parents,
            exclude: copy.exclude,
            keep_git_dir: None,
            checksum: String::new(),
            unpack: None,
            from_context,
        }
    }

    pub(super) fn add(add: Add, source: State) -> Self {
        Self {
            sources: add.sources,
            source,
            is_add: true,
            chown: add.chown,
            chmod: add.chmod,
            link: add.link,
            parents: false,
            exclude: add.exclude,
            keep_git_dir: add.keep_git_dir,
            checksum: add.checksum,
            unpack: add.unpack,
            from_context: true,
        }
    }

    fn check_checksum(&self) -> Result<()> {
        if self.checksum.is_empty() {
            return Ok(());
        }
        let [source] = self.sources.paths.as_slice() else {
            return Err(FrontendError::invalid(
                "checksum can't be specified for multiple sources",
            ));
        };
        if !is_http(source) && !is_git(source) {
            return Err(FrontendError::invalid(
                "checksum requires HTTP(S) or Git sources",
            ));
        }
        Ok(())
    }

    /// What the history says, but for the sources.
    fn message(&self) -> String {
        let mut message = if self.is_add { "ADD" } else { "COPY" }.to_owned();
        if self.parents {
            message.push_str(" --parents");
        }
        for (flag, value) in [("chown", &self.chown), ("chmod", &self.chmod)] {
            if !value.is_empty() {
                message.push_str(&format!(" --{flag}={value}"));
            }
        }
        message
    }
}

impl Converter<'_> {
    pub(super) fn copy(&mut self, place: usize, command: &Command, cfg: CopyOrAdd) -> Result<()> {
        let dest = self.absolute(place, &cfg.sources.dest);
        let common = CopySpec {
            dest,
            owner: (!cfg.chown.is_empty()).then(|| Owner::parse(&cfg.chown)),
            mode: chmod(&cfg.chmod)?,
            create_dest_path: true,
            exclude: cfg.exclude.clone(),
            ..CopySpec::default()
        };
        cfg.check_checksum()?;
        let mut message = cfg.message();
        let title = {
            let env = self.stages[place].state.env().clone();
            super::names::shown(&self.lex, &command.code, &super::args::Vars(&env))
        };
        let name = self.prefixed(place, &title);

        let mut actions = Vec::new();
        for path in &cfg.sources.paths {
            message.push_str(&format!(" {path}"));
            // The flag makes no sense for anything else.
            let copy = match GitRef::parse_as(path, cfg.keep_git_dir.is_some()) {
                Parsed::Invalid(error) => return Err(FrontendError::invalid(error)),
                Parsed::Git(git) if !git.could_be_local => {
                    repository(&cfg, &git, &name, common.clone())?
                }
                _ if is_http(path) => download(&cfg, path, &name, common.clone())?,
                _ => {
                    self.check_ignored(command, &cfg, path);
                    files(&cfg, path, common.clone())
                }
            };
            actions.push(FileAction::Copy(Box::new(copy)));
        }
        let platform = self.stages[place].platform(&self.platforms.target).clone();
        for content in &cfg.sources.contents {
            message.push_str(&format!(" <<{}", content.path));
            let file = FileAction::Mkfile {
                path: content.path.clone(),
                mode: 0o644,
                data: content.data.clone().into_bytes(),
                owner: None,
                created: None,
            };
            let source = State::scratch().file(
                vec![file],
                internal("preparing inline document").platform(platform.clone()),
            );
            actions.push(FileAction::Copy(Box::new(CopySpec {
                source,
                src: content.path.clone(),
                ..common.clone()
            })));
        }
        message.push_str(&format!(" {}", cfg.sources.dest));

        let constraints = |name: String, this: &Self| {
            Constraints::named(name)
                .location(&this.source.map, ranges(command.span))
                .ignore_cache(this.stages[place].ignore_cache)
        };
        let linked = cfg.link && cfg.chmod.is_empty() && self.has_cap("mergeop");
        let state = self.stages[place].state.clone();
        let state = if linked {
            // The copy and the merge show as one.
            let group = group_id(&name, self.platforms.target.architecture.as_str());
            self.stages[place].step -= 1;
            let link = self.prefixed(place, &format!("LINK {title}"));
            let layer = State::scratch().file(
                actions,
                constraints(name.clone(), self)
                    .platform(platform)
                    .progress_group(&group, &name, true),
            );
            let merged = State::merge(
                &[state.clone(), layer],
                constraints(link, self).progress_group(&group, &name, false),
            );
            state.with_output(merged.output().cloned())
        } else {
            state.file(actions, constraints(name, self))
        };
        let stage = &mut self.stages[place];
        stage.state = state;
        stage.commit(message, true, true);
        Ok(())
    }
}

/// An id that differs between the steps of a build.
fn group_id(name: &str, salt: &str) -> String {
    let digest = digest_of(format!("{salt} {name}").as_bytes()).to_string();
    digest["sha256:".len()..][..25].to_owned()
}

fn repository(cfg: &CopyOrAdd, git: &GitRef, name: &str, common: CopySpec) -> Result<CopySpec> {
    if !cfg.is_add {
        return Err(FrontendError::invalid("source can't be a git ref for COPY"));
    }
    if let (Some(flag), Some(query)) = (cfg.keep_git_dir, git.keep_git_dir)
        && flag != query
    {
        return Err(FrontendError::invalid(
            "inconsistent keep-git-dir configuration",
        ));
    }
    let keep = git.keep_git_dir.or(cfg.keep_git_dir).unwrap_or(false);
    let checksum = match (cfg.checksum.as_str(), git.checksum.as_str()) {
        (flag, "") => flag,
        ("", query) => query,
        (flag, query) if flag == query => flag,
        (flag, query) => {
            return Err(FrontendError::invalid(format!(
                "checksum mismatch {flag:?} != {query:?}"
            )));
        }
    };
    Ok(CopySpec {
        source: git.state(keep, checksum, Constraints::named(name)),
        src: "/".into(),
        ..common
    })
}

fn download(cfg: &CopyOrAdd, url: &str, name: &str, common: CopySpec) -> Result<CopySpec> {
    if !cfg.is_add {
        return Err(FrontendError::invalid("source can't be a URL for COPY"));
    }
    if !cfg.checksum.is_empty() {
        check_digest(&cfg.checksum)?;
    }
    let filename = filename(url);
    let http = Http {
        checksum: cfg.checksum.clone(),
        filename: filename.clone(),
    };
    let constraints = Constraints::named(name).describe("com.docker.dockerfile.v1.command", "");
    Ok(CopySpec {
        source: State::http(url, http, constraints),
        src: filename,
        attempt_unpack: cfg.unpack.unwrap_or(false),
        ..common
    })
}

/// Refuses what is no digest, as Go's `digest` package words it.
pub(super) fn check_digest(text: &str) -> Result<()> {
    let wrong = |reason: &str| Err(FrontendError::invalid(reason));
    let Some((algorithm, hex)) = text.split_once(':') else {
        return wrong("invalid checksum digest format");
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ if algorithm.is_empty() || hex.is_empty() => {
            return wrong("invalid checksum digest format");
        }
        _ => return wrong("unsupported digest algorithm"),
    };
    if hex.len() != length {
        return wrong("invalid checksum digest length");
    }
    match text.parse::<Digest>() {
        Ok(_) => Ok(()),
        Err(_) => wrong("invalid checksum digest format"),
    }
}

/// The name that a download is kept under.
pub(super) fn filename(address: &str) -> String {
    let last = url::Url::parse(address).ok().and_then(|url| {
        let path = percent_decode(url.path());
        path.trim_end_matches('/')
            .rsplit('/')
            .next()
            .map(str::to_owned)
    });
    last.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "__unnamed__".to_owned())
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let digits = [ahead.next(), ahead.next()];
        let value = match (byte, digits) {
            (b'%', [Some(a), Some(b)]) => std::str::from_utf8(&[a, b])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        match value {
            Some(value) => {
                out.push(value);
                bytes = ahead;
            }
            None => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn files(cfg: &CopyOrAdd, path: &str, common: CopySpec) -> CopySpec {
    let mut src = path.to_owned();
    let mut include = Vec::new();
    let mut required_paths = Vec::new();
    if cfg.parents {
        // `a/./b/c` keeps `b` above `c` and drops `a`.
        let (parent, pattern) = path.split_once("/./").unwrap_or(("/", path));
        let pattern = join("/", pattern);
        if !has_wildcards(parent) && !has_wildcards(&pattern) {
            let below = pattern.trim_start_matches('/');
            required_paths.push(join("/", &format!("{parent}/{below}")));
        }
        include.push(pattern.trim_start_matches('/').to_owned());
        src = parent.to_owned();
    }
    CopySpec {
        source: cfg.source.clone(),
        src: normalize("/", &src, false),
        follow_symlinks: true,
        dir_contents_only: true,
        include,
        required_paths,
        attempt_unpack: cfg.unpack.unwrap_or(cfg.is_add),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..common
    }
}

/// `--chmod`: an octal number, or what `chmod` takes.
fn chmod(text: &str) -> Result<Option<ChmodSpec>> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || {
        FrontendError::invalid(format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        ))
    };
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o7777 => Ok(Some(ChmodSpec::Bits(bits))),
        Ok(_) => Err(wrong()),
        Err(_) if text.starts_with(|c: char| c.is_ascii_digit()) => Err(wrong()),
        Err(_) if is_symbolic(text) => Ok(Some(ChmodSpec::Text(text.to_owned()))),
        Err(_) => Err(wrong()),
    }
}

/// `u=rwX,go+r-w` and the like.
fn is_symbolic(text: &str) -> bool {
    text.split(',').all(|clause| {
        let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let mut parts = rest.split(['+', '-', '=']);
        parts.next() == Some("")
            && rest.len() > 1
            && parts.all(|perms| perms.chars().all(|c| "rwxXstugo".contains(c)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn permissions() {
        assert_eq!(chmod("").unwrap(), None);
        assert_eq!(chmod("0755").unwrap(), Some(ChmodSpec::Bits(0o755)));
        assert_eq!(chmod("7777").unwrap(), Some(ChmodSpec::Bits(0o7777)));
        for text in ["u=rwX,go=rX", "+x", "a-w", "u+x-w", "g=u"] {
            assert_eq!(
                chmod(text).unwrap(),
                Some(ChmodSpec::Text(text.into())),
                "{text}"
            );
        }
        for text in ["8", "10000", "0x5", "foo", "u", "u=q", "="] {
            let error = chmod(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid chmod parameter: '"), "{text}");
        }
    }

    #[test]
    fn downloads_have_names() {
        for (url, name) in [
            ("https://h/a/b.tar?x=y#z", "b.tar"),
            ("https://h/a%20b", "a b"),
            ("https://h/a/", "a"),
            ("https://h/", "__unnamed__"),
            ("https://h", "__unnamed__"),
        ] {
            assert_eq!(filename(url), name, "{url}");
        }
    }
}
