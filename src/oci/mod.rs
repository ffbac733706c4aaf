//! The field's own nouns: digests, descriptors, references, manifests. Parsed once into types that
//! hold their invariants, printed back to the same bytes; no I/O lives here.

mod descriptor;
mod digest;
mod document;
mod manifest;
mod media_type;
mod reference;
mod referrer;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher, hex};
pub use document::{Document, Index};
pub use manifest::{MAX_MANIFEST_SIZE, MAX_MANIFEST_VALUES, Manifest};
pub use media_type::MediaType;
pub use reference::Reference;
pub use referrer::Referrer;
