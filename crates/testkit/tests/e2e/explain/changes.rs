//! The changes, and the causes that a person would give for each: written down without a look
//! at how they are found.

use super::change::{Change, Edit, change};

pub(super) fn all() -> Vec<Change> {
    [
        arguments(),
        variables(),
        commands(),
        contents(),
        modes(),
        additions(),
        removals(),
        copies(),
        images(),
        platforms(),
        mounts(),
        settings(),
        orders(),
        earlier(),
        sources(),
        anew(),
        pruned(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn arguments() -> Vec<Change> {
    let version = |flag| change("argument", "words").edit(Edit::Flag(flag));
    let says = |change: Change, cause: &'static str| change.says("RUN echo building", &[cause]);
    vec![
        says(version("--build-arg=VERSION=2"), "variable VERSION changed"),
        says(
            version("--build-arg=VERSION=1.0-rc1"),
            "variable VERSION changed",
        ),
        says(
            version("--build-arg=VERSION=x y"),
            "variable VERSION changed",
        ),
        says(version("--build-arg=VERSION="), "variable VERSION changed"),
        says(
            version("--build-arg=REVISION=abc"),
            "variable REVISION was added",
        ),
        says(version("--build-arg=REVISION=def"), "variable REVISION"),
        change("argument", "words")
            .replace("ARG VERSION=1", "ARG VERSION=7")
            .says("RUN echo building", &["variable VERSION", "\"7\""]),
        change("argument", "words")
            .replace("ARG VERSION=1\n", "")
            .says("RUN echo building", &["variable VERSION was removed"]),
        change("argument", "words")
            .replace("ARG REVISION\n", "ARG REVISION\nARG NEW=9\n")
            .says("RUN echo building", &["variable NEW was added", "\"9\""]),
        change("argument", "words")
            .replace("ARG VERSION=1\n", "ARG RENAMED=1\n")
            .says("RUN echo building", &["variable RENAMED was added"]),
        change("argument", "words")
            .replace("RUN echo testing", "ARG LATE=1\nRUN echo testing")
            .says("RUN echo testing", &["variable LATE was added"]),
        change("argument", "words")
            .edit(Edit::Flag("--build-arg=HTTP_PROXY=http://x"))
            .replace("ARG VERSION=1", "ARG VERSION=8")
            .says("RUN echo building", &["variable VERSION"]),
        change("argument", "stages")
            .edit(Edit::Flag("--build-arg=OPT=2"))
            .says("[maker 2/2]", &["variable OPT changed", "\"2\""]),
    ]
}

fn variables() -> Vec<Change> {
    let env = |old: &str, new: &str| change("environment", "words").replace(old, new);
    let building = "RUN echo building";
    vec![
        env("MODE=fast", "MODE=slow").says(building, &["variable MODE changed", "fast", "slow"]),
        env("MODE=fast", "MODE=f").says(building, &["variable MODE changed"]),
        env("LEVEL=3", "LEVEL=4").says(building, &["variable LEVEL changed", "\"4\""]),
        env("LEVEL=3", "LEVEL=\"\"").says(building, &["variable LEVEL changed"]),
        env("MODE=fast ", "").says(building, &["variable MODE was removed"]),
        env(" LEVEL=3", "").says(building, &["variable LEVEL was removed", "\"3\""]),
        env("ENV EXTRA=\"a b\"\n", "").says(building, &["variable EXTRA was removed"]),
        env("\"a b\"", "\"a c\"").says(building, &["variable EXTRA changed", "a b", "a c"]),
        env("LABEL a=b", "ENV ADDED=yes").says(building, &["variable ADDED was added", "yes"]),
        env("LABEL a=b", "ENV PATH=/bin:/opt").says(building, &["variable PATH changed"]),
        env("LABEL a=b", "ENV MODE=later").says(building, &["variable MODE changed", "later"]),
        env("LABEL a=b", "ENV HOME=/h TERM=x").says(building, &["variable HOME was added"]),
        env("RUN echo testing", "ENV T=1\nRUN echo testing")
            .says("RUN echo testing", &["variable T was added"]),
        env("RUN echo testing", "ENV MODE=x\nRUN echo testing")
            .says("RUN echo testing", &["variable MODE changed"]),
        env("MODE=fast", "MODE=€uro").says(building, &["variable MODE changed", "€uro"]),
        change("environment", "meta")
            .replace("USER root", "USER root\nENV X=1")
            .says("RUN echo plain", &["variable X was added"]),
    ]
}

fn commands() -> Vec<Change> {
    let run = |old: &str, new: &str| change("command", "words").replace(old, new);
    let order = |old: &str, new: &str| change("command", "order").replace(old, new);
    vec![
        run("echo building", "echo building it").says(
            "RUN echo building it",
            &["command changed", "echo building it"],
        ),
        run("echo building", "echo  building").says("[2/3]", &["command changed"]),
        run("RUN echo building", "RUN [\"echo\", \"building\"]")
            .says("[2/3]", &["argument 0", "echo"]),
        run("echo testing", "echo testing --all").says("[3/3]", &["command changed", "--all"]),
        run("echo testing", "true").says("[3/3]", &["command changed", "true"]),
        order("echo gamma", "echo delta").says("[4/4]", &["command changed", "delta"]),
        order("echo gamma", "echo gamma; echo more").says("[4/4]", &["command changed", "more"]),
        order("echo beta", "echo beta2").says("[3/4]", &["command changed", "beta2"]),
        order("echo alpha", "echo alpha2").says("[2/4]", &["command changed", "alpha2"]),
        change("command", "heredoc")
            .replace("echo script", "echo another")
            .says("RUN <<EOF", &["command changed", "echo another"]),
        change("command", "heredoc")
            .replace("setting=1", "setting=2")
            .says("COPY <<EOF", &["setting=2"]),
        change("command", "stages")
            .replace("echo used", "echo used up")
            .says("[user 3/3]", &["command changed", "used up"]),
    ]
}

fn contents() -> Vec<Change> {
    let file = |path, content| change("file content", "files").edit(Edit::Write(path, content));
    vec![
        file("one.txt", "10").says("COPY one.txt", &["file /one.txt changed"]),
        file("one.txt", "").says("COPY one.txt", &["file /one.txt changed"]),
        file("one.txt", "x").says("COPY one.txt", &["file /one.txt changed"]),
        file("two.txt", "20").says("ADD two.txt", &["file /two.txt changed"]),
        file("dir/a", "aa").says("COPY dir", &["file /dir/a changed"]),
        file("dir/b", "bb").says("COPY dir", &["file /dir/b changed"]),
        file("dir/deep/er/c", "cc").says("COPY dir", &["file /dir/deep/er/c changed"]),
        file("dir/deep/er/c", "d").says("COPY dir", &["file /dir/deep/er/c changed"]),
        file("dir/with space", "t").says("COPY dir", &["file /dir/with space changed"]),
        file("glob/x.txt", "xx").says("COPY glob", &["file /glob/x.txt changed"]),
        file("glob/y.txt", "yy").says("COPY glob", &["file /glob/y.txt changed"]),
        file("docs/page", "pp").says("COPY --exclude", &["file /docs/page changed"]),
        file("bound/file", "ff").says("echo bound", &["file /bound/file changed"]),
        file("bound/file", "g").says("echo bound", &["file /bound/file changed"]),
        file("dir/a", "1")
            .edit(Edit::Write("dir/b", "2"))
            .says("COPY dir", &["file /dir/a changed, and 1 more"]),
        file("dir/a", "3")
            .edit(Edit::Write("dir/b", "4"))
            .edit(Edit::Write("dir/deep/er/c", "5"))
            .says("COPY dir", &["file /dir/a changed, and 2 more"]),
        change("file content", "meta")
            .edit(Edit::Write("one.txt", "7"))
            .says("COPY --chown", &["file /one.txt changed"]),
        change("file content", "link")
            .edit(Edit::Write("one.txt", "7"))
            .says("COPY --link one.txt", &["file /one.txt changed"]),
        change("file content", "link")
            .edit(Edit::Write("two.txt", "7"))
            .says("COPY --link two.txt", &["file /two.txt changed"]),
        change("file content", "link")
            .with("two.txt", "one.txt")
            .edit(Edit::Write("one.txt", "9"))
            .says("COPY --link one.txt", &["file /one.txt changed"]),
    ]
}

fn modes() -> Vec<Change> {
    let mode = |path, mode| change("file mode", "files").edit(Edit::Mode(path, mode));
    vec![
        mode("one.txt", 0o755).says("COPY one.txt", &["mode of /one.txt", "0644", "0755"]),
        mode("one.txt", 0o600).says("COPY one.txt", &["mode of /one.txt", "0600"]),
        mode("one.txt", 0o4755).says("COPY one.txt", &["mode of /one.txt", "4755"]),
        mode("two.txt", 0o755).says("ADD two.txt", &["mode of /two.txt", "0644", "0755"]),
        mode("dir/a", 0o700).says("COPY dir", &["mode of /dir/a", "0700"]),
        mode("dir/deep/er/c", 0o444).says("COPY dir", &["mode of /dir/deep/er/c", "0444"]),
        mode("dir/with space", 0o640).says("COPY dir", &["mode of /dir/with space"]),
        mode("glob/y.txt", 0o666).says("COPY glob", &["mode of /glob/y.txt", "0666"]),
        mode("docs/page", 0o600).says("COPY --exclude", &["mode of /docs/page"]),
        mode("bound/file", 0o755).says("echo bound", &["mode of /bound/file"]),
        change("file mode", "link")
            .edit(Edit::Mode("two.txt", 0o755))
            .says("COPY --link two.txt", &["mode of /two.txt"]),
    ]
}

fn additions() -> Vec<Change> {
    let add = |path, content| change("added file", "files").edit(Edit::Write(path, content));
    vec![
        add("dir/new", "n").says("COPY dir", &["file /dir/new was added"]),
        add("dir/0", "n").says("COPY dir", &["file /dir/0 was added"]),
        add("dir/.hidden", "n").says("COPY dir", &["file /dir/.hidden was added"]),
        add("dir/deep/er/new", "n").says("COPY dir", &["file /dir/deep/er/new was added"]),
        add("dir/sub/new", "n").says("COPY dir", &["/dir/sub", "was added"]),
        add("glob/new.txt", "n").says("COPY glob", &["file /glob/new.txt was added"]),
        add("docs/more", "n").says("COPY --exclude", &["file /docs/more was added"]),
        add("bound/more", "n").says("echo bound", &["file /bound/more was added"]),
        add("bound/in/there", "n").says("echo bound", &["/bound/in", "was added"]),
        add("dir/x", "n")
            .edit(Edit::Write("dir/y", "n"))
            .says("COPY dir", &["file /dir/x was added, and 1 more"]),
        add("dir/ünicode", "n").says("COPY dir", &["file /dir/ünicode was added"]),
    ]
}

fn removals() -> Vec<Change> {
    let remove = |path| change("removed file", "files").edit(Edit::Remove(path));
    vec![
        remove("dir/a").says("COPY dir", &["file /dir/a was removed"]),
        remove("dir/b").says("COPY dir", &["file /dir/b was removed"]),
        remove("dir/deep/er/c").says("COPY dir", &["/dir/deep", "was removed"]),
        remove("dir/with space").says("COPY dir", &["file /dir/with space was removed"]),
        remove("glob/x.txt").says("COPY glob", &["file /glob/x.txt was removed"]),
        remove("glob/y.txt").says("COPY glob", &["file /glob/y.txt was removed"]),
        remove("bound/file")
            .edit(Edit::Write("bound/other", "f"))
            .says("echo bound", &["file /bound/file was removed"]),
        remove("docs/page")
            .edit(Edit::Write("docs/zzz", "f"))
            .says("COPY --exclude", &["file /docs/page was removed"]),
        change("removed file", "files")
            .before(Edit::Write("dir/kept", "k"))
            .edit(Edit::Write(".dockerignore", "dir/b\n"))
            .says("COPY dir", &["file /dir/b was removed"]),
        change("removed file", "files")
            .edit(Edit::Write(".dockerignore", "**/er\n"))
            .says("COPY dir", &["/dir/deep", "was removed"]),
    ]
}

fn copies() -> Vec<Change> {
    let meta = |old: &str, new: &str| change("copy option", "meta").replace(old, new);
    let files = |old: &str, new: &str| change("copy option", "files").replace(old, new);
    vec![
        meta("--chmod=0644", "--chmod=0600").says("COPY --chown", &["copy mode changed", "0600"]),
        meta("--chmod=0644", "--chmod=0755").says("COPY --chown", &["copy mode changed", "0755"]),
        meta(" --chmod=0644", "").says("COPY --chown", &["copy mode was removed", "0644"]),
        meta("--chown=0:0", "--chown=1:0").says("COPY --chown", &["copy owner user"]),
        meta("--chown=0:0", "--chown=0:5").says("COPY --chown", &["copy owner group"]),
        meta("one.txt /work/", "one.txt /work/1").says("COPY --chown", &["copy dest changed"]),
        meta("one.txt /work/", "two.txt /work/").says("COPY --chown", &["copy source changed"]),
        files("COPY one.txt /one.txt", "COPY one.txt /first.txt")
            .says("COPY one.txt", &["copy dest changed", "/first.txt"]),
        files("COPY dir /dir/", "COPY dir /directory/")
            .says("COPY dir", &["copy dest changed", "/directory"]),
        files("COPY dir /dir/", "COPY dir/deep /dir/")
            .says("COPY dir", &["copy source changed", "/dir/deep"]),
        files("--exclude=*.md", "--exclude=page").says("COPY --exclude", &["exclude"]),
        files("COPY glob/*.txt", "COPY glob/*").says("COPY glob", &["copy source changed"]),
        files("ADD two.txt /two/", "ADD two.txt one.txt /two/")
            .says("ADD two.txt", &["copy 2 source was added"]),
        change("copy option", "heredoc")
            .replace("/etc/conf", "/etc/other")
            .says("COPY <<EOF", &["/etc/other"]),
    ]
}

fn images() -> Vec<Change> {
    let image = |first, second| {
        change("base image", "image")
            .before(Edit::Push("one", first))
            .edit(Edit::Push("one", second))
    };
    let other = |old: &str, new: &str| {
        change("base image", "image")
            .before(Edit::Push("two", "second"))
            .replace(old, new)
    };
    let digest = "digest of the base image changed from \"sha256:";
    let input = "its input changed: [1/2] FROM";
    vec![
        image("a1", "a2").says("[1/2] FROM", &[digest]),
        image("b1", "b2").says("RUN echo on-image", &[input, digest]),
        image("c1", "c2").says("RUN echo on-image", &[input, digest]),
        image("d1", "d2").says("[1/2] FROM", &[digest]),
        other("moving:one", "moving:two").says("RUN echo on-image", &[input, "base image changed"]),
        change("base image", "image")
            .before(Edit::Push("three", "third"))
            .replace("moving:one", "moving:three")
            .says(
                "[1/2] FROM",
                &["base image changed", "moving:one", "moving:three"],
            ),
        change("base image", "image-files")
            .before(Edit::Push("one", "e1"))
            .edit(Edit::Push("one", "e2"))
            .says("COPY --from", &[digest]),
        change("base image", "image-files")
            .before(Edit::Push("one", "f1"))
            .edit(Edit::Push("one", "f2"))
            .says("COPY --from", &["its input changed", digest]),
        change("base image", "order")
            .before(Edit::Push("four", "fourth"))
            .replace("FROM {base}", "FROM {registry}/moving:four")
            .says(
                "RUN echo alpha",
                &["its input changed: [1/4] FROM", "base image changed"],
            ),
        change("base image", "order")
            .before(Edit::Push("five", "fifth"))
            .replace("FROM {base}", "FROM {registry}/moving:five")
            .says(
                "RUN echo gamma",
                &["its input changed: [1/4] FROM", "base image changed"],
            ),
    ]
}

fn platforms() -> Vec<Change> {
    let platform = |bed, new: &str| {
        let change = change("platform", bed);
        change.replace("--platform=linux/amd64", &format!("--platform={new}"))
    };
    let every = |new| platform("platforms", new);
    let step = "RUN echo on-platform";
    vec![
        platform("platform", "linux/arm64").says(step, &["platform changed", "amd64", "arm64"]),
        platform("platform", "linux/s390x").says(step, &["platform changed", "s390x"]),
        platform("platform", "linux/arm/v6").says(step, &["platform changed", "arm/v6"]),
        every("linux/arm64")
            .before(Edit::PushForPlatforms)
            .says("[1/2] FROM", &["platform changed", "amd64", "arm64"]),
        every("linux/riscv64").says("COPY one.txt", &["its input changed", "platform changed"]),
        every("linux/s390x").says("[1/2] FROM", &["platform changed", "s390x"]),
    ]
}

fn mounts() -> Vec<Change> {
    let mount = |kind, old: &str, new: &str| change(kind, "mounts").replace(old, new);
    let secret = |old: &str, new: &str| mount("secret id", old, new);
    let option = |old: &str, new: &str| mount("mount option", old, new);
    let step = "echo mounted";
    vec![
        secret("id=key", "id=other").says(step, &["mount /k secret id changed", "key", "other"]),
        secret("id=key", "id=key2").says(step, &["mount /k secret id changed", "key2"]),
        secret("id=key", "id=a-b.c").says(step, &["mount /k secret id changed", "a-b.c"]),
        secret("type=secret,id=key,target=/k", "type=secret,id=key,env=KEY")
            .says(step, &["secret variable KEY"]),
        secret("id=agent", "id=agent2").says(step, &["mount /agent ssh id changed", "agent2"]),
        option("target=/k", "target=/k,mode=0444").says(step, &["mount /k secret mode", "0444"]),
        option("target=/k", "target=/k,uid=7").says(step, &["mount /k secret uid", "7"]),
        option("target=/k", "target=/k,gid=8").says(step, &["mount /k secret gid", "8"]),
        option("target=/k", "target=/secret").says(step, &["mount /secret"]),
        option("type=tmpfs,target=/t", "type=tmpfs,target=/t,size=1m")
            .says(step, &["mount /t tmpfs size"]),
        option("type=tmpfs,target=/t", "type=tmpfs,target=/tt").says(step, &["mount /tt"]),
        option("--mount=type=tmpfs,target=/t ", "").says(step, &["mount /t was removed", "tmpfs"]),
        option("id=c,target=/c", "id=c,target=/c,readonly").says(step, &["mount /c readonly"]),
        option("id=c,target=/c", "id=c,target=/c2").says(step, &["mount /c2"]),
        option("target=/agent", "target=/agent,mode=0666").says(step, &["mount /agent ssh mode"]),
        option(
            "--mount=type=tmpfs",
            "--mount=type=cache,target=/new --mount=type=tmpfs",
        )
        .says(step, &["mount /new was added", "cache"]),
        change("mount option", "files")
            .replace("target=/bound", "target=/elsewhere")
            .says("echo bound", &["mount /elsewhere"]),
        change("mount option", "files")
            .replace("target=/bound", "target=/bound,rw")
            .says("echo bound", &["mount /bound readonly was removed"]),
    ]
}

fn settings() -> Vec<Change> {
    let meta = |kind, old: &str, new: &str| change(kind, "meta").replace(old, new);
    let plain = |kind, new: &str| meta(kind, "RUN echo plain", new);
    let shell = |new: &str| meta("shell", "USER root", &format!("USER root\nSHELL {new}"));
    vec![
        meta("workdir", "/work\n", "/other\n")
            .says("WORKDIR /other", &["mkdir path changed", "/work", "/other"]),
        meta("workdir", "/work\n", "/third\n").says(
            "RUN echo plain",
            &["its input changed: [2/5] WORKDIR /third"],
        ),
        meta("workdir", "/work\n", "/work/deeper\n").says(
            "WORKDIR /work/deeper",
            &["mkdir path changed", "/work/deeper"],
        ),
        plain("workdir", "WORKDIR /tmp\nRUN echo plain").says("RUN echo plain", &["/tmp"]),
        meta("user", "USER root", "USER 1000").says("RUN echo plain", &["user changed", "1000"]),
        meta("user", "USER root", "USER 5:5").says("RUN echo plain", &["user changed", "5:5"]),
        meta("user", "USER root\n", "").says("RUN echo plain", &["user was removed", "root"]),
        meta("user", "RUN echo after", "USER 7\nRUN echo after")
            .says("RUN echo after", &["user changed", "\"7\""]),
        plain("network mode", "RUN --network=none echo plain")
            .says("RUN --network=none", &["network", "none"]),
        change("network mode", "meta")
            .with("echo plain", "echo isolated")
            .edit(Edit::Flag("--network=none"))
            .says("RUN echo isolated", &["network", "none"]),
        change("network mode", "order")
            .edit(Edit::Flag("--network=none"))
            .says("RUN echo alpha", &["network", "none"]),
        shell("[\"/bin/ash\", \"-c\"]").says("RUN echo plain", &["shell changed", "/bin/ash -c"]),
        shell("[\"/bin/sh\", \"-ec\"]").says("RUN echo plain", &["shell changed", "/bin/sh -ec"]),
        shell("[\"/bin/sh\", \"-x\", \"-c\"]").says("RUN echo plain", &["shell changed", "-x -c"]),
        change("limit", "meta")
            .edit(Edit::Flag("--ulimit=nofile=512:512"))
            .says("RUN echo plain", &["ulimit nofile", "512"]),
        change("limit", "meta")
            .edit(Edit::Flag("--ulimit=core=0:0"))
            .says("RUN echo plain", &["ulimit core"]),
        change("extra host", "meta")
            .edit(Edit::Flag("--add-host=example.test:10.0.0.1"))
            .says("RUN echo plain", &["extra host example.test"]),
        change("host name", "meta")
            .edit(Edit::Flag("--build-arg=BUILDKIT_SANDBOX_HOSTNAME=builder"))
            .says("RUN echo plain", &["host name", "builder"]),
    ]
}

fn orders() -> Vec<Change> {
    // Steps with names of their own: what was built for another change is no answer.
    let order = |id: &str| {
        let change = change("order of instructions", "order");
        let named = |name: &str| format!("echo {name}-{id}");
        ["alpha", "beta", "gamma"]
            .into_iter()
            .fold(change, |change, name| {
                change.with(&format!("echo {name}"), &named(name))
            })
    };
    let changed = "the order of steps changed";
    let new = "no earlier record of this step";
    let swap_ab = |id: &str| {
        let (a, b) = (
            format!("RUN echo alpha-{id}\n"),
            format!("RUN echo beta-{id}\n"),
        );
        order(id).replace(&format!("{a}{b}"), &format!("{b}{a}"))
    };
    vec![
        swap_ab("1").says("RUN echo beta-1", &[changed, "alpha-1"]),
        swap_ab("2").says("RUN echo alpha-2", &[changed, "beta-2"]),
        swap_ab("3").says("RUN echo gamma-3", &["order of steps changed"]),
        order("4")
            .replace(
                "RUN echo beta-4\nRUN echo gamma-4\n",
                "RUN echo gamma-4\nRUN echo beta-4\n",
            )
            .says("RUN echo gamma-4", &[changed, "beta-4"]),
        order("5")
            .replace("RUN echo alpha-5\n", "")
            .says("RUN echo beta-5", &[changed, "echo alpha-5"]),
        order("6")
            .replace("RUN echo beta-6\n", "")
            .says("RUN echo gamma-6", &[changed, "echo beta-6"]),
        order("7")
            .replace(
                "RUN echo beta-7\n",
                "RUN ls /inserted || true\nRUN echo beta-7\n",
            )
            .says("ls /inserted", &[new]),
        order("8")
            .replace("RUN echo beta-8\n", "RUN mkdir /between\nRUN echo beta-8\n")
            .says(
                "RUN echo beta-8",
                &["its input changed: [3/5] RUN mkdir /between", new],
            ),
        order("9")
            .replace(
                "RUN echo gamma-9\n",
                "RUN mkdir /before\nRUN echo gamma-9\n",
            )
            .says(
                "RUN echo gamma-9",
                &["its input changed: [4/5] RUN mkdir /before", new],
            ),
        change("order of instructions", "words")
            .replace(
                "RUN echo building\nRUN echo testing\n",
                "RUN echo testing\nRUN echo building\n",
            )
            .says("RUN echo testing", &[changed, "RUN echo building"]),
        change("order of instructions", "files")
            .replace(
                "COPY one.txt /one.txt\nCOPY dir /dir/\n",
                "COPY dir /dir/\nCOPY one.txt /one.txt\n",
            )
            .says("COPY dir", &[changed]),
        change("order of instructions", "meta")
            .replace(
                "WORKDIR /work\nUSER root\nRUN echo plain\n",
                "USER root\nRUN echo plain\nWORKDIR /work\n",
            )
            .says(
                "RUN echo plain",
                &["order of steps changed", "WORKDIR /work"],
            ),
    ]
}

fn earlier() -> Vec<Change> {
    let earlier = |bed, old: &str, new: &str| change("changed earlier step", bed).replace(old, new);
    let file =
        |path, content| change("changed earlier step", "files").edit(Edit::Write(path, content));
    vec![
        earlier("order", "echo alpha", "echo alpha3").says(
            "RUN echo beta",
            &["its input changed: [2/4] RUN echo alpha3: command changed"],
        ),
        earlier("order", "echo alpha", "echo alpha4").says(
            "RUN echo gamma",
            &["its input changed: [2/4] RUN echo alpha4: command changed"],
        ),
        earlier("order", "echo beta", "echo beta5").says(
            "RUN echo gamma",
            &["its input changed: [3/4] RUN echo beta5: command changed"],
        ),
        earlier("words", "MODE=fast", "MODE=m2").says(
            "RUN echo testing",
            &["its input changed: [2/3] RUN echo building: variable MODE"],
        ),
        earlier("words", "ARG VERSION=1", "ARG VERSION=22").says(
            "RUN echo testing",
            &["its input changed: [2/3]", "variable VERSION"],
        ),
        earlier("words", "echo building", "echo building 9").says(
            "RUN echo testing",
            &["its input changed: [2/3] RUN echo building 9: command"],
        ),
        file("one.txt", "e1").says(
            "COPY dir",
            &["its input changed: ", "2/7]", "/one.txt changed"],
        ),
        file("one.txt", "e2").says(
            "COPY glob",
            &["its input changed: ", "2/7]", "/one.txt changed"],
        ),
        file("one.txt", "e3").says(
            "echo bound",
            &["its input changed: ", "2/7]", "/one.txt changed"],
        ),
        file("dir/a", "e4").says(
            "ADD two.txt",
            &["its input changed: ", "3/7]", "/dir/a changed"],
        ),
        file("dir/new2", "e5").says(
            "COPY glob",
            &["its input changed: ", "3/7]", "/dir/new2 was added"],
        ),
        file("glob/x.txt", "e6").says(
            "echo bound",
            &["its input changed: ", "4/7]", "/glob/x.txt"],
        ),
        file("two.txt", "e7").says(
            "echo bound",
            &["its input changed: ", "6/7]", "/two.txt changed"],
        ),
        change("changed earlier step", "files")
            .edit(Edit::Mode("one.txt", 0o711))
            .says(
                "COPY dir",
                &["its input changed: ", "2/7]", "mode of /one.txt"],
            ),
        earlier("stages", "ARG OPT=1", "ARG OPT=3").says(
            "COPY --from=maker",
            &["its input changed: [maker 2/2]", "variable OPT changed"],
        ),
        earlier("stages", "ARG OPT=1", "ARG OPT=4").says(
            "RUN echo used",
            &["its input changed: [maker 2/2]", "variable OPT changed"],
        ),
        earlier("stages", "ARG OPT=1", "ARG OPT=5").says(
            "RUN echo ended",
            &["its input changed: [maker 2/2]", "variable OPT changed"],
        ),
        earlier("stages", "echo fixed", "echo other >> /made; echo fixed").says(
            "COPY --from=maker",
            &["its input changed: [maker 2/2]", "command changed"],
        ),
        earlier("meta", "--chmod=0644", "--chmod=0640").says(
            "RUN echo after",
            &["its input changed: [4/5] COPY", "copy mode changed"],
        ),
        earlier("meta", "RUN echo plain", "RUN echo plainer").says(
            "RUN echo after",
            &["its input changed: [3/5] RUN echo plainer: command"],
        ),
        earlier("meta", "WORKDIR /work\n", "WORKDIR /else\n").says(
            "RUN echo after",
            &["its input changed: [2/5] WORKDIR /else: mkdir path"],
        ),
        earlier("heredoc", "setting=1", "setting=3")
            .says("RUN <<EOF", &["its input changed: ", "setting=3"]),
        change("changed earlier step", "link")
            .edit(Edit::Write("one.txt", "linked"))
            .says("[2/3] COPY --link one.txt", &["file /one.txt changed"]),
        change("changed earlier step", "image")
            .before(Edit::Push("one", "g1"))
            .edit(Edit::Push("one", "g2"))
            .says("RUN echo on-image", &["its input changed: [1/2] FROM"]),
    ]
}

fn sources() -> Vec<Change> {
    let git = |first, second| {
        change("git commit", "git")
            .before(Edit::Commit(first))
            .edit(Edit::Commit(second))
    };
    let http = |first, second| {
        change("http etag", "http")
            .before(Edit::Serve(first))
            .edit(Edit::Serve(second))
    };
    let step = "ADD http";
    vec![
        git("one", "two").says(step, &["commit changed from"]),
        git("three", "four").says(step, &["commit changed from"]),
        git("five", "six").says(step, &["commit changed from"]),
        change("git commit", "git")
            .before(Edit::Commit("seven"))
            .edit(Edit::Commit("eight"))
            .edit(Edit::Commit("nine"))
            .says(step, &["commit changed"]),
        http("1", "2").says(step, &["digest of the download changed from"]),
        http("3", "").says(step, &["digest of the download changed from"]),
        http("4", "a longer text").says(step, &["digest of the download changed from"]),
        http("5", "\u{1F980}").says(step, &["digest of the download changed"]),
        change("http etag", "http")
            .before(Edit::Serve("6"))
            .replace("/file /file", "/file /moved")
            .says(step, &["copy dest changed", "/moved"]),
    ]
}

fn anew() -> Vec<Change> {
    let flag = |bed, flag| change("no-cache", bed).edit(Edit::Flag(flag));
    let cause = "no-cache";
    vec![
        flag("words", "--no-cache").says("RUN echo building", &[cause]),
        flag("order", "--no-cache").says("RUN echo gamma", &[cause]),
        flag("files", "--no-cache").says("COPY one.txt", &[cause]),
        flag("meta", "--no-cache").says("RUN echo after", &[cause]),
        flag("mounts", "--no-cache").says("echo mounted", &[cause]),
        flag("stages", "--no-cache-filter=maker").says("[maker 2/2]", &[cause]),
        flag("stages", "--no-cache-filter=user").says("RUN echo used", &[cause]),
    ]
}

fn pruned() -> Vec<Change> {
    let prune = |bed, edit| change("pruned record", bed).edit(edit);
    let cause = ["its record was pruned on ", " by "];
    let all = "a prune of all that is unused";
    let old = "the policy keepDuration";
    let space = "the policy maxUsedSpace";
    let by = |name: &'static str| [cause[0], cause[1], name];
    vec![
        prune("words", Edit::Prune).says("RUN echo building", &by(all)),
        prune("words", Edit::Prune).says("RUN echo testing", &by(all)),
        prune("order", Edit::PruneOld).says("RUN echo alpha", &by(old)),
        prune("order", Edit::PruneOld).says("RUN echo gamma", &by(old)),
        prune("files", Edit::Prune).says("COPY one.txt", &by(all)),
        prune("files", Edit::PruneOld).says("echo bound", &by(old)),
        prune("meta", Edit::Prune).says("WORKDIR /work", &by(all)),
        prune("meta", Edit::PruneToFit).says("RUN echo after", &by(space)),
        prune("mounts", Edit::PruneToFit).says("echo mounted", &by(space)),
        prune("stages", Edit::Prune).says("[maker 2/2]", &by(all)),
        prune("stages", Edit::PruneOld).says("RUN echo ended", &by(old)),
        prune("heredoc", Edit::PruneToFit).says("RUN <<EOF", &by(space)),
        prune("link", Edit::Prune).says("COPY --link one.txt", &by(all)),
    ]
}
