//! `kiln login` and `kiln logout`: credentials in docker's `config.json`, where every other client of the
//! registry finds them. A password is never an argument, which other users could see.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::transport::Transport;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::transfer;
use crate::registry::{DockerConfig, OLLAMA_KEYS};

const LOGIN_EXAMPLES: &str = "\
Examples:
  kiln login registry.example
  kiln login registry.example -u ada --password-stdin < token.txt
  kiln login 127.0.0.1:5000 -u ada --plain-http
  kiln login ollama.com";

const LOGOUT_EXAMPLES: &str = "\
Examples:
  kiln logout registry.example";

/// The longest password that is read, in bytes; access tokens have a few thousand.
const MAX_PASSWORD: u64 = 64 << 10;

/// Log in to a registry
///
/// Asks the registry whether it takes the credential, and then keeps it in docker's `config.json` or in the
/// credential helper that is named there. Ollama's registry knows its users by a key instead: its public half is
/// shown, and the key is made if there is none.
#[derive(Debug, Args)]
#[command(after_help = LOGIN_EXAMPLES)]
pub(super) struct Login {
    /// The registry, as in `registry.example:5000`
    host: String,
    /// The user's name; asked for on a terminal
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "user")]
    password_stdin: bool,
    #[command(flatten)]
    transport: Transport,
}

impl Login {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { host, user, password_stdin, transport } = self;
        let options = transport.options(session);
        if user.is_none() && options.ollama.are_for(&host) {
            return show_key(session, host).await;
        }
        let config = docker_config(session)?;
        let (user, password) = if password_stdin {
            let password = session.blocking(|_| piped_password()).await?;
            (user.unwrap_or_default(), password)
        } else {
            if !io::stdin().is_terminal() {
                return Err(Error::new(ErrorKind::Usage, "There is no terminal to ask for a password")
                    .hint(format!("kiln login {host} -u USER --password-stdin < FILE")));
            }
            // Made before the question and dropped after it, or when a signal drops this future.
            let user = match user {
                Some(user) => user,
                None => session.blocking(|_| ask("User: ")).await?,
            };
            let _echo = Echo::off()?;
            let password = session.blocking(|_| ask("Password: ")).await;
            session.printer.message("");
            (user, password?)
        };
        if password.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "The password is empty"));
        }
        transfer::login(&host, &user, &password, &config, &options).await?;
        if session.printer.is_json() {
            session.printer.object(&json!({"event": "logged-in", "host": host, "user": user}));
        } else {
            session.printer.data(format_args!("logged in to {host} as {user}"));
        }
        Ok(Exit::Done)
    }
}

/// Forget the credential for a registry
#[derive(Debug, Args)]
#[command(after_help = LOGOUT_EXAMPLES)]
pub(super) struct Logout {
    /// The registry
    host: String,
}

impl Logout {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let host = self.host.clone();
        let known = session.blocking(move |session| transfer::logout(&self.host, &docker_config(session)?)).await?;
        if session.printer.is_json() {
            session.printer.object(&json!({"event": "logged-out", "host": host, "known": known}));
        } else if known {
            session.printer.data(format_args!("logged out of {host}"));
        } else {
            session.printer.data(format_args!("was not logged in to {host}"));
        }
        Ok(Exit::Done)
    }
}

/// Shows the key that a registry in Ollama's protocol knows the user by. There is no password to ask for, and no
/// registry to ask: it answers for unknown keys, too.
async fn show_key(session: &Session, host: String) -> Result<Exit> {
    let path = session.settings.ollama_key().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "There is no home directory for the key").hint("name one with `HOME`")
    })?;
    let (key, made) = session.blocking(move |_| transfer::ollama_key(&path)).await?;
    if session.printer.is_json() {
        let event = json!({"event": "key", "host": host, "public_key": key.public_key(), "made": made});
        session.printer.object(&event);
    } else {
        session.printer.data(key.public_key());
        let made = if made { "made just now" } else { "which was there" };
        session.printer.message(format_args!(
            "{host} knows you by this public key, {made}, once you have added it at {OLLAMA_KEYS}"
        ));
    }
    Ok(Exit::Done)
}

fn docker_config(session: &Session) -> Result<DockerConfig> {
    let path = session.settings.docker_config().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "There is no home directory for docker's `config.json`")
            .hint("name its directory with `DOCKER_CONFIG`")
    })?;
    Ok(DockerConfig::at(path))
}

/// Everything on standard input, without the line end that `echo` adds.
fn piped_password() -> Result<String> {
    let unusable = |message: &str| Error::new(ErrorKind::Usage, message);
    let mut password = String::new();
    let mut input = io::stdin().lock().take(MAX_PASSWORD + 1);
    input
        .read_to_string(&mut password)
        .map_err(|cause| unusable("Could not read the password from standard input").caused_by(cause))?;
    if password.len() as u64 > MAX_PASSWORD {
        return Err(unusable("The password on standard input is longer than 64 KiB"));
    }
    Ok(without_line_end(&password).to_owned())
}

fn without_line_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// Asks a question on the terminal.
fn ask(question: &str) -> Result<String> {
    let failed = |cause| Error::new(ErrorKind::Unexpected, "Could not read from the terminal").caused_by(cause);
    // The lock is not held while the user thinks: a signal that comes then is told on standard error.
    io::stderr().write_all(question.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().take(MAX_PASSWORD).read_line(&mut answer).map_err(failed)?;
    Ok(without_line_end(&answer).to_owned())
}

/// While it lives, the terminal does not show what is typed.
struct Echo(Termios);

impl Echo {
    fn off() -> Result<Self> {
        let failed =
            |cause| Error::new(ErrorKind::Unexpected, "Could not turn the terminal's echo off").caused_by(cause);
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_not_part_of_a_password() {
        for (piped, password) in
            [("secret\n", "secret"), ("secret\r\n", "secret"), ("secret", "secret"), (" a b \n\n", " a b \n"), ("", "")]
        {
            assert_eq!(without_line_end(piped), password);
        }
    }
}
