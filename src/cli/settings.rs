//! What the command line and the environment together decide: where the store is, how many threads work,
//! how progress is shown. This is the only file that reads the environment, and it reads it once.

use std::env;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::arguments::{Global, ProgressMode};
use crate::error::{Error, ErrorKind, Result};

/// The names of the environment variables.
pub(super) mod variable {
    /// The directory of the store.
    pub(in super::super) const STORE: &str = "KILN_STORE";
    /// How many blobs are written at once.
    pub(in super::super) const THREADS: &str = "KILN_THREADS";
    /// Certificate authorities to trust besides the system's.
    pub(in super::super) const CA: &str = "KILN_CA";
    /// Docker's directory of settings, which has the credentials.
    pub(in super::super) const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
    /// The Hugging Face cache.
    pub(super) const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
    /// The directory that has the Hugging Face cache as `hub`.
    pub(super) const HF_HOME: &str = "HF_HOME";
    /// Ollama's store.
    pub(super) const OLLAMA_MODELS: &str = "OLLAMA_MODELS";
    /// The user's cache directory, by the XDG base directory specification.
    pub(super) const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
    /// The user's data directory, by the XDG base directory specification.
    pub(super) const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
    /// The user's home directory.
    pub(super) const HOME: &str = "HOME";
}

/// How progress reaches the user, once it is known what standard error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Display {
    /// A bar that redraws itself.
    Bar,
    /// A line now and then.
    Lines,
    /// Objects on standard output.
    Json,
    /// Nothing.
    Nothing,
}

/// Everything that is the same for all commands of a run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// `--store`, when it or its variable is given.
    store: Option<PathBuf>,
    /// How many blobs are written at once.
    pub(super) threads: usize,
    /// Results are JSON.
    pub(super) json: bool,
    /// How progress is shown.
    pub(super) display: Display,
    /// Only results and errors.
    pub(super) quiet: bool,
    /// More than results.
    pub(super) verbose: bool,
    places: Places,
}

/// The directories that the environment names.
#[derive(Clone, Debug, Default)]
struct Places {
    home: Option<PathBuf>,
    data_home: Option<PathBuf>,
    docker_config: Option<PathBuf>,
    hub_cache: Option<PathBuf>,
    hub_home: Option<PathBuf>,
    cache_home: Option<PathBuf>,
    ollama_models: Option<PathBuf>,
}

impl Settings {
    /// Reads what the environment adds to the options.
    pub(super) fn new(global: &Global) -> Self {
        let directory = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let json = global.json || global.progress == ProgressMode::Json;
        let display = match global.progress {
            ProgressMode::Off => Display::Nothing,
            _ if global.quiet => Display::Nothing,
            ProgressMode::Json => Display::Json,
            ProgressMode::Plain => Display::Lines,
            ProgressMode::Auto if json => Display::Json,
            ProgressMode::Auto if std::io::stderr().is_terminal() => Display::Bar,
            ProgressMode::Auto => Display::Lines,
        };
        Self {
            store: global.store.clone(),
            threads: global.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
            json,
            display,
            quiet: global.quiet,
            verbose: global.verbose,
            places: Places {
                home: directory(variable::HOME),
                data_home: directory(variable::XDG_DATA_HOME),
                docker_config: directory(variable::DOCKER_CONFIG),
                hub_cache: directory(variable::HF_HUB_CACHE),
                hub_home: directory(variable::HF_HOME),
                cache_home: directory(variable::XDG_CACHE_HOME),
                ollama_models: directory(variable::OLLAMA_MODELS),
            },
        }
    }

    /// The directory of the store.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when nothing names one.
    pub(super) fn store(&self) -> Result<PathBuf> {
        let named = self.store.clone().or_else(|| self.places.store(cfg!(target_os = "macos")));
        named.ok_or_else(|| {
            Error::new(ErrorKind::Usage, "No directory is named for the store, and there is no home directory")
                .hint("name one with `--store DIR` or `KILN_STORE`")
        })
    }

    /// Docker's `config.json`; `None` when there is no home directory to look in.
    pub(super) fn docker_config(&self) -> Option<PathBuf> {
        self.places.docker_config()
    }

