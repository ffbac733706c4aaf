use std::collections::BTreeSet;
use std::fs;

use insta::assert_snapshot;

use crate::place::Place;

const COMMANDS: [&str; 28] = [
    "attach",
    "attest",
    "catalog",
    "checkout",
    "completions",
    "copy",
    "create",
    "crosscheck",
    "demo",
    "diff",
    "du",
    "export",
    "families",
    "gc",
    "list",
    "login",
    "logout",
    "man",
    "pull",
    "push",
    "referrers",
    "rm",
    "serve",
    "show",
    "sign",
    "tag",
    "tags",
    "verify",
];

/// The short help of a command, but for the options that are the same for all, or for all that reach registries.
pub(crate) fn help(command: &str) -> String {
    let run = Place::new().kiln(&format!("{command} -h"));
    run.expect(0);
    assert_eq!(run.stderr, "");
    let mut help = run.stdout.clone();
    for heading in ["Registry options:", "Global options:"] {
        if let Some((own, rest)) = help.split_once(&format!("{heading}\n")) {
            let (_, after) = rest.split_once("\n\n").unwrap();
            help = format!("{own}{heading} …\n\n{after}");
        }
    }
    help
}

#[test]
fn help_says_how_registries_are_reached() {
    let help = Place::new().kiln("pull -h").stdout.clone();
    let (_, options) = help.split_once("Registry options:\n").unwrap();
    assert_snapshot!(options.split_once("\n\n").unwrap().0, @r"
    --plain-http                 Speak plain HTTP [env: KILN_PLAIN_HTTP]
    --ca <FILE>                  Trust the certificate authorities in this PEM file, too [env:
                                 KILN_CA]
    --ollama                     Speak Ollama's protocol, as always with Ollama's own registry
    --client-cert <FILE>         Show this certificate to a registry that asks for one, in PEM
                                 [env: KILN_CLIENT_CERT]
    --client-key <FILE>          The certificate's key, in PEM [default: it is in the same file]
                                 [env: KILN_CLIENT_KEY]
    --timeout <SECONDS>          How many seconds a registry may be silent [default: 60] [env:
                                 KILN_TIMEOUT]
    --connect-timeout <SECONDS>  How many seconds a connection may take to come up [default: 10]
                                 [env: KILN_CONNECT_TIMEOUT]
    --concurrency <N>            How many blobs are moved at once [default: 4] [env:
                                 KILN_CONCURRENCY]
    --limit-rate <RATE>          How many bytes move in a second at most, all together, as in
                                 `800K`, `10M` [env: KILN_LIMIT_RATE]
    ");
}

#[test]
fn help_names_every_command() {
    assert_snapshot!(Place::new().kiln("-h"), @r"
    exit: 0
    --- stdout ---
    Imports model checkpoints into layers whose bytes are the same every time, and proves it

    Usage: kiln [OPTIONS] <COMMAND>

    Commands:
      create       Create a model from a checkpoint
      push         Push a model to a registry
      pull         Pull a model from a registry
      copy         Copy a model from one registry to another
      verify       Verify a model of the store, or of a registry
      crosscheck   Compare a stored model with what MLX makes of its source
      diff         Compare two models
      list         List the models in the store [alias: ls]
      show         Show a model's layers, and with --verbose its tensors
      checkout     Lay a model out as a directory
      export       Put a model into another program's store
      families     List the model families that kiln knows
      attach       Attach files to a model in a registry
      referrers    List what is attached to a model in a registry
      sign         Sign a model in a registry
      attest       State how a model was made
      tags         List the tags of a repository in a registry
      catalog      List the repositories of a registry
      tag          Give a model another name
      rm           Remove names, in the store or in a registry
      gc           Remove the blobs that no model needs
      du           Show what takes the store's space
      serve        Serve the store as a registry over HTTP
      login        Log in to a registry
      logout       Forget the credential for a registry
      demo         Show the whole way on a small model
      completions  Print the completions for a shell
      man          Write the man pages into a directory

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Global options:
          --store <DIR>     The directory of the store [default: the platform's data directory] [env:
                            KILN_STORE]
          --threads <N>     How many blobs are written at once [default: one per processor] [env:
                            KILN_THREADS]
          --json            Print results as JSON, one object a line [env: KILN_JSON]
          --progress <HOW>  How progress is shown [default: auto] [env: KILN_PROGRESS] [possible values:
                            auto, plain, json, off]
      -q, --quiet           Print only results and errors [env: KILN_QUIET]
      -v, --verbose         Print more: every blob as it is done, every tensor of a model [env:
                            KILN_VERBOSE]

    Try `kiln demo`, or `kiln COMMAND --help` for examples.
    --- stderr ---
    ");
}

#[test]
fn full_help_has_the_exit_codes() {
    let run = Place::new().kiln("--help");
    let codes = run.expect(0).stdout.split_once("Exit codes:\n").unwrap().1;
    assert_snapshot!(codes, @r"
      0  done
      1  unexpected: a bug
      2  usage: the command line is wrong
      3  corrupt: stored or received bytes are not what they should be
      4  not reproduced: creating the model again gave other bytes
      5  could not check: the source is gone, or the model has no lock
      6  bad input: the checkpoint cannot be imported, or there is no such model
      7  not authorized
      8  registry or network
      9  store: full, locked or unwritable
     10  not trusted: a signature is missing, wrong, or of nobody who is trusted
    130  interrupted
    ");
}

#[test]
fn help_says_what_the_shell_commands_take() {
    assert_snapshot!(help("completions"), @r"
    Print the completions for a shell

    Usage: kiln completions [OPTIONS] <SHELL>

    Arguments:
      <SHELL>  The shell [possible values: bash, elvish, fish, powershell, zsh]

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln completions bash > ~/.local/share/bash-completion/completions/kiln
      kiln completions zsh > ~/.zfunc/_kiln
      kiln completions fish > ~/.config/fish/completions/kiln.fish
    ");
    assert_snapshot!(help("man"), @r"
    Write the man pages into a directory

    Usage: kiln man [OPTIONS] <DIRECTORY>

    Arguments:
      <DIRECTORY>  The directory; it is created when it is not there

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln man ~/.local/share/man/man1
    ");
}

#[test]
fn without_a_command_it_shows_what_there_is() {
    let run = Place::new().kiln("");
    run.expect(2);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("  create       Create a model from a checkpoint\n"), "{run}");
}

#[test]
fn every_shell_completes_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.kiln(&format!("completions {shell}")).expect(0).stdout.clone();
        for word in COMMANDS.iter().chain(&["quantize", "nvfp4"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn every_command_has_a_page() {
    let place = Place::new();
    let run = place.kiln("man pages");
    assert_eq!(run.expect(0).stdout.lines().count(), COMMANDS.len() + 1);
    let written: BTreeSet<String> = fs::read_dir(place.path("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = COMMANDS.iter().map(|command| format!("kiln-{command}.1")).chain(["kiln.1".to_owned()]);
    assert_eq!(written, expected.collect());
    let page = fs::read_to_string(place.path("pages/kiln-create.1")).unwrap();
    for text in
        [".TH kiln-create 1", "kiln\\-create \\- Create a model from a checkpoint", "\\-\\-quantize", "EXAMPLES"]
    {
        assert!(page.contains(text), "{text}:\n{page}");
    }
}
