//! What was seen of registries, to spare the next run a look: a small file for each under `registries/`. All
//! of it are hints. Where they cannot be kept or read, there are none.

use std::fs;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Store;
use super::durable::replace;
use crate::json;
use crate::oci::{Descriptor, Digest};

/// How many manifests are remembered of a registry.
const MAX_PUBLISHED: usize = 128;
/// After this long a registry may have changed its ways.
const HABITS_LAST: Duration = Duration::from_secs(7 * 24 * 3600);

/// What was seen of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What it takes, in the words of whoever speaks to it.
    #[serde(default)]
    pub habits: serde_json::Value,
    /// Manifests that it had with all their blobs, the latest last.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// A manifest and a repository that had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The repository's path on its registry.
    pub repository: String,
    /// The manifest.
    pub manifest: Descriptor,
}

impl Seen {
    /// Adds `published` as the latest, and lets the oldest go.
    pub fn publish(&mut self, published: Published) {
        self.published.retain(|earlier| *earlier != published);
        self.published.push(published);
        self.published.drain(..self.published.len().saturating_sub(MAX_PUBLISHED));
    }
}

impl Store {
    /// What was seen of the registry `host`.
    pub fn seen(&self, host: &str) -> Seen {
        self.read_seen(host).unwrap_or_default()
    }

    /// Keeps what `change` makes of what was seen of the registry `host`.
    pub fn see(&self, host: &str, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen(host);
        change(&mut seen);
        if let Ok(directory) = self.layout.registries() {
            let _ = replace(
                self.layout.disk(),
                &self.layout.ingest(),
                &directory,
                &file_name(host),
                &json::to_canonical(&seen),
            );
        }
    }

    /// Registries and their repositories that were seen to have `manifest`, in the order of their names.
    pub fn homes(&self, manifest: &Digest) -> Vec<(String, String)> {
        let entries = self.layout.registries().ok().and_then(|directory| fs::read_dir(directory).ok());
        let names = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut hosts: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        hosts.sort();
        let homes = hosts.into_iter().flat_map(|host| {
            let published = self.seen(&host).published.into_iter().rev();
            published.filter(|it| it.manifest.digest == *manifest).map(move |it| (host.clone(), it.repository))
        });
        homes.collect()
    }

    fn read_seen(&self, host: &str) -> Option<Seen> {
        let path = self.layout.registries().ok()?.join(file_name(host));
        let mut seen: Seen = json::parse_as(&fs::read(&path).ok()?).ok()?;
        let written = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
        if SystemTime::now().duration_since(written).is_ok_and(|age| age > HABITS_LAST) {
            seen.habits = serde_json::Value::Null;
        }
        Some(seen)
    }
}

/// `host[:port]` has no character that a file's name cannot have.
fn file_name(host: &str) -> String {
    format!("{host}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    fn published(number: usize) -> Published {
        let manifest = Descriptor::of(MediaType::OCI_MANIFEST, number.to_string().as_bytes());
        Published { repository: "team/model".to_owned(), manifest }
    }

    #[test]
    fn what_was_seen_is_kept_for_its_registry_and_the_oldest_is_let_go() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let host = "registry.example:5000";
        assert_eq!(store.seen(host), Seen::default());
        for number in (0..MAX_PUBLISHED).chain([3, MAX_PUBLISHED]) {
            store.see(host, |seen| seen.publish(published(number)));
        }
        store.see(host, |seen| seen.habits = "slow".into());
        let seen = store.seen(host);
        assert_eq!((seen.published.len(), &seen.published[0]), (MAX_PUBLISHED, &published(1)));
        assert_eq!(seen.published[MAX_PUBLISHED - 2..], [published(3), published(MAX_PUBLISHED)]);
        assert_eq!(store.seen("registry.example"), Seen::default());
        let home = |host: &str| (host.to_owned(), "team/model".to_owned());
        store.see("other.example", |seen| seen.publish(published(3)));
        assert_eq!(store.homes(&published(3).manifest.digest), [home("other.example"), home(host)]);
        assert_eq!(store.homes(&Digest::of(b"0")), []);
    }

    #[test]
    fn habits_of_long_ago_and_files_of_others_say_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        store.see("registry.example", |seen| {
            seen.habits = "slow".into();
            seen.publish(published(1));
        });
        let path = root.path().join("registries/registry.example.json");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - HABITS_LAST - Duration::from_secs(9)).unwrap();
        let seen = store.seen("registry.example");
        assert_eq!((seen.habits, seen.published), (serde_json::Value::Null, vec![published(1)]));
        fs::write(&path, "{").unwrap();
        assert_eq!(store.seen("registry.example"), Seen::default());
    }
}