    /// The Hugging Face cache; `None` when there is no home directory to look in.
    pub(super) fn hub(&self) -> Option<PathBuf> {
        self.places.hub()
    }

    /// The key that Ollama's registry knows the user by; `None` when there is no home directory to look in.
    pub(super) fn ollama_key(&self) -> Option<PathBuf> {
        Some(self.places.home.as_deref()?.join(".ollama/id_ed25519"))
    }

    /// Ollama's store; `None` when there is no home directory to look in.
    pub(super) fn ollama(&self) -> Option<PathBuf> {
        self.places.ollama()
    }
}

impl Places {
    fn store(&self, macos: bool) -> Option<PathBuf> {
        let in_home = |path: &str| self.home.as_deref().map(|home| home.join(path));
        let data = if macos {
            in_home("Library/Application Support")
        } else {
            // XDG base directory specification 0.8: a path that is not absolute is ignored.
            let named = self.data_home.clone().filter(|path| path.is_absolute());
            named.or_else(|| in_home(".local/share"))
        };
        data.map(|data| data.join("kiln"))
    }

    fn docker_config(&self) -> Option<PathBuf> {
        let directory = self.docker_config.clone().or_else(|| Some(self.home.as_deref()?.join(".docker")))?;
        Some(directory.join(Path::new("config.json")))
    }

    /// As `huggingface_hub` 1.0 looks for it.
    fn hub(&self) -> Option<PathBuf> {
        let in_cache = || {
            let cache = self.cache_home.clone().or_else(|| Some(self.home.as_deref()?.join(".cache")))?;
            Some(cache.join("huggingface"))
        };
        self.hub_cache.clone().or_else(|| Some(self.hub_home.clone().or_else(in_cache)?.join("hub")))
    }

    fn ollama(&self) -> Option<PathBuf> {
        self.ollama_models.clone().or_else(|| Some(self.home.as_deref()?.join(".ollama/models")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(home: Option<&str>, data_home: Option<&str>, docker_config: Option<&str>) -> Places {
        Places {
            home: home.map(PathBuf::from),
            data_home: data_home.map(PathBuf::from),
            docker_config: docker_config.map(PathBuf::from),
            ..Places::default()
        }
    }

    #[test]
    fn the_store_is_in_the_data_directory_of_the_platform() {
        for (home, data_home, macos, expected) in [
            (Some("/home/a"), None, false, Some("/home/a/.local/share/kiln")),
            (Some("/home/a"), Some("/data"), false, Some("/data/kiln")),
            (None, Some("/data"), false, Some("/data/kiln")),
            (Some("/home/a"), Some("data"), false, Some("/home/a/.local/share/kiln")),
            (Some("/Users/a"), Some("/data"), true, Some("/Users/a/Library/Application Support/kiln")),
            (None, None, false, None),
            (None, None, true, None),
        ] {
            assert_eq!(places(home, data_home, None).store(macos), expected.map(PathBuf::from));
        }
    }

    #[test]
    fn downloads_are_where_others_have_them() {
        let path = |text: &str| Some(PathBuf::from(text));
        let mut places = Places::default();
        assert_eq!((places.hub(), places.ollama()), (None, None));
        places.home = path("/home/a");
        assert_eq!(places.hub(), path("/home/a/.cache/huggingface/hub"));
        assert_eq!(places.ollama(), path("/home/a/.ollama/models"));
        places.cache_home = path("/cache");
        assert_eq!(places.hub(), path("/cache/huggingface/hub"));
        places.hub_home = path("/hf");
        assert_eq!(places.hub(), path("/hf/hub"));
        (places.hub_cache, places.ollama_models) = (path("/hub"), path("/models"));
        assert_eq!((places.hub(), places.ollama()), (path("/hub"), path("/models")));
    }

    #[test]
    fn credentials_are_where_docker_has_them() {
        for (home, docker_config, expected) in [
            (Some("/home/a"), None, Some("/home/a/.docker/config.json")),
            (Some("/home/a"), Some("/run/docker"), Some("/run/docker/config.json")),
            (None, None, None),
        ] {
            assert_eq!(places(home, None, docker_config).docker_config(), expected.map(PathBuf::from));
        }
    }
}
