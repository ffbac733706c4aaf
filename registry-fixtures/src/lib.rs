//! The registries that kiln is tested against: a [`Fixture`] in this process, stricter than most real
//! registries, scriptable with [`Fault`]s and recording what it was asked; an [`Ollama`] that is to Ollama's
//! registry what that is to others; the launchers of a real one in [`real`]; a bad line in front of any, a
//! [`Proxy`]; and what the real one answered, in [`golden`]. Nothing here uses kiln, so that a mistake made there is
//! not made again here.

mod auth;
mod contents;
mod fault;
mod fixture;
pub mod golden;
mod incoming;
mod listing;
mod ollama;
mod proxy;
pub mod real;
mod registry;
mod reply;
mod server;
mod upload;

pub use auth::{Auth, Bearer};
pub use contents::digest;
pub use fault::{Fault, Trigger};
pub use fixture::{BrokenUpload, Deletes, Fixture, Listing, Locations, Options, Recorded};
pub use ollama::{Ollama, OllamaOptions, Uploads};
pub use proxy::{Line, Mishap, Proxy, Spot};
