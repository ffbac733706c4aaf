//! The options for reaching a registry, and what they come to with the variables and the configuration file.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::Session;
use super::settings::{Settings, variable};
use super::transfer::name_for;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::Reference;
use crate::ops::source::Source;
use crate::ops::transfer::{self, Access};
use crate::registry::{ClientCertificate, DockerConfig, HostOptions, Keychain, OllamaOptions, Options, Rate, Warnings};

/// How a registry is spoken to.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Registry options")]
pub(super) struct Transport {
    /// Speak plain HTTP [env: KILN_PLAIN_HTTP]
    #[arg(long)]
    plain_http: bool,
    /// Trust the certificate authorities in this PEM file, too
    #[arg(long, value_name = "FILE", env = variable::CA, hide_env_values = true, value_hint = clap::ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// Speak Ollama's protocol, as always with Ollama's own registry
    #[arg(long)]
    ollama: bool,
    /// Show this certificate to a registry that asks for one, in PEM
    #[arg(long, value_name = "FILE", env = variable::CLIENT_CERT, hide_env_values = true, value_hint = clap::ValueHint::FilePath)]
    client_cert: Option<PathBuf>,
    /// The certificate's key, in PEM [default: it is in the same file]
    #[arg(long, value_name = "FILE", env = variable::CLIENT_KEY, hide_env_values = true, requires = "client_cert", value_hint = clap::ValueHint::FilePath)]
    client_key: Option<PathBuf>,
    /// How many seconds a registry may be silent [default: 60]
    #[arg(long, value_name = "SECONDS", env = variable::TIMEOUT, hide_env_values = true)]
    timeout: Option<NonZeroU32>,
    /// How many seconds a connection may take to come up [default: 10]
    #[arg(long, value_name = "SECONDS", env = variable::CONNECT_TIMEOUT, hide_env_values = true)]
    connect_timeout: Option<NonZeroU32>,
}

impl Transport {
    pub(super) fn access(self, session: &Session) -> Access {
        Access { keychain: keychain(&session.settings), options: self.options(session) }
    }

    pub(super) fn options(self, session: &Session) -> Options {
        Options { warnings: Warnings::to(session.reporter().progress()), ..self.with(&session.settings) }
    }

    fn with(self, settings: &Settings) -> Options {
        let config = &settings.config;
        let plain_http = self.plain_http.then_some(true).or(settings.plain_http);
        let client = pair(self.client_cert, self.client_key);
        // What the file says of one registry wins over what it says of all, and loses against the rest.
        let registries = config.registry.iter().map(|(host, own)| {
            let own = HostOptions {
                plain_http: own.plain_http.filter(|_| plain_http.is_none()),
                ca: own.ca.clone().filter(|_| self.ca.is_none()),
                client_certificate: pair(own.client_cert.clone(), own.client_key.clone()).filter(|_| client.is_none()),
                mirrors: own.mirrors.iter().map(|mirror| mirror.get_ref().clone()).collect(),
            };
            (host.get_ref().clone(), own)
        });
        let registries: BTreeMap<_, _> = registries.collect();
        let usual = Options::default();
        let seconds = |given: Option<NonZeroU32>, configured: Option<NonZeroU32>, usual| {
            given.or(configured).map_or(usual, |seconds| Duration::from_secs(seconds.get().into()))
        };
        let idle_timeout = seconds(self.timeout, config.timeout, usual.idle_timeout);
        Options {
            plain_http: plain_http.or(config.plain_http).unwrap_or(false),
            ca: self.ca.or_else(|| config.ca.clone()),
            client_certificate: client.or_else(|| pair(config.client_cert.clone(), config.client_key.clone())),
            certificates: settings.certificates(),
            connect_timeout: seconds(self.connect_timeout, config.connect_timeout, usual.connect_timeout),
            idle_timeout,
            // Whoever waits longer for data waits no less for a registry that is storing.
            closing_timeout: usual.closing_timeout.max(idle_timeout),
            registries,
            ollama: OllamaOptions { spoken: self.ollama, key: settings.ollama_key() },
            ..usual
        }
    }
}

fn pair(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Option<ClientCertificate> {
    certificate.map(|certificate| ClientCertificate { certificate, key })
}

/// How many things are moved at once, and how.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Registry options")]
pub(super) struct Traffic {
    #[command(flatten)]
    transport: Transport,
    /// How many blobs are moved at once [default: 4]
    #[arg(long, value_name = "N", env = variable::CONCURRENCY, hide_env_values = true)]
    concurrency: Option<NonZeroUsize>,
    /// How many bytes move in a second at most, all together, as in `800K`, `10M`
    #[arg(long, value_name = "RATE", env = variable::LIMIT_RATE, hide_env_values = true)]
    limit_rate: Option<BytesPerSecond>,
}

/// A speed: `1000`, or `10K`, `10M`, `10G` in powers of 1024.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub(super) struct BytesPerSecond(NonZeroU64);

impl FromStr for BytesPerSecond {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let units = [("K", 10), ("M", 20), ("G", 30)];
        let (number, shift) =
            units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: Option<u64> = number.parse().ok().filter(|_| digits);
        let rate = number.and_then(|number| number.checked_mul(1 << shift)).and_then(NonZeroU64::new);
        rate.map(Self).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("Not a number of bytes per second: {}", quoted(text)))
                .hint("write `1000`, or `800K`, `10M`, `1G` in powers of 1024")
        })
    }
}

impl TryFrom<String> for BytesPerSecond {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl Traffic {
    pub(super) fn access(self, session: &Session) -> Access {
        Access { keychain: keychain(&session.settings), options: self.options(session) }
    }

    fn options(self, session: &Session) -> Options {
        let config = &session.settings.config;
        let mut options = self.transport.options(session);
        if let Some(concurrency) = self.concurrency.or(config.concurrency) {
            options.concurrency = concurrency.get();
        }
        let rate = self.limit_rate.or(config.limit_rate);
        options.rate = rate.map(|BytesPerSecond(rate)| Arc::new(Rate::new(rate)));
        options
    }

    /// Pulls the source of a new model, under the name that a pull gives it.
    pub(super) async fn source(self, session: &Session, reference: Reference) -> Result<Source> {
        let name = name_for(&reference, None)?;
        let access = self.access(session);
        let store = session.blocking(Session::open_store).await?;
        let reporter = session.reporter();
        transfer::pull_source(&store, &reference, &name, &access, &reporter.progress()).await
    }
}

fn keychain(settings: &Settings) -> Arc<dyn Keychain> {
    Arc::new(settings.credentials().into_iter().map(DockerConfig::at).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_has_a_unit_or_none() {
        let rate = |text: &str| text.parse::<BytesPerSecond>().map(|rate| rate.0.get()).ok();
        for (text, bytes) in [("1000", 1000), ("1K", 1 << 10), ("10M", 10 << 20), ("2G", 2 << 30)] {
            assert_eq!(rate(text), Some(bytes));
        }
        for odd in ["", "0", "0K", "K", "-1", "+1", "1.5M", "1m", "1MB", "10 M", "99999999999999999999", "99999999999G"]
        {
            assert_eq!(rate(odd), None, "{odd}");
        }
    }
}
