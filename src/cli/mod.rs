//! The command line: the only room that prints, reads the environment, or decides how the program ends.
//! Options in, a use case of [`crate::ops`], its report out.
//!
//! Everything runs inside one runtime beside a watch for SIGINT and SIGTERM. Blocking work is on its own
//! thread; when a signal comes it is left behind, and the program ends with it. That is safe anywhere: the
//! store publishes a file only when it is whole, and a name only after its files. What an interrupted
//! import leaves in the store's `ingest/` is swept by `kiln gc`.

mod arguments;
mod attach;
mod checkout;
mod config;
mod create;
mod crosscheck;
mod demo;
mod diff;
mod exit;
mod export;
mod families;
mod inspect;
mod login;
mod names;
mod output;
mod progress;
mod remote;
mod serve;
mod settings;
mod shell;
mod sign;
mod transfer;
mod transport;
mod trust;
mod usage;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, ErrorKind, Result};
use crate::ops::source::Places;
use crate::progress::Progress;
use crate::store::Store;
use arguments::{Arguments, Command};
use exit::Exit;
use output::Printer;
use progress::Reporter;
use settings::{Display, Settings};

/// How long an interrupted command may take to leave.
const A_MOMENT: Duration = Duration::from_secs(2);

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::try_parse_from(&words) {
        Ok(arguments) => arguments,
        Err(refusal) => return refuse(&words, &refusal).into(),
    };
    let settings = match Settings::new(&arguments.global) {
        Ok(settings) => settings,
        Err(error) => {
            Printer::new(arguments.global.json, false).error(&error);
            return Exit::from(error.kind()).into();
        }
    };
    let printer = Arc::new(Printer::new(settings.json, settings.quiet));
    let session = Session { settings: Arc::new(settings), printer };
    let exit = session.conclude(session.start(arguments.command));
    exit.into()
}

/// Prints what clap says, or our own error when it was our parser that refused a value.
fn refuse(words: &[OsString], refusal: &clap::Error) -> Exit {
    if !refusal.use_stderr() {
        // Help or the version was asked for: that is data. A reader that went away does not matter.
        let _ = refusal.print();
        return Exit::Done;
    }
    let printer = Printer::new(words.iter().any(|word| word == "--json"), false);
    match arguments::refused(refusal) {
        Some(error) => printer.error(&error),
        None => {
            if refusal.kind() == clap::error::ErrorKind::MissingSubcommand {
                printer.message(arguments::definition().render_help());
            } else {
                let _ = refusal.print();
            }
            let text = refusal.render().to_string();
            let sentence = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            printer.failure(sentence, &[], Some("kiln --help"), Exit::Usage);
        }
    }
    Exit::Usage
}

/// What every command has: the settings and the way out. Clones are the same session.
#[derive(Clone, Debug)]
struct Session {
    settings: Arc<Settings>,
    printer: Arc<Printer>,
}

