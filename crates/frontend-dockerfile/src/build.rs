//! From a request to a result.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use cooper_dockerfile::{parse, program};
use cooper_frontend::{
    Bridge, Frontend, FrontendError, FrontendResult, Inputs, Reference, SolveRequest, Warning,
};
use cooper_llb::platform;
use cooper_proto::pb;
use futures::future::try_join_all;
use serde::Serialize;

use crate::context::Request;
use crate::convert::{Converter, lint_config};
use crate::image::Image;
use crate::lint::{Lint, LintWarning};
use crate::options::Options;
use crate::source::{Source, ranges};
use crate::syntax::Syntax;
use crate::{json, subrequest};

/// Capabilities of frontends that this one has.
const CAPS: &[&str] = &[
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

const CONFIG: &str = "containerimage.config";
const BASE_CONFIG: &str = "containerimage.base.config";
/// What exporters date their results by.
const EPOCH: &str = "source.date.epoch";

/// Builds Dockerfiles.
#[derive(Clone, Copy, Debug, Default)]
pub struct DockerfileFrontend;

#[async_trait]
impl Frontend for DockerfileFrontend {
    fn name(&self) -> &str {
        "dockerfile.v0"
    }

    async fn solve(
        &self,
        bridge: Arc<dyn Bridge>,
        opts: BTreeMap<String, String>,
        inputs: Inputs,
    ) -> Result<FrontendResult, FrontendError> {
        check_caps(&opts)?;
        let asked = opts.get("requestid").cloned();
        if asked.as_deref() == Some(subrequest::DESCRIBE) {
            return Ok(subrequest::describe());
        }
        let options = Options::parse(opts.clone(), bridge.build_opts())?;
        let request = Request::new(bridge, options, inputs);
        let source = request.dockerfile().await?;
        if let Some(syntax) = Syntax::of(&opts, &source) {
            return syntax.forward(&request, opts, &source).await;
        }
        match asked.as_deref() {
            None | Some("") => build(&request, &source).await,
            Some(subrequest::TARGETS) => {
                let failed = |error| source.parse_error(&error);
                let dockerfile = parse(source.text()).map_err(failed)?;
                let program = program(&dockerfile).map_err(failed)?;
                Ok(subrequest::targets(&source, &program))
            }
            Some(subrequest::OUTLINE) => outline(&request, &source).await,
            Some(subrequest::LINT) => check(&request, &source).await,
            Some(other) => Err(FrontendError::UnsupportedSubrequest {
                name: other.to_owned(),
            }),
        }
    }
}

/// Refuses what the client needs and this frontend lacks.
fn check_caps(opts: &BTreeMap<String, String>) -> Result<(), FrontendError> {
    let wanted = opts.get("frontend.caps").map_or("", String::as_str);
    for cap in wanted.split(',').filter(|cap| !cap.is_empty()) {
        let name = cap.strip_suffix("+forward").unwrap_or(cap);
        if !CAPS.contains(&name) {
            return Err(FrontendError::UnsupportedCapability {
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// The platforms to build for; `None` is the builder's own.
fn targets(request: &Request) -> Vec<Option<&pb::Platform>> {
    let asked = &request.options.target_platforms;
    if asked.is_empty() {
        return vec![None];
    }
    asked.iter().map(Some).collect()
}

async fn outline(request: &Request, source: &Source) -> Result<FrontendResult, FrontendError> {
    let mut lint = Lint::new(lint_config(request, source)?, false);
    let target = targets(request)[0];
    let outline = Converter::new(request, source, target, &mut lint)
        .outline()
        .await?;
    let mut text = String::new();
    if !outline.args.is_empty() {
        let rows: Vec<_> = outline
            .args
            .iter()
            .map(|arg| vec![arg.name.clone(), arg.value.clone(), arg.description.clone()])
            .collect();
        text = subrequest::table(&["BUILD ARG", "VALUE", "DESCRIPTION"], &rows);
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !mounts.is_empty() {
            let rows: Vec<_> = mounts
                .iter()
                .map(|mount| {
                    let required = if mount.required { "true" } else { "" };
                    vec![mount.name.clone(), required.to_owned()]
                })
                .collect();
            text.push('\n');
            text.push_str(&subrequest::table(&[title, "REQUIRED"], &rows));
        }
    }
    Ok(subrequest::answer(&outline, text))
}

async fn check(request: &Request, source: &Source) -> Result<FrontendResult, FrontendError> {
    let mut lint = Lint::new(lint_config(request, source)?, true);
    let target = targets(request)[0];
    let result = Converter::new(request, source, target, &mut lint)
        .all_stages(request.options.target.is_empty())
        .check()
        .await;
    Ok(subrequest::lint(
        source,
        &lint.warnings,
        result.as_ref().err(),
    ))
}

/// The result for one platform.
struct Built {
    id: String,
    platform: pb::Platform,
    reference: Option<Arc<dyn Reference>>,
    config: Vec<u8>,
    base: Option<Vec<u8>>,
    epoch: Option<i64>,
}

async fn build(request: &Request, source: &Source) -> Result<FrontendResult, FrontendError> {
    let config = lint_config(request, source)?;
    let targets = targets(request).into_iter().enumerate();
    let built = try_join_all(targets.map(|(index, target)| {
        // One warning is enough for all platforms.
        let lint = Lint::new(config.clone(), index == 0);
        build_one(request, source, target, lint)
    }))
    .await?;

    let mut result = FrontendResult::default();
    let multi = request.options.multi_platform;
    let key = |name: &str, id: &str| {
        if multi {
            format!("{name}/{id}")
        } else {
            name.to_owned()
        }
    };
    let mut platforms = Vec::new();
    for built in built {
        let metadata = &mut result.metadata;
        metadata.insert(key(CONFIG, &built.id), built.config);
        if let Some(base) = built.base {
            metadata.insert(key(BASE_CONFIG, &built.id), base);
        }
        if let Some(epoch) = built.epoch {
            let seconds = epoch.to_string().into_bytes();
            metadata.insert(key(EPOCH, &built.id), seconds);
        }
        if multi {
            result.references.insert(built.id.clone(), built.reference);
        } else {
            result.reference = built.reference;
        }
        platforms.push(JsonPlatform {
            id: built.id,
            platform: OciPlatform::of(built.platform),
        });
    }
    let platforms = JsonPlatforms { platforms };
    let text = json::to_vec(&platforms);
    result.metadata.insert("refs.platforms".into(), text);
    Ok(result)
}

async fn build_one(
    request: &Request,
    source: &Source,
    target: Option<&pb::Platform>,
    mut lint: Lint,
) -> Result<Built, FrontendError> {
    let converted = Converter::new(request, source, target, &mut lint)
        .convert()
        .await;
    for warning in &lint.warnings {
        warn(request, source, warning).await;
    }
    let converted = converted?;
    let solve = SolveRequest {
        definition: Some(converted.definition),
        cache_imports: request.options.cache_imports.clone(),
        ..SolveRequest::default()
    };
    let reference = request.bridge.solve(solve).await?.reference;
    let platform = platform::normalize(target.unwrap_or(&request.options.build_platform));
    let text = |image: &Image| json::to_vec(image);
    Ok(Built {
        id: platform::format_all(&platform),
        platform,
        reference,
        config: text(&converted.image),
        base: converted.base.as_ref().map(text),
        epoch: converted.epoch,
    })
}

async fn warn(request: &Request, source: &Source, warning: &LintWarning) {
    let Some(vertex) = &source.vertex else {
        return;
    };
    let shown = Warning {
        level: 1,
        short: warning.short(),
        detail: vec![warning.rule.description.to_owned()],
        url: warning.rule.url.to_owned(),
        source: Some(source.map.info.clone()),
        ranges: ranges(warning.span),
    };
    // A build does not fail for a warning that nobody sees.
    if let Err(error) = request.bridge.warn(vertex, shown).await {
        tracing::debug!(%error, "cannot show a warning");
    }
}

#[derive(Serialize)]
struct JsonPlatforms {
    #[serde(rename = "Platforms")]
    platforms: Vec<JsonPlatform>,
}

#[derive(Serialize)]
struct JsonPlatform {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: OciPlatform,
}

/// A platform as OCI writes it.
#[derive(Serialize)]
struct OciPlatform {
    architecture: String,
    os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

impl OciPlatform {
    fn of(platform: pb::Platform) -> Self {
        Self {
            architecture: platform.architecture,
            os: platform.os,
            os_version: platform.os_version,
            os_features: platform.os_features,
            variant: platform.variant,
        }
    }
}
