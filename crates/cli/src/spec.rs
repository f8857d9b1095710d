//! The values of options that have parts: outputs, secrets, ssh agents, caches.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cooper_client::{RegistryTls, SecretSource, Secrets};
use cooper_proto::control::CacheOptionsEntry;
use cooper_session::secrets::MAX_SECRET_SIZE;
use cooper_session::serve::{Output, SshAgent};
use cooper_session::ssh::DEFAULT_ID;

/// One exporter.
pub(crate) struct Export {
    pub(crate) kind: String,
    pub(crate) attrs: BTreeMap<String, String>,
    /// Where its result goes on this side; `None` when it goes nowhere here.
    pub(crate) output: Option<Output>,
    /// The image layout that it writes blobs to, if it does.
    pub(crate) layout: Option<PathBuf>,
}

/// The exporters of `--output`, `--tag` and `--push`.
pub(crate) fn exports(outputs: &[String], tags: &[String], push: bool) -> Result<Vec<Export>> {
    let mut exports = outputs
        .iter()
        .map(|text| export(text))
        .collect::<Result<Vec<_>>>()?;
    if exports.is_empty() && (push || !tags.is_empty()) {
        exports.push(Export {
            kind: "image".to_owned(),
            attrs: BTreeMap::new(),
            output: None,
            layout: None,
        });
    }
    if push && !exports.iter().any(|export| export.kind == "image") {
        let kind = &exports[0].kind;
        bail!("push and {kind:?} output can't be used together");
    }
    // The result stays where it was built.
    exports.retain(|export| export.kind != "cacheonly");
    for export in &mut exports {
        if push && export.kind == "image" {
            export.attrs.insert("push".to_owned(), "true".to_owned());
        }
        let named = matches!(export.kind.as_str(), "image" | "oci" | "docker");
        if named && !tags.is_empty() {
            export.attrs.insert("name".to_owned(), tags.join(","));
        }
        let pushes = export.attrs.get("push").is_some_and(|push| push == "true");
        if pushes && !export.attrs.contains_key("name") {
            bail!("tag is needed when pushing to registry");
        }
    }
    Ok(exports)
}

fn export(text: &str) -> Result<Export> {
    if text == "-" {
        return stream("tar", BTreeMap::new(), "-");
    }
    let mut attrs = if text.contains('=') {
        pairs(text)?
    } else {
        // A plain path.
        let local = [("type", "local"), ("dest", text)];
        local
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    };
    let kind = attrs
        .remove("type")
        .context("type is required for output")?;
    let dest = attrs.remove("dest").unwrap_or_default();
    match kind.as_str() {
        "local" => {
            if dest.is_empty() {
                bail!("dest is required for local exporter");
            }
            if dest == "-" {
                bail!("dest cannot be stdout for local exporter");
            }
            let dir = PathBuf::from(dest);
            if dir.exists() && !dir.is_dir() {
                bail!("destination directory {} is a file", dir.display());
            }
            let mirror = attrs.get("mode").is_some_and(|mode| mode == "delete");
            let output = if mirror {
                Output::Mirror(dir)
            } else {
                Output::Dir(dir)
            };
            Ok(Export {
                kind,
                attrs,
                output: Some(output),
                layout: None,
            })
        }
        "oci" | "docker" if attrs.get("tar").is_some_and(|tar| tar == "false") => {
            if dest.is_empty() || dest == "-" {
                bail!("dest is required for {kind} exporter with tar=false");
            }
            let dir = PathBuf::from(dest);
            if dir.exists() && !dir.is_dir() {
                bail!("destination directory {} is a file", dir.display());
            }
            Ok(Export {
                kind,
                attrs,
                output: None,
                layout: Some(dir),
            })
        }
        "tar" | "oci" | "docker" => stream(&kind, attrs, &dest),
        "registry" | "image" => {
            if !dest.is_empty() {
                bail!("dest is not supported for output {kind}");
            }
            if kind == "registry" {
                attrs.insert("push".to_owned(), "true".to_owned());
            }
            Ok(Export {
                kind: "image".to_owned(),
                attrs,
                output: None,
                layout: None,
            })
        }
        _ => Ok(Export {
            kind,
            attrs,
            output: None,
            layout: None,
        }),
    }
}

fn stream(kind: &str, attrs: BTreeMap<String, String>, dest: &str) -> Result<Export> {
    let output = if dest.is_empty() || dest == "-" {
        if std::io::stdout().is_terminal() {
            bail!("dest file is required for {kind} exporter. refusing to write to console");
        }
        Output::stream(tokio::io::stdout())
    } else {
        if Path::new(dest).is_dir() {
            bail!("destination file {dest} is a directory");
        }
        Output::File(dest.into())
    };
    Ok(Export {
        kind: kind.to_owned(),
        attrs,
        output: Some(output),
        layout: None,
    })
}

