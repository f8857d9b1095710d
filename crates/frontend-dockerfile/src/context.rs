//! Where a build's files come from (`frontend/dockerui`): the Dockerfile, its ignore file and
//! the build context, local or remote.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cooper_dockerfile::Span;
use cooper_frontend::{
    Bridge, BuildOpts, FileRange, FrontendError, ImageOptions, Inputs, Reference, ResolvedImage,
    SolveRequest,
};
use cooper_llb::build::{
    Constraints, CopySpec, FileAction, Http, Local, MarshalOptions, SourceMap, State, join,
};
use cooper_llb::{Digest, platform};
use cooper_proto::pb;
use cooper_session::pattern::read_ignore_file;
use prost::Message;
use tokio::sync::OnceCell;

use crate::gitref::{GitRef, Parsed};
use crate::gotext::parse_bool;
use crate::options::Options;
use crate::source::Source;

/// Bytes: nobody writes a longer one.
const MAX_DOCKERFILE: u64 = (16 << 20) - 1;
const DOCKERFILE: &str = "Dockerfile";
const IGNORE_FILE: &str = ".dockerignore";
/// The file that a downloaded context is.
const HTTP_FILE: &str = "context";

/// One request of a client.
pub(crate) struct Request {
    pub(crate) bridge: Arc<dyn Bridge>,
    pub(crate) options: Options,
    pub(crate) inputs: Inputs,
    /// The ignore file beside the Dockerfile, if there is one.
    own_ignore: Mutex<Option<Vec<u8>>>,
    files: OnceCell<Files>,
    ignore: OnceCell<Arc<Vec<String>>>,
    /// Images that were looked up, by name and platform: several stages have the same base.
    images: Mutex<HashMap<(String, String), Lookup>>,
}

type Lookup = Arc<OnceCell<ResolvedImage>>;

/// Where the files are.
struct Files {
    /// The context, if it is not local.
    context: Option<State>,
    /// Where the Dockerfile is, if it is not local.
    dockerfile: Option<State>,
    context_name: String,
    dockerfile_name: String,
    filename: String,
}

