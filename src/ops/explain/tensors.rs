//! Matching the tensors of two models by what they hold, and only then by their names.

use std::collections::{BTreeMap, BTreeSet};

use super::bytes::{self, Stored, Verdict};
use super::layer::{Array, Layer, Tensor, slices};
use super::order::{Permutation, Unit, expert};
use super::{Between, Change, LayerChange, Side, cause};
use crate::error::{Result, quoted};
use crate::manifest::layer_name;
use crate::ops::verify::{Finding, Outcome};

/// How many tensors of a layer are compared; the rest are counted.
const MOST_TENSORS: usize = 8;
/// How many slices of an array are told apart.
const MOST_SLICES: u64 = 1 << 20;

/// A tensor by its layer and its place in it.
type Seat = (usize, usize);

/// Things of a layer, by its place: in the first model, unless they are only in the second.
type ByLayer<T> = BTreeMap<usize, Vec<T>>;

/// The tensors of two models and what they are to each other. A tensor that is in both, under one name and in layers
/// of one name, is in none of the lists.
pub(super) struct Tensors<'a> {
    ours: (&'a Side<'a>, &'a [Layer<'a>]),
    theirs: (&'a Side<'a>, &'a [Layer<'a>]),
    between: Between,
    /// The place of each layer of the first and the second model by its name.
    places: [BTreeMap<&'a str, usize>; 2],
    /// The same content under the same name, in another layer.
    relocated: ByLayer<(Seat, Seat)>,
    /// Findings about tensors whose content is there under another name.
    moved: ByLayer<Finding>,
    /// The same name, with other content.
    changed: ByLayer<(Seat, Seat)>,
    /// Only in the first model.
    lost: ByLayer<Seat>,
    /// Only in the second model.
    gained: ByLayer<Seat>,
    /// Layers of the second model that hold something of `changed`.
    touched: BTreeSet<usize>,
    /// Layers of the first and the second model that have a tensor in one of the lists.
    explained: [BTreeSet<usize>; 2],
    /// For each layer of the first and the second model, the other's layers that hold tensors of it.
    traces: [BTreeMap<usize, BTreeSet<usize>>; 2],
}

