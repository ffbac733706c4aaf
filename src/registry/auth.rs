//! Answers to a registry's challenges. Nothing is sent before the registry asks; then a Bearer token
//! is fetched where it says, or Basic is used. Tokens are kept per access until they expire, and
//! whoever comes while one is fetched waits for that one. A registry that wants more than a token allows
//! is answered once more, with the scopes that it names.
//!
//! The token protocol is distribution's: <https://distribution.github.io/distribution/spec/auth/token/>
//! and <https://distribution.github.io/distribution/spec/auth/oauth/>.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

use super::bounded;
use super::client::{Call, Client, Grant};
use super::credential::{Credential, Keychain};
use super::failure::{Failure, address};
use super::ollama::{Question, unknown_key};
use crate::error::{Error, ErrorKind, Result};
use crate::json;

/// The largest reply of a token service that is read.
const MAX_TOKEN_SIZE: u64 = 64 << 10;
/// How long a token lasts when the service does not say (the specification's default).
const DEFAULT_LIFETIME: u64 = 60;
/// A token is renewed this long before it expires, or at half its life if that is later.
const MARGIN: Duration = Duration::from_secs(10);
/// No token is believed to last longer.
const LONGEST_LIFETIME: u64 = 24 * 3600;

/// What a request wants to do; an access token is good for one of these, or for less.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Only to be known.
    Login,
    /// To read.
    Pull,
    /// To read and write.
    Push,
    /// To write, and to read from this other repository.
    Mount(String),
}

impl Access {
    /// Whether a token for this does for `other`.
    fn covers(&self, other: &Self) -> bool {
        self == other || !matches!(other, Self::Mount(_)) && self > other
    }
}

/// The credentials for one repository of one registry, and the tokens bought with them.
pub(super) struct Authorizer {
    repository: String,
    keychain: Arc<dyn Keychain>,
    state: Mutex<State>,
    /// What helps whoever is refused although they have a credential; apart from the state, which whoever is
    /// refused a token holds.
    remedy: OnceLock<String>,
}

#[derive(Default)]
struct State {
    credential: Option<Option<Credential>>,
    scheme: Option<Scheme>,
    tokens: BTreeMap<Access, Token>,
    /// The scopes that the registry wants beyond those that we know of.
    wanted: BTreeMap<Access, Vec<String>>,
}

/// How the registry wants to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scheme {
    Basic,
    Bearer(Service),
}

/// A token service, as a challenge names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
}

struct Token {
    header: HeaderValue,
    scopes: Vec<String>,
    renew: Instant,
}

impl Authorizer {
    pub(super) fn new(repository: &str, keychain: Arc<dyn Keychain>) -> Self {
        Self { repository: repository.to_owned(), keychain, state: Mutex::default(), remedy: OnceLock::new() }
    }

    /// What helps whoever is refused, if it is more than to log in.
    pub(super) fn remedy(&self) -> Option<&str> {
        self.remedy.get().map(String::as_str)
    }

    /// The header for a request, if the registry is known to want one.
    pub(super) async fn header(&self, client: &Client, access: &Access) -> Result<Option<HeaderValue>, Failure> {
        let mut state = self.state.lock().await;
        match state.scheme.clone() {
            None => Ok(None),
            Some(Scheme::Basic) => self.basic(&mut state, client).await,
            Some(Scheme::Bearer(service)) => {
                if let Some(header) = state.valid(access) {
                    return Ok(Some(header));
                }
                self.fetch(&mut state, client, &service, access).await.map(Some)
            }
        }
    }

