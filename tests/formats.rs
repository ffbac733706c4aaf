//! `docs/formats.md` shows real bytes: every block between `<!-- made by tests/formats.rs: NAME -->` and
//! `<!-- end -->` is what this makes from `tests/checkpoints/qwen3-moe-12e-bf16`, or from kiln's own tables.
//! `KILN_BLESS=1 cargo test --test formats` writes the blocks anew.

#![allow(clippy::unwrap_used)] // in functions that the test uses

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kiln::Progress;
use kiln::arch::FAMILIES;
use kiln::manifest::{Dialect, layer_name};
use kiln::oci::{Descriptor, Manifest, Reference};
use kiln::ops::create::{Options, create};
use kiln::plan::{Profile, Recipe, Request};
use kiln::quant::{Float, Scheme};
use kiln::store::Store;
use serde_json::{Value, json};

const CHECKPOINT: &str = "tests/checkpoints/qwen3-moe-12e-bf16";
const EXPERTS: &str = "model.layers.0.mlp.switch_mlp";
const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";

/// A model made from the checkpoint with `int4`.
struct Made<'a> {
    store: &'a Store,
    target: Descriptor,
    manifest: Manifest,
    bytes: Vec<u8>,
}

impl<'a> Made<'a> {
    fn new(store: &'a Store, name: &str, dialect: Dialect) -> Self {
        Self::asked(store, name, dialect, Request { scheme: Some(Scheme::INT4), ..Request::default() })
    }

    fn asked(store: &'a Store, name: &str, dialect: Dialect, request: Request) -> Self {
        let name: Reference = name.parse().unwrap();
        let options =
            Options { name: name.clone(), source: root().join(CHECKPOINT).into(), request, dialect, threads: 2 };
        create(store, &options, &Progress::silent()).unwrap();
        let target = store.find(&name).unwrap().unwrap();
        let (manifest, bytes) = store.manifest(&target).unwrap();
        Self { store, target, manifest, bytes }
    }

    fn blob(&self, name: &str) -> Vec<u8> {
        let layer = self.manifest.layers.iter().find(|layer| layer_name(layer) == name);
        self.store.read_blob(layer.unwrap_or_else(|| panic!("no layer `{name}`"))).unwrap()
    }

    /// The manifest with the first layer of each kind that is shown and the last.
    fn shown(&self) -> String {
        let mut value: Value = serde_json::from_slice(&self.bytes).unwrap();
        let shown = [QUERY, EXPERTS, "model-00001-of-00005", "config.json", "LICENSE", "kiln.lock"];
        let layers = self.manifest.layers.iter().zip(value["layers"].take().as_array().unwrap().clone());
        let layers = layers.filter(|(layer, _)| shown.contains(&&*layer_name(layer))).map(|(_, value)| value);
        value["layers"] = layers.collect();
        pretty(&in_written_order(value))
    }
}

/// The keys of manifests and descriptors in the order in which they are written.
fn in_written_order(value: Value) -> Vec<(String, Value)> {
    let order = ["schemaVersion", "mediaType", "artifactType", "config", "layers"];
    let Value::Object(mut object) = value else { panic!("not an object") };
    order.iter().filter_map(|key| object.remove(*key).map(|value| ((*key).to_owned(), value))).collect()
}

/// One line per key, one line per layer.
fn pretty(entries: &[(String, Value)]) -> String {
    let mut out = "{".to_owned();
    for (index, (key, value)) in entries.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(out, "{comma}\n  \"{key}\": ").unwrap();
        match value {
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| format!("\n    {}", descriptor(item))).collect();
                write!(out, "[{}\n  ]", items.join(",")).unwrap();
            }
            Value::Object(_) => out.push_str(&descriptor(value)),
            scalar => write!(out, "{scalar}").unwrap(),
        }
    }
    out + "\n}"
}

