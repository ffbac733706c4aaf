//! `kiln tags` and `kiln catalog`: what a registry has.

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::transport::Transport;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Reference;
use crate::ops::remote;

const TAGS_EXAMPLES: &str = "\
Examples:
  kiln tags registry.example/team/llama
  kiln tags 127.0.0.1:5000/llama --json";

const CATALOG_EXAMPLES: &str = "\
Examples:
  kiln catalog registry.example
  kiln catalog 127.0.0.1:5000 --json";

/// List the tags of a repository in a registry
#[derive(Debug, Args)]
#[command(after_help = TAGS_EXAMPLES)]
pub(super) struct Tags {
    /// The repository, as in `registry.example/team/llama`
    repository: Reference,
    #[command(flatten)]
    transport: Transport,
}

impl Tags {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let repository = self.repository.repository();
        if !self.repository.is_repository() {
            let message = format!("`{}` names one model, and not a repository", self.repository);
            return Err(Error::new(ErrorKind::Usage, message).hint(format!("kiln tags {repository}")));
        }
        let tags = remote::tags(&self.repository, &self.transport.access(session)).await?;
        if session.printer.is_json() {
            session.printer.object(&json!({"event": "tags", "repository": repository, "tags": tags}));
        } else {
            tags.iter().for_each(|tag| session.printer.data(tag));
        }
        Ok(Exit::Done)
    }
}

/// List the repositories of a registry
///
/// Many registries on the internet do not show theirs.
#[derive(Debug, Args)]
#[command(after_help = CATALOG_EXAMPLES)]
pub(super) struct Catalog {
    /// The registry, as in `registry.example` or `127.0.0.1:5000`
    host: String,
    #[command(flatten)]
    transport: Transport,
}

impl Catalog {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let repositories = remote::catalog(&self.host, &self.transport.access(session)).await?;
        if session.printer.is_json() {
            session.printer.object(&json!({"event": "catalog", "host": self.host, "repositories": repositories}));
        } else {
            repositories.iter().for_each(|repository| session.printer.data(repository));
        }
        Ok(Exit::Done)
    }
}
