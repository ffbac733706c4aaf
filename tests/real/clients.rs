//! `oras` 1.2.0 and `modelpack-client` 0.1.0, two clients that lay files out by the names in a manifest: they get
//! the directory of what kiln pushed, and kiln that of what they pushed.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use registry_fixtures::real::find;

use crate::place::{Place, Run};
use crate::registry::Registry;

/// Runs `program` with these words in `folder`.
fn run(place: &Place, folder: &str, program: &str, words: &str) -> Run {
    let path = find(program, program).unwrap_or_else(|problem| panic!("{problem}; `.ci/run` installs it"));
    let mut command = Command::new(path);
    command
        .args(words.split_whitespace())
        .current_dir(place.path(folder))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", place.path("home"))
        .stdin(Stdio::null());
    place.run(command)
}

fn files(place: &Place, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(place.path(folder)).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn place() -> Place {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    fs::write(place.path("checkpoint/README.md"), "# A model").unwrap();
    place
}

#[test]
fn other_clients_get_the_directory_of_what_kiln_pushed() {
    let (place, registry) = (place(), Registry::plain());
    for (profile, options) in [("hf", ""), ("mlx", "--quantize int4")] {
        let reference = format!("{}/team/demo:{profile}", registry.host());
        place.kiln(&format!("create demo:{profile} checkpoint --profile {profile} {options}")).expect(0);
        place.kiln(&format!("push demo:{profile} {reference} --plain-http")).expect(0);
        place.kiln(&format!("checkout demo:{profile} {profile}-kiln")).expect(0);
        run(&place, "", "oras", &format!("pull --plain-http {reference} -o {profile}-oras")).expect(0);
        run(&place, "", "modelpack", &format!("--insecure pull {reference} {profile}-modelpack")).expect(0);
        let mut expected = files(&place, &format!("{profile}-kiln"));
        for client in ["oras", "modelpack"] {
            let mut pulled = files(&place, &format!("{profile}-{client}"));
            // A checkout of profile `hf` is the source itself, without the lock.
            let lock = pulled.remove("kiln.lock");
            assert!(lock.is_some() && lock == expected.remove("kiln.lock").or_else(|| lock.clone()), "{client}");
            assert!(pulled == expected, "{profile}, {client}: {:?} {:?}", pulled.keys(), expected.keys());
            expected.insert("kiln.lock".to_owned(), lock.unwrap());
        }
    }
    assert!(files(&place, "hf-kiln") == files(&place, "checkpoint"));
}

#[test]
fn kiln_gets_the_directory_of_what_other_clients_pushed() {
    let (place, registry) = (place(), Registry::plain());
    let expected = files(&place, "checkpoint");
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();

    let reference = format!("{}/team/pushed:oras", registry.host());
    run(&place, "checkpoint", "oras", &format!("push --plain-http {reference} {}", names.join(" "))).expect(0);

    let pushed = format!("{}/team/pushed:modelpack", registry.host());
    let config = r#"{"config":{},"descriptor":{"name":"demo"},"modelfs":{"diffIds":["sha256:0000000000000000000000000000000000000000000000000000000000000000"],"type":"layers"}}"#;
    fs::write(place.path("config.json"), config).unwrap();
    let layers: Vec<String> = names
        .iter()
        .map(|name| {
            let kind = if name.ends_with(".safetensors") { "weight" } else { "weight.config" };
            format!("--layer {name}:application/vnd.cncf.model.{kind}.v1.raw")
        })
        .collect();
    let words = format!("--insecure push --config ../config.json {} {pushed}", layers.join(" "));
    run(&place, "checkpoint", "modelpack", &words).expect(0);

    for (reference, out) in [(reference, "from-oras"), (pushed, "from-modelpack")] {
        place.kiln(&format!("pull {reference} {out} --plain-http")).expect(0);
        place.kiln(&format!("checkout {out} {out}")).expect(0);
        assert!(files(&place, out) == expected, "{out}");
    }
}
