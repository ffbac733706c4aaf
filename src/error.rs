//! The one error of the public API: what went wrong, why, and what the reader can do about it.
//!
//! A message is one sentence with values in backticks and no final period. The cause is kept as
//! `source` and never repeated in the text, so that a chain printer says each thing once.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

/// The result of everything that can fail in kiln.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error; decides the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A bug, or a condition nobody foresaw.
    Unexpected,
    /// The call itself is wrong: an unknown scheme, a malformed reference.
    Usage,
    /// Stored or received bytes are not those their digest promises.
    Corrupt,
    /// A re-creation gave other bytes.
    NotReproduced,
    /// The question could not be answered: the source is gone, the numerics unknown.
    CouldNotCheck,
    /// A signature or a statement that was asked for is missing, wrong, or of somebody who is not trusted.
    NotTrusted,
    /// The checkpoint, or another input file, is damaged or not supported.
    Input,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry or the network failed.
    Registry,
    /// The local store failed: full, locked, unwritable, of another version.
    Store,
    /// The named model, blob or tag is not there.
    NotFound,
}

/// An error: a sentence, its kind, an optional cause and an optional hint.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// A damaged or unsupported input.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// A failed file operation on `path`, of `kind`.
    pub fn io(kind: ErrorKind, action: &str, path: &Path, cause: std::io::Error) -> Self {
        Self::new(kind, format!("Could not {action}: `{}`", path.display())).caused_by(cause)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The same error with the command or step that would help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The remedy, when one is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// What caused it, from the nearest cause to the first.
    pub fn causes(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        std::iter::successors(self.source(), |&cause| cause.source())
    }

    /// The sentence and those of its causes, on one line.
    pub fn chain(&self) -> String {
        self.causes().fold(self.message.clone(), |chain, cause| format!("{chain}: {cause}"))
    }
}

/// Whether printing `character` shows it as it is: no control character, and none that hides or reorders
/// what stands around it.
pub(crate) fn is_printable(character: char) -> bool {
    let hides = matches!(
        character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    );
    !character.is_control() && !hides
}

/// Foreign `text` in backticks for a message: escaped, and cut when it is very long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("`{}…`", text[..end].escape_debug()),
        None => format!("`{}`", text.escape_debug()),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|cause| cause.as_ref() as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_from_the_nearest_to_the_first() {
        let first = Error::new(ErrorKind::Registry, "The connection was reset");
        let second = Error::new(ErrorKind::Registry, "Could not send `a`").caused_by(first);
        let error = Error::new(ErrorKind::Registry, "Could not push").caused_by(second);
        let causes: Vec<String> = error.causes().map(ToString::to_string).collect();
        assert_eq!(causes, ["Could not send `a`", "The connection was reset"]);
        assert_eq!(error.chain(), "Could not push: Could not send `a`: The connection was reset");
    }

    #[test]
    fn foreign_text_is_escaped_and_bounded() {
        assert_eq!(quoted("größe"), "`größe`");
        assert_eq!(quoted("a\u{1b}[2J\n\u{202e}b"), "`a\\u{1b}[2J\\n\\u{202e}b`");
        assert_eq!(quoted(&"é".repeat(1000)).chars().count(), 203);
    }
}
