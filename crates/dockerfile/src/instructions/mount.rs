//! The value of `RUN --mount`.

use crate::{ParseError, csv, suggest};

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the build context, a stage or an image.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// An empty file system in memory.
    Tmpfs,
    /// A secret of the client.
    Secret,
    /// The client's ssh agent.
    Ssh,
}

impl MountKind {
    const ALL: &[(&str, Self)] = &[
        ("bind", Self::Bind),
        ("cache", Self::Cache),
        ("tmpfs", Self::Tmpfs),
        ("secret", Self::Secret),
        ("ssh", Self::Ssh),
    ];

    /// The name, as in `type=`.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }
}

/// How builds share a cache mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSharing {
    /// All at the same time.
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

const SHARING: &[(&str, CacheSharing)] = &[
    ("shared", CacheSharing::Shared),
    ("private", CacheSharing::Private),
    ("locked", CacheSharing::Locked),
];

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "ro",
    "rw",
    "readwrite",
];

/// A mount of a `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// A stage, an image or a named context; empty for the build context.
    pub from: String,
    /// The path in it, or the id of the secret.
    pub source: String,
    /// Where to.
    pub target: String,
    /// Nothing can be written.
    pub read_only: bool,
    /// Bytes of a tmpfs; 0 for no limit.
    pub size: i64,
    /// The id of the cache, the secret or the agent.
    pub id: String,
    /// How a cache is shared.
    pub sharing: Option<CacheSharing>,
    /// The build fails without it.
    pub required: bool,
    /// The variable that holds the secret.
    pub env: Option<String>,
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// Expands the variables of a value.
pub type Expander<'a> = dyn FnMut(&str) -> Result<String, ParseError> + 'a;

/// Reads the value of a `--mount`. Without an expander only `from` is read, which no variable may
/// change: it decides which stages there are before any variable is known.
pub fn parse_mount(
    value: &str,
    mut expand: Option<&mut Expander<'_>>,
) -> Result<Mount, ParseError> {
    let mut mount = Mount::default();
    let mut read_only = None;
    let fields = csv::fields(value)
        .map_err(|error| ParseError::new(format!("failed to parse csv mounts: {error}")))?;
    for field in fields {
        let (key, written) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        let Some(written) = written else {
            if expand.is_some() {
                flag(&mut mount, &mut read_only, &key, &field)?;
            }
            continue;
        };
        let value = match &mut expand {
            Some(expand) => expand(written)?,
            None if key != "from" => continue,
            None if has_variable(written) => {
                return Err(ParseError::new(format!(
                    "'{key}' doesn't support variable expansion, define alias stage instead"
                )));
            }
            None => written.to_owned(),
        };
        set(&mut mount, &mut read_only, &key, &value, &field)?;
    }
    validate(&mut mount, read_only)?;
    Ok(mount)
}

fn has_variable(text: &str) -> bool {
    text.find('$').is_some_and(|at| at + 1 < text.len())
}

/// A key without a value.
fn flag(
    mount: &mut Mount,
    read_only: &mut Option<bool>,
    key: &str,
    field: &str,
) -> Result<(), ParseError> {
    match key {
        "readonly" | "ro" => *read_only = Some(true),
        "readwrite" | "rw" => *read_only = Some(false),
        "required" if matches!(mount.kind, MountKind::Secret | MountKind::Ssh) => {
            mount.required = true;
        }
        "required" => return Err(unexpected(key, mount.kind)),
        _ => {
            return Err(ParseError::new(format!(
                "invalid field '{field}' must be a key=value pair"
            )));
        }
    }
    Ok(())
}

