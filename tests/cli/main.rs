//! The program as its users meet it: real command lines in an empty place, and what came of them. One
//! module per command group; `place` is where they run.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod attach;
mod checkout;
mod create;
mod crosscheck;
mod demo;
mod diff;
mod dry_run;
mod ends;
mod export;
mod families;
mod hostile;
mod inspect;
mod login;
mod names;
#[allow(dead_code, reason = "the second suite uses the rest of it")]
mod place;
mod published;
mod remote;
mod repair;
mod republish;
mod serve;
mod shell;
mod sources;
mod transfer;
mod trust;
mod usage;
mod verify;
mod verify_elsewhere;
mod verify_parts;
