//! What nobody means well: damaged, odd and hostile inputs, each a row of a table, given to the program itself. A row
//! says how the run has to end and what it has to say; that it says so in lines of its own and does not panic, takes
//! less than 64 MiB and a few seconds, and leaves the store and the registry as they were is asked of every row.
//!
//! One module for each letter: safetensors files, the shard index, `config.json` and what is beside it, manifests and
//! registries, references, stores, and verification itself. `CASES` is the list of all that is to be tried.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod cases;
mod configs;
mod files;
mod indexes;
#[path = "../cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
mod references;
mod registries;
mod safetensors;
#[path = "../registry_auth/scripted.rs"]
#[allow(dead_code, reason = "the tests of credentials use all of it")]
mod scripted;
mod stores;
mod trial;
mod verification;

use std::collections::BTreeSet;

use cases::{CASES, ELSEWHERE};
use trial::{Row, run_all};

#[test]
fn safetensors_files() {
    run_all(&safetensors::rows());
}

#[test]
fn shard_indexes() {
    run_all(&indexes::rows());
}

#[test]
fn configurations_and_what_is_beside_them() {
    run_all(&configs::rows());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_and_registries() {
    run_all(&registries::rows().await);
}

#[test]
fn names_on_the_command_line() {
    run_all(&references::rows());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_of_stores() {
    run_all(&stores::rows().await);
}

#[test]
fn verification_itself() {
    run_all(&verification::rows());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_case_is_forgotten() {
    let tables = [
        safetensors::rows(),
        indexes::rows(),
        configs::rows(),
        registries::rows().await,
        references::rows(),
        stores::rows().await,
        verification::rows(),
    ];
    let rows: Vec<Row> = tables.into_iter().flatten().collect();
    let tried: BTreeSet<&str> = rows.iter().map(|row| row.id).chain(ELSEWHERE.iter().map(|(id, ..)| *id)).collect();
    let all: BTreeSet<&str> = CASES.iter().map(|(id, _)| *id).collect();
    assert_eq!(all.len(), CASES.len());
    assert_eq!(all.difference(&tried).collect::<Vec<_>>(), Vec::<&&str>::new(), "without a row");
    assert_eq!(tried.difference(&all).collect::<Vec<_>>(), Vec::<&&str>::new(), "not in the list");
    assert!(rows.len() >= 200, "{}", rows.len());
}

#[test]
fn what_is_tested_elsewhere_is_there() {
    for (id, file, test) in ELSEWHERE {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).unwrap_or_else(|cause| panic!("{id}: {file}: {cause}"));
        assert!(text.contains(&format!("fn {test}(")), "{id}: {file} has no {test}");
    }
}
