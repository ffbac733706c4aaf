//! `kiln crosscheck`: whether MLX makes of the source what is stored. The verdict is the exit code.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::output::count;
use super::verify::{finding, finding_lines};
use crate::error::Result;
use crate::oci::Reference;
use crate::ops::crosscheck::{Options, crosscheck};
use crate::quant::MLX_VERSION;

const EXAMPLES: &str = "\
Examples:
  kiln crosscheck llama:int4
  kiln crosscheck llama:int4 --source ./Llama-3.1-8B

Exit codes:
  0  every byte is the one that MLX gives
  3  corrupt
  4  not reproduced
  5  could not check: kiln was built without MLX, say";

/// Compare a stored model with what MLX makes of its source
///
/// The source's weights go through MLX on the CPU instead of kiln's own kernels. Codes, scales and biases of
/// every tensor that kiln has quantized are compared with the stored layers, byte by byte. It needs a kiln
/// that was built with the feature `mlx`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Crosscheck {
    /// The model's name in the store
    name: Reference,
    /// The source, as in `kiln create` [default: what the model was created from]
    #[arg(long, value_name = "SOURCE", value_hint = clap::ValueHint::DirPath)]
    source: Option<PathBuf>,
    /// The draft's checkpoint [default: where the model was created from]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    draft: Option<PathBuf>,
}

impl Crosscheck {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let name = self.name.clone();
        let crosschecked = session
            .watched(move |session, progress| {
                let (places, threads) = (session.places()?, session.settings.threads);
                let options = Options { name, source: self.source, draft: self.draft, places, threads };
                crosscheck(&session.open_store()?, &options, progress)
            })
            .await?;
        let outcome = crosschecked.outcome();
        if session.printer.is_json() {
            session.printer.object(&json!({
                "event": "crosschecked",
                "name": self.name.to_string(),
                "result": outcome.name(),
                "digest": crosschecked.digest,
                "mlx": MLX_VERSION,
                "tensors": crosschecked.tensors,
                "findings": crosschecked.findings.iter().map(finding).collect::<Vec<_>>(),
            }));
        } else {
            let mut lines = vec![format!("{} {}", self.name, crosschecked.digest)];
            lines.push(format!("compared with MLX {MLX_VERSION}: {}", count(crosschecked.tensors, "tensor")));
            lines.extend(crosschecked.findings.iter().flat_map(finding_lines));
            lines.push(format!("result: {}", outcome.name()));
            session.printer.data(lines.join("\n"));
        }
        Ok(outcome.into())
    }
}