impl Request {
    pub(crate) fn new(bridge: Arc<dyn Bridge>, options: Options, inputs: Inputs) -> Self {
        Self {
            bridge,
            options,
            inputs,
            own_ignore: Mutex::new(None),
            files: OnceCell::new(),
            ignore: OnceCell::new(),
            images: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn build_opts(&self) -> &BuildOpts {
        self.bridge.build_opts()
    }

    pub(crate) fn marshal_options(&self) -> MarshalOptions {
        MarshalOptions {
            platform: None,
            caps: Some(self.build_opts().llb_caps.clone()),
            local_unique_id: self.build_opts().session_id.clone(),
        }
    }

    /// A graph for an input that was given by name.
    pub(crate) fn input(&self, name: &str) -> Result<Option<State>, FrontendError> {
        self.inputs
            .get(name)
            .map(|definition| {
                State::definition(Arc::new(definition.clone()))
                    .map_err(|error| FrontendError::bridge("failed to get frontend inputs", error))
            })
            .transpose()
    }

    /// Builds a graph that has one reference.
    pub(crate) async fn solve(
        &self,
        definition: pb::Definition,
        evaluate: bool,
    ) -> Result<Option<Arc<dyn Reference>>, FrontendError> {
        let request = SolveRequest {
            definition: Some(definition),
            evaluate,
            ..SolveRequest::default()
        };
        Ok(self.bridge.solve(request).await?.reference)
    }

    /// Looks an image up, once.
    pub(crate) async fn image(
        &self,
        reference: &str,
        options: ImageOptions,
    ) -> Result<ResolvedImage, FrontendError> {
        let platform = options.platform.as_ref().map(platform::format_all);
        let key = (reference.to_owned(), platform.unwrap_or_default());
        let lookup = {
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            images.entry(key).or_default().clone()
        };
        let look_up = || async {
            let found = self.bridge.resolve_image_config(reference, options).await;
            found.map_err(|error| unresolved(reference, error))
        };
        lookup.get_or_try_init(look_up).await.cloned()
    }

    async fn files(&self) -> Result<&Files, FrontendError> {
        self.files.get_or_try_init(|| self.find_files()).await
    }

    async fn find_files(&self) -> Result<Files, FrontendError> {
        let raw = &self.options.raw;
        let context_name = raw.get("contextkey").map_or("context", String::as_str);
        let address = raw.get(context_name).map_or("", String::as_str);
        let local_dockerfile = raw.get("dockerfilekey");
        let mut files = Files {
            context: None,
            dockerfile: None,
            context_name: context_name.to_owned(),
            dockerfile_name: local_dockerfile
                .map_or("dockerfile", String::as_str)
                .to_owned(),
            filename: raw
                .get("filename")
                .map_or(DOCKERFILE, String::as_str)
                .to_owned(),
        };
        let keep = raw
            .get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR")
            .and_then(|text| parse_bool(text));
        if let Some(state) = git_context(address, keep)? {
            files.context = Some(state.clone());
            files.dockerfile = Some(state);
        } else if address.starts_with("http://") || address.starts_with("https://") {
            self.download(address, &mut files).await?;
        } else {
            files.dockerfile = self.input("dockerfile")?;
            files.context = self.input("context")?;
        }
        if local_dockerfile.is_some() {
            files.dockerfile = None;
        }
        if let (Some(context), Some(dir)) = (&files.context, raw.get("contextsubdir")) {
            files.context = Some(State::scratch().file(
                vec![FileAction::Copy(Box::new(CopySpec {
                    source: context.clone(),
                    src: dir.clone(),
                    dest: "/".into(),
                    dir_contents_only: true,
                    ..CopySpec::default()
                }))],
                Constraints::default(),
            ));
        }
        Ok(files)
    }

    /// A context that is an archive, or a single Dockerfile.
    async fn download(&self, url: &str, files: &mut Files) -> Result<(), FrontendError> {
        let http = Http {
            filename: HTTP_FILE.into(),
            ..Http::default()
        };
        let state = State::http(url, http, internal("load remote build context"));
        let failed = |error| FrontendError::bridge("failed to resolve httpcontext", error);
        let definition = state.marshal(&self.marshal_options());
        let reference = self.solve(definition, false).await.map_err(failed)?;
        let range = FileRange {
            offset: 0,
            length: 1024,
        };
        let head = match reference {
            Some(reference) => {
                reference
                    .read_file(HTTP_FILE, Some(range))
                    .await
                    .map_err(|error| {
                        FrontendError::bridge("failed to read downloaded context", error)
                    })?
            }
            None => Vec::new(),
        };
        let context = if is_archive(&head) {
            State::scratch().file(
                vec![FileAction::Copy(Box::new(CopySpec {
                    source: state,
                    src: join("/", HTTP_FILE),
                    dest: "/".into(),
                    attempt_unpack: true,
                    ..CopySpec::default()
                }))],
                Constraints::default(),
            )
        } else {
            files.filename = HTTP_FILE.to_owned();
            state
        };
        files.dockerfile = Some(context.clone());
        files.context = Some(context);
        Ok(())
    }

    /// Loads the Dockerfile.
    pub(crate) async fn dockerfile(&self) -> Result<Source, FrontendError> {
        let files = self.files().await?;
        let filename = files.filename.as_str();
        let (dir, base) = filename.rsplit_once('/').unwrap_or(("", filename));
        // The file may be in lower case.
        let lower = (base == DOCKERFILE).then(|| match dir {
            "" => DOCKERFILE.to_lowercase(),
            dir => format!("{dir}/{}", DOCKERFILE.to_lowercase()),
        });
        let own_ignore = format!("{filename}{IGNORE_FILE}");
        let state = files.dockerfile.clone().unwrap_or_else(|| {
            let mut follow = vec![filename.to_owned(), own_ignore.clone()];
            follow.extend(lower.clone());
            let name = files.dockerfile_name.as_str();
            State::local(
                name,
                Local {
                    session: self.options.session(name, self.build_opts()).to_owned(),
                    follow,
                    shared_key_hint: name.to_owned(),
                    no_differ: true,
                    ..Local::default()
                },
                internal(&format!("load build definition from {filename}")),
            )
        });
        let definition = state.marshal(&self.marshal_options());
        let vertex = head(&definition);
        let reference = self
            .solve(definition.clone(), false)
            .await
            .map_err(|error| FrontendError::bridge("failed to resolve dockerfile", error))?;
        let unreadable = |error| FrontendError::bridge("failed to read dockerfile", error);
        let missing = || FrontendError::NotFound {
            path: filename.to_owned(),
        };
        let Some(reference) = reference else {
            return Err(unreadable(missing()));
        };
        let all = Some(FileRange {
            offset: 0,
            length: MAX_DOCKERFILE + 1,
        });
        let data = match (reference.read_file(filename, all).await, lower) {
            (Err(FrontendError::NotFound { .. }), Some(lower)) => reference
                .read_file(&lower, all)
                .await
                .map_err(|_| unreadable(missing()))?,
            (Err(FrontendError::NotFound { .. }), None) => return Err(unreadable(missing())),
            (read, _) => read.map_err(unreadable)?,
        };
        if data.len() as u64 > MAX_DOCKERFILE {
            return Err(FrontendError::invalid(format!(
                "Dockerfile exceeds maximum allowed size of {MAX_DOCKERFILE} bytes"
            )));
        }
        if let Ok(text) = reference.read_file(&own_ignore, None).await {
            *self
                .own_ignore
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
        let info = pb::SourceInfo {
            filename: filename.to_owned(),
            data,
            definition: Some(definition),
            language: "Dockerfile".into(),
        };
        Ok(Source {
            map: SourceMap {
                info: Arc::new(info),
            },
            vertex,
        })
    }

    /// The patterns of the ignore file of a local context. There need not be one.
    pub(crate) async fn ignore_patterns(&self) -> Result<Arc<Vec<String>>, FrontendError> {
        let patterns = self.ignore.get_or_try_init(|| self.read_ignore()).await?;
        Ok(patterns.clone())
    }

    async fn read_ignore(&self) -> Result<Arc<Vec<String>>, FrontendError> {
        let files = self.files().await?;
        if files.context.is_some() {
            return Ok(Arc::default());
        }
        let own = self
            .own_ignore
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let text = match own {
            Some(text) => text,
            None => {
                let name = &files.context_name;
                let session = self.options.session(name, self.build_opts());
                let state = ignore_file(
                    name,
                    session,
                    format!("{name}-{IGNORE_FILE}"),
                    internal(&format!("load {IGNORE_FILE}")),
                );
                self.read_optional(&state, false).await?
            }
        };
        Ok(Arc::new(read_ignore_file(&text)))
    }

    /// The ignore file of a state; empty if there is none.
    async fn read_optional(&self, state: &State, evaluate: bool) -> Result<Vec<u8>, FrontendError> {
        let definition = state.marshal(&self.marshal_options());
        let Some(reference) = self.solve(definition, evaluate).await? else {
            return Ok(Vec::new());
        };
        match reference.read_file(IGNORE_FILE, None).await {
            Ok(text) => Ok(text),
            Err(FrontendError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(FrontendError::bridge(
                "failed to read dockerignore patterns",
                error,
            )),
        }
    }

    /// The ignore file of a named context that is local.
    pub(crate) async fn named_ignore(
        &self,
        name: &str,
        session: &str,
        hint: String,
        title: String,
    ) -> Result<Vec<String>, FrontendError> {
        let state = ignore_file(name, session, hint, Constraints::named(title));
        Ok(read_ignore_file(&self.read_optional(&state, true).await?))
    }

    /// The build context, if it does not come from the client.
    pub(crate) async fn remote_context(&self) -> Result<Option<State>, FrontendError> {
        Ok(self.files().await?.context.clone())
    }

    /// The build context; of a local one only what `follow` names, unless that is nothing.
    pub(crate) async fn main_context(&self, follow: Vec<String>) -> Result<State, FrontendError> {
        let files = self.files().await?;
        if let Some(context) = &files.context {
            return Ok(context.clone());
        }
        let exclude = self.ignore_patterns().await?;
        let name = files.context_name.as_str();
        Ok(State::local(
            name,
            Local {
                session: self.options.session(name, self.build_opts()).to_owned(),
                exclude: (*exclude).clone(),
                follow,
                shared_key_hint: name.to_owned(),
                ..Local::default()
            },
            internal("load build context"),
        ))
    }
}

fn ignore_file(name: &str, session: &str, hint: String, constraints: Constraints) -> State {
    State::local(
        name,
        Local {
            session: session.to_owned(),
            follow: vec![IGNORE_FILE.into()],
            shared_key_hint: hint,
            no_differ: true,
            ..Local::default()
        },
        constraints,
    )
}

/// The name of a vertex that is the frontend's own.
pub(crate) fn internal(name: &str) -> Constraints {
    Constraints::named(format!("[internal] {name}"))
}

/// The repository that an address is, if it is one.
pub(crate) fn git_context(
    address: &str,
    keep: Option<bool>,
) -> Result<Option<State>, FrontendError> {
    match GitRef::parse(address) {
        Parsed::Other => Ok(None),
        Parsed::Invalid(error) => Err(FrontendError::invalid(error)),
        Parsed::Git(git) => {
            let keep = git.keep_git_dir == Some(true) || keep == Some(true);
            let constraints = internal(&format!("load git source {address}"));
            Ok(Some(git.state(keep, &git.checksum, constraints)))
        }
    }
}

/// The vertex that a definition's last operation points at.
fn head(definition: &pb::Definition) -> Option<Digest> {
    let pointer = pb::Op::decode(definition.def.last()?.as_ref()).ok()?;
    pointer.inputs.first()?.digest.parse().ok()
}

/// Whether a file begins like an archive: bzip2, gzip, xz, or a tar with a right checksum.
fn is_archive(head: &[u8]) -> bool {
    let magics: [&[u8]; 3] = [
        &[0x42, 0x5a, 0x68],
        &[0x1f, 0x8b, 0x08],
        &[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00],
    ];
    if magics.iter().any(|magic| head.starts_with(magic)) {
        return true;
    }
    let Some(header) = head.first_chunk::<512>() else {
        return false;
    };
    let field = String::from_utf8_lossy(&header[148..156]);
    let digits = field.trim_matches([' ', '\0']);
    let Ok(claimed) = u32::from_str_radix(digits, 8) else {
        return false;
    };
    // The checksum counts its own bytes as spaces.
    let sum: u32 = header
        .iter()
        .enumerate()
        .map(|(i, byte)| u32::from(if (148..156).contains(&i) { b' ' } else { *byte }))
        .sum();
    sum == claimed && header[0] != 0
}

/// The lines of nothing in particular: the top of the file.
pub(crate) const TOP: Span = Span { start: 1, end: 1 };

/// Which image could not be looked up, in BuildKit's words.
pub(crate) fn unresolved(reference: &str, error: FrontendError) -> FrontendError {
    match error {
        FrontendError::Cancelled => error,
        error => FrontendError::bridge(
            format!("failed to resolve source metadata for {reference}"),
            error,
        ),
    }
}
