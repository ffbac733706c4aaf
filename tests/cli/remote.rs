use insta::assert_snapshot;
use registry_fixtures::{Auth, Deletes, Fault, Fixture, Options, Trigger};

use crate::place::{Place, Running};
use crate::shell::help;

/// A server of kiln's own with the model under the tags `a` and `b`, and its host.
fn served(place: &Place, options: &str) -> (Running, String) {
    let mut server = place.start(&mut place.command(&format!("serve --addr 127.0.0.1:0 --store served {options}")));
    let host = server.line("listening on ");
    for tag in ["b", "a"] {
        place.kiln(&format!("push demo:int4 {host}/team/demo:{tag}")).expect(0);
    }
    (server, host)
}

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("tags"), @r"
    List the tags of a repository in a registry

    Usage: kiln tags [OPTIONS] <REPOSITORY>

    Arguments:
      <REPOSITORY>  The repository, as in `registry.example/team/llama`

    Options:
      -h, --help  Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln tags registry.example/team/llama
      kiln tags 127.0.0.1:5000/llama --json
    ");
    assert_snapshot!(help("catalog"), @r"
    List the repositories of a registry

    Usage: kiln catalog [OPTIONS] <HOST>

    Arguments:
      <HOST>  The registry, as in `registry.example` or `127.0.0.1:5000`

    Options:
      -h, --help  Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln catalog registry.example
      kiln catalog 127.0.0.1:5000 --json
    ");
}

