//! Credentials: without them nothing goes, with them everything, and nobody sees them.

use std::fs;

use registry_fixtures::real::Kind;

use crate::place::{Place, Run};
use crate::registry::{PASSWORD, Registry, USER};

fn silent_about_the_password(run: &Run) {
    for output in [&run.stdout, &run.stderr] {
        assert!(!output.contains(PASSWORD) && !output.contains("wr0ng"), "{run}");
    }
}

#[test]
fn who_is_not_logged_in_is_told_how_to() {
    let (user, password) = (USER.to_owned(), PASSWORD.to_owned());
    let kinds = [
        ("htpasswd", Kind::TlsHtpasswd { user: user.clone(), password: password.clone() }),
        ("token", Kind::Token { user, password }),
    ];
    for (name, kind) in kinds {
        let registry = Registry::start(kind);
        let place = Place::with_model();
        let (host, transport) = (registry.host(), registry.transport());
        let push = || place.kiln(&format!("push demo:int4 {host}/team/demo:int4 {transport} -v"));
        let pull = || place.kiln(&format!("pull {host}/team/demo:int4 here:int4 {transport} -v"));
        let refused = |run: Run| {
            run.expect(7);
            assert!(run.stderr.contains(&format!("hint: kiln login {host}")), "{name}: {run}");
            silent_about_the_password(&run);
        };
        refused(push());
        refused(pull());

        let wrong = registry.log_in(&place, "wr0ng");
        wrong.expect(7);
        silent_about_the_password(&wrong);
        assert!(!place.path("home/.docker/config.json").exists(), "{name}: a wrong password is kept");
        refused(push());

        let right = registry.log_in(&place, PASSWORD);
        right.expect(0);
        silent_about_the_password(&right);
        // `-v` prints all there is to say.
        for run in [push(), pull()] {
            run.expect(0);
            silent_about_the_password(&run);
        }

        place.kiln(&format!("logout {host}")).expect(0);
        let kept = fs::read_to_string(place.path("home/.docker/config.json")).unwrap_or_default();
        assert!(!kept.contains(host), "{name}: {kept}");
        refused(push());
        refused(pull());
    }
}

#[test]
fn credentials_are_where_docker_config_says_and_nobody_else_reads_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let registry = Registry::start(Kind::Token { user: USER.to_owned(), password: PASSWORD.to_owned() });
    let place = Place::with_model();
    let docker = place.path("settings of docker");
    let run = |words: &str, input: Option<&str>| {
        let mut command = place.command(words);
        command.env("DOCKER_CONFIG", &docker);
        if let Some(input) = input {
            fs::write(place.path("input"), input).unwrap();
            command.stdin(fs::File::open(place.path("input")).unwrap());
        }
        place.run(command)
    };
    let host = registry.host();
    run(&format!("login {host} -u {USER} --password-stdin --plain-http"), Some(PASSWORD)).expect(0);
    let file = docker.join("config.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "others can read {}", file.display());
    assert!(!place.path("home/.docker").exists());
    run(&format!("push demo:int4 {host}/team/demo:int4 --plain-http"), None).expect(0);
    // Without the variable the credentials are elsewhere, and there are none.
    place.kiln(&format!("push demo:int4 {host}/team/demo:int4 --plain-http")).expect(7);
}

#[test]
fn a_certificate_nobody_vouches_for_is_refused_in_a_clear_sentence() {
    let registry = Registry::start(Kind::TlsHtpasswd { user: USER.to_owned(), password: PASSWORD.to_owned() });
    let place = Place::with_model();
    let host = registry.host();
    for words in [format!("push demo:int4 {host}/team/demo:int4"), format!("pull {host}/team/demo:int4")] {
        let run = place.kiln(&words);
        run.expect(8);
        assert!(run.stderr.contains("The certificate of `127.0.0.1` is not trusted"), "{run}");
        assert!(run.stderr.contains("hint: "), "{run}");
    }
    // With the certificate it is only the credentials that are missing; by the variable as by the option.
    let mut command = place.command(&format!("push demo:int4 {host}/team/demo:int4"));
    command.env("KILN_CA", registry.ca().unwrap());
    place.run(command).expect(7);
}
