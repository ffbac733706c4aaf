//! The second suite: kiln with the programs that its users have. `docker-registry` keeps what kiln pushes,
//! `skopeo` and `oras` read what kiln stores and serves; `registry-fixtures` starts them. A program that is missing
//! fails the tests that need it: what could not run has not passed.
//!
//! `cargo test --features real --test real`, with Debian's `docker-registry`, `apache2-utils`, `skopeo` and `oras`, of which
//! `ci/oras.sh` says where it comes from, and with PyPI's `modelpack-client`.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod clients;
mod credentials;
mod damage;
mod differences;
mod families;
mod golden;
mod killed;
mod operations;
#[path = "../cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
mod registry;
mod served;
mod skopeo;
