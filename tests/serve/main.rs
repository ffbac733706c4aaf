//! What `kiln::serve` promises to a client of an OCI registry, asked over HTTP.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod access;
mod conformance;
mod requests;
mod served;
