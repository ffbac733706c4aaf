//! What `kiln diff` and the explanation of a rebuild promise: a difference is named down to the part, the group and the
//! value; what was only moved, renamed or put in another order is called that.

#![allow(clippy::unwrap_used)] // in functions that tests share

mod model;

use std::fs;
use std::ops::Range;
use std::path::Path;

use kiln::blobs::{Entry, encode_header};
use kiln::manifest::Dialect;
use kiln::oci::Reference;
use kiln::ops::create::{Options, create};
use kiln::ops::diff::{Change, Diffed, Model, diff};
use kiln::ops::verify::Finding;
use kiln::plan::{Profile, Request};
use kiln::source::safetensors::parse_header;
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use tempfile::TempDir;

use model::{Kiln, array, checkpoint, copy_of};

/// A model `model:a`, and the same as `model:b`, which is the one that `replace` alters.
fn twins(source: &str, scheme: Option<&str>) -> (Kiln, Reference) {
    let mut kiln = Kiln::holding(&checkpoint(source), scheme);
    let original = kiln.name.clone();
    let target = kiln.store.find(&original).unwrap().unwrap();
    kiln.name = "model:b".parse().unwrap();
    kiln.store.set_ref(&kiln.name, &target).unwrap();
    (kiln, original)
}

fn compared(kiln: &Kiln, original: &Reference) -> Diffed {
    let model = |name: &Reference| Model { store: kiln.store.clone(), name: name.clone() };
    diff(&[model(original), model(&kiln.name)], 2, &Progress::silent()).unwrap()
}

/// The only difference.
fn difference(kiln: &Kiln, original: &Reference) -> Finding {
    let mut diffed = compared(kiln, original);
    assert!(!diffed.is_same());
    assert_eq!(diffed.findings.len(), 1, "{:#?}", diffed.findings);
    diffed.findings.remove(0)
}

const MOE: &str = "qwen3-moe-12e-bf16";
const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";
const EXPERTS: &str = "model.layers.0.mlp.switch_mlp";

/// The header of a layer, and where it ends.
fn header(bytes: &[u8]) -> Range<usize> {
    8..parse_header(bytes, bytes.len() as u64).unwrap().data_start as usize
}

