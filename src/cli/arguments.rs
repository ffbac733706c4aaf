//! The command line as it is typed: the commands, the options they share, and how a wrong one is told.
//! Each command's own options are beside the code that runs it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::error::ContextKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

use super::settings::variable;
use super::{
    attach, checkout, create, crosscheck, demo, diff, exit, export, families, inspect, login, names, remote, serve,
    shell, sign, transfer, usage, verify,
};
use crate::error::{Error, ErrorKind};
use crate::manifest::Dialect;
use crate::ops::verify::Level;
use crate::plan::Profile;
use crate::quant::Scheme;
use crate::store::Link;

/// Imports model checkpoints into layers whose bytes are the same every time, and proves it.
///
/// kiln quantizes a checkpoint into layers, keeps them by digest in a local store, moves them through OCI
/// registries, and checks that creating a model again gives the same digests.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    disable_help_subcommand = true,
    after_help = "Try `kiln demo`, or `kiln COMMAND --help` for examples.",
    after_long_help = long_help()
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

fn long_help() -> String {
    format!(
        "\
Examples:
  kiln create llama:int4 ./Llama-3.1-8B --quantize int4
  kiln push llama:int4 registry.example/team/llama:int4
  kiln pull registry.example/team/llama:int4
  kiln verify registry.example/team/llama:int4 --source ./Llama-3.1-8B
  kiln demo

{}",
        exit::TABLE
    )
}

/// The options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The directory of the store [default: the platform's data directory]
    #[arg(long, global = true, value_name = "DIR", env = variable::STORE, hide_env_values = true)]
    pub(super) store: Option<PathBuf>,
    /// How many blobs are written at once [default: one per processor]
    #[arg(long, global = true, value_name = "N", env = variable::THREADS, hide_env_values = true)]
    pub(super) threads: Option<NonZeroUsize>,
    /// Print results as JSON, one object a line [env: KILN_JSON]
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// How progress is shown [default: auto]
    #[arg(long, global = true, value_name = "HOW", env = variable::PROGRESS, hide_env_values = true)]
    pub(super) progress: Option<ProgressMode>,
    /// Print only results and errors [env: KILN_QUIET]
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Print more: every blob as it is done, every tensor of a model [env: KILN_VERBOSE]
    #[arg(long, short, global = true)]
    pub(super) verbose: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProgressMode {
    /// A bar on a terminal, lines elsewhere, objects with `--json`
    Auto,
    /// A line now and then
    Plain,
    /// Objects on standard output; implies `--json`
    Json,
    /// None
    Off,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Create(create::Create),
    Push(transfer::Push),
    Pull(transfer::Pull),
    Copy(transfer::Copy),
    Verify(verify::Verify),
    Crosscheck(crosscheck::Crosscheck),
    Diff(diff::Diff),
    List(inspect::List),
    Show(inspect::Show),
    Checkout(checkout::Checkout),
    Export(export::Export),
    Families(families::Families),
    Attach(attach::Attach),
    Referrers(attach::Referrers),
    Sign(sign::Sign),
    Attest(sign::Attest),
    Tags(remote::Tags),
    Catalog(remote::Catalog),
    Tag(names::Tag),
    Rm(names::Rm),
    Gc(names::Gc),
    Du(usage::Du),
    Serve(serve::Serve),
    Login(login::Login),
    Logout(login::Logout),
    Demo(demo::Demo),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// The definition that help, completions and man pages are made from.
pub(super) fn definition() -> clap::Command {
    Arguments::command()
}

/// The error for arguments that a parser of ours refused; `None` when clap itself has more to say.
pub(super) fn refused(refusal: &clap::Error) -> Option<Error> {
    use std::error::Error as _;
    let cause = refusal.source()?.downcast_ref::<Error>()?;
    let argument = refusal.get(ContextKind::InvalidArg)?;
    let error = Error::new(ErrorKind::Usage, format!("Invalid value for `{argument}`")).caused_by(cause.to_string());
    Some(match cause.hint_text() {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// The schemes that shells complete.
const COMMON_SCHEMES: [&str; 5] = ["int4", "int8", "mxfp4", "mxfp8", "nvfp4"];

/// Parses a scheme: any, not only the common ones.
#[derive(Clone, Debug)]
pub(super) struct SchemeParser;

impl TypedValueParser for SchemeParser {
    type Value = Scheme;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Scheme, clap::Error> {
        StringValueParser::new().try_map(|text| text.parse::<Scheme>()).parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(COMMON_SCHEMES.into_iter().map(PossibleValue::new)))
    }
}

impl ValueEnum for Level {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let promise = match self {
            Self::Structure => "the manifest is well-formed and every blob is there with its size",
            Self::Digests => "every blob has the bytes its digest promises",
            Self::Tensors => "every tensor is there in the form that lock and config say",
            Self::Rebuild => "creating the model again from its source gives the same bytes",
            Self::Trust => "the levels up to tensors, and a signature of somebody who is trusted",
        };
        Some(PossibleValue::new(self.name()).help(promise))
    }
}

impl ValueEnum for Link {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let meaning = match self {
            Self::Reflink => "no space until one is written to; not on every file system",
            Self::Hard => "the store's own files, read-only; on the same file system",
            Self::Copy => "files of their own",
        };
        Some(PossibleValue::new(self.name()).help(meaning))
    }
}

impl ValueEnum for Profile {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let runtime = match self {
            Self::Ollama => "one layer per tensor or expert group, as Ollama reads them",
            Self::Mlx => "what `mlx_lm.convert` gives",
            Self::Hf => "the checkpoint's files as they are",
        };
        Some(PossibleValue::new(self.name()).help(runtime))
    }
}

