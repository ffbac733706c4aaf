use std::fs;

use insta::assert_snapshot;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("tag"), @r"
    Give a model another name

    Usage: kiln tag [OPTIONS] <NAME> <NEW_NAME>

    Arguments:
      <NAME>      The model's name in the store
      <NEW_NAME>  The name it gets besides; what had this name before loses it

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln tag llama:int4 llama:latest
      kiln tag llama:int4 registry.example/team/llama:int4
    ");
    assert_snapshot!(help("rm"), @r"
    Remove names, in the store or in a registry

    Usage: kiln rm [OPTIONS] <NAME>...

    Arguments:
      <NAME>...  The models' names

    Options:
          --remote  Remove them from their registries, and not from the store
      -h, --help    Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln rm llama:int4
      kiln rm llama:int4 llama:int8
      kiln rm --remote registry.example/team/llama:int4
    ");
    assert_snapshot!(help("gc"), @r"
    Remove the blobs that no model needs

    Usage: kiln gc [OPTIONS]

    Options:
          --dry-run         Print what would be removed, and remove nothing
          --quarantine      Remove what repairs moved aside, too
          --wait <SECONDS>  How long to wait for other kilns that use the store [default: 30]
      -h, --help            Print help (see more with '--help')

    Global options: …

    Examples:
      kiln gc --dry-run
      kiln gc
      kiln gc --wait 3600
    ");
}

#[test]
fn a_tag_is_another_name_for_the_same_model() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("tag demo:int4 registry.example/team/demo:int4"), @r"
    exit: 0
    --- stdout ---
    tagged demo:int4 as registry.example/team/demo:int4 sha256:[DIGEST]
    --- stderr ---
    ");
    assert_eq!(place.digest("show registry.example/team/demo:int4"), place.digest("show demo:int4"));
    let tagged = place.kiln("tag demo:int4 b --json").last_object();
    assert_eq!(tagged["event"], "tagged");
    assert_eq!(tagged["newName"], "b:latest");
    assert_snapshot!(place.kiln("tag nothing c"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: No model is named `nothing:latest`

    hint: `kiln list` shows what the store holds
    ");
}

#[test]
fn names_are_removed_and_the_others_stay() {
    let place = Place::with_model();
    place.kiln("tag demo:int4 b").expect(0);
    place.kiln("tag demo:int4 c").expect(0);
    assert_snapshot!(place.kiln("rm b nothing c"), @r"
    exit: 6
    --- stdout ---
    removed b:latest sha256:[DIGEST]
    removed c:latest sha256:[DIGEST]
    --- stderr ---
    error: No model is named `nothing:latest`

    hint: `kiln list` shows what the store holds
    ");
    let listed = place.kiln("list --json").objects();
    assert_eq!(listed.iter().map(|model| &model["name"]).collect::<Vec<_>>(), ["demo:int4"]);
    let removed = place.kiln("rm demo:int4 --json");
    assert_eq!(removed.expect(0).last_object()["event"], "removed");
}

#[test]
fn collection_removes_what_no_name_reaches() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("gc"), @r"
    exit: 0
    --- stdout ---
    removed 0 blobs, [SIZE]; 23 kept
    --- stderr ---
    ");
    place.kiln("rm demo:int4").expect(0);
    let blobs = || fs::read_dir(place.path("store/blobs/sha256")).unwrap().count();
    let dry = place.kiln("gc --dry-run");
    assert_eq!(dry.expect(0).stdout.lines().filter(|line| line.starts_with("sha256:")).count(), 23);
    assert!(dry.stdout.lines().last().unwrap().starts_with("would remove 23 blobs, "), "{dry}");
    assert_eq!(blobs(), 23);
    let collected = place.kiln("gc --json").expect(0).last_object();
    assert_eq!(collected["event"], "collected");
    assert_eq!(collected["dryRun"], false);
    assert_eq!(collected["blobs"], 23);
    assert!(collected["bytes"].as_u64().unwrap() > 200_000);
    assert_eq!(blobs(), 0);
}

#[test]
fn collection_removes_nothing_while_a_manifest_cannot_be_read() {
    let place = Place::with_model();
    place.damage(&place.digest("show demo:int4"), 0);
    let run = place.kiln("gc");
    run.expect(3);
    assert_eq!(run.stdout, "");
    assert_eq!(fs::read_dir(place.path("store/blobs/sha256")).unwrap().count(), 23);
}
