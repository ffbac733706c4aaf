//! Safetensors files.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::files::{checkpoint, entry, long_weights, pieces, sound, weights};
use crate::place::Place;
use crate::trial::{Effect, Row};

const FILE: &str = "`model.safetensors`";

/// A file that is refused, with these words.
fn refused(id: &'static str, what: &str, bytes: Vec<u8>, says: &[&str]) -> Row {
    let row = Row::new(id, what, "create evil checkpoint", 6).says([FILE]).says(says.iter().copied());
    row.lay(move |place| checkpoint(&place.path("checkpoint"), &bytes))
}

/// A file that is imported.
fn imported(id: &'static str, what: &str, scheme: &str, bytes: Vec<u8>) -> Row {
    let words = format!("create evil checkpoint{scheme}");
    Row::new(id, what, words, 0).effect(Effect::Stored).lay(move |place| checkpoint(&place.path("checkpoint"), &bytes))
}

/// A header that is refused, in front of four bytes of data.
fn header(id: &'static str, what: &str, text: impl AsRef<str>, says: &[&str]) -> Row {
    refused(id, what, weights(text.as_ref(), 4), says)
}

/// The tensor `w` of shape `[4]` and dtype U8, said otherwise in one place.
fn tensor(id: &'static str, what: &str, [dtype, shape, offsets]: [&str; 3], says: &[&str]) -> Row {
    header(id, what, format!("{{{}}}", entry("w", dtype, shape, offsets)), says).says(["ensor `w`"])
}

fn two(a: &str, b: &str) -> String {
    format!("{{{},{}}}", entry("a", "U8", "[2]", a), entry("b", "U8", "[2]", b))
}

const FOUR: [&str; 3] = ["U8", "[4]", "[0,4]"];

pub(crate) fn rows() -> Vec<Row> {
    [lengths(), texts(), names(), values(), large(), others()].into_iter().flatten().collect()
}

fn lengths() -> Vec<Row> {
    let long = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let mut rows = vec![
        refused("S2", "2^64-1", long(u64::MAX), &["18446744073709551615 bytes"]),
        refused("S2", "100,000,001", long(100_000_001), &["100000001 bytes", "more than the 100000000 allowed"]),
        refused("S2", "longer than the file", long(99), &["ends at byte 107", "only 10"]),
        Row::new("S2", "longer than a sparse file", "create evil checkpoint", 6).says([FILE]).lay(|place| {
            checkpoint(&place.path("checkpoint"), &long_prefix(100_000_000));
            let file = File::options().write(true).open(place.path("checkpoint/model.safetensors")).unwrap();
            file.set_len(1 << 40).unwrap();
        }),
        refused(
            "S9",
            "bytes behind the data",
            weights(format!("{{{}}}", entry("w", "U8", "[4]", "[0,4]")), 5),
            &["1 bytes follow"],
        ),
        refused(
            "S9",
            "a zip behind the data",
            [weights(format!("{{{}}}", entry("w", "U8", "[4]", "[0,4]")), 4), b"PK\x05\x06".to_vec()].concat(),
            &["4 bytes follow"],
        ),
        refused(
            "S9",
            "data that ends early",
            weights(format!("{{{}}}", entry("w", "U8", "[4]", "[0,4]")), 3),
            &["`w` ends at byte 4", "only 3"],
        ),
        refused(
            "S9",
            "no data at all",
            weights(format!("{{{}}}", entry("w", "U8", "[4]", "[0,4]")), 0),
            &["`w` ends at byte 4", "only 0"],
        ),
    ];
    rows.extend((0..8).map(|count| {
        let says: &[&str] = if count == 0 { &["is empty"] } else { &[] };
        refused("S1", &format!("{count} bytes"), vec![1; count], says)
    }));
    rows
}

fn long_prefix(length: u64) -> Vec<u8> {
    length.to_le_bytes().to_vec()
}

