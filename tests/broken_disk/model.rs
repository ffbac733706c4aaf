//! A disk that promises no more than POSIX does: bytes are there after the fsync of their file, names after the fsync
//! of their directory; before that, any of them may be, whole or not, in whatever order they came.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::fs;
use std::path::{Path, PathBuf};

use super::record::Step;

/// A file or a directory, by number.
type Node = usize;

/// A disk, with what has reached it and what has not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<Node, File>,
    directories: BTreeMap<PathBuf, Directory>,
    /// The files that have a name, as the processes see it.
    seen: BTreeMap<PathBuf, Node>,
    next: Node,
}

#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLength(u64),
}

#[derive(Clone, Debug, Default)]
struct Directory {
    durable: BTreeMap<String, Named>,
    pending: Vec<(String, Option<Named>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    File(Node),
    Directory,
}

/// What there is after a crash: every file with its bytes, and every directory without.
pub(crate) type Remains = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// How much of what is pending for a file is there after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    None,
    All,
    /// As many as there should be, all of them zero.
    Zeros,
    /// The first half of them.
    Half,
    /// All but the first block, which is zeros: pages go to disk in any order.
    Tail,
}

const BYTES: [Bytes; 5] = [Bytes::None, Bytes::All, Bytes::Zeros, Bytes::Half, Bytes::Tail];

impl File {
    fn after(&self, bytes: Bytes) -> Vec<u8> {
        let all = self.pending.iter().fold(self.durable.clone(), |mut content, change| {
            match change {
                Change::Write(offset, bytes) => {
                    let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                    content.resize(content.len().max(end), 0);
                    content[start..end].copy_from_slice(bytes);
                }
                Change::SetLength(length) => content.resize(*length as usize, 0),
            }
            content
        });
        let half = all.len() / 2;
        match bytes {
            _ if self.pending.is_empty() => all,
            Bytes::None => self.durable.clone(),
            Bytes::All => all,
            Bytes::Zeros => vec![0; all.len()],
            Bytes::Half => all[..half].to_vec(),
            Bytes::Tail => [&vec![0; half], &all[half..]].concat(),
        }
    }
}

fn split(path: &Path) -> (PathBuf, String) {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    (path.parent().unwrap().to_owned(), name)
}

impl Disk {
    /// A disk with an empty directory, at the empty path.
    pub(crate) fn new() -> Self {
        Self { directories: BTreeMap::from([(PathBuf::new(), Directory::default())]), ..Self::default() }
    }

    /// Does `step`.
    pub(crate) fn apply(&mut self, step: &Step) {
        match step {
            Step::Create(path) => {
                self.next += 1;
                self.files.insert(self.next, File::default());
                self.seen.insert(path.clone(), self.next);
                self.enter(path, Some(Named::File(self.next)));
            }
            Step::Write(path, offset, bytes) => self.file(path).pending.push(Change::Write(*offset, bytes.clone())),
            Step::SetLength(path, length) => self.file(path).pending.push(Change::SetLength(*length)),
            Step::Sync(path) => {
                let file = self.file(path);
                file.durable = file.after(Bytes::All);
                file.pending.clear();
            }
            Step::MakeDirectory(path) => {
                self.directories.insert(path.clone(), Directory::default());
                self.enter(path, Some(Named::Directory));
            }
            Step::SyncDirectory(path) => {
                // Of a directory that was there before the log begins, nothing is known but that it stays.
                let directory = self.directories.entry(path.clone()).or_default();
                for (name, named) in std::mem::take(&mut directory.pending) {
                    set(&mut directory.durable, name, named);
                }
            }
            Step::Rename(from, to) => {
                let node = self.seen.remove(from).unwrap_or_else(|| panic!("{} has no name", from.display()));
                self.seen.insert(to.clone(), node);
                self.enter(from, None);
                self.enter(to, Some(Named::File(node)));
            }
            Step::Remove(path) => {
                self.seen.remove(path);
                self.enter(path, None);
            }
            Step::Begun(_) | Step::Kept(_) => {}
        }
    }

    fn file(&mut self, path: &Path) -> &mut File {
        let node = self.seen.get(path).unwrap_or_else(|| panic!("{} has no name", path.display()));
        self.files.get_mut(node).unwrap()
    }

