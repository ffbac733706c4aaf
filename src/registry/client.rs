//! The HTTP client of one registry: one place that attaches credentials, follows redirects, watches
//! for a stalled peer and tries again. The registry's credentials go to the registry's own origin
//! (scheme, host, port) and nowhere else.

use std::future::Future;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::Options;
use super::address::Address;
use super::auth::{Access, Authorizer};
use super::connector::Connector;
use super::failure::{Failure, address, shown, speaks_no_tls};
use super::outgoing::Part;
use crate::error::{Error, ErrorKind, Result};

/// How many redirects are followed for one request.
const MAX_REDIRECTS: usize = 5;
/// The longest wait between two attempts that we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A request that can be sent more than once.
pub(super) struct Call<'a> {
    method: Method,
    url: Url,
    headers: HeaderMap,
    payload: Payload<'a>,
    access: Access,
    closing: bool,
    sealed: bool,
    stays: bool,
}

enum Payload<'a> {
    None,
    Bytes(Bytes),
    Part(&'a Part<'a>),
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, url: Url, access: Access) -> Self {
        let (headers, payload) = (HeaderMap::new(), Payload::None);
        Self { method, url, headers, payload, access, closing: false, sealed: false, stays: false }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The same request with a small body.
    pub(super) fn bytes(mut self, body: Bytes) -> Self {
        self.payload = Payload::Bytes(body);
        self
    }

    /// The same request with a blob or a part of one as its body: opened anew each time, and sent to
    /// the blob's end only if all its bytes are right.
    pub(super) fn part(mut self, part: &'a Part<'a>) -> Self {
        self.payload = Payload::Part(part);
        self
    }

    /// The same request, whose answer may take minutes without a byte: the registry is storing.
    pub(super) fn closing(mut self) -> Self {
        self.closing = true;
        self
    }

    /// The same request, whose body is a secret: no redirect takes it to another origin.
    pub(super) fn sealed(mut self) -> Self {
        self.sealed = true;
        self
    }

    /// The same request, for whose sender a redirect is the answer.
    pub(super) fn stays(mut self) -> Self {
        self.stays = true;
        self
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }
}

/// A header with credentials, and the only place it is for.
pub(super) struct Grant {
    /// A URL of the origin that may see the header.
    pub(super) to: Url,
    pub(super) header: HeaderValue,
}

/// One registry.
pub(super) struct Client {
    connector: Connector,
    address: Address,
    base: OnceCell<Url>,
    authorizer: Authorizer,
    options: Options,
}

impl Client {
    pub(super) fn new(host: &str, authorizer: Authorizer, options: &Options) -> Result<Self> {
        let options = options.of(host);
        let address = Address::new(host, options.plain_http)?;
        let connector = Connector::new(&address, &options)?;
        Ok(Self { connector, address, base: OnceCell::new(), authorizer, options })
    }

    pub(super) fn host(&self) -> &str {
        self.address.host()
    }

    pub(super) fn idle(&self) -> Duration {
        self.options.idle_timeout
    }

    /// Waits until `bytes` of a blob that came may count as received: whoever reads them on without that ignores
    /// [`Options::rate`].
    pub(super) async fn pace(&self, bytes: usize) {
        if let Some(rate) = &self.options.rate {
            rate.pass(bytes).await;
        }
    }

    /// The root of the registry's API, `…/v2/`.
    ///
    /// It is HTTPS, unless the user asked for plain HTTP or the registry is on this machine and
    /// speaks it. The latter is found out by asking, without credentials: a TLS server answers a
    /// plain request with 400, or not in HTTP at all, and then has to answer in TLS.
    pub(super) async fn base(&self) -> Result<&Url, Failure> {
        self.base
            .get_or_try_init(|| async {
                let (plain, secure) = (self.address.base("http")?, self.address.base("https")?);
                if self.address.plain_http() {
                    return Ok(plain);
                }
                if !self.address.is_loopback() {
                    return Ok(secure);
                }
                let transport = |url: &Url, cause| Failure::transport(&Method::GET, url, cause);
                let odd = match self.probe(&plain).await? {
                    Ok(response) if response.status() != StatusCode::BAD_REQUEST => return Ok(plain),
                    Err(cause) if cause.is_connect() => return Err(transport(&plain, cause)),
                    odd => odd,
                };
                match (self.probe(&secure).await?, odd) {
                    (Ok(_), _) => Ok(secure),
                    // Then what came before was a plain registry's, and the connection may have better luck.
                    (Err(cause), Ok(_)) if speaks_no_tls(&cause) => Ok(plain),
                    (Err(cause), Err(odd)) if speaks_no_tls(&cause) => Err(transport(&plain, odd)),
                    (Err(cause), _) => Err(transport(&secure, cause)),
                }
            })
            .await
    }

    async fn probe(&self, base: &Url) -> Result<reqwest::Result<Response>, Failure> {
        let answer = timeout(self.idle(), self.connector.client(base)?.get(base.clone()).send()).await;
        answer.map_err(|_| Failure::stalled(&Method::GET, base, self.idle()))
    }

    /// The address of a token service that a challenge names.
    pub(super) async fn realm(&self, realm: &str) -> Result<Url, Failure> {
        Ok(self.address.realm(self.base().await?, realm)?)
    }

    /// The address in the `Location` of `response`.
    pub(super) fn location(&self, response: &Response) -> Result<Url> {
        self.address_in(response, &LOCATION)
    }

    /// The address in the header `name` of `response`.
    pub(super) fn address_in(&self, response: &Response, name: &HeaderName) -> Result<Url> {
        let location = response.headers().get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let location = location.ok_or_else(|| {
            Error::new(ErrorKind::Registry, format!("The registry `{}` names no address to go on at", self.host()))
        })?;
        self.follow(response, location)
    }