impl ValueEnum for Dialect {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let reader = match self {
            Self::Ollama => "runs after `ollama pull`",
            Self::ModelPack => "the CNCF ModelPack specification",
            Self::Docker => "Docker Model Runner's; for profiles mlx and hf",
        };
        Some(PossibleValue::new(self.name()).help(reader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_examples() {
        for command in definition().get_subcommands() {
            let name = command.get_name();
            let help = command.get_after_help().unwrap_or_else(|| panic!("`{name}` has no examples")).to_string();
            assert!(help.starts_with("Examples:\n  kiln"), "{name}: {help}");
            for line in help.lines().filter(|line| line.starts_with("  kiln ")) {
                let words = line.split(['<', '>']).next().unwrap_or(line).split_whitespace();
                Arguments::try_parse_from(words).unwrap_or_else(|refusal| panic!("{line}\n{refusal}"));
            }
            assert!(command.get_about().is_some(), "`{name}` says nothing about itself");
        }
    }

    #[test]
    fn the_manual_names_every_command_and_option() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
        let manual = std::fs::read_to_string(path).unwrap();
        let mut root = definition();
        root.build();
        for command in root.get_subcommands() {
            let name = command.get_name();
            assert!(manual.contains(&format!("`kiln {name}")), "{name}");
            for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
                let flag = format!("--{option}");
                let is_whole = |at: usize| {
                    !manual[at + flag.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '-')
                };
                assert!(manual.match_indices(&flag).any(|(at, _)| is_whole(at)), "{name} {flag}");
            }
        }
    }

    #[test]
    fn the_manual_lists_the_exit_codes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
        let manual = std::fs::read_to_string(path).unwrap();
        for line in exit::TABLE.lines().skip(1) {
            let (code, meaning) = line.trim().split_once("  ").unwrap();
            let row =
                manual.lines().find(|row| row.starts_with(&format!("| {code}"))).unwrap_or_else(|| panic!("no {code}"));
            assert!(row.contains(meaning), "{row}: {meaning}");
        }
    }

    #[test]
    fn shells_complete_schemes_that_exist() {
        for name in COMMON_SCHEMES {
            assert_eq!(name.parse::<Scheme>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn every_option_says_what_it_does() {
        for command in definition().get_subcommands() {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
