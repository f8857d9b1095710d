//! Named contexts (`context:<name>` options): what stands in for an image or a stage.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use cooper_frontend::{FrontendError, ImageOptions, OciLayout as LayoutOptions};
use cooper_llb::build::{
    Constraints, Deferred, Http, Image as ImageSource, Local, OciLayout, State,
};
use cooper_llb::platform;
use cooper_proto::pb;
use cooper_registry::Reference;

use crate::context::{Request, git_context, unresolved};
use crate::image::{Image, key_value};

/// Paths that a stage's files are used by.
pub(crate) type Paths = Arc<Mutex<BTreeSet<String>>>;

/// A context that was asked for by a name that a client has given a meaning.
#[derive(Clone, Debug)]
pub(crate) struct NamedContext {
    input: String,
    /// The name, as it is shown.
    name: String,
    /// The name with the platform that it is for, if the client said one.
    key: String,
    shared_key: String,
    platform: Option<pb::Platform>,
}

/// What a named context is.
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) image: Option<Image>,
    /// A local source that is written when all paths are known.
    pub(crate) pending: Option<PendingLocal>,
}

/// A local source whose filter is not yet known.
pub(crate) struct PendingLocal {
    deferred: Deferred,
    name: String,
    title: String,
    session: String,
    hint: String,
    exclude: Vec<String>,
    paths: Paths,
}

impl PendingLocal {
    /// Fills in the source with the paths that were used.
    pub(crate) fn finish(self) {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let state = State::local(
            &self.name,
            Local {
                session: self.session,
                exclude: self.exclude,
                follow: follow_paths(&paths),
                shared_key_hint: self.hint,
                ..Local::default()
            },
            Constraints::named(self.title),
        );
        self.deferred.fill(state.output().cloned());
    }
}

/// The paths relative to the root; nothing when all of it is used.
pub(crate) fn follow_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut follow: Vec<_> = paths
        .iter()
        .map(|path| path.trim_start_matches('/').to_owned())
        .collect();
    follow.sort();
    follow
}

