//! Whether a result has the platforms that were asked for (`exporter/verifier` in BuildKit).

use std::collections::BTreeSet;

use cooper_llb::platform::{format, format_all, host, normalize, parse};

use crate::platforms::{self, KEY};
use crate::{ExportError, ExportInput};

/// What a user should know of a result: `requested` are the platforms that its client asked for,
/// joined by commas; the host's when it asked for none.
///
/// # Errors
/// The result says nothing about platforms, or nothing that makes sense.
///
/// ```
/// use cooper_exporter::{ExportInput, verify};
///
/// let warnings = verify(&ExportInput::default(), Some("linux/amd64,linux/arm64"))?;
/// assert_eq!(warnings, ["Multiple platforms requested but result is not multi-platform"]);
/// # Ok::<_, cooper_exporter::ExportError>(())
/// ```
pub fn verify(input: &ExportInput, requested: Option<&str>) -> Result<Vec<String>, ExportError> {
    let multi = !input.references.is_empty();
    if multi && !input.metadata.contains_key(KEY) {
        return Err(ExportError::result(
            "build result contains multiple refs without platforms mapping",
        ));
    }
    let found: Vec<String> = platforms::parse(&input.metadata)?
        .into_iter()
        .map(|platform| format_all(&normalize(&platforms::from_spec(platform.spec))))
        .collect();
    let host = format(&normalize(&host()));
    let requested: Vec<&str> = requested.unwrap_or(&host).split(',').collect();

    let mut warnings = Vec::new();
    let mut wanted = BTreeSet::new();
    for text in &requested {
        match parse(text) {
            Ok(platform) => {
                if !wanted.insert(format_all(&normalize(&platform))) {
                    warnings.push(format!("Duplicate platform result requested {text:?}"));
                }
            }
            Err(error) => {
                warnings.push(format!(
                    "Invalid platform result requested {text:?}: {error}"
                ));
            }
        }
    }
    if !warnings.is_empty() {
        return Ok(warnings);
    }
    let fits = wanted.len() == found.len() && found.iter().all(|one| wanted.contains(one));
    if fits {
        return Ok(warnings);
    }
    warnings.push(match (found.as_slice(), multi) {
        ([one], _) if wanted.len() == 1 => format!(
            "Requested platform {:?} does not match result platform {one:?}",
            requested[0]
        ),
        (_, false) if wanted.len() > 1 => {
            "Multiple platforms requested but result is not multi-platform".to_owned()
        }
        _ => {
            let wanted: Vec<String> = wanted.into_iter().collect();
            let mut found = found;
            found.sort_unstable();
            let (wanted, found) = (wanted.join(","), found.join(","));
            format!("Requested platforms {wanted} do not match result platforms {found}")
        }
    });
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(platforms: &[&str]) -> ExportInput {
        let mut input = ExportInput::default();
        if platforms.is_empty() {
            return input;
        }
        let one = |name: &&str| {
            let (os, architecture) = name.split_once('/').unwrap();
            serde_json::json!({
                "ID": name,
                "Platform": { "os": os, "architecture": architecture },
            })
        };
        let all: Vec<_> = platforms.iter().map(one).collect();
        let text = serde_json::json!({ "Platforms": all }).to_string();
        input.metadata.insert(KEY.to_owned(), text.into_bytes());
        let all = platforms.iter().map(|name| ((*name).to_owned(), None));
        input.references = all.collect();
        input
    }

    #[test]
    fn what_does_not_fit_is_said() {
        const TWO: &[&str] = &["linux/arm64", "linux/amd64"];
        let warning = |platforms: &[&str], requested: &str| {
            verify(&input(platforms), Some(requested)).unwrap()
        };
        assert_eq!(warning(TWO, "linux/amd64,linux/arm64"), [""; 0]);
        assert_eq!(warning(TWO, "linux/arm64/v8,linux/amd64"), [""; 0]);
        assert_eq!(
            warning(TWO, "linux/amd64"),
            [
                "Requested platforms linux/amd64 do not match result platforms \
              linux/amd64,linux/arm64"
            ]
        );
        assert_eq!(
            warning(&[], "linux/amd64,linux/arm64"),
            ["Multiple platforms requested but result is not multi-platform"]
        );
        assert_eq!(
            warning(&["linux/s390x"], "linux/arm64"),
            ["Requested platform \"linux/arm64\" does not match result platform \"linux/s390x\""]
        );
        assert_eq!(
            warning(TWO, "linux/amd64,linux/amd64"),
            ["Duplicate platform result requested \"linux/amd64\""]
        );
        assert_eq!(verify(&input(&[]), None).unwrap(), [""; 0]);
        let mut lost = input(TWO);
        lost.metadata.clear();
        let error = verify(&lost, None).unwrap_err().to_string();
        assert!(error.contains("without platforms mapping"), "{error}");
    }
}
