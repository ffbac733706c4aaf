//! The Hugging Face cache: an entry `models--<org>--<name>` for each repository, in it `refs/<revision>`
//! with the commit that a branch or tag had, and `snapshots/<commit>` with the files as links into `blobs`.
//! It is read as it is; nothing is downloaded.
//!
//! <https://huggingface.co/docs/huggingface_hub/v1.0.0/guides/manage-cache>.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::directory::Listing;
use super::{HubOrigin, is_printable};
use crate::error::{Error, ErrorKind, Result, quoted};

/// The revision that is meant when none is named.
const MAIN: &str = "main";
/// The shortest prefix of a commit that names it, in digits; as in git.
const SHORTEST: usize = 4;

/// Whether `text` can be the name of a repository on the hub: `org/name`, or `name` alone.
pub fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !part.is_empty() && part.len() <= 96 && part.bytes().all(plain) && !part.contains("--") && !part.contains("..")
    };
    text.split('/').count() <= 2 && text.split('/').all(is_part)
}

/// The snapshot of `repository` in `cache`: that of `revision`, a branch, a tag, or a commit by the beginning
/// of its name; else that of `main`. `None` when the cache has no entry for it.
///
/// # Errors
/// [`ErrorKind::Input`]: the entry does not hold the revision, or several that begin like it, or is damaged.
pub fn hub_snapshot(cache: &Path, repository: &str, revision: Option<&str>) -> Result<Option<PathBuf>> {
    let entry = cache.join(format!("{ENTRY}{}", repository.replace('/', "--")));
    if !is_repository(repository) || !entry.is_dir() {
        return Ok(None);
    }
    snapshot(&entry, revision).map(Some)
}

const ENTRY: &str = "models--";

/// Whether a directory of this name is an entry of a cache.
pub(super) fn is_entry(name: &str) -> bool {
    name.starts_with(ENTRY)
}

/// The repository and the commit that a directory is the snapshot of, as its path tells.
pub(super) fn origin(snapshot: &Path) -> Option<HubOrigin> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let snapshots = snapshot.parent()?;
    let (revision, entry) = (name(snapshot)?, name(snapshots.parent()?)?);
    let repository = entry.strip_prefix(ENTRY)?.replace("--", "/");
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_snapshot = name(snapshots)? == "snapshots" && is_commit && is_repository(&repository);
    is_snapshot.then_some(HubOrigin { repository, revision })
}

/// The snapshot of the cache entry that `revision` names; without one that of `main`, or the only one.
pub(super) fn snapshot(entry: &Path, revision: Option<&str>) -> Result<PathBuf> {
    let shown = entry.display();
    let snapshots = entry.join("snapshots");
    let lacks = |revision: &str| {
        let message = format!("The cache entry `{shown}` does not hold the revision {}", quoted(revision));
        Error::input(message)
            .hint("finish the download: `hf download` completes a cache entry, with `--revision` for other than `main`")
    };
    if let Some(commit) = commit_of(entry, revision.unwrap_or(MAIN))? {
        let snapshot = snapshots.join(&commit);
        return if snapshot.is_dir() { Ok(snapshot) } else { Err(lacks(&commit)) };
    }
    let held = if snapshots.is_dir() { Listing::of(&snapshots)?.folders } else { Default::default() };
    let is_meant = |commit: &&String| match revision {
        None => true,
        Some(revision) if revision.len() < SHORTEST => false,
        Some(revision) => commit.starts_with(revision),
    };
    match (held.iter().filter(is_meant).collect::<Vec<_>>().as_slice(), revision) {
        ([only], _) => Ok(snapshots.join(only)),
        ([], Some(revision)) => Err(lacks(revision)),
        ([], None) => Err(Error::input(format!("The cache entry `{shown}` holds no revision"))),
        ([first, ..], Some(revision)) => {
            Err(Error::input(format!("The cache entry `{shown}` holds several revisions {}…", revision.escape_debug()))
                .hint(format!("name one of them in full, as `{first}`")))
        }
        ([first, ..], None) => Err(Error::input(format!("The cache entry `{shown}` holds several revisions"))
            .hint(format!("name one of them, as `{}`", snapshots.join(first).display()))),
    }
}

