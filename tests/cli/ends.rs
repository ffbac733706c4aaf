//! How a run can end: every exit code, with a command line that gives it, and what a broken pipe is.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use registry_fixtures::{Auth, Fault, Fixture, Options, Trigger};

use crate::place::Place;

#[test]
fn every_exit_code_has_its_command_line() {
    let place = Place::with_model();
    let closed = Fixture::start_with(Options::default().auth(Auth::basic("ada", "secret")));
    let failing = Fixture::start();
    failing.inject(
        Trigger::on("GET", "/manifests/").always(),
        Fault::Status { code: 400, retry_after: None, body: "no".to_owned() },
    );
    fs::write(place.path("no-store"), "a file").unwrap();
    place.checkpoint("qwen3-moe-bf16", "another");
    place.kiln("create broken:1 checkpoint").expect(0);
    for (code, words) in [
        (0, "list".to_owned()),
        (2, "frobnicate".to_owned()),
        (2, "list --threads 0".to_owned()),
        (2, "list --threads many".to_owned()),
        (2, "list --quiet --verbose".to_owned()),
        (2, "create".to_owned()),
        (2, "create UPPER checkpoint".to_owned()),
        (2, "verify demo:int4 --level everything".to_owned()),
        (2, "serve --addr everywhere".to_owned()),
        (4, "verify demo:int4 --source another".to_owned()),
        (5, "verify demo:int4 --source nowhere".to_owned()),
        (6, "create a nowhere".to_owned()),
        (6, "show nothing".to_owned()),
        (7, format!("pull {}/a", closed.host())),
        (8, format!("pull {}/a", failing.host())),
        (9, "list --store no-store".to_owned()),
    ] {
        let run = place.kiln(&words);
        assert_eq!(run.code(), code, "kiln {words}\n{run}");
        if code >= 6 {
            assert_eq!(run.stdout, "", "{words}");
            assert!(run.stderr.lines().any(|line| line.starts_with("error: ")), "{run}");
        }
        let json = place.kiln(&format!("{words} --json"));
        assert_eq!(json.code(), code, "kiln {words} --json\n{json}");
        if code == 2 || code >= 6 {
            let error = json.last_object();
            assert_eq!(error["event"], "error", "{words}");
            assert_eq!(error["exitCode"], code, "{words}");
        }
    }
    place.damage(&place.layer("lm_head.weight"), 100);
    place.kiln("verify demo:int4").expect(3);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::with_model();
    for words in ["list", "show demo:int4 --json", "completions bash", "create demo:int4 checkpoint --json", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = place.command(words).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{words}");
        assert_eq!(stderr, "", "{words}");
    }
}

#[test]
fn a_reader_that_stops_reading_does_not_keep_a_signal_out() {
    let place = Place::with_model();
    let (reader, mut writer) = std::io::pipe().unwrap();
    // The pipe is full, and stays so.
    let full = std::thread::spawn({
        let mut writer = writer.try_clone().unwrap();
        move || writer.write_all(&vec![b' '; 1 << 20])
    });
    std::thread::sleep(Duration::from_millis(200));
    let mut child = place.command("show demo:int4 --json").stdout(writer.try_clone().unwrap()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none());
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    drop(reader);
    let _ = (full.join().unwrap(), writer.flush());
    assert_eq!(status.and_then(|status| status.code()), Some(130));
}

#[test]
fn a_verdict_stands_though_nobody_reads_it() {
    let place = Place::with_model();
    place.damage(&place.layer("lm_head.weight"), 100);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = place.command("verify demo:int4").stdout(writer).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_standard_output_is_a_failure() {
    let place = Place::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = place.command("list").stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn the_store_is_where_the_environment_says() {
    let place = Place::new();
    let run = |variables: &[(&str, &str)]| {
        let mut command = place.command("list");
        command.env_remove("KILN_STORE").env_remove("HOME");
        variables.iter().for_each(|(name, value)| {
            command.env(name, place.path(value));
        });
        place.run(command)
    };
    run(&[("XDG_DATA_HOME", "data"), ("HOME", "home")]).expect(0);
    assert!(place.path("data/kiln/oci-layout").exists());
    run(&[("HOME", "home")]).expect(0);
    assert!(place.path("home/.local/share/kiln/oci-layout").exists());
    run(&[("KILN_STORE", "mine"), ("HOME", "home")]).expect(0);
    assert!(place.path("mine/oci-layout").exists());
    let nowhere = run(&[]);
    nowhere.expect(2);
    assert!(nowhere.stderr.contains("hint: name one with `--store DIR` or `KILN_STORE`"), "{nowhere}");
}

#[test]
fn quiet_says_nothing_but_the_result() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    let run = place.kiln("create demo:int4 checkpoint --quantize int4 --quiet");
    assert_eq!(run.expect(0).stderr, "");
    assert_eq!(run.stdout.lines().count(), 1);
    let loud = place.kiln("create demo:int4 checkpoint --quantize int4 --verbose");
    assert_eq!(loud.expect(0).stderr.lines().filter(|line| line.starts_with("written ")).count(), 20, "{loud}");
}