#[test]
fn a_flipped_byte_is_named_exactly() {
    struct Case {
        scheme: Option<&'static str>,
        /// What is flipped, and where it is counted from.
        place: fn(&[u8]) -> Range<usize>,
        /// The byte in it, and what is flipped of it.
        at: usize,
        mask: u8,
        part: &'static str,
        message: &'static str,
        cause: &'static str,
        groups: Option<(u64, &'static [u64])>,
        index: &'static [u64],
    }
    let scales: fn(&[u8]) -> Range<usize> = |bytes| array(bytes, &format!("{TENSOR}.scale"));
    let biases: fn(&[u8]) -> Range<usize> = |bytes| array(bytes, &format!("{TENSOR}.bias"));
    let weight: fn(&[u8]) -> Range<usize> = |bytes| array(bytes, TENSOR);
    let padding: fn(&[u8]) -> Range<usize> = |bytes| {
        let header = header(bytes);
        let end = bytes[header.clone()].iter().rposition(|byte| *byte == b'}').unwrap() + 1;
        assert!(header.start + end < header.end, "no padding");
        header.start + end..header.end
    };
    for Case { scheme, place, at, mask, part, message, cause, groups, index } in [
        Case {
            scheme: Some("int4"),
            place: scales,
            at: 6,
            mask: 1,
            part: "scales",
            message: "differs: 1 of 128 bytes of its scales",
            cause: "the last bit of few scales",
            groups: Some((1, &[3, 0])),
            index: &[3, 0],
        },
        Case {
            scheme: Some("int4"),
            place: scales,
            at: 7,
            mask: 0x80,
            part: "scales",
            message: "differs: 1 of 128 bytes of its scales",
            cause: "other arithmetic",
            groups: Some((1, &[3, 0])),
            index: &[3, 0],
        },
        Case {
            scheme: Some("int4"),
            place: biases,
            at: 127,
            mask: 0x40,
            part: "biases",
            message: "differs: 1 of 128 bytes of its biases",
            cause: "other arithmetic",
            groups: Some((1, &[63, 0])),
            index: &[63, 0],
        },
        Case {
            scheme: Some("int4"),
            place: weight,
            at: 33,
            mask: 0x20,
            part: "packed",
            message: "differs: 1 of 2048 bytes of its packed codes",
            cause: "other arithmetic",
            groups: Some((1, &[1, 0])),
            index: &[1, 3],
        },
        Case {
            scheme: Some("nvfp4"),
            place: weight,
            at: 8,
            mask: 1,
            part: "packed",
            message: "differs: 1 of 2048 bytes of its packed codes",
            cause: "other arithmetic",
            groups: Some((1, &[0, 1])),
            index: &[0, 16],
        },
        Case {
            scheme: Some("nvfp4"),
            place: scales,
            at: 5,
            mask: 1,
            part: "scales",
            message: "differs: 1 of 256 bytes of its scales",
            cause: "the last bit of few scales",
            groups: Some((1, &[1, 1])),
            index: &[1, 1],
        },
        Case {
            scheme: None,
            place: weight,
            at: 130,
            mask: 0x80,
            part: "values",
            message: "differs: 1 of 8192 bytes of its values",
            cause: "its values are copied",
            groups: None,
            index: &[1, 1],
        },
        Case {
            scheme: Some("int4"),
            place: padding,
            at: 0,
            mask: b' ' ^ b'\n',
            part: "padding",
            message: "Only the padding of the header of `model.layers.0.self_attn.q_proj.weight` differs",
            cause: "a byte of the padding is no space",
            groups: None,
            index: &[0],
        },
        Case {
            scheme: Some("int4"),
            place: padding,
            at: 0,
            mask: b' ' ^ b'!',
            part: "padding",
            message: "Only the padding of the header of `model.layers.0.self_attn.q_proj.weight` differs",
            cause: "a byte of the padding is no space",
            groups: None,
            index: &[0],
        },
        Case {
            scheme: Some("int4"),
            place: header,
            at: 0,
            mask: 1,
            part: "header",
            message: "differs, its data does not; from byte 8 on",
            cause: "the header cannot be read, it was altered",
            groups: None,
            index: &[8],
        },
        Case {
            scheme: Some("int4"),
            place: |_| 0..8,
            at: 7,
            mask: 1,
            part: "header",
            message: "differs, its data does not; from byte 7 on",
            cause: "the header cannot be read, it was altered",
            groups: None,
            index: &[7],
        },
    ] {
        let (kiln, original) = twins(MOE, scheme);
        let (mut offset, mut old) = (0, 0);
        kiln.replace(TENSOR, |bytes| {
            offset = place(bytes).start + at;
            assert!(place(bytes).contains(&offset));
            old = bytes[offset];
            bytes[offset] ^= mask;
        });
        let found = difference(&kiln, &original);
        let case = format!("{scheme:?} {part} {at}: {found:#?}");
        assert_eq!((found.part, found.bytes), (Some(part), Some(1)), "{case}");
        assert_eq!(found.layer.as_deref(), Some(TENSOR), "{case}");
        assert!(found.message.contains(message), "{case}");
        assert!(found.cause.as_ref().is_some_and(|told| told.contains(cause)), "{case}");
        let [compared] = &found.arrays[..] else { panic!("{case}") };
        assert_eq!((compared.offset, compared.bytes), (offset as u64, 1), "{case}");
        assert_eq!(compared.groups.as_ref().map(|groups| (groups.differing, &*groups.first)), groups, "{case}");
        let [changed] = &compared.places[..] else { panic!("{case}") };
        assert_eq!(changed.index, index, "{case}");
        assert_ne!(changed.ours.bits, changed.theirs.bits, "{case}");
        let is_text = ["header", "padding"].contains(&part);
        assert_eq!(found.tensor.as_deref(), (!is_text).then_some(TENSOR), "{case}");
        assert_eq!(changed.ours.value.is_some(), !is_text, "{case}");
        assert_eq!(compared.max_delta.is_some(), !is_text, "{case}");
        assert_eq!(compared.max_ulp.is_some(), !is_text && part != "packed", "{case}");
    }
}

/// The weights of one row, decoded without kiln's comparison: from the codes, a scale and a bias of the layer.
#[test]
fn a_code_is_told_with_the_weight_it_stands_for() {
    let (kiln, original) = twins(MOE, Some("int4"));
    let mut expected = [0.0; 2];
    kiln.replace(TENSOR, |bytes| {
        let bf16 = |at: usize| f32::from_bits(u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])) << 16);
        let (scale, bias) =
            (array(bytes, &format!("{TENSOR}.scale")).start + 4, array(bytes, &format!("{TENSOR}.bias")).start + 4);
        let (scale, bias) = (bf16(scale), bf16(bias));
        // The second code of row 2.
        let at = array(bytes, TENSOR).start + 2 * 32;
        let code = bytes[at] >> 4;
        let rounded = |value: f32| f64::from(half::bf16_of(value));
        expected = [code, code ^ 8].map(|code| rounded(half::bf16_of(scale * f32::from(code)) + bias));
        bytes[at] ^= 0x80;
    });
    let found = difference(&kiln, &original);
    let place = &found.arrays[0].places[0];
    assert_eq!(place.index, [2, 1]);
    assert_eq!([place.ours.value, place.theirs.value], expected.map(Some));
    assert_eq!(found.arrays[0].max_delta, Some(8.0), "of the codes");
}

