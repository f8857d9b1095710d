//! Running a process.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use cooper_cache::LocalRef;
use cooper_executor::{
    ContainerSpec, HostIp, NetworkMode, Output as Stream, Process, SecurityMode, Ulimit,
};
use cooper_mount::{Prepare, Prepared};
use cooper_progress::{Clip, STDERR, STDOUT, VertexProgress};
use cooper_proto::pb;
use cooper_session::{Group, secrets};
use cooper_solver::OpContext;
use futures::future::try_join_all;
use tracing::{Instrument, debug_span};

use super::ExecOp;
use crate::env::{Build, Output, limits, localize, note_usage, sessions};
use crate::{ExecFailure, FailedFiles, OpsError};

/// The number of the signal.
const SIGKILL: i32 = 9;
const PATH_LINUX: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_WINDOWS: &str =
    r"c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0";

impl ExecOp {
    /// Runs the process. The spans that it is in are the parts of a step in a trace of it.
    pub(super) async fn run(
        &self,
        cx: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpsError> {
        let span = debug_span!("exec", args = self.meta().args.join(" "));
        self.run_parts(cx, inputs).instrument(span).await
    }

    async fn run_parts(
        &self,
        cx: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpsError> {
        let inputs: Vec<Option<LocalRef>> = try_join_all(
            inputs
                .iter()
                .enumerate()
                .map(|(index, input)| localize(&self.env, cx, &self.inputs, index, input)),
        )
        .instrument(debug_span!("inputs"))
        .await?;
        let sessions = sessions(cx);
        let _leave = self.env.acquire().instrument(debug_span!("queue")).await;
        let prepared = self
            .env
            .mounts
            .prepare(Prepare {
                mounts: &self.op.mounts,
                inputs: &inputs,
                cwd: &self.meta().cwd,
                description: &format!("exec {}", self.meta().args.join(" ")),
                sessions: &sessions,
                progress: Some(cx.progress()),
            })
            .instrument(debug_span!("prepare mounts"))
            .await?;
        let container = ContainerSpec {
            root: prepared.root.clone(),
            root_read_only: prepared.root_read_only,
            mounts: prepared.mounts.clone(),
            resources: limits(cx),
            ..self.container()?
        };
        let process = self.process(&sessions, cx.progress()).await?;

        let args = &self.meta().args;
        let failed = |source, files| OpsError::Start {
            args: args.join(" "),
            source: Box::new(source),
            files: Box::new(files),
        };
        let start = |source| failed(source, FailedFiles::default());
        let started = self
            .env
            .executor
            .start(container, process)
            .instrument(debug_span!("start"))
            .await;
        let running = match started {
            Ok(running) => running,
            Err(source) => return Err(failed(source, self.failed_files(&inputs, prepared).await)),
        };
        let exit = tokio::select! {
            exit = running.wait().instrument(debug_span!("run")) => exit.map_err(start)?,
            outgrown = prepared.outgrown() => {
                // Its file systems are not mounted any more when it has ended.
                running.signal(SIGKILL).await.map_err(start)?;
                running.wait().await.map_err(start)?;
                return Err(outgrown.into());
            }
        };
        if let Some(usage) = running.usage() {
            note_usage(cx, &usage);
        }
        drop(running);
        prepared.check_size().await?;
        if !self.is_wanted(exit.code) {
            return Err(OpsError::Exec {
                failure: ExecFailure::new(args, exit.code, exit.oom),
                files: Box::new(self.failed_files(&inputs, prepared).await),
            });
        }
        let outputs = prepared.commit().instrument(debug_span!("commit")).await?;
        Ok(in_order(outputs))
    }

    /// What the process saw and what it left. That it failed is what matters: what cannot be
    /// kept is left out.
    async fn failed_files(&self, inputs: &[Option<LocalRef>], prepared: Prepared) -> FailedFiles {
        let input = |mount: &pb::Mount| {
            let input = inputs.get(usize::try_from(mount.input).ok()?)?;
            input.as_deref().cloned()
        };
        let inputs: Vec<_> = self.op.mounts.iter().map(input).collect();
        let mut mounts = inputs.clone();
        match prepared.commit_failed().await {
            Ok(left) => {
                for (index, left) in left {
                    if let Some(mount) = mounts.get_mut(index) {
                        *mount = Some(left);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the files of a failed step were not kept"),
        }
        FailedFiles { inputs, mounts }
    }

    fn is_wanted(&self, code: u32) -> bool {
        let wanted = &self.meta().valid_exit_codes;
        match wanted.as_slice() {
            [] => code == 0,
            wanted => wanted
                .iter()
                .any(|wanted| i64::from(*wanted) == i64::from(code)),
        }
    }

    /// The container, but for its files.
    fn container(&self) -> Result<ContainerSpec, OpsError> {
        let meta = self.meta();
        let extra_hosts = meta.extra_hosts.iter().map(|host| {
            // Checked here, because anything else could add lines to the hosts file.
            match host.ip.parse::<std::net::IpAddr>() {
                Ok(ip) => Ok(HostIp {
                    host: host.host.clone(),
                    ip: ip.to_string(),
                }),
                Err(_) => {
                    let ip = &host.ip;
                    Err(OpsError::invalid(format!("failed to parse IP {ip}")))
                }
            }
        });
        let ulimits = meta.ulimit.iter().map(|limit| Ulimit {
            name: limit.name.clone(),
            soft: limit.soft,
            hard: limit.hard,
        });
        Ok(ContainerSpec {
            hostname: meta.hostname.clone(),
            extra_hosts: extra_hosts.collect::<Result<_, _>>()?,
            network: match self.op.network() {
                pb::NetMode::Unset => NetworkMode::Default,
                pb::NetMode::Host => NetworkMode::Host,
                pb::NetMode::None => NetworkMode::None,
            },
            security: match self.op.security() {
                pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
                pb::SecurityMode::Insecure => SecurityMode::Insecure,
            },
            ulimits: ulimits.collect(),
            cgroup_parent: meta.cgroup_parent.clone(),
            remove_mount_stubs: meta.remove_mount_stubs_recursive,
            ..ContainerSpec::default()
        })
    }

    async fn process(
        &self,
        sessions: &Group,
        progress: &VertexProgress,
    ) -> Result<Process, OpsError> {
        let meta = self.meta();
        let mut env = meta.env.clone();
        env.extend(meta.proxy_env.iter().flat_map(proxy));
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            let windows = self.platform.os == "windows";
            let path = if windows { PATH_WINDOWS } else { PATH_LINUX };
            env.push(format!("PATH={path}"));
        }
        env.extend(secret_variables(&self.op.secretenv, sessions).await?);
        let clip = Arc::new(Mutex::new(Clip::new(self.env.log_limits)));
        Ok(Process {
            args: meta.args.clone(),
            env,
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            stdout: self.stream(STDOUT, clip.clone(), progress.clone()),
            stderr: self.stream(STDERR, clip, progress.clone()),
            ..Process::default()
        })
    }

    fn stream(&self, number: i64, clip: Arc<Mutex<Clip>>, progress: VertexProgress) -> Stream {
        stream(number, clip, progress, self.env.print_output)
    }
}

/// The variables whose values are the client's secrets.
pub async fn secret_variables(
    secrets: &[pb::SecretEnv],
    sessions: &Group,
) -> Result<Vec<String>, OpsError> {
    let mut variables = Vec::new();
    for secret in secrets {
        let (id, name) = (secret.id.as_str(), &secret.name);
        if id.is_empty() {
            return Err(OpsError::invalid(format!(
                "secret ID missing for {name:?} environment variable"
            )));
        }
        let found = if sessions.is_empty() {
            None
        } else {
            sessions
                .any(|session| async move { secrets::get(&session, id).await })
                .await?
        };
        match found {
            Some(value) => {
                let value = String::from_utf8_lossy(&value);
                variables.push(format!("{name}={value}"));
            }
            None if secret.optional => {}
            None => return Err(OpsError::invalid(format!("secret {id}: not found"))),
        }
    }
    Ok(variables)
}

/// The variables of a proxy, in both cases: programs do not agree on one.
fn proxy(proxy: &pb::ProxyEnv) -> Vec<String> {
    let all = [
        ("HTTP_PROXY", &proxy.http_proxy),
        ("HTTPS_PROXY", &proxy.https_proxy),
        ("FTP_PROXY", &proxy.ftp_proxy),
        ("NO_PROXY", &proxy.no_proxy),
        ("ALL_PROXY", &proxy.all_proxy),
    ];
    let set = all.into_iter().filter(|(_, value)| !value.is_empty());
    set.flat_map(|(name, value)| {
        [
            format!("{name}={value}"),
            format!("{}={value}", name.to_lowercase()),
        ]
    })
    .collect()
}

/// Output that is shown on the vertex, as far as the limits of both streams together go, and if
/// it is to be printed on the same stream of the daemon as well.
fn stream(number: i64, clip: Arc<Mutex<Clip>>, progress: VertexProgress, printed: bool) -> Stream {
    Stream::call(move |data: Bytes| {
        let mut clip = clip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(data) = clip.pass(data, Instant::now()) {
            if printed {
                print(number, &data);
            }
            progress.log(number, data);
        }
    })
}

/// For who looks for a mistake: it may wait for whoever reads the daemon's output.
fn print(number: i64, data: &[u8]) {
    // Nobody has to read it.
    let _ = match number {
        STDERR => std::io::stderr().write_all(data),
        _ => std::io::stdout().write_all(data),
    };
}

/// Outputs by number; one that nothing was made for is scratch.
fn in_order(outputs: Vec<(usize, cooper_cache::ImmutableRef)>) -> Vec<Output> {
    let count = outputs.iter().map(|(index, _)| index + 1).max();
    let mut by_index: HashMap<_, _> = outputs.into_iter().collect();
    (0..count.unwrap_or(0))
        .map(|index| by_index.remove(&index))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_progress::{Collect, Event, Limits};

    #[test]
    fn a_proxy_is_set_in_both_cases() {
        let set = proxy(&pb::ProxyEnv {
            http_proxy: "h".into(),
            no_proxy: "n".into(),
            ..pb::ProxyEnv::default()
        });
        let expected = ["HTTP_PROXY=h", "http_proxy=h", "NO_PROXY=n", "no_proxy=n"];
        assert_eq!(set, expected);
    }

    #[test]
    fn both_streams_share_one_limit() {
        let sink = Arc::new(Collect::default());
        let digest = cooper_llb::digest_of(b"vertex");
        let progress = VertexProgress::new(digest, sink.clone());
        let clip = Arc::new(Mutex::new(Clip::new(Limits {
            size: Some(3),
            speed: None,
        })));
        let streams = [
            stream(STDOUT, clip.clone(), progress.clone(), false),
            stream(STDERR, clip, progress, false),
        ];
        for stream in &streams {
            let Stream::Call(write) = stream else {
                panic!("output that is no call");
            };
            write("ab".into());
        }
        let logs: Vec<_> = sink
            .take()
            .into_iter()
            .filter_map(|event| match event {
                Event::Log(log) => {
                    Some((log.stream, String::from_utf8_lossy(&log.data).into_owned()))
                }
                _ => None,
            })
            .collect();
        assert_eq!(logs[0], (STDOUT, "ab".to_owned()));
        let clipped = "a\n[output clipped, log limit 3B reached]\n";
        assert_eq!(logs[1], (STDERR, clipped.to_owned()));
    }
}