    /// The address `target` that `response` names, absolute or relative to its own.
    pub(super) fn follow(&self, response: &Response, target: &str) -> Result<Url> {
        self.address.follow(response.url(), target)
    }

    /// The address `kept`, which an earlier run was led to.
    pub(super) async fn remembered(&self, kept: &str) -> Result<Url, Failure> {
        Ok(self.address.follow(self.base().await?, kept)?)
    }

    /// Whether `url` is at the registry itself.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        self.base.get().is_some_and(|base| base.origin() == url.origin())
    }

    /// Sends `call`, once more with fresh credentials if the registry wants other ones, and a third time if it
    /// wants a scope that those do not have; gives back whatever it answers then.
    pub(super) async fn exchange(&self, call: &Call<'_>) -> Result<Response, Failure> {
        let base = self.base().await?;
        let grant = |header: Option<HeaderValue>| header.map(|header| Grant { to: base.clone(), header });
        let mut sent = self.authorizer.header(self, &call.access).await?;
        let mut response = self.transmit(call, grant(sent.clone()).as_ref()).await?;
        for is_fresh in [false, true] {
            // What another origin wants is not ours to give.
            if !matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
                || response.url().origin() != base.origin()
            {
                break;
            }
            let answer = self.authorizer.answer(self, &call.access, &response, sent.as_ref(), is_fresh);
            let Some(fresh) = answer.await? else { break };
            response = self.transmit(call, grant(Some(fresh.clone())).as_ref()).await?;
            sent = Some(fresh);
        }
        Ok(response)
    }

    /// Sends `call` and follows redirects.
    pub(super) async fn transmit(&self, call: &Call<'_>, grant: Option<&Grant>) -> Result<Response, Failure> {
        let is_read = matches!(call.method, Method::GET | Method::HEAD);
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = grant.filter(|grant| grant.to.origin() == url.origin()).map(|grant| &grant.header);
            let response = self.send(call, &url, authorization).await?;
            match response.status() {
                _ if call.stays => return Ok(response),
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
                // Whoever writes would have to read instead, and would take what it finds for an answer.
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER if is_read => {}
                _ => return Ok(response),
            }
            url = self.location(&response)?;
            if call.sealed && url.origin() != call.url.origin() {
                let message =
                    format!("The secret in {} is not sent on to `{}`", shown(&call.method, &call.url), address(&url));
                return Err(Error::new(ErrorKind::Registry, message).into());
            }
        }
        let message = format!("More than {MAX_REDIRECTS} redirects: {}", shown(&call.method, &call.url));
        Err(Error::new(ErrorKind::Registry, message).into())
    }

    async fn send(&self, call: &Call<'_>, url: &Url, authorization: Option<&HeaderValue>) -> Result<Response, Failure> {
        let (method, payload) = (&call.method, &call.payload);
        let mut request =
            self.connector.client(url)?.request(method.clone(), url.clone()).headers(call.headers.clone());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let transport = |cause| Failure::transport(method, url, cause);
        let patience = if call.closing { self.options.closing_timeout } else { self.idle() };
        let answer = match payload {
            Payload::Part(part) => {
                let watch = part.watch();
                let request = request
                    .header(CONTENT_LENGTH, part.length())
                    .body(part.open(self.options.rate.as_ref()).await?.into_body());
                tokio::select! {
                    // The source's own error explains more than the request that it broke.
                    answer = request.send() => match watch.fault() {
                        Some(fault) => return Err(fault.into()),
                        None => answer,
                    },
                    stalled = watch.stalled(self.idle(), patience) => return Err(Failure::stalled(method, url, stalled)),
                }
            }
            Payload::None | Payload::Bytes(_) => {
                request = match payload {
                    Payload::Bytes(body) => request.body(body.clone()),
                    _ if matches!(*method, Method::POST | Method::PUT) => request.header(CONTENT_LENGTH, 0),
                    _ => request,
                };
                timeout(patience, request.send()).await.map_err(|_| Failure::stalled(method, url, patience))?
            }
        };
        let response = answer.map_err(transport)?;
        if self.is_own(url) {
            self.options.warnings.tell(self.host(), response.headers());
        }
        Ok(response)
    }

    /// The failure that an unexpected answer to `call` is.
    pub(super) async fn refused(&self, call: &Call<'_>, response: Response) -> Failure {
        // A redirect led to storage whose signed address has expired, which is said with one of these: a new one
        // helps, and is got where the first came from.
        let is_read = matches!(call.method, Method::GET | Method::HEAD);
        let expired = matches!(response.status().as_u16(), 400 | 401 | 403)
            && (is_read || response.status() == StatusCode::FORBIDDEN)
            && response.url().origin() != call.url.origin();
        let failure = Failure::refused(&call.method, self.host(), response, self.idle()).await;
        if expired { failure.passes() } else { failure.remedied(self.authorizer.remedy()) }
    }

    /// The waits between attempts.
    pub(super) fn pauses(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.options.first_pause)
            .with_max_delay(LONGEST_PAUSE)
            .with_max_times(self.options.attempts.saturating_sub(1))
            .with_jitter()
    }

    /// Makes `attempt` until it succeeds, fails for good or has failed [`Options::attempts`] times. In between it
    /// waits as long as the registry asked, and then a time of its own, so that those that were told
    /// the same do not come back together.
    pub(super) async fn persist<T, F, A>(&self, attempt: A) -> Result<T, Failure>
    where
        A: FnMut() -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        attempt
            .retry(self.pauses())
            .when(Failure::may_pass)
            .adjust(|failure, pause| pause.map(|pause| failure.after().unwrap_or_default() + pause))
            .await
    }
}
