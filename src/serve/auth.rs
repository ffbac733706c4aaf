//! Who may ask: passwords in a file as `htpasswd -B` writes it, and tokens that stand for one of them
//! for a while. Whoever is let in may do everything that the server does.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::crypto::ring;
use serde_json::json;
use tokio::sync::Semaphore;

use super::refusal::{Code, Failure, Refusal};
use super::route::Route;
use super::{Answer, reply, value};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;

/// How long a token is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// How long the scopes in a token may be together.
const MAX_SCOPES: usize = 4 << 10;
/// How many passwords are checked at once. Each costs a processor as long as the file's owner chose.
const CHECKS_AT_ONCE: usize = 2;
const SERVICE: &str = "kiln";

/// Users and their passwords, hashed.
#[derive(Clone)]
pub struct Users(HashMap<String, String>);

impl Users {
    /// Reads a file of `htpasswd -B`: lines of `user:hash`, with bcrypt's hashes alone.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the line that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut users = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = line.split_once(':').filter(|(user, hash)| !user.is_empty() && is_bcrypt(hash));
            let (user, hash) = entry.ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("Line {number} is not a user and a bcrypt hash"))
            })?;
            if users.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(Error::new(ErrorKind::Usage, format!("Line {number} names {} again", quoted(user))));
            }
        }
        Ok(Self(users))
    }
}

fn is_bcrypt(hash: &str) -> bool {
    ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix)) && hash.len() == 60
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.0.len())
    }
}

/// How clients are asked who they are.
#[derive(Clone, Debug)]
pub enum Auth {
    /// With every request: Basic.
    Basic(Users),
    /// At `/token`, for a token that goes with every other request: Bearer. Basic is taken too.
    Token(Users),
}

/// The gate in front of every request.
pub(super) struct Gate {
    auth: Option<Auth>,
    /// Made at the start: tokens and remembered passwords end with the process.
    key: [u8; 32],
    /// The last right password of each user, as a keyed hash: bcrypt is slow on purpose.
    right: Mutex<HashMap<String, blake3::Hash>>,
    checks: Semaphore,
    scheme: &'static str,
}

/// What is wrong with the credentials of a request.
enum Lack {
    Credentials,
    Token,
    Scope,
}

impl Gate {
    pub(super) fn new(auth: Option<Auth>, scheme: &'static str) -> Result<Self> {
        let mut key = [0; 32];
        let random = ring::default_provider().secure_random;
        random.fill(&mut key).map_err(|_| Error::new(ErrorKind::Unexpected, "The system has no random numbers"))?;
        Ok(Self { auth, key, right: Mutex::default(), checks: Semaphore::new(CHECKS_AT_ONCE), scheme })
    }

    /// The user of a request, if one is asked for; or the refusal that says what to send.
    pub(super) async fn admit(&self, parts: &Parts, route: &Route) -> Result<Option<String>, Failure> {
        let (users, tokens) = match &self.auth {
            Some(Auth::Basic(users)) => (users, false),
            Some(Auth::Token(users)) => (users, true),
            None => return Ok(None),
        };
        // Whoever asks for a token says who it is there.
        if matches!(route, Route::Health) || tokens && matches!(route, Route::Token) {
            return Ok(None);
        }
        let scope = route.scope(&parts.method);
        let lack = match credentials(parts) {
            Some(Credentials::Basic(user, password)) => match self.check(users, user, password).await? {
                Some(user) => return Ok(Some(user)),
                None => Lack::Credentials,
            },
            Some(Credentials::Bearer(token)) if tokens => match self.read(&token) {
                Some((user, scopes)) if scope.as_ref().is_none_or(|scope| covers(&scopes, scope)) => {
                    return Ok(Some(user));
                }
                Some(_) => Lack::Scope,
                None => Lack::Token,
            },
            _ => Lack::Credentials,
        };
        Err(self.challenge(parts, scope, tokens, &lack).into())
    }

    /// GET of `/token`: a token for whoever knows a password, for the scopes that are asked for.
    pub(super) async fn token(&self, parts: &Parts, query: &[(String, String)]) -> Answer {
        let Some(Auth::Token(users)) = &self.auth else {
            return Err(Refusal::not_found(Code::Unsupported, "No tokens are given here").into());
        };
        let user = match credentials(parts) {
            Some(Credentials::Basic(user, password)) => self.check(users, user, password).await?,
            _ => None,
        };
        let Some(user) = user else { return Err(self.challenge(parts, None, false, &Lack::Credentials).into()) };
        let scopes = query.iter().filter(|(key, _)| key == "scope").map(|(_, scope)| scope.as_str());
        let scopes = scopes.collect::<Vec<_>>().join(" ");
        if scopes.len() > MAX_SCOPES {
            return Err(Refusal::bad_request(Code::Unsupported, "Too many scopes at once").into());
        }
        let token = self.write(&user, &scopes, now() + TOKEN_LIFETIME.as_secs());
        let body = json::to_canonical(&json!({
            "token": token, "access_token": token, "expires_in": TOKEN_LIFETIME.as_secs(),
        }));
        let json = HeaderValue::from_static("application/json");
        let mut response = reply(StatusCode::OK, [(CONTENT_LENGTH, body.len().into()), (CONTENT_TYPE, json)]);
        *response.body_mut() = body.into();
        Ok(response)
    }