fn texts() -> Vec<Row> {
    let w = entry("w", "U8", "[4]", "[0,4]");
    let deep = |depth: usize| format!(r#"{{"w":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let half = |name: &str, at: u8| entry(name, "U8", "[2]", &format!("[{at},{}]", at + 2));
    vec![
        refused("S3", "a header of no bytes", weights("", 0), &[]),
        header("S3", "an array", "[]", &["an object of tensors"]),
        header("S3", "null", "null", &["an object of tensors"]),
        header("S3", "a number", "4", &["an object of tensors"]),
        header("S3", "a byte order mark", format!("\u{feff}{{{w}}}"), &["header is malformed"]),
        header("S3", "padding of NUL", format!("{{{w}}}\0\0\0"), &["trailing characters"]),
        header("S3", "text behind it", format!("{{{w}}} x"), &["trailing characters"]),
        header("S3", "a second object", format!("{{{w}}}{{}}"), &["trailing characters"]),
        header("S3", "cut off", format!("{{{w}"), &["EOF"]),
        refused("S3", "no UTF-8", weights([&b"{\"\xff\":"[..], b"1}"].concat(), 4), &["header is malformed"]),
        header(
            "S4",
            "another dtype",
            format!("{{{w},{}}}", entry("w", "I8", "[4]", "[0,4]")),
            &["`w` is in the header twice"],
        ),
        header("S4", "the same", format!("{{{w},{w}}}"), &["`w` is in the header twice"]),
        header(
            "S4",
            "the first outside of the file",
            format!("{{{},{w}}}", entry("w", "U8", "[4]", "[1000,1004]")),
            &["`w` is in the header twice"],
        ),
        header(
            "S5",
            "two spellings",
            format!("{{{},{}}}", half("a", 0), half("\\u0061", 2)),
            &["`a` is in the header twice"],
        ),
        header(
            "S6",
            "twice",
            format!(r#"{{"__metadata__":{{}},{w},"__metadata__":{{}}}}"#),
            &["`__metadata__` is there twice"],
        ),
        header("S6", "a number in it", format!(r#"{{"__metadata__":{{"n":1}},{w}}}"#), &["expected a string"]),
        header("S7", "a key twice", format!(r#"{{"__metadata__":{{"a":"1","a":"2"}},{w}}}"#), &["`a` is there twice"]),
        header(
            "S7",
            "a key in two spellings",
            format!(r#"{{"__metadata__":{{"a":"1","\u0061":"1"}},{w}}}"#),
            &["`a` is there twice"],
        ),
        header("S7", "a text", format!(r#"{{"__metadata__":"pt",{w}}}"#), &["an object of strings"]),
        // MLX writes it so.
        imported("S7", "null", "", weights(format!(r#"{{"__metadata__":null,{w}}}"#), 4)),
        header("S16", "an array", r#"{"w":["U8",[4],[0,4]]}"#, &["`w`", "an object with `dtype`"]),
        header(
            "S16",
            "an unknown field",
            r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}}"#,
            &["`w`", "the field `x` is unknown"],
        ),
        header(
            "S16",
            "a field twice",
            r#"{"w":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
            &["`w`", "`dtype` is there twice"],
        ),
        header("S16", "a field less", r#"{"w":{"dtype":"U8","shape":[4]}}"#, &["`w`", "missing field `data_offsets`"]),
        imported("S17", "leading and trailing", "", weights(format!(" \t\r\n{{ {w} }}\t\n  "), 4)),
        imported("S17", "padding of tabs", "", weights(format!("{{{w}}}{}", "\t".repeat(4096)), 4)),
        header("S20", "200 deep", deep(200), &["`w`"]),
        header("S20", "100,000 deep", deep(100_000), &["`w`"]),
        header(
            "S20",
            "deep metadata",
            format!(r#"{{"__metadata__":{}{},{w}}}"#, "{\"a\":".repeat(5000), "}".repeat(5000)),
            &["expected a string"],
        ),
    ]
}

fn names() -> Vec<Row> {
    let named = |name: &str| weights(format!("{{{}}}", entry(name, "U8", "[4]", "[0,4]")), 4);
    let bad = |what: &str, name: &str, says: &str| refused("S14", what, named(name), &[says]);
    let good = |what: &str, name: &str| imported("S14", what, "", named(name));
    let long = "x".repeat(4097);
    let pair = |a: &str, b: &str| {
        let header = format!("{{{},{}}}", entry(a, "U8", "[2]", "[0,2]"), entry(b, "U8", "[2]", "[2,4]"));
        imported("S23", &format!("{a} and {b}"), "", weights(header, 4))
    };
    vec![
        bad("NUL", "a\\u0000b", "has control characters"),
        bad("an escape sequence", "\\u001b[2J", "has control characters"),
        bad("a line feed", "a\\nerror: b", "has control characters"),
        bad("a right-to-left override", "\u{202e}x", "has control characters"),
        bad("a zero-width space", "a\u{200b}", "has control characters"),
        bad("empty", "", "empty name"),
        bad("4097 bytes", &long, "longer than 4096"),
        // A name is a key, not a path.
        good("two dots", ".."),
        good("an absolute path", "/abs"),
        good("a path up", "../../x"),
        Row::new("S14", "10 MB", "create evil checkpoint", 6).says([FILE, "a string of more than"]).lay(|place| {
            let name = std::iter::repeat_n("x".repeat(1 << 20), 10);
            let rest = entry("", "U8", "[4]", "[0,4]").split_off(1);
            let text = std::iter::once("{\"".to_owned()).chain(name).chain([rest, "}".to_owned()]);
            long_weights(&place.path("checkpoint"), text, 4);
        }),
        header(
            "S15",
            "a tensor",
            format!("{{{}}}", entry("__metadata__", "U8", "[4]", "[0,4]")),
            &["expected a string"],
        ),
        // Layers have names, not files of their own, until they are laid out.
        pair("model.Norm.weight", "model.norm.weight"),
        pair("caf\u{e9}", "cafe\u{301}"),
    ]
}

fn values() -> Vec<Row> {
    let max = u64::MAX.to_string();
    let overflow = |what: &str, shape: &str, offsets: &str| {
        tensor("S10", what, ["F32", shape, offsets], &["larger than any file"])
    };
    let [dtype, shape, offsets] = FOUR;
    let pair = |id: &'static str, what: &str, a: &str, b: &str, says: &str| header(id, what, two(a, b), &[says]);
    let offset = |what: &str, offsets: &str, says: &str| tensor("S8", what, [dtype, shape, offsets], &[says]);
    let unknown = |dtype: &str| tensor("S22", dtype, [dtype, shape, offsets], &[&format!("`{dtype}` is unknown")]);
    let floats = |values: &[f32]| {
        let shape = format!("[{},32]", values.len() / 32);
        let header = format!("{{{}}}", entry("w.weight", "F32", &shape, &format!("[0,{}]", values.len() * 4)));
        let mut bytes = weights(header, 0);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    };
    let matrix = |value: f32| {
        let mut values = [1.0; 1024];
        values[7] = value;
        floats(&values)
    };
    let mut rows = vec![
        pair("S8", "overlap", "[0,2]", "[1,3]", "`b` overlaps"),
        pair("S8", "the same range", "[0,2]", "[0,2]", "`b` overlaps"),
        pair("S8", "a hole at the start", "[1,3]", "[3,5]", "1 bytes before tensor `a`"),
        pair("S8", "a hole in the middle", "[0,2]", "[3,5]", "1 bytes before tensor `b`"),
        offset("backwards", "[4,0]", "ends before it"),
        offset("negative", "[-4,0]", "integer `-4`"),
        offset("a fraction", "[0,4.0]", "floating point"),
        offset("an exponent", "[0,4e0]", "floating point"),
        offset("a negative zero", "[-0,4]", "floating point"),
        offset("three", "[0,4,4]", "ensor `w`"),
        offset("one", "[0]", "invalid length"),
        offset("beyond 2^64", "[0,18446744073709551616]", "floating point"),
        tensor("S10", "too short", ["U8", "[3]", offsets], &["takes 3 bytes", "span 4"]),
        tensor("S10", "too long", ["F32", "[2]", offsets], &["takes 8 bytes", "span 4"]),
        tensor("S10", "a scalar", ["F32", "[]", "[0,8]"], &["takes 4 bytes", "span 8"]),
        overflow("2^64 elements twice", &format!("[{max},2]"), offsets),
        overflow("4 × 2^62", "[4611686018427387904]", "[0,0]"),
        overflow("in the middle", &format!("[2,{max},2]"), offsets),
        tensor("S11", "a zero first", ["F32", &format!("[0,{},4]", i64::MAX), "[0,0]"], &["larger than any file"]),
        tensor("S11", "a zero last", ["U8", &format!("[{max},{max},0]"), "[0,0]"], &["larger than any file"]),
        imported(
            "S12",
            "F32 behind one byte",
            "",
            weights(format!("{{{},{}}}", entry("a", "U8", "[1]", "[0,1]"), entry("b", "F32", "[1]", "[1,5]")), 5),
        ),
        tensor("S13", "F4, even", ["F4", "[8]", offsets], &["less than a byte"]),
        tensor("S13", "F4, odd", ["F4", "[7]", offsets], &["less than a byte"]),
        tensor("S13", "F6_E2M3", ["F6_E2M3", "[3]", offsets], &[]),
        tensor("S19", "nine", ["U8", "[1,1,1,1,1,1,1,1,4]", offsets], &["more than 8 dimensions"]),
        tensor("S19", "100,000", ["U8", &format!("[{}4]", "1,".repeat(100_000)), offsets], &["more than 8 dimensions"]),
        unknown("F31"),
        unknown("f32"),
        unknown("bfloat16"),
        unknown(""),
        tensor("S22", "a number", ["U8\",\"x\":\"", shape, offsets], &[]),
    ];
    for (what, value) in [("NaN", f32::NAN), ("infinity", f32::INFINITY), ("minus infinity", f32::NEG_INFINITY)] {
        let row = Row::new("S24", what, "create evil checkpoint --quantize int4", 6);
        let bytes = matrix(value);
        let row = row.says(["`w.weight`", "is not finite at element 7"]);
        rows.push(row.lay(move |place| checkpoint(&place.path("checkpoint"), &bytes)));
        rows.push(imported("S24", &format!("{what}, copied"), "", matrix(value)));
    }
    for scheme in ["int4", "int8", "nvfp4", "mxfp4", "mxfp8"] {
        let scheme = format!(" --quantize {scheme}");
        for (what, value) in [("a denormal", 1e-42), ("an outlier", f32::MAX), ("a negative zero", -0.0)] {
            rows.push(imported("S24", &format!("{what}{scheme}"), &scheme, matrix(value)));
        }
        rows.push(imported("S24", &format!("zeros{scheme}"), &scheme, floats(&[0.0; 1024])));
        rows.push(imported("S24", &format!("a constant{scheme}"), &scheme, floats(&[-2.5; 1024])));
    }
    let odd = weights(format!("{{{}}}", entry("w.weight", "BF16", "[4,7]", "[0,56]")), 56);
    // What no group divides stays as it is, and `show` says so.
    rows.push(imported("S25", "rows of 7", " --quantize int4", odd));
    for (what, shape, size) in [("a scalar", "[]", 2), ("empty", "[0,32]", 0), ("one element", "[1,1]", 2)] {
        let entries = [
            entry("w.weight", "BF16", shape, &format!("[0,{size}]")),
            entry("x", "U8", "[1]", &format!("[{size},{}]", size + 1)),
        ];
        rows.push(imported("S26", what, " --quantize int4", weights(format!("{{{}}}", entries.join(",")), size + 1)));
    }
    rows
}

fn large() -> Vec<Row> {
    let row = |id: &'static str, what: &str| Row::new(id, what, "create evil checkpoint", 6).says([FILE]);
    vec![
        row("S18", "1.7 million tensors without data").says(["more than 250000 tensors"]).lay(|place| {
            let each = |n: u32| {
                format!("{}{}", if n == 0 { '{' } else { ',' }, entry(&format!("{n:x}"), "U8", "[0]", "[0,0]"))
            };
            long_weights(&place.path("checkpoint"), (0..1_700_000).map(each).chain(["}".to_owned()]), 0);
        }),
        row("S18", "as many of a byte each").says(["more than 250000 tensors"]).lay(|place| {
            let each = |n: u32| {
                let range = format!("[{n},{}]", n + 1);
                format!("{}{}", if n == 0 { '{' } else { ',' }, entry(&format!("{n:x}"), "U8", "[1]", &range))
            };
            long_weights(&place.path("checkpoint"), (0..300_000).map(each).chain(["}".to_owned()]), 300_000);
        }),
        row("S18", "96 MB of padding").lay(|place| {
            long_weights(&place.path("checkpoint"), std::iter::repeat_n(" ".repeat(1 << 20), 95), 0);
        }),
        row("S21", "one text").says(["a string of more than"]).lay(|place| {
            let text = std::iter::once(r#"{"__metadata__":{"a":""#.to_owned());
            let text = text.chain(std::iter::repeat_n("x".repeat(1 << 20), 20)).chain(["\"}}".to_owned()]);
            long_weights(&place.path("checkpoint"), text, 0);
        }),
        row("S21", "many texts").says(["more than"]).lay(|place| {
            let text = std::iter::once(r#"{"__metadata__":{"":"""#.to_owned());
            let text =
                text.chain((0..200_000).map(|n| format!(r#","{n}":"{}""#, "x".repeat(100)))).chain(["}}".to_owned()]);
            long_weights(&place.path("checkpoint"), text, 0);
        }),
    ]
}

fn others() -> Vec<Row> {
    let text = |id: &'static str, what: &'static str, bytes: &'static [u8], says: &[&str]| {
        refused(id, what, bytes.to_vec(), says)
    };
    let instead = |what: &'static str, says: &[&str], make: fn(&Place)| {
        Row::new("S29", what, "create evil checkpoint", 6).says(says.iter().copied()).lay(move |place| {
            sound(&place.path("checkpoint"));
            fs::remove_file(place.path("checkpoint/model.safetensors")).unwrap();
            make(place);
        })
    };
    vec![
        text(
            "S28",
            "git-lfs",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
            &["is a git-lfs pointer"],
        ),
        text("S28", "a web page", b"<!DOCTYPE html><html><body>404</body></html>", &["is a web page"]),
        text("S28", "gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03rest of it", &["is compressed"]),
        text("S28", "a pickle in a zip", b"PK\x03\x04\x14\0\0\0\0\0\0\0archive/data.pkl", &["is a pickle"]),
        text("S28", "GGUF", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", &["GGUF"]),
        instead("a pipe", &["model.safetensors", "is not a regular file"], |place| {
            mknodat(CWD, place.path("checkpoint/model.safetensors"), FileType::Fifo, Mode::from(0o644), 0).unwrap();
        }),
        instead("a device", &["model.safetensors", "is not a regular file"], |place| {
            symlink("/dev/zero", place.path("checkpoint/model.safetensors")).unwrap();
        }),
        instead("a directory", &["`checkpoint` has no `model*.safetensors`"], |place| {
            fs::create_dir(place.path("checkpoint/model.safetensors")).unwrap();
        }),
        instead("a file of /proc", &["model.safetensors"], |place| {
            symlink("/proc/self/environ", place.path("checkpoint/model.safetensors")).unwrap();
        }),
        instead("a sparse file of 1 TB", &["model.safetensors"], |place| {
            File::create(place.path("checkpoint/model.safetensors")).unwrap().set_len(1 << 40).unwrap();
        }),
        Row::new("S29", "a sparse sidecar of 1 TB", "create evil checkpoint", 6).says(["`tokenizer.json`"]).lay(
            |place| {
                sound(&place.path("checkpoint"));
                File::create(place.path("checkpoint/tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
            },
        ),
        Row::new("S30", "a sidecar", "create evil checkpoint", 6).says(["tokenizer.json"]).lay(|place| {
            sound(&place.path("checkpoint"));
            fs::write(place.path("secret"), "s3cret").unwrap();
            symlink("../secret", place.path("checkpoint/tokenizer.json")).unwrap();
        }),
        Row::new("S30", "a link that leads nowhere", "create evil checkpoint", 6).says(["tokenizer.json"]).lay(
            |place| {
                sound(&place.path("checkpoint"));
                symlink("nowhere", place.path("checkpoint/tokenizer.json")).unwrap();
            },
        ),
        Row::new("S30", "a Hugging Face cache is let through", "create evil cache/models--a--b", 0)
            .effect(Effect::Stored)
            .lay(|place| {
                let entry = place.path("cache/models--a--b");
                let snapshot = entry.join("snapshots").join("0".repeat(40));
                fs::create_dir_all(entry.join("blobs")).unwrap();
                fs::create_dir_all(entry.join("refs")).unwrap();
                fs::write(entry.join("refs/main"), "0".repeat(40)).unwrap();
                sound(&place.path("sound"));
                fs::create_dir_all(&snapshot).unwrap();
                for (name, blob) in [("config.json", "aa"), ("model.safetensors", "bb")] {
                    fs::rename(place.path("sound").join(name), entry.join("blobs").join(blob)).unwrap();
                    symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
                }
            }),
        Row::new("S27", "cut off after the index was written", "create evil checkpoint", 6)
            .says(["model.safetensors"])
            .lay(|place| {
                sound(&place.path("checkpoint"));
                let path = place.path("checkpoint/model.safetensors");
                let length = fs::metadata(&path).unwrap().len();
                File::options().write(true).open(path).unwrap().set_len(length - 1).unwrap();
                pieces(
                    &place.path("checkpoint/model.safetensors.index.json"),
                    [r#"{"weight_map":{"w":"model.safetensors"}}"#.to_owned()].into_iter(),
                );
            }),
    ]
}