impl<'a> Tensors<'a> {
    pub(super) fn matched(
        ours: (&'a Side<'a>, &'a [Layer<'a>]),
        theirs: (&'a Side<'a>, &'a [Layer<'a>]),
        between: Between,
    ) -> Self {
        let mut tensors = Self {
            ours,
            theirs,
            between,
            places: [ours.1, theirs.1]
                .map(|layers| layers.iter().enumerate().map(|(at, layer)| (&*layer.name, at)).collect()),
            relocated: BTreeMap::new(),
            moved: BTreeMap::new(),
            changed: BTreeMap::new(),
            lost: BTreeMap::new(),
            gained: BTreeMap::new(),
            touched: BTreeSet::new(),
            explained: Default::default(),
            traces: Default::default(),
        };
        tensors.find();
        tensors
    }

    fn find(&mut self) {
        let (ours, theirs) = (self.ours.1, self.theirs.1);
        let [our_seats, their_seats] = [ours, theirs].map(seats);
        let content = |layers: &[Layer<'_>], seat: Seat| *at(layers, seat).content().as_bytes();
        let mut by_name: BTreeMap<&str, Vec<Seat>> = BTreeMap::new();
        for &seat in &their_seats {
            by_name.entry(&at(theirs, seat).name).or_default().push(seat);
        }
        let contents: BTreeMap<Seat, _> = their_seats.iter().map(|&seat| (seat, content(theirs, seat))).collect();
        let mut free: BTreeSet<Seat> = their_seats.iter().copied().collect();
        let mut rest = Vec::new();
        for &seat in &our_seats {
            let wanted = content(ours, seat);
            let layer = &ours[seat.0].name;
            let named = by_name.get(&*at(ours, seat).name).map(Vec::as_slice).unwrap_or_default();
            let mut same = named.iter().filter(|other| free.contains(other) && contents[other] == wanted);
            let in_layer = same.clone().find(|other| theirs[other.0].name == *layer);
            match in_layer.or_else(|| same.next()) {
                Some(&other) => {
                    free.remove(&other);
                    self.trace_both(seat, other);
                    if theirs[other.0].name != *layer {
                        self.relocated.entry(seat.0).or_default().push((seat, other));
                        self.explained[1].insert(other.0);
                    }
                }
                None => rest.push((seat, wanted)),
            }
        }
        let mut by_content: BTreeMap<[u8; 32], Vec<Seat>> = BTreeMap::new();
        for &seat in free.iter().rev() {
            by_content.entry(contents[&seat]).or_default().push(seat);
        }
        let mut moves = Vec::new();
        let mut left = Vec::new();
        for (seat, wanted) in rest {
            match by_content.get_mut(&wanted).and_then(Vec::pop) {
                Some(other) => {
                    free.remove(&other);
                    self.trace_both(seat, other);
                    moves.push((seat, other));
                }
                None => left.push(seat),
            }
        }
        for seat in left {
            let named = by_name.get(&*at(ours, seat).name).map(Vec::as_slice).unwrap_or_default();
            let in_layer = named.iter().find(|other| theirs[other.0].name == ours[seat.0].name);
            match in_layer.or_else(|| named.first()) {
                Some(&other) => {
                    free.remove(&other);
                    self.change(seat, other);
                }
                None => self.lost.entry(seat.0).or_default().push(seat),
            }
        }
        let our_names: BTreeMap<&str, Seat> = our_seats.iter().map(|&seat| (&*at(ours, seat).name, seat)).collect();
        for other in free {
            match our_names.get(&*at(theirs, other).name) {
                Some(&seat) => self.change(seat, other),
                None => self.gained.entry(other.0).or_default().push(other),
            }
        }
        for (layer, finding) in self.tell(&moves, &our_names, &by_name) {
            self.moved.entry(layer).or_default().push(finding);
        }
        let [here, there] = &mut self.explained;
        here.extend(self.relocated.keys().chain(self.changed.keys()).chain(self.lost.keys()));
        here.extend(moves.iter().map(|(seat, _)| seat.0));
        there.extend(self.touched.iter().chain(self.gained.keys()));
        there.extend(moves.iter().map(|(_, other)| other.0));
    }

    fn change(&mut self, seat: Seat, other: Seat) {
        self.changed.entry(seat.0).or_default().push((seat, other));
        self.touched.insert(other.0);
    }

    fn trace_both(&mut self, seat: Seat, other: Seat) {
        self.traces[0].entry(seat.0).or_default().insert(other.0);
        self.traces[1].entry(other.0).or_default().insert(seat.0);
    }

    /// Findings about content that is there under another name.
    fn tell(
        &self,
        moves: &[(Seat, Seat)],
        our_names: &BTreeMap<&str, Seat>,
        their_names: &BTreeMap<&str, Vec<Seat>>,
    ) -> Vec<(usize, Finding)> {
        let (ours, theirs) = (self.ours.1, self.theirs.1);
        let there = self.between.there();
        let mut told = Vec::new();
        let mut rest: BTreeMap<&str, (Seat, &str)> = BTreeMap::new();
        let mut experts: BTreeMap<(&str, &str), Vec<(u64, u64)>> = BTreeMap::new();
        for &(seat, other) in moves {
            let (from, to) = (&*at(ours, seat).name, &*at(theirs, other).name);
            rest.insert(from, (seat, to));
            if let (Some((stem, a, end)), Some((other_stem, b, other_end))) = (expert(from), expert(to))
                && (stem, end) == (other_stem, other_end)
            {
                experts.entry((stem, end)).or_default().push((a, b));
            }
        }
        let finding = |seat: Seat, tensor: Option<&str>, message: String, cause: &str| {
            let finding = Finding::new(Outcome::NotReproduced, message).in_layer(ours[seat.0].descriptor);
            (seat.0, Finding { tensor: tensor.map(str::to_owned), cause: Some(cause.to_owned()), ..finding })
        };
        // The matrices of an expert that went to the same place are told together.
        let mut orders: BTreeMap<(&str, Permutation), Vec<&str>> = BTreeMap::new();
        for ((stem, end), moves) in experts {
            if let Some(permutation) = Permutation::of(moves) {
                orders.entry((stem, permutation)).or_default().push(end);
            }
        }
        for ((stem, permutation), ends) in orders {
            let is_told = |name: &str| expert(name).is_some_and(|(own, _, end)| own == stem && ends.contains(&end));
            let Some(seat) = rest.iter().filter(|(from, _)| is_told(from)).map(|(_, (seat, _))| *seat).min() else {
                continue;
            };
            rest.retain(|from, _| !is_told(from));
            let alone = if let [end] = &ends[..] { format!(" in {}", quoted(end)) } else { String::new() };
            let message = format!("{}{alone}", permutation.sentence(Unit::Expert, &quoted(stem)));
            told.push(finding(seat, None, message, EXPERTS));
        }
        // What was renamed alike is told together.
        let mut renamed: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (&from, &(seat, to)) in &rest {
            if !their_names.contains_key(from) && !our_names.contains_key(to) {
                renamed.entry(difference(from, to)).or_default().push(from);
            } else if rest.get(to).is_some_and(|(_, back)| *back == from) {
                if from < to {
                    let message = format!("{} and {} are swapped", quoted(from), quoted(to));
                    told.push(finding(seat, Some(from), message, "the same bytes under each other's names"));
                }
            } else {
                let message = format!("The bytes of {} are those of {} {there}", quoted(from), quoted(to));
                told.push(finding(seat, Some(from), message, "the same bytes under another name"));
            }
        }
        for names in renamed.into_values() {
            let Some((from, &(seat, to))) = names.first().and_then(|from| Some((from, rest.get(from)?))) else {
                continue;
            };
            let message = match names.len() {
                1 => format!("{} is called {} {there}", quoted(from), quoted(to)),
                many => format!("{many} tensors have other names {there}: {} is {}", quoted(from), quoted(to)),
            };
            told.push(finding(seat, Some(from), message, "the same bytes under another name"));
        }
        told.sort_by_key(|(layer, _)| *layer);
        told
    }

    /// Whether the tensors of a layer, of either model, say how it differs.
    pub(super) fn explains(&self, layer: &str) -> bool {
        let explained = self.places.iter().zip(&self.explained);
        explained.into_iter().any(|(places, explained)| places.get(layer).is_some_and(|at| explained.contains(at)))
    }

    /// What is listed of a layer of the first model.
    fn of<'b, T>(&self, list: &'b ByLayer<T>, layer: &str) -> &'b [T] {
        self.places[0].get(layer).and_then(|at| list.get(at)).map(Vec::as_slice).unwrap_or_default()
    }

    /// What is called otherwise in the second model, or is in another layer, of the tensors of a layer.
    pub(super) fn moved(&self, layer: &str) -> Vec<Finding> {
        let (ours, theirs) = (self.ours.1, self.theirs.1);
        let mut by_layers: BTreeMap<Seat, Vec<Seat>> = BTreeMap::new();
        for &(seat, other) in self.of(&self.relocated, layer) {
            by_layers.entry((seat.0, other.0)).or_default().push(seat);
        }
        let relocated = by_layers.into_iter().map(|((from, to), seats)| {
            let name = &at(ours, seats[0]).name;
            let (to, there) = (quoted(&theirs[to].name), self.between.there());
            let message = match seats.len() {
                1 => format!("{} is in the layer {to} {there}", quoted(name)),
                many => format!("{many} tensors are in the layer {to} {there}, {} among them", quoted(name)),
            };
            Finding {
                tensor: Some(name.clone()),
                cause: Some("the same tensors in another layout".to_owned()),
                ..Finding::new(Outcome::NotReproduced, message).in_layer(ours[from].descriptor)
            }
        });
        self.of(&self.moved, layer).iter().cloned().chain(relocated).collect()
    }

    /// The tensors of a layer that the second model does not have.
    pub(super) fn lost(&self, layer: &str) -> Option<Finding> {
        let ours = self.ours.1;
        let lost = self.of(&self.lost, layer);
        let first = *lost.first()?;
        let other = self.between.other();
        let message = if lost.len() == ours[first.0].tensors.len() {
            format!("{other} has no layer {}", quoted(layer))
        } else {
            format!("{other} has no tensor {}", many(&at(ours, first).name, lost.len()))
        };
        Some(Finding {
            tensor: Some(at(ours, first).name.clone()),
            cause: (self.between == Between::Rebuild).then(|| "the source lacks this tensor".to_owned()),
            ..Finding::new(Outcome::NotReproduced, message).in_layer(ours[first.0].descriptor)
        })
    }

    /// The tensors of a layer of the second model that the first does not have.
    pub(super) fn gained(&self, layer: &str) -> Option<Finding> {
        let theirs = self.theirs.1;
        let gained = self.gained.get(self.places[1].get(layer)?)?;
        let first = *gained.first()?;
        let other = self.between.other();
        let message = if gained.len() == theirs[first.0].tensors.len() {
            format!("{other} has another layer, {}", quoted(layer))
        } else {
            let tensors = many(&at(theirs, first).name, gained.len());
            format!("{other} has another tensor in {}, {tensors}", quoted(layer))
        };
        let tensor = Some(at(theirs, first).name.clone());
        Some(Finding { tensor, ..Finding::new(Outcome::NotReproduced, message).in_layer(theirs[first.0].descriptor) })
    }

    /// Whether a tensor of this layer has other bytes in the second model.
    pub(super) fn is_changed(&self, layer: &str) -> bool {
        !self.of(&self.changed, layer).is_empty()
    }

    /// Compares the tensors of a layer that have other bytes in the second model.
    pub(super) fn changed(&self, layer: &str) -> Result<Vec<Finding>> {
        let (ours, theirs) = (self.ours.1, self.theirs.1);
        let changed = self.of(&self.changed, layer);
        let mut findings = Vec::new();
        let mut orders: BTreeMap<Permutation, Vec<Finding>> = BTreeMap::new();
        for &(seat, other) in changed.iter().take(MOST_TENSORS) {
            let (our_file, their_file) = (ours[seat.0].open()?, theirs[other.0].open()?);
            let pair = (
                Stored { file: &our_file, tensor: at(ours, seat) },
                Stored { file: &their_file, tensor: at(theirs, other) },
            );
            let (order, finding) = self.compared(pair.0, pair.1)?;
            let finding = finding.in_layer(ours[seat.0].descriptor);
            match order {
                Some(permutation) => orders.entry(permutation).or_default().push(finding),
                None => findings.push(finding),
            }
        }
        for (permutation, mut alike) in orders {
            let stacked = changed.first().into_iter().flat_map(|(seat, _)| &ours[seat.0].tensors);
            let stacked = stacked.filter(|tensor| unit(tensor, self.ours.0) == Some(Unit::Expert)).count();
            if alike.len() > 1 && alike.len() == stacked {
                alike.truncate(1);
                alike[0].tensor = None;
                alike[0].message = permutation.sentence(Unit::Expert, &quoted(layer));
            }
            findings.extend(alike);
        }
        if changed.len() > MOST_TENSORS {
            let message = format!("{} more tensors of {} differ", changed.len() - MOST_TENSORS, quoted(layer));
            let first = &ours[changed[0].0.0];
            findings.push(Finding::new(Outcome::NotReproduced, message).in_layer(first.descriptor));
        }
        Ok(findings)
    }

    /// The difference of two tensors of one name; the order of experts when it is that.
    fn compared(&self, ours: Stored<'_>, theirs: Stored<'_>) -> Result<(Option<Permutation>, Finding)> {
        let name = quoted(&ours.tensor.name);
        let locked = (self.ours.0.locked(&ours.tensor.name), self.theirs.0.locked(&ours.tensor.name));
        let finding = |message: String, part, cause: Option<String>| Finding {
            tensor: Some(ours.tensor.name.clone()),
            part: Some(part),
            cause,
            ..Finding::new(Outcome::NotReproduced, message)
        };
        if !ours.tensor.has_form_of(theirs.tensor) {
            let (here, there) = (ours.tensor.form(), theirs.tensor.form());
            let message = format!("{name} is stored in another form: {here} here, {there} {}", self.between.there());
            return Ok((None, finding(message, "header", Some(cause::of_form(locked, self.between)))));
        }
        let pairs: Vec<(&Array, &Array)> = ours.tensor.arrays.iter().zip(&theirs.tensor.arrays).collect();
        let differing = || pairs.iter().filter(|(a, b)| a.hash != b.hash);
        if let Some(unit) = unit(ours.tensor, self.ours.0)
            && let Some(number) = sliced(ours.tensor)
        {
            let hashes = |stored: Stored<'_>, array: &Array| slices(stored.file, array, number);
            let (mut here, mut there) = (vec![Vec::new(); number as usize], vec![Vec::new(); number as usize]);
            let mut alone = Vec::new();
            for (a, b) in &pairs {
                let (our_hashes, their_hashes) = (hashes(ours, a)?, hashes(theirs, b)?);
                for (all, hashes) in [(&mut here, &our_hashes), (&mut there, &their_hashes)] {
                    all.iter_mut().zip(hashes).for_each(|(all, hash)| all.push(*hash.as_bytes()));
                }
                let bytes = |hashes: &[blake3::Hash]| hashes.iter().map(|hash| *hash.as_bytes()).collect::<Vec<_>>();
                alone.extend(Permutation::between(&bytes(&our_hashes), &bytes(&their_hashes)).map(|it| (a, it)));
            }
            if let Some(permutation) = Permutation::between(&here, &there) {
                let cause = if unit == Unit::Expert { EXPERTS } else { "the same bytes in another order" };
                let finding = Finding {
                    part: None,
                    ..finding(permutation.sentence(unit, &name), "values", Some(cause.to_owned()))
                };
                return Ok(((unit == Unit::Expert).then_some(permutation), finding));
            }
            if let Some((array, permutation)) = alone.first().filter(|_| alone.len() == differing().count()) {
                let part = array.role.name();
                let told = alone.iter().map(|(array, permutation)| {
                    permutation.sentence(unit, &format!("the {} of {name}", noun(array.role.name())))
                });
                let message = told.collect::<Vec<_>>().join("; ");
                let _ = permutation;
                let cause = "only a part of the tensor is in another order: codes and scales belong together no more";
                return Ok((None, finding(message, part, Some(cause.to_owned()))));
            }
        }
        let mut verdicts: Vec<Verdict> = Vec::new();
        for (a, b) in differing() {
            verdicts.extend(bytes::arrays((ours, a), (theirs, b))?);
        }
        let told = verdicts
            .iter()
            .map(|(compared, _)| format!("{} of {} bytes of its {}", compared.bytes, compared.of, noun(compared.part)));
        let message = format!("{name} differs: {}", told.collect::<Vec<_>>().join(", "));
        let are_files = self.ours.0.are_files() && self.theirs.0.are_files();
        let cause = cause::of_bytes(locked, &verdicts, are_files, self.between);
        let arrays: Vec<_> = verdicts.into_iter().map(|(compared, _)| compared).collect();
        let part = arrays.first().map_or("values", |compared| compared.part);
        Ok((None, Finding { bytes: arrays.first().map(|it| it.bytes), arrays, ..finding(message, part, cause) }))
    }

    /// A layer, and where its tensors are when it has no counterpart and all of them are in the other model.
    pub(super) fn traced(&self, change: &LayerChange) -> LayerChange {
        let traced = || {
            let (side, others) = match change.change {
                Change::OnlyHere => (0, self.theirs.1),
                Change::OnlyThere => (1, self.ours.1),
                _ => return None,
            };
            let place = *self.places[side].get(&*layer_name(change.layer()?))?;
            let found = self.traces[side].get(&place)?;
            let is_alone = [&self.lost, &self.gained][side].contains_key(&place);
            let is_changed = [self.changed.contains_key(&place), self.touched.contains(&place)][side];
            let elsewhere = found.iter().map(|&at| others[at].name.clone()).collect();
            (!is_alone && !is_changed).then_some(elsewhere)
        };
        match traced() {
            Some(elsewhere) => LayerChange { change: Change::Moved, elsewhere, ..change.clone() },
            None => change.clone(),
        }
    }
}

