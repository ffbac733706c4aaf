//! What several processes do to one store, and what one leaves that is killed: the real program, with a registry in
//! this process. Each test is short unless `KILN_KILL_ROUNDS` or `KILN_BESIDE_ROUNDS` says how long it is.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod beside;
mod killed;
#[path = "../cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;
mod scene;
