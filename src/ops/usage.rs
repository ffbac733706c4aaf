//! What takes the space of a store.

use crate::error::Result;
use crate::store::{Store, Usage};

/// Says what each model takes, what of it others need too, and what is in the store besides.
///
/// # Errors
/// As [`Store::usage`].
pub fn usage(store: &Store) -> Result<Usage> {
    store.usage()
}