/// Rounding to bfloat16, to nearest and ties to even.
mod half {
    pub(crate) fn bf16_of(value: f32) -> f32 {
        let bits = value.to_bits();
        f32::from_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
    }
}

/// Exchanges two slices of an array along its first dimension.
fn exchange(bytes: &mut [u8], name: &str, number: usize, [a, b]: [usize; 2]) {
    let place = array(bytes, name);
    let length = place.len() / number;
    for at in 0..length {
        bytes.swap(place.start + a * length + at, place.start + b * length + at);
    }
}

#[test]
fn swapped_experts_are_called_that() {
    for scheme in [None, Some("int4"), Some("nvfp4")] {
        let parts: &[&str] = match scheme {
            None => &[""],
            Some("int4") => &["", ".scale", ".bias"],
            _ => &["", ".scale"],
        };
        let swap = |bytes: &mut Vec<u8>, projections: &[&str]| {
            for projection in projections {
                let present = String::from_utf8_lossy(bytes).contains(&format!("{projection}.weight.bias"));
                for part in parts.iter().filter(|part| **part != ".bias" || present) {
                    exchange(bytes, &format!("{EXPERTS}.{projection}.weight{part}"), 12, [3, 5]);
                }
            }
        };
        let (kiln, original) = twins(MOE, scheme);
        kiln.replace(EXPERTS, |bytes| swap(bytes, &["down_proj", "gate_proj", "up_proj"]));
        let found = difference(&kiln, &original);
        assert_eq!(found.message, format!("Experts 3 and 5 of `{EXPERTS}` are swapped"), "{scheme:?}");
        assert_eq!(found.layer.as_deref(), Some(EXPERTS));
        assert!(found.cause.unwrap().contains("another order"));

        let (kiln, original) = twins(MOE, scheme);
        kiln.replace(EXPERTS, |bytes| swap(bytes, &["up_proj"]));
        let found = difference(&kiln, &original);
        assert_eq!(found.message, format!("Experts 3 and 5 of `{EXPERTS}.up_proj.weight` are swapped"), "{scheme:?}");
    }
}

#[test]
fn an_order_that_only_a_part_is_in_is_named() {
    let (kiln, original) = twins(MOE, Some("int4"));
    kiln.replace(EXPERTS, |bytes| exchange(bytes, &format!("{EXPERTS}.up_proj.weight.scale"), 12, [0, 11]));
    let found = difference(&kiln, &original);
    assert_eq!(found.message, format!("Experts 0 and 11 of the scales of `{EXPERTS}.up_proj.weight` are swapped"));
    assert_eq!(found.part, Some("scales"));
    assert!(found.cause.unwrap().contains("belong together no more"));
}

#[test]
fn swapped_rows_are_called_that() {
    let (kiln, original) = twins(MOE, None);
    kiln.replace(TENSOR, |bytes| exchange(bytes, TENSOR, 64, [7, 9]));
    assert_eq!(difference(&kiln, &original).message, format!("Rows 7 and 9 of `{TENSOR}` are swapped"));
}

