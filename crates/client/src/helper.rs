//! Programs that keep credentials (docker/docker-credential-helpers).

use std::io;
use std::process::Stdio;
use std::time::Duration;

use cooper_session::auth::Credentials;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

/// A helper may ask its user, but a build does not wait for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than any answer, in bytes.
const MOST: u64 = 1 << 20;
/// The username that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks `docker-credential-NAME` for what it keeps for `key`; `None` when that is nothing. What it
/// answers is in no error and no log, and neither is what it says beside.
///
/// # Errors
/// It cannot be run, takes longer than thirty seconds (and is killed), fails, or answers with
/// something else.
///
/// # Cancel safety
/// Dropping the future kills the helper.
pub(crate) async fn ask(name: &str, key: &str) -> io::Result<Option<Credentials>> {
    // A name from a file: it is one program, not a path to any.
    if name.contains('/') {
        let text = format!("invalid credential helper {name:?}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    ask_within(&format!("docker-credential-{name}"), key, PATIENCE).await
}

async fn ask_within(
    program: &str,
    key: &str,
    patience: Duration,
) -> io::Result<Option<Credentials>> {
    let late = |_| {
        let seconds = patience.as_secs();
        io::Error::other(format!("{program} did not answer within {seconds} s"))
    };
    let ran = timeout(patience, run(program, key)).await.map_err(late)?;
    let (success, status, output) = ran.map_err(|error| {
        let text = format!("error getting credentials - err: exec {program}: {error}");
        io::Error::other(text)
    })?;
    if output.len() as u64 > MOST {
        return Err(io::Error::other(format!(
            "{program} says more than {MOST} bytes"
        )));
    }
    if !success {
        // Helpers say errors on standard output.
        let text = String::from_utf8_lossy(&output);
        let text = text.trim();
        if text.contains("credentials not found") {
            return Ok(None);
        }
        let text = format!("error getting credentials - err: {status}, out: `{text}`");
        return Err(io::Error::other(text));
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| io::Error::other(format!("{program} gave no credentials")))?;
    Ok(Some(Credentials {
        username: match answer.username.as_str() {
            TOKEN_USER => String::new(),
            name => name.to_owned(),
        },
        secret: answer.secret,
    }))
}

/// Whether it succeeded, how it ended, and what it said.
async fn run(program: &str, key: &str) -> io::Result<(bool, String, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let asking = async {
        if let Some(mut stdin) = stdin {
            // One that does not read it says why at its end.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
    };
    let hearing = async {
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            // One byte more than may be: too much is refused, not cut.
            stdout.take(MOST + 1).read_to_end(&mut output).await?;
        }
        io::Result::Ok(output)
    };
    let ((), output) = tokio::join!(asking, hearing);
    let output = output?;
    // What it cannot write any more would keep it from its end.
    if output.len() as u64 > MOST {
        child.start_kill()?;
    }
    let status = child.wait().await?;
    Ok((status.success(), status.to_string(), output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// What a helper of this script answers.
    async fn asked(script: &str) -> Result<Option<(String, String)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let patience = Duration::from_millis(700);
        let asked = ask_within(path.to_str().unwrap(), "registry.example", patience).await;
        let pair = |found: Credentials| (found.username, found.secret);
        asked
            .map(|found| found.map(pair))
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_helper_is_given_the_key_and_gives_what_it_keeps() {
        let echo = r#"read key; echo "{\"Username\": \"$1\", \"Secret\": \"of $key\"}""#;
        let pair = |user: &str, secret: &str| Some((user.to_owned(), secret.to_owned()));
        assert_eq!(
            asked(echo).await.unwrap(),
            pair("get", "of registry.example")
        );
        // It need not read, and what it says beside is not listened to.
        let token = r#"echo noise >&2; echo '{"Username": "<token>", "Secret": "t"}'"#;
        assert_eq!(asked(token).await.unwrap(), pair("", "t"));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(asked(none).await.unwrap(), None);
    }

    #[tokio::test]
    async fn one_that_fails_is_named_and_gives_nothing_away() {
        let failed = asked("echo no keyring; exit 2").await.unwrap_err();
        assert!(
            failed.contains("exit status: 2, out: `no keyring`"),
            "{failed}"
        );
        let garbage = asked("echo the-secret").await.unwrap_err();
        assert!(garbage.contains("gave no credentials"), "{garbage}");
        assert!(!garbage.contains("the-secret"), "{garbage}");
        let large = asked("exec yes").await.unwrap_err();
        assert!(large.contains("says more than"), "{large}");
        let path = ask("../evil", "x").await.unwrap_err().to_string();
        assert!(path.contains("invalid credential helper"), "{path}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 12345", pid.display());
        let late = asked(&script).await.unwrap_err();
        assert!(late.contains("did not answer within"), "{late}");
        let pid = std::fs::read_to_string(pid).unwrap();
        let gone = || match std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        for _ in 0..200 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the helper still runs");
    }
}
