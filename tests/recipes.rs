//! Recipes: what kiln's own choose is what `mlx-lm` chooses, what a user writes is obeyed or refused with
//! its line, and a model can be made again without the recipe.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::manifest::Dialect;
use kiln::oci::{Digest, Reference};
use kiln::ops::create::{Options, create, preview};
use kiln::ops::verify::{Level, Options as VerifyOptions, Outcome, verify};
use kiln::plan::{Plan, PlannedTensor, Profile, Recipe, Request};
use kiln::quant::Scheme;
use kiln::store::Store;
use kiln::{Error, ErrorKind, Progress};
use tempfile::TempDir;

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

fn built_in(name: &str) -> Recipe {
    Recipe::built_in(name).unwrap().unwrap()
}

fn written(text: &str) -> Recipe {
    Recipe::parse("my.toml", text).unwrap()
}

fn request(recipe: Recipe, scheme: Option<Scheme>) -> Request {
    Request::new(Profile::Ollama, scheme, Some(recipe)).unwrap()
}

fn plan(source: &str, recipe: Recipe, scheme: Option<Scheme>) -> kiln::Result<Plan> {
    preview(&checkpoint(source).into(), request(recipe, scheme), 1, &Progress::silent()).map(|preview| preview.plan)
}

fn tensors(plan: &Plan) -> BTreeMap<&str, &PlannedTensor> {
    plan.blobs.iter().flat_map(|blob| &blob.tensors).map(|tensor| (&*tensor.name, tensor)).collect()
}

const BY_HAND: &str = r#"
scheme = "int4"

[[rule]]
match = "*.mlp.gate.weight"
scheme = "keep"

[[rule]]
regex = 'self_attn\.[qkvo]_proj'
layers = "0"
scheme = "keep"

[[rule]]
match = "*down_proj*"
scheme = "affine6-g32"

[[rule]]
match = ["*embed_tokens*", "lm_head.*"]
scheme = "int8"
"#;

/// `tests/oracle/mlx_recipes.py` made the table with mlx-lm.
#[test]
fn tensors_get_the_schemes_that_mlx_lm_gives_them() {
    let table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/mlx-recipes.txt")).unwrap();
    let mut conversions: BTreeMap<(&str, &str), BTreeMap<String, Scheme>> = BTreeMap::new();
    for line in table.lines() {
        let [source, recipe, module, scheme] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let conversion = conversions.entry((source, recipe)).or_default();
        conversion.insert(format!("{module}.weight"), scheme.parse().unwrap());
    }
    assert_eq!(conversions.len(), 26);
    for ((source, name), expected) in conversions {
        let (recipe, scheme) = match name {
            "by-hand" => (written(BY_HAND), None),
            "mlx-default" => (built_in(name), Some(Scheme::INT4)),
            mixed => (built_in(mixed), None),
        };
        let plan = plan(source, recipe, scheme).unwrap();
        let chosen = tensors(&plan).into_iter().filter_map(|(name, tensor)| Some((name.to_owned(), tensor.scheme?)));
        assert_eq!(chosen.collect::<BTreeMap<_, _>>(), expected, "{source} {name}");
    }
}

#[test]
fn the_first_rule_that_applies_decides_and_says_so() {
    let text = r#"
extends = "ollama"

[[rule]]
match = "model.layers.*.self_attn.?_proj.weight"
layers = "1-, last 1"
scheme = "nvfp4"

[[rule]]
regex = 'q_proj|norm'
scheme = "keep"
"#;
    let plan = plan("llama-untied-bf16", written(text), Some(Scheme::INT4)).unwrap();
    let tensors = tensors(&plan);
    let chosen = |name| (tensors[name].scheme, &*tensors[name].why);
    let attention = "`my.toml` line 4: `model.layers.*.self_attn.?_proj.weight` in layers `1-, last 1`";
    assert_eq!(chosen("model.layers.1.self_attn.q_proj.weight"), (Some(Scheme::Nvfp4), attention));
    assert_eq!(chosen("model.layers.0.self_attn.q_proj.weight"), (None, "`my.toml` line 9: `q_proj|norm`"));
    assert_eq!(chosen("model.layers.0.self_attn.k_proj.weight").1, "sensitive projection: 8 bits");
    assert_eq!(chosen("model.layers.0.input_layernorm.weight"), (None, "not a weight matrix"));
}

