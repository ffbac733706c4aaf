//! An HTTP proxy that leads everything to one place, and records what it was asked for.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

pub(crate) struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// A proxy on a port of this machine; whatever host it is asked for, it asks `target`.
    pub(crate) fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (record, target) = (Arc::clone(&asked), target.to_owned());
        // It ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (record, target) = (Arc::clone(&record), target.clone());
                // A client that goes away is not the proxy's concern.
                thread::spawn(move || pass(client, &target, &record));
            }
        });
        Self { address, asked }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The method and the target of each request.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn pass(client: TcpStream, target: &str, record: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let words: Vec<_> = request.split_whitespace().map(str::to_owned).collect();
    let [method, url, version] = &words[..] else { return Ok(()) };
    record.lock().unwrap().push(format!("{method} {url}"));
    let mut server = TcpStream::connect(target)?;
    let is_tunnel = method == "CONNECT";
    if !is_tunnel {
        let path = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or("/");
        // One request for each connection: the next one may be for another host.
        write!(server, "{method} {path} {version}\r\nConnection: close\r\n")?;
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if !is_tunnel && !line.to_ascii_lowercase().starts_with("connection:") {
            server.write_all(line.as_bytes())?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let (mut to_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    if is_tunnel {
        to_client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    }
    let upwards = thread::spawn(move || {
        let _ = io::copy(&mut reader, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut server, &mut to_client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upwards.join();
    Ok(())
}