#[test]
fn tags_are_listed_in_order() {
    let registry = Fixture::start_with(Options { page: 1, ..Options::default() });
    let place = Place::with_model();
    let repository = format!("{}/team/demo", registry.host());
    for tag in ["int4", "a", "int8"] {
        place.kiln(&format!("push demo:int4 {repository}:{tag}")).expect(0);
    }
    assert_snapshot!(place.kiln(&format!("tags {repository}")), @r"
    exit: 0
    --- stdout ---
    a
    int4
    int8
    --- stderr ---
    ");
    assert_eq!(
        place.kiln(&format!("tags {repository} --json")).expect(0).objects(),
        [serde_json::json!({"event": "tags", "repository": repository, "tags": ["a", "int4", "int8"]})]
    );
    assert_snapshot!(place.kiln(&format!("tags {repository}:int4")), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: `127.0.0.1:[PORT]/team/demo:int4` names one model, and not a repository

    hint: kiln tags 127.0.0.1:[PORT]/team/demo
    ");
    assert_snapshot!(place.kiln(&format!("tags {}/other", registry.host())), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: There is no repository `127.0.0.1:[PORT]/other`
    caused by: The registry answered 404 Not Found, `NAME_UNKNOWN` no such repository: `GET http://127.0.0.1:[PORT]/v2/other/tags/list`
    ");
    assert_snapshot!(place.kiln("tags demo"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: No registry is named in `demo:latest`

    hint: name one, as in `registry.example/demo:latest`
    ");
}

#[test]
fn what_a_registry_warns_of_is_told_once() {
    let registry = Fixture::start();
    let place = Place::with_model();
    for (path, warning) in [("blobs", r#"299 - "closes on Friday""#), ("manifests", r#"299 - "write\x1b[31m to us""#)] {
        registry.inject(Trigger::on("*", path).always(), Fault::Header("Warning", warning.to_owned()));
    }
    let pushed = place.kiln(&format!("push demo:int4 {}/demo", registry.host()));
    let notes = pushed.expect(0).stderr.lines().filter(|line| line.starts_with("note:")).collect::<Vec<_>>().join("\n");
    assert_snapshot!(notes.replace(&registry.host(), "[HOST]"), @r"
    note: The registry `[HOST]` warns: closes on Friday
    note: The registry `[HOST]` warns: writex1b[31m to us
    ");
    assert!(!place.kiln(&format!("pull {}/demo --quiet", registry.host())).expect(0).stderr.contains("warns"));
}

#[test]
fn repositories_are_listed_where_a_registry_shows_them() {
    let registry = Fixture::start();
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {}/z/demo:int4", registry.host())).expect(0);
    place.kiln(&format!("push demo:int4 {}/a:int4", registry.host())).expect(0);
    assert_snapshot!(place.kiln(&format!("catalog {}", registry.host())), @r"
    exit: 0
    --- stdout ---
    a
    z/demo
    --- stderr ---
    ");
    assert_eq!(
        place.kiln(&format!("catalog {} --json", registry.host())).expect(0).last_object(),
        serde_json::json!({"event": "catalog", "host": registry.host(), "repositories": ["a", "z/demo"]})
    );
    let silent = Fixture::start_with(Options { catalog: false, ..Options::default() });
    assert_snapshot!(place.kiln(&format!("catalog {}", silent.host())), @r"
    exit: 8
    --- stdout ---
    --- stderr ---
    error: The registry `127.0.0.1:[PORT]` does not list its repositories
    caused by: The registry answered 405 Method Not Allowed, `UNSUPPORTED` GET is not supported here: `GET http://127.0.0.1:[PORT]/v2/_catalog`

    hint: name a repository, as in `kiln tags 127.0.0.1:[PORT]/team/llama`
    ");
    let closed = Fixture::start_with(Options::default().auth(Auth::basic("alice", "s3cret")));
    assert_snapshot!(place.kiln(&format!("catalog {}", closed.host())), @r"
    exit: 7
    --- stdout ---
    --- stderr ---
    error: The registry `127.0.0.1:[PORT]` does not list its repositories to you
    caused by: The registry answered 401 Unauthorized, `UNAUTHORIZED` authentication required: `GET http://127.0.0.1:[PORT]/v2/_catalog`

    hint: kiln login 127.0.0.1:[PORT], or name a repository, as in `kiln tags 127.0.0.1:[PORT]/team/llama`
    ");
    assert_snapshot!(place.kiln("catalog 127.0.0.1:5000/demo"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: Not a registry: `127.0.0.1:[PORT]/demo`

    hint: write `host` or `host:port`, as in `registry.example:5000`
    ");
}

#[test]
fn a_server_of_ours_is_listed_and_emptied() {
    let place = Place::with_model();
    let (_server, host) = served(&place, "--allow-delete");
    assert_eq!(place.kiln(&format!("catalog {host}")).expect(0).stdout, "team/demo\n");
    assert_eq!(place.kiln(&format!("tags {host}/team/demo")).expect(0).stdout, "a\nb\n");
    assert_snapshot!(place.kiln(&format!("rm --remote {host}/team/demo:a {host}/team/demo:c")), @r"
    exit: 6
    --- stdout ---
    removed 127.0.0.1:[PORT]/team/demo:a sha256:[DIGEST]
    --- stderr ---
    error: There is no model `127.0.0.1:[PORT]/team/demo:c`
    ");
    assert_eq!(place.kiln(&format!("tags {host}/team/demo")).expect(0).stdout, "b\n");
    let digest = place.digest("show demo:int4");
    assert_snapshot!(place.kiln(&format!("rm --remote {host}/team/demo@{digest}")), @r"
    exit: 0
    --- stdout ---
    removed 127.0.0.1:[PORT]/team/demo@sha256:[DIGEST]
    --- stderr ---
    ");
    place.kiln(&format!("tags {host}/team/demo")).expect(6);
    // The store of whoever asked is another one.
    place.kiln("show demo:int4").expect(0);
}

#[test]
fn a_registry_that_does_not_remove_says_what_would_help() {
    let place = Place::with_model();
    let registry = Fixture::start_with(Options { deletes: Deletes::ByDigest, ..Options::default() });
    place.kiln(&format!("push demo:int4 {}/demo:int4", registry.host())).expect(0);
    let removal = place.kiln(&format!("rm --remote {}/demo:int4", registry.host()));
    assert_snapshot!(removal, @r"
    exit: 8
    --- stdout ---
    --- stderr ---
    error: The registry does not remove the tag `127.0.0.1:[PORT]/demo:int4` alone
    caused by: The registry answered 400 Bad Request, `DIGEST_INVALID` provided digest did not match uploaded content: `DELETE http://127.0.0.1:[PORT]/v2/demo/manifests/int4`

    hint: `kiln rm --remote 127.0.0.1:[PORT]/demo@sha256:[DIGEST]` removes its manifest, and every other tag of that
    ");
    let hint = removal.stderr.lines().last().unwrap();
    let command = hint.split('`').nth(1).unwrap().strip_prefix("kiln ").unwrap();
    let removed = place.kiln(&format!("{command} --json"));
    assert_eq!(removed.expect(0).last_object()["event"], "removed");
    assert_eq!(registry.tags("demo"), [""; 0]);

    let (_server, host) = served(&place, "");
    let digest = place.digest("show demo:int4");
    assert_snapshot!(place.kiln(&format!("rm --remote {host}/team/demo@{digest}")), @r"
    exit: 8
    --- stdout ---
    --- stderr ---
    error: The registry does not remove the manifest `127.0.0.1:[PORT]/team/demo@sha256:[DIGEST]`
    caused by: The registry answered 405 Method Not Allowed, `UNSUPPORTED` `DELETE` is not supported here: `DELETE http://127.0.0.1:[PORT]/v2/team/demo/manifests/sha256:[DIGEST]`

    hint: deletion may be switched off there: docker-registry needs `REGISTRY_STORAGE_DELETE_ENABLED=true`, `kiln serve` `--allow-delete`
    ");
    assert_eq!(place.kiln(&format!("tags {host}/team/demo")).expect(0).stdout, "a\nb\n");
}
