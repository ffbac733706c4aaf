//! Content of which some has arrived: `ingest/<hex>.partial`, and beside it, in `<hex>.ranges`, which of its
//! bytes are there, so that a later process asks only for the others.
//!
//! The first line of the record is written for bytes that are on disk. Behind it are notes, a line each, of those
//! that came since and may be in the system's memory alone: they outlive the process, and count until the system
//! starts anew. Still none of it proves anything: all bytes are hashed before the content gets its name, so a record
//! that lies costs another transfer and no more. Whoever writes to the file holds a kernel lock on it, which ends with
//! the process.

use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::durable::{BLOB_MODE, Draft, publish, replace};
use super::{Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::{Descriptor, Digest};
use crate::storage::{Coverage, Verifier};

/// What is in less than this is not worth keeping.
const WORTH_KEEPING: u64 = 1 << 20;
/// A record is written when this much has arrived since the last one,
const SAVE_AFTER_BYTES: u64 = 16 << 20;
/// or some has and this time has passed: what a power cut may cost.
pub(super) const SAVE_AFTER: Duration = Duration::from_millis(500);
/// How much may have arrived without a note of it: what a kill may cost, besides what was not written yet. A note costs
/// microseconds, a record tens of milliseconds.
const NOTE_AFTER_BYTES: u64 = 256 << 10;
/// How much is read at once to be hashed.
const CHUNK: usize = 256 << 10;
/// The largest record that is read.
const MAX_RECORD_SIZE: u64 = 1 << 20;

const CONTENT: &str = ".partial";
const RECORD: &str = ".ranges";

/// What [`Store::take_partial`] found.
pub(super) enum Take {
    /// The content is there.
    Present,
    /// Another transfer of it is under way, in this process or another.
    Elsewhere,
    /// What there is of it, to be gone on with.
    Partial(Box<Partial>),
}

/// Content that is arriving, under a lock.
pub(super) struct Partial {
    draft: Draft,
    disk: Disk,
    ingest: PathBuf,
    /// The name of the record in `ingest`.
    record: String,
    there: Coverage,
    /// The check of the bytes from the first on, as far as it has come.
    verifier: Verifier,
    /// Whether some of the bytes are from an earlier transfer.
    is_resumed: bool,
    /// How many bytes have arrived since the last record.
    unsaved: u64,
    /// Which bytes have arrived since the last note or record.
    unnoted: Coverage,
    saved_at: Instant,
    /// Holds the lock until the content has its name. Dropped after `draft`, which may still remove the file.
    _lock: File,
}

/// The first line of a record. The others are ranges as in here.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The run of the system in which the notes were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    size: u64,
    /// Of each range the first byte and the one behind the last.
    ranges: Vec<(u64, u64)>,
}

/// This run of the system, where it tells. Where it does not, nothing is noted.
static BOOT: LazyLock<Option<String>> =
    LazyLock::new(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned()));

/// The names of the files in `ingest/` for what has arrived of `digest`: its bytes, and which they are.
pub(super) fn names(digest: &Digest) -> [String; 2] {
    [CONTENT, RECORD].map(|suffix| format!("{}{suffix}", digest.hex()))
}

/// The digest for whose content a file in `ingest/` with this name is.
pub(super) fn digest_of(name: &str) -> Option<Digest> {
    let hex = name.strip_suffix(CONTENT).or_else(|| name.strip_suffix(RECORD))?;
    Digest::from_hex(hex)
}

