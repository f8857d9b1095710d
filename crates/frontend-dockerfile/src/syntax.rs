//! Which frontend is to read the Dockerfile: a `# syntax=` line or the argument `BUILDKIT_SYNTAX`
//! names an image.

use std::collections::BTreeMap;

use cooper_dockerfile::{Span, detect_syntax};
use cooper_frontend::{FrontendError, FrontendResult, SolveRequest};

use crate::context::Request;
use crate::source::Source;

/// The argument that is stronger than what stands in the file.
const ARGUMENT: &str = "build-arg:BUILDKIT_SYNTAX";
/// How a frontend is told why it was called: one that was does not call another.
const CMDLINE: &str = "cmdline";
/// The images of the frontend that this one is: pulling one would give nothing but time.
const OWN: &[&str] = &["docker/dockerfile", "docker/dockerfile-upstream"];

/// Another frontend that is to be called.
pub(crate) struct Syntax {
    /// The image.
    image: String,
    /// The image and its arguments.
    cmdline: String,
    /// Where it says so.
    span: Option<Span>,
}

impl Syntax {
    /// The one that options or the file name, if it is not this one.
    pub(crate) fn of(opts: &BTreeMap<String, String>, source: &Source) -> Option<Self> {
        if opts.contains_key(CMDLINE) {
            return None;
        }
        let (cmdline, span) = match opts.get(ARGUMENT) {
            Some(argument) => (argument.trim().to_owned(), None),
            None => {
                let found = detect_syntax(source.text())?;
                (found.value, Some(found.span))
            }
        };
        let image = cmdline.split(' ').next().unwrap_or_default().to_owned();
        (!is_own(&image)).then_some(Self {
            image,
            cmdline,
            span,
        })
    }

    /// Calls it with all that this one was given.
    pub(crate) async fn forward(
        self,
        request: &Request,
        mut opts: BTreeMap<String, String>,
        source: &Source,
    ) -> Result<FrontendResult, FrontendError> {
        opts.insert(CMDLINE.to_owned(), self.cmdline);
        opts.insert("source".to_owned(), self.image);
        let forwarded = request.bridge.solve(SolveRequest {
            frontend: "gateway.v0".to_owned(),
            frontend_opts: opts,
            frontend_inputs: request.inputs.clone(),
            ..SolveRequest::default()
        });
        forwarded.await.map_err(|error| match self.span {
            Some(span) => error.at(source.location(span)),
            None => error,
        })
    }
}

/// Whether an image is one of this frontend, of any version.
fn is_own(image: &str) -> bool {
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    OWN.iter().any(|own| {
        let rest = name.strip_prefix(own);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_images_are_this_frontend() {
        for own in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.7-labs",
            "docker/dockerfile@sha256:ab",
            "docker/dockerfile-upstream:master",
        ] {
            assert!(is_own(own), "{own}");
        }
        for other in [
            "example.com/docker/dockerfile:1",
            "docker/dockerfile-other",
            "docker/dockerfiles",
            "tonistiigi/dockerfile:x",
            "",
        ] {
            assert!(!is_own(other), "{other}");
        }
    }
}
