//! What the registry client promises, against a small registry in this process that follows the
//! protocol strictly and departs from it where a test says so.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod credentials;
mod manifests;
mod patience;
mod pulls;
mod pushes;
mod scene;
mod scripted;
mod shelf;
mod vouched;