    /// The header that answers the challenges in `reply`, a 401 or 403 to a request that was sent with the
    /// header `refused`; `None` when we have no better one. A header that is itself such an answer (`is_fresh`)
    /// is improved only if the registry names a scope that it does not have.
    pub(super) async fn answer(
        &self,
        client: &Client,
        access: &Access,
        reply: &Response,
        refused: Option<&HeaderValue>,
        is_fresh: bool,
    ) -> Result<Option<HeaderValue>, Failure> {
        let needs_scope = is_fresh || reply.status() != StatusCode::UNAUTHORIZED;
        let mut state = self.state.lock().await;
        let scheme = challenge(reply.headers());
        if needs_scope && !state.lacks_scope(scheme.as_ref(), refused) {
            return Ok(None);
        }
        if let Some(header) = state.valid(access).filter(|header| Some(header) != refused) {
            return Ok(Some(header));
        }
        state.scheme = scheme.clone().map(Scheme::without_scopes);
        match scheme {
            None => Ok(None),
            Some(Scheme::Basic) => {
                let header = self.basic(&mut state, client).await?;
                Ok(header.filter(|header| Some(header) != refused))
            }
            Some(Scheme::Bearer(service)) => {
                let mut wanted = service.scopes.clone();
                wanted.retain(|scope| !is_covered(scope, &self.scopes(access)));
                state.wanted.insert(access.clone(), wanted);
                self.fetch(&mut state, client, &service, access).await.map(Some)
            }
        }
    }

    async fn basic(&self, state: &mut State, client: &Client) -> Result<Option<HeaderValue>, Failure> {
        Ok(match self.credential(state, client).await? {
            Some(Credential::Basic { user, password }) => Some(basic_header(&user, &password)?),
            Some(Credential::IdentityToken(_) | Credential::Key(_)) | None => None,
        })
    }

    async fn credential(&self, state: &mut State, client: &Client) -> Result<Option<Credential>> {
        if let Some(credential) = &state.credential {
            return Ok(credential.clone());
        }
        let (keychain, host, repository) =
            (Arc::clone(&self.keychain), client.host().to_owned(), self.repository.clone());
        let asked = tokio::task::spawn_blocking(move || keychain.credential_for(&host, &repository)).await;
        let credential = asked.map_err(|cause| {
            Error::new(ErrorKind::Unexpected, format!("The keychain failed for `{}`", client.host())).caused_by(cause)
        })??;
        if let Some(Credential::Key(key)) = &credential {
            let _ = self.remedy.set(unknown_key(key));
        }
        state.credential = Some(credential.clone());
        Ok(credential)
    }

