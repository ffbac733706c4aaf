use std::fs;

use insta::assert_snapshot;
use registry_fixtures::{Fixture, Options};
use serde_json::json;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("attach"), @r"
    Attach files to a model in a registry

    Usage: kiln attach [OPTIONS] --artifact-type <TYPE> <REFERENCE> [FILE[:TYPE]]...

    Arguments:
      <REFERENCE>       The model, as in `registry.example/team/llama:int4`
      [FILE[:TYPE]]...  The files, each with its media type [default type: application/octet-stream]

    Options:
          --artifact-type <TYPE>    What kind of thing it is, as a media type
          --annotation <KEY=VALUE>  What the manifest says besides
      -h, --help                    Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln attach registry.example/llama:int4 --artifact-type application/x-card card.md:text/markdown
      kiln attach registry.example/llama:int4 --artifact-type application/x-review --annotation by=ada
    ");
    assert_snapshot!(help("referrers"), @r"
    List what is attached to a model in a registry

    Usage: kiln referrers [OPTIONS] <REFERENCE>

    Arguments:
      <REFERENCE>  The model, as in `registry.example/team/llama:int4`

    Options:
          --artifact-type <TYPE>  Only what is of this kind
      -h, --help                  Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln referrers registry.example/llama:int4
      kiln referrers registry.example/llama:int4 --artifact-type application/x-card --json
    ");
}

#[test]
fn what_is_attached_to_a_model_is_listed_with_it() {
    let place = Place::with_model();
    let registry = Fixture::start();
    let model = format!("{}/team/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {model}")).expect(0);
    fs::write(place.path("card.md"), "# A model").unwrap();
    assert_snapshot!(place.kiln(&format!("referrers {model}")), @r"
    exit: 0
    --- stdout ---
    --- stderr ---
    ");
    let card = format!("attach {model} --artifact-type application/x-card card.md:text/markdown");
    assert_snapshot!(place.kiln(&card), @r"
    exit: 0
    --- stdout ---
    attached application/x-card to 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (sent 2 of 2 blobs, [SIZE])
    --- stderr ---
    attach: 2 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln(&card), @r"
    exit: 0
    --- stdout ---
    attached application/x-card to 127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST] (sent 0 of 2 blobs, [SIZE])
    --- stderr ---
    attach: 2 blobs, [SIZE]
    ");
    let review =
        format!("attach {model} --artifact-type application/x-review --annotation result=good --annotation by=me");
    let reviewed = place.kiln(&format!("{review} --json --progress off"));
    let reviewed = reviewed.expect(0).objects();
    assert_eq!(reviewed.len(), 1);
    assert_eq!(reviewed[0]["event"], "attached");
    assert_eq!(reviewed[0]["artifactType"], "application/x-review");
    assert_eq!(reviewed[0]["subject"], json!(place.digest("show demo:int4")));
    let listed = place.kiln(&format!("referrers {model} --artifact-type application/x-review"));
    assert_snapshot!(listed, @r"
    exit: 0
    --- stdout ---
    DIGEST                                                                   BYTES  TYPE                  ANNOTATIONS
    sha256:[DIGEST]  634    application/x-review  by=me result=good
    --- stderr ---
    ");
    let listed = place.kiln(&format!("referrers {model} --json")).expect(0).last_object();
    assert_eq!(listed["digest"], reviewed[0]["subject"]);
    let referrers = listed["referrers"].as_array().unwrap();
    assert_eq!(referrers.len(), 2);
    let review = referrers.iter().find(|referrer| referrer["digest"] == reviewed[0]["digest"]).unwrap();
    assert_eq!(review["annotations"], json!({"result": "good", "by": "me"}));
    assert_eq!(review["mediaType"], "application/vnd.oci.image.manifest.v1+json");
}

#[test]
fn an_attachment_is_the_same_wherever_it_is_made() {
    let place = Place::with_model();
    let registry = Fixture::start_with(Options { referrers: true, ..Options::default() });
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --store served"));
    fs::create_dir(place.path("notes")).unwrap();
    for name in ["card.md", "notes/card.md"] {
        fs::write(place.path(name), "# A model").unwrap();
    }
    let attached =
        [(registry.host(), "card.md"), (server.line("listening on "), "notes/card.md")].map(|(host, file)| {
            let model = format!("{host}/team/demo:int4");
            place.kiln(&format!("push demo:int4 {model}")).expect(0);
            let digest =
                place.digest(&format!("attach {model} --artifact-type application/x-card {file}:text/markdown"));
            let listed = place.kiln(&format!("referrers {model} --json")).expect(0).last_object();
            assert_eq!(listed["referrers"][0]["digest"], digest);
            digest
        });
    assert_eq!(attached[0], attached[1]);
}

#[test]
fn what_cannot_be_attached_is_refused() {
    let place = Place::with_model();
    let registry = Fixture::start();
    let model = format!("{}/demo:int4", registry.host());
    for (words, code) in [
        ("attach REF --artifact-type application/x-card", 2),
        ("attach REF card.md", 2),
        ("attach REF --artifact-type card card.md", 2),
        ("attach REF --artifact-type a/b --annotation x", 2),
        ("attach REF --artifact-type a/b --annotation x=1 --annotation x=2", 2),
        ("attach REF --artifact-type a/b no.md", 6),
        ("attach demo:int4 --artifact-type a/b --annotation x=1", 2),
        ("attach REF --artifact-type a/b --annotation x=1", 6),
        ("referrers REF", 6),
        ("referrers demo:int4", 2),
    ] {
        let run = place.kiln(&words.replace("REF", &model));
        assert_eq!(run.code(), code, "{words}\n{run}");
    }
    assert!(registry.blobs("demo").is_empty());
}
