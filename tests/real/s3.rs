//! A registry that keeps its blobs in a bucket and sends whoever asks for one there, by a signed address.

use registry_fixtures::real::Kind;

use crate::place::Place;
use crate::registry::{PASSWORD, Registry, USER, stored_manifest};

#[test]
fn blobs_come_out_of_a_bucket_and_the_password_does_not_go_there() {
    let registry = Registry::start(Kind::S3 { user: USER.to_owned(), password: PASSWORD.to_owned() });
    let place = Place::new();
    // One blob goes in chunks, and is read by more than one request if the client wants.
    crate::gigabytes::checkpoint(&place.path("checkpoint"), [40 << 20, 1 << 10, 3 << 20].into_iter());
    place.kiln("create big:v1 checkpoint").expect(0);
    registry.log_in(&place, PASSWORD).expect(0);
    let words = format!("{}/team/big:v1 --plain-http --json", registry.host());
    place.kiln(&format!("push big:v1 {words}")).expect(0);

    // The registry's own requests are in the way to the bucket, too: it signs those by a header.
    let bucket = registry.storage();
    bucket.record();
    let again = place.kiln(&format!("push big:v1 {words}")).expect(0).last_object();
    assert_eq!(again["blobs_sent"], 0, "HEAD is answered by the bucket, too: {again}");
    let (host, _) = words.split_once(' ').unwrap();
    place.kiln(&format!("pull {host} big:v1 --store there --plain-http")).expect(0);
    assert_eq!(stored_manifest(&place, "big:v1", "there"), stored_manifest(&place, "big:v1", "store"));
    place.kiln("verify big:v1 --source checkpoint --store there").expect(0);

    let asked: Vec<String> =
        bucket.transcripts().iter().map(|sent| String::from_utf8_lossy(sent).to_ascii_lowercase()).collect();
    let kilns: Vec<&str> =
        asked.iter().flat_map(|sent| sent.split("\r\n\r\n")).filter(|head| head.contains("kiln/")).collect();
    assert!(kilns.len() >= 2 * 5 && kilns.iter().all(|head| head.contains("x-amz-signature=")), "{kilns:?}");
    assert!(kilns.iter().any(|head| head.starts_with("get ")) && kilns.iter().any(|head| head.starts_with("head ")));
    assert!(kilns.iter().all(|head| !head.contains("authorization:")), "{kilns:?}");
}
