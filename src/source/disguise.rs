//! What a file is that is not what its name says: a pointer where the weights should be, an error
//! page, another format. Judged by its first bytes, so that the user hears the cause, not the symptom.

use crate::error::{Error, quoted};

pub(super) const DOWNLOAD: &str = "download the file again; `git lfs pull` fetches the contents of a git clone";
const CONVERT: &str = "name a directory with the original safetensors weights";

/// What `start`, the first bytes of a file, shows it to be, and what to do about it; `None` when it
/// shows nothing.
pub(super) fn unmask(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = start.trim_ascii_start();
    let begins =
        |prefix: &str| text.get(..prefix.len()).is_some_and(|text| text.eq_ignore_ascii_case(prefix.as_bytes()));
    if start.is_empty() {
        return Some(("empty", DOWNLOAD));
    }
    if begins("version https://git-lfs") {
        return Some(("a git-lfs pointer, not the file it points to", DOWNLOAD));
    }
    if begins("<!doctype") || begins("<html") || begins("<?xml") {
        return Some(("a web page", DOWNLOAD));
    }
    if start.starts_with(b"../../blobs/") {
        return Some(("the text of a symbolic link", "copy the cache with its symbolic links, or follow them"));
    }
    if start.starts_with(b"GGUF") {
        return Some(("a GGUF file", CONVERT));
    }
    if start.starts_with(b"PK\x03\x04") || (start.first() == Some(&0x80) && matches!(start.get(1), Some(2..=5))) {
        return Some(("a pickle, which runs code when it is read", CONVERT));
    }
    if start.starts_with(b"\x1f\x8b") || start.starts_with(b"\x28\xb5\x2f\xfd") {
        return Some(("compressed", "decompress it first"));
    }
    None
}

/// `error` about the file called `name`, or a better one when `start`, its first bytes, shows what
/// the file really is.
pub(super) fn explain(name: &str, start: &[u8], error: Error) -> Error {
    match unmask(start) {
        Some((what, hint)) => Error::input(format!("{} is {what}", quoted(name))).hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safetensors_file_shows_nothing() {
        assert_eq!(unmask(b"\x60\x00\0\0\0\0\0\0{\"__metadata__\""), None);
        // A header of 0x8b1f or 0x0280 bytes begins like gzip or a pickle.
        assert_eq!(unmask(b"\x1f\x8b"), Some(("compressed", "decompress it first")));
    }

    #[test]
    fn other_files_are_named_for_what_they_are() {
        let table: [(&[u8], &str); 9] = [
            (b"", "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
            (b"\r\n  <!DOCTYPE html>", "web page"),
            (b"<HTML><head>", "web page"),
            (b"../../blobs/2ca438", "symbolic link"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04\0\0", "pickle"),
            (b"\x80\x02}q\0", "pickle"),
            (b"\x28\xb5\x2f\xfd\x04", "compressed"),
        ];
        for (start, word) in table {
            assert!(unmask(start).unwrap().0.contains(word), "{word}");
        }
    }
}
