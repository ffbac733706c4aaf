//! Which connections a request may use. Our own certificate is for the registry and for nobody it leads to, and
//! what is on this machine is reached without a proxy.

use std::sync::OnceLock;

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

use super::Options;
use super::address::{Address, is_loopback};
use super::tls::Certificates;
use crate::error::{Error, ErrorKind, Result};

/// Connections of every kind that one registry needs.
pub(super) struct Connector {
    /// The registry, where our own certificate may be shown.
    own: Url,
    certificates: Certificates,
    options: Options,
    /// By whether the certificate is shown, and whether it is to this machine.
    clients: [[OnceLock<Client>; 2]; 2],
}

impl Connector {
    /// # Errors
    /// [`ErrorKind::Usage`] when the certificates in `options` cannot be used.
    pub(super) fn new(address: &Address, options: &Options) -> Result<Self> {
        // `reqwest` takes the process's provider and has none of its own; another one that the
        // program has installed before serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connector = Self {
            own: address.base("https")?,
            certificates: Certificates::read(address.host(), options)?,
            options: options.clone(),
            clients: Default::default(),
        };
        // What is wrong with them should show before anything is sent.
        connector.client(&connector.own)?;
        Ok(connector)
    }

    /// The connections for a request to `url`.
    pub(super) fn client(&self, url: &Url) -> Result<&Client> {
        let shown = self.certificates.identity.is_some() && url.origin() == self.own.origin();
        let here = is_loopback(url);
        let client = &self.clients[usize::from(shown)][usize::from(here)];
        if let Some(client) = client.get() {
            return Ok(client);
        }
        let built = self.build(shown, here)?;
        Ok(client.get_or_init(|| built))
    }

    fn build(&self, shown: bool, here: bool) -> Result<Client> {
        let mut builder = Client::builder()
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .redirect(Policy::none())
            .referer(false)
            // Over HTTP/2 all blobs would share one TCP connection and its window.
            .http1_only()
            .connect_timeout(self.options.connect_timeout)
            .pool_max_idle_per_host(self.options.concurrency);
        if here {
            builder = builder.no_proxy();
        }
        if !self.certificates.authorities.is_empty() {
            builder = builder.tls_certs_merge(self.certificates.authorities.clone());
        }
        if let Some(identity) = self.certificates.identity.clone().filter(|_| shown) {
            builder = builder.identity(identity);
        }
        builder
            .build()
            .map_err(|cause| Error::new(ErrorKind::Unexpected, "Could not set up the HTTP client").caused_by(cause))
    }
}