impl Store {
    /// Takes what has arrived of `expected`, which may be nothing, unless somebody else has it.
    pub(super) fn take_partial(&self, expected: &Descriptor) -> Result<Take> {
        let ingest = self.layout.ingest();
        let [content, record] = names(&expected.digest);
        let path = ingest.join(content);
        let disk = self.layout.disk().clone();
        let (handle, _) = disk.open_or_create(&path, 0o600).map_err(|cause| failed("open", &path, cause))?;
        let file = handle.file();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Take::Elsewhere),
            Err(TryLockError::Error(cause)) => return Err(failed("lock", &path, cause)),
        }
        let examine = || Ok((file.metadata()?, file.try_clone()?));
        let (metadata, lock) = examine().map_err(|cause| failed("open", &path, cause))?;
        // Whoever had the lock before may have given the file its name, or removed it.
        let is_this = |there: fs::Metadata| (there.dev(), there.ino()) == (metadata.dev(), metadata.ino());
        if !fs::symlink_metadata(&path).is_ok_and(is_this) {
            return Ok(Take::Elsewhere);
        }
        let mut partial = Partial {
            draft: Draft::resume(handle, BLOB_MODE),
            disk,
            ingest,
            record,
            there: Coverage::new(),
            verifier: Verifier::new(expected),
            is_resumed: false,
            unsaved: 0,
            unnoted: Coverage::new(),
            saved_at: Instant::now(),
            _lock: lock,
        };
        // Nobody else brings it from here on.
        if self.holds(expected)? {
            partial.discard();
            return Ok(Take::Present);
        }
        partial.load(metadata.len())?;
        Ok(Take::Partial(Box::new(partial)))
    }

    /// Gives the content its name when it is whole and right. When it is wrong, and bytes of an earlier
    /// transfer are in it, it is given back empty.
    pub(super) fn complete(&self, mut partial: Box<Partial>) -> Result<Option<Box<Partial>>> {
        if let Err(wrong) = partial.verify() {
            if partial.is_resumed {
                partial.start_over()?;
                return Ok(Some(partial));
            }
            partial.discard();
            return Err(wrong);
        }
        let (disk, record) = (partial.disk.clone(), partial.ingest.join(&partial.record));
        let Partial { mut draft, verifier, _lock, .. } = *partial;
        draft.stay(false);
        let digest = verifier.expected().digest;
        publish(&disk, &self.layout.blobs_for(&digest)?, [(draft.seal()?, digest.hex())])?;
        self.stamp(verifier.expected(), self.look(verifier.expected()));
        // One that stays is for no file; gc takes it.
        let _ = disk.remove(&record);
        Ok(None)
    }
}

impl Partial {
    /// The ranges that have not arrived.
    pub(super) fn missing(&self) -> Vec<Range<u64>> {
        self.there.holes(0..self.verifier.expected().size)
    }