    fn challenge(&self, parts: &Parts, scope: Option<(String, &str)>, tokens: bool, lack: &Lack) -> Refusal {
        let challenge = if tokens {
            let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            let mut challenge = format!("Bearer realm=\"{}://{host}/token\",service=\"{SERVICE}\"", self.scheme);
            if let Some((resource, action)) = scope {
                let actions = if action == "push" { "pull,push" } else { action };
                challenge.push_str(&format!(",scope=\"{resource}:{actions}\""));
            }
            match lack {
                Lack::Credentials => {}
                Lack::Token => challenge.push_str(",error=\"invalid_token\""),
                Lack::Scope => challenge.push_str(",error=\"insufficient_scope\""),
            }
            challenge
        } else {
            format!("Basic realm=\"{SERVICE}\"")
        };
        Refusal::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, "Credentials are needed")
            .with(WWW_AUTHENTICATE, value(challenge))
    }

    /// The user, if the password is right.
    async fn check(&self, users: &Users, user: String, password: String) -> Result<Option<String>> {
        let seen = blake3::keyed_hash(&self.key, format!("{user}\0{password}").as_bytes());
        let right = || self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right().get(&user) == Some(&seen) {
            return Ok(Some(user));
        }
        // A user that is not there takes as long as one that is.
        let known = users.0.get(&user);
        let hash = known.or(users.0.values().next()).cloned();
        let Some(hash) = hash else { return Ok(None) };
        let _permit = self.checks.acquire().await;
        let checked = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash));
        let checked = checked
            .await
            .map_err(|cause| Error::new(ErrorKind::Unexpected, "A task of the server ended early").caused_by(cause))?;
        if known.is_none() || !checked.unwrap_or(false) {
            return Ok(None);
        }
        right().insert(user.clone(), seen);
        Ok(Some(user))
    }

    /// A token: what it says, and the keyed hash of that.
    fn write(&self, user: &str, scopes: &str, expires: u64) -> String {
        let says = URL_SAFE_NO_PAD.encode(format!("{expires}\n{user}\n{scopes}"));
        let hash = blake3::keyed_hash(&self.key, says.as_bytes());
        format!("{says}.{hash}")
    }

    /// The user and the scopes of a token that is good.
    fn read(&self, token: &str) -> Option<(String, String)> {
        let (says, hash) = token.split_once('.')?;
        // Compared in constant time.
        if blake3::Hash::from_hex(hash).ok()? != blake3::keyed_hash(&self.key, says.as_bytes()) {
            return None;
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(says).ok()?).ok()?;
        let mut lines = text.splitn(3, '\n');
        let expires = lines.next()?.parse::<u64>().ok()?;
        let (user, scopes) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        (expires > now()).then_some((user, scopes))
    }
}

enum Credentials {
    Basic(String, String),
    Bearer(String),
}

fn credentials(parts: &Parts) -> Option<Credentials> {
    let (scheme, rest) = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials::Bearer(rest.trim().to_owned()));
    }
    let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':').filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    Some(Credentials::Basic(user.to_owned(), password.to_owned()))
}

/// Whether `scopes`, as a token has them, allow `scope`.
fn covers(scopes: &str, (resource, action): &(String, &str)) -> bool {
    scopes.split(' ').filter_map(|scope| scope.rsplit_once(':')).any(|(named, actions)| {
        named == resource && actions.split(',').any(|allowed| allowed == *action || allowed == "*")
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bcrypt_is_taken() {
        let hash = bcrypt::hash("s3cret", 4).unwrap();
        let users = Users::parse(&format!("# people\n\nada:{hash}\ngrace:{hash}\n")).unwrap();
        assert_eq!((users.0.len(), format!("{users:?}").as_str()), (2, "Users(2)"));
        for wrong in ["ada", "ada:secret", "ada:{SHA}x", &format!(":{hash}"), &format!("a:{hash}\na:{hash}")] {
            assert_eq!(Users::parse(wrong).unwrap_err().kind(), ErrorKind::Usage, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_and_a_wrong_one_is_not() {
        let hash = bcrypt::hash("s3cret", 4).unwrap();
        let users = Users::parse(&format!("ada:{hash}")).unwrap();
        let gate = Gate::new(None, "http").unwrap();
        let check = |user: &str, password: &str| gate.check(&users, user.to_owned(), password.to_owned());
        for _ in 0..2 {
            assert_eq!(check("ada", "s3cret").await.unwrap().as_deref(), Some("ada"));
            for (user, password) in [("ada", "wrong"), ("ada", ""), ("grace", "s3cret"), ("", "")] {
                assert_eq!(check(user, password).await.unwrap(), None, "{user}");
            }
        }
    }

    #[test]
    fn a_token_says_what_it_said_or_nothing() {
        let gate = Gate::new(None, "http").unwrap();
        let token = gate.write("ada", "repository:a/b:pull,push repository:c:pull", now() + 10);
        let (user, scopes) = gate.read(&token).unwrap();
        assert_eq!(user, "ada");
        for (resource, action, allowed) in [
            ("repository:a/b", "push", true),
            ("repository:c", "pull", true),
            ("repository:c", "push", false),
            ("repository:a", "pull", false),
            ("registry:catalog", "*", false),
        ] {
            assert_eq!(covers(&scopes, &(resource.to_owned(), action)), allowed, "{resource} {action}");
        }
        assert!(gate.read(&gate.write("ada", "", now())).is_none(), "it ran out");
        assert!(Gate::new(None, "http").unwrap().read(&token).is_none(), "it is another server's");
        let (says, hash) = token.split_once('.').unwrap();
        let other = URL_SAFE_NO_PAD.encode(format!("{}\neve\n", now() + 10));
        for wrong in [says, hash, &format!("{other}.{hash}"), &format!("{says}.{}", "0".repeat(64)), ""] {
            assert!(gate.read(wrong).is_none(), "{wrong}");
        }
    }
}