impl Session {
    fn start(&self, command: Command) -> Result<Exit> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|cause| Error::new(ErrorKind::Unexpected, "Could not start the runtime").caused_by(cause))?;
        let exit = runtime.block_on(self.run(command));
        // Blocking work that a signal left behind is not waited for.
        runtime.shutdown_background();
        exit
    }

    async fn run(&self, command: Command) -> Result<Exit> {
        // A server ends with a signal, and that is well: it watches for itself.
        let ends_by_signal = !matches!(command, Command::Serve(_));
        let signals = Signals::watch()?;
        let session = self.clone();
        let mut work = tokio::spawn(async move { session.dispatch(command).await });
        tokio::select! {
            ended = &mut work => {
                ended.unwrap_or_else(|cause| Err(Error::new(ErrorKind::Unexpected, "The work broke off").caused_by(cause)))
            }
            exit = signals.first(), if ends_by_signal => {
                work.abort();
                let session = self.clone();
                let ending = async {
                    // What it drops, a process or a directory, is gone before the program is.
                    let _ = work.await;
                    let _ = tokio::task::spawn_blocking(move || session.interrupted(exit)).await;
                };
                // Nobody may be reading what it prints.
                let _ = tokio::time::timeout(A_MOMENT, ending).await;
                Ok(exit)
            }
        }
    }

    async fn dispatch(&self, command: Command) -> Result<Exit> {
        match command {
            Command::Create(create) => create.run(self).await,
            Command::Push(push) => push.run(self).await,
            Command::Copy(copy) => copy.run(self).await,
            Command::Pull(pull) => pull.run(self).await,
            Command::Verify(verify) => verify.run(self).await,
            Command::Crosscheck(crosscheck) => crosscheck.run(self).await,
            Command::Diff(diff) => diff.run(self).await,
            Command::List(list) => list.run(self).await,
            Command::Show(show) => show.run(self).await,
            Command::Checkout(checkout) => checkout.run(self).await,
            Command::Export(export) => export.run(self).await,
            Command::Families(families) => families.run(self),
            Command::Attach(attach) => attach.run(self).await,
            Command::Sign(sign) => sign.run(self).await,
            Command::Attest(attest) => attest.run(self).await,
            Command::Referrers(referrers) => referrers.run(self).await,
            Command::Tags(tags) => tags.run(self).await,
            Command::Catalog(catalog) => catalog.run(self).await,
            Command::Tag(tag) => tag.run(self).await,
            Command::Rm(rm) => rm.run(self).await,
            Command::Gc(gc) => gc.run(self).await,
            Command::Du(du) => du.run(self).await,
            Command::Serve(serve) => serve.run(self).await,
            Command::Login(login) => login.run(self).await,
            Command::Logout(logout) => logout.run(self).await,
            Command::Demo(demo) => demo.run(self).await,
            Command::Completions(completions) => completions.run(self),
            Command::Man(man) => man.run(self),
        }
    }

    /// The last that is printed.
    fn interrupted(&self, exit: Exit) {
        // The bar, if there is one, has not ended its line.
        let line_end = if self.settings.display == Display::Bar { "\n" } else { "" };
        self.printer.message(format_args!("{line_end}interrupted"));
        self.printer.failure("Interrupted", &[], None, exit);
        self.printer.close();
    }

    /// Prints the error, if there is one, and says how the program ends.
    fn conclude(&self, outcome: Result<Exit>) -> Exit {
        let written = self.printer.finish();
        match outcome.and_then(|exit| written.map(|()| exit)) {
            Ok(exit) => exit,
            Err(error) => {
                self.printer.error(&error);
                error.kind().into()
            }
        }
    }

    /// Opens the store.
    fn open_store(&self) -> Result<Store> {
        Store::open(&self.settings.store()?)
    }

    /// Where a source is looked for. A store that is not there yet is not made for it.
    fn places(&self) -> Result<Places> {
        let store = self.settings.store().ok().map(|root| Store::open_existing(&root)).transpose()?.flatten();
        Ok(Places { store, hub: self.settings.hub(), ollama: self.settings.ollama() })
    }

    /// Runs blocking work on a thread of its own.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> Result<T> + Send + 'static) -> Result<T> {
        let session = self.clone();
        let finished = tokio::task::spawn_blocking(move || work(&session)).await;
        finished.unwrap_or_else(|cause| Err(Error::new(ErrorKind::Unexpected, "The work broke off").caused_by(cause)))
    }

    /// Runs blocking work on a thread of its own and shows its progress.
    async fn watched<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self, &Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.blocking(move |session| {
            let reporter = session.reporter();
            work(session, &reporter.progress())
        })
        .await
    }

    fn reporter(&self) -> Reporter {
        Reporter::new(&self.settings, self.printer.clone())
    }
}

/// SIGINT and SIGTERM, caught from the moment this exists.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn watch() -> Result<Self> {
        let watch = |kind| {
            signal(kind)
                .map_err(|cause| Error::new(ErrorKind::Unexpected, "Could not watch for signals").caused_by(cause))
        };
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    /// Waits for the first of them, and gives the exit code it stands for.
    async fn first(mut self) -> Exit {
        self.next().await
    }

    /// Waits for the second.
    async fn second(mut self) -> Exit {
        self.next().await;
        self.next().await
    }

    async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}