    /// A new token for `access`.
    async fn fetch(
        &self,
        state: &mut State,
        client: &Client,
        service: &Service,
        access: &Access,
    ) -> Result<HeaderValue, Failure> {
        let credential = self.credential(state, client).await?;
        let realm = client.realm(&service.realm).await?;
        let mut scopes = self.scopes(access);
        scopes.extend(state.wanted.get(access).into_iter().flatten().cloned());
        let reply = match credential {
            Some(Credential::IdentityToken(token)) => {
                match self.trade(client, &realm, service, &scopes, &token).await {
                    // A service without OAuth 2 takes the token as a password.
                    Err(failure)
                        if matches!(failure.status(), Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)) =>
                    {
                        let header = basic_header("<token>", &token)?;
                        self.ask(client, &realm, service, &scopes, Some(header)).await?
                    }
                    traded => traded?,
                }
            }
            Some(Credential::Basic { user, password }) => {
                self.ask(client, &realm, service, &scopes, Some(basic_header(&user, &password)?)).await?
            }
            Some(Credential::Key(key)) => {
                let question = Question::new(&key, client.base().await?, &realm, service.service.as_deref(), &scopes)?;
                let call = Call::new(Method::GET, question.url, Access::Login);
                self.token_reply(client, call, Some(secret(&question.proof)?)).await?
            }
            None => self.ask(client, &realm, service, &scopes, None).await?,
        };
        let token = Token::parse(&reply, scopes).ok_or_else(|| {
            Error::new(ErrorKind::Registry, format!("The token service `{}` gave no token", address(&realm)))
        })?;
        let header = token.header.clone();
        state.tokens.insert(access.clone(), token);
        Ok(header)
    }

    /// `GET realm?service=…&scope=…`, with Basic if we have credentials.
    async fn ask(
        &self,
        client: &Client,
        realm: &Url,
        service: &Service,
        scopes: &[String],
        authorization: Option<HeaderValue>,
    ) -> Result<Bytes, Failure> {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.service.iter().map(|name| ("service", name)));
            query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
        }
        let call = Call::new(Method::GET, url, Access::Login);
        self.token_reply(client, call, authorization).await
    }

    /// The OAuth 2 way to a token: `POST realm` with an identity token.
    async fn trade(
        &self,
        client: &Client,
        realm: &Url,
        service: &Service,
        scopes: &[String],
        token: &str,
    ) -> Result<Bytes, Failure> {
        let mut form = realm.clone();
        form.set_query(None);
        {
            let mut fields = form.query_pairs_mut();
            fields.append_pair("grant_type", "refresh_token").append_pair("client_id", "kiln");
            fields.append_pair("refresh_token", token);
            fields.extend_pairs(service.service.iter().map(|name| ("service", name)));
            if !scopes.is_empty() {
                fields.append_pair("scope", &scopes.join(" "));
            }
        }
        let body = Bytes::from(form.query().unwrap_or_default().to_owned());
        let call = Call::new(Method::POST, realm.clone(), Access::Login)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .bytes(body)
            .sealed();
        self.token_reply(client, call, None).await
    }

    async fn token_reply(
        &self,
        client: &Client,
        call: Call<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Bytes, Failure> {
        let grant = authorization.map(|header| Grant { to: call.url().clone(), header });
        let response = client.transmit(&call, grant.as_ref()).await?;
        if response.status() != StatusCode::OK {
            return Err(client.refused(&call, response).await);
        }
        bounded::read(response, MAX_TOKEN_SIZE, client.idle()).await
    }

    /// What this access needs. Some registries read only the first scope.
    fn scopes(&self, access: &Access) -> Vec<String> {
        let scope = |repository: &str, actions: &str| format!("repository:{repository}:{actions}");
        match access {
            Access::Login => vec![],
            Access::Pull => vec![scope(&self.repository, "pull")],
            Access::Push => vec![scope(&self.repository, "pull,push")],
            Access::Mount(from) => vec![scope(&self.repository, "pull,push"), scope(from, "pull")],
        }
    }
}

impl Scheme {
    /// What holds for other requests too: the scopes of a challenge are those of the refused one.
    fn without_scopes(self) -> Self {
        match self {
            Self::Bearer(service) => Self::Bearer(Service { scopes: Vec::new(), ..service }),
            Self::Basic => Self::Basic,
        }
    }
}

impl State {
    /// A token that is good for `access` and will last.
    fn valid(&self, access: &Access) -> Option<HeaderValue> {
        let now = Instant::now();
        let (_, token) = self.tokens.iter().find(|(held, token)| held.covers(access) && token.renew > now)?;
        Some(token.header.clone())
    }

    /// Whether `scheme` asks for a scope that the token in the header `refused` does not have.
    fn lacks_scope(&self, scheme: Option<&Scheme>, refused: Option<&HeaderValue>) -> bool {
        let Some(Scheme::Bearer(service)) = scheme else { return false };
        let token = self.tokens.values().find(|token| Some(&token.header) == refused);
        // A token that another request has replaced meanwhile is no longer known.
        token.is_none_or(|token| service.scopes.iter().any(|scope| !is_covered(scope, &token.scopes)))
    }
}

/// Whether `scopes` include all that `scope` does, which is `type:name:action,action`.
fn is_covered(scope: &str, scopes: &[String]) -> bool {
    let Some((resource, actions)) = scope.rsplit_once(':') else { return scopes.iter().any(|known| known == scope) };
    let known = || scopes.iter().filter_map(|known| known.rsplit_once(':')).filter(|(known, _)| *known == resource);
    actions.split(',').all(|action| known().any(|(_, actions)| actions.split(',').any(|known| known == action)))
}

