//! `SOURCE_DATE_EPOCH`: seconds since 1970, or the name of a source that is asked for its time:
//! `context`, a named context, or a stage that is nothing but a download.

use std::io::Read;
use std::time::UNIX_EPOCH;

use cooper_dockerfile::{Add, Instruction, Stage};
use cooper_frontend::{FrontendError, SourceOptions};
use cooper_llb::build::{Constraints, EnvList, Http, State};
use cooper_proto::pb;
use prost::Message as _;

use super::args::Vars;
use super::copy::{check_digest, filename};
use super::{Converter, Result};
use crate::gitref::{GitRef, Parsed, is_http};

pub(super) const NAME: &str = "SOURCE_DATE_EPOCH";

impl Converter<'_> {
    /// Finds out the time that everything is dated by. The variable is a number from then on.
    pub(super) async fn resolve_epoch(&mut self, stages: &[Stage]) -> Result<()> {
        let value = match self.build_args.get(NAME) {
            Some(value) => value.clone(),
            None => self.global_args.get(NAME).unwrap_or_default().to_owned(),
        };
        if value.is_empty() {
            return Ok(());
        }
        if let Ok(seconds) = value.parse() {
            self.epoch = Some(seconds);
            return Ok(());
        }
        self.epoch = match self.epoch_source(&value, stages).await? {
            Some((source, title)) => self.epoch_of(source, title).await?,
            None => None,
        };
        let text = self.epoch.map(|s| s.to_string()).unwrap_or_default();
        if let Some(given) = self.build_args.get_mut(NAME) {
            given.clone_from(&text);
        }
        if self.global_args.get(NAME).is_some() {
            self.global_args.set(NAME, text);
        }
        Ok(())
    }

    /// The source of that name, and what the look at it is called. What comes from the client
    /// has no time.
    async fn epoch_source(&self, name: &str, stages: &[Stage]) -> Result<Option<(State, String)>> {
        let request = self.request;
        if name == "context" {
            let context = request.remote_context().await?;
            let title = "[internal] resolve main build context metadata".to_owned();
            return Ok(context.map(|context| (context, title)));
        }
        if let Some(named) = request.named_context(name, None)? {
            let loaded = request.load_named(&named, &Default::default()).await?;
            let title = format!("[internal] resolve {NAME} named context {name}");
            return Ok(loaded.pending.is_none().then_some((loaded.state, title)));
        }
        let wanted = name.to_lowercase();
        let Some(stage) = stages.iter().find(|stage| stage.name == wanted) else {
            return Err(FrontendError::invalid(format!("invalid {NAME}: {name}")));
        };
        let source = self.epoch_stage(stage);
        let source = source.map_err(|message| self.invalid(stage.span, message))?;
        let title = format!("[internal] resolve {NAME} source stage {}", stage.name);
        Ok(Some((source, title)))
    }

    /// The download that a stage is.
    fn epoch_stage(&self, stage: &Stage) -> std::result::Result<State, String> {
        let mut args = self.global_args.clone();
        args.remove(NAME);
        if self.word(&stage.base, &args)? != "scratch" {
            return Err(format!("{NAME} stage must use FROM scratch"));
        }
        let one = || format!("{NAME} stage must contain exactly one remote ADD");
        let mut found = None;
        for command in &stage.commands {
            match &command.instruction {
                Instruction::Arg(list) => {
                    for arg in list {
                        let value = match (self.build_args.get(&arg.key), &arg.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => self.word(default, &args)?,
                            (None, None) => continue,
                        };
                        args.set(&arg.key, value);
                    }
                }
                Instruction::Add(_) if found.is_some() => return Err(one()),
                Instruction::Add(add) => found = Some(self.epoch_download(add, &args)?),
                _ => {
                    return Err(format!(
                        "{NAME} stage does not meet source-only requirements: unsupported {} instruction",
                        command.name.to_uppercase()
                    ));
                }
            }
        }
        found.ok_or_else(one)
    }

    fn epoch_download(&self, add: &Add, args: &EnvList) -> std::result::Result<State, String> {
        let ([path], []) = (
            add.sources.paths.as_slice(),
            add.sources.contents.as_slice(),
        ) else {
            return Err(format!(
                "{NAME} stage must contain exactly one remote ADD source"
            ));
        };
        let path = self.word(path, args)?;
        let checksum = self.word(&add.checksum, args)?;
        match GitRef::parse(&path) {
            Parsed::Git(git) => {
                let keep = git.keep_git_dir.or(add.keep_git_dir).unwrap_or(false);
                let checksum = match checksum.as_str() {
                    "" => git.checksum.as_str(),
                    checksum => checksum,
                };
                Ok(git.state(keep, checksum, Constraints::default()))
            }
            Parsed::Invalid(error) => Err(error),
            Parsed::Other if is_http(&path) => {
                if !checksum.is_empty() {
                    check_digest(&checksum).map_err(|error| error.to_string())?;
                }
                let filename = filename(&path);
                let http = Http { checksum, filename };
                Ok(State::http(&path, http, Constraints::default()))
            }
            Parsed::Other => Err(format!(
                "{NAME} stage source must be a single HTTP(S) or Git ADD"
            )),
        }
    }

    fn word(&self, text: &str, args: &EnvList) -> std::result::Result<String, String> {
        let expanded = self.lex.expand(text, &Vars(args));
        Ok(expanded.map_err(|error| error.to_string())?.text)
    }

    /// The time of a source: of its commit, of what the server says, or of the newest file in
    /// the archive.
    async fn epoch_of(&self, state: State, title: String) -> Result<Option<i64>> {
        let request = self.request;
        let definition = state.marshal(&request.marshal_options());
        let Some((op, source)) = only_source(&definition) else {
            return Ok(None);
        };
        let options = SourceOptions {
            log_name: title,
            return_object: source.identifier.starts_with("git://"),
            ..SourceOptions::default()
        };
        let found = request.bridge.resolve_source_meta(&source, options).await?;
        if let Some(git) = found.git {
            return Ok(commit_time(&git.commit_object));
        }
        let Some(http) = found.http else {
            return Ok(None);
        };
        if let Some(time) = http.last_modified {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            return Ok(i64::try_from(since.as_secs()).ok());
        }
        let alone = pb::Definition {
            def: vec![op.clone(), end(&op)],
            ..pb::Definition::default()
        };
        let Some(reference) = request.solve(alone, false).await? else {
            return Ok(None);
        };
        let archive = reference.read_file(&http.filename, None).await?;
        let newest = tokio::task::spawn_blocking(move || newest(&archive)).await;
        Ok(newest.unwrap_or(None))
    }
}

