//! The cases, kind by kind.

use super::State::Scratch;
use super::{alpine, busybox, check, diff, merge, run};
use crate::tests::bench_on;
use cooper_cache::ImmutableRef;
use cooper_snapshot::Kind;
use std::os::unix::fs::MetadataExt;

#[tokio::test]
async fn differences_of_the_same_and_of_nothing() {
    let foo = || run("echo foo > foo");
    check(&[
        ("scratch", diff(Scratch, Scratch), Scratch),
        ("self", diff(alpine(), alpine()), Scratch),
        (
            "self laid over",
            merge([alpine(), diff(alpine(), alpine())]),
            alpine(),
        ),
        ("from scratch", diff(Scratch, alpine()), alpine()),
        (
            "from scratch with a removal",
            merge([
                run("echo A > foo"),
                diff(Scratch, run("echo B > foo").run("rm foo").run("touch bar")),
            ]),
            run("touch bar"),
        ),
        (
            "to scratch",
            merge([alpine(), foo(), diff(alpine(), Scratch)]),
            foo(),
        ),
        (
            "strangers",
            merge([busybox(), diff(busybox(), alpine())]),
            alpine(),
        ),
    ])
    .await;
}

const BASE: &str = "mkdir -p un/chmodDir un/deleteDir un/opaque/sub un/overDir un/shuffle
    mkdir -p mod/chmodDir mod/deleteDir mod/opaque/sub mod/overDir mod/shuffle
    echo one > shuffleFile; touch un/shuffleFile mod/shuffleFile
    for d in un mod; do
        echo chmod > $d/chmodFile; echo content > $d/contentFile; touch $d/deleteFile
        touch $d/opaque/file $d/opaque/sub/file $d/overFile1 $d/overFile2
    done";
const NEW: &str =
    "mkdir new; touch new/file un/new mod/new; mkdir -p new2/sub un/newSub mod/newSub";
const MODIFIED: &str = "chmod 0444 un/chmodFile mod/chmodFile; chmod 0700 un/chmodDir mod/chmodDir
    echo changed > un/contentFile; echo changed > mod/contentFile";
const OVER: &str = "for d in un mod; do
        rm -rf $d/overDir; echo file > $d/overDir
        rm $d/overFile1 $d/overFile2; mkdir -m 0750 $d/overFile1
        mkdir -p -m 0770 $d/overFile2/sub; touch $d/overFile2/file $d/overFile2/sub/file
    done";
const REMOVED: &str = "rm un/deleteFile mod/deleteFile; rm -rf un/deleteDir mod/deleteDir";
const OPAQUE: &str = "for d in un mod; do
        rm -rf $d/opaque; mkdir -p $d/opaque/new; touch $d/opaque/newFile $d/opaque/new/file
    done";
const SHUFFLED: &str = "for d in . un mod; do
        mv $d/shuffleFile $d/away; mv $d/away $d/shuffleFile
    done";
const SPECIAL: &str = "mkfifo un/fifo mod/fifo; mknod un/null c 1 3; mknod mod/null c 1 3";

/// A folder that is a change itself, and one that only leads to changes.
const MOD: &str = "chmod 0700 mod";

