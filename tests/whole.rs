//! A tensor that is missing is an error of the plan, before anything is read or written: each checkpoint loses each
//! of its tensors in turn.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::path::{Path, PathBuf};

use kiln::inventory::{Inventory, SourceKind};
use kiln::plan::{Plan, Request};
use kiln::source::Checkpoint;

fn checkpoints() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
    let all = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.join("config.json").exists()).collect()
}

/// Whether a plan can do without it: towers and prediction heads are extras, which runtimes take or leave; the
/// scales of FP8 and NVFP4 are missed before there is an inventory, and those of activations by nobody.
fn is_extra(name: &str) -> bool {
    let extras = ["mtp.", "model.visual.", "model.vision_tower.", "model.embed_vision."];
    extras.iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with(".layer_scalar")
        || name.contains(".weight_scale")
        || name.contains(".input_")
}

#[test]
fn each_tensor_is_missed() {
    let (mut models, mut refused) = (0, 0);
    for path in checkpoints() {
        let whole = Inventory::of(&Checkpoint::open(&path).unwrap()).unwrap();
        // What mlx-lm has divided is refused as it is.
        let Ok(plan) = Plan::new(&whole, Request::default()) else {
            assert!(path.to_str().unwrap().contains("mlx-glm4"), "{}", path.display());
            continue;
        };
        // The parts of a weight in codes are missed when the checkpoint is listed.
        if plan.family.is_generic() || matches!(whole.kind, SourceKind::Prequantized(_)) {
            continue;
        }
        models += 1;
        for name in whole.tensors.keys().filter(|name| !is_extra(name)) {
            let mut damaged = whole.clone();
            damaged.tensors.remove(name);
            let Err(error) = Plan::new(&damaged, Request::default()) else {
                panic!("{}: nobody misses {name}", path.display());
            };
            // The tensor, or the layer that lost one of its experts.
            let message = error.to_string();
            let name = name.strip_suffix("_packed").unwrap_or(name);
            let named = message.split('`').skip(1).step_by(2).any(|word| {
                name.ends_with(word) || {
                    ["experts.", "switch_"].iter().any(|home| name.contains(home))
                        && name.starts_with(&format!("{word}."))
                }
            });
            assert!(named, "{}: without {name}: {message}", path.display());
            refused += 1;
        }
    }
    assert!(models >= 24 && refused > 800, "{refused} of {models} models");
}
