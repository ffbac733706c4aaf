//! A bad line: a TCP proxy between a client and a registry, real or not. It knows nothing of HTTP. It counts bytes,
//! is as slow as a test says, and at a byte that a test names it breaks a connection, stalls it, or flips a bit.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::server::Server;

/// The most that one read takes.
const PIECE: usize = 16 << 10;
/// How many pieces are on their way while they wait for the line.
const UNDER_WAY: usize = 16;
/// What the system may keep of a connection that breaks: without a bound, megabytes that were counted and lost.
const SYSTEM_BUFFER: u32 = 128 << 10;
/// How long a connection that was cut is read on, so that the client sees an end and not a reset.
const LINGER: Duration = Duration::from_secs(2);

/// A way over the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client to the registry.
    Up,
    /// From the registry to the client.
    Down,
}

/// A byte on the line.
#[derive(Clone, Debug)]
pub struct Spot {
    way: Way,
    offset: u64,
    connection: Option<usize>,
}

impl Spot {
    /// Behind `offset` bytes from clients to the registry, counted over all connections.
    pub fn up(offset: u64) -> Self {
        Self { way: Way::Up, offset, connection: None }
    }

    /// Behind `offset` bytes from the registry to clients, counted over all connections.
    pub fn down(offset: u64) -> Self {
        Self { way: Way::Down, offset, connection: None }
    }

    /// Counted on the `number`th connection only, from 1.
    #[must_use]
    pub fn of_connection(mut self, number: usize) -> Self {
        self.connection = Some(number);
        self
    }
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It ends in both directions, as if the other end had closed it (FIN).
    Cut,
    /// It is reset (RST).
    Reset,
    /// Nothing more comes in this direction, and it stays open.
    Stall,
    /// The lowest bit of the next byte is flipped.
    FlipBit,
}

/// How fast the line is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// Bytes a second in each direction, all connections together; `None` for as fast as it goes.
    pub rate: Option<u64>,
    /// How much later every byte arrives.
    pub latency: Duration,
}

/// What the connections share.
#[derive(Debug, Default)]
struct State {
    line: Line,
    mishaps: Vec<(Spot, Mishap)>,
    /// How many connections there were.
    connections: usize,
    /// What clients sent, for each connection; kept if a test asks for it.
    transcripts: Option<BTreeMap<usize, Vec<u8>>>,
    up: Counted,
    down: Counted,
}

/// One direction of the line.
#[derive(Debug, Default)]
struct Counted {
    /// Bytes that came from one end.
    taken: u64,
    /// Bytes that were given to the other.
    passed: u64,
    /// When the line is free again.
    free: Option<Instant>,
}

impl State {
    fn counted(&mut self, way: Way) -> &mut Counted {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// Takes `bytes`; when they arrive at the other end.
    fn take(&mut self, way: Way, connection: usize, bytes: &[u8]) -> Instant {
        if let (Way::Up, Some(transcripts)) = (way, &mut self.transcripts) {
            transcripts.entry(connection).or_default().extend_from_slice(bytes);
        }
        let (line, length) = (self.line, bytes.len());
        let now = Instant::now();
        let counted = self.counted(way);
        counted.taken += length as u64;
        let free = counted.free.map_or(now, |free| free.max(now));
        let needed = line.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(length as f64 / rate as f64));
        counted.free = Some(free + needed);
        free + needed + line.latency
    }

    /// Lets bytes pass, at most `length`: how many, and what happens behind them.
    fn pass(&mut self, way: Way, connection: usize, passed: u64, length: usize) -> (usize, Option<Mishap>) {
        let all = self.counted(way).passed;
        let due = self.mishaps.iter().enumerate().filter_map(|(index, (spot, mishap))| {
            let own = spot.connection.is_none_or(|number| number == connection);
            let position = if spot.connection.is_some() { passed } else { all };
            let offset = usize::try_from(spot.offset.checked_sub(position)?).ok()?;
            // Where a bit is flipped, there is a byte.
            let within = if *mishap == Mishap::FlipBit { offset < length } else { offset <= length };
            (own && spot.way == way && within).then_some((offset, index))
        });
        let (length, mishap) = match due.min() {
            Some((offset, index)) => (offset, Some(self.mishaps.remove(index).1)),
            None => (length, None),
        };
        self.counted(way).passed += length as u64;
        (length, mishap)
    }
}

/// A running proxy on a port of 127.0.0.1 that the system chose; gone with all connections when dropped.
///
/// ```
/// use registry_fixtures::{Fixture, Mishap, Proxy, Spot};
///
/// let registry = Fixture::start();
/// let proxy = Proxy::to(&registry.host());
/// proxy.inject(Spot::up(1_000_000), Mishap::Reset);
/// assert_eq!((proxy.sent(), proxy.connections()), (0, 0));
/// ```
#[derive(Debug)]
pub struct Proxy {
    state: Arc<Mutex<State>>,
    server: Server,
}

impl Proxy {
    /// A line to the registry at `host`, an address and a port, on which nothing happens.
    ///
    /// # Panics
    /// When `host` is no address with a port, or no port is free.
    pub fn to(host: &str) -> Self {
        let registry: SocketAddr = host.parse().expect("an address and a port");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let socket = Server::socket();
        // Its connections have what is set before it listens.
        bound(&socket).expect("buffers of another size");
        let server = Server::run(socket, move |listener| listen(listener, registry, shared));
        Self { state, server }
    }

