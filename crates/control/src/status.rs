//! Errors as statuses. The details are JSON in `Any`s named `github.com/moby/buildkit/NAME+json`,
//! as BuildKit's clients read them (`util/grpcerrors`, `solver/errdefs`).

use std::error::Error as StdError;
use std::sync::LazyLock;

use cooper_engine::{EngineError, EvaluateError, StepFailure};
use cooper_frontend::{FrontendError, SourceLocation};
use cooper_ops::OpsError;
use cooper_proto::{errdefs, pb, rpc};
use cooper_solver::{SolveError, error_chain};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde::Serialize;
use tonic::{Code, Status};

/// An error of which nothing but its text is known.
pub(crate) fn unknown(error: &(dyn StdError + 'static)) -> Status {
    tracing::debug!(error = error_chain(error), "a request failed");
    Status::new(Code::Unknown, error_chain(error))
}

/// The status of a failed solve, or of anything that a frontend asked for.
pub(crate) fn of(error: &(dyn StdError + 'static)) -> Status {
    let status = described(error);
    let code = Code::from_i32(status.code);
    Status::with_details(code, status.message.clone(), status.encode_to_vec().into())
}

/// The status of a failed build, or of anything that a frontend asked for, as it stands in messages
/// and in records: with the typed details that BuildKit's clients read.
pub fn describe(error: &EngineError) -> rpc::Status {
    described(error)
}

fn described(error: &(dyn StdError + 'static)) -> rpc::Status {
    let mut facts = Facts::default();
    facts.collect(error);
    if let Some(returned) = facts.returned {
        // A client's own error comes back to it as it was.
        return returned;
    }
    facts.daemon();
    let message = error_chain(error);
    tracing::debug!(error = message, "a solve failed");
    rpc::Status {
        code: facts.code as i32,
        message,
        details: facts.details,
    }
}

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(cooper_proto::DESCRIPTORS);
    pool.expect("what the compiler of the messages wrote can be read")
});

struct Facts {
    code: Code,
    details: Vec<prost_types::Any>,
    returned: Option<rpc::Status>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            code: Code::Unknown,
            details: Vec::new(),
            returned: None,
        }
    }
}

impl Facts {
    /// Looks at the error and at all that it came from. What a variant holds is not among its
    /// sources where the variant reads as what it holds, so these are looked into by name.
    fn collect(&mut self, error: &(dyn StdError + 'static)) {
        if let Some(error) = error.downcast_ref::<EngineError>() {
            match error {
                EngineError::NoJob { .. } => self.code = Code::NotFound,
                EngineError::JobExists { .. } => self.code = Code::AlreadyExists,
                EngineError::Cancelled => self.code = Code::Cancelled,
                EngineError::Panicked => self.code = Code::Internal,
                EngineError::Returned { status } => self.returned = Some((**status).clone()),
                EngineError::Step { detail, source } => {
                    self.collect(&**source);
                    return self.step(detail);
                }
                EngineError::Frontend(error) => return self.collect(error),
                EngineError::Operation(error) => return self.collect(&**error),
                EngineError::ContainerExists { .. } | EngineError::ProcessExists { .. } => {
                    self.code = Code::AlreadyExists;
                }
                EngineError::ContainerGone { .. } | EngineError::NoProcess { .. } => {
                    self.code = Code::NotFound;
                }
                EngineError::NoDescriptor { .. } => self.code = Code::OutOfRange,
                EngineError::InvalidMessage(_) => self.code = Code::InvalidArgument,
                EngineError::Exit { exit, cancelled } => {
                    if *cancelled {
                        self.code = Code::Cancelled;
                    }
                    let code = exit.code;
                    self.add("gatewayapi.ExitMessage", &ExitMessage { code });
                }
                _ => {}
            }
        } else if let Some(error) = error.downcast_ref::<FrontendError>() {
            self.frontend(error);
        } else if let Some(error) = error.downcast_ref::<StepFailure>() {
            return self.collect(&error.source);
        } else if let Some(error) = error.downcast_ref::<EvaluateError>() {
            match error {
                EvaluateError::Solve(error) => return self.collect(error),
                EvaluateError::Operation(error) => return self.collect(&**error),
                _ => {}
            }
        } else if let Some(error) = error.downcast_ref::<SolveError>() {
            match error {
                SolveError::Op { vertex, source, .. } => {
                    self.vertex(vertex.as_ref());
                    return self.collect(&**source);
                }
                SolveError::Cancelled => self.code = Code::Cancelled,
                _ => {}
            }
        } else if let Some(OpsError::Exec { failure, .. }) = error.downcast_ref::<OpsError>() {
            let code = failure.exit.code;
            self.add("gatewayapi.ExitMessage", &ExitMessage { code });
        }
        if let Some(error) = error.source() {
            self.collect(error);
        }
    }

    /// Which program failed: BuildKit's clients show it with `--debug`, and tell by it an error of a
    /// daemon from one of their own. Its arguments are nobody's business.
    fn daemon(&mut self) {
        let name = std::env::args_os().next();
        let name = name.map(|name| name.to_string_lossy().into_owned());
        let stack = Stack {
            cmdline: name.into_iter().collect(),
            pid: std::process::id(),
            version: concat!("v", env!("CARGO_PKG_VERSION")),
        };
        self.add("stack.Stack", &stack);
    }

    fn frontend(&mut self, error: &FrontendError) {
        if let Some(place) = error.location() {
            self.place(place);
        }
        match error {
            FrontendError::Cancelled => self.code = Code::Cancelled,
            FrontendError::UnsupportedSubrequest { name } => {
                self.code = Code::Unimplemented;
                self.add("errdefs.Subrequest", &Named { name });
            }
            FrontendError::UnsupportedCapability { name } => {
                self.code = Code::Unimplemented;
                self.add("errdefs.FrontendCap", &Named { name });
            }
            _ => {}
        }
    }

    /// Written in protobuf's own JSON, which is what clients read this detail with.
    fn step(&mut self, detail: &errdefs::Solve) {
        let Some(kind) = DESCRIPTORS.get_message_by_name("errdefs.Solve") else {
            return;
        };
        match DynamicMessage::decode(kind, &*detail.encode_to_vec()) {
            Ok(detail) => self.add("errdefs.Solve", &detail),
            Err(error) => tracing::warn!(%error, "the details of a step cannot be told"),
        }
    }

    fn vertex(&mut self, digest: &str) {
        self.add("errdefs.Vertex", &Vertex { digest });
    }

    fn place(&mut self, place: &SourceLocation) {
        let ranges = place.ranges.iter().map(Range::from).collect();
        let info = Info {
            filename: &place.info.filename,
            data: base64(&place.info.data),
            definition: definition(place.info.definition.as_ref()),
            language: &place.info.language,
        };
        self.add("errdefs.Source", &Source { info, ranges });
    }

    fn add(&mut self, name: &str, value: &impl Serialize) {
        let type_url = format!("github.com/moby/buildkit/{name}+json");
        if let Ok(value) = serde_json::to_vec(value) {
            let detail = prost_types::Any { type_url, value };
            if !self.details.contains(&detail) {
                self.details.push(detail);
            }
        }
    }
}

// The forms that Go's encoding/json gives the generated structs of `errdefs`.

#[derive(Serialize)]
struct Vertex<'a> {
    digest: &'a str,
}

