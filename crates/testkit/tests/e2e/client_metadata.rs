//! What a program can ask of sources before it builds from them.

use std::path::Path;
use std::process::Command;

use cooper_client::Solve;
use cooper_proto::gateway as api;
use cooper_proto::gateway::checksum_request::ChecksumAlgo;
use cooper_proto::pb;
use cooper_testkit::run;

use crate::client::Bench;
use crate::client_frontend::{build, nothing};
use crate::dockerfile_git::Files;

fn source(identifier: &str, attrs: &[(&str, &str)]) -> api::ResolveSourceMetaRequest {
    let attrs = attrs.iter();
    api::ResolveSourceMetaRequest {
        source: Some(pb::SourceOp {
            identifier: identifier.into(),
            attrs: attrs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }),
        ..api::ResolveSourceMetaRequest::default()
    }
}

fn git(dir: &Path, words: &str) -> String {
    let ran = run(Command::new("git")
        .args(["-c", "user.name=x", "-c", "user.email=x@example.org"])
        .args(words.split(' '))
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", "/dev/null")
        .current_dir(dir));
    ran.success().output.trim().to_owned()
}

#[test]
fn gw05_an_image_is_known_by_its_digest_and_configuration() {
    let bench = Bench::start();
    build(&bench, Solve::default(), async |mut gateway| {
        let identifier = format!("docker-image://{}", bench.busybox);
        let whole = gateway
            .0
            .resolve_source_meta(source(&identifier, &[]))
            .await?;
        let whole = whole.into_inner().image.unwrap();
        let config: serde_json::Value = serde_json::from_slice(&whole.config).unwrap();
        assert_eq!(config["os"], "linux");
        let mut short = source(&identifier, &[]);
        short.image = Some(api::ResolveSourceImageRequest {
            no_config: true,
            ..api::ResolveSourceImageRequest::default()
        });
        let short = gateway.0.resolve_source_meta(short).await?.into_inner();
        let short = short.image.unwrap();
        assert_eq!((short.digest, short.config), (whole.digest, Vec::new()));
        let missing = source(&format!("{identifier}-none"), &[]);
        let error = gateway.0.resolve_source_meta(missing).await.unwrap_err();
        assert!(error.message().contains("not found"), "{error}");
        // Of the client's files nothing is known beforehand.
        let local = gateway
            .0
            .resolve_source_meta(source("local://x", &[]))
            .await?;
        let local = local.into_inner();
        assert_eq!(local.source.unwrap().identifier, "local://x");
        assert!(local.image.is_none() && local.git.is_none() && local.http.is_none());
        let unknown = gateway.0.resolve_source_meta(source("svn://x", &[])).await;
        assert!(
            unknown
                .unwrap_err()
                .message()
                .contains("unknown schema svn")
        );
        nothing()
    })
    .unwrap();
    bench.end();
}

#[test]
fn gw05_a_download_is_known_by_its_digest() {
    let bench = Bench::start();
    let dir = bench.folder();
    std::fs::write(dir.path().join("file.txt"), "one").unwrap();
    let files = Files::serve(dir.path());
    let url = format!("http://{}/file.txt", files.host);
    build(&bench, Solve::default(), async |mut gateway| {
        let mut request = source(&url, &[]);
        let checksum = api::ChecksumRequest {
            algo: ChecksumAlgo::Sha512 as i32,
            suffix: b"+mine".to_vec(),
        };
        request.http = Some(api::ResolveSourceHttpRequest {
            checksum_request: Some(checksum),
        });
        let found = gateway.0.resolve_source_meta(request).await?.into_inner();
        let found = found.http.unwrap();
        assert_eq!(
            found.checksum,
            "sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
        );
        assert_eq!(found.filename, "file.txt");
        let proof = found.checksum_response.unwrap();
        assert_eq!(proof.suffix, b"+mine");
        let line = run(Command::new("sh").args(["-c", "printf one+mine | sha512sum"]));
        let expected = line.output.split(' ').next().unwrap();
        assert_eq!(proof.digest, format!("sha512:{expected}"));
        let missing = source(&format!("{url}.none"), &[]);
        let error = gateway.0.resolve_source_meta(missing).await.unwrap_err();
        assert!(error.message().contains("404"), "{error}");
        nothing()
    })
    .unwrap();
    drop(files);
    bench.end();
}

#[test]
fn gw05_a_commit_and_a_tag_are_known_with_their_texts() {
    let bench = Bench::start();
    let dir = bench.folder();
    let repository = dir.path().join("r");
    std::fs::create_dir(&repository).unwrap();
    git(&repository, "init -q -b main");
    std::fs::write(repository.join("file"), "x").unwrap();
    git(&repository, "add .");
    git(&repository, "commit -q -m first");
    git(&repository, "tag -a -m text v1");
    git(&repository, "update-server-info");
    let (commit, tag) = (
        git(&repository, "rev-parse HEAD"),
        git(&repository, "rev-parse v1"),
    );
    let files = Files::serve(dir.path());
    let url = format!("http://{}/r/.git", files.host);
    build(&bench, Solve::default(), async |mut gateway| {
        let ask = |reference: &str, objects| {
            let identifier = format!("git://example.org/r#{reference}");
            let mut request = source(&identifier, &[("git.fullurl", &url)]);
            request.git = Some(api::ResolveSourceGitRequest {
                return_object: objects,
            });
            request
        };
        let found = gateway.0.resolve_source_meta(ask("main", false)).await?;
        let found = found.into_inner().git.unwrap();
        assert_eq!(
            (&found.checksum, found.r#ref.as_str()),
            (&commit, "refs/heads/main")
        );
        assert!(found.commit_checksum.is_empty() && found.commit_object.is_empty());
        let found = gateway.0.resolve_source_meta(ask("v1", true)).await?;
        let found = found.into_inner().git.unwrap();
        assert_eq!((&found.checksum, &found.commit_checksum), (&tag, &commit));
        assert_eq!(found.r#ref, "refs/tags/v1");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(text(found.commit_object).ends_with("\nfirst\n"));
        assert!(text(found.tag_object).starts_with(&format!("object {commit}\n")));
        let error = gateway.0.resolve_source_meta(ask("none", false)).await;
        let error = error.unwrap_err();
        assert!(
            error
                .message()
                .contains("repository does not contain ref none")
        );
        nothing()
    })
    .unwrap();
    drop(files);
    bench.end();
}
