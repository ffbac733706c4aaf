//! What the server answers to each request, in memory.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kiln::oci::{Descriptor, Digest, MediaType, Reference};
use kiln::serve::{ServeOptions, serve};
use kiln::storage::{ByteStream, Catalog, Fetch, Memory, Refs, Removal, Remove, Stage};
use kiln::{Error, ErrorKind, Event, Progress, Result};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::served::{OCI, Served, header, manifest, refusal};

/// A place that takes nothing, as one whose disk is full.
struct Broken(Memory);

impl Fetch for Broken {
    async fn exists(&self, target: &Descriptor) -> Result<bool> {
        self.0.exists(target).await
    }

    async fn fetch(&self, target: &Descriptor, bytes: Range<u64>) -> Result<Option<ByteStream>> {
        self.0.fetch(target, bytes).await
    }
}

impl Refs for Broken {
    async fn resolve(&self, reference: &Reference) -> Result<Option<(Descriptor, Bytes)>> {
        self.0.resolve(reference).await
    }

    async fn tag(&self, reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
        self.0.tag(reference, target, manifest).await
    }
}

impl Catalog for Broken {
    async fn size_of(&self, digest: &Digest) -> Result<Option<u64>> {
        self.0.size_of(digest).await
    }

    async fn names(&self) -> Result<Vec<(Reference, Descriptor)>> {
        self.0.names().await
    }
}

impl Stage for Broken {
    type Staged = <Memory as Stage>::Staged;

    async fn stage(&self) -> Result<Self::Staged> {
        Err(Error::new(ErrorKind::Store, "Could not write: `/secret/place`"))
    }
}

impl Remove for Broken {
    async fn untag(&self, reference: &Reference) -> Result<bool> {
        self.0.untag(reference).await
    }

    async fn remove(&self, digest: &Digest) -> Result<Removal> {
        self.0.remove(digest).await
    }
}