fn set(
    mount: &mut Mount,
    read_only: &mut Option<bool>,
    key: &str,
    value: &str,
    field: &str,
) -> Result<(), ParseError> {
    let invalid = || ParseError::new(format!("invalid value for {key}: {value}"));
    let number = |radix| {
        u32::from_str_radix(value, radix)
            .map_err(|_| ParseError::new(format!("invalid value {value} for {key}")))
    };
    match key {
        "type" => {
            mount.kind = choose(MountKind::ALL, value).ok_or_else(|| {
                let names = MountKind::ALL.iter().map(|(name, _)| *name);
                let message = format!("unsupported mount type {value:?}");
                ParseError::new(suggest::with_suggestion(message, value, names, true))
            })?;
        }
        "from" => mount.from = value.to_owned(),
        "source" | "src" => mount.source = value.to_owned(),
        "target" | "dst" | "destination" => mount.target = value.to_owned(),
        "readonly" | "ro" => *read_only = Some(parse_bool(value).ok_or_else(invalid)?),
        "readwrite" | "rw" => *read_only = Some(!parse_bool(value).ok_or_else(invalid)?),
        "required" if matches!(mount.kind, MountKind::Secret | MountKind::Ssh) => {
            mount.required = parse_bool(value).ok_or_else(invalid)?;
        }
        "size" if mount.kind == MountKind::Tmpfs => {
            mount.size = parse_size(value).ok_or_else(invalid)?;
        }
        "required" | "size" => return Err(unexpected(key, mount.kind)),
        "id" => mount.id = value.to_owned(),
        "sharing" => {
            mount.sharing = Some(choose(SHARING, value).ok_or_else(|| {
                let names = SHARING.iter().map(|(name, _)| *name);
                let message = format!("unsupported sharing value {value:?}");
                ParseError::new(suggest::with_suggestion(message, value, names, true))
            })?);
        }
        "mode" => mount.mode = Some(number(8)?),
        "uid" => mount.uid = Some(number(10)?),
        "gid" => mount.gid = Some(number(10)?),
        "env" => mount.env = Some(value.to_owned()),
        _ => {
            return Err(ParseError::new(suggest::with_suggestion(
                format!("unexpected key '{key}' in '{field}'"),
                key,
                KEYS.iter().copied(),
                true,
            )));
        }
    }
    Ok(())
}

fn validate(mount: &mut Mount, read_only: Option<bool>) -> Result<(), ParseError> {
    let fail = |message: String| Err(ParseError::new(message));
    let kind = mount.kind;
    if matches!(kind, MountKind::Bind | MountKind::Tmpfs) {
        for (name, set) in [
            ("mode", mount.mode.is_some()),
            ("uid", mount.uid.is_some()),
            ("gid", mount.gid.is_some()),
        ] {
            if set {
                return fail(format!(
                    "{name} not allowed for {:?} type mounts",
                    kind.as_str()
                ));
            }
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(kind, MountKind::Cache | MountKind::Tmpfs));
    if kind == MountKind::Secret {
        if !mount.from.is_empty() {
            return fail("secret mount should not have a from".into());
        }
        if mount.sharing.is_some() {
            return fail("secret mount should not define sharing".into());
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return fail("invalid secret mount. one of source, target required".into());
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return fail("both source and id can't be set".into());
        }
    }
    if mount.sharing.is_some() && kind != MountKind::Cache {
        return fail(format!(
            "invalid cache sharing set for {} mount",
            kind.as_str()
        ));
    }
    Ok(())
}

fn unexpected(key: &str, kind: MountKind) -> ParseError {
    ParseError::new(format!(
        "unexpected key '{key}' for mount type '{}'",
        kind.as_str()
    ))
}

fn choose<T: std::marker::Copy>(table: &[(&str, T)], value: &str) -> Option<T> {
    let value = value.to_lowercase();
    table
        .iter()
        .find(|(name, _)| *name == value)
        .map(|(_, choice)| *choice)
}

/// The words that Go takes for a boolean.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Bytes with a unit in powers of 1024: `64m`, `1.5GiB`.
fn parse_size(text: &str) -> Option<i64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    #[expect(clippy::cast_possible_truncation, reason = "bounded here")]
    (bytes < 9.2e18).then_some(bytes as i64)
}