/// A descriptor, its keys in the order in which they are written.
fn descriptor(value: &Value) -> String {
    let keys = ["mediaType", "digest", "size", "name", "annotations"];
    let fields = keys.iter().filter(|key| !value[**key].is_null()).map(|key| format!("\"{key}\": {}", value[*key]));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fenced(language: &str, text: &str) -> String {
    format!("```{language}\n{}\n```", text.trim_end_matches(['\n', ' ']))
}

/// The JSON of a blob's header, without its padding.
fn header(blob: &[u8]) -> (&str, usize) {
    let length = u64::from_le_bytes(blob[..8].try_into().unwrap()) as usize;
    (std::str::from_utf8(&blob[8..8 + length]).unwrap().trim_end_matches(' '), 8 + length)
}

/// `hexdump -C` of `range`.
fn hexdump(bytes: &[u8], range: std::ops::Range<usize>) -> String {
    let mut out = String::new();
    for at in range.step_by(16) {
        let row = &bytes[at..at + 16];
        let hex = |half: &[u8]| half.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let text = row.iter().map(|&byte| if (32..127).contains(&byte) { char::from(byte) } else { '.' });
        let text: String = text.collect();
        writeln!(out, "{at:08x}  {}  {}  |{text}|", hex(&row[..8]), hex(&row[8..])).unwrap();
    }
    out
}

/// One array to a line, as the compact header has them.
fn by_array(header: &str) -> String {
    header.replace("},\"", "},\n\"")
}

/// The lock with one copied and one stacked tensor, of whose twelve sources the first two.
fn lock(bytes: &[u8]) -> String {
    let mut lock: Value = serde_json::from_slice(bytes).unwrap();
    let tensors = lock["tensors"].as_array_mut().unwrap();
    let shown = ["model.layers.0.input_layernorm.weight", &format!("{EXPERTS}.down_proj.weight")];
    tensors.retain(|tensor| shown.contains(&tensor["name"].as_str().unwrap()));
    assert_eq!(tensors.len(), 2);
    assert_eq!(tensors[1]["sources"].as_array().unwrap().len(), 12);
    tensors.iter_mut().for_each(|tensor| tensor["sources"].as_array_mut().unwrap().truncate(2));
    serde_json::to_string_pretty(&lock).unwrap()
}

fn families() -> String {
    let mut out =
        "| family | experts on disk | blob of a layer | `requires` | classes |\n|---|---|---|---|---|\n".to_owned();
    for family in kiln::ops::families::families() {
        let code = |text: &str| format!("`{text}`");
        let dash = || "–".to_owned();
        let (tensors, blob) =
            family.experts.map_or((dash(), dash()), |experts| (code(&experts.tensors), code(&experts.blob)));
        let classes: Vec<String> = family.classes.iter().map(|class| code(class)).collect();
        let classes = if classes.is_empty() { "every other".to_owned() } else { classes.join(", ") };
        let requires = family.requires.unwrap_or("–");
        let name = if family.draft { format!("{}, a draft", family.name) } else { family.name.to_owned() };
        writeln!(out, "| {name} | {tensors} | {blob} | {requires} | {classes} |").unwrap();
    }
    out
}

fn mlx_models() -> String {
    let mut out = "| family | `model_type` | decoder | 8 bits | type kept |\n|---|---|---|---|---|\n".to_owned();
    let code = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|text| format!("`{text}`")).collect();
        if texts.is_empty() { "–".to_owned() } else { texts.join(", ") }
    };
    for (family, model) in FAMILIES.iter().flat_map(|family| family.mlx.iter().map(|model| (family.name, model))) {
        let [types, eight, kept] = [model.model_types, model.eight_bits, model.keep_type].map(code);
        writeln!(out, "| {family} | {types} | `{}` | {eight} | {kept} |", model.base).unwrap();
    }
    out
}

fn schemes() -> String {
    let mut out =
        "| scheme | mode | group | bits | a row of 256 bf16 values becomes |\n|---|---|---|---|---|\n".to_owned();
    for scheme in Scheme::all() {
        let bytes = [scheme.packed_len(256), scheme.scales_len(256, Float::Bf16), scheme.biases_len(256, Float::Bf16)];
        let biases = if scheme.has_biases() { format!(", {} of biases", bytes[2]) } else { String::new() };
        let (mode, group, bits) = (scheme.mode(), scheme.group_size(), scheme.bits());
        let sizes = format!("{} bytes of codes, {} of scales{biases}", bytes[0], bytes[1]);
        writeln!(out, "| `{scheme}` | {mode} | {group} | {bits} | {sizes} |").unwrap();
    }
    out
}

