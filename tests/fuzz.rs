//! The bodies of the fuzz targets, over inputs that are made here: seeds that are right, and mutations of them, the same
//! every time. `KILN_FUZZ_INPUTS` says how many for each target; `fuzz/` has the targets for a real fuzzer.

#![allow(clippy::unwrap_used)] // in functions that tests share

#[allow(unreachable_pub, reason = "the fuzz targets have it too")]
#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use bodies::{STRICTER, TARGETS, stricter};
use kiln::manifest::Dialect;
use kiln::ops::create::{Options, create};
use kiln::plan::{Recipe, Request};
use kiln::source::safetensors::parse_header;
use kiln::store::Store;
use kiln::{Progress, quant::Scheme};
use safetensors::SafeTensors;

/// How many mutations of each target's seeds.
const INPUTS: usize = 3_000;

/// Pieces that the grammars have in them.
const WORDS: [&str; 40] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\\u0061",
    "\\u0000",
    "null",
    "true",
    "-0",
    "1e309",
    "18446744073709551615",
    "9223372036854775808",
    "\"__metadata__\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"F32\"",
    "\"F4\"",
    "NaN",
    "-Infinity",
    "../",
    "/",
    "@sha256:",
    "sha256:",
    "sha512:",
    "localhost:5000/",
    "bytes 0-",
    "-",
    "/*",
    "<",
    ">;",
    "rel=\"next\"",
    "Bearer realm=\"",
    "scope=\"",
    "\u{feff}",
    "\u{202e}",
    "[[rule]]\n",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the test checkpoints whose names end so.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join("tests/checkpoints")];
    while let Some(directory) = open.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A lock and a manifest that kiln made.
fn made() -> (Vec<u8>, Vec<u8>) {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let options = Options {
        name: "model:a".parse().unwrap(),
        source: root().join("tests/checkpoints/llama-tied-bf16").into(),
        request: Request { scheme: Some(Scheme::INT4), ..Request::default() },
        dialect: Dialect::Ollama,
        threads: 1,
    };
    create(&store, &options, &Progress::silent()).unwrap();
    let shown = kiln::ops::inspect::show(&store, &options.name).unwrap();
    let lock = shown.layers.iter().find(|layer| layer.name == "kiln.lock").unwrap();
    let (_, manifest) = kiln::ops::inspect::find(&store, &options.name).unwrap();
    (store.read_blob(&lock.descriptor).unwrap(), kiln::json::to_canonical(&manifest))
}

/// Inputs that are right, or nearly, and short enough to be changed where it matters.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let short = |paths: Vec<PathBuf>| {
        let bytes = paths.into_iter().filter(|path| path.is_file()).map(|path| fs::read(path).unwrap());
        bytes.filter(|bytes| bytes.len() < 8192).collect::<Vec<_>>()
    };
    match target {
        "header" => {
            let file = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[1, 2, 3, 4]].concat();
            let mut seeds = short(files(".safetensors"));
            seeds.extend(
                STRICTER.iter().map(|(_, text)| stricter(text)).filter(|text| text.len() < 500).map(|text| file(&text)),
            );
            seeds.push(file(r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"BF16","shape":[],"data_offsets":[2,4]}}"#));
            seeds
        }
        "index" => {
            let mut seeds = short(files("index.json"));
            seeds.extend(texts(&[
                r#"{"metadata":{"total_size":4.0},"weight_map":{"a":"m.safetensors","b":"n.safetensors"}}"#,
            ]));
            seeds
        }
        "config" => short(files("config.json")),
        "manifest" => {
            let index = format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":7,"annotations":{{"a":"b"}}}}]}}"#
            );
            vec![made().1, index.into_bytes()]
        }
        "reference" => texts(&[
            "a",
            "team/model:int4",
            "registry.example:5000/a/b_c.d:T-1",
            &format!("localhost/a:b@{digest}"),
            "ollama.com/library/llama3.2:1b",
            "[::1]:5000/a",
        ]),
        "digest" => texts(&[digest, &digest[7..], &format!("sha512:{}", "0a".repeat(64)), "md5:00"]),
        "www_authenticate" => texts(&[
            r#"Bearer realm="https://t.example/a,b",service="reg",scope="repository:a/b:pull,push registry:catalog:*""#,
            r#"Basic realm="x", bearer realm=abc, service=reg, scope="a:b:c""#,
            r#"Digest realm="a\"b", Bearer realm="c\\d\"e",error="insufficient_scope""#,
            "Negotiate dG9rZW4=",
        ]),
        "link" => texts(&[
            r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
            r#"</first>; rel=first; title="a, <b>", </p>; title=c; rel="prev next""#,
            "<https://r.example/p>;REL=next",
        ]),
        "content_range" => texts(&[
            "\0\x04\x05bytes 0-4/10",
            "\x02\0\0bytes 2-2/*",
            "\0\0\x00100-199",
            "\0\0\x000-18446744073709551615",
        ]),
        "lock" => vec![made().0],
        "recipe" => ["mlx-default", "mixed-3-6"].iter().map(|name| Recipe::text(name).unwrap().into_bytes()).collect(),
        other => panic!("no seeds for {other}"),
    }
}

