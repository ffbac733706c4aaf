//! What is remembered of uploads that did not come to their end.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// An upload under way at a registry, as a later run can find it. A hint and no more: whoever reads it
/// asks the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Where it goes on. It may let in whoever has it.
    pub url: String,
    /// How many bytes the registry was last known to have.
    pub reached: u64,
    /// The least that a chunk must have, in bytes.
    #[serde(default)]
    pub shortest_chunk: u64,
}

/// Uploads that were begun and not finished, kept from one run to the next. None of it is needed: where it
/// cannot be kept, an upload begins anew.
pub trait Unfinished: Send + Sync + Debug {
    /// The place of what is known about the upload of `digest` to `repository` (with its host), for the caller alone while
    /// it lives; `None` when another has it, or nothing can be kept.
    fn claim(&self, repository: &str, digest: &Digest) -> Option<Box<dyn Claim>>;
}

/// One upload's place among [`Unfinished`]. It holds a small file and is used without waiting.
pub trait Claim: Send {
    /// What an earlier run left.
    fn read(&mut self) -> Option<Upload>;

    /// Keeps `upload` in place of what was kept before.
    fn keep(&mut self, upload: &Upload);

    /// Keeps nothing: the upload is finished, or cannot be.
    fn forget(&mut self);
}
