//! Reading a text that the user wrote: a recipe, a Modelfile.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// The longest that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The text in the file at `path`, which is a `what`.
///
/// # Errors
/// [`ErrorKind::Input`] for a file that cannot be read, is longer than 1 MiB, or is not UTF-8.
pub(super) fn read(what: &str, path: &Path) -> Result<String> {
    let unreadable = |cause| Error::io(ErrorKind::Input, &format!("read the {what}"), path, cause);
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LONGEST {
        return Err(Error::input(format!("The {what} `{}` is longer than 1 MiB", path.display())));
    }
    Ok(text)
}
