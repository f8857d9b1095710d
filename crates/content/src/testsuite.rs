//! What every content store does the same, as a test that panics when it does not.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use crate::{ContentError, ContentStore, digest_of};

/// Runs the suite on an empty store, and leaves it empty.
pub async fn run(store: &dyn ContentStore) {
    a_blob_is_whole_or_not_there(store).await;
    what_does_not_match_is_refused(store).await;
    an_ingest_has_one_writer_and_is_resumed(store).await;
    an_open_blob_outlives_its_deletion(store).await;
    a_small_blob_is_written_by_several_at_once(store).await;
    assert!(store.walk().await.unwrap().is_empty());
}

async fn a_blob_is_whole_or_not_there(store: &dyn ContentStore) {
    let digest = digest_of(b"abcdef");
    let missing = store.info(&digest).await;
    assert!(
        matches!(missing, Err(ContentError::NotFound { .. })),
        "{missing:?}"
    );
    let mut ingest = store.ingest("one").await.unwrap();
    ingest.write(b"abc").await.unwrap();
    assert!(store.info(&digest).await.is_err());
    ingest.write(b"def").await.unwrap();
    assert_eq!(ingest.commit(Some(6), Some(&digest)).await.unwrap(), digest);
    assert_eq!(store.info(&digest).await.unwrap().size, 6);
    assert_eq!(store.walk().await.unwrap().len(), 1);
    let mut part = [0; 4];
    let blob = store.open(&digest).await.unwrap();
    assert_eq!((blob.size(), blob.read_at(&mut part, 4).unwrap()), (6, 2));
    assert_eq!(&part[..2], b"ef");
    let large = store.read_all(&digest, 5).await;
    assert!(
        matches!(large, Err(ContentError::TooLarge { .. })),
        "{large:?}"
    );
    // The same again is no error.
    assert_eq!(store.write_all(b"abcdef").await.unwrap(), digest);
    store
        .sync(&[digest.clone(), digest_of(b"not here")])
        .await
        .unwrap();
    store.delete(&digest).await.unwrap();
    store.delete(&digest).await.unwrap();
    assert!(store.open(&digest).await.is_err());
}

async fn what_does_not_match_is_refused(store: &dyn ContentStore) {
    let expected = digest_of(b"right");
    let mut ingest = store.ingest("bad").await.unwrap();
    ingest.write(b"wrong").await.unwrap();
    let error = ingest.commit(Some(5), Some(&expected)).await.unwrap_err();
    assert!(
        matches!(error, ContentError::DigestMismatch { .. }),
        "{error:?}"
    );
    let mut ingest = store.ingest("bad").await.unwrap();
    assert_eq!(ingest.offset(), 0, "what does not match is not resumed");
    ingest.write(b"rig").await.unwrap();
    let error = ingest.commit(Some(5), Some(&expected)).await.unwrap_err();
    assert!(
        matches!(error, ContentError::SizeMismatch { found: 3, .. }),
        "{error:?}"
    );
    assert!(store.info(&expected).await.is_err());
}

async fn an_ingest_has_one_writer_and_is_resumed(store: &dyn ContentStore) {
    let mut first = store.ingest("shared").await.unwrap();
    let second = store.ingest("shared").await.err().unwrap();
    assert!(matches!(second, ContentError::Busy { .. }), "{second:?}");
    first.write(b"12").await.unwrap();
    drop(first);
    let mut again = store.ingest("shared").await.unwrap();
    assert_eq!(again.offset(), 2);
    again.write(b"34").await.unwrap();
    let digest = again.commit(None, Some(&digest_of(b"1234"))).await.unwrap();
    store.delete(&digest).await.unwrap();
    let mut ingest = store.ingest("shared").await.unwrap();
    assert_eq!(ingest.offset(), 0);
    ingest.write(b"x").await.unwrap();
    ingest.abort().await.unwrap();
    assert_eq!(store.ingest("shared").await.unwrap().offset(), 0);
}

async fn an_open_blob_outlives_its_deletion(store: &dyn ContentStore) {
    let digest = store.write_all(b"still here").await.unwrap();
    let blob = store.open(&digest).await.unwrap();
    store.delete(&digest).await.unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut crate::BlobReader::new(&*blob), &mut bytes).unwrap();
    assert_eq!(bytes, b"still here");
}

async fn a_small_blob_is_written_by_several_at_once(store: &dyn ContentStore) {
    let bytes = b"wanted by all";
    let all = tokio::join!(
        store.write_all(bytes),
        store.write_all(bytes),
        store.write_all(bytes)
    );
    let digest = digest_of(bytes);
    for written in <[_; 3]>::from(all) {
        assert_eq!(written.unwrap(), digest);
    }
    assert_eq!(store.walk().await.unwrap().len(), 1);
    store.delete(&digest).await.unwrap();
}
