//! Models of six families, in every scheme, go through every kind of registry and come out the same.

use registry_fixtures::real::Kind;

use crate::place::Place;
use crate::registry::{PASSWORD, Registry, USER, stored_manifest};

const MODELS: [(&str, &str); 6] = [
    ("llama-tied-bf16", "none"),
    ("qwen3-moe-12e-bf16", "int4"),
    ("qwen3_5-moe-vl-stacked-bf16", "int8"),
    ("gemma4-moe-vl-bf16", "nvfp4"),
    ("glm4-moe-lite-bf16", "mxfp4"),
    ("laguna-bf16", "mxfp8"),
];

#[test]
fn every_family_goes_through_a_plain_registry_and_is_reproduced() {
    every_family_goes_through(Kind::Plain);
}

#[test]
fn every_family_goes_through_tls_with_a_password_and_is_reproduced() {
    every_family_goes_through(Kind::TlsHtpasswd { user: USER.to_owned(), password: PASSWORD.to_owned() });
}

#[test]
fn every_family_goes_through_a_registry_with_tokens_and_is_reproduced() {
    every_family_goes_through(Kind::Token { user: USER.to_owned(), password: PASSWORD.to_owned() });
}

fn every_family_goes_through(kind: Kind) {
    let is_public = matches!(kind, Kind::Plain);
    let registry = Registry::start(kind);
    let (host, transport) = (registry.host(), registry.transport());
    let place = Place::new();
    if !is_public {
        registry.log_in(&place, PASSWORD).expect(0);
    }
    for (number, (checkpoint, scheme)) in MODELS.iter().enumerate() {
        let (name, remote) = (format!("{checkpoint}:{scheme}"), format!("{host}/team/{checkpoint}:{scheme}"));
        place.checkpoint(checkpoint, checkpoint);
        let quantize = if *scheme == "none" { String::new() } else { format!("--quantize {scheme}") };
        let dialect = ["ollama", "modelpack"][number % 2];
        place.kiln(&format!("create {name} {checkpoint} {quantize} --dialect {dialect}")).expect(0);

        place.kiln(&format!("push {name} {remote} {transport}")).expect(0);
        place.kiln(&format!("pull {remote} {name} {transport} --store there")).expect(0);
        let verdict = place.kiln(&format!("verify {name} --source {checkpoint} --store there --json"));
        let verdict = verdict.expect(0).last_object();
        assert_eq!((&verdict["result"], &verdict["level"]), (&"ok".into(), &"rebuild".into()), "{verdict}");
        assert_eq!(verdict["notChecked"], serde_json::json!(["trust"]), "{verdict}");

        let sent = stored_manifest(&place, &name, "store");
        assert_eq!(stored_manifest(&place, &name, "there"), sent, "{name}");
        if is_public {
            let kept = registry.manifest(&format!("team/{checkpoint}"), scheme);
            assert_eq!(kept.as_deref(), Some(&*sent.1), "{name}: the registry has another manifest");
        }
    }
}
