//! The shard index.

use std::fs::{self, File};

use crate::files::{checkpoint, entry, pieces, sound, weights};
use crate::place::Place;
use crate::trial::{Effect, Row};

fn with_index(place: &Place, index: &str) {
    sound(&place.path("checkpoint"));
    fs::write(place.path("checkpoint/model.safetensors.index.json"), index).unwrap();
}

fn refused(id: &'static str, what: &str, index: impl Into<String>, says: &[&str]) -> Row {
    let index = index.into();
    Row::new(id, what, "create evil checkpoint", 6)
        .says(says.iter().copied())
        .lay(move |place| with_index(place, &index))
}

fn shard(name: &str) -> String {
    format!(r#"{{"weight_map":{{"w":"{name}"}}}}"#)
}

pub(crate) fn rows() -> Vec<Row> {
    let own = "own directory";
    let mut rows = Vec::new();
    for (name, says) in [
        ("../x.safetensors", own),
        ("/etc/passwd", own),
        ("/etc/x.safetensors", own),
        ("a/../../b.safetensors", own),
        ("a/b.safetensors", own),
        (r"C:\\x.safetensors", own),
        (r"..\\x.safetensors", own),
        ("https://host.example/x.safetensors", own),
        ("file:///x.safetensors", own),
        ("", "not the name of a safetensors file"),
        ("..", "not the name of a safetensors file"),
        (".safetensors", "not the name of a safetensors file"),
        ("config.json", "not the name of a safetensors file"),
        (r"x\u0000.safetensors", "not a usable file name"),
        (r"\u001b[2J.safetensors", "not a usable file name"),
    ] {
        for id in ["I1", "I2"] {
            rows.push(refused(id, name, shard(name), &["shard index puts `w` into", says]));
        }
    }
    let whole =
        |size: &str| format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{{"w":"model.safetensors"}}}}"#);
    rows.extend([
        refused("I3", "a shard that is missing", shard("model-2.safetensors"), &["model-2.safetensors` is missing"]),
        refused(
            "I3",
            "a tensor that is in no shard",
            r#"{"weight_map":{"w":"model.safetensors","v":"model.safetensors"}}"#,
            &["`v`", "in no shard"],
        ),
        refused(
            "I3",
            "a tensor that it does not list",
            r#"{"weight_map":{"v":"model.safetensors"}}"#,
            &["in no shard"],
        ),
        refused("I3", "no tensor", r#"{"weight_map":{}}"#, &["lists no tensor"]),
        refused("I3", "no map", "{}", &["shard index is malformed", "weight_map"]),
        refused("I3", "an array", "[]", &["shard index is not a JSON object"]),
        Row::new("I3", "a tensor in two shards", "create evil checkpoint", 6)
            .says(["`w` is in two shards", "model-2.safetensors"])
            .lay(|place| {
                with_index(place, r#"{"weight_map":{"w":"model.safetensors","v":"model-2.safetensors"}}"#);
                let both = format!("{{{},{}}}", entry("w", "U8", "[1]", "[0,1]"), entry("v", "U8", "[1]", "[1,2]"));
                fs::write(place.path("checkpoint/model-2.safetensors"), weights(both, 2)).unwrap();
            }),
        Row::new("I3", "a shard more than it lists", "create evil checkpoint", 0)
            .effect(Effect::Stored)
            .says(["`model-2.safetensors` is not used"])
            .lay(|place| {
                with_index(place, &shard("model.safetensors"));
                fs::copy(place.path("checkpoint/model.safetensors"), place.path("checkpoint/model-2.safetensors"))
                    .unwrap();
            }),
        refused(
            "I4",
            "a tensor twice",
            r#"{"weight_map":{"w":"model.safetensors","w":"model.safetensors"}}"#,
            &["`w` is there twice"],
        ),
        refused(
            "I4",
            "the map twice",
            r#"{"weight_map":{"w":"model.safetensors"},"weight_map":{"w":"model.safetensors"}}"#,
            &["duplicate field `weight_map`"],
        ),
        Row::new("I5", "the index wins", "create evil checkpoint", 0)
            .effect(Effect::Stored)
            .says(["`model.safetensors` is not used"])
            .lay(|place| {
                with_index(place, &shard("model-1.safetensors"));
                fs::copy(place.path("checkpoint/model.safetensors"), place.path("checkpoint/model-1.safetensors"))
                    .unwrap();
            }),
        refused("I6", "a text", whole("\"128\""), &["shard index is malformed"]),
        refused("I6", "beyond any number", whole("1e999"), &["shard index is malformed"]),
    ]);
    for size in ["127", "-1", "1.5", "1e300", "18446744073709551616", "null"] {
        let row =
            Row::new("I6", format!("{size}, which is only told"), "create evil checkpoint", 0).effect(Effect::Stored);
        let index = whole(size);
        rows.push(row.lay(move |place| with_index(place, &index)));
    }
    let long = |what: &str, count: u32, says: &str, each: fn(u32) -> String| {
        Row::new("I7", what, "create evil checkpoint", 6).says([says]).lay(move |place| {
            sound(&place.path("checkpoint"));
            let text = std::iter::once(r#"{"weight_map":{"#.to_owned());
            let text = text.chain((0..count).map(|n| format!("{}{}", if n == 0 { "" } else { "," }, each(n))));
            pieces(&place.path("checkpoint/model.safetensors.index.json"), text.chain(["}}".to_owned()]));
        })
    };
    rows.extend([
        long("a million entries", 1_000_000, "more than 300000 tensors", |n| format!(r#""{n:x}":"m.safetensors""#)),
        long("as large as it may be", 300_000, "m.safetensors` is missing", |n| format!(r#""{n:x}":"m.safetensors""#)),
        long("100,000 shards", 100_000, "has 100000 shards, more than 10000", |n| {
            format!(r#""{n:x}":"{n:x}.safetensors""#)
        }),
        Row::new("I7", "129 MiB", "create evil checkpoint", 6)
            .says(["model.safetensors.index.json", "more than the 134217728 allowed"])
            .lay(|place| {
                sound(&place.path("checkpoint"));
                File::create(place.path("checkpoint/model.safetensors.index.json"))
                    .unwrap()
                    .set_len(129 << 20)
                    .unwrap();
            }),
        Row::new("I8", "two files on this system", "create evil checkpoint", 0).effect(Effect::Stored).lay(|place| {
            let root = place.path("checkpoint");
            checkpoint(&root, &weights(format!("{{{}}}", entry("w", "U8", "[1]", "[0,1]")), 1));
            fs::write(root.join("Model.safetensors"), weights(format!("{{{}}}", entry("v", "U8", "[1]", "[0,1]")), 1))
                .unwrap();
            fs::write(
                root.join("model.safetensors.index.json"),
                r#"{"weight_map":{"w":"model.safetensors","v":"Model.safetensors"}}"#,
            )
            .unwrap();
        }),
        refused(
            "I8",
            "one file on this system",
            r#"{"weight_map":{"w":"model.safetensors","v":"Model.safetensors"}}"#,
            &["Model.safetensors` is missing"],
        ),
    ]);
    rows
}
