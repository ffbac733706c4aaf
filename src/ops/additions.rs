//! What a model has beside its checkpoint: a draft, and what a Modelfile sets.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::create::{Part, Prepared};
use super::source::{Source, has_draft};
use super::text;
use crate::arch::{OLDEST_RUNTIME, Runtime};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::inventory::Inventory;
use crate::manifest::{DraftConfig, LockedDraft, LockedModelfile, Modelfile, Names, Version};
use crate::plan::{Plan, Profile};
use crate::quant::Scheme;
use crate::source::Checkpoint;

/// What is wanted beside the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Additions {
    /// A Modelfile.
    pub modelfile: Option<PathBuf>,
    /// The checkpoint of a draft.
    pub draft: Option<PathBuf>,
    /// The scheme of the draft.
    pub draft_scheme: Option<Scheme>,
}

impl Prepared {
    /// Adds what is wanted.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a draft that is named twice, or not at all but has a scheme; for a profile that
    /// has no additions. [`ErrorKind::Input`] for a Modelfile that cannot be read, is of another checkpoint,
    /// or is none, and for a draft that cannot be imported.
    pub fn with(mut self, additions: &Additions) -> Result<Self> {
        let mut draft = additions.draft.clone();
        if let Some(path) = &additions.modelfile {
            let modelfile = Modelfile::parse(&path.display().to_string(), &text::read("Modelfile", path)?)?;
            let beside = |name: &String| path.parent().unwrap_or(Path::new("")).join(name);
            if let Some(from) = &modelfile.from {
                let named = if let Source::Directory(named) = &self.source { Some(&**named) } else { None };
                let places = named.into_iter().chain([self.model.checkpoint.root()]);
                let mut places = places.filter_map(|place| place.canonicalize().ok());
                if !beside(from).canonicalize().is_ok_and(|from| places.any(|place| place == from)) {
                    let message = format!("The Modelfile is of another checkpoint: `FROM` {}", quoted(from));
                    return Err(Error::input(message).hint("leave `FROM` out, or name the checkpoint of the command"));
                }
            }
            if let Some(named) = &modelfile.draft {
                if draft.is_some() {
                    let message = "The draft is named twice: by `--draft` and by the Modelfile";
                    return Err(Error::new(ErrorKind::Usage, message).hint("leave one of them out"));
                }
                draft = Some(beside(named));
            }
            self.add_modelfile(modelfile)?;
        }
        match draft {
            Some(draft) => self.add_draft(&draft, additions.draft_scheme)?,
            None if additions.draft_scheme.is_some() => {
                let message = "`--draft-quantize` needs a draft";
                return Err(Error::new(ErrorKind::Usage, message).hint("add `--draft DIR`"));
            }
            None => {}
        }
        Ok(self)
    }

    /// Adds the draft in `directory`.
    pub(super) fn add_draft(&mut self, directory: &Path, scheme: Option<Scheme>) -> Result<()> {
        self.check_profile("A draft")?;
        let clash = self.model.plan.blobs.iter().find(|blob| blob.name.starts_with(Plan::DRAFT_TENSORS));
        if let Some(blob) = clash {
            return Err(Error::input(format!("{} would be taken for a draft's", quoted(&blob.name))));
        }
        let checkpoint = Checkpoint::open(directory)?;
        let plan = Plan::draft(&Inventory::of(&checkpoint)?, scheme)?;
        self.draft = Some(Part { checkpoint, plan });
        Ok(())
    }

    /// Adds what a Modelfile sets, in the place of what a published source has.
    pub(super) fn add_modelfile(&mut self, mut modelfile: Modelfile) -> Result<()> {
        self.check_profile("A Modelfile")?;
        let (runtime, names) = (&mut self.model.plan.runtime, modelfile.names.clone());
        runtime.parser = names.parser.map(Cow::from).or(runtime.parser.take());
        runtime.renderer = names.renderer.map(Cow::from).or(runtime.renderer.take());
        let published = std::mem::take(&mut self.modelfile.layers);
        let is_set = |setting| modelfile.layers.iter().any(|(set, _)| *set == setting);
        let kept: Vec<_> = published.into_iter().filter(|(setting, _)| !is_set(*setting)).collect();
        modelfile.layers.extend(kept);
        modelfile.layers.sort_by_key(|(setting, _)| *setting);
        self.modelfile = modelfile;
        Ok(())
    }

    fn check_profile(&self, what: &str) -> Result<()> {
        match self.model.plan.request.profile {
            Profile::Ollama => Ok(()),
            other => {
                let message = format!("{what} is for the profile `ollama`, and this one is `{other}`");
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }

    /// The lowest runtime version that loads the model and its draft, as far as kiln knows.
    fn needs(&self) -> &'static str {
        let versions = self.parts().filter_map(|part| part.plan.requires);
        let newest = versions.max_by_key(|text| text.parse::<Version>().ok());
        newest.unwrap_or(OLDEST_RUNTIME)
    }

    /// The lowest runtime version that the config blob names.
    pub(super) fn requires(&self) -> &str {
        self.modelfile.names.requires.as_deref().unwrap_or_else(|| self.needs())
    }

    /// What the user should know about the checkpoint, the draft and the Modelfile.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.model.plan.notes.clone();
        let of_draft = self.draft.iter().flat_map(|draft| &draft.plan.notes);
        notes.extend(of_draft.map(|note| format!("Of the draft: {note}")));
        if self.draft.is_none() && self.published.as_ref().is_some_and(has_draft) {
            notes.push("The draft of the source is left out: add it with `--draft DIR`".to_owned());
        }
        notes.extend(self.modelfile.notes.iter().cloned());
        if let Some(parser) = self.modelfile.names.parser.as_deref().filter(|parser| !Runtime::has_parser(parser)) {
            notes.push(format!("Ollama v0.33 has no parser {}", quoted(parser)));
        }
        let (asked, needed) = (self.requires(), self.needs());
        if asked.parse::<Version>().ok() < needed.parse().ok() {
            notes.push(format!("`REQUIRES {asked}` is below {needed}, the lowest that loads this model"));
        }
        notes
    }

    /// The draft as the config blob names it.
    pub(super) fn draft_config(&self) -> Option<DraftConfig> {
        let draft = self.draft.as_ref()?;
        Some(DraftConfig {
            model_format: "safetensors".to_owned(),
            architecture: draft.plan.class()?.to_owned(),
            tensor_prefix: Plan::DRAFT_TENSORS.to_owned(),
            config: format!("{}config.json", Plan::DRAFT_FILES),
        })
    }
}

/// What the lock says about a draft.
pub(super) fn lock_draft(plan: &Plan) -> LockedDraft {
    LockedDraft {
        kind: plan.kind.to_string(),
        normalizations: plan.normalizations.iter().map(|transform| transform.name().to_owned()).collect(),
        scheme: plan.request.scheme.map(|scheme| scheme.to_string()),
    }
}

/// What the lock says about a Modelfile: nothing when it says nothing itself.
pub(super) fn lock_modelfile(modelfile: &Modelfile) -> Option<LockedModelfile> {
    let Names { parser, renderer, requires } = modelfile.names.clone();
    let layers = modelfile.layers.iter().map(|(setting, _)| setting.name().to_owned()).collect();
    let locked = LockedModelfile { layers, parser, renderer, requires };
    (locked != LockedModelfile::default()).then_some(locked)
}