/// The secrets of `--secret`.
pub(crate) fn secrets(specs: &[String]) -> Result<Secrets> {
    let mut secrets = Secrets::default();
    for spec in specs {
        let mut attrs = pairs(spec)?;
        let id = attrs.remove("id").unwrap_or_default();
        if id.is_empty() {
            bail!("secret missing ID");
        }
        let kind = attrs.remove("type");
        let source = attrs.remove("src").or_else(|| attrs.remove("source"));
        let variable = attrs.remove("env");
        if let Some(name) = attrs.keys().next() {
            bail!("unexpected key '{name}' in '{spec}'");
        }
        let from_file = |path: &str| SecretSource::File(path.into());
        let source = match (kind.as_deref(), source, variable) {
            (None | Some("file" | "env"), _, Some(name)) => SecretSource::Env(name),
            (Some("env"), Some(name), None) => SecretSource::Env(name),
            (None | Some("file"), Some(path), None) => from_file(&path),
            (None | Some("env"), None, None) if std::env::var_os(&id).is_some() => {
                SecretSource::Env(id.clone())
            }
            (None | Some("file"), None, None) => from_file(&id),
            (Some("env"), None, None) => SecretSource::Env(id.clone()),
            (Some(other), _, _) => bail!("unsupported secret type {other:?}"),
        };
        if let SecretSource::File(path) = &source {
            let metadata = std::fs::metadata(path);
            let size = metadata.with_context(|| format!("failed to stat {}", path.display()))?;
            if size.len() > MAX_SECRET_SIZE as u64 {
                bail!("secret {id} too big. max size {MAX_SECRET_SIZE} bytes");
            }
        }
        secrets.0.insert(id, source);
    }
    Ok(secrets)
}

/// The agents of `--ssh`.
pub(crate) fn agents(specs: &[String]) -> Result<BTreeMap<String, SshAgent>> {
    let mut agents = BTreeMap::new();
    for spec in specs {
        let mut parts = spec.split(',');
        let first = parts.next().unwrap_or_default();
        let (id, socket) = first.split_once('=').unwrap_or((first, ""));
        let raw = parts.any(|part| part == "raw=true");
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        let socket = match socket {
            "" => std::env::var_os("SSH_AUTH_SOCK")
                .map(PathBuf::from)
                .context("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")?,
            path => path.into(),
        };
        use std::os::unix::fs::FileTypeExt;
        let metadata = std::fs::metadata(&socket);
        let metadata = metadata.with_context(|| format!("failed to stat {}", socket.display()))?;
        if !metadata.file_type().is_socket() {
            let path = socket.display();
            bail!("{path} is no socket: keys have to be in an agent (ssh-add)");
        }
        if agents
            .insert(id.to_owned(), SshAgent { socket, raw })
            .is_some()
        {
            bail!("duplicate agent ID {id:?}");
        }
    }
    Ok(agents)
}

/// The certificates of `--registry-auth-tlscontext`, by registry. What is said of one of them in
/// several options is put together.
pub(crate) fn registry_tls(specs: &[String]) -> Result<BTreeMap<String, RegistryTls>> {
    const OPTION: &str = "--registry-auth-tlscontext";
    let mut found: BTreeMap<String, RegistryTls> = BTreeMap::new();
    for spec in specs {
        let mut attrs = pairs(spec)?;
        let host = attrs.remove("host").filter(|host| !host.is_empty());
        let host = host.with_context(|| format!("{OPTION} requires host=<host>"))?;
        let (ca, cert, key) = (
            attrs.remove("ca"),
            attrs.remove("cert"),
            attrs.remove("key"),
        );
        let tls = found.entry(host).or_default();
        match (ca, cert, key) {
            (None, None, None) => bail!("{OPTION} requires ca=<ca> or cert=<cert>,key=<key>"),
            (_, Some(_), None) | (_, None, Some(_)) => {
                bail!("{OPTION} requires cert=<cert>,key=<key>")
            }
            (ca, cert, key) => {
                tls.authorities.extend(ca.map(PathBuf::from));
                if let (Some(cert), Some(key)) = (cert, key) {
                    tls.pair = Some((cert.into(), key.into()));
                }
            }
        }
    }
    Ok(found)
}

/// The caches of `--cache-from` and `--cache-to`.
pub(crate) fn caches(specs: &[String]) -> Result<Vec<CacheOptionsEntry>> {
    let parse = |spec: &String| {
        if !spec.contains('=') {
            return Ok(CacheOptionsEntry {
                r#type: "registry".to_owned(),
                attrs: [("ref".to_owned(), spec.clone())].into(),
            });
        }
        let mut attrs = pairs(spec)?;
        let kind = attrs.remove("type");
        let kind = kind.with_context(|| format!("type required form> {spec:?}"))?;
        if kind == "local" {
            bail!("cache type local is not supported");
        }
        Ok(CacheOptionsEntry {
            r#type: kind,
            attrs,
        })
    };
    specs.iter().map(parse).collect()
}

/// `name=value` parts of one line of CSV; names in lower case.
fn pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for field in fields(text)? {
        let (name, value) = field
            .split_once('=')
            .with_context(|| format!("invalid value {field}"))?;
        found.insert(name.trim().to_lowercase(), value.to_owned());
    }
    Ok(found)
}

