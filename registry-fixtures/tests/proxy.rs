//! What the bad line promises: it is a line, it counts, and what happens on it happens at the byte that was named.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use registry_fixtures::{Line, Mishap, Proxy, Spot};

const PATIENCE: Duration = Duration::from_secs(10);
const SIZE: usize = 300_000;

/// A server that takes what comes until `size` bytes are there, or the client has no more, and sends the same back, on
/// each of `connections` connections; its thread gives what came.
fn echo(size: usize, connections: usize) -> (String, JoinHandle<Vec<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let mut all = Vec::new();
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut came = Vec::new();
            let mut piece = [0; 4096];
            while came.len() < size {
                match stream.read(&mut piece) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => came.extend_from_slice(&piece[..length]),
                }
            }
            let _ = stream.write_all(&came);
            all.push(came);
        }
        all
    });
    (host, server)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.host()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|index| (index * 7 / 3) as u8).collect()
}

/// Reads to the end, and says whether that was one.
fn rest(stream: &mut TcpStream) -> (Vec<u8>, std::io::Result<()>) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all).map(|_| ());
    (all, end)
}

#[test]
fn a_line_on_which_nothing_happens_changes_and_loses_nothing() {
    let (host, server) = echo(SIZE, 2);
    let proxy = Proxy::to(&host);
    for _ in 0..2 {
        let mut stream = connect(&proxy);
        stream.write_all(&bytes()).unwrap();
        let (back, end) = rest(&mut stream);
        assert!(end.is_ok() && back == bytes(), "{end:?}, {} bytes", back.len());
    }
    assert!(server.join().unwrap() == [bytes(), bytes()]);
    let expected = 2 * SIZE as u64;
    assert_eq!((proxy.sent(), proxy.received(), proxy.connections()), (expected, expected, 2));
}

#[test]
fn what_clients_send_is_kept_when_a_test_asks_for_it() {
    let (host, server) = echo(10, 3);
    let proxy = Proxy::to(&host);
    for word in ["0123456789", "abcdefghij", "ABCDEFGHIJ"] {
        let mut stream = connect(&proxy);
        stream.write_all(word.as_bytes()).unwrap();
        assert_eq!(rest(&mut stream).0, word.as_bytes());
        proxy.record();
    }
    assert_eq!(proxy.transcripts(), [b"abcdefghij", b"ABCDEFGHIJ"]);
    server.join().unwrap();
}

#[test]
fn a_cut_is_an_end_and_a_reset_is_none() {
    for (mishap, is_end) in [(Mishap::Cut, true), (Mishap::Reset, false)] {
        let (host, server) = echo(SIZE, 1);
        let proxy = Proxy::to(&host);
        proxy.inject(Spot::down(1000), mishap);
        let mut stream = connect(&proxy);
        stream.write_all(&bytes()).unwrap();
        let (back, end) = rest(&mut stream);
        if is_end {
            assert_eq!((back.len(), end.is_ok()), (1000, true), "{end:?}");
        } else {
            // What came before a reset may go with it.
            assert!(back.len() <= 1000);
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!((proxy.to_come(), proxy.received()), (0, 1000));
        assert!(server.join().unwrap() == [bytes()]);
    }
}

#[test]
fn what_happens_to_what_is_sent_leaves_the_registry_with_that_much() {
    for mishap in [Mishap::Cut, Mishap::Reset] {
        let (host, server) = echo(SIZE, 1);
        let proxy = Proxy::to(&host);
        proxy.inject(Spot::up(100_001), mishap);
        let mut stream = connect(&proxy);
        let sent = stream.write_all(&bytes());
        let (back, end) = rest(&mut stream);
        assert!(back.is_empty() && (mishap == Mishap::Cut || sent.and(end).is_err()));
        let came = server.join().unwrap().remove(0);
        assert!(bytes().starts_with(&came) && came.len() <= 100_001, "{}", came.len());
        // A reset may overtake what was sent before it.
        assert!(mishap == Mishap::Reset || came.len() == 100_001, "{}", came.len());
    }
}

#[test]
fn a_flipped_bit_is_all_that_changes() {
    for (spot, there, back) in [(Spot::up(70_000), 70_000, 70_000), (Spot::down(0), SIZE, 0)] {
        let (host, server) = echo(SIZE, 1);
        let proxy = Proxy::to(&host);
        proxy.inject(spot, Mishap::FlipBit);
        let mut stream = connect(&proxy);
        stream.write_all(&bytes()).unwrap();
        let flipped = |at: usize| {
            let mut bytes = bytes();
            bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
            bytes
        };
        assert!(rest(&mut stream).0 == flipped(back));
        assert!(server.join().unwrap() == [flipped(there)]);
    }
}

#[test]
fn a_line_that_stalls_stays_open_and_the_other_way_goes_on() {
    let (host, server) = echo(1000, 1);
    let proxy = Proxy::to(&host);
    proxy.inject(Spot::down(300), Mishap::Stall);
    let mut stream = connect(&proxy);
    stream.write_all(&bytes()[..1000]).unwrap();
    let mut back = [0; 300];
    stream.read_exact(&mut back).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let silence = stream.read(&mut back).unwrap_err().kind();
    assert!([ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&silence), "{silence}");
    assert!(server.join().unwrap() == [&bytes()[..1000]]);
}

#[test]
fn the_byte_is_counted_on_one_connection_or_on_all() {
    let (host, server) = echo(1000, 4);
    let proxy = Proxy::to(&host);
    proxy.inject(Spot::down(500).of_connection(2), Mishap::Cut);
    proxy.inject(Spot::down(2600), Mishap::Cut);
    let lengths = (0..4).map(|_| {
        let mut stream = connect(&proxy);
        stream.write_all(&bytes()[..1000]).unwrap();
        rest(&mut stream).0.len()
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [1000, 500, 1000, 100]);
    assert_eq!(server.join().unwrap().len(), 4);
}

#[test]
fn a_slow_line_takes_its_time() {
    let (host, server) = echo(100_000, 2);
    let proxy = Proxy::to(&host);
    for (line, expected) in [
        (Line { rate: Some(400_000), latency: Duration::ZERO }, Duration::from_millis(450)),
        (Line { rate: None, latency: Duration::from_millis(150) }, Duration::from_millis(300)),
    ] {
        proxy.set_line(line);
        let begun = Instant::now();
        let mut stream = connect(&proxy);
        stream.write_all(&bytes()[..100_000]).unwrap();
        assert_eq!(rest(&mut stream).0.len(), 100_000);
        // It may take longer on a busy machine, and never less.
        assert!(begun.elapsed() >= expected, "{:?}", begun.elapsed());
    }
    server.join().unwrap();
}

#[test]
fn a_registry_that_is_gone_is_a_connection_that_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let proxy = Proxy::to(&host);
    assert!(rest(&mut connect(&proxy)).0.is_empty());
}
