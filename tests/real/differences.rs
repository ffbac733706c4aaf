//! Only what differs is moved: nothing when nothing changed, and for one changed tensor that tensor.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::place::Place;
use crate::registry::Registry;

const TENSOR: &str = "model.layers.1.mlp.up_proj.weight";

/// Changes the sign of every value of `tensor` in the checkpoint at `directory`, which is of BF16.
fn change(directory: &Path, tensor: &str) {
    let mut changed = 0;
    for file in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let mut bytes = fs::read(&file).unwrap();
        let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..header_end]).unwrap();
        let Some(offsets) = header[tensor]["data_offsets"].as_array() else { continue };
        assert_eq!(header[tensor]["dtype"], "BF16");
        let [start, end] = [0, 1].map(|index| header_end + offsets[index].as_u64().unwrap() as usize);
        bytes[start..end].chunks_exact_mut(2).for_each(|value| value[1] ^= 0x80);
        fs::write(file, bytes).unwrap();
        changed += 1;
    }
    assert_eq!(changed, 1, "{tensor}");
}

/// The names of the blobs that a run moved, sorted.
fn moved(events: &[Value], outcome: &str) -> Vec<String> {
    let blobs = events.iter().filter(|event| event["event"] == "blob" && event["outcome"] == outcome);
    let mut names: Vec<String> = blobs.map(|event| event["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_changed_tensor_is_all_that_is_sent_and_fetched() {
    // What is copied is in the lock by its name only; of what is quantized it has a hash of the source.
    for (options, expected) in [("", &[TENSOR][..]), ("--quantize int4", &["kiln.lock", TENSOR][..])] {
        let registry = Registry::plain();
        let place = Place::new();
        let remote = format!("{}/team/llama:latest", registry.host());
        place.checkpoint("llama-untied-bf16", "checkpoint");
        let create = || place.kiln(&format!("create llama:latest checkpoint {options}"));
        let push = || place.kiln(&format!("push llama:latest {remote} --plain-http --json"));
        let pull = || place.kiln(&format!("pull {remote} llama:latest --store there --plain-http --json"));
        create().expect(0);
        push().expect(0);
        pull().expect(0);
        for (run, blobs, bytes) in [(push(), "blobs_sent", "bytes_sent"), (pull(), "blobs_fetched", "bytes_fetched")] {
            let report = run.expect(0).last_object();
            assert_eq!((&report[blobs], &report[bytes]), (&0.into(), &0.into()), "{report}");
            assert_eq!(report["blobs_skipped"], 30, "{report}");
        }

        change(&place.path("checkpoint"), TENSOR);
        create().expect(0);
        let (sent, fetched) = (push(), pull());
        for (run, outcome, blobs, bytes) in
            [(&sent, "sent", "blobs_sent", "bytes_sent"), (&fetched, "fetched", "blobs_fetched", "bytes_fetched")]
        {
            let (events, report) = (run.expect(0).objects(), run.last_object());
            assert_eq!(moved(&events, outcome), expected, "{options}: {run}");
            assert_eq!(report[blobs], expected.len(), "{report}");
            let sizes = events.iter().filter(|event| event["outcome"] == outcome);
            let size: u64 = sizes.map(|event| event["size"].as_u64().unwrap()).sum();
            assert_eq!((&report[bytes], &report["blobs_skipped"]), (&size.into(), &(30 - expected.len()).into()));
        }
        // For people it says so, too.
        place.kiln("rm llama:latest --store there").expect(0);
        let said = place.kiln(&format!("pull {remote} llama:latest --store there --plain-http")).stdout;
        assert!(said.contains("fetched 0 of 30 layers and config, 0 B; 30 already here"), "{said}");
        place.kiln("verify llama:latest --source checkpoint --store there").expect(0);
    }
}
