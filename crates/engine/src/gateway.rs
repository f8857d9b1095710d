//! A client that is its own frontend: it builds, looks at results and returns one, in BuildKit's
//! messages (`LLBBridge`), as long as its solve goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use cooper_cache::ImmutableRef;
use cooper_frontend::{
    Attestation, AttestationKind, Bridge as _, BuildOpts, CacheImport, FileRange, FrontendResult,
    ImageOptions, Inputs, OciLayout, Reference, SolveRequest, SourceOptions, Subject, SubjectKind,
    Warning,
};
use cooper_proto::gateway::{self as api, result::Result as Refs};
use cooper_worker::Controller;
use tokio::sync::oneshot;

use crate::EngineError;
use crate::bridge::BuildBridge;
use crate::build::Build;
use crate::container::Containers;
use crate::failure::StepFailure;
use crate::reference::LazyRef;
use crate::sent;

mod containers;

type Outcome = Result<FrontendResult, EngineError>;

/// A build whose client is its own frontend.
pub struct Gateway {
    build: Arc<Build>,
    bridge: Arc<BuildBridge>,
    inputs: Inputs,
    references: Mutex<HashMap<String, Arc<dyn Reference>>>,
    outcome: Mutex<Option<oneshot::Sender<Outcome>>>,
    containers: Containers,
}

impl Gateway {
    pub(crate) fn new(
        build: Arc<Build>,
        bridge: Arc<BuildBridge>,
        inputs: Inputs,
    ) -> (Arc<Self>, oneshot::Receiver<Outcome>) {
        let (sender, outcome) = oneshot::channel();
        let gateway = Self {
            build,
            bridge,
            inputs,
            references: Mutex::default(),
            outcome: Mutex::new(Some(sender)),
            containers: Containers::default(),
        };
        (Arc::new(gateway), outcome)
    }

    /// What the builder is and can do.
    pub fn build_opts(&self) -> &BuildOpts {
        &self.build.opts
    }

    /// The workers of the builder.
    pub fn workers(&self) -> &Controller {
        self.build.engine.workers()
    }