#[test]
fn a_pattern_of_bytes_tells_its_cause() {
    type Change = fn(&mut [u8]);
    let nibbles: Change = |bytes| bytes.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
    let words: Change = |bytes| bytes.chunks_mut(4).for_each(<[u8]>::reverse);
    let halves: Change = |bytes| bytes.chunks_mut(2).for_each(<[u8]>::reverse);
    let noise: Change = |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x5A);
    for (scheme, change, cause) in [
        (Some("int4"), nibbles, "the codes were packed in the other order"),
        (Some("nvfp4"), nibbles, "the codes were packed in the other order"),
        (Some("int4"), words, "written in the other byte order"),
        (None, halves, "written in the other byte order"),
        (Some("int4"), noise, "the codes were packed in another order"),
        (None, noise, "its values are copied"),
    ] {
        let (kiln, original) = twins(MOE, scheme);
        kiln.replace(TENSOR, |bytes| {
            let place = array(bytes, TENSOR);
            change(&mut bytes[place]);
        });
        let found = difference(&kiln, &original);
        assert!(found.cause.as_ref().unwrap().contains(cause), "{scheme:?} {cause}: {found:#?}");
        assert_eq!(found.arrays[0].places.len(), 8, "not all of them");
    }
}

/// The layer again, with the header that `spell` makes of its own.
fn spelled(bytes: &mut Vec<u8>, spell: impl FnOnce(String) -> String) {
    let range = header(bytes);
    let text = spell(String::from_utf8(bytes[range.clone()].to_vec()).unwrap());
    let mut longer = (text.len() as u64).to_le_bytes().to_vec();
    longer.extend_from_slice(text.as_bytes());
    longer.extend_from_slice(&bytes[range.end..]);
    *bytes = longer;
}

#[test]
fn a_header_that_alone_differs_is_told_apart_from_its_data() {
    type Spell = fn(String) -> String;
    let more: Spell = |text| text + "        ";
    let less: Spell = |text| text.trim_end().to_owned();
    let order: Spell = |text| {
        let (data, rest) = text.split_once("\"data_offsets\":[").unwrap();
        let (offsets, rest) = rest.split_once("],").unwrap();
        let (own, others) = rest.split_once('}').unwrap();
        format!("{data}{own},\"data_offsets\":[{offsets}]}}{others}")
    };
    let metadata: Spell = |text| text.replace("\"quant_type\":\"int4\"", "\"quant_type\":\"INT4\"");
    for (spell, part, message, cause) in [
        (more, "padding", "Only the padding", "up to another length"),
        (less, "padding", "Only the padding", "bytes of alignment"),
        (order, "header", "its tensors do not", "another order or another spelling"),
        (metadata, "header", "its tensors do not", "other metadata"),
    ] {
        let (kiln, original) = twins(MOE, Some("int4"));
        kiln.replace(TENSOR, |bytes| spelled(bytes, spell));
        let found = difference(&kiln, &original);
        assert_eq!(found.part, Some(part), "{found:#?}");
        assert!(found.message.contains(message), "{found:#?}");
        assert!(found.cause.as_ref().unwrap().contains(cause), "{found:#?}");
        if cause == "other metadata" {
            assert_eq!((&*found.members[0].path, found.members[0].theirs.as_deref()), ("quant_type", Some("\"INT4\"")));
        }
    }
}

#[test]
fn a_tensor_that_goes_by_another_name_is_found_by_its_bytes() {
    let (kiln, original) = twins(MOE, Some("int4"));
    // In the same layer.
    kiln.replace(TENSOR, |bytes| spelled(bytes, |text| text.replace("self_attn", "self_atty")));
    let found = difference(&kiln, &original);
    assert_eq!(found.message, format!("`{TENSOR}` is called `{}` there", TENSOR.replace("attn", "atty")));
    assert_eq!(found.cause.as_deref(), Some("the same bytes under another name"));
}

#[test]
fn tensors_that_changed_their_places_are_swapped() {
    let [key, value] = ["k", "v"].map(|letter| format!("model.layers.0.self_attn.{letter}_proj.weight"));
    let (kiln, original) = twins(MOE, None);
    let mut values = Vec::new();
    kiln.replace(&value, |bytes| values = bytes[array(bytes, &value)].to_vec());
    let mut keys = Vec::new();
    kiln.replace(&key, |bytes| {
        let place = array(bytes, &key);
        keys = bytes[place.clone()].to_vec();
        bytes[place].copy_from_slice(&values);
    });
    kiln.replace(&value, |bytes| {
        let place = array(bytes, &value);
        bytes[place].copy_from_slice(&keys);
    });
    assert_eq!(difference(&kiln, &original).message, format!("`{key}` and `{value}` are swapped"));
}

