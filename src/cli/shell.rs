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
    let is_root = command.has_subcommands();
    let closing = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let page = Page::new(command).manual("kiln");
    let path = directory.join(page.get_filename());
    let render = || {
        let mut text = Vec::new();
        page.render_title(&mut text)?;
        page.render_name_section(&mut text)?;
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        if is_root {
            page.render_subcommands_section(&mut text)?;
        }
        text.extend(sections(&closing.unwrap_or_default()).into_bytes());
        fs::write(&path, text)
    };
    render().map_err(|cause| Error::io(ErrorKind::Input, "write", &path, cause))?;
    Ok(path)
}

/// The paragraphs below the help, each under its first line, as sections of a page: what clap_mangen would
/// call `EXTRA`.
fn sections(text: &str) -> String {
    let paragraphs = text.split("\n\n").filter_map(|paragraph| paragraph.split_once(":\n"));
    let section = |(title, lines): (&str, &str)| {
        let lines = lines.replace('\\', "\\e").replace('-', "\\-");
        format!(".SH \"{}\"\n.nf\n{lines}\n.fi\n", title.to_uppercase())
    };
    paragraphs.map(section).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_sections() {
        assert_eq!(
            sections("Examples:\n  kiln a --b\n  c\\d\n\nExit codes:\n  0  done"),
            ".SH \"EXAMPLES\"\n.nf\n  kiln a \\-\\-b\n  c\\ed\n.fi\n.SH \"EXIT CODES\"\n.nf\n  0  done\n.fi\n"
        );
    }
}
