//! A token server for the real registry: whoever sends the user and password gets what is asked for,
//! as a JWT that the registry checks against a certificate.
//!
//! Distribution's "Token Authentication Implementation":
//! <https://distribution.github.io/distribution/spec/auth/jwt/>.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;

use super::Identity;
use crate::auth::{self, Grant};
use crate::reply::{self, Refusal};
use crate::server::Server;

/// The name of the issuer and of the service in `configs/token.yml`.
const NAME: &str = "registry-fixtures";
const LIFETIME_SECONDS: u64 = 300;

struct Issuer {
    user: String,
    password: String,
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// The certificate, as `x5c` has it.
    certificate: String,
}

/// Starts a server that signs with the key of `identity`.
pub(super) fn serve(user: &str, password: &str, identity: &Identity) -> Result<Server, String> {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &identity.key_der, &random)
        .map_err(|error| format!("The token server could not read its key: {error}"))?;
    let issuer = Arc::new(Issuer {
        user: user.to_owned(),
        password: password.to_owned(),
        key,
        random,
        certificate: STANDARD.encode(&identity.certificate_der),
    });
    Ok(Server::start(|_: SocketAddr| Router::new().fallback(answer).with_state(issuer)))
}

async fn answer(State(issuer): State<Arc<Issuer>>, request: Request) -> Response {
    let sent = auth::basic_of(request.headers());
    if sent.is_none_or(|(user, password)| user != issuer.user || password != issuer.password) {
        return Refusal::new(401, "UNAUTHORIZED", "another user or password").into_response();
    }
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).map(|query| query.0).unwrap_or_default();
    let scopes = query.iter().filter(|(key, _)| key == "scope").map(|(_, scope)| scope.as_str());
    match issuer.sign(&Grant::parse(scopes)) {
        Some(token) => reply::json(&json!({ "token": token, "expires_in": LIFETIME_SECONDS })),
        None => Refusal::new(500, "UNKNOWN", "the token could not be signed").into_response(),
    }
}

impl Issuer {
    /// A JWT of RFC 7519, signed with ES256.
    fn sign(&self, grants: &[Grant]) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let access =
            grants.iter().map(|grant| json!({ "type": grant.kind, "name": grant.name, "actions": grant.actions }));
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": NAME, "aud": NAME, "sub": self.user, "jti": now.to_string(),
            // The registry's clock may be read a moment before ours was.
            "iat": now, "nbf": now.saturating_sub(5), "exp": now + LIFETIME_SECONDS,
            "access": access.collect::<Vec<_>>(),
        });
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
