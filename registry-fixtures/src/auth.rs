//! Authentication: Basic, and Bearer with a token endpoint of the registry's own.
//!
//! Distribution's "Token Authentication Specification":
//! <https://distribution.github.io/distribution/spec/auth/token/>. Tokens here are opaque: a client
//! that looks inside one is wrong.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::reply::Refusal;

/// The name under which the fixture asks for tokens.
pub(crate) const SERVICE: &str = "registry-fixture";

/// Who may use the registry.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody.
    #[default]
    None,
    /// Whoever sends this user and password with each request.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Whoever fetches a token first.
    Bearer(Bearer),
}

impl Auth {
    /// Basic authentication.
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic { user: user.to_owned(), password: password.to_owned() }
    }

    /// Token authentication, for this user only, with tokens that live five minutes.
    pub fn bearer(user: &str, password: &str) -> Self {
        Self::Bearer(Bearer {
            user: user.to_owned(),
            password: password.to_owned(),
            identity_token: None,
            lifetime: Duration::from_secs(300),
            anonymous_pull: false,
        })
    }
}

/// Who gets a token, and for how long.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
    /// What may be sent to the token endpoint as an OAuth 2 refresh token instead.
    pub identity_token: Option<String>,
    /// How long a token lives; the endpoint says whole seconds in `expires_in`.
    pub lifetime: Duration,
    /// Whether tokens for pulling are given to anybody.
    pub anonymous_pull: bool,
}

/// The right to do `actions` with something, as a scope spells it: `repository:a/b:pull,push`, `registry:catalog:*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) actions: Vec<String>,
}

impl Grant {
    pub(crate) fn new(repository: &str, actions: &[&str]) -> Self {
        Self::to("repository", repository, actions)
    }

    /// The right to list the repositories.
    pub(crate) fn catalog() -> Self {
        Self::to("registry", "catalog", &["*"])
    }

    fn to(kind: &str, name: &str, actions: &[&str]) -> Self {
        let actions = actions.iter().map(|&action| action.to_owned()).collect();
        Self { kind: kind.to_owned(), name: name.to_owned(), actions }
    }

    /// The grants of scope parameters, each of which may hold several scopes between spaces.
    pub(crate) fn parse<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Vec<Self> {
        let scopes = scopes.into_iter().flat_map(|scope| scope.split(' '));
        scopes
            .filter_map(|scope| {
                let (resource, actions) = scope.rsplit_once(':')?;
                let (kind, name) = resource.split_once(':')?;
                Some(Self::to(kind, name, &actions.split(',').collect::<Vec<_>>()))
            })
            .collect()
    }

    fn scope(&self) -> String {
        format!("{}:{}:{}", self.kind, self.name, self.actions.join(","))
    }

    fn covers(&self, wanted: &Self) -> bool {
        (&self.kind, &self.name) == (&wanted.kind, &wanted.name)
            && wanted.actions.iter().all(|action| self.actions.contains(action))
    }
}

/// The tokens in use.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    issued: HashMap<String, (Instant, Vec<Grant>)>,
    count: usize,
}

impl Tokens {
    /// A token for `grants`.
    pub(crate) fn issue(&mut self, grants: Vec<Grant>, lifetime: Duration) -> String {
        self.count += 1;
        let token = format!("opaque-{}-{}", self.count, std::process::id());
        self.issued.insert(token.clone(), (Instant::now() + lifetime, grants));
        token
    }

    /// Ends the life of the request's token.
    pub(crate) fn expire(&mut self, headers: &HeaderMap) {
        if let Some(token) = bearer_of(headers) {
            self.issued.remove(token);
        }
    }

    /// Whether the request may do what `wanted` says; `realm` is the token endpoint.
    pub(crate) fn check(&self, auth: &Auth, headers: &HeaderMap, wanted: &[Grant], realm: &str) -> Result<(), Refusal> {
        let refuse = |challenge: String| {
            Refusal::new(401, "UNAUTHORIZED", "authentication required").with("www-authenticate", challenge)
        };
        match auth {
            Auth::None => Ok(()),
            Auth::Basic { user, password } => match basic_of(headers) {
                Some((sent_user, sent_password)) if sent_user == *user && sent_password == *password => Ok(()),
                _ => Err(refuse("Basic realm=\"registry-fixture\"".to_owned())),
            },
            Auth::Bearer(_) => {
                let scope = wanted.iter().map(Grant::scope).collect::<Vec<_>>().join(" ");
                let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\"");
                if !scope.is_empty() {
                    challenge.push_str(&format!(",scope=\"{scope}\""));
                }
                let Some(token) = bearer_of(headers) else { return Err(refuse(challenge)) };
                match self.issued.get(token) {
                    Some((end, grants)) if Instant::now() < *end => {
                        let allowed = wanted.iter().all(|wanted| grants.iter().any(|grant| grant.covers(wanted)));
                        if allowed { Ok(()) } else { Err(refuse(challenge + ",error=\"insufficient_scope\"")) }
                    }
                    _ => Err(refuse(challenge + ",error=\"invalid_token\"")),
                }
            }
        }
    }
}

/// The user and password of a Basic `Authorization` header.
pub(crate) fn basic_of(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn bearer_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_come_in_one_parameter_or_in_many() {
        let grants = [Grant::new("a/b", &["pull", "push"]), Grant::new("c", &["pull"])];
        assert_eq!(Grant::parse(["repository:a/b:pull,push", "repository:c:pull"]), grants);
        assert_eq!(Grant::parse(["repository:a/b:pull,push repository:c:pull"]), grants);
        assert_eq!(Grant::parse(["", "registry:catalog:*"]), [Grant::catalog()]);
    }
}
