//! What a crash or a failing disk leaves of a store. Its operations are written down, and then every state in which a
//! power cut could leave the disk is made and looked at; or one of them after the other fails.

#![allow(clippy::unwrap_used)] // in functions that tests share

mod arriving;
mod commands;
mod crash;
mod faults;
mod model;
mod record;
mod sound;

use std::path::PathBuf;

use tempfile::TempDir;

/// A directory in memory where there is one: what a test does there is not what a disk does, and fast.
fn place() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = memory.is_dir().then(|| tempfile::tempdir_in(memory).ok()).flatten();
    place.unwrap_or_else(|| tempfile::tempdir().unwrap())
}
