use insta::assert_snapshot;
use serde_json::json;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("families"), @r"
    List the model families that kiln knows

    Usage: kiln families [OPTIONS]

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln families
      kiln families --json
    ");
}

#[test]
fn each_family_has_its_classes_its_layout_its_policy_and_its_runtime() {
    let run = Place::new().kiln("families");
    let families: Vec<&str> = run.expect(0).stdout.trim_end().split("\n\n").collect();
    let of = |name: &str| *families.iter().find(|family| family.starts_with(&format!("family   {name}\n"))).unwrap();
    assert_snapshot!(of("cohere2_moe"), @r"
    family   cohere2_moe
    classes  Cohere2MoeForCausalLM
    experts  <L>.mlp.switch_mlp.{down,gate,up}_proj.weight in the blob <L>.mlp.experts
    policy   embedding at 8 bits; below 8 bits, k, v and down projections at 8 bits in the sensitive layers
    ollama   0.30.10
    ");
    assert_snapshot!(of("mistral"), @r"
    family   mistral
    classes  MistralForCausalLM
    experts  none that are stacked
    policy   generic
    ollama   no version loads it yet
    ");
    assert!(families.last().unwrap().starts_with("family   generic\nclasses  every other\n"), "{run}");
    let order = |family: &&str| (family.contains("generic\nclasses"), family.contains(", a draft"), family.to_string());
    assert!(families.is_sorted_by_key(order), "{run}");
    assert!(families.iter().any(|family| family.starts_with("family   dflash, a draft\n")), "{run}");
}

#[test]
fn one_object_for_each_family() {
    let run = Place::new().kiln("families --json");
    let objects = run.expect(0).objects();
    assert_eq!(objects.len(), Place::new().kiln("families").stdout.matches("family ").count());
    let mixtral = objects.iter().find(|family| family["name"] == "mixtral").unwrap();
    assert_eq!(
        mixtral,
        &json!({
            "name": "mixtral",
            "draft": false,
            "classes": ["MixtralForCausalLM"],
            "modelTypes": ["mixtral"],
            "experts": {
                "tensors": "<L>.block_sparse_moe.switch_mlp.{down,gate,up}_proj.weight",
                "blob": "<L>.block_sparse_moe.switch_mlp",
            },
            "policy": "generic, router kept",
            "requires": null,
        })
    );
}
