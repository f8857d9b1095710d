//! What the builders are given to do.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// One kind of work, one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Steps,
    Cached,
    Stages,
    Files,
    Changed,
    Archive,
    Folder,
}

impl Work {
    /// In this order in the table. Those of one group are done one after the other by one
    /// builder, because the later ones need what the earlier ones made.
    pub(crate) const GROUPS: &[&[Self]] = &[
        &[Self::Steps, Self::Cached],
        &[Self::Stages],
        &[Self::Files, Self::Changed],
        &[Self::Archive, Self::Folder],
    ];

    /// The name for `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Cached => "cached",
            Self::Stages => "stages",
            Self::Files => "files",
            Self::Changed => "changed",
            Self::Archive => "archive",
            Self::Folder => "folder",
        }
    }

    /// Whether something comes out of it.
    pub(crate) fn exports(self) -> bool {
        matches!(self, Self::Archive | Self::Folder)
    }

    /// Whether containers run in it.
    pub(crate) fn has_steps(self) -> bool {
        matches!(self, Self::Steps | Self::Cached | Self::Stages)
    }

    /// The words of the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Steps => "50 steps in a row, uncached",
            Self::Cached => "the same again, all cached",
            Self::Stages => "40 stages side by side, uncached",
            Self::Files => "a context of 20,000 files, first time",
            Self::Changed => "the same with one file changed",
            Self::Archive => "export of 230 MiB, first time, as `type=oci` with gzip",
            Self::Folder => "export of the same as `type=local`",
        }
    }
}

const STEPS: usize = 50;
const STAGES: usize = 40;
const FILES: usize = 20_000;
const DATA_MIB: usize = 230;

/// Contexts in one folder, which holds nothing else.
#[derive(Debug)]
pub(crate) struct Contexts {
    dir: PathBuf,
}

impl Contexts {
    /// Makes those that do not change from run to run.
    pub(crate) fn make(dir: &Path) -> Self {
        let contexts = Self { dir: dir.into() };
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("busybox-static is installed");
        for (name, dockerfile) in [
            ("steps", steps()),
            ("stages", stages()),
            ("export", export()),
        ] {
            let folder = dir.join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::copy(busybox, folder.join("busybox")).unwrap();
            fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
        }
        let data = dir.join("export/data");
        fs::create_dir(&data).unwrap();
        let mut noise = Noise(1);
        let words: Vec<String> = (0..2000).map(|_| noise.word()).collect();
        for number in 0..DATA_MIB {
            let bytes = noise.mebibyte(&words, number % 3 == 0);
            fs::write(data.join(format!("part-{number:03}")), bytes).unwrap();
        }
        contexts
    }

    /// A context that is always the same; what depends on the argument `NONCE` is not cached.
    pub(crate) fn fixed(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A context of many small files whose path and content nobody has seen before.
    pub(crate) fn files(&self, nonce: &str) -> PathBuf {
        let root = self.dir.join(format!("files-{nonce}"));
        for number in 0..FILES {
            let folder = root.join(format!("{:03}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&folder).unwrap();
            }
            let text = format!("{nonce} {number}\n").repeat(1024 / (nonce.len() + 7));
            fs::write(folder.join(format!("{number:05}")), text).unwrap();
        }
        fs::write(root.join("Dockerfile"), "FROM scratch\nCOPY . /files/\n").unwrap();
        root
    }

    /// Changes one file of such a context.
    pub(crate) fn change(&self, root: &Path) {
        fs::write(root.join("100/10050"), "changed\n").unwrap();
    }
}

fn steps() -> String {
    let mut text = "FROM scratch\nCOPY busybox /bin/sh\nARG NONCE\n".to_owned();
    for step in 1..=STEPS {
        let _ = writeln!(text, "RUN true {step}");
    }
    text
}

fn stages() -> String {
    let mut text = "FROM scratch AS base\nCOPY busybox /bin/sh\n".to_owned();
    for stage in 1..=STAGES {
        let _ = writeln!(
            text,
            "FROM base AS s{stage}\nARG NONCE\nRUN echo $NONCE {stage} > /out"
        );
    }
    text.push_str("FROM scratch\n");
    for stage in 1..=STAGES {
        let _ = writeln!(text, "COPY --from=s{stage} /out /{stage}");
    }
    text
}

fn export() -> String {
    "FROM scratch AS data\n\
     COPY busybox /bin/sh\n\
     COPY busybox /bin/cp\n\
     COPY data /data\n\
     ARG NONCE\n\
     RUN cp -a /data /out && echo $NONCE > /out/nonce\n\
     FROM scratch\n\
     COPY --from=data /out /\n"
        .to_owned()
}

/// Bytes that look different and are the same each time (a linear congruential generator).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits")
    }

    fn word(&mut self) -> String {
        let length = 2 + self.next() % 9;
        let letters = "etaoinshrdlucmfwypvbgkjqxz".as_bytes();
        (0..length)
            .map(|_| char::from(letters[self.next() % letters.len()]))
            .collect()
    }

    /// Text of these words, or bytes that no compression makes smaller. A third of the one and
    /// two of the other come near to what program files are.
    fn mebibyte(&mut self, words: &[String], random: bool) -> Vec<u8> {
        const SIZE: usize = 1 << 20;
        let mut bytes = Vec::with_capacity(SIZE + 16);
        while bytes.len() < SIZE {
            if random {
                bytes.push(self.next().to_le_bytes()[1]);
            } else {
                // Some words are more frequent than others.
                let index = self.next() % words.len() * (self.next() % words.len()) / words.len();
                bytes.extend_from_slice(words[index].as_bytes());
                bytes.push(b' ');
            }
        }
        bytes.truncate(SIZE);
        bytes
    }
}
