//! Which blobs of a model are read, when not all of them are: a sample, or as many as there is time for, where one run
//! goes on behind the last blob that the run before it read.

use std::str::FromStr;
use std::time::Instant;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Finding, Outcome};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::store::Store;

/// How much of a model is read; all of it by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Portion {
    /// One of several samples.
    pub sample: Option<Sample>,
    /// When no further blob is begun. One is read in any case.
    pub until: Option<Instant>,
}

impl Portion {
    /// Whether it is all of a model.
    pub fn is_whole(&self) -> bool {
        self.sample.is_none() && self.until.is_none()
    }

    /// The blobs of `manifest` to be read, each once, in the order of their digests.
    pub(super) fn of<'a>(&self, manifest: &'a Manifest) -> Vec<&'a Descriptor> {
        let mut blobs: Vec<_> = manifest.blobs().filter(|blob| self.includes(blob)).collect();
        blobs.sort_by_key(|blob| blob.digest);
        blobs.dedup();
        blobs
    }

    /// Whether time is up.
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    pub(super) fn includes(&self, blob: &Descriptor) -> bool {
        self.sample.is_none_or(|sample| sample.includes(&blob.digest))
    }
}

/// One of several samples that have no blob in common and together are all blobs, of every model alike: a blob's digest
/// says in which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    number: u64,
    of: u64,
}

impl Sample {
    fn includes(self, digest: &Digest) -> bool {
        let hex = digest.hex();
        u64::from_str_radix(&hex[..16], 16).is_ok_and(|start| start % self.of == self.number - 1)
    }
}

impl FromStr for Sample {
    type Err = Error;

    /// Reads `n/t`, where n is from 1 to t.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it is something else.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(Error::new(ErrorKind::Usage, format!("No sample is called {}", quoted(text)))
                .hint("`1/7` to `7/7` are the samples of seven")),
        }
    }
}

/// How far a model was read by runs that had not the time for all of it. The store keeps it in the manifest's note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// The last blob that was read, in the order of their digests; `None` at the beginning.
    pub(super) after: Option<Digest>,
    /// When all of it had been read, in RFC 3339.
    completed: Option<String>,
}

const ROUND: &str = "read";

impl Round {
    /// Where the last run came to. What cannot be told is as nothing.
    pub(super) fn of(store: &Store, manifest: &Digest) -> Self {
        let note = store.note(manifest).ok().flatten().unwrap_or_default();
        let member = |name: &str| note.get(ROUND)?.get(name)?.as_str();
        Self {
            after: member("after").and_then(|digest| digest.parse().ok()),
            completed: member("completed").map(str::to_owned),
        }
    }

    /// Goes on behind `last`, or from the beginning when it is the last one of all.
    pub(super) fn advance(&mut self, last: Option<Digest>, is_complete: bool) {
        if is_complete {
            let now = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
            *self = Self { after: None, completed: now.and_then(|now| now.format(&Rfc3339).ok()) };
        } else if last.is_some() {
            self.after = last;
        }
    }

    /// # Errors
    /// [`ErrorKind::Store`] when the store cannot be written.
    pub(super) fn keep(&self, store: &Store, manifest: &Digest) -> Result<()> {
        let mut note = match store.note(manifest)? {
            Some(Value::Object(members)) => members,
            _ => Map::new(),
        };
        let members = [("after", self.after.map(|digest| digest.to_string())), ("completed", self.completed.clone())];
        let round = members.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?))));
        note.insert(ROUND.to_owned(), round.collect());
        store.set_note(manifest, &Value::Object(note))
    }
}

/// Every model of `store`; first those of which it is longest that all was read.
///
/// # Errors
/// [`ErrorKind::Store`] when the names cannot be read, [`ErrorKind::Corrupt`] when one is no reference.
pub fn longest_unread(store: &Store) -> Result<Vec<Reference>> {
    let names = store.refs()?.into_iter();
    let mut models = names
        .map(|(name, target)| Ok((Round::of(store, &target.digest).completed, name.parse()?)))
        .collect::<Result<Vec<(_, Reference)>>>()?;
    // Times of one zone and length stand in order; no time comes first.
    models.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(models.into_iter().map(|(_, name)| name).collect())
}

/// What it means that time was up before `left` of `all` blobs were read.
pub(super) fn unread(left: usize, all: usize) -> Finding {
    let message = format!("{left} of {all} blobs were not read in the time there was; the next run begins with them");
    Finding::new(Outcome::CouldNotCheck, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_is_in_one_sample() {
        let digests: Vec<Digest> = (0_u32..500).map(|number| Digest::of(&number.to_le_bytes())).collect();
        for of in [1, 2, 7] {
            let samples: Vec<Sample> = (1..=of).map(|number| format!("{number}/{of}").parse().unwrap()).collect();
            for sample in &samples {
                let size = digests.iter().filter(|digest| sample.includes(digest)).count() as u64;
                assert!((250 / of..=1000 / of).contains(&size), "{sample:?} has {size}");
            }
            for digest in &digests {
                assert_eq!(samples.iter().filter(|sample| sample.includes(digest)).count(), 1, "{digest} of {of}");
            }
        }
        for odd in ["", "1", "0/7", "8/7", "1/0", "/", "-1/7", "1/7/7", "a/b", "1 /7"] {
            assert_eq!(odd.parse::<Sample>().unwrap_err().kind(), ErrorKind::Usage, "{odd}");
        }
    }
}
