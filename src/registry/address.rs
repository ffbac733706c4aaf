//! Where a registry listens, and which addresses it may send us to. Nothing secret goes over plain
//! HTTP to another machine unless the user said so.

use std::net::IpAddr;

use reqwest::Url;

use super::failure::address;
use crate::error::{Error, ErrorKind, Result, quoted};

/// A registry as a reference names it.
#[derive(Clone, Debug)]
pub(super) struct Address {
    host: String,
    plain_http: bool,
}

impl Address {
    /// The registry `host[:port]`, spoken to in plain HTTP if the user allows it.
    pub(super) fn new(host: &str, plain_http: bool) -> Result<Self> {
        let address = Self { host: host.to_owned(), plain_http };
        let url = address.base("https")?;
        let only_host = url.path() == "/v2/" && url.username().is_empty() && url.query().is_none();
        if only_host && url.fragment().is_none() { Ok(address) } else { Err(invalid(host)) }
    }

    /// The registry's name, as references and keychains have it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The root of the registry's API. Docker Hub's and Ollama's are on another host than the
    /// name that users know.
    pub(super) fn base(&self, scheme: &str) -> Result<Url> {
        let host = match self.host.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            "ollama.com" => "registry.ollama.ai",
            host => host,
        };
        Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|cause| invalid(host).caused_by(cause))
    }

    /// Whether the user asked for plain HTTP.
    pub(super) fn plain_http(&self) -> bool {
        self.plain_http
    }

    /// Whether the registry is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.base("https").is_ok_and(|url| is_loopback(&url))
    }

    /// `location` as a reply to a request for `from` gave it: absolute, or relative to it.
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] for anything but HTTPS, or the plain HTTP that this registry may use:
    /// all of it if the user said so, that of this machine if the registry is on it too.
    pub(super) fn follow(&self, from: &Url, location: &str) -> Result<Url> {
        let mut url = from.join(location).map_err(|cause| {
            Error::new(ErrorKind::Registry, format!("The registry `{}` names no address to go on at", self.host))
                .caused_by(cause)
        })?;
        url.set_fragment(None);
        let plain = url.scheme() == "http" && (self.plain_http || self.is_loopback() && is_loopback(&url));
        if url.scheme() == "https" || plain {
            return Ok(url);
        }
        Err(Error::new(
            ErrorKind::Registry,
            format!("The registry `{}` leads to an address that is not safe: `{}`", self.host, address(&url)),
        )
        .hint("allow plain HTTP if you trust the network"))
    }

    /// The token service at `realm`: as [`Address::follow`], and plain only if the registry, at
    /// `base`, is plain itself.
    pub(super) fn realm(&self, base: &Url, realm: &str) -> Result<Url> {
        let url = self.follow(base, realm)?;
        if url.scheme() == "https" || base.scheme() == "http" {
            return Ok(url);
        }
        Err(Error::new(
            ErrorKind::Registry,
            format!("The registry `{}` wants credentials sent in plain HTTP to `{}`", self.host, address(&url)),
        ))
    }
}

fn invalid(host: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("Not a registry: {}", quoted(host)))
        .hint("write `host` or `host:port`, as in `registry.example:5000`")
}

/// Whether `url` is on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// `location` with the query parameter `digest=…` appended. The rest stays as the registry wrote it:
/// it may be signed.
pub(super) fn with_digest(location: &Url, digest: &crate::oci::Digest) -> Url {
    with_query(location, format!("digest={}%3A{}", digest.algorithm().as_str(), digest.hex()))
}

/// `location` with `parameter` appended to its query, as [`with_digest`].
pub(super) fn with_query(location: &Url, parameter: String) -> Url {
    let mut url = location.clone();
    let query = match location.query() {
        Some(query) if !query.is_empty() => format!("{query}&{parameter}"),
        _ => parameter,
    };
    url.set_query(Some(&query));
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn a_registry_is_a_host_and_a_port() {
        for (host, base) in [
            ("registry.example", "https://registry.example/v2/"),
            ("registry.example:5000", "https://registry.example:5000/v2/"),
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("ollama.com", "https://registry.ollama.ai/v2/"),
            ("[::1]:5000", "https://[::1]:5000/v2/"),
        ] {
            assert_eq!(Address::new(host, false).unwrap().base("https").unwrap().as_str(), base);
        }
        for host in ["", "a b", "alice:x@registry.example", "registry.example/v2", "h?x", "h#x", "h:99999"] {
            assert!(Address::new(host, false).is_err(), "{host}");
        }
    }

    #[test]
    fn loopback_is_this_machine_and_no_look_alike() {
        for (host, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("192.168.0.1", false),
        ] {
            assert_eq!(Address::new(host, false).unwrap().is_loopback(), expected, "{host}");
        }
    }

    #[test]
    fn a_location_is_followed_as_the_registry_wrote_it() {
        let address = Address::new("r.example", false).unwrap();
        let from = Url::parse("https://r.example/v2/a/b/blobs/uploads/").unwrap();
        for (location, expected) in [
            ("/v2/a/b/blobs/uploads/1?_state=x%2By==", "https://r.example/v2/a/b/blobs/uploads/1?_state=x%2By=="),
            ("https://cdn.example/u/1", "https://cdn.example/u/1"),
            ("//cdn.example/u/1", "https://cdn.example/u/1"),
            ("https://r.example:443/u#part", "https://r.example/u"),
            ("1", "https://r.example/v2/a/b/blobs/uploads/1"),
        ] {
            assert_eq!(address.follow(&from, location).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn a_registry_cannot_lead_into_plain_http() {
        let follow = |host: &str, plain: bool, location: &str| {
            let address = Address::new(host, plain).unwrap();
            address.follow(&address.base("https").unwrap(), location).is_ok()
        };
        assert!(!follow("r.example", false, "http://r.example/u"));
        assert!(!follow("r.example", false, "http://127.0.0.1/u"));
        assert!(!follow("r.example", false, "ftp://r.example/u"));
        assert!(!follow("127.0.0.1:5000", false, "http://r.example/u"));
        assert!(follow("127.0.0.1:5000", false, "http://localhost:5001/u"));
        assert!(follow("r.example", true, "http://cdn.example/u"));
    }

    #[test]
    fn a_realm_is_plain_only_for_a_plain_registry() {
        let address = Address::new("127.0.0.1:5000", false).unwrap();
        let realm = |base: &str| address.realm(&address.base(base).unwrap(), "http://127.0.0.1:5001/token").is_ok();
        assert!(realm("http"));
        assert!(!realm("https"));
    }

    #[test]
    fn the_digest_is_appended_without_touching_the_rest() {
        let digest = Digest::of(b"");
        let hex = digest.hex();
        for (location, expected) in [
            ("https://r.example/u/1", format!("https://r.example/u/1?digest=sha256%3A{hex}")),
            ("https://r.example/u/1?", format!("https://r.example/u/1?digest=sha256%3A{hex}")),
            (
                "https://r.example/u?_state=a%2Bb%3D=&x",
                format!("https://r.example/u?_state=a%2Bb%3D=&x&digest=sha256%3A{hex}"),
            ),
        ] {
            assert_eq!(with_digest(&Url::parse(location).unwrap(), &digest).as_str(), expected);
        }
    }
}
