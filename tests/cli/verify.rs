use std::fs;

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::place::{Place, Run};
use crate::shell::help;

/// Every finding in JSON has these members.
const MEMBERS: [&str; 9] = ["arrays", "bytes", "cause", "layer", "members", "message", "part", "result", "tensor"];

fn verdict(run: &Run) -> Value {
    let verified = run.last_object();
    assert_eq!(verified["event"], "verified");
    for finding in verified["findings"].as_array().unwrap() {
        assert_eq!(finding.as_object().unwrap().keys().collect::<Vec<_>>(), MEMBERS);
    }
    verified
}

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("verify"), @r"
    Verify a model of the store, or of a registry

    Usage: kiln verify [OPTIONS] [NAME]

    Arguments:
      [NAME]  The model's name in the store, or its reference at a registry

    Options:
          --all                     Every model of the store
          --remote                  The model at the registry, whatever the store has
          --repair                  Bring what is damaged again: from a registry that had it, or from
                                    the source
          --from <STORE>            A store that may have it, asked first for a repair
          --level <LEVEL>           How far to go [default: tensors; rebuild with --source or --draft;
                                    digests for a part] [possible values: structure, digests, tensors,
                                    rebuild, trust]
          --sample <N/T>            Read only a part of the blobs: the Nth of T that together are all
          --max-duration <SECONDS>  Read for so many seconds, and next time go on from there
          --source <SOURCE>         What to rebuild it from, as in `kiln create` [default: what it was
                                    created from]
          --draft <DIR>             The draft's checkpoint to rebuild from [default: where it was
                                    created from]
      -h, --help                    Print help (see more with '--help')

    Trust options:
          --key <FILE>              Ask for a signature by this public key (ed25519 or P-256, in PEM);
                                    may be given several times
          --policy <FILE>           Ask for what this policy wants: keys, builders, sources [default:
                                    `trust.toml` beside the configuration file]
          --signatures <REFERENCE>  Where the model is published with its signatures [default: where
                                    NAME says, or where it was seen]
          --attest                  After a rebuild that gave the same bytes, publish that it did
          --attest-key <FILE>       The private key to sign that with
          --verifier <URI>          Who has rebuilt it, as a URI [default: urn:kiln:verifier:local]

    Registry options: …

    Global options: …

    Examples:
      kiln verify llama:int4
      kiln verify llama:int4 --level digests
      kiln verify llama:int4 --source ./Llama-3.1-8B
      kiln verify llama:int4 --level rebuild --json
      kiln verify llama:int4 --repair
      kiln verify registry.example/team/llama:int4
      kiln verify --all --max-duration 600
      kiln verify registry.example/team/llama:int4 --key release.pub.pem

    Exit codes:
      0  everything asked for was checked and holds
      3  corrupt
      4  not reproduced
      5  could not check
      10 not trusted
    ");
}

#[test]
fn a_sound_model_is_checked_as_far_as_asked() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("verify demo:int4"), @r"
    exit: 0
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure, digests, tensors (23 blobs)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: ok
    --- stderr ---
    verify: 22 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln("verify demo:int4 --level structure"), @r"
    exit: 0
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure (23 blobs)
    not checked: digests (every blob has the bytes its digest promises)
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: ok
    --- stderr ---
    ");
    assert_snapshot!(place.kiln("verify demo:int4 --source checkpoint"), @r"
    exit: 0
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure, digests, tensors, rebuild (23 blobs)
    not checked: trust (somebody who is trusted stands for it)
    result: ok
    --- stderr ---
    verify: 22 blobs, [SIZE]
    create: 20 blobs, [SIZE]
    ");
    let verified = verdict(place.kiln("verify demo:int4 --json").expect(0));
    assert_eq!(verified["result"], "ok");
    assert_eq!(verified["level"], "tensors");
    assert_eq!(verified["notChecked"], json!(["rebuild", "trust"]));
    assert_eq!(verified["findings"], json!([]));
    assert_eq!(verified["digest"], place.digest("show demo:int4"));
}