/// A model of the files in `source`, as they are.
fn files(source: &Path) -> (TempDir, Model) {
    let place = TempDir::new().unwrap();
    let options = Options {
        name: "model:files".parse().unwrap(),
        source: source.to_owned().into(),
        request: Request { profile: Profile::Hf, ..Request::default() },
        dialect: Dialect::ModelPack,
        threads: 1,
    };
    let store = Store::open(&place.path().join("store")).unwrap();
    create(&store, &options, &Progress::silent()).unwrap();
    (place, Model { store, name: options.name })
}

#[test]
fn experts_that_are_tensors_of_their_own_are_known_by_their_numbers() {
    let changed = TempDir::new().unwrap();
    copy_of(&checkpoint(MOE), changed.path());
    let mut renamed = 0;
    for shard in fs::read_dir(changed.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if shard.extension().is_some_and(|ending| ending == "safetensors") {
            let mut bytes = fs::read(&shard).unwrap();
            spelled(&mut bytes, |text| {
                renamed += text.matches("experts.3.").count() + text.matches("experts.5.").count();
                let aside = text.replace("experts.3.", "experts.X.");
                aside.replace("experts.5.", "experts.3.").replace("experts.X.", "experts.5.")
            });
            fs::write(&shard, bytes).unwrap();
        }
    }
    assert_eq!(renamed, 6);
    let (_here, ours) = files(&checkpoint(MOE));
    let (_there, theirs) = files(changed.path());
    let diffed = diff(&[ours, theirs], 2, &Progress::silent()).unwrap();
    let messages: Vec<&str> = diffed.findings.iter().map(|found| &*found.message).collect();
    assert_eq!(messages, ["Experts 3 and 5 of `model.layers.0.mlp.experts` are swapped"]);
}

