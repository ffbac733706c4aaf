//! Memory and the local store keep the same laws.

use std::error::Error as _;
use std::fs;

use kiln::storage::{Memory, conformance};
use kiln::store::Store;

#[tokio::test]
async fn memory_keeps_the_laws() {
    report(conformance::uphold(&Memory::new(), "registry.example/laws/model").await);
}

#[tokio::test]
async fn the_store_keeps_the_laws() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    report(conformance::uphold(&store, "registry.example/laws/model").await);
    assert_eq!(fs::read_dir(directory.path().join("ingest")).unwrap().count(), 0, "unfinished files stayed");
}

fn report(outcome: kiln::Result<()>) {
    if let Err(error) = outcome {
        panic!("{error}: {:?}", error.source().map(ToString::to_string));
    }
}
