//! `kiln serve`: the store as a registry, until a signal ends it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::exit::Exit;
use super::output::Printer;
use super::{Session, Signals};
use crate::error::Result;
use crate::ops::serve::{self, Files};
use crate::serve::{Access, AccessLog, ServeOptions};

const EXAMPLES: &str = "\
Examples:
  kiln serve
  kiln serve --addr 127.0.0.1:0 --json
  kiln serve --store /srv/models --addr 0.0.0.0:5000 --read-only
  kiln serve --addr 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem --htpasswd users --access-log";

/// Serve the store as a registry over HTTP
///
/// Prints the address once it is bound; port 0 takes a free one. SIGINT or SIGTERM ends it, after the
/// transfers under way; a second one ends it at once. Without `--htpasswd` it asks nobody for credentials.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Serve {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    addr: SocketAddr,
    /// Refuse pushes and deletion
    #[arg(long)]
    read_only: bool,
    /// Let clients delete manifests, tags and blobs
    #[arg(long, conflicts_with = "read_only")]
    allow_delete: bool,
    /// Ask for a password of this file, made by `htpasswd -B`
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// Give tokens for passwords at `/token`, and ask for those
    #[arg(long, requires = "htpasswd")]
    tokens: bool,
    /// Speak HTTPS with this certificate, in PEM with those that vouch for it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Print a line for every request on standard error
    #[arg(long)]
    access_log: bool,
}

impl Serve {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let (signals, again) = (Signals::watch()?, Signals::watch()?);
        let reporter = session.reporter();
        let printer = session.printer.clone();
        let access_log = self.access_log.then(|| AccessLog::new(move |access| log(&printer, access)));
        let mut options = ServeOptions {
            read_only: self.read_only,
            allow_delete: self.allow_delete,
            access_log,
            progress: reporter.progress(),
            ..ServeOptions::default()
        };
        let tls = self.tls_cert.clone().zip(self.tls_key.clone());
        let files = Files { htpasswd: self.htpasswd.clone(), tokens: self.tokens, tls };
        let (store, options) = session
            .blocking(move |session| {
                files.read_into(&mut options)?;
                Ok((session.open_store()?, options))
            })
            .await?;
        let printer = session.printer.clone();
        let address = self.addr;
        let ready = move |address| self.announce(&printer, address);
        let shutdown = async move {
            signals.first().await;
        };
        let served = serve::serve(store, address, options, ready, shutdown);
        tokio::select! {
            ended = served => ended.map(|()| Exit::Done),
            exit = again.second() => Ok(exit),
        }
    }

    fn announce(&self, printer: &Printer, address: SocketAddr) {
        if !address.ip().is_loopback() {
            if self.htpasswd.is_none() {
                let access = if self.read_only { "read" } else { "read and change" };
                printer.note(format_args!("whoever reaches {address} can {access} this store"));
            } else if self.tls_cert.is_none() {
                printer.note(format_args!("passwords reach {address} unencrypted: give it a certificate"));
            }
        }
        if printer.is_json() {
            printer.object(&json!({
                "event": "listening",
                "address": address.to_string(),
                "readOnly": self.read_only,
                "tls": self.tls_cert.is_some(),
            }));
        } else {
            printer.data(format_args!("listening on {address}"));
        }
    }
}

/// Prints one line of the access log.
fn log(printer: &Printer, access: &Access) {
    let Access { peer, user, method, path, status, received, sent, duration } = access;
    let seconds = duration.as_secs_f64();
    if printer.is_json() {
        printer.object(&json!({
            "event": "request", "client": peer.to_string(), "user": user, "method": method.as_str(),
            "path": path.to_string(), "status": status, "received": received, "sent": sent, "seconds": seconds,
        }));
    } else {
        let (time, user) = (httpdate::fmt_http_date(SystemTime::now()), user.as_deref().unwrap_or("-"));
        printer.message(format_args!(
            "{time} {peer} {user} {method} {path} {status} received {received} sent {sent} in {seconds:.3}s"
        ));
    }
}