impl Token {
    /// The token in a service's reply: `token` or `access_token`, good for `expires_in` seconds from
    /// `issued_at` on.
    fn parse(reply: &[u8], scopes: Vec<String>) -> Option<Self> {
        let reply = json::parse(reply).ok()?;
        let text = ["token", "access_token"].iter().find_map(|key| reply[key].as_str().filter(|t| !t.is_empty()))?;
        let lifetime = reply["expires_in"].as_u64().unwrap_or(DEFAULT_LIFETIME);
        let lifetime = Duration::from_secs(lifetime.min(LONGEST_LIFETIME));
        let issued = reply["issued_at"].as_str().and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        let age = issued.and_then(|issued| SystemTime::now().duration_since(issued.into()).ok());
        // A token that has run out when it comes is the word of a clock that is wrong.
        let left = lifetime - age.filter(|age| *age < lifetime).unwrap_or_default();
        let header = secret(&format!("Bearer {text}")).ok()?;
        Some(Self { header, scopes, renew: Instant::now() + left - MARGIN.min(left / 2) })
    }
}

/// The address of the token service that the challenges of a reply name, and the scopes they ask for.
pub(super) fn token_service(reply: &HeaderMap) -> Option<(String, Vec<String>)> {
    match challenge(reply)? {
        Scheme::Bearer(service) => Some((service.realm, service.scopes.into_iter().collect())),
        Scheme::Basic => None,
    }
}

/// The challenge we answer among those of a 401: Bearer before Basic, whatever their order.
fn challenge(reply: &HeaderMap) -> Option<Scheme> {
    let mut basic = None;
    for value in reply.get_all(WWW_AUTHENTICATE) {
        let Some(challenges) = value.to_str().ok().and_then(|text| http_auth::parse_challenges(text).ok()) else {
            continue;
        };
        for challenge in challenges {
            let parameter = |name: &str| {
                let mut found = challenge.params.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                found.next().map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                let scopes = parameter("scope").unwrap_or_default();
                let scopes = scopes.split_whitespace().map(str::to_owned).collect();
                return Some(Scheme::Bearer(Service { realm, service: parameter("service"), scopes }));
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Scheme::Basic);
            }
        }
    }
    basic
}