impl Request {
    /// The context that the client named `name`, for this platform or for any.
    pub(crate) fn named_context(
        &self,
        name: &str,
        platform: Option<&pb::Platform>,
    ) -> Result<Option<NamedContext>, FrontendError> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return Ok(None);
        }
        let reference = Reference::parse_named(name).map_err(|error| FrontendError::Invalid {
            message: format!("invalid context name {name}"),
            location: None,
            source: Some(Box::new(error)),
        })?;
        let familiar = reference.familiar();
        let short = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let shown = platform.cloned().unwrap_or_else(platform::host);
        let with_platform = format!(
            "{short}::{}",
            platform::format_all(&platform::normalize(&shown))
        );
        for key in [with_platform.as_str(), short] {
            if let Some(input) = self.options.raw.get(&format!("context:{key}")) {
                let shared_key = self.options.raw.get(&format!("sharedkey:localdir:{key}"));
                return Ok(Some(NamedContext {
                    input: input.clone(),
                    name: short.to_owned(),
                    key: key.to_owned(),
                    shared_key: shared_key.cloned().unwrap_or_default(),
                    platform: platform.cloned(),
                }));
            }
        }
        Ok(None)
    }

    /// Finds out what a named context is.
    pub(crate) async fn load_named(
        &self,
        named: &NamedContext,
        paths: &Paths,
    ) -> Result<Loaded, FrontendError> {
        let plain = |state| Loaded {
            state,
            image: None,
            pending: None,
        };
        let (input, key) = (&named.input, &named.key);
        let Some((scheme, rest)) = input.split_once(':') else {
            return Err(FrontendError::invalid(format!(
                "invalid context specifier {input} for {key}"
            )));
        };
        // ssh addresses may come without a scheme.
        let scheme = if scheme.starts_with("git@") {
            "git"
        } else {
            scheme
        };
        match scheme {
            "docker-image" => {
                self.image_context(named, rest.trim_start_matches("//"))
                    .await
            }
            "oci-layout" => {
                self.layout_context(named, rest.trim_start_matches("//"))
                    .await
            }
            "git" => match git_context(input, None)? {
                Some(state) => Ok(plain(state)),
                None => Err(FrontendError::invalid(format!(
                    "invalid git context {input}"
                ))),
            },
            "http" | "https" => {
                if let Some(state) = git_context(input, None)? {
                    return Ok(plain(state));
                }
                let http = Http {
                    filename: "context".into(),
                    ..Http::default()
                };
                let constraints = Constraints::named(format!("[context {key}] {input}"));
                Ok(plain(State::http(input, http, constraints)))
            }
            "local" => self.local_context(named, rest, paths).await,
            "input" => self.input_context(named, rest),
            other => Err(FrontendError::invalid(format!(
                "unsupported context source {other} for {key}"
            ))),
        }
    }

    async fn image_context(
        &self,
        named: &NamedContext,
        name: &str,
    ) -> Result<Loaded, FrontendError> {
        if name == "scratch" {
            return Ok(Loaded {
                state: State::scratch(),
                image: None,
                pending: None,
            });
        }
        let reference = Reference::parse(name)
            .map_err(|error| FrontendError::bridge(format!("failed to parse {name}"), error))?;
        let key = &named.key;
        let full = reference.to_string();
        let resolved = self
            .bridge
            .resolve_image_config(
                &full,
                ImageOptions {
                    log_name: format!("[context {key}] load metadata for {name}"),
                    platform: named.platform.clone(),
                    resolve_mode: self.options.resolve_mode.clone(),
                    ..ImageOptions::default()
                },
            )
            .await
            .map_err(|error| unresolved(&full, error))?;
        let mut constraints = Constraints::named(format!("[context {key}] {name}"));
        constraints.platform.clone_from(&named.platform);
        let state = State::image(&resolved.reference, ImageSource::default(), constraints);
        with_config(state, &resolved.config)
    }

    async fn layout_context(
        &self,
        named: &NamedContext,
        spec: &str,
    ) -> Result<Loaded, FrontendError> {
        let (store, digest) = match spec.split_once('@') {
            Some((store, digest)) => (store.split(':').next().unwrap_or(store), digest),
            None => {
                return Err(FrontendError::invalid(format!(
                    "oci-layout reference {spec:?} has no digest"
                )));
            }
        };
        let unreadable = |error| FrontendError::Invalid {
            message: format!("could not parse oci-layout reference {spec:?}"),
            location: None,
            source: Some(error),
        };
        let digest = digest
            .parse()
            .map_err(|error| unreadable(Box::new(error)))?;
        let dummy = Reference::parse_named(&named.name)
            .map_err(|error| unreadable(Box::new(error)))?
            .with_digest(&digest)
            .to_string();
        let key = &named.key;
        let session = self.build_opts().session_id.clone();
        let resolved = self
            .bridge
            .resolve_image_config(
                &dummy,
                ImageOptions {
                    log_name: format!("[context {key}] load metadata for {dummy}"),
                    platform: named.platform.clone(),
                    oci_layout: Some(LayoutOptions {
                        session_id: session.clone(),
                        store_id: store.to_owned(),
                    }),
                    ..ImageOptions::default()
                },
            )
            .await
            .map_err(|error| unresolved(&dummy, error))?;
        let mut constraints = Constraints::named(format!("[context {key}] OCI load from client"));
        constraints.platform.clone_from(&named.platform);
        let layout = OciLayout {
            session,
            store: store.to_owned(),
            ..OciLayout::default()
        };
        with_config(
            State::oci_layout(&dummy, layout, constraints),
            &resolved.config,
        )
    }

    async fn local_context(
        &self,
        named: &NamedContext,
        name: &str,
        paths: &Paths,
    ) -> Result<Loaded, FrontendError> {
        let key = &named.key;
        let session = self.options.session(name, self.build_opts()).to_owned();
        let exclude = self
            .named_ignore(
                name,
                &session,
                format!("context:{key}-.dockerignore"),
                format!("[context {key}] load .dockerignore"),
            )
            .await?;
        let deferred = Deferred::default();
        Ok(Loaded {
            state: State::deferred(&deferred),
            image: None,
            pending: Some(PendingLocal {
                deferred,
                name: name.to_owned(),
                title: format!("[context {key}] load from client"),
                session,
                hint: format!("context:{key}-{}", named.shared_key),
                exclude,
                paths: paths.clone(),
            }),
        })
    }

    fn input_context(&self, named: &NamedContext, name: &str) -> Result<Loaded, FrontendError> {
        let key = &named.key;
        let Some(state) = self.input(name)? else {
            return Err(FrontendError::invalid(format!(
                "invalid input {name} for {key}"
            )));
        };
        let Some(text) = self.options.raw.get(&format!("input-metadata:{name}")) else {
            return Ok(Loaded {
                state,
                image: None,
                pending: None,
            });
        };
        // As Go has it: an object whose values are base64.
        let unreadable =
            || FrontendError::invalid(format!("failed to parse input metadata {text}"));
        let metadata: std::collections::BTreeMap<String, String> =
            serde_json::from_str(text).map_err(|_| unreadable())?;
        match metadata.get("containerimage.config") {
            Some(config) => {
                use base64::Engine as _;
                let config = base64::engine::general_purpose::STANDARD
                    .decode(config)
                    .map_err(|_| unreadable())?;
                with_config(state, &config)
            }
            None => Ok(Loaded {
                state,
                image: None,
                pending: None,
            }),
        }
    }
}

/// A state in the environment that an image's configuration says.
fn with_config(mut state: State, config: &[u8]) -> Result<Loaded, FrontendError> {
    let mut image: Image = serde_json::from_slice(config)
        .map_err(|error| FrontendError::bridge("failed to parse image config", error))?;
    image.created = None;
    for line in &image.config.env {
        let (key, value) = key_value(line);
        state = state.add_env(key, value);
    }
    if !image.config.user.is_empty() {
        state = state.user(&image.config.user);
    }
    if !image.config.working_dir.is_empty() {
        state = state.dir(&image.config.working_dir);
    }
    if !image.architecture.is_empty() && !image.os.is_empty() {
        state = state.platform(&image.platform());
    }
    Ok(Loaded {
        state,
        image: Some(image),
        pending: None,
    })
}
