//! What statements about a model say: how it was made, and that it could be made again.
//!
//! SLSA v1.1, "Provenance": <https://slsa.dev/spec/v1.1/provenance>. in-toto's simple verification result:
//! <https://github.com/in-toto/attestation/blob/v1.2.0/spec/predicates/svr.md>.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LockedModelfile;
use crate::error::{Error, ErrorKind, Result, quoted};

/// How a model was made: a predicate of SLSA. Fields are declared, and so written, in the order of their names. What a
/// statement of others has besides is passed over, except among the parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// From what it was made, and how.
    pub build_definition: BuildDefinition,
    /// The run that made it.
    pub run_details: RunDetails,
}

/// What decides the bytes of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// [`Provenance::BUILD_TYPE`].
    pub build_type: String,
    /// Everything that was asked for.
    pub external_parameters: Parameters,
    /// What kiln added: `epoch`, `lock`, `numerics`.
    pub internal_parameters: BTreeMap<String, String>,
    /// What it was made of.
    #[serde(default)]
    pub resolved_dependencies: Vec<Dependency>,
}

/// Everything that was asked for. These are all parameters there are: one more, and the statement is about another way of
/// making models than the one that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// How the manifest is spelled.
    pub dialect: String,
    /// The draft's source and its scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<DraftParameters>,
    /// What a Modelfile set: the layers have the contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modelfile: Option<LockedModelfile>,
    /// `recipe` when the schemes followed rules of the user's; what they resolved to is in the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The profile.
    pub profile: String,
    /// The commit of the source, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The source: `hf://org/name`, `ref:…@digest`, `ollama:…@digest`, or `file:` and the name of a directory.
    pub source: String,
}

/// What was asked for of a draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftParameters {
    /// The scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The source.
    pub source: String,
}

/// Something that a model was made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dependency {
    /// Its digest, by algorithm.
    pub digest: BTreeMap<String, String>,
    /// Its media type.
    #[serde(default, rename = "mediaType", skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its name: of a file, that in its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}

/// The run that made a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDetails {
    /// Who ran it.
    pub builder: Builder,
    /// What else came of it: the lock.
    #[serde(default)]
    pub byproducts: Vec<Dependency>,
    /// Which run.
    #[serde(default)]
    pub metadata: Metadata,
}

/// Who made a model: whoever is trusted to say how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// Its name, a URI.
    pub id: String,
    /// What it ran: `kiln`, the `target` it was compiled for, the `instructions` of its kernels.
    #[serde(default)]
    pub version: BTreeMap<String, String>,
}

/// Which run made a model, and when. Times are those of RFC 3339, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_on: Option<String>,
    /// A name that no other run has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<String>,
    /// The beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_on: Option<String>,
}

impl Provenance {
    /// The type of the predicate.
    pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
    /// The way in which kiln makes models: `docs/trust.md` describes it.
    pub const BUILD_TYPE: &str = "urn:kiln:build:create:v1";
    /// Who runs kiln when nobody says.
    pub const LOCAL_BUILDER: &str = "urn:kiln:builder:local";

    /// Reads a predicate.
    ///
    /// # Errors
    /// [`ErrorKind::NotTrusted`] when it is none, of another way of making models, or has a parameter more.
    pub fn parse(predicate: &serde_json::Value) -> Result<Self> {
        let build_type = predicate.pointer("/buildDefinition/buildType").and_then(serde_json::Value::as_str);
        if let Some(other) = build_type.filter(|&build_type| build_type != Self::BUILD_TYPE) {
            let message = format!("The provenance is of another way of making models: {}", quoted(other));
            return Err(Error::new(ErrorKind::NotTrusted, message));
        }
        Self::deserialize(predicate).map_err(|cause| {
            Error::new(ErrorKind::NotTrusted, "The provenance does not have the fields of one").caused_by(cause)
        })
    }

    /// The SHA-256 of each file that the model was made of, by name.
    pub fn files(&self) -> BTreeMap<&str, &str> {
        let files = self.build_definition.resolved_dependencies.iter();
        files.filter_map(|file| Some((file.name.as_deref()?, file.digest.get("sha256")?.as_str()))).collect()
    }
}

/// That somebody has checked a model: a simple verification result of in-toto.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Svr {
    /// What was shown.
    pub properties: Vec<String>,
    /// When, as in RFC 3339, in UTC.
    pub time_created: String,
    /// Who has checked.
    pub verifier: Verifier,
}

