//! The printer: the only way to standard output and standard error. Data goes to standard output and
//! nothing else does; everything a person should know besides goes to standard error.
//!
//! A reader that goes away is no failure: `kiln list | head -1` succeeds. What names and registries bring
//! in cannot move the cursor, nor pretend to be a line of kiln's own: it is printed escaped.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::json;

use super::exit::Exit;
use crate::error::{Error, ErrorKind, Result, is_printable};

/// Writes data and messages.
#[derive(Debug)]
pub(super) struct Printer {
    json: bool,
    quiet: bool,
    /// Why standard output takes no more.
    closed: Mutex<Option<io::Error>>,
}

impl Printer {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, closed: Mutex::default() }
    }

    /// Whether results are JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Whole lines for a person, on standard output.
    pub(super) fn data(&self, text: impl fmt::Display) {
        self.write(format!("{}\n", printable(&text.to_string())).as_bytes());
    }

    /// One JSON object on a line of its own, on standard output.
    pub(super) fn object(&self, object: &impl Serialize) {
        match serde_json::to_vec(object) {
            Ok(mut line) => {
                line.push(b'\n');
                self.write(&line);
            }
            Err(cause) => self.fail(cause.into()),
        }
    }

    /// Bytes as they are, on standard output.
    pub(super) fn write(&self, bytes: &[u8]) {
        if self.closed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(cause) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            self.fail(cause);
        }
    }

    fn fail(&self, cause: io::Error) {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
    }

    /// A sentence the user should know, unless they asked for quiet.
    pub(super) fn note(&self, sentence: impl fmt::Display) {
        if !self.quiet {
            self.message(one_line(&format!("note: {sentence}")));
        }
    }

    /// Whole lines on standard error.
    pub(super) fn message(&self, text: impl fmt::Display) {
        // When standard error is gone there is nobody left to tell.
        let _ = writeln!(io::stderr().lock(), "{}", printable(&text.to_string()));
    }

    /// An error: the sentence, its causes, and what would help. With `--json` also as the last object.
    pub(super) fn error(&self, error: &Error) {
        let causes: Vec<String> = error.causes().map(ToString::to_string).collect();
        let mut text = format!("error: {}", one_line(&error.to_string()));
        for cause in &causes {
            text.push_str(&format!("\ncaused by: {}", one_line(cause)));
        }
        if let Some(hint) = error.hint_text() {
            text.push_str(&format!("\n\nhint: {}", one_line(hint)));
        }
        self.message(text);
        self.failure(&error.to_string(), &causes, error.hint_text(), error.kind().into());
    }

    /// The object that ends the output of a run that failed; nothing without `--json`.
    pub(super) fn failure(&self, message: &str, causes: &[String], hint: Option<&str>, exit: Exit) {
        if self.json {
            self.object(&json!({
                "event": "error",
                "message": message,
                "causes": causes,
                "hint": hint,
                "exitCode": exit.code(),
            }));
        }
    }

    /// Nothing more goes to standard output.
    pub(super) fn close(&self) {
        self.fail(io::ErrorKind::BrokenPipe.into());
    }

    /// Says whether standard output took everything.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when it did not, except when its reader went away.
    pub(super) fn finish(&self) -> Result<()> {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        match closed.take_if(|cause| cause.kind() != io::ErrorKind::BrokenPipe) {
            Some(cause) => {
                Err(Error::new(ErrorKind::Unexpected, "Could not write to standard output").caused_by(cause))
            }
            None => Ok(()),
        }
    }
}

/// Whole lines, each without characters that do not show as they are.
fn printable(text: &str) -> String {
    text.split('\n').map(one_line).collect::<Vec<_>>().join("\n")
}

/// `text` on one line, without characters that do not show as they are.
pub(super) fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        if is_printable(character) {
            out.push(character);
        } else {
            out.extend(character.escape_default());
        }
        out
    })
}

/// A number of bytes for a person, in binary units.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `1 blob`, `2 blobs`.
pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Columns as wide as their widest cell, each row on one line. A row with fewer cells ends where they end;
/// the last column is not padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_cannot_move_the_cursor() {
        assert_eq!(printable("a\nb"), "a\nb");
        assert_eq!(printable("a\u{1b}[2Jb\r\u{7}"), "a\\u{1b}[2Jb\\r\\u{7}");
        assert_eq!(printable("größe"), "größe");
        assert_eq!(one_line("a\nresult: ok\u{202e}"), "a\\nresult: ok\\u{202e}");
        assert_eq!(table(&[vec!["a\nb".to_owned(), "c".to_owned()]]), "a\\nb  c");
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let rows = [vec!["NAME", "SIZE"], vec!["a-long-name", "1"], vec!["é", ""]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect();
        assert_eq!(table(&rows), "NAME         SIZE\na-long-name  1\né");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([count(0, "blob"), count(1, "blob"), count(2, "blob")], ["0 blobs", "1 blob", "2 blobs"]);
    }
}
