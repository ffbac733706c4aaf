//! The options for reaching a registry, and what they come to with the variables and the configuration file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Session;
use super::settings::{Settings, variable};
use super::transfer::name_for;
use crate::error::Result;
use crate::oci::Reference;
use crate::ops::source::Source;
use crate::ops::transfer::{self, Access};
use crate::registry::{Anonymous, DockerConfig, HostOptions, Keychain, OllamaOptions, Options};

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
}

impl Transport {
    pub(super) fn access(self, session: &Session) -> Access {
        Access { keychain: keychain(&session.settings), options: self.options(session) }
    }

    pub(super) fn options(self, session: &Session) -> Options {
        self.with(&session.settings)
    }

    fn with(self, settings: &Settings) -> Options {
        let config = &settings.config;
        let plain_http = self.plain_http.then_some(true).or(settings.plain_http);
        // What the file says of one registry wins over what it says of all, and loses against the rest.
        let registries = config.registry.iter().map(|(host, own)| {
            let own = HostOptions {
                plain_http: own.plain_http.filter(|_| plain_http.is_none()),
                ca: own.ca.clone().filter(|_| self.ca.is_none()),
            };
            (host.get_ref().clone(), own)
        });
        let registries: BTreeMap<_, _> = registries.collect();
        Options {
            plain_http: plain_http.or(config.plain_http).unwrap_or(false),
            ca: self.ca.or_else(|| config.ca.clone()),
            registries,
            ollama: OllamaOptions { spoken: self.ollama, key: settings.ollama_key() },
            ..Options::default()
        }
    }
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
}

impl Traffic {
    pub(super) fn access(self, session: &Session) -> Access {
        Access { keychain: keychain(&session.settings), options: self.options(&session.settings) }
    }

    fn options(self, settings: &Settings) -> Options {
        let mut options = self.transport.with(settings);
        if let Some(concurrency) = self.concurrency.or(settings.config.concurrency) {
            options.concurrency = concurrency.get();
        }
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
    match settings.docker_config() {
        Some(path) => Arc::new(DockerConfig::at(path)),
        None => Arc::new(Anonymous),
    }
}