/// The commit that the cache has written down for a branch or tag; `None` when it knows none of that name.
fn commit_of(entry: &Path, revision: &str) -> Result<Option<String>> {
    if !is_printable(revision) || !is_inside(revision) {
        return Ok(None);
    }
    let path = entry.join("refs").join(revision);
    let odd = || Error::input(format!("`{}` does not name a revision", path.display()));
    match fs::symlink_metadata(&path) {
        // Its text is a commit; anything longer is not worth reading.
        Ok(metadata) if metadata.is_file() && metadata.len() <= 256 => {
            let text = fs::read_to_string(&path).map_err(|e| Error::io(ErrorKind::Input, "read", &path, e))?;
            let commit = text.trim();
            let is_name = is_inside(commit) && !commit.contains('/') && is_printable(commit);
            if is_name { Ok(Some(commit.to_owned())) } else { Err(odd()) }
        }
        // The directory of branches that have this before their slash.
        Ok(metadata) if metadata.is_dir() && revision != MAIN => Ok(None),
        Ok(_) => Err(odd()),
        Err(_) => Ok(None),
    }
}

/// Whether a path leads down only, and somewhere.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1234567890abcdef1234567890abcdef12345678";
    const TWO: &str = "1234ffff90abcdef1234567890abcdef12345678";

    fn cache() -> tempfile::TempDir {
        let cache = tempfile::TempDir::new().unwrap();
        let entry = cache.path().join("models--acme--tiny");
        for commit in [ONE, TWO] {
            fs::create_dir_all(entry.join("snapshots").join(commit)).unwrap();
        }
        fs::create_dir_all(entry.join("refs/refs/pr")).unwrap();
        for (name, commit) in [("main", ONE), ("v1", TWO), ("gone", "0000"), ("odd", "../.."), ("refs/pr/1", TWO)] {
            fs::write(entry.join("refs").join(name), format!("{commit}\n")).unwrap();
        }
        cache
    }

    #[test]
    fn a_snapshot_tells_its_repository_and_its_commit() {
        let commit = "0123456789".repeat(4);
        let path = |text: &str| PathBuf::from(text.replace("COMMIT", &commit));
        let found = origin(&path("/cache/models--acme--tiny/snapshots/COMMIT")).unwrap();
        assert_eq!(found, HubOrigin { repository: "acme/tiny".to_owned(), revision: commit.clone() });
        for odd in [
            "/cache/models--acme--tiny/snapshots/main",
            "/cache/models--acme--tiny/COMMIT",
            "/cache/datasets--acme--tiny/snapshots/COMMIT",
            "/cache/models--a--b--c/snapshots/COMMIT",
            "/COMMIT",
            "/",
        ] {
            assert_eq!(origin(&path(odd)), None, "{odd}");
        }
    }

    #[test]
    fn a_revision_is_a_branch_a_tag_or_the_beginning_of_a_commit() {
        let cache = cache();
        for (revision, commit) in [
            (None, ONE),
            (Some("main"), ONE),
            (Some("v1"), TWO),
            (Some("refs/pr/1"), TWO),
            (Some(TWO), TWO),
            (Some("12345"), ONE),
            (Some("1234f"), TWO),
        ] {
            let found = hub_snapshot(cache.path(), "acme/tiny", revision).unwrap().unwrap();
            assert_eq!(found.file_name().unwrap(), commit, "{revision:?}");
        }
    }

    #[test]
    fn what_the_entry_does_not_hold_is_told() {
        let cache = cache();
        for (revision, words) in [
            ("v2", "does not hold the revision `v2`"),
            ("123", "does not hold the revision `123`"),
            ("gone", "does not hold the revision `0000`"),
            ("refs", "does not hold the revision `refs`"),
            ("../../other", "does not hold the revision `../../other`"),
            ("1234", "holds several revisions 1234…"),
            ("odd", "does not name a revision"),
        ] {
            let error = hub_snapshot(cache.path(), "acme/tiny", Some(revision)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{revision}: {error}");
            assert!(error.to_string().contains(words), "{revision}: {error}");
        }
    }

    #[test]
    fn only_repositories_are_looked_for() {
        let cache = cache();
        for absent in ["acme/other", "acme/tiny/x", "acme--tiny", "../models--acme--tiny", "acme/..", "", "/"] {
            assert_eq!(hub_snapshot(cache.path(), absent, None).unwrap(), None, "{absent}");
        }
        assert!(is_repository("gpt2") && is_repository("Qwen/Qwen3-30B-A3B") && is_repository("01-ai/Yi-1.5"));
    }
}