#[tokio::test]
async fn a_blob_is_read_whole_and_in_parts() {
    let served = Served::plain().await;
    let bytes = (0..10_000).map(|at: u32| (at / 7) as u8).collect::<Vec<_>>();
    let digest = served.put(bytes.clone());
    let path = format!("/v2/a/blobs/{digest}");

    let head = served.ask("HEAD", &path).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(header(&head, "content-length"), "10000");
    assert_eq!(header(&head, "docker-content-digest"), digest.to_string());
    assert!(served.ask("GET", &path).await.bytes().await.unwrap() == bytes);
    for (range, status, content_range, expected) in [
        ("bytes=0-0", 206, "bytes 0-0/10000", &bytes[..1]),
        ("bytes=999-2000", 206, "bytes 999-2000/10000", &bytes[999..=2000]),
        ("bytes=9990-", 206, "bytes 9990-9999/10000", &bytes[9990..]),
        ("bytes=-10", 206, "bytes 9990-9999/10000", &bytes[9990..]),
        ("bytes=0-1,5-6", 200, "", &bytes[..]),
    ] {
        let part = served.request("GET", &path).header("range", range).send().await.unwrap();
        assert_eq!((part.status().as_u16(), header(&part, "content-range")), (status, content_range), "{range}");
        assert!(part.bytes().await.unwrap() == expected, "{range}");
    }
    let outside = served.request("GET", &path).header("range", "bytes=10000-").send().await.unwrap();
    assert_eq!((outside.status().as_u16(), header(&outside, "content-range")), (416, "bytes */10000"));

    let absent = format!("/v2/a/blobs/{}", Digest::of(b"absent"));
    assert_eq!(served.ask("HEAD", &absent).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(refusal(served.ask("GET", &absent).await).await, (404, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(refusal(served.ask("GET", "/v2/a/blobs/md5:00").await).await, (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn a_blob_comes_in_one_piece() {
    let served = Served::plain().await;
    let digest = Digest::of(b"weights");
    let location = served.begin().await;
    let put = served.request("PUT", &format!("{location}?digest={digest}")).body("weights").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    assert_eq!(header(&put, "location"), format!("/v2/a/blobs/{digest}"));
    assert_eq!(served.place.get(&digest).unwrap(), "weights");
    assert_eq!(refusal(served.ask("GET", &location).await).await.1, "BLOB_UPLOAD_UNKNOWN", "the session is over");

    let other = Digest::of(b"other");
    let post = |body| served.request("POST", &format!("/v2/a/blobs/uploads/?digest={other}")).body(body).send();
    assert_eq!(refusal(post("wrong").await.unwrap()).await, (400, "DIGEST_INVALID".to_owned()));
    assert_eq!(served.place.get(&other), None);
    assert_eq!(post("other").await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(post("other").await.unwrap().status(), StatusCode::CREATED, "again");
    assert_eq!(refusal(post("wrong").await.unwrap()).await.1, "DIGEST_INVALID", "what is here hides nothing");

    let empty = Digest::of(b"");
    let put = served.ask("PUT", &format!("{}?digest={empty}", served.begin().await)).await;
    assert_eq!(put.status(), StatusCode::CREATED);
    assert!(served.place.get(&empty).is_some());
}

#[tokio::test]
async fn a_blob_comes_in_chunks() {
    let served = Served::plain().await;
    let location = served.begin().await;
    let chunk = served.patch(&location, "0-3", "weig").await;
    assert_eq!((chunk.status().as_u16(), header(&chunk, "range")), (202, "0-3"));
    let location = header(&chunk, "location").to_owned();

    let gap = served.patch(&location, "5-6", "ts").await;
    assert_eq!((header(&gap, "range"), gap.status().as_u16()), ("0-3", 416));
    for (range, bytes) in [("4-9", "ht"), ("bytes 4-5", "ht"), ("x", "ht")] {
        let code = refusal(served.patch(&location, range, bytes).await).await;
        assert_eq!(code, (400, "BLOB_UPLOAD_INVALID".to_owned()), "{range}");
    }
    let status = served.ask("GET", &location).await;
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-3"));

    let last = served.request("PUT", &format!("{location}?digest={}", Digest::of(b"weights")));
    let put = last.header("content-range", "4-6").body("hts").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    assert_eq!(served.place.get(&Digest::of(b"weights")).unwrap(), "weights");
}

#[tokio::test]
async fn an_upload_can_be_given_up() {
    let served = Served::plain().await;
    let location = served.begin().await;
    assert_eq!(served.ask("DELETE", &location).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(refusal(served.ask("GET", &location).await).await, (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    let location = served.begin().await;
    let elsewhere = location.replace("/v2/a/", "/v2/b/");
    assert_eq!(served.ask("GET", &elsewhere).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(refusal(served.ask("PUT", &location).await).await, (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn only_so_many_uploads_wait_at_once() {
    let served = Served::start(Memory::new(), ServeOptions { max_uploads: 1, ..ServeOptions::default() }).await;
    let location = served.begin().await;
    let another = served.ask("POST", "/v2/a/blobs/uploads/").await;
    assert_eq!(refusal(another).await, (429, "TOOMANYREQUESTS".to_owned()));
    let put = served.request("PUT", &format!("{location}?digest={}", Digest::of(b"x"))).body("x").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    served.begin().await;
}

#[tokio::test]
async fn a_chunk_whose_connection_broke_can_be_gone_on_with() {
    let served = Served::plain().await;
    let location = served.begin().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\nweig");
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    let arrived = async {
        loop {
            let status = served.ask("GET", &location).await;
            if header(&status, "range") == "0-3" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), arrived).await.unwrap();
    assert_eq!(served.patch(&location, "4-6", "hts").await.status(), StatusCode::ACCEPTED);
    let put = served.ask("PUT", &format!("{location}?digest={}", Digest::of(b"weights"))).await;
    assert_eq!(put.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_whole_blob_whose_connection_broke_leaves_nothing() {
    let served = Served::plain().await;
    let (location, digest) = (served.begin().await, Digest::of(b"weights"));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!("PUT {location}?digest={digest} HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\nweig");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    assert_eq!(served.place.get(&digest), None);
    let put = served.request("PUT", &format!("{location}?digest={digest}")).body("weights").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED, "the session is still there");
}

#[tokio::test]
async fn a_blob_that_is_here_is_mounted() {
    let served = Served::plain().await;
    let digest = served.put("weights");
    let mount = |digest| served.request("POST", &format!("/v2/b/blobs/uploads/?mount={digest}&from=a")).send();
    let mounted = mount(digest).await.unwrap();
    assert_eq!((mounted.status().as_u16(), header(&mounted, "location")), (201, &*format!("/v2/b/blobs/{digest}")));
    let session = mount(Digest::of(b"absent")).await.unwrap();
    assert_eq!(session.status(), StatusCode::ACCEPTED);
    assert!(header(&session, "location").starts_with("/v2/b/blobs/uploads/"));
}

#[tokio::test]
async fn a_blob_can_be_announced_as_ollama_does() {
    let served = Served::plain().await;
    let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"weights"));
    let announced = || served.ask("POST", &path);
    let session = announced().await;
    assert_eq!(session.status(), StatusCode::ACCEPTED);
    let put = format!("{}?digest={}", header(&session, "location"), Digest::of(b"weights"));
    let put = served.request("PUT", &put).body("weights").send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    assert_eq!(announced().await.status(), StatusCode::CREATED, "it is here already");
}

#[tokio::test]
async fn a_manifest_comes_after_its_blobs_and_goes_as_it_came() {
    let served = Served::plain().await;
    let config = served.put("{}");
    let good = manifest(&config, 2);
    let digest = Digest::of(good.as_bytes());
    for (path, media_type, text, expected) in [
        ("v1", OCI, manifest(&Digest::of(b"absent"), 6), (400, "MANIFEST_BLOB_UNKNOWN")),
        ("v1", OCI, manifest(&config, 3), (400, "MANIFEST_INVALID")),
        ("v1", "application/json", good.clone(), (400, "MANIFEST_INVALID")),
        ("v1", OCI, "{".to_owned(), (400, "MANIFEST_INVALID")),
        ("v1", OCI, " ".repeat(5 << 20), (413, "MANIFEST_INVALID")),
        (".v1", OCI, good.clone(), (400, "MANIFEST_INVALID")),
        (&config.to_string(), OCI, good.clone(), (400, "DIGEST_INVALID")),
    ] {
        let (status, code) =
            refusal(served.put_manifest(&format!("/v2/a/manifests/{path}"), media_type, &text).await).await;
        assert_eq!((status, code.as_str()), expected, "{path}");
    }
    assert!(served.place.names().await.unwrap().is_empty());

    for name in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/team/model/manifests/{name}");
        let put = served.put_manifest(&path, OCI, &good).await;
        assert_eq!((put.status().as_u16(), header(&put, "docker-content-digest")), (201, &*digest.to_string()));
        let got = served.ask("GET", &path).await;
        assert_eq!((header(&got, "content-type"), header(&got, "docker-content-digest")), (OCI, &*digest.to_string()));
        assert_eq!(got.text().await.unwrap(), good);
        let head = served.ask("HEAD", &path).await;
        assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, &*good.len().to_string()));
    }
    let absent = served.ask("GET", "/v2/team/model/manifests/v2").await;
    assert_eq!(refusal(absent).await, (404, "MANIFEST_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn tags_are_listed_in_pages() {
    let served = Served::plain().await;
    let config = served.put("{}");
    for name in ["a/manifests/v2", "a/manifests/v10", "a/manifests/V1", "a/b/manifests/x"] {
        let put = served.put_manifest(&format!("/v2/{name}"), OCI, &manifest(&config, 2)).await;
        assert_eq!(put.status(), StatusCode::CREATED);
    }
    for (query, tags, link) in [
        ("", r#"["V1","v10","v2"]"#, ""),
        ("?n=2", r#"["V1","v10"]"#, r#"</v2/a/tags/list?n=2&last=v10>; rel="next""#),
        ("?n=2&last=v10", r#"["v2"]"#, ""),
        ("?n=0", "[]", ""),
    ] {
        let list = served.ask("GET", &format!("/v2/a/tags/list{query}")).await;
        assert_eq!(header(&list, "link"), link, "{query}");
        assert_eq!(list.text().await.unwrap(), format!(r#"{{"name":"a","tags":{tags}}}"#), "{query}");
    }
    assert_eq!(refusal(served.ask("GET", "/v2/c/tags/list").await).await, (404, "NAME_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn what_is_not_offered_is_said_to_be_unsupported() {
    let served = Served::plain().await;
    assert_eq!(served.ask("GET", "/v2/").await.status(), StatusCode::OK);
    let digest = served.put("{}");
    for (method, path, status, allow) in [
        ("DELETE", format!("/v2/a/manifests/{digest}"), 405, "GET, HEAD, PUT"),
        ("DELETE", format!("/v2/a/blobs/{digest}"), 405, "GET, HEAD"),
        ("GET", "/v2/a/blobs/uploads/".to_owned(), 405, "POST"),
        ("PUT", "/v2/_catalog".to_owned(), 405, "GET, HEAD"),
        ("PUT", "/token".to_owned(), 405, "GET"),
        ("GET", "/".to_owned(), 404, ""),
    ] {
        let response = served.ask(method, &path).await;
        assert_eq!(header(&response, "allow"), allow, "{path}");
        assert_eq!(refusal(response).await, (status, "UNSUPPORTED".to_owned()), "{path}");
    }
    assert_eq!(refusal(served.ask("GET", "/v2/UPPER/tags/list").await).await, (400, "NAME_INVALID".to_owned()));
}

#[tokio::test]
async fn a_read_only_registry_is_only_read() {
    let served = Served::start(Memory::new(), ServeOptions { read_only: true, ..ServeOptions::default() }).await;
    let digest = served.put("weights");
    assert_eq!(served.ask("GET", &format!("/v2/a/blobs/{digest}")).await.text().await.unwrap(), "weights");
    for (method, path) in [("POST", "/v2/a/blobs/uploads/"), ("PUT", "/v2/a/manifests/v1")] {
        assert_eq!(refusal(served.ask(method, path).await).await, (405, "UNSUPPORTED".to_owned()), "{method}");
    }
}

#[tokio::test]
async fn a_failure_of_the_store_is_told_to_its_owner_only() {
    let (notes, kept) = (Arc::new(Mutex::new(Vec::new())), Broken(Memory::new()));
    let told = Arc::clone(&notes);
    let progress = Progress::new(move |event| {
        if let Event::Note { message } = event {
            told.lock().unwrap().push(message);
        }
    });
    let served = Served::start(kept, ServeOptions { progress, ..ServeOptions::default() }).await;
    let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"weights"));
    let post = served.request("POST", &path).body("weights").send().await.unwrap();
    assert_eq!(post.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!post.text().await.unwrap().contains("/secret/place"));
    assert_eq!(*notes.lock().unwrap(), ["POST /v2/a/blobs/uploads/ failed: Could not write: `/secret/place`"]);
}

#[tokio::test]
async fn a_shutdown_lets_a_download_end_but_not_forever() {
    // A reply larger than what the system buffers on its way to a client that does not read.
    for (reads, grace) in [(true, Duration::from_secs(20)), (false, Duration::from_millis(200))] {
        let place = Memory::new();
        let digest = place.insert(MediaType::KILN_FILE, vec![7; 32 << 20]).digest;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { stopped.await.unwrap() };
        let options = ServeOptions { grace, ..ServeOptions::default() };
        let server = tokio::spawn(serve(Arc::new(place), listener, options, shutdown));
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        client.read_exact(&mut start).await.unwrap();
        stop.send(()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(TcpStream::connect(address).await.is_err(), "new connections are taken");
        if reads {
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert!(rest.len() > 32 << 20);
        }
        tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap().unwrap();
    }
}
