//! Settings for registries as their users give them: options, variables and the configuration file, and what
//! reaches the network because of them.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
#[path = "registry_settings/proxy.rs"]
mod proxy;
#[path = "registry_settings/tls.rs"]
mod tls;

use std::fs;
use std::time::{Duration, Instant};

use place::{Place, Run};
use proxy::Proxy;
use registry_fixtures::{Fault, Fixture, Locations, Options, Trigger};
use tls::{Authority, TlsServer, Wants};

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

/// A registry behind a server that wants to see a certificate, and a place with one: `ca.pem`, `own.pem`, `own.key`.
fn guarded(place: &Place, options: Options) -> (Fixture, Authority, TlsServer) {
    let registry = Fixture::start_with(Options { locations: Locations::Relative, ..options });
    let authority = Authority::new();
    let server = TlsServer::before(&registry.host(), &authority, Wants::Certificate);
    let (certificate, key) = authority.issue("ada");
    for (name, pem) in [("ca.pem", authority.pem()), ("own.pem", certificate), ("own.key", key)] {
        fs::write(place.path(name), pem).unwrap();
    }
    (registry, authority, server)
}

#[test]
fn a_registry_that_asks_for_a_certificate_gets_the_named_one() {
    let place = Place::with_model();
    let (registry, _authority, server) = guarded(&place, Options::default());
    let push = |tag: &str, more: &str| place.kiln(&format!("push demo:int4 {}/demo:{tag} {more}", server.host()));
    let refused = push("none", "--ca ca.pem");
    assert!(refused.expect(8).stderr.contains("name one with `--client-cert`"), "{refused}");

    push("two-files", "--ca ca.pem --client-cert own.pem --client-key own.key").expect(0);
    let both = [fs::read(place.path("own.key")).unwrap(), fs::read(place.path("own.pem")).unwrap()].concat();
    fs::write(place.path("both.pem"), both).unwrap();
    push("one-file", "--ca ca.pem --client-cert both.pem").expect(0);
    // Relative to the file that names them.
    let own = |name: &str| format!("{name} = \"../../../{}\"\n", if name == "ca" { "ca.pem" } else { "both.pem" });
    configure(&place, &format!("[registry.\"{}\"]\n{}{}", server.host(), own("ca"), own("client-cert")));
    push("by-file", "").expect(0);
    assert_eq!(registry.tags("demo"), ["by-file", "one-file", "two-files"]);

    let keyless = push("none", "--client-cert own.pem");
    assert!(keyless.expect(2).stderr.contains("Not a certificate with its key in PEM: `own.pem`"), "{keyless}");
    push("none", "--client-key own.key").expect(2);
}

#[test]
fn certificates_are_found_where_docker_and_podman_keep_them() {
    for directory in ["docker", "containers"] {
        let place = Place::with_model();
        let (registry, _authority, server) = guarded(&place, Options::default());
        let directory = place.path(&format!("home/.config/{directory}/certs.d/{}", server.host()));
        fs::create_dir_all(&directory).unwrap();
        let keep = |file: &str, name: &str| fs::copy(place.path(file), directory.join(name)).unwrap();
        keep("ca.pem", "ca.crt");
        keep("own.pem", "ada.cert");
        let push = |tag: &str| place.kiln(&format!("push demo:int4 {}/demo:{tag}", server.host()));
        let keyless = push("none");
        assert!(keyless.expect(2).stderr.contains("ada.key` beside"), "{keyless}");
        keep("own.key", "ada.key");
        push("kept").expect(0);
        assert_eq!(registry.tags("demo"), ["kept"]);
    }
}

#[test]
fn where_a_registry_leads_does_not_see_the_certificate() {
    let place = Place::with_model();
    let elsewhere = Fixture::start();
    let (registry, authority, server) = guarded(&place, Options::default());
    let other = TlsServer::before(&elsewhere.host(), &authority, Wants::Nothing);
    let location = format!("https://{}/v2/demo/blobs/uploads/1", other.host());
    registry.inject(Trigger::on("POST", "/blobs/uploads/").always(), Fault::Location(location));
    let words = "--ca ca.pem --client-cert own.pem --client-key own.key";
    place.kiln(&format!("push demo:int4 {}/demo:int4 {words}", server.host()));
    assert!(!other.shown().is_empty() && !other.shown().contains(&true), "{:?}", other.shown());
    assert!(!server.shown().is_empty() && !server.shown().contains(&false), "{:?}", server.shown());
}

#[test]
fn proxies_are_those_of_the_environment_and_never_for_this_machine() {
    let place = Place::with_model();
    let registry = Fixture::start_with(Options { locations: Locations::Relative, ..Options::default() });
    let authority = Authority::new();
    fs::write(place.path("ca.pem"), authority.pem()).unwrap();
    let server = TlsServer::before(&registry.host(), &authority, Wants::Nothing);
    let proxy = Proxy::to(server.host());
    let run = |words: &str, variables: &[(&str, &str)]| -> Run {
        let mut command = place.command(words);
        let url = proxy.url();
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env(name, &url);
        }
        command.envs(variables.iter().copied());
        place.run(command)
    };
    let direct = format!("push demo:int4 {}/direct:int4", registry.host());
    run(&direct, &[]).expect(0);
    run(&format!("pull {}/direct:int4 here --store other", registry.host()), &[]).expect(0);
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());

    // The certificate is not this name's: the proxy leads there all the same.
    let through = "push demo:int4 proxied.example/demo:int4 --ca ca.pem";
    run(through, &[]).expect(8);
    assert!(!proxy.asked().is_empty());
    assert!(proxy.asked().iter().all(|asked| asked == "CONNECT proxied.example:443"), "{:?}", proxy.asked());

    let before = proxy.asked().len();
    let except = [("NO_PROXY", "other.example,proxied.example"), ("KILN_CONNECT_TIMEOUT", "1")];
    run(through, &except).expect(8);
    assert_eq!(proxy.asked().len(), before);
}

#[test]
fn a_limit_of_speed_holds_in_both_directions() {
    let place = Place::with_model();
    let registry = Fixture::start();
    let remote = format!("{}/demo:int4", registry.host());
    let timed = |words: &str| {
        let start = Instant::now();
        let moved = place.kiln(&format!("{words} --json --progress off")).expect(0).last_object();
        (start.elapsed(), moved)
    };
    // About 200 KiB, of which a tenth of a second's may come at once.
    for (words, field) in [
        (format!("push demo:int4 {remote} --limit-rate 200K"), "bytes_sent"),
        (format!("pull {remote} --store other --limit-rate 200K"), "bytes_fetched"),
    ] {
        let (taken, moved) = timed(&words);
        let bytes = moved[field].as_u64().unwrap();
        let least = Duration::from_secs_f64(bytes as f64 / f64::from(200 << 10) - 0.1);
        assert!(bytes > 150_000 && taken >= least, "{bytes} bytes in {taken:?}");
    }
    place.kiln(&format!("pull {remote} --limit-rate fast")).expect(2);
}