fn basic_header(user: &str, password: &str) -> Result<HeaderValue> {
    secret(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

/// A header value that does not print.
fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Error::new(ErrorKind::Registry, "A token with characters that no header can carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge_of(values: &[&'static str]) -> Option<Scheme> {
        let values = values.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_static(value)));
        challenge(&values.collect())
    }

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Option<Scheme> {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        Some(Scheme::Bearer(Service { realm: realm.to_owned(), service: service.map(str::to_owned), scopes }))
    }

    #[test]
    fn bearer_is_preferred_to_basic_wherever_it_stands() {
        let expected = bearer("https://t.example/a,b", Some("reg"), &["repository:a/b:pull,push"]);
        let text = r#"Bearer realm="https://t.example/a,b",service="reg",scope="repository:a/b:pull,push""#;
        assert_eq!(challenge_of(&[text]), expected);
        assert_eq!(challenge_of(&[r#"Basic realm="x""#, text]), expected);
        let both =
            r#"Basic realm="x", bearer realm="https://t.example/a,b", service=reg, scope="repository:a/b:pull,push""#;
        assert_eq!(challenge_of(&[both]), expected);
        assert_eq!(
            challenge_of(&[r#"Bearer realm="https://t.example",scope="a:b:c d:e:f",error="insufficient_scope""#]),
            bearer("https://t.example", None, &["a:b:c", "d:e:f"])
        );
    }

    #[test]
    fn a_challenge_we_cannot_answer_is_none() {
        assert_eq!(challenge_of(&[]), None);
        assert_eq!(challenge_of(&[r#"Negotiate"#, r#"Digest realm="x", nonce="y""#]), None);
        assert_eq!(challenge_of(&[r#"Bearer service="no realm""#]), None);
        assert_eq!(challenge_of(&[r#"Bearer realm="#, r#"Basic realm="test""#]), Some(Scheme::Basic));
    }

    #[test]
    fn a_token_is_renewed_before_it_expires() {
        let left = |reply: &str| {
            let token = Token::parse(reply.as_bytes(), Vec::new()).unwrap();
            (token.renew - Instant::now()).as_secs_f64().round() as u64
        };
        assert_eq!(left(r#"{"token":"a"}"#), 50);
        assert_eq!(left(r#"{"access_token":"a","expires_in":300}"#), 290);
        assert_eq!(left(r#"{"token":"a","expires_in":4}"#), 2);
        assert_eq!(left(r#"{"token":"a","expires_in":18446744073709551615}"#), LONGEST_LIFETIME - 10);
        let issued = |ago: u64| {
            let then = OffsetDateTime::from(SystemTime::now() - Duration::from_secs(ago)).format(&Rfc3339).unwrap();
            left(&format!(r#"{{"token":"a","expires_in":300,"issued_at":"{then}"}}"#))
        };
        assert_eq!(issued(100), 190);
        // Whose clock is wrong, is not known: the registry will say when it has had enough.
        assert_eq!((issued(301), issued(3600)), (290, 290));
        assert_eq!(left(r#"{"token":"a","expires_in":300,"issued_at":"today"}"#), 290);
        for reply in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":1}"#] {
            assert!(Token::parse(reply.as_bytes(), Vec::new()).is_none(), "{reply}");
        }
    }

    #[test]
    fn a_token_to_push_is_good_to_pull_and_not_the_other_way() {
        let token = || Token::parse(br#"{"token":"a"}"#, Vec::new()).unwrap();
        let mut state = State::default();
        state.tokens.insert(Access::Pull, token());
        assert!(state.valid(&Access::Push).is_none());
        state.tokens.insert(Access::Push, token());
        state.tokens.remove(&Access::Pull);
        assert!(state.valid(&Access::Pull).is_some());
        let mount = |from: &str| Access::Mount(from.to_owned());
        assert!(state.valid(&mount("b")).is_none());
        state.tokens.clear();
        state.tokens.insert(mount("b"), token());
        assert!(state.valid(&mount("b")).is_some() && state.valid(&Access::Push).is_some());
        assert!(state.valid(&mount("a")).is_none(), "it is for another repository");
    }

    #[test]
    fn a_scope_is_what_the_access_needs() {
        let authorizer = Authorizer::new("a/b", Arc::new(super::super::Anonymous));
        assert!(authorizer.scopes(&Access::Login).is_empty());
        assert_eq!(authorizer.scopes(&Access::Pull), ["repository:a/b:pull"]);
        assert_eq!(authorizer.scopes(&Access::Push), ["repository:a/b:pull,push"]);
        let mount = authorizer.scopes(&Access::Mount("a".to_owned()));
        assert_eq!(mount, ["repository:a/b:pull,push", "repository:a:pull"]);
    }

    #[test]
    fn a_scope_is_covered_action_by_action() {
        let scopes = ["repository:a/b:pull,push".to_owned(), "registry:catalog:*".to_owned(), "odd".to_owned()];
        for scope in ["repository:a/b:pull", "repository:a/b:push,pull", "registry:catalog:*", "odd"] {
            assert!(is_covered(scope, &scopes), "{scope}");
        }
        for scope in ["repository:a/b:pull,delete", "repository:a:pull", "repository:a/b", "strange", ""] {
            assert!(!is_covered(scope, &scopes), "{scope}");
        }
    }

    #[test]
    fn a_header_does_not_print_its_secret() {
        assert_eq!(basic_header("alice", "s3cret").unwrap(), "Basic YWxpY2U6czNjcmV0");
        assert_eq!(format!("{:?}", basic_header("alice", "s3cret").unwrap()), "Sensitive");
    }
}
