//! `kiln serve` with a certificate and passwords, for clients that others wrote: `skopeo` 1.9.3 and `oras` 1.2.

use std::fs;
use std::process::{Command, Stdio};

use registry_fixtures::real::find;

use crate::place::{Place, Run};
use crate::registry::{PASSWORD, USER};
use crate::skopeo::{digest_at, place_with_modelpack, program, skopeo};

fn oras(place: &Place, words: &str) -> Run {
    program(place, "oras", "oras", words)
}

/// A file of users, by `htpasswd` itself.
fn users() -> Vec<u8> {
    let htpasswd = find("htpasswd", "apache2-utils").unwrap_or_else(|problem| panic!("{problem}"));
    let made = Command::new(htpasswd).args(["-Bbn", USER, PASSWORD]).stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success());
    made.stdout
}

#[test]
fn clients_of_others_push_and_pull_over_tls_with_passwords_and_with_tokens() {
    for tokens in ["", " --tokens"] {
        let (place, digest) = place_with_modelpack();
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::create_dir(place.path("certs")).unwrap();
        fs::write(place.path("certs/ca.crt"), issued.cert.pem()).unwrap();
        fs::write(place.path("key.pem"), issued.signing_key.serialize_pem()).unwrap();
        fs::write(place.path("users"), users()).unwrap();
        let words =
            "serve --addr 127.0.0.1:0 --store served --tls-cert certs/ca.crt --tls-key key.pem --htpasswd users";
        let mut server = place.start(&mut place.command(&format!("{words} --allow-delete{tokens}")));
        let host = server.line("listening on ");
        let remote = format!("docker://{host}/team/demo:mp");

        let copy = |side: &str, password: &str, from: &str, to: &str| {
            let secret = format!("--{side}-cert-dir certs --{side}-creds {USER}:{password}");
            skopeo(&place, &format!("--insecure-policy copy --quiet {secret} {from} {to}"))
        };
        assert_ne!(copy("dest", "wr0ng", "oci:store:demo:mp", &remote).code(), 0);
        copy("dest", PASSWORD, "oci:store:demo:mp", &remote).expect(0);
        copy("src", PASSWORD, &remote, "oci:layout:demo:mp").expect(0);
        assert_eq!(digest_at(&place, "oci:layout:demo:mp"), digest);

        // For an address of this machine it would take plain HTTP of its own accord.
        let tls = "--plain-http=false --ca-file certs/ca.crt";
        oras(&place, &format!("login {tls} -u {USER} -p {PASSWORD} {host}")).expect(0);
        let resolved = oras(&place, &format!("resolve {tls} {host}/team/demo:mp"));
        assert_eq!(resolved.expect(0).stdout.trim(), digest);
        fs::write(place.path("notes.txt"), "what is to be known").unwrap();
        let notes = "--artifact-type application/x-notes";
        oras(&place, &format!("attach {tls} {notes} {host}/team/demo:mp notes.txt:text/plain")).expect(0);
        let discovered = oras(&place, &format!("discover {tls} {notes} --format json {host}/team/demo:mp"));
        let discovered: serde_json::Value = serde_json::from_str(&discovered.expect(0).stdout).unwrap();
        let attached = discovered["manifests"][0]["digest"].as_str().unwrap().to_owned();
        oras(&place, &format!("pull {tls} --output back {host}/team/demo@{attached}")).expect(0);
        assert_eq!(fs::read_to_string(place.path("back/notes.txt")).unwrap(), "what is to be known");
        oras(&place, &format!("manifest delete {tls} --force {host}/team/demo@{attached}")).expect(0);
        let left = oras(&place, &format!("discover {tls} --format json {host}/team/demo:mp"));
        assert!(!left.expect(0).stdout.contains(&attached), "{left}");

        // It logged in for kiln too.
        place.kiln(&format!("pull {host}/team/demo:mp demo:mp --store there --ca certs/ca.crt")).expect(0);
        place.kiln("verify demo:mp --store there --source checkpoint").expect(0);
        place.kiln("verify team/demo:mp --store served --source checkpoint").expect(0);
        server.signal("TERM");
        server.wait().expect(0);
    }
}
