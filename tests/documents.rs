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
        let file = path.split_once("::").map_or(path.as_str(), |(file, _)| file);
        assert!(root().join(file).exists(), "{document}: `{path}`");
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

/// Whether `code` has the test `name`, and not only a function of that name.
fn has_test(code: &str, name: &str) -> bool {
    let before = [format!("fn {name}("), format!("async fn {name}(")];
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| {
        let is_test = pair[0] == "#[test]" || pair[0].starts_with("#[tokio::test");
        is_test && before.iter().any(|before| pair[1].starts_with(before))
    })
}

#[test]
fn every_test_that_is_named_with_its_file_is_in_it() {
    let named: Vec<_> = quoted().into_iter().filter(|(_, word)| word.contains(".rs::")).collect();
    assert!(named.len() > 50, "{named:?}");
    for (document, test) in named {
        let (file, name) = test.split_once("::").unwrap();
        let code = fs::read_to_string(root().join(file)).unwrap();
        assert!(has_test(&code, name), "{document}: `{test}`");
    }
}

#[test]
fn the_checklist_has_every_point_once_and_a_test_for_what_is_held() {
    let page = fs::read_to_string(root().join("docs/registry.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ")).filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        Some((cells[0].parse::<usize>().ok()?, cells))
    });
    // Other tables begin with numbers, too.
    let rows: Vec<_> = rows.filter(|(_, cells)| cells.len() == 4).collect();
    assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (1..=54).collect::<Vec<_>>());
    for (number, cells) in rows {
        let (held, tests) = (cells[2], cells[3]);
        assert!(held != "yes" || tests.contains(".rs::"), "{number}");
        assert!(!held.is_empty(), "{number}");
    }
}