/// Numbers that are the same every time: xorshift64*.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }

    /// A seed that was changed in one to four places.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + self.below(16)).min(input.len());
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 => drop(input.drain(at..end)),
                2 => input.insert(at, self.below(256) as u8),
                3 => {
                    let word = WORDS[self.below(WORDS.len())];
                    input.splice(at..end, word.bytes());
                }
                4 => {
                    let again = input[at..end].to_vec();
                    input.splice(at..at, again);
                }
                5 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let to = (from + self.below(64)).min(other.len());
                    input.splice(at..end, other[from..to].iter().copied());
                }
                _ => input.truncate(at),
            }
        }
        // A header's length goes with it, half the time.
        if input.len() > 12 && self.below(2) == 0 && input[1..8] == [0; 7] {
            input[0] = (input.len() - 12).min(255) as u8;
        }
        input
    }
}

#[test]
fn every_body_holds_for_seeds_and_their_mutations() {
    let inputs = std::env::var("KILN_FUZZ_INPUTS").ok().map_or(INPUTS, |count| count.parse().unwrap());
    for (target, body) in TARGETS {
        let seeds = seeds(target);
        assert!(seeds.len() + usize::from(target == "lock") >= 2, "{target}");
        let started = std::time::Instant::now();
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let mutations = (0..inputs).map(|_| numbers.mutate(&seeds));
        for input in seeds.iter().cloned().chain(mutations) {
            if let Err(panic) = catch_unwind(|| body(&input)) {
                eprintln!("{target}: {:?}", String::from_utf8_lossy(&input));
                std::panic::resume_unwind(panic);
            }
        }
        println!("{target}: {} inputs in {:?}", inputs + seeds.len(), started.elapsed());
    }
}

#[test]
fn where_kiln_is_stricter_than_the_reference_library() {
    for (words, text) in STRICTER {
        let text = stricter(text);
        let file = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0; 4]].concat();
        let refusal = parse_header(&file, file.len() as u64).unwrap_err().chain();
        assert!(refusal.contains(words), "{words}: {refusal}");
        let theirs = SafeTensors::deserialize(&file);
        assert!(theirs.is_ok(), "{words}: {:?}", theirs.err());
    }
}

#[test]
fn every_target_is_one_of_the_fuzzers_too() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for (target, _) in TARGETS {
        let file = fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{target}.rs"))).unwrap();
        assert!(file.contains(&format!("bodies::{target}(input)")), "{target}");
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
    }
}

/// `KILN_FUZZ_SEEDS=fuzz/corpus cargo test --test fuzz` writes the seeds where the fuzzer finds them.
#[test]
fn the_seeds_can_be_written_for_a_fuzzer() {
    let place = tempfile::tempdir().unwrap();
    let corpus = std::env::var_os("KILN_FUZZ_SEEDS").map_or(place.path().to_owned(), PathBuf::from);
    for (target, _) in TARGETS {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds(target).iter().enumerate() {
            fs::write(directory.join(format!("seed-{number:03}")), seed).unwrap();
        }
        assert!(fs::read_dir(directory).unwrap().count() >= 1, "{target}");
    }
}
