//! Which layer of one model is which of the other.

use std::collections::BTreeMap;

use crate::manifest::layer_name;
use crate::oci::{Descriptor, Digest};

/// What became of a layer of the first model in the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The same bytes under the same name.
    Shared,
    /// The same bytes under another name, or the same tensors in other layers.
    Moved,
    /// Other bytes under the same name.
    Changed,
    /// Only the first model has it.
    OnlyHere,
    /// Only the second model has it.
    OnlyThere,
}

impl Change {
    /// Every change, in the order in which they are told.
    pub const ALL: [Self; 5] = [Self::Shared, Self::Moved, Self::Changed, Self::OnlyHere, Self::OnlyThere];

    /// The word in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Moved => "moved",
            Self::Changed => "changed",
            Self::OnlyHere => "only-here",
            Self::OnlyThere => "only-there",
        }
    }
}

/// A layer of either model, and its counterpart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerChange {
    /// What became of it.
    pub change: Change,
    /// The layer of the first model.
    pub ours: Option<Descriptor>,
    /// The layer of the second model.
    pub theirs: Option<Descriptor>,
    /// The names of the other model's layers that hold its tensors, where it has no counterpart.
    pub elsewhere: Vec<String>,
}

impl LayerChange {
    /// The layer; the first model's when there are two.
    pub fn layer(&self) -> Option<&Descriptor> {
        self.ours.as_ref().or(self.theirs.as_ref())
    }
}

/// Pairs the layers: first those of the same name and bytes, then the same bytes, then the same name.
pub(super) fn pair(ours: &[Descriptor], theirs: &[Descriptor]) -> Vec<LayerChange> {
    type Key = fn(&Descriptor) -> (Option<String>, Option<Digest>);
    const KEYS: [Key; 3] = [
        |layer| (Some(layer_name(layer)), Some(layer.digest)),
        |layer| (None, Some(layer.digest)),
        |layer| (Some(layer_name(layer)), None),
    ];
    let mut partners: Vec<Option<usize>> = vec![None; ours.len()];
    let mut taken = vec![false; theirs.len()];
    for key in KEYS {
        let mut free: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (at, layer) in theirs.iter().enumerate().rev().filter(|(at, _)| !taken[*at]) {
            free.entry(key(layer)).or_default().push(at);
        }
        for (layer, partner) in ours.iter().zip(&mut partners).filter(|(_, partner)| partner.is_none()) {
            *partner = free.get_mut(&key(layer)).and_then(Vec::pop);
            if let Some(at) = *partner {
                taken[at] = true;
            }
        }
    }
    let change = |ours: Option<&Descriptor>, theirs: Option<&Descriptor>| LayerChange {
        change: match (ours, theirs) {
            (Some(a), Some(b)) if a.digest != b.digest => Change::Changed,
            (Some(a), Some(b)) if layer_name(a) != layer_name(b) => Change::Moved,
            (Some(_), Some(_)) => Change::Shared,
            (Some(_), None) => Change::OnlyHere,
            (None, _) => Change::OnlyThere,
        },
        ours: ours.cloned(),
        theirs: theirs.cloned(),
        elsewhere: Vec::new(),
    };
    let paired = ours.iter().zip(partners).map(|(layer, partner)| change(Some(layer), partner.map(|at| &theirs[at])));
    let rest = theirs.iter().zip(taken).filter(|(_, taken)| !taken).map(|(layer, _)| change(None, Some(layer)));
    paired.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn bytes_count_before_names() {
        let layer =
            |name: &str, content: &str| Descriptor::of(MediaType::OLLAMA_TENSOR, content.as_bytes()).named(name);
        let ours = [layer("a", "1"), layer("b", "2"), layer("c", "3"), layer("d", "4"), layer("e", "1")];
        let theirs = [layer("c", "2"), layer("a", "1"), layer("d", "5"), layer("f", "6"), layer("e", "1")];
        let told = pair(&ours, &theirs)
            .iter()
            .map(|change| {
                let name = |layer: &Option<Descriptor>| layer.as_ref().map_or_else(|| "-".to_owned(), layer_name);
                format!("{} {} {}", change.change.name(), name(&change.ours), name(&change.theirs))
            })
            .collect::<Vec<_>>();
        assert_eq!(told, ["shared a a", "moved b c", "only-here c -", "changed d d", "shared e e", "only-there - f"]);
    }
}
