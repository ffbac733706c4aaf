//! `kiln completions` and `kiln man`: what shells and `man` know about kiln, from the same definitions as
//! the help.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man as Page;
use serde_json::json;

use super::Session;
use super::arguments::definition;
use super::exit::Exit;
use crate::error::{Error, ErrorKind, Result};

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln
  kiln completions fish > ~/.config/fish/completions/kiln.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  kiln man ~/.local/share/man/man1";

/// Print the completions for a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, session: &Session) -> Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut definition(), "kiln", &mut script);
        session.printer.write(&script);
        Ok(Exit::Done)
    }
}

/// Write the man pages into a directory
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(super) struct Man {
    /// The directory; it is created when it is not there
    #[arg(value_hint = clap::ValueHint::DirPath)]
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self, session: &Session) -> Result<Exit> {
        fs::create_dir_all(&self.directory)
            .map_err(|cause| Error::io(ErrorKind::Input, "create", &self.directory, cause))?;
        let mut root = definition();
        root.build();
        let mut commands = vec![root.clone()];
        commands.extend(root.get_subcommands().cloned());
        for command in commands {
            let path = write_page(command, &self.directory)?;
            if session.printer.is_json() {
                session.printer.object(&json!({"event": "written", "path": path}));
            } else {
                session.printer.data(path.display());
            }
        }
        Ok(Exit::Done)
    }
}

fn write_page(command: clap::Command, directory: &Path) -> Result<PathBuf> {
    let page = Page::new(command).manual("kiln");
    let path = directory.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)
        .and_then(|()| fs::write(&path, &text))
        .map_err(|cause| Error::io(ErrorKind::Input, "write", &path, cause))?;
    Ok(path)
}