    /// Builds a graph or runs a frontend.
    ///
    /// # Cancel safety
    /// What was begun goes on as long as the build.
    pub async fn solve(
        &self,
        request: api::SolveRequest,
    ) -> Result<api::SolveResponse, EngineError> {
        let (return_allowed, array) = (request.allow_result_return, request.allow_result_array_ref);
        let finals = request.r#final.then(|| request.exporter_attr.clone());
        let request = SolveRequest {
            definition: request.definition,
            frontend: request.frontend,
            frontend_opts: request.frontend_opt,
            frontend_inputs: request.frontend_inputs,
            evaluate: request.evaluate,
            cache_imports: request
                .cache_imports
                .into_iter()
                .map(|import| CacheImport {
                    kind: import.r#type,
                    attrs: import.attrs,
                })
                .collect(),
            source_policies: request.source_policies,
        };
        self.build.asked_with(&request.frontend_opts);
        // On the heap: frontends' futures are large.
        let solving = Box::pin(BuildBridge::solve(&self.bridge, request));
        let result = self.call(solving).await?;
        if result.is_multi() && !return_allowed {
            return Err(EngineError::NoDefaultResult);
        }
        let mut response = api::SolveResponse::default();
        let answer = self.answer(&result, array);
        if !return_allowed {
            response.r#ref = match &answer.result {
                Some(Refs::Ref(reference)) => reference.id.clone(),
                Some(Refs::RefDeprecated(id)) => id.clone(),
                _ => String::new(),
            };
        }
        response.result = Some(answer);
        if let Some(attrs) = finals {
            // As with BuildKit, no mistake of a client that has said so before.
            let _ = self.finish(Ok(with_exporter_attrs(result, &attrs)?));
        }
        Ok(response)
    }

    fn answer(&self, result: &FrontendResult, array: bool) -> api::Result {
        let reference = |reference: &Option<Arc<dyn Reference>>| self.keep(reference.as_ref());
        let refs = match (result.is_multi(), array) {
            (true, true) => Refs::Refs(api::RefMap {
                refs: mapped(&result.references, reference),
            }),
            (true, false) => Refs::RefsDeprecated(api::RefMapDeprecated {
                refs: mapped(&result.references, |found| reference(found).id),
            }),
            (false, true) => Refs::Ref(reference(&result.reference)),
            (false, false) => Refs::RefDeprecated(reference(&result.reference).id),
        };
        let attestations = result.attestations.iter().map(|(platform, all)| {
            let attestation = all.iter().map(|one| self.attestation(one)).collect();
            (platform.clone(), api::Attestations { attestation })
        });
        api::Result {
            metadata: result.metadata.clone(),
            attestations: attestations.collect(),
            result: Some(refs),
        }
    }

    fn attestation(&self, attestation: &Attestation) -> api::Attestation {
        let subject = |subject: &Subject| api::InTotoSubject {
            kind: match subject.kind {
                SubjectKind::Itself => api::InTotoSubjectKind::Self_ as i32,
                SubjectKind::Raw => api::InTotoSubjectKind::Raw as i32,
            },
            digest: subject.digests.iter().map(ToString::to_string).collect(),
            name: subject.name.clone(),
        };
        api::Attestation {
            kind: match attestation.kind {
                AttestationKind::InToto => api::AttestationKind::InToto as i32,
                AttestationKind::Bundle => api::AttestationKind::Bundle as i32,
            },
            metadata: attestation.metadata.clone(),
            r#ref: Some(self.keep(attestation.reference.as_ref())),
            path: attestation.path.clone(),
            in_toto_predicate_type: attestation.predicate_type.clone(),
            in_toto_subjects: attestation.subjects.iter().map(subject).collect(),
        }
    }

    /// Keeps a reference for the client. An empty file system has an empty id.
    fn keep(&self, reference: Option<&Arc<dyn Reference>>) -> api::Ref {
        let Some(reference) = reference else {
            return sent::nothing();
        };
        let id = reference.id().to_owned();
        self.references().insert(id.clone(), reference.clone());
        api::Ref {
            id,
            def: Some(sent::definition(reference.definition().clone())),
        }
    }

    fn references(&self) -> MutexGuard<'_, HashMap<String, Arc<dyn Reference>>> {
        self.references
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// With the details of the step that failed, if it was one. The states that it had are kept
    /// for the client as long as the build goes on.
    fn looked_into(&self, error: EngineError) -> EngineError {
        let Some(failure) = StepFailure::of(&error) else {
            return error;
        };
        let name = |state: &Option<ImmutableRef>| {
            let Some(state) = state else {
                return String::new();
            };
            let reference: Arc<dyn Reference> = LazyRef::ready(&self.build, state.clone());
            self.keep(Some(&reference)).id
        };
        let detail = failure.detail(|states| states.iter().map(name).collect());
        EngineError::Step {
            detail: Box::new(detail),
            source: Box::new(error),
        }
    }

    /// Carries out a call on behalf of the build.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let result = self.build.run(call).await;
        result.map_err(|error| self.looked_into(error))
    }

    fn find(&self, id: &str) -> Result<Arc<dyn Reference>, EngineError> {
        let found = self.references().get(id).cloned();
        found.ok_or_else(|| EngineError::NoReference { id: id.to_owned() })
    }

    fn returned(&self, id: &str) -> Result<Option<Arc<dyn Reference>>, EngineError> {
        match id {
            "" => Ok(None),
            id => self
                .find(id)
                .map(Some)
                .map_err(|_| EngineError::Invalid(format!("return reference {id} not found"))),
        }
    }

    /// Ends the client's part: its solve goes on with the result, or fails with the error. The
    /// first call counts; another one is an error whether the solve has gone on yet or not.
    pub fn return_result(&self, request: api::ReturnRequest) -> Result<(), EngineError> {
        let outcome = match (request.error, request.result) {
            (Some(status), _) => Err(EngineError::Returned {
                status: Box::new(status),
            }),
            (None, Some(result)) => self.result(result),
            (None, None) => Err(EngineError::Invalid("return without a result".to_owned())),
        };
        if let Err(EngineError::Invalid(reason)) = &outcome {
            // The client is told, and so is its solve.
            let reason = reason.clone();
            self.finish(outcome)?;
            return Err(EngineError::Invalid(reason));
        }
        self.finish(outcome)
    }

    fn finish(&self, outcome: Outcome) -> Result<(), EngineError> {
        let mut sender = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = sender.take() else {
            return Err(EngineError::Invalid("result is already set".to_owned()));
        };
        // When the solve has ended nobody wants it.
        let _ = sender.send(outcome);
        Ok(())
    }

    fn result(&self, result: api::Result) -> Outcome {
        let mut found = FrontendResult {
            metadata: result.metadata,
            ..FrontendResult::default()
        };
        let many = |refs: Vec<(String, String)>| {
            let named = refs.into_iter();
            let named = named.map(|(name, id)| Ok((name, self.returned(&id)?)));
            named.collect::<Result<BTreeMap<_, _>, EngineError>>()
        };
        match result.result {
            None => {}
            Some(Refs::RefDeprecated(id)) => found.reference = self.returned(&id)?,
            Some(Refs::Ref(reference)) => found.reference = self.returned(&reference.id)?,
            Some(Refs::RefsDeprecated(map)) => {
                found.references = many(map.refs.into_iter().collect())?;
            }
            Some(Refs::Refs(map)) => {
                let refs = map.refs.into_iter();
                found.references = many(refs.map(|(name, found)| (name, found.id)).collect())?;
            }
        }
        for (platform, all) in result.attestations {
            let all = all.attestation.into_iter();
            let all = all.map(|attestation| self.returned_attestation(attestation));
            let all = all.collect::<Result<Vec<_>, _>>()?;
            found.attestations.insert(platform, all);
        }
        Ok(found)
    }

    fn returned_attestation(&self, found: api::Attestation) -> Result<Attestation, EngineError> {
        let subject = |subject: api::InTotoSubject| {
            let digests = subject.digest.iter().map(|digest| digest.parse());
            let digests = digests.collect::<Result<_, _>>();
            let digests = digests.map_err(|_| {
                EngineError::Invalid(format!("invalid digest of subject {}", subject.name))
            })?;
            Ok(Subject {
                kind: match subject.kind {
                    0 => SubjectKind::Itself,
                    _ => SubjectKind::Raw,
                },
                name: subject.name,
                digests,
            })
        };
        Ok(Attestation {
            kind: match found.kind {
                0 => AttestationKind::InToto,
                _ => AttestationKind::Bundle,
            },
            metadata: found.metadata,
            reference: self.returned(&found.r#ref.unwrap_or_default().id)?,
            path: found.path,
            predicate_type: found.in_toto_predicate_type,
            subjects: found
                .in_toto_subjects
                .into_iter()
                .map(subject)
                .collect::<Result<_, EngineError>>()?,
        })
    }

    /// Reads a file of a reference.
    ///
    /// # Cancel safety
    /// Dropping the future of this or of a method below gives up waiting.
    pub async fn read_file(
        &self,
        request: api::ReadFileRequest,
    ) -> Result<api::ReadFileResponse, EngineError> {
        let reference = self.find(&request.r#ref)?;
        let part = |number: i64| {
            let invalid =
                |_| EngineError::Invalid(format!("invalid range of {}", request.file_path));
            u64::try_from(number).map_err(invalid)
        };
        let range = match &request.range {
            None => None,
            // No length is nothing in this message.
            Some(range) if range.length == 0 => return Ok(api::ReadFileResponse::default()),
            Some(range) => Some(FileRange {
                offset: part(range.offset)?,
                length: part(range.length)?,
            }),
        };
        let read = async { Ok(reference.read_file(&request.file_path, range).await?) };
        let data = self.call(read).await?;
        Ok(api::ReadFileResponse { data })
    }

    /// Lists a folder of a reference.
    pub async fn read_dir(
        &self,
        request: api::ReadDirRequest,
    ) -> Result<api::ReadDirResponse, EngineError> {
        let reference = self.find(&request.r#ref)?;
        let (path, include) = (&request.dir_path, &request.include_pattern);
        let read = async { Ok(reference.read_dir(path, include).await?) };
        let entries = self.call(read).await?;
        Ok(api::ReadDirResponse { entries })
    }

    /// Looks at a file of a reference.
    pub async fn stat_file(
        &self,
        request: api::StatFileRequest,
    ) -> Result<api::StatFileResponse, EngineError> {
        let reference = self.find(&request.r#ref)?;
        let read = async { Ok(reference.stat_file(&request.path).await?) };
        let stat = self.call(read).await?;
        Ok(api::StatFileResponse { stat: Some(stat) })
    }

    /// Builds a reference now.
    pub async fn evaluate(&self, request: api::EvaluateRequest) -> Result<(), EngineError> {
        let reference = self.find(&request.r#ref)?;
        let evaluate = async { Ok(reference.evaluate().await?) };
        self.call(evaluate).await
    }

    /// The inputs that the client gave with its solve.
    pub fn inputs(&self) -> api::InputsResponse {
        api::InputsResponse {
            definitions: mapped(&self.inputs, |input| sent::definition(input.clone())),
        }
    }

    /// Digest and configuration of an image.
    pub async fn resolve_image_config(
        &self,
        request: api::ResolveImageConfigRequest,
    ) -> Result<api::ResolveImageConfigResponse, EngineError> {
        // 1 is a layout that a session serves (`ResolverTypeOCILayout`).
        let layout = (request.resolver_type == 1).then_some(OciLayout {
            session_id: request.session_id,
            store_id: request.store_id,
        });
        let options = ImageOptions {
            log_name: request.log_name,
            platform: request.platform,
            resolve_mode: request.resolve_mode,
            oci_layout: layout,
            source_policies: request.source_policies,
        };
        let (bridge, reference) = (&self.bridge, &request.r#ref);
        let resolve = async { Ok(bridge.resolve_image_config(reference, options).await?) };
        let found = self.build.run(resolve).await?;
        Ok(api::ResolveImageConfigResponse {
            digest: found
                .digest
                .map(|digest| digest.to_string())
                .unwrap_or_default(),
            config: found.config,
            r#ref: found.reference,
        })
    }

    /// What is known of a source.
    pub async fn resolve_source_meta(
        &self,
        request: api::ResolveSourceMetaRequest,
    ) -> Result<api::ResolveSourceMetaResponse, EngineError> {
        let no_source = || EngineError::Invalid("no source to resolve".to_owned());
        let source = request.source.ok_or_else(no_source)?;
        let checksum = request.http.and_then(|http| http.checksum_request);
        let suffix = checksum.as_ref().map(|checksum| checksum.suffix.clone());
        let options = SourceOptions {
            log_name: request.log_name,
            platform: request.platform,
            resolve_mode: request.resolve_mode,
            no_config: request.image.is_some_and(|image| image.no_config),
            return_object: request.git.is_some_and(|git| git.return_object),
            checksum,
            source_policies: request.source_policies,
        };
        let resolve = async { Ok(self.bridge.resolve_source_meta(&source, options).await?) };
        let found = self.build.run(resolve).await?;
        Ok(api::ResolveSourceMetaResponse {
            source: Some(found.source),
            image: found.image,
            git: found.git,
            http: found.http.map(|http| api::ResolveSourceHttpResponse {
                checksum: http.checksum.to_string(),
                filename: http.filename,
                last_modified: http.last_modified.map(timestamp),
                checksum_response: http.requested.map(|digest| api::ChecksumResponse {
                    digest,
                    suffix: suffix.unwrap_or_default(),
                }),
            }),
        })
    }

    /// Shows the user a warning.
    pub async fn warn(&self, request: api::WarnRequest) -> Result<(), EngineError> {
        let vertex = request.digest.parse().map_err(|_| {
            EngineError::Invalid(format!("invalid digest of a vertex: {:?}", request.digest))
        })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let warning = Warning {
            level: i32::try_from(request.level).unwrap_or(i32::MAX),
            short: text(request.short),
            detail: request.detail.into_iter().map(text).collect(),
            url: request.url,
            source: request.info.map(Arc::new),
            ranges: request.ranges,
        };
        Ok(self.bridge.warn(&vertex, warning).await?)
    }
}

fn mapped<T, U>(map: &BTreeMap<String, T>, f: impl Fn(&T) -> U) -> BTreeMap<String, U> {
    map.iter()
        .map(|(name, value)| (name.clone(), f(value)))
        .collect()
}

fn timestamp(time: std::time::SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// Clients from before `Return` end with a last solve, which carries JSON: names and bytes.
fn with_exporter_attrs(mut result: FrontendResult, attrs: &[u8]) -> Outcome {
    use base64::Engine as _;
    if attrs.is_empty() {
        return Ok(result);
    }
    let invalid =
        |reason: String| EngineError::Invalid(format!("invalid exporter attributes: {reason}"));
    let attrs: BTreeMap<String, String> =
        serde_json::from_slice(attrs).map_err(|error| invalid(error.to_string()))?;
    for (name, value) in attrs {
        let value = base64::engine::general_purpose::STANDARD.decode(value);
        let value = value.map_err(|error| invalid(error.to_string()))?;
        result.metadata.entry(name).or_insert(value);
    }
    Ok(result)
}