/// The source of a graph that has one, with its vertex.
fn only_source(definition: &pb::Definition) -> Option<(prost::bytes::Bytes, pb::SourceOp)> {
    let mut found = None;
    for bytes in &definition.def {
        let op = pb::Op::decode(bytes.as_ref()).ok()?;
        if let Some(pb::op::Op::Source(source)) = op.op
            && found.replace((bytes.clone(), source)).is_some()
        {
            return None;
        }
    }
    found
}

/// What ends the graph of a vertex.
fn end(op: &[u8]) -> prost::bytes::Bytes {
    let input = pb::Input {
        digest: cooper_llb::digest_of(op).to_string(),
        index: 0,
    };
    let end = pb::Op {
        inputs: vec![input],
        ..pb::Op::default()
    };
    end.encode_to_vec().into()
}

/// When a commit was made, from the object as git stores it.
fn commit_time(object: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(object);
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    let line = lines.find_map(|line| line.strip_prefix("committer "))?;
    line.rsplit(' ').nth(1)?.parse().ok()
}

/// The time of the newest file in an archive; `None` if it is none.
fn newest(archive: &[u8]) -> Option<i64> {
    let reader: Box<dyn Read + '_> = match archive {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(archive)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(archive).ok()?),
        _ => Box::new(archive),
    };
    let mut archive = tar::Archive::new(reader);
    let mut newest = None;
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let told = entry.pax_extensions().ok().flatten().and_then(|mut all| {
            let time = all.find_map(|each| each.ok().filter(|each| each.key() == Ok("mtime")))?;
            time.value().ok()?.split('.').next()?.parse().ok()
        });
        let time = match told {
            Some(time) => time,
            None => i64::try_from(entry.header().mtime().ok()?).ok()?,
        };
        newest = newest.max(Some(time));
    }
    newest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    fn archive(times: &[u64]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (number, time) in times.iter().enumerate() {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mtime(*time);
            let name = format!("file{number}");
            tar.append_data(&mut header, name, &b"x"[..]).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mtime(1 << 31);
        tar.append_data(&mut header, "dir", &b""[..]).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn the_newest_file_of_an_archive_dates_it() {
        let plain = archive(&[3, 9, 7]);
        assert_eq!(newest(&plain), Some(9));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        gzip.write_all(&plain).unwrap();
        assert_eq!(newest(&gzip.finish().unwrap()), Some(9));
        assert_eq!(newest(&zstd::encode_all(&plain[..], 1).unwrap()), Some(9));
        assert_eq!(newest(&archive(&[])), None);
        assert_eq!(newest(&plain[..700]), None);
        assert_eq!(newest(b"hello"), None);
        assert_eq!(newest(b""), None);
    }

    #[test]
    fn a_commit_has_the_time_of_its_committer() {
        let object =
            "tree 1\nauthor A <a@b> 5 +0100\ncommitter B C <b@c> 77 -0130\n\ncommitter x 9 +0000\n";
        assert_eq!(commit_time(object.as_bytes()), Some(77));
        assert_eq!(commit_time(b"tree 1\n\ncommitter x 9 +0000\n"), None);
        assert_eq!(commit_time(b"committer"), None);
    }
}
