use std::fs;

use insta::assert_snapshot;
use registry_fixtures::{Auth, Fault, Fixture, Ollama, OllamaOptions, Options, Trigger};

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("push"), @r"
    Push a model to a registry

    Usage: kiln push [OPTIONS] <NAME> [REFERENCE]

    Arguments:
      <NAME>       The model's name in the store
      [REFERENCE]  Where it goes, as in `registry.example/team/llama:int4` [default: NAME]

    Options:
          --dry-run  Print what would be sent, and send nothing
      -h, --help     Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln push llama:int4 registry.example/team/llama:int4
      kiln push registry.example/team/llama:int4 --dry-run
      kiln push llama:int4 127.0.0.1:5000/llama:int4 --plain-http --concurrency 8
    ");
    assert_snapshot!(help("pull"), @r"
    Pull a model from a registry

    Usage: kiln pull [OPTIONS] <REFERENCE> [NAME]

    Arguments:
      <REFERENCE>  Where it is, as in `registry.example/team/llama:int4`
      [NAME]       The model's name in the store [default: REFERENCE]

    Options:
          --dry-run  Print what would be fetched, and fetch nothing
      -h, --help     Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln pull registry.example/team/llama:int4
      kiln pull registry.example/team/llama:int4 llama:int4
      kiln pull registry.example/team/llama:int4 --dry-run
      kiln pull registry.example/team/llama:int4 --ca ./registry.pem --json
    ");
    assert_snapshot!(help("copy"), @r"
    Copy a model from one registry to another

    Usage: kiln copy [OPTIONS] <FROM> <TO>

    Arguments:
      <FROM>  Where it is, as in `registry.example/team/llama:int4`
      <TO>    Where it goes

    Options:
          --dry-run  Print what would be sent, and send nothing
      -h, --help     Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln copy registry.example/team/llama:int4 mirror.example/llama:int4
      kiln copy registry.example/team/llama:next registry.example/team/llama:int4
    ");
}

#[test]
fn what_was_pushed_can_be_pulled_with_the_same_digest() {
    let registry = Fixture::start();
    let remote = format!("{}/team/demo:int4", registry.host());
    let place = Place::with_model();
    assert_snapshot!(place.kiln(&format!("push demo:int4 {remote}")), @r"
    exit: 0
    --- stdout ---
    pushed demo:int4 to 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (sent 22 of 22 layers and config, [SIZE]; 0 already there)
    --- stderr ---
    push: 22 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln(&format!("push demo:int4 {remote}")), @r"
    exit: 0
    --- stdout ---
    pushed demo:int4 to 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (sent 0 of 22 layers and config, [SIZE]; 22 already there)
    --- stderr ---
    push: 22 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln(&format!("pull {remote} here --store other")), @r"
    exit: 0
    --- stdout ---
    pulled 127.0.0.1:[PORT]/team/demo:int4 as here:latest sha256:[DIGEST] (fetched 22 of 22 layers and config, [SIZE]; 0 already here)
    --- stderr ---
    pull: 22 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln(&format!("pull {remote} --store other")), @r"
    exit: 0
    --- stdout ---
    pulled 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (fetched 0 of 22 layers and config, [SIZE]; 22 already here)
    --- stderr ---
    pull: 22 blobs, [SIZE]
    ");
    let names: Vec<_> = place.kiln("list --store other --json").objects();
    assert_eq!(names.iter().map(|model| &model["name"]).collect::<Vec<_>>(), [&remote, "here:latest"]);
    assert_eq!(place.digest("show here --store other"), place.digest("show demo:int4"));
    place.kiln("verify here --store other --source checkpoint").expect(0);
}

#[test]
fn what_the_registry_has_in_another_repository_is_mounted() {
    let registry = Fixture::start();
    let (first, second, third) = ("one/demo", "two/demo", "three/demo");
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {}/{first}", registry.host())).expect(0);
    registry.clear_requests();
    assert_snapshot!(place.kiln(&format!("push demo:int4 {}/{second}", registry.host())), @r"
    exit: 0
    --- stdout ---
    pushed demo:int4 to 127.0.0.1:[PORT]/two/demo:latest sha256:[DIGEST] (sent 0 of 22 layers and config, [SIZE]; 0 already there, 22 mounted)
    --- stderr ---
    push: 22 blobs, [SIZE]
    ");
    place.kiln(&format!("copy {0}/{second} {0}/{third}", registry.host())).expect(0);
    let posts = registry.requests().into_iter().filter(|request| request.method == "POST").count();
    assert_eq!(posts, 2 * 22, "one request for each blob, and no session");
    assert_eq!((registry.blobs(first), registry.blobs(first)), (registry.blobs(second), registry.blobs(third)));
    // A store that never was there knows nothing of it, and another one that pulled does.
    place.kiln(&format!("pull {}/{first} demo:int4 --store other", registry.host())).expect(0);
    let pushed = place.kiln(&format!("push demo:int4 {}/four --store other --json", registry.host()));
    assert_eq!(pushed.expect(0).last_object()["blobs_mounted"], 22);
}

#[test]
fn only_what_differs_is_moved() {
    let registry = Fixture::start();
    let remote = format!("{}/demo", registry.host());
    let place = Place::with_model();
    let first = place.kiln(&format!("push demo:int4 {remote}:int4 --json")).expect(0).last_object();
    assert_eq!(first["event"], "pushed");
    assert_eq!((&first["blobs_sent"], &first["blobs_skipped"]), (&22.into(), &0.into()));
    place.kiln("create demo:int8 checkpoint --quantize int8").expect(0);
    let second = place.kiln(&format!("push demo:int8 {remote}:int8 --json")).expect(0).last_object();
    // What is quantized by 8 bits in both, or in neither, is there already.
    let sent = second["blobs_sent"].as_u64().unwrap();
    assert!(sent > 0 && second["blobs_skipped"].as_u64().unwrap() == 22 - sent, "{second}");
    assert!(second["bytes_sent"].as_u64().unwrap() < first["bytes_sent"].as_u64().unwrap(), "{second}");
    place.kiln(&format!("pull {remote}:int4 --store other")).expect(0);
    let pulled = place.kiln(&format!("pull {remote}:int8 --store other --json")).expect(0).last_object();
    assert_eq!(pulled["event"], "pulled");
    assert_eq!(pulled["blobs_fetched"], sent);
    assert_eq!(pulled["bytes_fetched"], second["bytes_sent"]);
    assert_eq!(pulled["blobs_mounted"], 0);
    assert_eq!(pulled["digest"], second["digest"]);
}

#[test]
fn a_model_goes_where_its_name_says() {
    let registry = Fixture::start();
    let place = Place::with_model();
    let name = format!("{}/demo:int4", registry.host());
    place.kiln(&format!("tag demo:int4 {name}")).expect(0);
    place.kiln(&format!("push {name}")).expect(0);
    assert_eq!(registry.tags("demo"), ["int4"]);
    assert_snapshot!(place.kiln("push demo:int4"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: No registry is named in `demo:int4`

    hint: kiln push demo:int4 registry.example/demo:int4
    ");
}

#[test]
fn a_pull_needs_a_registry_and_a_name() {
    let place = Place::new();
    assert_snapshot!(place.kiln("pull demo:int4"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: No registry is named in `demo:int4`

    hint: kiln pull registry.example/demo:int4
    ");
    let digest = "0".repeat(64);
    assert_snapshot!(place.kiln(&format!("pull registry.example/demo@sha256:{digest}")), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: No name is given for `registry.example/demo@sha256:[DIGEST]`

    hint: kiln pull registry.example/demo@sha256:[DIGEST] demo:latest
    ");
}

#[test]
fn a_model_is_pulled_by_its_digest() {
    let registry = Fixture::start();
    let place = Place::with_model();
    let host = registry.host();
    place.kiln(&format!("push demo:int4 {host}/demo:int4")).expect(0);
    let digest = place.digest("show demo:int4");
    assert_eq!(
        place.digest(&format!("pull {host}/demo@{digest} here --store other")),
        place.digest("show here --store other")
    );
}

#[test]
fn what_is_nowhere_is_not_found() {
    let registry = Fixture::start();
    let place = Place::new();
    place.kiln("push nothing registry.example/nothing").expect(6);
    place.kiln(&format!("pull {}/nothing", registry.host())).expect(6);
}

#[test]
fn a_registry_that_lies_is_found_out_and_nothing_is_named() {
    let registry = Fixture::start();
    let place = Place::with_model();
    let remote = format!("{}/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {remote}")).expect(0);
    registry.corrupt_blob(&place.layer("lm_head.weight"));
    let run = place.kiln(&format!("pull {remote} here --store other --json"));
    run.expect(3);
    assert_eq!(run.last_object()["exitCode"], 3);
    assert_eq!(place.kiln("list --store other --json").stdout, "");
}

#[test]
fn credentials_are_asked_for_and_a_login_provides_them() {
    let registry = Fixture::start_with(Options::default().auth(Auth::basic("ada", "secret")));
    let place = Place::with_model();
    let host = registry.host();
    let run = place.kiln(&format!("push demo:int4 {host}/demo:int4"));
    run.expect(7);
    assert!(run.stderr.contains(&format!("kiln login {host}")), "{run}");

    fs::write(place.path("wrong"), "guess\n").unwrap();
    fs::write(place.path("right"), "secret\n").unwrap();
    let login = |file: &str| {
        let mut command = place.command(&format!("login {host} -u ada --password-stdin"));
        command.stdin(fs::File::open(place.path(file)).unwrap());
        place.run(command)
    };
    login("wrong").expect(7);
    assert!(!place.path("home/.docker/config.json").exists());
    assert_snapshot!(login("right"), @r"
    exit: 0
    --- stdout ---
    logged in to 127.0.0.1:[PORT] as ada
    --- stderr ---
    ");
    place.kiln(&format!("push demo:int4 {host}/demo:int4")).expect(0);
    assert_snapshot!(place.kiln(&format!("logout {host}")), @r"
    exit: 0
    --- stdout ---
    logged out of 127.0.0.1:[PORT]
    --- stderr ---
    ");
    assert_snapshot!(place.kiln(&format!("logout {host}")), @r"
    exit: 0
    --- stdout ---
    was not logged in to 127.0.0.1:[PORT]
    --- stderr ---
    ");
    place.kiln(&format!("pull {host}/demo:int4 here")).expect(7);
}

#[test]
fn nobody_at_the_other_end_is_the_network_s_fault() {
    let registry = Fixture::start();
    let host = registry.host();
    drop(registry);
    let run = Place::new().kiln(&format!("pull {host}/demo:int4"));
    run.expect(8);
    assert!(run.stderr.contains("\ncaused by: "), "{run}");
}

#[test]
fn an_interrupted_pull_leaves_the_store_sound() {
    let registry = Fixture::start();
    let place = Place::with_model();
    let remote = format!("{}/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {remote}")).expect(0);
    registry.inject(
        Trigger::on("GET", &place.layer("model.layers.0.mlp.switch_mlp")).always(),
        Fault::Stall { after: 1000 },
    );
    let mut running = place.start(&mut place.command(&format!("pull {remote} here --store other --json")));
    running.line("{\"digest\"");
    running.signal("INT");
    let run = running.wait();
    run.expect(130);
    assert_eq!(run.last_object()["exitCode"], 130);
    assert_eq!(run.stderr, "interrupted\n");
    assert_eq!(place.kiln("list --store other --json").expect(0).stdout, "");
    place.kiln("gc --store other").expect(0);
    assert_eq!(fs::read_dir(place.path("other/ingest")).unwrap().count(), 0);
}

#[test]
fn a_model_goes_from_registry_to_registry_and_leaves_nothing_here() {
    let (first, second) = (Fixture::start(), Fixture::start());
    let (from, to) = (format!("{}/team/demo:int4", first.host()), format!("{}/mirror/demo:v1", second.host()));
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {from}")).expect(0);
    let copy = format!("copy {from} {to} --store none");
    assert_snapshot!(place.kiln(&copy), @r"
    exit: 0
    --- stdout ---
    copied 127.0.0.1:[PORT]/team/demo:int4 to 127.0.0.1:[PORT]/mirror/demo:v1 sha256:[DIGEST] (sent 22 of 22 layers and config, [SIZE]; 0 already there)
    --- stderr ---
    copy: 22 blobs, [SIZE]
    ");
    assert_eq!(first.manifest("team/demo", "int4"), second.manifest("mirror/demo", "v1"));
    assert!(second.manifest("mirror/demo", "v1").is_some());
    let run = place.kiln(&format!("{copy} --json"));
    run.expect(0);
    let report = run.last_object();
    assert_eq!((&report["event"], &report["blobs_sent"]), (&"copied".into(), &0.into()));
    assert_eq!((&report["from"], &report["to"]), (&from.into(), &to.into()));
    assert!(!place.path("none").exists());
}

#[test]
fn a_rotten_layer_is_not_copied() {
    let (first, second) = (Fixture::start(), Fixture::start());
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {}/demo:int4", first.host())).expect(0);
    first.corrupt_blob(&place.layer("lm_head.weight"));
    place.kiln(&format!("copy {}/demo:int4 {}/demo:int4", first.host(), second.host())).expect(3);
    assert_eq!(second.tags("demo"), Vec::<String>::new());
    assert!(!second.blobs("demo").contains(&place.layer("lm_head.weight")));
}

#[test]
fn a_copy_is_between_registries() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("copy demo:int4 registry.example/demo:int4"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: No registry is named in `demo:int4`

    hint: name one, as in `registry.example/demo:int4`
    ");
}

#[test]
fn a_model_goes_to_a_registry_like_ollamas_and_back() {
    let place = Place::with_model();
    let login = place.kiln("login 127.0.0.1:1 --ollama");
    login.expect(0);
    let keys = vec![(login.stdout.trim_end().to_owned(), "team".to_owned())];
    let registry = Ollama::start(OllamaOptions { keys, ..OllamaOptions::default() });
    let reference = format!("{}/team/demo:int4", registry.host());
    let run = place.kiln(&format!("push demo:int4 {reference} --ollama"));
    run.expect(0);
    assert_eq!(place.digest(&format!("pull {reference} --ollama --store other")), place.digest("show demo:int4"));
    assert!(registry.storage_requests().iter().all(|request| request.header("authorization").is_none()));

    let run = place.kiln(&format!("push demo:int4 {}/others/demo:int4 --ollama", registry.host()));
    run.expect(7);
    assert!(run.stderr.contains("hint: add your public key at https://ollama.com/settings/keys, once: ssh-"), "{run}");
    // Without the option it is a registry like any other, and not shown the key.
    registry.clear_requests();
    place.kiln(&format!("push demo:int4 {}/team/other:int4", registry.host())).expect(7);
    assert!(registry.requests().iter().all(|request| request.header("authorization").is_none()));
}