#[test]
fn a_rebuild_finds_the_checkpoint_where_it_was() {
    let place = Place::with_model();
    place.kiln("verify demo:int4 --level rebuild").expect(0);
    fs::rename(place.path("checkpoint"), place.path("moved")).unwrap();
    let run = place.kiln("verify demo:int4 --level rebuild --json");
    let verified = verdict(run.expect(5));
    assert_eq!(verified["result"], "could-not-check");
    assert_eq!(verified["notChecked"], json!(["rebuild", "trust"]));
    place.kiln("verify demo:int4 --source moved").expect(0);
}

#[test]
fn a_flipped_bit_is_found_and_nothing_says_that_all_is_well() {
    let place = Place::with_model();
    place.damage(&place.layer("lm_head.weight"), 5000);
    let run = place.kiln("verify demo:int4");
    assert_snapshot!(run, @r"
    exit: 3
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure, digests (23 blobs)
    corrupt: The blob `sha256:[DIGEST]` of `lm_head.weight` has other bytes, of digest `sha256:[DIGEST]`
      layer: lm_head.weight
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: corrupt
    --- stderr ---
    verify: 22 blobs, [SIZE]
    ");
    assert!(!run.stdout.contains("ok\n") && !run.stdout.contains("verified"), "{run}");
    // The damaged file may have been moved aside by now; the model is no better for it.
    let verified = verdict(place.kiln("verify demo:int4 --json").expect(3));
    assert_eq!(verified["result"], "corrupt");
    assert_eq!(verified["findings"][0]["layer"], "lm_head.weight");
}

#[test]
fn a_missing_blob_and_a_truncated_one_are_corrupt() {
    for change in [
        |path: &std::path::Path| fs::remove_file(path).unwrap(),
        |path: &std::path::Path| {
            let bytes = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, &bytes[1..]).unwrap();
        },
    ] {
        let place = Place::with_model();
        change(&place.blob(&place.layer("model.norm.weight")));
        let verified = verdict(place.kiln("verify demo:int4 --level structure --json").expect(3));
        assert_eq!(verified["findings"][0]["layer"], "model.norm.weight");
        assert_eq!(verified["notChecked"], json!(["digests", "tensors", "rebuild", "trust"]));
    }
}

#[test]
fn another_source_does_not_reproduce_the_model_and_is_told_as_the_cause() {
    let place = Place::with_model();
    // One bit of one weight.
    let shard = place.path("checkpoint/model-00003-of-00005.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() - 1001;
    bytes[middle] ^= 0x20;
    fs::write(&shard, bytes).unwrap();
    let run = place.kiln("verify demo:int4 --source checkpoint");
    run.expect(4);
    assert!(run.stdout.contains("\n  cause: the source is another one"), "{run}");
    assert!(run.stdout.ends_with("result: not-reproduced\n"), "{run}");
    let verified = verdict(place.kiln("verify demo:int4 --source checkpoint --json").expect(4));
    assert_eq!(verified["result"], "not-reproduced");
    assert_eq!(verified["findings"].as_array().unwrap().len(), 1);
    assert!(verified["findings"][0]["bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_source_that_cannot_be_used_is_no_verdict_on_the_model() {
    let place = Place::with_model();
    let run = place.kiln("verify demo:int4 --source nowhere");
    assert_snapshot!(run, @r"
    exit: 5
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure, digests, tensors (23 blobs)
    could-not-check: The source `nowhere` cannot be used: There is no checkpoint at `nowhere`, and no model of that name in the store
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: could-not-check
    --- stderr ---
    verify: 22 blobs, [SIZE]
    ");
}

#[test]
fn a_source_is_for_a_rebuild() {
    assert_snapshot!(Place::new().kiln("verify demo --source checkpoint --level digests"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: `--source` is for a rebuild, and the level is `digests`

    hint: leave `--level` out
    ");
}

#[test]
fn a_model_that_is_not_there_is_bad_input() {
    let place = Place::new();
    let run = place.kiln("verify nothing --json");
    run.expect(6);
    assert_eq!(
        run.last_object(),
        json!({
            "event": "error",
            "message": "No model is named `nothing:latest`",
            "causes": [],
            "hint": "`kiln list` shows what the store holds",
            "exitCode": 6,
        })
    );
}