#[tokio::test]
async fn differences_have_what_changed_and_the_folders_above() {
    let base = || alpine().run(BASE);
    let from = |script: &str| {
        let changed = base().run(&format!("{MOD}\n{script}"));
        diff(base(), changed)
    };
    let is = |script: &str| run(&format!("mkdir un; mkdir -m 0700 mod\n{script}"));
    let again = |script: &str| merge([base(), from(script)]);
    let all = [NEW, MODIFIED, OVER, REMOVED, OPAQUE, SHUFFLED, SPECIAL];
    let stepwise = all
        .iter()
        .fold(base().run(MOD), |state, script| state.run(script));
    let expected = "chmod -R u+w .
        mkdir -p new/ new2/sub un/newSub mod/newSub un/chmodDir mod/chmodDir
        touch new/file un/new mod/new
        chmod 0700 un/chmodDir mod/chmodDir
        for d in un mod; do
            echo chmod > $d/chmodFile; chmod 0444 $d/chmodFile; echo changed > $d/contentFile
            echo file > $d/overDir; mkdir -m 0750 $d/overFile1; mkdir -p -m 0770 $d/overFile2/sub
            touch $d/overFile2/file $d/overFile2/sub/file
            mkdir -p $d/opaque/new; touch $d/opaque/newFile $d/opaque/new/file
            mkfifo $d/fifo; mknod $d/null c 1 3
        done";
    check(&[
        ("new", from(NEW), is(NEW)),
        ("new, laid over", again(NEW), base().run(MOD).run(NEW)),
        (
            "modified",
            from(MODIFIED),
            is("for d in un mod; do
                    mkdir -m 0700 $d/chmodDir; echo chmod > $d/chmodFile
                    chmod 0444 $d/chmodFile; echo changed > $d/contentFile
                done"),
        ),
        (
            "modified, laid over",
            again(MODIFIED),
            base().run(MOD).run(MODIFIED),
        ),
        (
            "of another kind, laid over",
            again(OVER),
            base().run(MOD).run(OVER),
        ),
        ("removed", from(REMOVED), is("")),
        (
            "removed, laid over",
            again(REMOVED),
            base().run(MOD).run(REMOVED),
        ),
        (
            "emptied",
            from(OPAQUE),
            is(&OPAQUE.replace("rm -rf $d/opaque;", "")),
        ),
        (
            "emptied, laid over what has more",
            merge([
                base().run("touch un/opaque/more un/opaque/sub/more mod/opaque/more"),
                from(OPAQUE),
            ]),
            base()
                .run(MOD)
                .run(OPAQUE)
                .run("touch un/opaque/more mod/opaque/more"),
        ),
        (
            "moved there and back",
            from(SHUFFLED),
            run("mkdir -m 0700 mod"),
        ),
        (
            "moved there and back, laid over",
            again(SHUFFLED),
            base().run(MOD),
        ),
        (
            "special files",
            from(SPECIAL),
            is("for d in un mod; do mkfifo $d/fifo; mknod $d/null c 1 3; done"),
        ),
        ("all at once", from(&all.join("\n")), is(expected)),
        ("all in steps", diff(base(), stepwise.clone()), is(expected)),
        (
            "all in steps, laid over",
            merge([base(), diff(base(), stepwise.clone())]),
            stepwise,
        ),
        (
            "a removal that has nothing to remove",
            merge([
                base(),
                diff(
                    base().run("mkdir extra; touch extra/file"),
                    base()
                        .run("mkdir extra; touch extra/file")
                        .run("rm extra/file"),
                ),
            ]),
            base().run("mkdir extra"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn emptied_folders_and_links_in_the_way() {
    let base = || alpine().run("mkdir -p parent/dir/sub; touch parent/dir/A parent/dir/sub/C");
    let on_alpine = |script: &str| diff(alpine(), alpine().run(script));
    let link = || on_alpine("mkdir bar; ln -s /bar foo");
    let folder = || alpine().run("mkdir foo");
    let file = || diff(folder(), folder().run("touch foo/file"));
    let dir = |script: &str| run("mkdir dir").run(script);
    check(&[
        (
            "only what was there goes",
            merge([
                busybox().run("mkdir -p parent/dir/sub; touch parent/dir/A parent/dir/D"),
                diff(
                    base(),
                    base().run("rm -rf parent/dir; mkdir parent/dir; touch parent/dir/E"),
                ),
            ]),
            busybox().run("mkdir -p parent/dir; touch parent/dir/D parent/dir/E"),
        ),
        (
            "a folder over a link",
            merge([busybox(), link(), file()]),
            busybox().run("mkdir bar foo; touch foo/file"),
        ),
        (
            "a link over a folder",
            merge([busybox(), file(), link()]),
            busybox().run("mkdir bar; ln -s /bar foo"),
        ),
        (
            "a link over a link",
            merge([
                busybox(),
                on_alpine("mkdir 1 2; ln -s /1 a; ln -s /2 1/b"),
                on_alpine("mkdir 3; ln -s /3 a"),
            ]),
            busybox().run("mkdir 1 2 3; ln -s /3 a; ln -s /2 1/b"),
        ),
        (
            "a removal does not follow a link",
            merge([
                busybox(),
                link(),
                diff(folder(), folder().run("rm -rf foo")),
            ]),
            busybox().run("mkdir bar"),
        ),
        (
            "nor one on its way",
            merge([
                busybox(),
                link().run("touch bar/file"),
                diff(file(), file().run("rm foo/file")),
            ]),
            busybox().run("mkdir bar foo; touch bar/file"),
        ),
        (
            "links in a circle",
            merge([
                busybox(),
                on_alpine("ln -s /2 1; ln -s /1 2"),
                run("echo foo > 1"),
            ]),
            busybox().run("echo foo > 1; ln -s /1 2"),
        ),
        (
            "a link into its own folder",
            merge([
                busybox(),
                on_alpine("mkdir foo; ln -s ../foo foo/link"),
                on_alpine("mkdir -p foo/link; touch foo/link/file"),
            ]),
            busybox().run("mkdir -p foo/link; touch foo/link/file"),
        ),
        (
            "a folder over links in a circle",
            merge([
                busybox(),
                on_alpine("ln -s /2 1; ln -s /1 2"),
                on_alpine("mkdir 1; echo foo > 1/file"),
            ]),
            busybox().run("mkdir 1; echo foo > 1/file; ln -s /1 2"),
        ),
        (
            "removed and made anew",
            merge([dir("touch dir/a"), dir("rm -r dir"), dir("touch dir/b")]),
            run("mkdir dir; touch dir/b"),
        ),
        (
            "a file in between",
            merge([dir("touch dir/a"), run("touch dir"), dir("touch dir/b")]),
            run("mkdir dir; touch dir/b"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn files_with_several_names() {
    let linked = || {
        let script = "mkdir dir; touch dir/1; ln dir/1 dir/2; chmod 0600 dir/2";
        diff(alpine(), alpine().run(script))
    };
    let is = "mkdir dir; touch dir/1; ln dir/1 dir/2; chmod 0600 dir/1";
    check(&[
        ("in a difference", linked(), run(is)),
        ("laid over", merge([busybox(), linked()]), busybox().run(is)),
        (
            "a change of them is nobody else's",
            // The change is made first, and both are made of the same.
            merge([
                diff(
                    linked(),
                    linked().run("rm dir/2; chmod 0777 dir/1; echo 1 > dir/1"),
                ),
                linked(),
            ]),
            run(is),
        ),
    ])
    .await;
}

#[tokio::test]
async fn merges_of_differences_and_differences_of_merges() {
    let (a, b, c) = (
        || run("echo A > A"),
        || run("echo B > B"),
        || run("echo C > C"),
    );
    let no_c = || c().run("rm C");
    let ab = || merge([a(), b()]);
    let abc = || merge([a(), b(), c()]);
    let ab_no_c = || merge([a(), b(), no_c()]);
    let nested = || {
        let inner = merge([a(), run("echo E > E")]).run("rm A");
        merge([abc().run("echo D > D"), inner])
    };
    let is = |names: &str| run(&format!("for n in {names}; do echo $n > $n; done"));
    check(&[
        (
            "there and back",
            merge([diff(a(), b()), diff(b(), a())]),
            a(),
        ),
        ("of merges", diff(ab(), abc()), is("C")),
        (
            "of merges with removals",
            merge([abc(), diff(abc(), ab_no_c())]),
            is("A B"),
        ),
        (
            "one step on a merge",
            diff(ab_no_c(), ab_no_c().run("echo D > D")),
            is("D"),
        ),
        (
            "one removal on a merge",
            merge([ab_no_c(), diff(abc(), abc().run("rm A"))]),
            is("B"),
        ),
        (
            "steps on a merge",
            merge([ab_no_c(), diff(abc(), abc().run("echo D > D").run("rm A"))]),
            is("B D"),
        ),
        (
            "nested merges",
            diff(abc(), nested().run("echo F > F")),
            is("D E F"),
        ),
        (
            "nested merges with removals",
            merge([ab().run("echo D > D"), diff(abc(), nested().run("rm D"))]),
            is("B E"),
        ),
    ])
    .await;

    let ab = || a().run("echo B > B");
    let abc = || ab().run("echo C > C");
    check(&[
        (
            "of differences",
            diff(diff(a(), ab()), diff(a(), abc())),
            is("C"),
        ),
        (
            "of differences with removals",
            merge([abc(), diff(diff(a(), abc()), diff(a(), ab()))]),
            is("A B"),
        ),
        (
            "a step on one",
            diff(a(), ab()).run("echo D > D"),
            is("B D"),
        ),
        (
            "a removal on one",
            merge([ab(), diff(a(), ab()).run("rm B")]),
            is("A"),
        ),
        (
            "a step on several",
            diff(a(), abc()).run("echo D > D"),
            is("B C D"),
        ),
        (
            "a removal on several",
            merge([ab(), diff(a(), abc()).run("rm B")]),
            is("A C"),
        ),
    ])
    .await;
}

/// As BuildKit's cases of the reuse of blobs: what was packed for an image is not packed again.
#[tokio::test]
async fn a_difference_of_one_step_has_the_layer_of_that() {
    for base in [alpine(), merge([alpine(), run("echo foo > foo")])] {
        let bench = bench_on(Kind::Overlay).await;
        let upper = base.run("head -c 100 /dev/urandom > random");
        let above = bench.state(&upper).await;
        let image = bench.layers(&above).await;
        let apart = bench.state(&diff(base, upper)).await;
        assert_eq!(bench.layers(&apart).await, image[image.len() - 1..]);
    }
}

/// Nothing is read, written or packed for a merge before somebody wants its files, and then the
/// files are those that are there.
#[tokio::test]
async fn a_merge_has_the_files_of_what_it_is_made_of() {
    for kind in [Kind::Overlay, Kind::Native] {
        let bench = bench_on(kind).await;
        let (base, over) = (alpine(), run("mkdir d; echo 1 > d/file; chmod 600 d/file"));
        let over_made = bench.state(&over).await;
        let merged = bench.state(&merge([base, over])).await;
        assert!(!merged.as_ref().unwrap().is_local());
        assert_eq!(bench.env.content.walk().await.unwrap(), []);
        let inode = async |state: &Option<ImmutableRef>| {
            let dir = bench.mounted(state.as_ref().unwrap()).await;
            let meta = dir.path().join("d/file").symlink_metadata().unwrap();
            (meta.ino(), meta.nlink())
        };
        let (_, alone) = inode(&over_made).await;
        assert_eq!(alone, 1);
        let (merged, of) = (inode(&merged).await, inode(&over_made).await);
        assert_eq!(of.1, 2, "{kind:?}");
        assert_eq!(merged.0, of.0, "{kind:?}");
    }
}

/// On an overlay it is known which files were written: these are read where all else is alike.
#[tokio::test]
async fn a_writer_that_sets_times_is_found_out() {
    let bench = bench_on(Kind::Overlay).await;
    let base = run("echo content > file");
    let script = "cp -p file time; echo CONTENT > file; touch -r time file; rm time";
    let changed = diff(base.clone(), base.run(script));
    let changed = bench.state(&changed).await;
    assert_eq!(bench.unpacked(&changed).await, ["file 644 \"CONTENT\\n\""]);
}