#[test]
fn experts_are_asked_about_once_under_their_stacked_source_name() {
    let text = "[[rule]]\nmatch = 'model.layers.*.mlp.experts.down_proj.weight'\nscheme = 'int8'\n";
    for source in ["qwen3-moe-bf16", "qwen3-moe-stacked-bf16"] {
        let plan = plan(source, written(text), None).unwrap();
        let chosen = tensors(&plan).into_iter().filter(|(_, tensor)| tensor.scheme.is_some()).map(|(name, _)| name);
        let expected = [0, 1].map(|layer| format!("model.layers.{layer}.mlp.switch_mlp.down_proj.weight"));
        assert_eq!(chosen.collect::<Vec<_>>(), expected, "{source}");
    }
}

#[test]
fn a_rule_that_cannot_hold_is_an_error_unless_it_says_what_else() {
    // Rows of 64 elements, and groups of 128.
    let rule = |otherwise: &str| {
        let first = "[[rule]]\nmatch = '*.q_proj.weight'\nscheme = 'affine4-g128'\n";
        format!("{first}{otherwise}\n[[rule]]\nmatch = '*.?_proj.weight'\nscheme = 'int8'\n")
    };
    let source = "qwen3-moe-12e-bf16";
    let error = plan(source, written(&rule("")), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert_eq!(
        error.chain(),
        "The rows of `model.layers.0.self_attn.q_proj.weight` have 64 elements, which do not divide into the groups \
         of `affine4-g128`: The rule is `my.toml` line 1: `*.q_proj.weight`"
    );
    for (otherwise, expected) in [("else = 'keep'", None), ("else = 'next'", Some(Scheme::INT8))] {
        let plan = plan(source, written(&rule(otherwise)), None).unwrap();
        assert_eq!(tensors(&plan)["model.layers.0.self_attn.q_proj.weight"].scheme, expected, "{otherwise}");
    }
    let error = plan(source, written("scheme = 'affine4-g128'"), None).unwrap_err();
    assert!(error.chain().ends_with("The rule is the default of `my.toml`"), "{}", error.chain());
    let plan = plan(source, written("scheme = 'affine4-g128'\nelse = 'keep'"), None).unwrap();
    assert!(tensors(&plan).values().all(|tensor| tensor.scheme.is_none()));
}

#[test]
fn a_rule_that_decides_nothing_is_noted() {
    let text = "scheme = 'int4'\n[[rule]]\nmatch = '*.no_proj.*'\nscheme = 'int8'\n";
    let plan = plan("llama-untied-bf16", written(text), None).unwrap();
    assert_eq!(plan.notes, ["Nothing is decided by `my.toml` line 2: `*.no_proj.*`"]);
}

#[test]
fn what_is_no_recipe_is_refused_with_its_line() {
    for (text, line, sentence) in [
        ("scheme = 'int5'", 1, "There is no quantization scheme `int5`"),
        ("\nschema = 'int4'", 2, "unknown field `schema`"),
        ("scheme = 'int4'\nscheme = 'int8'", 2, "duplicate key"),
        ("\n\n[[rule]]\nmatch = '*'\nscheme = 'int4'\nlayer = '0'", 6, "unknown field `layer`"),
        ("[[rule]]\nmatch = '*'", 1, "missing field `scheme`"),
        ("[[rule]]\nscheme = 'int4'", 1, "A rule needs `match`, `regex` or `layers`"),
        ("[[rule]]\nmatch = []\nscheme = 'int4'", 2, "An empty list matches nothing"),
        ("[[rule]]\nmatch = 3\nscheme = 'int4'", 2, "expected a string or a list of strings"),
        ("[[rule]]\nmatch = '*'\nregex = '.'\nscheme = 'int4'", 3, "A rule has `match` or `regex`, not both"),
        ("[[rule]]\nregex = '('\nscheme = 'int4'", 2, "`(` is no regular expression"),
        ("[[rule]]\nlayers = '3-1'\nscheme = 'int4'", 2, "`3-1` names no layers"),
        ("[[rule]]\nmatch = '*'\nscheme = 'int4'\nelse = 'skip'", 4, "`else` is `keep` or `next`, not `skip`"),
        ("[[rule]]\nmatch = '*'\nscheme = 'keep'\nelse = 'next'", 4, "A rule that keeps values can always hold"),
        (
            "[[rule]]\nmatch = 'a'\nscheme = 'int4'\n[[rule]]\nmatch = 'a'\nscheme = 'int8'",
            4,
            "Never reached: it asks what `my.toml` line 1: `a` asks",
        ),
        ("scheme = 'int4'\nelse = 'next'", 2, "There is no rule after the default: use `keep`"),
        ("extends = 'mine'", 1, "There is no recipe `mine` in kiln, only `ollama`, `mlx-default`"),
        ("extends = 'mixed-3-6'\nscheme = 'int4'", 2, "`mixed-3-6` has the default `affine3-g64` already"),
        ("extends = 'mixed-3-6'\nelse = 'keep'", 2, "`mixed-3-6` says already what becomes of the rest"),
        ("scheme = ", 1, ""),
    ] {
        let error = Recipe::parse("my.toml", text).unwrap_err();
        let expected = format!("Line {line} of the recipe `my.toml` is wrong: {sentence}");
        assert_eq!(error.kind(), ErrorKind::Input, "{text}");
        assert!(error.chain().starts_with(&expected), "{text}\n{}", error.chain());
    }
}

#[test]
fn a_scheme_is_asked_for_once() {
    let ask =
        |recipe, scheme| Request::new(Profile::Ollama, scheme, Some(recipe)).map_err(|error: Error| error.chain());
    let int4 = Some(Scheme::INT4);
    let twice = ask(built_in("mixed-3-6"), int4).unwrap_err();
    assert_eq!(twice, "The recipe `mixed-3-6` has a scheme already, `affine3-g64`");
    for recipe in [built_in("ollama"), built_in("mlx-default"), written("extends = 'ollama'"), written("")] {
        let never = ask(recipe, None).unwrap_err();
        assert!(never.ends_with("quantizes nothing without a scheme"), "{never}");
    }
    assert_eq!(ask(built_in("ollama"), int4).unwrap(), Request { scheme: int4, ..Request::default() });
}

#[test]
fn a_cadence_needs_a_number_of_layers() {
    let place = TempDir::new().unwrap();
    for entry in fs::read_dir(checkpoint("llama-untied-bf16")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
    }
    let config = fs::read_to_string(place.path().join("config.json")).unwrap();
    fs::write(place.path().join("config.json"), config.replace("num_hidden_layers", "layers")).unwrap();
    let error = preview(&place.path().to_owned().into(), request(built_in("mixed-4-6"), None), 1, &Progress::silent())
        .unwrap_err();
    assert!(error.to_string().contains("counts layers, but the config does not say how many there are"), "{error}");
}

fn make(store: &Store, source: &Path, request: Request) -> Digest {
    let name: Reference = "model:recipe".parse().unwrap();
    let options = Options { name, source: source.to_owned().into(), request, dialect: Dialect::Ollama, threads: 2 };
    create(store, &options, &Progress::silent()).unwrap().digest
}

#[test]
fn a_model_is_made_again_without_its_recipe() {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let source = checkpoint("qwen3-moe-bf16");
    for recipe in [built_in("mixed-4-6"), written(BY_HAND), written("[[rule]]\nlayers = '1'\nscheme = 'nvfp4'\n")] {
        make(&store, &source, request(recipe, None));
        let options = VerifyOptions::new("model:recipe".parse().unwrap(), Level::Rebuild);
        let options = VerifyOptions { threads: 2, ..options };
        let verified = verify(&store, &options, &Progress::silent()).unwrap();
        assert_eq!(
            (verified.outcome(), verified.not_checked),
            (Outcome::Ok, vec![Level::Trust]),
            "{:?}",
            verified.findings
        );
    }
}

#[test]
fn only_what_a_recipe_resolves_to_is_content() {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let source = checkpoint("llama-8l-bf16");
    let made = make(&store, &source, request(built_in("mixed-3-6"), None));
    let text = Recipe::text("mixed-3-6").unwrap();
    assert_eq!(make(&store, &source, request(written(&text), None)), made);
    let longhand = text.replace("layers = \"sensitive\"", "layers = \"0,3,6,7\"");
    assert_ne!(longhand, text);
    assert_eq!(make(&store, &source, request(written(&longhand), None)), made);
}