#[test]
fn a_damaged_layer_is_no_difference_but_damage() {
    let (kiln, original) = twins(MOE, None);
    kiln.replace(TENSOR, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let layer = kiln.manifest().layers.into_iter().find(|layer| layer.name.as_deref() == Some(TENSOR)).unwrap();
    let path = kiln.store.blob_path(&layer.digest);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 2;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let model = |name: &Reference| Model { store: kiln.store.clone(), name: name.clone() };
    let error = diff(&[model(&original), model(&kiln.name)], 2, &Progress::silent()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn tensors_that_only_one_has_are_named() {
    let (kiln, original) = twins(MOE, Some("int4"));
    // One of three is another tensor there: another name, other bytes.
    kiln.replace(EXPERTS, |bytes| {
        let place = array(bytes, &format!("{EXPERTS}.up_proj.weight"));
        bytes[place.start] ^= 1;
        spelled(bytes, |text| text.replace("up_proj", "xx_proj"));
    });
    let diffed = compared(&kiln, &original);
    let messages: Vec<&str> = diffed.findings.iter().map(|found| &*found.message).collect();
    assert_eq!(
        messages,
        [
            &*format!("The second model has no tensor `{EXPERTS}.up_proj.weight`"),
            &*format!("The second model has another tensor in `{EXPERTS}`, `{EXPERTS}.xx_proj.weight`"),
        ]
    );
}

#[test]
fn another_scheme_is_another_form() {
    let (kiln, original) = twins(MOE, Some("int4"));
    let source = checkpoint(MOE);
    let other = Kiln::holding(&source, Some("nvfp4"));
    let models = [
        Model { store: kiln.store.clone(), name: original },
        Model { store: other.store.clone(), name: other.name.clone() },
    ];
    let diffed = diff(&models, 2, &Progress::silent()).unwrap();
    let found = diffed.findings.iter().find(|found| found.tensor.as_deref() == Some(TENSOR)).unwrap();
    assert!(found.message.contains("is stored in another form: int4 in"), "{found:#?}");
    assert_eq!(found.cause.as_deref(), Some("another scheme: `int4` here, `nvfp4` there"));
    // Norms and files are the same bytes in both.
    assert!(diffed.total(Change::Shared).0 > 10, "{:?}", diffed.total(Change::Shared));
    assert_eq!(diffed.total(Change::OnlyHere), (0, 0));
}

#[test]
fn another_source_is_named_with_what_it_changed() {
    let (kiln, original) = twins(MOE, Some("int4"));
    let changed = TempDir::new().unwrap();
    copy_of(&checkpoint(MOE), changed.path());
    let shards = fs::read_dir(changed.path()).unwrap().map(|entry| entry.unwrap().path());
    let shard = shards
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .find(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).contains(TENSOR))
        .unwrap();
    let mut bytes = fs::read(&shard).unwrap();
    let place = array(&bytes, TENSOR);
    bytes[place.start + 1] ^= 0x80;
    fs::write(&shard, bytes).unwrap();
    let other = Kiln::holding(changed.path(), Some("int4"));
    let models = [
        Model { store: kiln.store.clone(), name: original },
        Model { store: other.store.clone(), name: other.name.clone() },
    ];
    let diffed = diff(&models, 1, &Progress::silent()).unwrap();
    let [found] = &diffed.findings[..] else { panic!("{:#?}", diffed.findings) };
    assert_eq!(found.tensor.as_deref(), Some(TENSOR));
    assert!(found.cause.as_ref().unwrap().contains("the source is another one"), "{found:#?}");
    assert!(found.arrays.iter().all(|array| array.groups.as_ref().unwrap().differing == 1), "{found:#?}");
}

#[test]
fn a_file_is_told_by_its_members_or_its_line() {
    let (kiln, original) = twins(MOE, None);
    kiln.replace("config.json", |bytes| {
        let mut config: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        config["num_hidden_layers"] = 99.into();
        *bytes = config.to_string().into_bytes();
    });
    let found = difference(&kiln, &original);
    assert_eq!(found.message, "The file `config.json` differs in `num_hidden_layers`");
    assert_eq!(found.members[0].theirs.as_deref(), Some("99"));

    let (kiln, original) = twins(MOE, None);
    kiln.replace("LICENSE", |bytes| {
        let third = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
        bytes[third] ^= 1;
    });
    let found = difference(&kiln, &original);
    assert!(found.message.ends_with(", in line 3"), "{}", found.message);
}

#[test]
fn a_lock_that_alone_differs_tells_the_parameter() {
    for (member, value, cause) in [
        ("epoch", serde_json::json!(7), "another epoch: 1 here, 7 there"),
        ("numerics", "other".into(), "other numerics: `mlx-cpu-1` here, `other` there"),
        ("scheme", "int8".into(), "another parameter of the creation"),
    ] {
        let (kiln, original) = twins(MOE, Some("int4"));
        kiln.replace("kiln.lock", |bytes| {
            let mut lock: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            lock[member] = value;
            *bytes = lock.to_string().into_bytes();
        });
        let found = difference(&kiln, &original);
        assert_eq!((&*found.message, found.cause.as_deref()), ("The locks differ", Some(cause)));
        assert_eq!(found.members[0].path, member);
    }
}

#[test]
fn the_same_model_has_no_difference_and_shares_every_layer() {
    let (kiln, original) = twins(MOE, Some("int4"));
    let diffed = compared(&kiln, &original);
    assert!(diffed.is_same() && diffed.findings.is_empty(), "{:#?}", diffed.findings);
    let layers = kiln.manifest().layers;
    let bytes = layers.iter().map(|layer| layer.size).sum();
    assert_eq!(diffed.total(Change::Shared), (layers.len() as u64, bytes));
}

#[test]
fn what_is_told_has_bounds() {
    let (kiln, original) = twins(MOE, Some("int4"));
    for layer in kiln.manifest().layers {
        if let Some(name) = layer.name.filter(|name| name.ends_with("weight")) {
            kiln.replace(&name, |bytes| *bytes.last_mut().unwrap() ^= 1);
        }
    }
    let diffed = compared(&kiln, &original);
    let changed = diffed.total(Change::Changed).0;
    assert!(changed > 9, "{changed}");
    assert_eq!(diffed.findings.len(), 9);
    assert_eq!(diffed.findings[8].message, format!("{} more layers differ", changed - 8));
}

/// Whether an entry of a header is spelled as kiln spells it; what the altered layers above are not.
#[test]
fn the_headers_that_these_tests_alter_are_canonical_before() {
    let (kiln, _) = twins(MOE, Some("int4"));
    kiln.replace(TENSOR, |bytes| {
        let header = parse_header(bytes, bytes.len() as u64).unwrap();
        let entries: Vec<Entry> = header
            .tensors
            .iter()
            .map(|entry| Entry {
                name: entry.name.clone(),
                dtype: entry.dtype.name(),
                shape: entry.shape.clone(),
                data_offsets: [entry.begin, entry.end],
            })
            .collect();
        assert_eq!(encode_header(&header.metadata, &entries), bytes[..header.data_start as usize]);
    });
}
