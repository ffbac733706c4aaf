//! `kiln families`: what is known about model families.

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::output::table;
use crate::error::Result;
use crate::ops::families::{Known, families};

const EXAMPLES: &str = "\
Examples:
  kiln families
  kiln families --json";

/// List the model families that kiln knows
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Families {}

impl Families {
    pub(super) fn run(self, session: &Session) -> Result<Exit> {
        let (printer, families) = (&session.printer, families());
        if printer.is_json() {
            families.iter().for_each(|family| printer.object(&object(family)));
        } else {
            printer.data(families.iter().map(drawn).collect::<Vec<_>>().join("\n\n"));
        }
        Ok(Exit::Done)
    }
}

fn object(family: &Known) -> serde_json::Value {
    json!({
        "name": family.name,
        "draft": family.draft,
        "classes": family.classes,
        "modelTypes": family.model_types,
        "experts": family.experts.as_ref().map(|experts| json!({ "tensors": experts.tensors, "blob": experts.blob })),
        "policy": family.policy,
        "requires": family.requires,
    })
}

fn drawn(family: &Known) -> String {
    let classes = if family.classes.is_empty() { "every other".to_owned() } else { family.classes.join(", ") };
    let experts = match &family.experts {
        Some(experts) => format!("{} in the blob {}", experts.tensors, experts.blob),
        None => "none that are stacked".to_owned(),
    };
    let requires = family.requires.unwrap_or("no version loads it yet").to_owned();
    let rows = [
        ("family", if family.draft { format!("{}, a draft", family.name) } else { family.name.to_owned() }),
        ("classes", classes),
        ("experts", experts),
        ("policy", family.policy.to_owned()),
        ("ollama", requires),
    ];
    table(&rows.map(|(label, value)| vec![label.to_owned(), value]))
}
