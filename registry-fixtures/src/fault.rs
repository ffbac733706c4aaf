//! Faults: what goes wrong, and at which request.

use std::time::Duration;

/// Which requests a [`Fault`] befalls: those of a method whose path contains a fragment, counted from
/// the moment the fault is added.
#[derive(Clone, Debug)]
pub struct Trigger {
    method: String,
    fragment: String,
    from: usize,
    times: usize,
}

impl Trigger {
    /// The first request of `method` (`*` for any) with `fragment` in its path.
    pub fn on(method: &str, fragment: &str) -> Self {
        Self { method: method.to_owned(), fragment: fragment.to_owned(), from: 1, times: 1 }
    }

    /// Not the first but the `nth` such request, counted from 1.
    #[must_use]
    pub fn nth(mut self, nth: usize) -> Self {
        self.from = nth;
        self
    }

    /// This many such requests in a row.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Every such request from there on.
    #[must_use]
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The request is answered with this status and not carried out.
    Status {
        /// The status code.
        code: u16,
        /// Seconds for a `Retry-After` header.
        retry_after: Option<u64>,
        /// The body, as it is: JSON of the specification, a proxy's HTML, nothing.
        body: String,
    },
    /// The connection closes after this many bytes of the request's body, without a reply.
    DropRequest {
        /// Bytes taken in.
        after: u64,
    },
    /// The request is carried out, but the connection closes instead of a reply.
    LoseReply,
    /// The connection closes after this many bytes of the reply's body.
    DropReply {
        /// Bytes sent.
        after: usize,
    },
    /// The reply stops after this many bytes of its body and the connection stays open.
    Stall {
        /// Bytes sent.
        after: usize,
    },
    /// The request is carried out, and the reply comes this much later: a slow finalise.
    Delay(Duration),
    /// A well-formed reply with only this many bytes of the body, and a `Content-Length` that agrees.
    Truncate {
        /// Bytes sent.
        after: usize,
    },
    /// The lowest bit of this byte of the reply's body is flipped: content that is not its digest's.
    FlipBit {
        /// The byte's offset.
        at: usize,
    },
    /// `Docker-Content-Digest` names other content.
    LyingDigest,
    /// The reply has this `Content-Type`.
    ContentType(&'static str),
    /// The request is carried out and answered with this status.
    Instead(u16),
    /// The reply's body has no end.
    Endless,
    /// A 307 to the same path on another `host:port`.
    RedirectTo(String),
    /// The request's token has expired: a 401, and the token is good for nothing afterwards.
    ExpiredToken,
    /// The upload session of the request is gone, as after a restart of the registry.
    ForgetUpload,
    /// The upload session of the request lost this many bytes at its end.
    LoseTail {
        /// Bytes gone.
        bytes: usize,
    },
    /// The registry takes this many bytes of a chunk, drops the rest, and says so.
    TakeOnly {
        /// Bytes taken.
        bytes: u64,
    },
    /// A `Range` header is ignored: the whole content, with status 200.
    IgnoreRange,
    /// The reply has this `Content-Range`.
    ContentRange(String),
    /// The reply has no `Location`.
    MissingLocation,
    /// The reply has this `Location`.
    Location(String),
    /// The reply has this header, and none besides of its name.
    Header(&'static str, String),
}

/// The faults still to come.
#[derive(Debug, Default)]
pub(crate) struct Script(Vec<Step>);

#[derive(Debug)]
struct Step {
    trigger: Trigger,
    fault: Fault,
    seen: usize,
}

impl Script {
    pub(crate) fn add(&mut self, trigger: Trigger, fault: Fault) {
        self.0.push(Step { trigger, fault, seen: 0 });
    }

    /// The faults of the next request; every step counts it.
    pub(crate) fn next(&mut self, method: &str, path: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        for Step { trigger, fault, seen } in &mut self.0 {
            if (trigger.method == "*" || trigger.method == method) && path.contains(&trigger.fragment) {
                *seen += 1;
                if *seen >= trigger.from && *seen - trigger.from < trigger.times {
                    faults.push(fault.clone());
                }
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_counts_the_requests_it_matches() {
        let mut script = Script::default();
        script.add(Trigger::on("GET", "/blobs/").nth(2).times(2), Fault::LoseReply);
        let hits = |method, path, script: &mut Script| script.next(method, path).len();
        assert_eq!(hits("GET", "/v2/a/blobs/x", &mut script), 0);
        assert_eq!(hits("HEAD", "/v2/a/blobs/x", &mut script), 0);
        assert_eq!(hits("GET", "/v2/a/manifests/x", &mut script), 0);
        assert_eq!(hits("GET", "/v2/a/blobs/x", &mut script), 1);
        assert_eq!(hits("GET", "/v2/a/blobs/x", &mut script), 1);
        assert_eq!(hits("GET", "/v2/a/blobs/x", &mut script), 0);
    }
}
