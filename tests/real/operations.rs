//! What kiln asks of a real registry besides transfers.

use registry_fixtures::real::Kind;

use crate::place::Place;
use crate::registry::{PASSWORD, Registry, USER};

#[test]
fn what_a_registry_has_is_listed_and_removed() {
    let (user, password) = (USER.to_owned(), PASSWORD.to_owned());
    let kinds = [
        Kind::Plain,
        Kind::TlsHtpasswd { user: user.clone(), password: password.clone() },
        Kind::Token { user, password },
    ];
    for kind in kinds {
        let (place, registry) = (Place::with_model(), Registry::start(kind.clone()));
        let (host, transport) = (registry.host().to_owned(), registry.transport());
        if !matches!(kind, Kind::Plain) {
            place.kiln(&format!("tags {host}/team/demo {transport}")).expect(7);
            registry.log_in(&place, PASSWORD).expect(0);
        }
        for tag in ["b", "a"] {
            place.kiln(&format!("push demo:int4 {host}/team/demo:{tag} {transport}")).expect(0);
        }
        let tags = || place.kiln(&format!("tags {host}/team/demo {transport}"));
        assert_eq!(tags().expect(0).stdout, "a\nb\n", "{kind:?}");
        assert_eq!(place.kiln(&format!("catalog {host} {transport}")).expect(0).stdout, "team/demo\n", "{kind:?}");
        place.kiln(&format!("tags {host}/team/nothing {transport}")).expect(6);

        // It takes a tag for a wrong digest.
        let refused = place.kiln(&format!("rm --remote {host}/team/demo:a {transport}"));
        let digest = place.digest("show demo:int4");
        let hint = format!("kiln rm --remote {host}/team/demo@{digest}");
        assert!(refused.expect(8).stderr.contains(&hint), "{refused}");
        assert_eq!(tags().expect(0).stdout, "a\nb\n");
        place.kiln(&format!("rm --remote {host}/team/demo@{digest} {transport}")).expect(0);
        place.kiln(&format!("pull {host}/team/demo:a gone {transport}")).expect(6);
    }
}
