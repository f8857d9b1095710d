//! What is built before anything is changed.

use std::collections::BTreeMap;

use super::Bed;

/// The one of that name.
pub(super) fn bed(name: &str) -> Bed {
    let (dockerfile, files): (&str, &[(&str, &str)]) = match name {
        "words" => (
            "FROM {base}\nARG VERSION=1\nARG REVISION\nENV MODE=fast LEVEL=3\nENV EXTRA=\"a b\"\n\
             LABEL a=b\nRUN echo building\nRUN echo testing\n",
            &[],
        ),
        "files" => (
            "FROM {base}\nCOPY one.txt /one.txt\nCOPY dir /dir/\nCOPY glob/*.txt /glob/\n\
             COPY --exclude=*.md docs /docs/\nADD two.txt /two/\n\
             RUN --mount=type=bind,source=bound,target=/bound echo bound\n",
            &[
                ("one.txt", "1"),
                ("two.txt", "2"),
                ("dir/a", "a"),
                ("dir/b", "b"),
                ("dir/deep/er/c", "c"),
                ("dir/with space", "s"),
                ("glob/x.txt", "x"),
                ("glob/y.txt", "y"),
                ("glob/z.log", "z"),
                ("docs/page", "p"),
                ("docs/read.md", "r"),
                ("bound/file", "f"),
                ("unused", "u"),
            ],
        ),
        "mounts" => (
            "FROM {base}\nRUN --mount=type=secret,id=key,target=/k --mount=type=tmpfs,target=/t \
             --mount=type=cache,id=c,target=/c --mount=type=ssh,id=agent,target=/agent echo mounted\n",
            &[],
        ),
        "meta" => (
            "FROM {base}\nWORKDIR /work\nUSER root\nRUN echo plain\nCOPY --chown=0:0 --chmod=0644 \
             one.txt /work/\nRUN echo after\n",
            &[("one.txt", "1"), ("two.txt", "1")],
        ),
        "order" => (
            "FROM {base}\nRUN echo alpha\nRUN echo beta\nRUN echo gamma\n",
            &[],
        ),
        "stages" => (
            "FROM {base} AS maker\nARG OPT=1\nRUN echo $OPT > /made && echo fixed > /fixed\n\
             FROM {base} AS user\nCOPY --from=maker /made /made\nRUN echo used\n\
             FROM {base}\nCOPY --from=user /made /end\nRUN echo ended\n",
            &[],
        ),
        "image" => ("FROM {registry}/moving:one\nRUN echo on-image\n", &[]),
        "image-files" => (
            "FROM scratch\nCOPY --from={registry}/moving:one /moving /moving\n",
            &[],
        ),
        "git" => ("FROM scratch\nADD http://{server}/r/.git#main /src/\n", &[]),
        "http" => ("FROM scratch\nADD http://{server}/file /file\n", &[]),
        "heredoc" => (
            "FROM {base}\nCOPY <<EOF /etc/conf\nsetting=1\nEOF\nRUN <<EOF\necho script\nEOF\n",
            &[],
        ),
        "link" => (
            "FROM {base}\nCOPY --link one.txt /one.txt\nCOPY --link two.txt /two.txt\n",
            &[("one.txt", "1"), ("two.txt", "2")],
        ),
        // The same files for every platform, and then others for each.
        "platform" => (
            "FROM --platform=linux/amd64 {base}\nRUN echo on-platform\n",
            &[],
        ),
        "platforms" => (
            "FROM --platform=linux/amd64 {registry}/moving:every\nCOPY one.txt /\n",
            &[("one.txt", "1")],
        ),
        other => panic!("no bed {other}"),
    };
    Bed {
        dockerfile: dockerfile.to_owned(),
        files: files
            .iter()
            .map(|(path, content)| (*path, (*content).to_owned()))
            .collect(),
        modes: BTreeMap::new(),
        args: Vec::new(),
    }
}