const EXPERTS: &str = "the same experts in another order";

/// The word for a part in a sentence.
fn noun(part: &str) -> &str {
    if part == "packed" { "packed codes" } else { part }
}

/// A name that stands for several.
fn many(first: &str, number: usize) -> String {
    match number {
        1 => quoted(first),
        number => format!("{} and {} more", quoted(first), number - 1),
    }
}

fn seats(layers: &[Layer<'_>]) -> Vec<Seat> {
    let numbered = layers.iter().enumerate();
    numbered.flat_map(|(at, layer)| (0..layer.tensors.len()).map(move |tensor| (at, tensor))).collect()
}

fn at<'a>(layers: &'a [Layer<'_>], (layer, tensor): Seat) -> &'a Tensor {
    &layers[layer].tensors[tensor]
}

/// Where two names differ, without the parts between points that they have in common at both ends.
fn difference<'a>(from: &'a str, to: &'a str) -> (&'a str, &'a str) {
    let common = |a: &mut dyn Iterator<Item = &'a str>, b: &mut dyn Iterator<Item = &'a str>| {
        a.zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a.len() + 1).sum::<usize>()
    };
    let start = common(&mut from.split('.'), &mut to.split('.')).min(from.len()).min(to.len());
    let (from, to) = (&from[start..], &to[start..]);
    let end = common(&mut from.rsplit('.'), &mut to.rsplit('.')).min(from.len()).min(to.len());
    (&from[..from.len() - end], &to[..to.len() - end])
}

