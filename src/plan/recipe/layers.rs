//! Which of a model's layers a rule of a recipe is about, as in `0-3,28-31`, `4-/2`, `last 4` or `sensitive`.

use std::str::FromStr;

use crate::arch::more_bits;

/// A set of layers, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layers {
    text: String,
    items: Vec<Item>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    /// Every `step`-th layer from `first` on, up to `last` where there is one.
    Range { first: u64, last: Option<u64>, step: u64 },
    /// So many at the end.
    Last(u64),
    /// Those that keep more bits in most mixed quantizations.
    Sensitive,
}

impl Layers {
    /// Whether `layer` is among them in a model of `layers` layers; `None` when that depends on a number of
    /// layers that is not known.
    pub(super) fn contain(&self, layer: u64, layers: Option<u64>) -> Option<bool> {
        let mut is_known = true;
        for item in &self.items {
            let contains = match *item {
                Item::Range { first, last, step } => Some(
                    layer >= first && last.is_none_or(|last| layer <= last) && (layer - first).is_multiple_of(step),
                ),
                Item::Last(count) => layers.map(|layers| layer < layers && layer >= layers.saturating_sub(count)),
                Item::Sensitive => layers.map(|layers| more_bits(layer, layers)),
            };
            match contains {
                Some(true) => return Some(true),
                Some(false) => {}
                None => is_known = false,
            }
        }
        is_known.then_some(false)
    }

    /// As it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let items = text.split(',').map(|item| {
            parse(item.trim()).ok_or_else(|| {
                let item = item.escape_debug();
                format!("`{item}` names no layers: write `3`, `0-3`, `4-`, `4-/2`, `last 4` or `sensitive`")
            })
        });
        Ok(Self { items: items.collect::<Result<_, _>>()?, text: text.to_owned() })
    }
}

fn parse(item: &str) -> Option<Item> {
    if item == "sensitive" {
        return Some(Item::Sensitive);
    }
    if let Some(count) = item.strip_prefix("last ") {
        return number(count.trim()).filter(|&count| count > 0).map(Item::Last);
    }
    let (range, step) = match item.split_once('/') {
        Some((range, step)) => (range, number(step).filter(|&step| step > 0)?),
        None => (item, 1),
    };
    let (first, last) = match range.split_once('-') {
        Some((first, "")) => (number(first)?, None),
        Some((first, last)) => (number(first)?, Some(number(last)?)),
        None => (number(range)?, Some(number(range)?)),
    };
    last.is_none_or(|last| last >= first).then_some(Item::Range { first, last, step })
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str, layers: u64) -> Vec<u64> {
        let set: Layers = text.parse().unwrap();
        (0..layers).filter(|&layer| set.contain(layer, Some(layers)).unwrap()).collect()
    }

    #[test]
    fn ranges_cadences_and_ends() {
        assert_eq!(chosen("3", 8), [3]);
        assert_eq!(chosen("0-2, 6-9", 8), [0, 1, 2, 6, 7]);
        assert_eq!(chosen("4-", 8), [4, 5, 6, 7]);
        assert_eq!(chosen("1-/3", 8), [1, 4, 7]);
        assert_eq!(chosen("0-4/2", 8), [0, 2, 4]);
        assert_eq!(chosen("last 2", 8), [6, 7]);
        assert_eq!(chosen("last 9", 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(chosen("sensitive", 8), [0, 3, 6, 7]);
    }

    #[test]
    fn without_a_number_of_layers_only_numbers_are_known() {
        let set: Layers = "0,last 2".parse().unwrap();
        assert_eq!((set.contain(0, None), set.contain(5, None)), (Some(true), None));
    }

    #[test]
    fn what_names_no_layers_is_refused() {
        for text in ["", "a", "-1", "3-1", "0-3/0", "1,", "last", "last 0", "last x", "1-2-3", "+1", "0x1", "first"] {
            assert!(text.parse::<Layers>().is_err(), "{text}");
        }
    }
}
