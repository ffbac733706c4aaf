use insta::assert_snapshot;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("serve"), @r"
    Serve the store as a registry over HTTP

    Usage: kiln serve [OPTIONS]

    Options:
          --addr <ADDRESS>  The address to listen on [default: 127.0.0.1:5000]
          --read-only       Refuse pushes
      -h, --help            Print help (see more with '--help')

    Global options: …

    Examples:
      kiln serve
      kiln serve --addr 127.0.0.1:0 --json
      kiln serve --store /srv/models --addr 0.0.0.0:5000 --read-only
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
