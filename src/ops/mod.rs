//! The use cases, one file each: options in, report out. The only room that joins the import half with
//! the transfer half; it never prints and never reads the environment.

pub mod additions;
mod again;
pub mod attach;
pub mod checkout;
pub mod create;
pub mod crosscheck;
pub mod diff;
pub mod distant;
pub mod dry_run;
mod explain;
pub mod export;
pub mod families;
mod held;
pub mod inspect;
pub mod ollama;
mod parallel;
pub mod provenance;
pub mod recipe;
pub mod remote;
pub mod remove;
pub mod repair;
mod republish;
pub mod serve;
pub mod sign;
pub mod source;
mod text;
pub mod transfer;
pub mod trust;
pub mod usage;
pub mod verify;
