//! `kiln du`: what takes the store's space.

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::exit::Exit;
use super::inspect::short;
use super::output::{count, size, table};
use crate::error::Result;
use crate::ops::usage::usage;
use crate::store::{Space, Usage};

const EXAMPLES: &str = "\
Examples:
  kiln du
  kiln du --json";

/// Show what takes the store's space
///
/// For each model the bytes that it has in the store, those of them that another name needs too, and those that are free
/// after `kiln rm` and `kiln gc`. Below that what else there is. Files are not read, but for manifests.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Du {}

impl Du {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let usage = session.blocking(|session| usage(&session.open_store()?)).await?;
        if session.printer.is_json() {
            session.printer.object(&object(&usage));
            return Ok(Exit::Done);
        }
        session.printer.data(drawn(&usage));
        for name in usage.names.iter().filter(|name| name.bytes.is_none()).map(|usage| &usage.name) {
            session.printer.note(format_args!(
                "the manifest of `{name}` cannot be read, so what nobody needs is not known: `kiln verify {name}` says why"
            ));
        }
        Ok(Exit::Done)
    }
}

fn drawn(usage: &Usage) -> String {
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "SHARED", "FREED"].map(str::to_owned).to_vec()];
    for name in &usage.names {
        let bytes = match name.bytes {
            Some(bytes) => [bytes.all, bytes.shared, bytes.freed()].map(size),
            None => ["?", "?", "?"].map(str::to_owned),
        };
        rows.push([vec![name.name.clone(), short(&name.digest)], bytes.to_vec()].concat());
    }
    let spaces = [
        ("models", Some(usage.needed), ""),
        ("unneeded", usage.unneeded, ": `kiln gc` removes them"),
        ("unfinished", Some(usage.unfinished), ""),
        ("quarantine", Some(usage.quarantined), ""),
        ("reserve", Some(usage.reserved), ""),
        ("other", Some(usage.other), ""),
        ("total", Some(usage.total), ""),
    ];
    let there = spaces.into_iter().filter_map(|(label, space, remark)| {
        let Some(Space { files, bytes }) = space else { return Some([label, "?", "?"].map(str::to_owned).to_vec()) };
        let row = vec![label.to_owned(), size(bytes), format!("{}{remark}", count(files, "file"))];
        (files > 0 || label == "total").then_some(row)
    });
    format!("{}\n\n{}", table(&rows), table(&there.collect::<Vec<_>>()))
}

fn object(usage: &Usage) -> Value {
    let space = |Space { files, bytes }: Space| json!({ "files": files, "bytes": bytes });
    let names = usage.names.iter().map(|name| {
        json!({
            "name": name.name,
            "digest": name.digest,
            "bytes": name.bytes.map(|bytes| bytes.all),
            "shared": name.bytes.map(|bytes| bytes.shared),
            "freed": name.bytes.map(|bytes| bytes.freed()),
        })
    });
    json!({
        "names": names.collect::<Vec<_>>(),
        "needed": space(usage.needed),
        "unneeded": usage.unneeded.map(space),
        "unfinished": space(usage.unfinished),
        "quarantined": space(usage.quarantined),
        "reserved": space(usage.reserved),
        "other": space(usage.other),
        "total": space(usage.total),
    })
}
