//! Settings for registries as their users give them: options, variables and the configuration file, and what
//! reaches the network because of them.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
#[path = "registry_settings/proxy.rs"]
mod proxy;

use std::fs;

use place::Place;
use proxy::Proxy;
use registry_fixtures::Fixture;

/// Writes the configuration file of this place.
fn configure(place: &Place, text: &str) {
    let directory = place.path("home/.config/kiln");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("config.toml"), text).unwrap();
}

#[test]
fn an_option_wins_over_its_variable_and_a_variable_over_the_file() {
    let place = Place::new();
    let file = place.path("by-file").display().to_string();
    configure(&place, &format!("store = {file:?}\njson = true\n"));
    let run = |words: &str, variables: &[(&str, &str)]| {
        let mut command = place.command(words);
        command.env_remove("KILN_STORE").envs(variables.iter().copied());
        place.run(command)
    };
    assert_eq!(run("gc", &[]).expect(0).last_object()["event"], "collected");
    assert!(place.path("by-file").exists());
    let run_with_variables = run("gc", &[("KILN_STORE", "by-variable"), ("KILN_JSON", "no")]);
    assert!(!run_with_variables.expect(0).stdout.contains("event"), "{run_with_variables}");
    assert!(place.path("by-variable").exists());
    run("gc --store by-option", &[("KILN_STORE", "unused")]).expect(0);
    assert!(place.path("by-option").exists() && !place.path("unused").exists());
}

#[test]
fn every_switch_has_a_variable() {
    let place = Place::new();
    let run = |name: &str, value: &str| {
        let mut command = place.command("list");
        command.env(name, value);
        place.run(command)
    };
    for name in ["KILN_JSON", "KILN_QUIET", "KILN_VERBOSE", "KILN_PLAIN_HTTP"] {
        for value in ["1", "true", "YES", "on", "0", "false", "No", "off", ""] {
            run(name, value).expect(0);
        }
        let refused = run(name, "maybe");
        assert!(refused.expect(2).stderr.contains(&format!("Invalid value for `{name}`: `maybe`")), "{refused}");
    }
    run("KILN_PROGRESS", "plain").expect(0);
    run("KILN_PROGRESS", "loud").expect(2);
}

#[test]
fn a_mistyped_key_is_an_error_that_names_it_the_file_and_the_line() {
    let place = Place::new();
    configure(&place, "threads = 2\n\nconcurency = 8\n");
    let run = place.kiln("list");
    run.expect(2);
    let path = place.path("home/.config/kiln/config.toml");
    assert!(run.stderr.contains(&format!("Line 3 of the configuration `{}` is wrong", path.display())), "{run}");
    assert!(run.stderr.contains("unknown field `concurency`"), "{run}");
    assert_eq!(place.kiln("list --json").expect(2).last_object()["exitCode"], 2);

    // Another file in its place, which has to be there.
    let mut command = place.command("list");
    place
        .run({
            command.env("KILN_CONFIG", "/dev/null");
            command
        })
        .expect(0);
    let mut command = place.command("list");
    command.env("KILN_CONFIG", "missing.toml");
    let run = place.run(command);
    assert!(run.expect(2).stderr.contains("There is no configuration file `missing.toml`"), "{run}");
}

#[test]
fn a_registry_has_settings_of_its_own() {
    let place = Place::with_model();
    let registry = Fixture::start();
    let proxy = Proxy::to(&registry.host());
    let push = |variables: &[(&str, &str)]| {
        let mut command = place.command("push demo:int4 plain.example/team/demo:int4");
        command.env("HTTP_PROXY", proxy.url()).env("HTTPS_PROXY", proxy.url()).envs(variables.iter().copied());
        place.run(command)
    };
    configure(&place, "[registry.\"other.example\"]\nplain-http = true\n");
    let asked_in_tls = || proxy.asked().iter().all(|asked| asked == "CONNECT plain.example:443");
    push(&[]).expect(8);
    assert!(asked_in_tls(), "{:?}", proxy.asked());

    configure(&place, "[registry.\"plain.example\"]\nplain-http = true\n");
    // The variable holds for all registries.
    push(&[("KILN_PLAIN_HTTP", "false")]).expect(8);
    assert!(asked_in_tls(), "{:?}", proxy.asked());
    push(&[]).expect(0);
    assert_eq!(registry.tags("team/demo"), ["int4"]);
}