/// The fields of one line of CSV (RFC 4180).
fn fields(line: &str) -> Result<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(char) = chars.next() {
        let field = fields.last_mut().expect("there is always a last field");
        match char {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted {
        bail!("invalid value {line}: a quote has no end");
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn fields_are_those_of_csv() {
        let cases: [(&str, &[&str]); 4] = [
            ("a=1,b=2", &["a=1", "b=2"]),
            ("\"a=1,2\",b", &["a=1,2", "b"]),
            ("\"a=\"\"x\"\"\"", &["a=\"x\""]),
            ("a,", &["a", ""]),
        ];
        for (line, expected) in cases {
            assert_eq!(fields(line).unwrap(), expected, "{line}");
        }
        assert!(fields("\"a").is_err());
    }

    #[test]
    fn outputs_say_where_results_go() {
        let parse = |outputs: &[&str], tags: &[&str], push| {
            exports(&strings(outputs), &strings(tags), push)
        };
        let one =
            |outputs: &[&str], tags: &[&str], push| parse(outputs, tags, push).unwrap().remove(0);
        let local = one(&["some/dir"], &["x"], false);
        assert_eq!((&*local.kind, local.attrs.len()), ("local", 0));
        assert!(matches!(local.output, Some(Output::Dir(dir)) if dir == Path::new("some/dir")));
        let oci = one(
            &["type=oci,dest=/tmp/x.tar,compression=zstd"],
            &["a", "b"],
            false,
        );
        assert_eq!(oci.attrs["name"], "a,b");
        assert_eq!(oci.attrs["compression"], "zstd");
        assert!(matches!(oci.output, Some(Output::File(_))));
        let image = one(&[], &["x"], true);
        assert_eq!((&*image.kind, &*image.attrs["push"]), ("image", "true"));
        let registry = one(&["type=registry,name=x"], &[], false);
        assert_eq!(registry.attrs["push"], "true");
        assert!(parse(&[], &[], false).unwrap().is_empty());
        let refused: [(&[&str], bool, &str); 7] = [
            (&["type=local"], false, "dest is required"),
            (&["type=local,dest=-"], false, "cannot be stdout"),
            (&["type=local,dest=/etc/hostname"], false, "is a file"),
            (&["type=tar,dest=/tmp"], false, "is a directory"),
            (&["dest=x"], false, "type is required"),
            (&["type=tar,dest=x"], true, "can't be used together"),
            (&["type=registry"], false, "tag is needed"),
        ];
        for (outputs, push, expected) in refused {
            let error = parse(outputs, &[], push).err().unwrap().to_string();
            assert!(error.contains(expected), "{outputs:?}: {error}");
        }
    }

    #[test]
    fn secrets_have_an_id_and_a_source() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "x").unwrap();
        let path = file.display();
        let parse = |spec: &str| secrets(&strings(&[spec]));
        let source = |spec: &str| parse(spec).unwrap().0.remove("s").unwrap();
        let from_file = SecretSource::File(file.clone());
        assert_eq!(source(&format!("id=s,src={path}")), from_file);
        assert_eq!(source(&format!("type=file,id=s,source={path}")), from_file);
        assert_eq!(source("id=s,env=HOME"), SecretSource::Env("HOME".into()));
        assert_eq!(
            source("id=s,type=env,src=HOME"),
            SecretSource::Env("HOME".into())
        );
        let by_id = parse("id=PATH").unwrap().0;
        assert_eq!(by_id["PATH"], SecretSource::Env("PATH".into()));
        for spec in [
            "src=x",
            "id=s,src=/nonexistent",
            "id=s,type=x,src=y",
            "id=s,other=x",
        ] {
            assert!(parse(spec).is_err(), "{spec}");
        }
    }

    #[test]
    fn agents_are_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let spec = format!("mine={},raw=true", socket.display());
        let found = agents(&strings(&[&spec])).unwrap();
        assert!(found["mine"].raw);
        let twice = strings(&[&spec, &spec]);
        assert!(agents(&twice).is_err());
        assert!(agents(&strings(&["x=/etc/hostname"])).is_err());
    }

    #[test]
    fn certificates_of_registries_are_put_together() {
        let specs = strings(&[
            "host=a.example,ca=one",
            "host=a.example,ca=two,cert=c,key=k",
            "host=b.example,cert=c,key=k",
        ]);
        let found = registry_tls(&specs).unwrap();
        let first = &found["a.example"];
        assert_eq!(first.authorities, [Path::new("one"), Path::new("two")]);
        assert_eq!(first.pair, Some(("c".into(), "k".into())));
        assert!(found["b.example"].authorities.is_empty());
        for spec in ["ca=x", "host=a", "host=a,cert=c", "host=a,ca=x,key=k"] {
            assert!(registry_tls(&strings(&[spec])).is_err(), "{spec}");
        }
    }

    #[test]
    fn caches_have_a_type() {
        let parse = |spec: &str| caches(&strings(&[spec]));
        let plain = parse("registry.example/cache").unwrap().remove(0);
        assert_eq!(
            (&*plain.r#type, &*plain.attrs["ref"]),
            ("registry", "registry.example/cache")
        );
        assert_eq!(parse("type=inline").unwrap()[0].r#type, "inline");
        assert!(parse("ref=x").is_err());
    }
}
