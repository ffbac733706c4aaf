use std::fs;

use insta::assert_snapshot;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("serve"), @r"
    Serve the store as a registry over HTTP

    Usage: kiln serve [OPTIONS]

    Options:
          --addr <ADDRESS>   The address to listen on [default: 127.0.0.1:5000]
          --read-only        Refuse pushes and deletion
          --allow-delete     Let clients delete manifests, tags and blobs
          --htpasswd <FILE>  Ask for a password of this file, made by `htpasswd -B`
          --tokens           Give tokens for passwords at `/token`, and ask for those
          --tls-cert <FILE>  Speak HTTPS with this certificate, in PEM with those that vouch for it
          --tls-key <FILE>   The certificate's key, in PEM
          --access-log       Print a line for every request on standard error
      -h, --help             Print help (see more with '--help')

    Global options: …

    Examples:
      kiln serve
      kiln serve --addr 127.0.0.1:0 --json
      kiln serve --store /srv/models --addr 0.0.0.0:5000 --read-only
      kiln serve --addr 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem --htpasswd users --access-log
    ");
}

#[test]
fn a_store_is_a_registry_until_a_signal_comes() {
    let place = Place::with_model();
    for signal in ["INT", "TERM"] {
        let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0"));
        let address = server.line("listening on ");
        let pulled = place.digest(&format!("pull {address}/demo:int4 here --store other-{signal}"));
        assert_eq!(pulled, place.digest("show demo:int4"));
        server.signal(signal);
        server.wait().expect(0);
    }
}

#[test]
fn a_store_can_be_served_read_only() {
    let place = Place::with_model();
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0 --read-only --json"));
    let line = server.line("{\"address\":\"");
    let address = line.split('"').next().unwrap();
    place.kiln(&format!("pull {address}/demo:int4 here --store other")).expect(0);
    let refused = place.kiln(&format!("push demo:int4 {address}/other:int4"));
    assert!([7, 8].contains(&refused.code()), "{refused}");
    server.signal("TERM");
    let listening = server.wait().expect(0).last_object();
    assert_eq!(listening["event"], "listening");
    assert_eq!(listening["readOnly"], true);
}

#[test]
fn a_server_with_passwords_and_a_certificate_serves_who_logs_in() {
    let place = Place::with_model();
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(place.path("cert.pem"), issued.cert.pem()).unwrap();
    fs::write(place.path("key.pem"), issued.signing_key.serialize_pem()).unwrap();
    fs::write(place.path("users"), format!("ada:{}\n", bcrypt::hash("s3cret", 4).unwrap())).unwrap();
    fs::write(place.path("password"), "s3cret\n").unwrap();
    for (number, tokens) in ["", " --tokens"].into_iter().enumerate() {
        let words = "serve --addr 127.0.0.1:0 --store served --tls-cert cert.pem --tls-key key.pem --htpasswd users";
        let mut server = place.start(&mut place.command(&format!("{words} --access-log{tokens}")));
        let address = server.line("listening on ");
        let push = format!("push demo:int4 {address}/team/demo:v{number} --ca cert.pem");
        place.kiln(&push).expect(7);
        let mut login = place.command(&format!("login {address} -u ada --password-stdin --ca cert.pem"));
        login.stdin(fs::File::open(place.path("password")).unwrap());
        place.run(login).expect(0);
        place.kiln(&push).expect(0);
        let pulled = place.digest(&format!("pull {address}/team/demo:v{number} back --store back --ca cert.pem"));
        assert_eq!(pulled, place.digest("show demo:int4"));
        server.signal("TERM");
        let ended = server.wait();
        ended.expect(0);
        let line =
            ended.stderr.lines().find(|line| line.contains(&format!("PUT /v2/team/demo/manifests/v{number} 201")));
        assert!(line.is_some_and(|line| line.contains(" ada ")), "{ended}");
        assert!(!ended.stderr.contains("s3cret"), "{ended}");
    }
}

#[test]
fn a_server_that_cannot_be_set_up_says_why() {
    let place = Place::new();
    fs::write(place.path("users"), "ada:plain\n").unwrap();
    assert_snapshot!(place.kiln("serve --addr 127.0.0.1:0 --htpasswd users"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: Not a file of users: `users`
    caused by: Line 1 is not a user and a bcrypt hash

    hint: make it with `htpasswd -B -c FILE USER`, which asks for the password
    ");
    let run = place.kiln("serve --addr 127.0.0.1:0 --tls-cert users --tls-key users");
    run.expect(2);
    assert!(run.stderr.contains("caused by: Not a certificate in PEM"), "{run}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let place = Place::new();
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0"));
    let address = server.line("listening on ");
    let run = place.kiln(&format!("serve --addr {address} --store other"));
    assert_snapshot!(run, @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: Could not listen on `127.0.0.1:[PORT]`
    caused by: Address already in use (os error 98)
    ");
}
