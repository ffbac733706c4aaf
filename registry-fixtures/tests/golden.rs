//! The fixture answers as `docker-registry` was recorded to, where it is meant to.

use std::collections::BTreeMap;

use registry_fixtures::golden::{Exchange, Peer};
use registry_fixtures::{Auth, Fixture, Options};

const REGISTRY: &str = "docker-registry-2.8.2";

/// Where the fixture differs on purpose: the exchange, its status and code there, and why.
const DIFFERENCES: [(&str, u16, &str, &str); 3] = [
    ("chunk-out-of-order", 416, "RANGE_INVALID", "the specification's answer; the real one appends the bytes"),
    ("finish-upload-of-an-unknown-session", 404, "BLOB_UPLOAD_UNKNOWN", "the specification's code"),
    ("blob-range-past-the-end", 416, "RANGE_INVALID", "a body that says why; the real one breaks off"),
];

#[test]
fn the_fixture_answers_as_the_real_registry() {
    let bearer = || Auth::bearer("alice", "s3cret");
    let settings: [(&str, Auth); 3] =
        [("plain", Auth::None), ("htpasswd", Auth::basic("alice", "s3cret")), ("token", bearer())];
    let mut differences: BTreeMap<_, _> = DIFFERENCES.iter().map(|row| (row.0, row)).collect();
    for (setting, auth) in settings {
        let fixture = Fixture::start_with(Options::default().auth(auth));
        let peer = Peer::new(&fixture.host(), None);
        if setting == "plain" {
            peer.furnish();
        }
        for exchange in Exchange::recorded(REGISTRY, setting) {
            let name = exchange.name.as_str();
            let reply = peer.ask(&exchange);
            let answered = (reply.status, reply.codes());
            if let Some((_, status, code, _)) = differences.remove(name) {
                assert_eq!(answered, (*status, vec![(*code).to_owned()]), "{setting}/{name}: {reply:?}");
                continue;
            }
            let recorded = &exchange.reply;
            assert_eq!(answered, (recorded.status, recorded.codes()), "{setting}/{name}: {reply:?}");
            for header in ["content-range", "docker-content-digest", "location", "range"] {
                assert_eq!(reply.header(header), recorded.header(header), "{setting}/{name}: {header}");
            }
        }
    }
    assert!(differences.is_empty(), "differences that are none: {differences:?}");
}