    fn enter(&mut self, path: &Path, named: Option<Named>) {
        let (directory, name) = split(path);
        self.directories.get_mut(&directory).unwrap().pending.push((name, named));
    }

    /// States in which a crash may leave the disk now: those at the edges, and some that `random` picks. Not all of them
    /// are different.
    pub(crate) fn crashes(&self, random: &mut Random) -> Vec<Remains> {
        let mut crashes: Vec<Remains> = BYTES.iter().map(|bytes| self.after(|_| *bytes, |_, _, _| true)).collect();
        crashes.extend([Bytes::None, Bytes::All].map(|bytes| self.after(|_| bytes, |_, _, _| false)));
        // Names come and do not go, and the other way round.
        for comes in [true, false] {
            crashes.push(self.after(|_| Bytes::All, |_, _, named| named.is_some() == comes));
        }
        let pending: Vec<(&PathBuf, usize)> =
            self.directories.iter().map(|(path, directory)| (path, directory.pending.len())).collect();
        for (path, count) in pending.into_iter().filter(|(_, count)| *count > 0) {
            // One directory goes to disk before all others, or after them.
            crashes.push(self.after(|_| Bytes::All, |directory, _, _| directory == path));
            crashes.push(self.after(|_| Bytes::All, |directory, _, _| directory != path));
            // One name goes before or after all others.
            for one in count.saturating_sub(6)..count {
                crashes.push(self.after(|_| Bytes::All, |directory, index, _| directory == path && index == one));
                crashes.push(self.after(|_| Bytes::All, |directory, index, _| directory != path || index != one));
            }
        }
        for _ in 0..12 {
            let bytes: BTreeMap<Node, Bytes> =
                self.files.keys().map(|node| (*node, BYTES[random.below(BYTES.len())])).collect();
            let mut kept = BTreeMap::new();
            for (path, directory) in &self.directories {
                kept.insert(path, directory.pending.iter().map(|_| random.below(2) == 0).collect::<Vec<_>>());
            }
            crashes.push(self.after(|node| bytes[&node], |path, index, _| kept[path][index]));
        }
        crashes
    }

    /// What is there when of the pending bytes of files and the pending names in directories these reached the disk.
    fn after(
        &self,
        bytes: impl Fn(Node) -> Bytes,
        reached: impl Fn(&PathBuf, usize, Option<Named>) -> bool,
    ) -> Remains {
        let mut remains = Remains::new();
        let mut contents: BTreeMap<Node, Vec<u8>> = BTreeMap::new();
        let mut left = vec![PathBuf::new()];
        let mut visited = BTreeSet::new();
        while let Some(path) = left.pop() {
            let directory = &self.directories[&path];
            let mut names = directory.durable.clone();
            for (index, (name, named)) in directory.pending.iter().enumerate() {
                if reached(&path, index, *named) {
                    set(&mut names, name.clone(), *named);
                }
            }
            for (name, named) in names {
                let path = path.join(name);
                match named {
                    Named::File(node) => {
                        let content = match contents.entry(node) {
                            Entry::Occupied(content) => content.get().clone(),
                            Entry::Vacant(vacant) => vacant.insert(self.files[&node].after(bytes(node))).clone(),
                        };
                        remains.insert(path, Some(content));
                    }
                    Named::Directory => {
                        assert!(visited.insert(path.clone()));
                        remains.insert(path.clone(), None);
                        left.push(path);
                    }
                }
            }
        }
        remains
    }
}

fn set(names: &mut BTreeMap<String, Named>, name: String, named: Option<Named>) {
    match named {
        Some(named) => drop(names.insert(name, named)),
        None => drop(names.remove(&name)),
    }
}

/// Puts `remains` into the empty directory `place`.
pub(crate) fn lay_out(remains: &Remains, place: &Path) {
    for (path, content) in remains {
        let path = place.join(path);
        match content {
            None => fs::create_dir(path).unwrap(),
            Some(content) => fs::write(path, content).unwrap(),
        }
    }
}

/// Numbers that are the same in every run (Vigna's SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}
