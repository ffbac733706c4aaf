//! Things that are all there and stand in another order: found by their digests, and told as what was exchanged.

use std::collections::BTreeMap;

/// How many moves are told.
const MOST_MOVES: usize = 8;

/// What is in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    /// The experts of a layer.
    Expert,
    /// The rows of a matrix.
    Row,
    /// The slices of an array of more dimensions.
    Slice,
}

impl Unit {
    fn plural(self) -> &'static str {
        match self {
            Self::Expert => "Experts",
            Self::Row => "Rows",
            Self::Slice => "Slices",
        }
    }
}

/// Which place has now what was at which: from where it was to where it is, in order. Places that keep what they had
/// are left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Permutation(Vec<(u64, u64)>);

impl Permutation {
    /// The permutation that makes `theirs` of `ours`; `None` when they do not hold the same, or agree.
    pub(super) fn between<T: Ord>(ours: &[T], theirs: &[T]) -> Option<Self> {
        if ours.len() != theirs.len() {
            return None;
        }
        let differing = || (0..ours.len()).filter(|&place| ours[place] != theirs[place]);
        let mut places: BTreeMap<&T, Vec<u64>> = BTreeMap::new();
        for place in differing().collect::<Vec<_>>().into_iter().rev() {
            places.entry(&theirs[place]).or_default().push(place as u64);
        }
        let moves = differing().map(|place| Some((place as u64, places.get_mut(&ours[place])?.pop()?)));
        let moves: Vec<(u64, u64)> = moves.collect::<Option<_>>()?;
        (!moves.is_empty()).then_some(Self(moves))
    }

    /// A permutation of what is known by number; `None` when the moves are none.
    pub(super) fn of(mut moves: Vec<(u64, u64)>) -> Option<Self> {
        moves.sort_unstable();
        let mut to: Vec<u64> = moves.iter().map(|(_, to)| *to).collect();
        to.sort_unstable();
        let is_one = !moves.is_empty() && moves.iter().map(|(from, _)| *from).eq(to);
        is_one.then_some(Self(moves))
    }

    /// A sentence: `Experts 3 and 5 of … are swapped`.
    pub(super) fn sentence(&self, unit: Unit, of: &str) -> String {
        let Self(moves) = self;
        let unit = unit.plural();
        if let [(a, to), (b, _)] = &moves[..]
            && to == b
        {
            return format!("{unit} {a} and {b} of {of} are swapped");
        }
        let told = moves.iter().take(MOST_MOVES).map(|(from, to)| format!("{from} is now {to}"));
        let told = told.collect::<Vec<_>>().join(", ");
        let more = match moves.len().saturating_sub(MOST_MOVES) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        format!("{unit} of {of} are in another order: {told}{more}")
    }
}

/// An expert's number in a tensor's name, with what stands before it and after: `…experts`, 3, `up_proj.weight`.
pub(super) fn expert(name: &str) -> Option<(&str, u64, &str)> {
    let at = name.find("experts.")? + "experts".len();
    let (number, rest) = name[at + 1..].split_once('.')?;
    Some((&name[..at], number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swapped_is_called_that() {
        let swapped = Permutation::between(&["a", "b", "c", "d"], &["a", "d", "c", "b"]).unwrap();
        assert_eq!(swapped.sentence(Unit::Expert, "`x`"), "Experts 1 and 3 of `x` are swapped");
        let turned = Permutation::between(&[1, 2, 3], &[3, 1, 2]).unwrap();
        let sentence = "Rows of `x` are in another order: 0 is now 1, 1 is now 2, 2 is now 0";
        assert_eq!(turned.sentence(Unit::Row, "`x`"), sentence);
        let (there, back): (Vec<u64>, Vec<u64>) = ((0..20).collect(), (0..20).rev().collect());
        let sentence = Permutation::between(&there, &back).unwrap().sentence(Unit::Slice, "`x`");
        assert!(sentence.ends_with("7 is now 12, and 12 more"), "{sentence}");
    }

    #[test]
    fn twins_stay_where_they_are_and_what_is_new_is_no_permutation() {
        assert_eq!(Permutation::between(&[1, 1, 2], &[1, 1, 2]), None);
        assert_eq!(Permutation::between(&[1, 1, 2], &[1, 2, 1]), Some(Permutation(vec![(1, 2), (2, 1)])));
        assert_eq!(Permutation::between(&[1, 1, 2], &[1, 2, 2]), None);
        assert_eq!(Permutation::between(&[1, 2], &[1, 2, 3]), None);
        assert_eq!(Permutation::of(vec![(3, 5), (5, 3)]), Some(Permutation(vec![(3, 5), (5, 3)])));
        assert_eq!(Permutation::of(vec![(3, 5)]), None);
        assert_eq!(Permutation::of(vec![]), None);
    }

    #[test]
    fn experts_are_known_by_their_number() {
        assert_eq!(expert("a.experts.3.up.weight"), Some(("a.experts", 3, "up.weight")));
        assert_eq!(expert("a.experts.up.weight"), None);
        assert_eq!(expert("a.shared_experts"), None);
    }
}
