//! What rotted in the store is never published.

use registry_fixtures::digest;

use crate::place::Place;
use crate::registry::{Registry, config, layer, stored_manifest};

#[test]
fn a_flipped_byte_of_any_kind_of_blob_is_not_published() {
    let registry = Registry::plain();
    for kind in ["tensor", "sidecar", "lock", "config", "manifest"] {
        let place = Place::with_model();
        let damaged = match kind {
            "tensor" => layer(&place, "demo:int4", "model.layers.0.mlp.switch_mlp"),
            "sidecar" => layer(&place, "demo:int4", "config.json"),
            "lock" => layer(&place, "demo:int4", "kiln.lock"),
            "config" => config(&place, "demo:int4"),
            _ => stored_manifest(&place, "demo:int4", "store").0,
        };
        let middle = place.blob(&damaged).metadata().unwrap().len() as usize / 2;
        place.damage(&damaged, middle);

        let push = || place.kiln(&format!("push demo:int4 {}/{kind}/demo:int4 --plain-http --json", registry.host()));
        let failed = push();
        failed.expect(3);
        assert_eq!(failed.last_object()["exitCode"], 3, "{kind}");
        assert_eq!(registry.manifest(&format!("{kind}/demo"), "int4"), None, "{kind}: it was published");
        let verdict = place.kiln("verify demo:int4 --json").expect(3).last_object();
        assert_eq!(verdict["result"], "corrupt", "{kind}: {verdict}");

        // Creating it again writes what is damaged, and then it can be published.
        place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
        push().expect(0);
        let published = registry.manifest(&format!("{kind}/demo"), "int4").unwrap();
        assert_eq!(digest(&published), stored_manifest(&place, "demo:int4", "store").0, "{kind}");
    }
}