/// Every block, by name.
fn blocks() -> BTreeMap<&'static str, String> {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let ollama = Made::new(&store, "qwen3-moe:int4", Dialect::Ollama);
    let modelpack = Made::new(&store, "qwen3-moe:int4-modelpack", Dialect::ModelPack);
    // In a store of its own, so that the index has two models.
    let other = Store::open(&place.path().join("other")).unwrap();
    let files = Request { profile: Profile::Hf, ..Request::default() };
    let docker = Made::asked(&other, "qwen3-moe:docker", Dialect::Docker, files);
    let (query, experts) = (ollama.blob(QUERY), ollama.blob(EXPERTS));
    let (json, start) = header(&query);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let dump = format!(
        "{}*\n{}",
        hexdump(&query, 0..48),
        hexdump(&query, (start - 1) / 16 * 16 - 16..start.next_multiple_of(16))
    );
    let order: Vec<String> = ollama.manifest.layers.iter().map(layer_name).collect();
    let index = fs::read(store.root().join("index.json")).unwrap();
    let note = json!({ "kiln": env!("CARGO_PKG_VERSION"), "source": "/models/qwen3-moe" });
    assert_eq!(ollama.target.digest, kiln::oci::Digest::of(&ollama.bytes));
    BTreeMap::from([
        ("header", fenced("json", &by_array(json))),
        ("hexdump", fenced("text", &dump)),
        ("mixed header", fenced("json", &by_array(header(&experts).0))),
        ("families", families()),
        ("mlx", mlx_models()),
        ("recipe", fenced("toml", &Recipe::text("mixed-3-6").unwrap())),
        ("schemes", schemes()),
        ("order", fenced("text", &order.join("\n"))),
        ("config", fenced("json", &text(&ollama.store.read_blob(&ollama.manifest.config).unwrap()))),
        ("modelpack config", {
            let config = store.read_blob(&modelpack.manifest.config).unwrap();
            let mut config: Value = serde_json::from_slice(&config).unwrap();
            config["modelfs"]["diffIds"].as_array_mut().unwrap().truncate(1);
            fenced("json", &config.to_string())
        }),
        ("docker config", {
            let config = other.read_blob(&docker.manifest.config).unwrap();
            let mut config: Value = serde_json::from_slice(&config).unwrap();
            config["rootfs"]["diff_ids"].as_array_mut().unwrap().truncate(1);
            fenced("json", &config.to_string())
        }),
        ("docker manifest", fenced("json", &docker.shown())),
        ("manifest", fenced("json", &ollama.shown())),
        ("modelpack manifest", fenced("json", &modelpack.shown())),
        ("lock", fenced("json", &lock(&ollama.blob("kiln.lock")))),
        ("format", fenced("json", &text(&fs::read(store.root().join("kiln.json")).unwrap()))),
        (
            "index",
            fenced(
                "json",
                &text(&index).replace("{\"mediaType\":\"application/vnd.", "\n{\"mediaType\":\"application/vnd."),
            ),
        ),
        ("note", fenced("json", &note.to_string())),
    ])
}

#[test]
fn the_document_shows_what_kiln_makes() {
    const START: &str = "<!-- made by tests/formats.rs: ";
    const END: &str = "<!-- end -->";
    let path = root().join("docs/formats.md");
    let document = fs::read_to_string(&path).unwrap();
    let mut blocks = blocks();
    let mut current = String::new();
    let mut rest = document.as_str();
    while let Some((before, after)) = rest.split_once(START) {
        let (name, after) = after.split_once(" -->\n").unwrap();
        let (_, after) = after.split_once(END).unwrap_or_else(|| panic!("the block `{name}` has no end"));
        let block = blocks.remove(name).unwrap_or_else(|| panic!("there is no block `{name}`, or it is there twice"));
        write!(current, "{before}{START}{name} -->\n{}\n{END}", block.trim_end()).unwrap();
        rest = after;
    }
    current.push_str(rest);
    assert!(blocks.is_empty(), "not in the document: {:?}", blocks.keys());
    if std::env::var_os("KILN_BLESS").is_some() {
        fs::write(&path, &current).unwrap();
    }
    for (line, (written, made)) in (1..).zip(fs::read_to_string(&path).unwrap().lines().zip(current.lines())) {
        assert_eq!(written, made, "docs/formats.md, line {line}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), current);
}
