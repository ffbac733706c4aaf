//! Laying content out as a file elsewhere: as a reflink or a hard link, which take no space, or as a copy.
//! The bytes of the new file were hashed when it is done.

use std::fs::File;
use std::io;
use std::path::Path;

use super::read::{damaged, examine};
use super::{Damage, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use crate::progress::Progress;

/// How a file shares its bytes with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Until one of them is written to: a copy that takes no space, on file systems that have it.
    Reflink,
    /// For good: it is the store's own file under another name, read-only.
    Hard,
    /// Not at all.
    Copy,
}

impl Link {
    /// Every way, the cheapest that is safe first.
    pub const ALL: [Self; 3] = [Self::Reflink, Self::Hard, Self::Copy];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Hard => "hard",
            Self::Copy => "copy",
        }
    }

    /// The word for what was done.
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Reflink => "reflinked",
            Self::Hard => "hard-linked",
            Self::Copy => "copied",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Hard => "hard link",
            Self::Copy => "copy",
        }
    }
}

impl Store {
    /// Lays the content of `target` out as the new file `path`, in the first of `ways` that works there, and says
    /// which one that was. The new file was read and hashed, and is durable; its name is not yet. When this fails,
    /// the file may be there.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the content is absent or damaged, [`ErrorKind::Store`] when none of `ways` works.
    pub fn place(&self, target: &Descriptor, path: &Path, ways: &[Link], progress: &Progress) -> Result<Link> {
        let content = self.open_sized(target)?.ok_or_else(|| damaged(target, Damage::Missing))?;
        let mut refusal = None;
        for &way in ways {
            match self.lay(&content, target, path, way) {
                Ok(()) => {
                    let verdict = examine(path, target, progress)?;
                    return verdict.map(|()| way).map_err(|damage| damaged(target, damage));
                }
                Err(cause) => refusal = Some((way, cause)),
            }
        }
        let (way, cause) = refusal.unwrap_or((Link::Copy, io::ErrorKind::Unsupported.into()));
        let error = Error::io(ErrorKind::Store, &format!("make a {}", way.noun()), path, cause);
        Err(if way == Link::Copy { error } else { error.hint("`--link copy` works everywhere") })
    }

    fn lay(&self, content: &File, target: &Descriptor, path: &Path, way: Link) -> io::Result<()> {
        let source = self.blob_path(&target.digest);
        if way == Link::Hard {
            return self.layout.disk().link(&source, path);
        }
        let file = self.layout.disk().create(path, 0o666)?;
        let filled = file.fill(&source, |file| match way {
            Link::Reflink => reflink(content, file),
            _ => io::copy(&mut &*content, &mut &*file).map(|_| ()),
        });
        filled.and_then(|()| file.sync()).inspect_err(|_| {
            // The next way needs the name.
            let _ = file.remove();
        })
    }
}

#[cfg(target_os = "linux")]
fn reflink(content: &File, file: &File) -> io::Result<()> {
    rustix::fs::ioctl_ficlone(file, content).map_err(Into::into)
}

#[cfg(not(target_os = "linux"))]
fn reflink(_: &File, _: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