/// Who has checked a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    /// Its name, a URI.
    pub id: String,
    /// The policies that were applied: none.
    #[serde(default)]
    pub policies: Vec<String>,
}

impl Svr {
    /// The type of the predicate.
    pub const PREDICATE_TYPE: &str = "https://in-toto.io/attestation/svr/v0.2";
    /// Every layer was made again from the source, with the same bytes. It is not SLSA's `SLSA_BUILD_REPRODUCED`, which
    /// asks for two builders that have nothing to do with each other.
    pub const LAYERS_REPRODUCED: &str = "KILN_LAYERS_REPRODUCED";
    /// Whoever runs kiln, when nobody says.
    pub const LOCAL_VERIFIER: &str = "urn:kiln:verifier:local";

    /// That `verifier` made every layer again, at `time`.
    pub fn reproduced(verifier: String, time: String) -> Self {
        Self {
            properties: vec![Self::LAYERS_REPRODUCED.to_owned()],
            time_created: time,
            verifier: Verifier { id: verifier, policies: Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn provenance() -> Provenance {
        let map = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let file = |name: &str, digest: &str| Dependency {
            digest: map(&[("sha256", digest)]),
            media_type: None,
            name: Some(name.to_owned()),
            uri: None,
        };
        Provenance {
            build_definition: BuildDefinition {
                build_type: Provenance::BUILD_TYPE.to_owned(),
                external_parameters: Parameters {
                    dialect: "ollama".to_owned(),
                    draft: Some(DraftParameters { scheme: None, source: "file:draft".to_owned() }),
                    modelfile: None,
                    policy: None,
                    profile: "ollama".to_owned(),
                    revision: Some("0".repeat(40)),
                    scheme: Some("int4".to_owned()),
                    source: "hf://acme/tiny".to_owned(),
                },
                internal_parameters: map(&[("epoch", "1"), ("numerics", "mlx-cpu-1")]),
                resolved_dependencies: vec![file("config.json", "aa"), file("model.safetensors", "bb")],
            },
            run_details: RunDetails {
                builder: Builder { id: "urn:x".to_owned(), version: map(&[("kiln", "0.1.0")]) },
                byproducts: Vec::new(),
                metadata: Metadata { invocation_id: Some("i".to_owned()), ..Metadata::default() },
            },
        }
    }

    #[test]
    fn it_is_written_in_the_order_of_names_and_read_back() {
        let provenance = provenance();
        let bytes = json::to_canonical(&provenance);
        let value = json::parse(&bytes).unwrap();
        assert_eq!(json::to_canonical(&value), bytes, "keys are in byte order");
        assert_eq!(Provenance::parse(&value).unwrap(), provenance);
        assert_eq!(provenance.files(), BTreeMap::from([("config.json", "aa"), ("model.safetensors", "bb")]));
    }

    #[test]
    fn a_parameter_that_is_not_known_is_not_passed_over_and_the_rest_is() {
        let with = |pointer: &str, key: &str| {
            let mut value = serde_json::to_value(provenance()).unwrap();
            value.pointer_mut(pointer).unwrap()[key] = "x".into();
            Provenance::parse(&value)
        };
        for pointer in ["", "/buildDefinition", "/runDetails", "/runDetails/builder", "/runDetails/metadata"] {
            assert_eq!(with(pointer, "more").unwrap(), provenance(), "{pointer}");
        }
        for pointer in ["/buildDefinition/externalParameters", "/buildDefinition/externalParameters/draft"] {
            assert_eq!(with(pointer, "more").unwrap_err().kind(), ErrorKind::NotTrusted, "{pointer}");
        }
        let other = with("/buildDefinition", "buildType").unwrap_err();
        assert!(other.to_string().contains("another way of making models: `x`"), "{other}");
    }

    #[test]
    fn a_rebuild_shows_that_the_layers_are_reproduced_and_no_more() {
        let svr = Svr::reproduced("urn:x".to_owned(), "2026-01-01T00:00:00Z".to_owned());
        let text = String::from_utf8(json::to_canonical(&svr)).unwrap();
        assert_eq!(
            text,
            r#"{"properties":["KILN_LAYERS_REPRODUCED"],"timeCreated":"2026-01-01T00:00:00Z","verifier":{"id":"urn:x","policies":[]}}"#
        );
    }
}
