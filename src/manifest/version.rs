//! A runtime's version, as semantic versioning 2.0.0 orders them. <https://semver.org/spec/v2.0.0.html>

use std::cmp::Ordering;
use std::str::FromStr;

/// A version. As in Go, `0.19` is `0.19.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    numbers: [u64; 3],
    /// The identifiers of a pre-release.
    pre: Vec<String>,
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let parts: Vec<&str> = core.split('.').collect();
        if parts.len() > 3 || (pre.is_some() || build.is_some()) && parts.len() < 3 {
            return Err(());
        }
        let mut numbers = [0; 3];
        for (place, part) in numbers.iter_mut().zip(parts) {
            *place = number(part).ok_or(())?;
        }
        let words = |text: Option<&str>| text.into_iter().flat_map(|text| text.split('.')).map(str::to_owned).collect();
        let (pre, build): (Vec<String>, Vec<String>) = (words(pre), words(build));
        let is_word = |word: &String| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_padded =
            |word: &String| word.bytes().all(|b| b.is_ascii_digit()) && word.starts_with('0') && word != "0";
        let holds = build.iter().all(is_word) && pre.iter().all(|word| is_word(word) && !is_padded(word));
        holds.then_some(Self { numbers, pre }).ok_or(())
    }
}

/// A number without zeros before it.
fn number(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok())?
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let word = |word: &str| number(word).map_or((1, 0, word.to_owned()), |number| (0, number, String::new()));
        let pre = |version: &Self| version.pre.iter().map(|text| word(text)).collect::<Vec<_>>();
        // A version follows all of its pre-releases.
        let release = self.pre.is_empty().cmp(&other.pre.is_empty());
        self.numbers.cmp(&other.numbers).then(release).then_with(|| pre(self).cmp(&pre(other)))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_in_order() {
        let ordered = [
            "0.19.0-alpha",
            "0.19.0-alpha.1",
            "0.19.0-alpha.2",
            "0.19.0-alpha.10",
            "0.19.0-beta",
            "0.19",
            "0.19.1",
            "0.30.2+build.1",
            "0.31",
            "1",
        ];
        assert!(ordered.map(version).is_sorted_by(|a, b| a < b));
        assert_eq!(version("1.0.0+a"), version("1"));
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in
            ["", "v1", "1.", "1.2.3.4", "01.2.3", "1.2-rc", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+", "1+b", "a"]
        {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
