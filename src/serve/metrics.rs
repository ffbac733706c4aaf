//! What the server counts, and the line that it can write for every request.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody as _};
use axum::http::{Method, Uri};
use axum::response::Response;
use futures_util::TryStreamExt as _;

/// The upper bounds of the classes of durations, in seconds.
const BOUNDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0];

/// What other servers too count for a client that did not wait.
const CLIENT_LEFT: u16 = 499;

/// One request, told when its answer has gone.
#[derive(Clone, Debug)]
pub struct Access {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Who asked, where anyone is asked for.
    pub user: Option<String>,
    /// The method.
    pub method: Method,
    /// The path, with the query.
    pub path: Uri,
    /// The status of the answer; 499 when the client left before there was one.
    pub status: u16,
    /// The bytes of the request's body that arrived.
    pub received: u64,
    /// The bytes of the answer's body that were sent.
    pub sent: u64,
    /// From the request's headers to the answer's end.
    pub duration: Duration,
}

/// Who is told of every request.
#[derive(Clone)]
pub struct AccessLog(Arc<dyn Fn(&Access) + Send + Sync>);

impl AccessLog {
    /// Tells `receiver`.
    pub fn new(receiver: impl Fn(&Access) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receiver))
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessLog")
    }
}

/// The counters, since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// By method and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    received: AtomicU64,
    sent: AtomicU64,
    classes: [AtomicU64; BOUNDS.len()],
    microseconds: AtomicU64,
    pub(super) connections: AtomicU64,
    log: Option<AccessLog>,
}

impl Metrics {
    pub(super) fn new(log: Option<AccessLog>) -> Self {
        Self { log, ..Self::default() }
    }

    fn count(&self, access: &Access) {
        let method = ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"];
        let method = method.into_iter().find(|known| *known == access.method.as_str()).unwrap_or("other");
        *self.requests().entry((method, access.status)).or_default() += 1;
        self.received.fetch_add(access.received, Ordering::Relaxed);
        self.sent.fetch_add(access.sent, Ordering::Relaxed);
        let seconds = access.duration.as_secs_f64();
        for (bound, class) in BOUNDS.iter().zip(&self.classes) {
            class.fetch_add(u64::from(seconds <= *bound), Ordering::Relaxed);
        }
        let microseconds = u64::try_from(access.duration.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
        if let Some(AccessLog(tell)) = &self.log {
            tell(access);
        }
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<(&'static str, u16), u64>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text of Prometheus, version 0.0.4:
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
    pub(super) fn text(&self, uploads: usize) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            let _ = writeln!(text, "# HELP kiln_{name} {help}\n# TYPE kiln_{name} {kind}");
            for (suffix, value) in samples {
                let _ = writeln!(text, "kiln_{name}{suffix} {value}");
            }
        };
        let one = |value: u64| [(String::new(), value.to_string())];
        let requests = self.requests();
        let by_status = requests.iter().map(|((method, status), count)| {
            (format!("{{method=\"{method}\",status=\"{status}\"}}"), count.to_string())
        });
        family("http_requests_total", "counter", "Requests that were answered.", &by_status.collect::<Vec<_>>());
        let total = requests.values().sum::<u64>().to_string();
        let classes = BOUNDS
            .iter()
            .zip(&self.classes)
            .map(|(bound, class)| (format!("_bucket{{le=\"{bound}\"}}"), class.load(Ordering::Relaxed).to_string()));
        let sum = Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        let rest = [
            ("_bucket{le=\"+Inf\"}".to_owned(), total.clone()),
            ("_sum".to_owned(), sum.to_string()),
            ("_count".to_owned(), total),
        ];
        let help = "Seconds from a request's headers to the end of its answer.";
        family("http_request_duration_seconds", "histogram", help, &classes.chain(rest).collect::<Vec<_>>());
        let received = self.received.load(Ordering::Relaxed);
        family("received_bytes_total", "counter", "Bytes of requests' bodies.", &one(received));
        family("sent_bytes_total", "counter", "Bytes of answers' bodies.", &one(self.sent.load(Ordering::Relaxed)));
        family("uploads", "gauge", "Uploads under way.", &one(uploads as u64));
        family("connections", "gauge", "Connections that are open.", &one(self.connections.load(Ordering::Relaxed)));
        text
    }
}

/// A request under way; dropping it counts it.
pub(super) struct Counted {
    metrics: Arc<Metrics>,
    access: Access,
    begun: Instant,
}

impl Counted {
    pub(super) fn new(metrics: &Arc<Metrics>, peer: SocketAddr, method: Method, path: Uri) -> Self {
        let duration = Duration::ZERO;
        let access = Access { peer, user: None, method, path, status: CLIENT_LEFT, received: 0, sent: 0, duration };
        Self { metrics: Arc::clone(metrics), access, begun: Instant::now() }
    }

    /// Says who asked.
    pub(super) fn user(&mut self, user: Option<String>) {
        self.access.user = user;
    }

    fn sent(&mut self, bytes: usize) {
        self.access.sent += bytes as u64;
    }

    /// The same response, which is counted at its end.
    pub(super) fn answer(mut self, received: u64, response: Response) -> Response {
        self.access.status = response.status().as_u16();
        self.access.received = received;
        let (parts, body) = response.into_parts();
        if body.is_end_stream() {
            return Response::from_parts(parts, body);
        }
        let counted = body.into_data_stream().inspect_ok(move |bytes| self.sent(bytes.len()));
        Response::from_parts(parts, Body::from_stream(counted))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.access.duration = self.begun.elapsed();
        self.metrics.count(&self.access);
    }
}
