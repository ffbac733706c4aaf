//! What a registry warns of beside its answers: OCI distribution-spec v1.1.1, "Warnings",
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#warnings>.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{HeaderMap, WARNING};

use super::failure::printable;
use crate::progress::Progress;

/// How many warnings are told at most: whoever has more to say is not read.
const MAX_WARNINGS: usize = 20;

/// Whom to tell what registries warn of. Clones share what was told, so that nothing is told twice.
#[derive(Clone, Debug)]
pub struct Warnings {
    told: Arc<Mutex<BTreeSet<String>>>,
    to: Progress,
}

impl Warnings {
    /// Tells `to`.
    pub fn to(to: Progress) -> Self {
        Self { told: Arc::default(), to }
    }

    /// Tells what the registry `host` warns of in the headers of an answer.
    pub(super) fn tell(&self, host: &str, headers: &HeaderMap) {
        let values = headers.get_all(WARNING).iter().filter_map(|value| value.to_str().ok());
        for text in values.flat_map(texts).map(|text| printable(&text)).filter(|text| !text.is_empty()) {
            let warning = format!("The registry `{host}` warns: {text}");
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() < MAX_WARNINGS && told.insert(warning.clone()) {
                self.to.note(warning);
            }
        }
    }
}

/// The texts of a `Warning` header, each `299 - "text"`; the specification has other codes and agents ignored.
fn texts(header: &str) -> Vec<String> {
    let (mut texts, mut rest) = (Vec::new(), header);
    while let Some(quoted) = rest.strip_prefix("299 - \"") {
        let mut text = String::new();
        let mut letters = quoted.chars();
        loop {
            match letters.next() {
                Some('"') => break,
                Some('\\') => text.extend(letters.next()),
                Some(letter) => text.push(letter),
                None => return texts,
            }
        }
        texts.push(text);
        rest = letters.as_str().trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_of_the_specification_are_read() {
        for (header, expected) in [
            (r#"299 - "old""#, &["old"][..]),
            (r#"299 - "say \"hi\", \\", 299 - "b""#, &[r#"say "hi", \"#, "b"]),
            (r#"299 - """#, &[""]),
            (r#"110 - "stale""#, &[]),
            (r#"299 proxy "x""#, &[]),
            (r#"299 - "open"#, &[]),
            ("299 - bare", &[]),
            ("", &[]),
        ] {
            assert_eq!(texts(header), expected, "{header}");
        }
    }
}
