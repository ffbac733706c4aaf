//! A server that is killed under 64 clients, which are cut off at any time themselves, leaves a store in
//! which every name is complete; and what a client pulled to its end was right. The test runs its own
//! program again as the server.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln::Progress;
use kiln::oci::{Digest, Reference};
use kiln::serve::{ServeOptions, serve};
use kiln::store::Store;
use reqwest::{Client, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

const SERVER: &str = "KILN_TEST_SERVED_STORE";
const ROUNDS: u64 = 6;
const CLIENTS: u64 = 64;
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn a_killed_server_leaves_a_store_that_verifies() {
    if let Some(root) = env::var_os(SERVER) {
        return serve_until_killed(Path::new(&root));
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let done = Arc::new(Done::default());
    let mut named = BTreeSet::new();
    for round in 0..ROUNDS {
        let (mut server, address) = start(&root);
        let clients = runtime.block_on(start_clients(round, &address, &done));
        thread::sleep(Duration::from_millis(700 + round * 137));
        assert!(server.try_wait().unwrap().is_none(), "the server ended on its own in round {round}");
        server.kill().unwrap();
        server.wait().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), clients.join_all()).await.unwrap() });

        let store = Store::open(&root).unwrap();
        for (name, target) in store.refs().unwrap() {
            let (document, _) = store.document(&target).unwrap();
            for blob in document.blobs() {
                assert_eq!(store.check(blob, &Progress::silent()).unwrap(), Ok(()), "{name} in round {round}");
            }
            assert!(name.parse::<Reference>().is_ok());
            named.insert(target.digest);
        }
        drop(store);
        Store::gc(&root, false).unwrap();
        assert_eq!(fs::read_dir(root.join("ingest")).unwrap().count(), 0, "round {round}");
    }
    let (pushed, pulled) = (done.pushed.load(Ordering::Relaxed), done.pulled.load(Ordering::Relaxed));
    assert!(pushed > CLIENTS && pulled > 0, "{pushed} pushed, {pulled} pulled");
    assert!(!named.is_empty());
}

/// What clients did to the end.
#[derive(Default)]
struct Done {
    pushed: AtomicU64,
    pulled: AtomicU64,
}

/// Starts the server and gives its address.
fn start(root: &Path) -> (Child, String) {
    let announced = root.with_extension("address");
    let _ = fs::remove_file(&announced);
    let server = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_killed_server_leaves_a_store_that_verifies"])
        .env(SERVER, root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !announced.exists() {
        assert!(Instant::now() < deadline, "the server did not start");
        thread::sleep(Duration::from_millis(2));
    }
    (server, fs::read_to_string(&announced).unwrap())
}

/// The end is far off, and only there for a server that outlives the test.
fn serve_until_killed(root: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(Store::open(root).unwrap());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let written = root.with_extension("new");
        fs::write(&written, listener.local_addr().unwrap().to_string()).unwrap();
        fs::rename(&written, root.with_extension("address")).unwrap();
        let options = ServeOptions { allow_delete: true, ..ServeOptions::default() };
        serve(store, listener, options, tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    });
}

async fn start_clients(round: u64, address: &str, done: &Arc<Done>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(10)).tls_certs_only([]).build().unwrap();
        let (base, done) = (format!("http://{address}/v2/model"), Arc::clone(done));
        clients.spawn(async move {
            let mut chance = Chance(round * CLIENTS + number + 1);
            // Until the server is gone; a request that was cut off is no sign of that.
            for turn in 0..1_000 {
                let name = chance.below(40);
                let act = async {
                    match chance.below(8) {
                        0..4 => push(&client, &base, name, round ^ number << 8 ^ turn << 16, &done).await,
                        4..7 => pull(&client, &base, name, &done).await,
                        _ => client.delete(format!("{base}/manifests/m{name}")).send().await.map(|_| ()),
                    }
                };
                let cut = if number % 4 == 0 { Duration::from_millis(5 + turn % 60) } else { Duration::from_secs(10) };
                if matches!(timeout(cut, act).await, Ok(Err(_))) {
                    return;
                }
            }
        });
    }
    clients
}

/// Pushes a model of its own as one of the names that all clients share, in one of three ways.
async fn push(client: &Client, base: &str, name: u64, seed: u64, done: &Done) -> reqwest::Result<()> {
    let layer = seed.to_le_bytes().repeat(12_000);
    let mut blobs = Vec::new();
    for (number, bytes) in [b"{}".to_vec(), layer].into_iter().enumerate() {
        let digest = Digest::of(&bytes);
        blobs.push(format!(r#"{{"mediaType":"text/plain","digest":"{digest}","size":{}}}"#, bytes.len()));
        let begun = match (seed + number as u64) % 3 {
            0 => {
                let whole = client.post(format!("{base}/blobs/uploads/?digest={digest}")).body(bytes);
                if whole.send().await?.status() != StatusCode::CREATED {
                    return Ok(());
                }
                continue;
            }
            way => (way, client.post(format!("{base}/blobs/uploads/")).send().await?),
        };
        let (way, begun) = begun;
        let host = base.strip_suffix("/v2/model").unwrap();
        let Some(location) = begun.headers().get("location") else { return Ok(()) };
        let location = format!("{host}{}", location.to_str().unwrap());
        let (patched, put) = bytes.split_at(if way == 1 { 0 } else { bytes.len() / 2 });
        if !patched.is_empty() {
            client.patch(&location).body(patched.to_vec()).send().await?;
        }
        client.put(format!("{location}?digest={digest}")).body(put.to_vec()).send().await?;
    }
    let [config, layer] = &blobs[..] else { unreachable!() };
    let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":[{layer}]}}"#);
    let put = client.put(format!("{base}/manifests/m{name}")).header("content-type", OCI).body(manifest);
    let status = put.send().await?.status();
    // Nobody removes blobs here: those that were taken are there.
    assert!(status == StatusCode::CREATED, "{status}");
    done.pushed.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Pulls a model. What comes to its end is right.
async fn pull(client: &Client, base: &str, name: u64, done: &Done) -> reqwest::Result<()> {
    let got = client.get(format!("{base}/manifests/m{name}")).send().await?;
    if got.status() == StatusCode::NOT_FOUND {
        return Ok(());
    }
    let digest = got.headers().get("docker-content-digest").unwrap().to_str().unwrap().to_owned();
    let manifest = got.bytes().await?;
    assert_eq!(Digest::of(&manifest).to_string(), digest);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for blob in [&manifest["config"], &manifest["layers"][0]] {
        let digest = blob["digest"].as_str().unwrap();
        let got = client.get(format!("{base}/blobs/{digest}")).send().await?;
        assert_eq!(got.status(), StatusCode::OK, "{digest}");
        assert_eq!(Digest::of(&got.bytes().await?).to_string(), digest);
    }
    done.pulled.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Numbers that look like chance and are the same in every run (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        for shift in [13, -7_i32, 17] {
            self.0 ^= if shift > 0 { self.0 << shift } else { self.0 >> -shift };
        }
        self.0 % limit
    }
}