/// Without frames: an error here tells what was attempted, and not by which functions.
#[derive(Serialize)]
struct Stack {
    cmdline: Vec<String>,
    pid: u32,
    version: &'static str,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct ExitMessage {
    #[serde(rename = "Code")]
    code: u32,
}

#[derive(Serialize)]
struct Source<'a> {
    info: Info<'a>,
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Info<'a> {
    filename: &'a str,
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

/// How the file was got: the graph without what is only said about it.
#[derive(Serialize)]
struct Definition {
    def: Vec<String>,
}

fn definition(definition: Option<&pb::Definition>) -> Option<Definition> {
    // Statuses travel in headers, which are no place for large graphs.
    const MOST: usize = 16 << 10;
    let def = &definition?.def;
    let size: usize = def.iter().map(|op| op.len()).sum();
    (size > 0 && size <= MOST).then(|| Definition {
        def: def.iter().map(|op| base64(op)).collect(),
    })
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    line: i32,
    character: i32,
}

impl From<&pb::Range> for Range {
    fn from(range: &pb::Range) -> Self {
        let position = |position: Option<&pb::Position>| Position {
            line: position.map_or(0, |position| position.line),
            character: position.map_or(0, |position| position.character),
        };
        Self {
            start: position(range.start.as_ref()),
            end: position(range.end.as_ref()),
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cooper_ops::ExecFailure;
    use std::sync::Arc;

    fn failure() -> EngineError {
        let info = pb::SourceInfo {
            filename: "Dockerfile".into(),
            data: b"FROM x\n".to_vec(),
            ..pb::SourceInfo::default()
        };
        let position = |line| Some(pb::Position { line, character: 0 });
        let location = SourceLocation {
            info: Arc::new(info),
            ranges: vec![pb::Range {
                start: position(1),
                end: position(1),
            }],
        };
        let args = ["false".to_owned()];
        let error = EvaluateError::Solve(SolveError::Op {
            vertex: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            name: "RUN false".into(),
            source: Arc::new(OpsError::Exec {
                failure: ExecFailure::new(&args, 1, false),
                files: Box::default(),
            }),
        });
        FrontendError::bridge(error.to_string(), error)
            .at(location)
            .into()
    }

    fn details(status: &Status) -> Vec<(String, serde_json::Value)> {
        let decoded = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(decoded.message, status.message());
        let detail = |any: prost_types::Any| {
            let value = serde_json::from_slice(&any.value).unwrap();
            (any.type_url, value)
        };
        decoded.details.into_iter().map(detail).collect()
    }

    #[test]
    fn a_failed_step_carries_vertex_place_and_exit_code() {
        for error in [
            failure(),
            FrontendError::bridge(failure().to_string(), failure()).into(),
        ] {
            let status = of(&error);
            assert_eq!(
                status.message(),
                r#"process "false" did not complete successfully: exit code: 1"#
            );
            let details = details(&status);
            let find = |name: &str| {
                let url = format!("github.com/moby/buildkit/{name}+json");
                let found = details.iter().find(|(found, _)| *found == url);
                found
                    .unwrap_or_else(|| panic!("no {name} in {details:?}"))
                    .1
                    .clone()
            };
            assert!(
                find("errdefs.Vertex")["digest"]
                    .as_str()
                    .unwrap()
                    .starts_with("sha256:aa")
            );
            let source = find("errdefs.Source");
            assert_eq!(source["info"]["filename"], "Dockerfile");
            assert_eq!(source["info"]["data"], "RlJPTSB4Cg==");
            assert_eq!(source["ranges"][0]["start"]["line"], 1);
            assert_eq!(find("gatewayapi.ExitMessage")["Code"], 1);
            let stack = find("stack.Stack");
            assert_eq!(stack["pid"], std::process::id());
            assert_eq!(stack["cmdline"].as_array().unwrap().len(), 1);
        }
    }

    #[test]
    fn what_a_step_had_is_told_in_the_json_of_protobuf() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["false".into()],
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                output: -1,
                mount_type: pb::MountType::Bind as i32,
                ..pb::Mount::default()
            }],
            ..pb::ExecOp::default()
        };
        let detail = errdefs::Solve {
            input_i_ds: vec!["in".into()],
            mount_i_ds: vec!["out".into(), String::new()],
            op: Some(pb::Op {
                op: Some(pb::op::Op::Exec(exec)),
                ..pb::Op::default()
            }),
            subject: Some(errdefs::solve::Subject::File(errdefs::FileAction {
                index: 2,
            })),
            description: [("llb.customname".to_owned(), "n".to_owned())].into(),
        };
        let error = EngineError::Step {
            detail: Box::new(detail),
            source: Box::new(failure()),
        };
        let status = of(&error);
        let details = details(&status);
        let url = "github.com/moby/buildkit/errdefs.Solve+json";
        let solve = details.iter().find(|(found, _)| found == url);
        let (_, solve) = solve.unwrap();
        assert_eq!(solve["inputIDs"][0], "in");
        assert_eq!(solve["mountIDs"], serde_json::json!(["out", ""]));
        assert_eq!(solve["op"]["exec"]["meta"]["args"][0], "false");
        assert_eq!(solve["op"]["exec"]["mounts"][0]["output"], "-1");
        assert_eq!(solve["file"]["index"], "2");
        assert_eq!(solve["description"]["llb.customname"], "n");
        let has = |name: &str| details.iter().any(|(url, _)| url.contains(name));
        assert!(has("errdefs.Vertex") && has("errdefs.Source") && has("ExitMessage"));
    }

    #[test]
    fn a_clients_own_error_comes_back_as_it_was() {
        let returned = rpc::Status {
            code: Code::InvalidArgument as i32,
            message: "mine".into(),
            details: vec![prost_types::Any {
                type_url: "x/y".into(),
                value: vec![1],
            }],
        };
        let status = of(&EngineError::Returned {
            status: Box::new(returned.clone()),
        });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(rpc::Status::decode(status.details()).unwrap(), returned);
    }

    #[test]
    fn codes_say_what_clients_act_on() {
        let id = || "x".to_owned();
        let not_found = FrontendError::NotFound { path: "x".into() };
        let subrequest = FrontendError::UnsupportedSubrequest { name: "x".into() };
        let cancelled = EvaluateError::Solve(SolveError::Cancelled);
        for (error, code) in [
            (EngineError::NoJob { id: id() }, Code::NotFound),
            (EngineError::JobExists { id: id() }, Code::AlreadyExists),
            (EngineError::Cancelled, Code::Cancelled),
            (FrontendError::Cancelled.into(), Code::Cancelled),
            (
                FrontendError::bridge("failed to look", cancelled).into(),
                Code::Cancelled,
            ),
            (subrequest.into(), Code::Unimplemented),
            (not_found.into(), Code::Unknown),
            (EngineError::Invalid("x".into()), Code::Unknown),
        ] {
            assert_eq!(of(&error).code(), code, "{error}");
        }
    }
}