    /// Takes in `bytes`, whose first is at `offset`, and writes a record or a note when it is time for one. What is
    /// there already is not written again: it may have been hashed.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        for hole in self.there.holes(offset..offset + bytes.len() as u64) {
            // Both are positions in `bytes`, which are in memory.
            let part = &bytes[(hole.start - offset) as usize..(hole.end - offset) as usize];
            self.draft.write_at(part, hole.start)?;
            if hole.start == self.verifier.seen() {
                self.verifier.update(part)?;
            }
            self.unnoted.add(hole.clone());
            self.unsaved += self.there.add(hole);
        }
        // In small steps, so that nobody waits while gigabytes are read. An error comes back at the end.
        let _ = self.hash(2 * bytes.len() as u64);
        let is_due = self.unsaved >= SAVE_AFTER_BYTES || self.saved_at.elapsed() >= SAVE_AFTER;
        if is_due { self.save() } else { self.note() }
    }

    /// Sees to it that a later process finds what has arrived, if it is worth that.
    pub(super) fn save(&mut self) -> Result<()> {
        if self.unsaved == 0 || self.there.len() < WORTH_KEEPING {
            return Ok(());
        }
        self.draft.sync().inspect_err(|_| self.draft.stay(false))?;
        replace(&self.disk, &self.ingest, &self.ingest, &self.record, &self.first_line(&self.there))?;
        self.draft.stay(true);
        (self.unsaved, self.saved_at) = (0, Instant::now());
        self.unnoted = Coverage::new();
        Ok(())
    }

    /// Sees to it that a later process finds what has arrived, unless the system goes down before the next record.
    fn note(&mut self) -> Result<()> {
        if BOOT.is_none() || self.unnoted.len() < NOTE_AFTER_BYTES || self.there.len() < WORTH_KEEPING {
            return Ok(());
        }
        let path = self.ingest.join(&self.record);
        let open = || {
            let (handle, _) = self.disk.open_or_create(&path, 0o600)?;
            Ok((handle.file().metadata()?.len(), handle))
        };
        let (end, handle) = open().map_err(|cause| failed("open", &path, cause))?;
        let mut text = if end == 0 { self.first_line(&Coverage::new()) } else { Vec::new() };
        for range in pairs(&self.unnoted) {
            text.extend_from_slice(&json::to_canonical(&range));
            text.push(b'\n');
        }
        handle.write_at(&text, end).map_err(|cause| failed("write", &path, cause))?;
        self.draft.stay(true);
        self.unnoted = Coverage::new();
        Ok(())
    }

    /// The first line of a record of bytes that are on disk.
    fn first_line(&self, saved: &Coverage) -> Vec<u8> {
        let size = self.verifier.expected().size;
        let record = Record { boot: BOOT.clone(), size, ranges: pairs(saved).collect() };
        let mut line = json::to_canonical(&record);
        line.push(b'\n');
        line
    }

    /// Throws away what has arrived.
    pub(super) fn discard(&mut self) {
        // Without its file a record counts for nothing.
        let _ = self.disk.remove(&self.ingest.join(&self.record));
        self.draft.stay(false);
    }

    /// Takes the bytes that the record speaks of for there, in a file of `length` bytes. A record that does
    /// not fit is as none.
    fn load(&mut self, length: u64) -> Result<()> {
        let size = self.verifier.expected().size;
        let within = length.min(size);
        let fits = |record: &Record| {
            record.size == size && record.ranges.iter().all(|&(start, end)| start < end && end <= within)
        };
        for (start, end) in self.read_record().filter(fits).map_or(Vec::new(), |record| record.ranges) {
            self.there.add(start..end);
        }
        if self.there.len() < WORTH_KEEPING {
            return self.start_over();
        }
        self.is_resumed = true;
        // What was only noted gets to the disk, and no note of this run comes behind a record of another.
        self.unsaved = self.there.len();
        self.save()
    }

    /// The record, with those of its notes that count.
    fn read_record(&self) -> Option<Record> {
        let mut text = Vec::new();
        File::open(self.ingest.join(&self.record)).ok()?.take(MAX_RECORD_SIZE).read_to_end(&mut text).ok()?;
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let mut record: Record = json::parse_as(lines.next()?).ok()?;
        if BOOT.is_some() && record.boot == *BOOT {
            // The last may be of a process that died while it wrote: a note is none without its bracket.
            record.ranges.extend(lines.map_while(|line| json::parse_as::<(u64, u64)>(line).ok()));
        }
        Some(record)
    }

    /// Goes back to no bytes.
    fn start_over(&mut self) -> Result<()> {
        self.discard();
        self.draft.truncate(0)?;
        (self.there, self.verifier) = (Coverage::new(), Verifier::new(self.verifier.expected()));
        self.unnoted = Coverage::new();
        (self.is_resumed, self.unsaved, self.saved_at) = (false, 0, Instant::now());
        Ok(())
    }

    /// Whether the content is what was promised.
    fn verify(&mut self) -> Result<()> {
        self.hash(u64::MAX)?;
        self.verifier.clone().finish()?;
        // Behind it may be what another program left.
        self.draft.truncate(self.verifier.expected().size)
    }

    /// Reads at most `most` bytes that arrived before those in front of them, and hashes them.
    fn hash(&mut self, most: u64) -> Result<()> {
        let start = self.verifier.seen();
        let end = self.there.end_of(start).min(start.saturating_add(most));
        let mut chunk = vec![0; CHUNK.min(usize::try_from(end - start).unwrap_or(CHUNK))];
        while self.verifier.seen() < end {
            let at = self.verifier.seen();
            let length = chunk.len().min(usize::try_from(end - at).unwrap_or(CHUNK));
            self.draft
                .read_at(&mut chunk[..length], at)
                .map_err(|cause| Error::io(ErrorKind::Corrupt, "read", self.draft.path(), cause))?;
            self.verifier.update(&chunk[..length])?;
        }
        Ok(())
    }
}

/// Of each range the first byte and the one behind the last.
fn pairs(coverage: &Coverage) -> impl Iterator<Item = (u64, u64)> {
    coverage.ranges().iter().map(|range| (range.start, range.end))
}