    /// `127.0.0.1:PORT`, to be spoken to in the registry's place.
    pub fn host(&self) -> String {
        self.server.address().to_string()
    }

    /// From now on the line is like this.
    pub fn set_line(&self, line: Line) {
        let mut state = lock(&self.state);
        state.line = line;
        (state.up.free, state.down.free) = (None, None);
    }

    /// Lets something happen once, at a byte that has not passed yet.
    pub fn inject(&self, spot: Spot, mishap: Mishap) {
        lock(&self.state).mishaps.push((spot, mishap));
    }

    /// Keeps what clients send from now on, for [`Proxy::transcripts`].
    pub fn record(&self) {
        lock(&self.state).transcripts.get_or_insert_default();
    }

    /// What clients sent while it was recorded, for each connection.
    pub fn transcripts(&self) -> Vec<Vec<u8>> {
        lock(&self.state).transcripts.iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// How many mishaps are still to come.
    pub fn to_come(&self) -> usize {
        lock(&self.state).mishaps.len()
    }

    /// How many bytes clients sent, all connections together: head and body of every request.
    pub fn sent(&self) -> u64 {
        lock(&self.state).up.taken
    }

    /// How many bytes clients were given, all connections together: head and body of every reply.
    pub fn received(&self) -> u64 {
        lock(&self.state).down.passed
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        lock(&self.state).connections
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bound(socket: &TcpSocket) -> io::Result<()> {
    socket.set_recv_buffer_size(SYSTEM_BUFFER)?;
    socket.set_send_buffer_size(SYSTEM_BUFFER)
}

async fn listen(listener: TcpListener, registry: SocketAddr, state: Arc<Mutex<State>>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let number = {
            let mut state = lock(&state);
            state.connections += 1;
            state.connections
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            // A registry that is not there is a connection that ends.
            let _ = carry(client, registry, number, state).await;
        });
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its ends closed it.
    Closed,
    Cut,
    Reset,
}

/// Carries one connection, both ways, to its end.
async fn carry(client: TcpStream, registry: SocketAddr, connection: usize, state: Arc<Mutex<State>>) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    bound(&socket)?;
    let registry = socket.connect(registry).await?;
    for end in [&client, &registry] {
        end.set_nodelay(true)?;
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_registry, mut to_registry) = registry.into_split();
    let end = {
        let [up, down] = [Way::Up, Way::Down].map(|way| Direction { way, connection, state: &state });
        let up = up.carry(&mut from_client, &mut to_registry);
        let down = down.carry(&mut from_registry, &mut to_client);
        tokio::pin!(up, down);
        // Whoever closes one direction may still wait for the other.
        tokio::select! {
            end = &mut up => if end == End::Closed { down.await } else { end },
            end = &mut down => if end == End::Closed { up.await } else { end },
        }
    };
    match end {
        End::Closed => {}
        End::Cut => {
            let _ = to_client.shutdown().await;
            let mut rest = [0; PIECE];
            // What is closed with bytes in it is reset.
            let read_on = async { while from_client.read(&mut rest).await.is_ok_and(|length| length > 0) {} };
            let _ = tokio::time::timeout(LINGER, read_on).await;
        }
        End::Reset => {
            let client = from_client.reunite(to_client).map_err(io::Error::other)?;
            let registry = from_registry.reunite(to_registry).map_err(io::Error::other)?;
            client.set_zero_linger()?;
            registry.set_zero_linger()?;
        }
    }
    Ok(())
}

/// One direction of one connection.
struct Direction<'a> {
    way: Way,
    connection: usize,
    state: &'a Mutex<State>,
}

impl Direction<'_> {
    /// Passes on what comes until it ends.
    async fn carry(&self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> End {
        let (under_way, arriving) = mpsc::channel(UNDER_WAY);
        tokio::select! {
            () = self.read(from, under_way) => End::Closed,
            end = self.write(arriving, to) => end,
        }
    }

    async fn read(&self, from: &mut OwnedReadHalf, under_way: mpsc::Sender<(Instant, Vec<u8>)>) {
        let mut piece = vec![0; PIECE];
        loop {
            let length = from.read(&mut piece).await.unwrap_or(0);
            if length == 0 {
                break;
            }
            let arrives = lock(self.state).take(self.way, self.connection, &piece[..length]);
            if under_way.send((arrives, piece[..length].to_vec())).await.is_err() {
                break;
            }
        }
        // What is under way still arrives.
        drop(under_way);
        std::future::pending().await
    }

    async fn write(&self, mut arriving: mpsc::Receiver<(Instant, Vec<u8>)>, to: &mut OwnedWriteHalf) -> End {
        let mut passed = 0;
        while let Some((arrives, mut piece)) = arriving.recv().await {
            sleep_until(arrives).await;
            while !piece.is_empty() {
                let (length, mishap) = lock(self.state).pass(self.way, self.connection, passed, piece.len());
                passed += length as u64;
                let rest = piece.split_off(length);
                if to.write_all(&piece).await.is_err() {
                    return End::Closed;
                }
                piece = rest;
                match mishap {
                    None => {}
                    Some(Mishap::Cut) => return End::Cut,
                    Some(Mishap::Reset) => return End::Reset,
                    Some(Mishap::Stall) => return std::future::pending().await,
                    Some(Mishap::FlipBit) => piece[0] ^= 1,
                }
            }
        }
        let _ = to.shutdown().await;
        End::Closed
    }
}
