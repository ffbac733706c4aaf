//! One blob into one repository: a session, one PUT with all bytes, and when the answer to that is
//! lost, a look whether the blob is there before the bytes are sent again.
//!
//! OCI distribution-spec v1.1.1, "POST then PUT":
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#post-then-put>.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use tokio::time::timeout;

use super::Repository;
use super::address::with_digest;
use super::auth::Access;
use super::client::Call;
use super::failure::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use crate::storage::{Body, Pushed};

/// How long a session that is of no more use may take to be thrown away.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

impl Repository {
    /// Sends `body` as the blob `expected`.
    pub(super) async fn upload(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        let sent_before = AtomicBool::new(false);
        let outcome = self
            .client
            .persist(|| async {
                if sent_before.load(Ordering::Relaxed) && self.is_present(expected).await? {
                    return Ok(());
                }
                let session = self.begin().await?;
                sent_before.store(true, Ordering::Relaxed);
                let sent = self.send(&session, expected, body).await;
                if sent.as_ref().is_err_and(|failure| !failure.may_pass()) {
                    self.abandon(session).await;
                }
                sent
            })
            .await;
        match outcome {
            Err(failure) if failure.may_pass() && sent_before.into_inner() => {
                if self.is_present(expected).await.unwrap_or(false) { Ok(Pushed::Stored) } else { Err(failure.into()) }
            }
            outcome => Ok(outcome.map(|()| Pushed::Stored)?),
        }
    }

    /// Opens an upload session.
    async fn begin(&self) -> Result<Url, Failure> {
        let call = Call::new(Method::POST, self.url("blobs/uploads/").await?, Access::Push);
        let response = self.client.exchange(&call).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.client.refused(&call, response).await);
        }
        Ok(self.client.location(&response)?)
    }

    async fn send(&self, session: &Url, expected: &Descriptor, body: &dyn Body) -> Result<(), Failure> {
        let call = Call::new(Method::PUT, with_digest(session, &expected.digest), Access::Push)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .blob(expected, body)
            .closing();
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::CREATED => Ok(()),
            // Some registries say so when they have stored it, some when they have not.
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {
                if self.is_present(expected).await? {
                    return Ok(());
                }
                let message =
                    format!("The registry `{}` took `{}` and does not have it", self.client.host(), expected.digest);
                Err(Failure::passing(Error::new(ErrorKind::Registry, message)))
            }
            _ => {
                let failure = self.client.refused(&call, response).await;
                // The session is gone, by a restart or its age; the next one may live longer.
                if failure.has_code("BLOB_UPLOAD_UNKNOWN") { Err(failure.passes()) } else { Err(failure) }
            }
        }
    }

    /// Tells the registry that a session is of no more use. It finds out by itself if this fails.
    async fn abandon(&self, session: Url) {
        let call = Call::new(Method::DELETE, session, Access::Push);
        let _ = timeout(ABANDON_TIMEOUT, self.client.exchange(&call)).await;
    }
}
