//! What has to hold for any bytes: each parser of foreign text comes to an end, and what it took it writes so that it
//! reads the same again. The fuzz targets run these, and so does `tests/fuzz.rs`, over inputs that it makes.

use std::collections::BTreeMap;

use http::HeaderValue;
use kiln::blobs::{Entry, encode_header};
use kiln::json::to_canonical;
use kiln::manifest::Lock;
use kiln::oci::{Digest, Document, Manifest, MediaType, Reference};
use kiln::plan::Recipe;
use kiln::registry::headers;
use kiln::serve::chunk_range;
use kiln::source::safetensors::{Header, parse_header};
use kiln::source::{parse_config, parse_index};
use safetensors::SafeTensors;
use serde_json::json;

/// A parser with its laws.
pub type Body = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Body); 11] = [
    ("header", header),
    ("index", index),
    ("config", config),
    ("manifest", manifest),
    ("reference", reference),
    ("digest", digest),
    ("www_authenticate", www_authenticate),
    ("link", link),
    ("content_range", content_range),
    ("lock", lock),
    ("recipe", recipe),
];

/// Where kiln refuses what the reference library takes: words of the refusal, and a header of which that holds, in front
/// of four bytes of data. Nothing is the other way round.
pub const STRICTER: [(&str, &str); 13] = [
    (
        "is in the header twice",
        r#"{"w":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
    ),
    ("is there twice", r#"{"__metadata__":{"a":"1","a":"2"},"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#),
    ("has control characters", r#"{"a\u0000":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#),
    ("has an empty name", r#"{"":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#),
    ("is longer than 4096 bytes", "LONG"),
    ("an object with `dtype`", r#"{"w":["U8",[4],[0,4]]}"#),
    ("is unknown", r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}}"#),
    ("more than 8 dimensions", r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}}"#),
    (
        "is larger than any file",
        r#"{"e":{"dtype":"F32","shape":[0,9223372036854775807,4],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
    ),
    ("less than a byte", r#"{"w":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}"#),
    (
        "is in the header twice",
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"\u0061":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
    ),
    ("more than 250000 tensors", "MANY"),
    ("`__metadata__` has more than 8388608 bytes", "LONG METADATA"),
];

/// The text of a row of [`STRICTER`].
pub fn stricter(text: &str) -> String {
    let w = r#""w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    match text {
        "LONG" => format!(r#"{{"{}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#, "x".repeat(4097)),
        "LONG METADATA" => format!(r#"{{"__metadata__":{{"a":"{}"}},{w}}}"#, "x".repeat((8 << 20) + 1)),
        "MANY" => {
            let none = |n| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
            format!("{{{}{w}}}", (0..250_000).map(none).collect::<String>())
        }
        text => text.to_owned(),
    }
}

/// A safetensors file.
pub fn header(input: &[u8]) {
    let length = input.len() as u64;
    let theirs = SafeTensors::deserialize(input);
    let ours = match parse_header(input, length) {
        Ok(ours) => ours,
        Err(refusal) => {
            let text = refusal.chain();
            let known = STRICTER.iter().any(|(words, _)| text.contains(words));
            assert!(theirs.is_err() || known, "only the reference library takes it: {text}");
            return;
        }
    };
    let theirs = theirs.expect("the reference library takes what kiln does");
    assert_eq!(theirs.len(), ours.tensors.len());
    for tensor in &ours.tensors {
        let view = theirs.tensor(&tensor.name).expect("both have it");
        let start = (ours.data_start + tensor.begin) as usize;
        assert_eq!(view.data(), &input[start..(ours.data_start + tensor.end) as usize]);
        assert!(view.shape().iter().map(|dimension| *dimension as u64).eq(tensor.shape.iter().copied()));
    }
    let entry = |tensor: &kiln::source::safetensors::Entry| Entry {
        name: tensor.name.clone(),
        dtype: tensor.dtype.name(),
        shape: tensor.shape.clone(),
        data_offsets: [tensor.begin, tensor.end],
    };
    let written = encode_header(&ours.metadata, &ours.tensors.iter().map(entry).collect::<Vec<_>>());
    let size = written.len() as u64 + length - ours.data_start;
    let Header { metadata, tensors, .. } = parse_header(&written, size).expect("it reads what it writes");
    assert_eq!((metadata, tensors), (ours.metadata, ours.tensors));
}

/// The shard index.
pub fn index(input: &[u8]) {
    let Ok(read) = parse_index(input) else { return };
    assert!(read.names().iter().all(|name| !name.contains(['/', '\\', ':', '\0']) && !name.starts_with('.')));
    let metadata: BTreeMap<&str, u64> = read.total_size.map(|size| ("total_size", size)).into_iter().collect();
    let shards: BTreeMap<&str, &str> = read.shards.iter().map(|(tensor, shard)| (&**tensor, &**shard)).collect();
    let written = to_canonical(&json!({"metadata": metadata, "weight_map": shards}));
    assert_eq!(parse_index(&written).expect("it reads what was written"), read);
}

/// `config.json`.
pub fn config(input: &[u8]) {
    let Ok(read) = parse_config(input) else { return };
    assert_eq!(parse_config(&to_canonical(&read)).expect("it reads what it writes"), read);
}

/// A manifest, or an index of manifests, of any media type.
pub fn manifest(input: &[u8]) {
    for media_type in [
        MediaType::OCI_MANIFEST,
        MediaType::DOCKER_MANIFEST,
        MediaType::OCI_INDEX,
        MediaType::parse("application/vnd.docker.distribution.manifest.list.v2+json"),
    ] {
        let Ok(read) = Document::parse(input, &media_type) else { continue };
        let written = match &read {
            Document::Manifest(manifest) => to_canonical(manifest),
            Document::Index(index) => to_canonical(index),
        };
        assert_eq!(Document::parse(&written, &media_type).expect("it reads what it writes"), read);
    }
    if let Ok(read) = Manifest::parse(input) {
        assert_eq!(Manifest::parse(&to_canonical(&read)).expect("it reads what it writes"), read);
    }
}

/// A reference.
pub fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(read) = text.parse::<Reference>() else { return };
    assert!(!read.path().split('/').any(|part| part.is_empty() || part == ".." || part == "."), "{read}");
    let written = read.to_string();
    assert_eq!(written.parse::<Reference>().expect("it reads what it writes").to_string(), written);
}

/// A digest.
pub fn digest(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(read) = text.parse::<Digest>() {
        assert_eq!(read.to_string(), text);
    }
    if let Some(read) = Digest::from_hex(text) {
        assert_eq!(read.hex(), text);
    }
}

/// `WWW-Authenticate`.
pub fn www_authenticate(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else { return };
    let Some((realm, scopes)) = headers::challenge(&value) else { return };
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let written = format!(r#"Bearer realm="{}",scope="{}""#, quoted(&realm), quoted(&scopes.join(" ")));
    let again = headers::challenge(&HeaderValue::from_str(&written).expect("characters of a header"));
    assert_eq!(again, Some((realm, scopes)));
}

/// `Link`.
pub fn link(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some(target) = headers::next_page(text) else { return };
    assert_eq!(headers::next_page(&format!("<{target}>; rel=\"next\"")), Some(target));
}

/// `Content-Range`, of a reply and of a chunk. The first bytes are what was asked for.
pub fn content_range(input: &[u8]) {
    let Some((numbers, text)) = input.split_at_checked(3) else { return };
    let [start, length, beyond] = [0, 1, 2].map(|at| u64::from(numbers[at]));
    let (end, size) = (start + length + 1, start + length + 1 + beyond);
    if let Ok(value) = HeaderValue::from_bytes(text)
        && headers::is_exactly(&value, &(start..end), size)
    {
        let range = format!("bytes {start}-{}/", end - 1);
        let total = value.to_str().expect("digits").strip_prefix(&range).expect("the range that was asked for");
        assert!(total == "*" || total.trim_start_matches('0') == size.to_string(), "{total}");
    }
    if let Ok(text) = std::str::from_utf8(text)
        && let Some((first, length)) = chunk_range(text)
    {
        assert!(length > 0);
        assert_eq!(chunk_range(&format!("{first}-{}", first + (length - 1))), Some((first, length)));
    }
}

/// `kiln.lock`.
pub fn lock(input: &[u8]) {
    let Ok(read) = Lock::parse(input) else { return };
    assert_eq!(Lock::parse(&read.to_bytes()).expect("it reads what it writes"), read);
}

/// A recipe, which nobody writes but people.
pub fn recipe(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(read) = Recipe::parse("fuzz", text) {
        assert_eq!(Recipe::parse("fuzz", text).expect("as before"), read);
    }
}
