use std::fs;
use std::process::{Command, Stdio};

use insta::assert_snapshot;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("demo"), @r"
    Show the whole way on a small model

    Usage: kiln demo [OPTIONS]

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln demo
      kiln demo --json
    ");
}

#[test]
fn the_demo_holds_and_leaves_nothing_behind() {
    let place = Place::new();
    fs::create_dir(place.path("temporary")).unwrap();
    let mut command = place.command("demo");
    command.env("TMPDIR", place.path("temporary"));
    let run = place.run(command);
    run.expect(0);
    let commands: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("$ ")).collect();
    assert_snapshot!(crate::place::settle(&commands.join("\n")), @r"
    $ kiln serve --addr 127.0.0.1:[PORT] --store registry &
    $ kiln create demo:int4 checkpoint --quantize int4
    $ kiln show demo:int4
    $ kiln push demo:int4 127.0.0.1:[PORT]/demo:int4
    $ kiln pull 127.0.0.1:[PORT]/demo:int4 demo:int4 --store other-store
    $ kiln verify demo:int4 --source checkpoint --store other-store
    $ kiln push demo:int4 127.0.0.1:[PORT]/demo:int4 --json --progress off
    ");
    assert!(run.stdout.lines().last().unwrap().starts_with("# Every step held."), "{run}");
    assert_eq!(fs::read_dir(place.path("temporary")).unwrap().count(), 0);
}

#[test]
fn a_step_that_fails_fails_the_demo() {
    let place = Place::new();
    fs::create_dir(place.path("temporary")).unwrap();
    // Files may have 104 KiB: enough for the checkpoint, and not for the layer of its experts.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -f 208; exec \"$0\" demo", env!("CARGO_BIN_EXE_kiln")])
        .current_dir(place.path(""))
        .env_clear()
        .env("HOME", place.path("home"))
        .env("TMPDIR", place.path("temporary"))
        .stdin(Stdio::null());
    let run = place.run(command);
    run.expect(1);
    assert!(run.stderr.contains("error: `kiln create demo:int4 checkpoint --quantize int4` ended with "), "{run}");
    assert!(!run.stdout.contains("Every step held"), "{run}");
    assert_eq!(fs::read_dir(place.path("temporary")).unwrap().count(), 0);
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let place = Place::new();
    fs::create_dir(place.path("temporary")).unwrap();
    let mut command = place.command("demo");
    command.env("TMPDIR", place.path("temporary"));
    let mut running = place.start(&mut command);
    let address = running.line("listening on ");
    running.signal("INT");
    running.wait().expect(130);
    assert_eq!(fs::read_dir(place.path("temporary")).unwrap().count(), 0);
    assert!(std::net::TcpStream::connect(address).is_err(), "the registry is still there");
}
