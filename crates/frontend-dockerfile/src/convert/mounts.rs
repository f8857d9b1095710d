//! `RUN --mount`.

use cooper_dockerfile::{CacheSharing, Command, Mount, MountKind as Kind, Run, parse_mount};
use cooper_frontend::FrontendError;
use cooper_llb::build::{
    Constraints, Exec, FileAction, MountKind, MountSpec, Owner, SecretSpec, SshSpec, State,
    normalize,
};
use cooper_proto::pb;
use cooper_session::pattern::clean;

use super::args::Vars;
use super::config::is_absolute;
use super::outline::Wanted;
use super::walk::rooted;
use super::{Converter, Result};

impl Converter<'_> {
    /// Adds the mounts of a `RUN`, and gives the names of variables that hold secrets.
    pub(super) fn mounts(
        &mut self,
        place: usize,
        command: &Command,
        run: &Run,
        sources: &[Option<usize>],
        exec: &mut Exec,
    ) -> Result<Vec<String>> {
        let env = self.stages[place].state.env().clone();
        let mut masked = Vec::new();
        for (i, text) in run.mounts.iter().enumerate() {
            let lex = self.lex.clone();
            let mut unmatched = std::collections::BTreeSet::new();
            let mut expand = |word: &str| {
                let expanded = lex.expand(word, &Vars(&env))?;
                unmatched.extend(expanded.unmatched);
                Ok(expanded.text)
            };
            let mount = parse_mount(text, Some(&mut expand));
            self.check_unmatched(place, command, unmatched);
            let mount = mount.map_err(|error| FrontendError::invalid(error.to_string()))?;
            match mount.kind {
                Kind::Secret => {
                    masked.extend(mount.env.clone());
                    exec.secrets.push(self.secret(place, command, &mount)?);
                }
                Kind::Ssh => exec.ssh.push(self.ssh(place, command, &mount)?),
                _ => {
                    let source = sources.get(i).copied().flatten();
                    exec.mounts.push(self.mount(place, &mount, source)?);
                }
            }
        }
        Ok(masked)
    }

    fn mount(&mut self, place: usize, mount: &Mount, source: Option<usize>) -> Result<MountSpec> {
        let mut state = match (mount.kind, source) {
            (Kind::Tmpfs, _) | (Kind::Cache, None) => State::scratch(),
            (_, None) => self.context_state(),
            (_, Some(from)) => {
                if !self.stages[from].dispatched {
                    return Err(FrontendError::invalid(format!(
                        "cannot mount from stage {:?} to {:?}, stage needs to be defined before current command",
                        mount.from, mount.target
                    )));
                }
                self.stages[from].state.clone()
            }
        };
        let target = if is_absolute(&mount.target) {
            mount.target.clone()
        } else {
            let dir = self.stages[place].state.current_dir();
            normalize(dir, &mount.target, false)
        };
        if clean(&target) == "/" {
            return Err(FrontendError::invalid(format!(
                "invalid mount target {target:?}"
            )));
        }
        let path = rooted(&mount.source);
        let mut selector = if path == "/" {
            String::new()
        } else {
            path.clone()
        };
        if selector.is_empty()
            && (mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some())
        {
            state = self.owned_cache(place, mount, &state);
            selector = "/cache".into();
        }
        match (mount.kind, source) {
            (Kind::Bind, None) => {
                self.stages[place].context_paths.insert(path);
            }
            (_, Some(from)) => self.stages[from].use_path(&path),
            _ => {}
        }
        let kind = match mount.kind {
            Kind::Cache => {
                let id = match mount.id.as_str() {
                    "" => clean(&mount.target),
                    id => id.to_owned(),
                };
                let namespace = &self.request.options.cache_namespace;
                MountKind::Cache {
                    id: format!("{namespace}/{id}"),
                    sharing: match mount.sharing {
                        None | Some(CacheSharing::Shared) => pb::CacheSharingOpt::Shared,
                        Some(CacheSharing::Private) => pb::CacheSharingOpt::Private,
                        Some(CacheSharing::Locked) => pb::CacheSharingOpt::Locked,
                    },
                }
            }
            Kind::Tmpfs => MountKind::Tmpfs { size: mount.size },
            _ => MountKind::Bind,
        };
        Ok(MountSpec {
            target,
            source: state,
            selector,
            read_only: mount.read_only,
            no_output: mount.kind == Kind::Bind && !mount.read_only,
            kind,
        })
    }

    /// A directory with the owner and the permissions that a new cache is to have.
    fn owned_cache(&self, place: usize, mount: &Mount, state: &State) -> State {
        let platform = self.stages[place].platform(&self.platforms.target).clone();
        let action = FileAction::Mkdir {
            path: "/cache".into(),
            mode: mount.mode.unwrap_or(0o755),
            make_parents: false,
            owner: Some(Owner::ids(
                mount.uid.unwrap_or_default(),
                mount.gid.unwrap_or_default(),
            )),
            created: None,
        };
        let name = "[internal] setting cache mount permissions";
        state.file(vec![action], Constraints::named(name).platform(platform))
    }

    fn secret(&mut self, place: usize, command: &Command, mount: &Mount) -> Result<SecretSpec> {
        let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let id = match (mount.source.as_str(), mount.id.as_str()) {
            ("", "") if mount.target.is_empty() => {
                return Err(FrontendError::invalid("one of source, target required"));
            }
            ("", "") => base(&mount.target),
            ("", id) => id.to_owned(),
            (source, _) => source.to_owned(),
        };
        let target = match (mount.target.as_str(), &mount.env) {
            ("", None) => Some(format!("/run/secrets/{}", base(&id))),
            ("", Some(_)) => None,
            (target, _) => Some(target.to_owned()),
        };
        let wanted = Wanted {
            required: mount.required,
            span: command.span,
        };
        let capture = &mut self.stages[place].capture;
        capture.secrets.entry(id.clone()).or_insert(wanted);
        Ok(SecretSpec {
            target,
            env: mount.env.clone(),
            options: pb::SecretOpt {
                id,
                uid: mount.uid.unwrap_or_default(),
                gid: mount.gid.unwrap_or_default(),
                mode: mount.mode.unwrap_or(0o400),
                optional: !mount.required,
            },
        })
    }

    fn ssh(&mut self, place: usize, command: &Command, mount: &Mount) -> Result<SshSpec> {
        if !mount.source.is_empty() {
            return Err(FrontendError::invalid("ssh does not support source"));
        }
        let id = match mount.id.as_str() {
            "" => "default".to_owned(),
            id => id.to_owned(),
        };
        let wanted = Wanted {
            required: mount.required,
            span: command.span,
        };
        let capture = &mut self.stages[place].capture;
        capture.ssh.entry(id.clone()).or_insert(wanted);
        Ok(SshSpec {
            target: mount.target.clone(),
            options: pb::SshOpt {
                id,
                uid: mount.uid.unwrap_or_default(),
                gid: mount.gid.unwrap_or_default(),
                mode: mount.mode.unwrap_or(0o600),
                optional: !mount.required,
            },
        })
    }
}
