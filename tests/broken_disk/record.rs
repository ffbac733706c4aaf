//! The log of what a store did on its disk, with what it promised in between.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln::oci::Digest;
use kiln::store::{Disk, Operation, Watch};

/// One entry of the log. Paths are relative to the place that the log is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    SetLength(PathBuf, u64),
    Sync(PathBuf),
    MakeDirectory(PathBuf),
    SyncDirectory(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// A command begins that will make this so.
    Begun(Promise),
    /// It said that it is done.
    Kept(Promise),
}

/// What somebody may count on once it was said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Promise {
    /// The name points at this manifest, or at none.
    Name(String, Option<Digest>),
    /// The content is there.
    Content(Digest),
    /// There is a note of this manifest.
    Note(Digest),
    /// The content may go.
    Unneeded,
    /// The bytes of this content are not what they should be.
    Rotten(Digest),
    /// They are in quarantine.
    Aside(Digest),
    /// They are right again.
    Mended(Digest),
}

/// Writes down all that is done on a disk, until it dies.
#[derive(Debug)]
pub(crate) struct Recorder {
    place: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<Step>,
    /// How many more operations are done.
    life: Option<usize>,
}

impl Recorder {
    pub(crate) fn new(place: &Path) -> Arc<Self> {
        Arc::new(Self { place: place.to_owned(), state: Mutex::default() })
    }

    pub(crate) fn disk(self: &Arc<Self>) -> Disk {
        Disk::watched(self.clone())
    }

    pub(crate) fn log(&self) -> Vec<Step> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn push(&self, step: Step) {
        self.state.lock().unwrap().log.push(step);
    }

    /// Does no more than `operations` from here on, as if the process were killed then; `None` brings back to life.
    pub(crate) fn live(&self, operations: Option<usize>) {
        self.state.lock().unwrap().life = operations;
    }

    /// Whether the end of that life was reached.
    pub(crate) fn is_dead(&self) -> bool {
        self.state.lock().unwrap().life == Some(0)
    }
}

impl Watch for Recorder {
    fn around(&self, operation: &Operation<'_>, perform: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        // Held all the while: the log has the order in which things were done.
        let mut state = self.state.lock().unwrap();
        if state.life == Some(0) {
            return Err(io::Error::other("dead"));
        }
        perform()?;
        if let Some(life) = &mut state.life {
            *life -= 1;
        }
        let at = |path: &Path| path.strip_prefix(&self.place).unwrap().to_owned();
        if matches!(operation, Operation::SyncDirectory(path) if !path.starts_with(&self.place)) {
            return Ok(()); // above the place, which stays
        }
        state.log.push(match *operation {
            Operation::Create(path) => Step::Create(at(path)),
            Operation::Write(path, offset, bytes) => Step::Write(at(path), offset, bytes.to_vec()),
            Operation::SetLength(path, length) => Step::SetLength(at(path), length),
            // Nothing depends on it: who owns a file reads it in any mode that a store gives.
            Operation::SetMode(..) => return Ok(()),
            // What gets space without bytes is the reserve, which nobody reads.
            Operation::Allocate(..) => return Ok(()),
            Operation::Sync(path) => Step::Sync(at(path)),
            Operation::MakeDirectory(path) => Step::MakeDirectory(at(path)),
            Operation::SyncDirectory(path) => Step::SyncDirectory(at(path)),
            Operation::Rename(from, to) => Step::Rename(at(from), at(to)),
            Operation::Remove(path) => Step::Remove(at(path)),
            Operation::Fill(path, _) | Operation::Link(_, path) => panic!("not in a store: {}", path.display()),
        });
        Ok(())
    }
}
