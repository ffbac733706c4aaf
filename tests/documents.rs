//! The documents name files and tests as evidence: each of them is there.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name ends in `ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files(&path, ending)
            } else if path.to_str().unwrap().ends_with(ending) {
                vec![path]
            } else {
                Vec::new()
            }
        })
        .collect()
}

/// What stands in backticks in the documents, each with its document, outside of fenced blocks.
fn quoted() -> Vec<(String, String)> {
    let mut documents = files(&root().join("docs"), ".md");
    documents.extend(["CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut found = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let name = document.file_name().unwrap().to_str().unwrap();
        for prose in text.split("\n```").step_by(2) {
            found.extend(prose.split('`').skip(1).step_by(2).map(|word| (name.to_owned(), word.to_owned())));
        }
    }
    found
}

#[test]
fn every_file_that_is_named_is_there() {
    let folders = ["src/", "tests/", "registry-fixtures/", "examples/", "benches/"];
    let named: Vec<_> =
        quoted().into_iter().filter(|(_, word)| folders.iter().any(|folder| word.starts_with(folder))).collect();
    assert!(named.len() > 30, "{named:?}");
    for (document, path) in named {
        assert!(root().join(&path).exists(), "{document}: `{path}`");
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let mut code = String::new();
    for folder in ["src", "tests", "registry-fixtures"] {
        for file in files(&root().join(folder), ".rs") {
            code.push_str(&fs::read_to_string(file).unwrap());
        }
    }
    let is_text = |word: &str| code.contains(&format!("\"{word}\""));
    // Names of tests are sentences; shorter names are of the code, or of another program, and what the code has as a
    // text is a tensor's or a key's.
    let is_sentence = |word: &str| {
        word.trim_matches('_').matches('_').count() >= 3
            && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
    };
    let named: Vec<_> = quoted().into_iter().filter(|(_, word)| is_sentence(word) && !is_text(word)).collect();
    assert!(named.len() > 40, "{named:?}");
    for (document, test) in named {
        assert!(code.contains(&format!("fn {test}(")), "{document}: `{test}`");
    }
}
