//! kiln imports a model checkpoint, normalizes and quantizes it into layers whose bytes are the same
//! every time, keeps them by digest, moves them through OCI registries, and proves that a re-create
//! gives the same digests. `docs/architecture.md` is the map of the rooms below.

pub mod arch;
pub mod blobs;
#[cfg(feature = "cli")]
pub mod cli;
pub mod copy;
mod error;
pub mod inventory;
pub mod json;
pub mod manifest;
pub mod oci;
pub mod ops;
pub mod plan;
mod progress;
pub mod quant;
pub mod registry;
pub mod serve;
pub mod signing;
pub mod source;
pub mod storage;
pub mod store;

pub use error::{Error, ErrorKind, Result};
pub use progress::{Event, Progress};
