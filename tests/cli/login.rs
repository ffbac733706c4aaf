use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use insta::assert_snapshot;
use registry_fixtures::{Auth, Fixture, Options};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("login"), @r"
    Log in to a registry

    Usage: kiln login [OPTIONS] <HOST>

    Arguments:
      <HOST>  The registry, as in `registry.example:5000`

    Options:
      -u, --user <USER>     The user's name; asked for on a terminal
          --password-stdin  Read the password from standard input
      -h, --help            Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln login registry.example
      kiln login registry.example -u ada --password-stdin < token.txt
      kiln login 127.0.0.1:5000 -u ada --plain-http
      kiln login ollama.com
    ");
    assert_snapshot!(help("logout"), @r"
    Forget the credential for a registry

    Usage: kiln logout [OPTIONS] <HOST>

    Arguments:
      <HOST>  The registry

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln logout registry.example
    ");
}

#[test]
fn a_password_is_never_guessed() {
    let place = Place::new();
    assert_snapshot!(place.kiln("login registry.example -u ada"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: There is no terminal to ask for a password

    hint: kiln login registry.example -u USER --password-stdin < FILE
    ");
    assert_snapshot!(place.kiln("login registry.example -u ada --password-stdin"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: The password is empty
    ");
    place.kiln("login registry.example --password-stdin").expect(2);
}

#[test]
fn what_never_ends_can_be_interrupted() {
    let place = Place::new();
    let mut command = place.command("login registry.example -u ada --password-stdin");
    let (reader, _writer) = std::io::pipe().unwrap();
    let running = place.start(command.stdin(Stdio::from(reader)));
    // It is watching for signals well before this; were it not, the signal itself would end it.
    sleep(Duration::from_millis(500));
    running.signal("INT");
    running.wait().expect(130);
}

/// A terminal: the side of the keyboard, and the side of the program.
fn terminal() -> (File, File) {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let path = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
    (keyboard.into(), File::options().read(true).write(true).open(path).unwrap())
}

fn shows_what_is_typed(terminal: &File) -> bool {
    tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ECHO)
}

#[test]
fn a_password_is_asked_for_on_a_terminal_which_does_not_show_it() {
    let registry = Fixture::start_with(Options::default().auth(Auth::basic("ada", "secret")));
    let place = Place::new();
    let host = registry.host();
    let (mut keyboard, screen) = terminal();
    let mut command = place.command(&format!("login {host}"));
    let running = place.start(command.stdin(screen.try_clone().unwrap()));
    running.says("User: ");
    keyboard.write_all(b"ada\n").unwrap();
    running.says("Password: ");
    assert!(!shows_what_is_typed(&screen));
    keyboard.write_all(b"secret\n").unwrap();
    let run = running.wait();
    assert_eq!(run.expect(0).stdout, format!("logged in to {host} as ada\n"));
    assert!(shows_what_is_typed(&screen));
}

#[test]
fn a_terminal_shows_again_what_is_typed_after_an_interruption() {
    let place = Place::new();
    let (_keyboard, screen) = terminal();
    let mut command = place.command("login registry.example -u ada");
    let running = place.start(command.stdin(screen.try_clone().unwrap()));
    running.says("Password: ");
    running.signal("INT");
    running.wait().expect(130);
    assert!(shows_what_is_typed(&screen));
}

#[test]
fn ollamas_registry_is_shown_a_key_that_is_made_once() {
    let place = Place::new();
    let made = place.kiln("login ollama.com");
    made.expect(0);
    let public_key = made.stdout.trim_end().to_owned();
    assert!(public_key.starts_with("ssh-ed25519 AAAA"), "{made}");
    assert!(
        made.stderr.contains("made just now, once you have added it at https://ollama.com/settings/keys"),
        "{made}"
    );
    let file = place.path("home/.ollama/id_ed25519");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!place.path("home/.docker").exists());

    let again = place.kiln("login registry.ollama.ai --json");
    again.expect(0);
    let shown = serde_json::json!(
        {"event": "key", "host": "registry.ollama.ai", "public_key": public_key, "made": false}
    );
    assert_eq!(again.last_object(), shown);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_snapshot!(place.kiln("login ollama.com"), @r"
    exit: 7
    --- stdout ---
    --- stderr ---
    error: Others may read the private key: `[PLACE]/home/.ollama/id_ed25519`

    hint: chmod 600 [PLACE]/home/.ollama/id_ed25519
    ");
}