/// What a tensor's slices along its first dimension are.
fn unit(tensor: &Tensor, side: &Side<'_>) -> Option<Unit> {
    let rank = tensor.arrays.first()?.entry.shape.len();
    let is_stacked = || {
        let is_locked = side.locked(&tensor.name).is_some_and(|locked| locked.transform == "stack");
        is_locked || ["experts", "switch_mlp"].iter().any(|word| tensor.name.contains(word))
    };
    match rank {
        0 | 1 => None,
        2 => Some(Unit::Row),
        _ if is_stacked() => Some(Unit::Expert),
        _ => Some(Unit::Slice),
    }
}

/// The number of slices that all arrays of a tensor have.
fn sliced(tensor: &Tensor) -> Option<u64> {
    let mut numbers = tensor.arrays.iter().map(|array| array.entry.shape.first().copied());
    let number = numbers.next()??;
    ((2..=MOST_SLICES).contains(&number) && numbers.all(|other| other == Some(number))).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_between_what_they_have_in_common() {
        for (from, to, differing) in [
            ("model.layers.0.a.weight", "language_model.layers.0.a.weight", ("model", "language_model")),
            ("model.a", "model.b", ("a", "b")),
            ("a.weight", "x.a.weight", ("", "x.")),
            ("a", "b", ("a", "b")),
        ] {
            assert_eq!(difference(from, to), differing, "{from} {to}");
        }
    }
}
