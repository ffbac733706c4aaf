//! The record of what `docker-registry` answers is still what it answers.

use registry_fixtures::golden::{Exchange, Peer};
use registry_fixtures::real::Kind;

use crate::registry::Registry;

/// The version that Debian 12 has, and that was recorded.
const RECORDED: &str = "docker-registry-2.8.2";

/// The headers that a client may rely on.
const HEADERS: [&str; 14] = [
    "accept-ranges",
    "content-length",
    "content-range",
    "content-type",
    "docker-content-digest",
    "docker-distribution-api-version",
    "docker-upload-uuid",
    "etag",
    "link",
    "location",
    "oci-chunk-min-length",
    "oci-subject",
    "range",
    "www-authenticate",
];

#[test]
fn docker_registry_answers_as_it_was_recorded() {
    // The recorded credentials are in the requests.
    let (user, password) = ("alice".to_owned(), "s3cret".to_owned());
    let kinds = [
        ("plain", Kind::Plain),
        ("htpasswd", Kind::TlsHtpasswd { user: user.clone(), password: password.clone() }),
        ("token", Kind::Token { user, password }),
    ];
    let mut asked = 0;
    for (setting, kind) in kinds {
        let registry = Registry::start(kind);
        let peer = Peer::new(registry.host(), registry.ca());
        if setting == "plain" {
            peer.furnish();
        }
        for exchange in Exchange::recorded(RECORDED, setting) {
            let (recorded, answered) = (&exchange.reply, peer.ask(&exchange));
            let name = format!("{setting}/{}", exchange.name);
            assert_eq!(answered.status, recorded.status, "{name}: {answered:?}");
            assert_eq!(answered.codes(), recorded.codes(), "{name}: {answered:?}");
            if recorded.codes().is_empty() {
                assert_eq!(answered.body(), recorded.body(), "{name}");
            }
            for header in HEADERS {
                assert_eq!(answered.header(header), recorded.header(header), "{name}: {header}");
            }
            asked += 1;
        }
    }
    assert_eq!(asked, 42);
}
