//! `kiln serve`: the store as a registry, until a signal ends it.

use std::net::SocketAddr;

use clap::Args;
use serde_json::json;

use super::exit::Exit;
use super::{Session, Signals};
use crate::error::Result;
use crate::ops::serve;
use crate::serve::ServeOptions;

const EXAMPLES: &str = "\
Examples:
  kiln serve
  kiln serve --addr 127.0.0.1:0 --json
  kiln serve --store /srv/models --addr 0.0.0.0:5000 --read-only";

/// Serve the store as a registry over HTTP
///
/// Prints the address once it is bound; port 0 takes a free one. SIGINT or SIGTERM ends it, after the
/// transfers under way; a second one ends it at once. It asks nobody for credentials.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Serve {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    addr: SocketAddr,
    /// Refuse pushes
    #[arg(long)]
    read_only: bool,
}

impl Serve {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let (signals, again) = (Signals::watch()?, Signals::watch()?);
        let store = session.blocking(Session::open_store).await?;
        let printer = session.printer.clone();
        let read_only = self.read_only;
        let ready = move |address: SocketAddr| {
            if !address.ip().is_loopback() {
                let access = if read_only { "read" } else { "read and change" };
                printer.note(format_args!("whoever reaches {address} can {access} this store"));
            }
            if printer.is_json() {
                let address = address.to_string();
                printer.object(&json!({"event": "listening", "address": address, "readOnly": read_only}));
            } else {
                printer.data(format_args!("listening on {address}"));
            }
        };
        let shutdown = async move {
            signals.first().await;
        };
        let reporter = session.reporter();
        let options = ServeOptions {
            read_only,
            // Without names there, and on the disk they end up on.
            upload_directory: store.root().to_owned(),
            progress: reporter.progress(),
            ..ServeOptions::default()
        };
        let served = serve::serve(store, self.addr, options, ready, shutdown);
        tokio::select! {
            ended = served => ended.map(|()| Exit::Done),
            exit = again.second() => Ok(exit),
        }
    }
}
