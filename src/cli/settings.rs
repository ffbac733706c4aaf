//! What the command line, the environment and the configuration file together decide: where the store is, how
//! many threads work, how progress is shown. An option wins over its variable, and a variable over the file. This is
//! the only file that reads the environment, and it reads it once.

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::arguments::{Global, ProgressMode};
use super::config::Config;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::quant::Instructions;

/// The names of the environment variables.
pub(super) mod variable {
    /// The directory of the store.
    pub(in super::super) const STORE: &str = "KILN_STORE";
    /// How many blobs are written at once.
    pub(in super::super) const THREADS: &str = "KILN_THREADS";
    /// The widest instructions that the kernels use.
    pub(super) const INSTRUCTIONS: &str = "KILN_INSTRUCTIONS";
    /// Results are JSON.
    pub(super) const JSON: &str = "KILN_JSON";
    /// How progress is shown.
    pub(in super::super) const PROGRESS: &str = "KILN_PROGRESS";
    /// Only results and errors.
    pub(super) const QUIET: &str = "KILN_QUIET";
    /// More than results.
    pub(super) const VERBOSE: &str = "KILN_VERBOSE";
    /// The configuration file.
    pub(in super::super) const CONFIG: &str = "KILN_CONFIG";
    /// Whether plain HTTP is spoken.
    pub(super) const PLAIN_HTTP: &str = "KILN_PLAIN_HTTP";
    /// Certificate authorities to trust besides the system's.
    pub(in super::super) const CA: &str = "KILN_CA";
    /// A certificate of our own.
    pub(in super::super) const CLIENT_CERT: &str = "KILN_CLIENT_CERT";
    /// Its key.
    pub(in super::super) const CLIENT_KEY: &str = "KILN_CLIENT_KEY";
    /// How long a registry may be silent.
    pub(in super::super) const TIMEOUT: &str = "KILN_TIMEOUT";
    /// How long a connection may take to come up.
    pub(in super::super) const CONNECT_TIMEOUT: &str = "KILN_CONNECT_TIMEOUT";
    /// How many bytes move in a second at most.
    pub(in super::super) const LIMIT_RATE: &str = "KILN_LIMIT_RATE";
    /// How many blobs are moved at once.
    pub(in super::super) const CONCURRENCY: &str = "KILN_CONCURRENCY";
    /// Docker's directory of settings, which has the credentials.
    pub(in super::super) const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
    /// Podman's file of credentials.
    pub(super) const REGISTRY_AUTH_FILE: &str = "REGISTRY_AUTH_FILE";
    /// The user's directory for what lives as long as a login, by the XDG base directory specification.
    pub(super) const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
    /// The Hugging Face cache.
    pub(super) const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
    /// The directory that has the Hugging Face cache as `hub`.
    pub(super) const HF_HOME: &str = "HF_HOME";
    /// Ollama's store.
    pub(super) const OLLAMA_MODELS: &str = "OLLAMA_MODELS";
    /// The user's cache directory, by the XDG base directory specification.
    pub(super) const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
    /// The user's configuration directory, by the XDG base directory specification.
    pub(super) const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
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
    /// What `KILN_PLAIN_HTTP` says, if it says something.
    pub(super) plain_http: Option<bool>,
    /// What the configuration file says.
    pub(super) config: Config,
    places: Places,
}

/// The directories that the environment names.
#[derive(Clone, Debug, Default)]
struct Places {
    home: Option<PathBuf>,
    config: Option<PathBuf>,
    config_home: Option<PathBuf>,
    data_home: Option<PathBuf>,
    docker_config: Option<PathBuf>,
    auth_file: Option<PathBuf>,
    runtime: Option<PathBuf>,
    hub_cache: Option<PathBuf>,
    hub_home: Option<PathBuf>,
    cache_home: Option<PathBuf>,
    ollama_models: Option<PathBuf>,
}

impl Settings {
    /// Reads what the environment and the configuration file add to the options.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when a variable or the file is not understood.
    pub(super) fn new(global: &Global) -> Result<Self> {
        let places = Places::read();
        let config = places.config()?;
        let json = global.json || flag(variable::JSON)?.or(config.json).unwrap_or(false);
        let progress = global.progress.or(config.progress).unwrap_or(ProgressMode::Auto);
        let (quiet, verbose) = loudness(
            (global.quiet, global.verbose),
            (flag(variable::QUIET)?, flag(variable::VERBOSE)?),
            (config.quiet, config.verbose),
        )?;
        let json = json || progress == ProgressMode::Json;
        let display = match progress {
            ProgressMode::Off => Display::Nothing,
            _ if quiet => Display::Nothing,
            ProgressMode::Json => Display::Json,
            ProgressMode::Plain => Display::Lines,
            ProgressMode::Auto if json => Display::Json,
            ProgressMode::Auto if std::io::stderr().is_terminal() => Display::Bar,
            ProgressMode::Auto => Display::Lines,
        };
        if let Some(instructions) = instructions()? {
            instructions.choose();
        }
        let threads = global.threads.or(config.threads).or_else(|| std::thread::available_parallelism().ok());
        Ok(Self {
            store: global.store.clone().or_else(|| config.store.clone()),
            threads: threads.map_or(1, NonZeroUsize::get),
            json,
            display,
            quiet,
            verbose,
            plain_http: flag(variable::PLAIN_HTTP)?,
            config,
            places,
        })
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

    /// The files with credentials, in the order in which they are asked.
    pub(super) fn credentials(&self) -> Vec<PathBuf> {
        self.places.credentials()
    }

    /// Where docker and podman keep certificates for registries, those of the user first.
    pub(super) fn certificates(&self) -> Vec<PathBuf> {
        self.places.certificates()
    }

    /// The Hugging Face cache; `None` when there is no home directory to look in.
    pub(super) fn hub(&self) -> Option<PathBuf> {
        self.places.hub()
    }

    /// The policy of whom to trust, beside the configuration file; `None` when there is none.
    pub(super) fn trust_policy(&self) -> Option<PathBuf> {
        let named = self.places.config.as_deref().and_then(Path::parent).map(Path::to_owned);
        let directory = named.or_else(|| Some(self.places.config_home()?.join("kiln")))?;
        Some(directory.join("trust.toml")).filter(|policy| policy.is_file())
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

/// The names of kiln's own variables that are set.
pub(super) fn own_variables() -> impl Iterator<Item = OsString> {
    env::vars_os().map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"KILN_"))
}

/// The instructions that the environment names.
fn instructions() -> Result<Option<Instructions>> {
    let Some(value) = env::var_os(variable::INSTRUCTIONS).filter(|value| !value.is_empty()) else { return Ok(None) };
    let named = Instructions::available().find(|set| value.to_str() == Some(&set.to_string()));
    named.map(Some).ok_or_else(|| {
        let names: Vec<String> = Instructions::available().map(|set| format!("`{set}`")).collect();
        let value = quoted(&value.display().to_string());
        Error::new(ErrorKind::Usage, format!("Invalid value for `{}`: {value}", variable::INSTRUCTIONS))
            .hint(format!("this processor has {}", names.join(", ")))
    })
}

/// What a variable that is on or off says.
fn flag(name: &str) -> Result<Option<bool>> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    match value.to_str().map(str::to_ascii_lowercase).as_deref() {
        Some("1" | "true" | "yes" | "on") => Ok(Some(true)),
        Some("0" | "false" | "no" | "off") => Ok(Some(false)),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format!("Invalid value for `{name}`: {}", quoted(&value.display().to_string())),
        )
        .hint("use `true` or `false`")),
    }
}

/// Whether to be quiet, and whether verbose: who says one of the two decides both.
fn loudness(
    options: (bool, bool),
    variables: (Option<bool>, Option<bool>),
    file: (Option<bool>, Option<bool>),
) -> Result<(bool, bool)> {
    let said = |(quiet, verbose): (Option<bool>, Option<bool>)| {
        (quiet.is_some() || verbose.is_some()).then(|| (quiet.unwrap_or(false), verbose.unwrap_or(false)))
    };
    let options = Some(options).filter(|(quiet, verbose)| *quiet || *verbose);
    match options.or_else(|| said(variables)).or_else(|| said(file)).unwrap_or((false, false)) {
        (true, true) => Err(Error::new(
            ErrorKind::Usage,
            format!("`{}` and `{}` exclude each other", variable::QUIET, variable::VERBOSE),
        )),
        decided => Ok(decided),
    }
}

impl Places {
    fn read() -> Self {
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            home: path(variable::HOME),
            config: path(variable::CONFIG),
            config_home: path(variable::XDG_CONFIG_HOME),
            data_home: path(variable::XDG_DATA_HOME),
            docker_config: path(variable::DOCKER_CONFIG),
            auth_file: path(variable::REGISTRY_AUTH_FILE),
            runtime: path(variable::XDG_RUNTIME_DIR),
            hub_cache: path(variable::HF_HUB_CACHE),
            hub_home: path(variable::HF_HOME),
            cache_home: path(variable::XDG_CACHE_HOME),
            ollama_models: path(variable::OLLAMA_MODELS),
        }
    }

    /// What the configuration file says; nothing when there is none. A file that is named has to be there.
    fn config(&self) -> Result<Config> {
        if let Some(named) = &self.config {
            return Config::read(named)?.ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("There is no configuration file `{}`", named.display()))
                    .hint(format!("`{}` names it", variable::CONFIG))
            });
        }
        let file = self.config_home().map(|directory| directory.join("kiln/config.toml"));
        Ok(file.map(|file| Config::read(&file)).transpose()?.flatten().unwrap_or_default())
    }

    fn config_home(&self) -> Option<PathBuf> {
        // XDG base directory specification 0.8: a path that is not absolute is ignored.
        let named = self.config_home.clone().filter(|path| path.is_absolute());
        named.or_else(|| Some(self.home.as_deref()?.join(".config")))
    }

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

    fn credentials(&self) -> Vec<PathBuf> {
        let podman = |directory: Option<PathBuf>| Some(directory?.join("containers/auth.json"));
        // What `kiln login` writes comes before what other programs have kept, and what is named before both.
        let files =
            [self.auth_file.clone(), self.docker_config(), podman(self.runtime.clone()), podman(self.config_home())];
        files.into_iter().flatten().collect()
    }

    fn certificates(&self) -> Vec<PathBuf> {
        let places = [self.config_home(), Some(PathBuf::from("/etc"))];
        let directories = |place: PathBuf| ["containers/certs.d", "docker/certs.d"].map(|name| place.join(name));
        places.into_iter().flatten().flat_map(directories).collect()
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
    fn an_option_wins_over_a_variable_and_a_variable_over_the_file() {
        let nothing = (None, None);
        for (options, variables, file, decided) in [
            ((false, false), nothing, nothing, (false, false)),
            ((false, false), nothing, (Some(true), None), (true, false)),
            ((false, false), (None, Some(true)), (Some(true), None), (false, true)),
            ((false, false), (Some(false), None), (Some(true), None), (false, false)),
            ((true, false), (None, Some(true)), (None, Some(true)), (true, false)),
        ] {
            assert_eq!(loudness(options, variables, file).unwrap(), decided);
        }
        assert!(loudness((false, false), (Some(true), Some(true)), nothing).is_err());
    }

    #[test]
    fn the_configuration_is_where_the_desktop_specification_has_it() {
        let mut places = Places::default();
        assert_eq!(places.config_home(), None);
        places.home = Some("/home/a".into());
        assert_eq!(places.config_home(), Some("/home/a/.config".into()));
        places.config_home = Some("relative".into());
        assert_eq!(places.config_home(), Some("/home/a/.config".into()));
        places.config_home = Some("/config".into());
        assert_eq!(places.config_home(), Some("/config".into()));
    }

    #[test]
    fn certificates_are_where_docker_and_podman_have_them() {
        let places = |home| places(home, None, None).certificates();
        let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        assert_eq!(places(None), system);
        assert_eq!(
            places(Some("/home/a"))[..2],
            ["containers", "docker"].map(|name| { PathBuf::from(format!("/home/a/.config/{name}/certs.d")) })
        );
        assert_eq!(places(Some("/home/a"))[2..], system);
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
    fn credentials_of_podman_come_after_those_of_docker_unless_they_are_named() {
        let mut places = places(Some("/home/a"), None, None);
        let (docker, podman) = ("/home/a/.docker/config.json", "/home/a/.config/containers/auth.json");
        assert_eq!(places.credentials(), [docker, podman].map(PathBuf::from));
        (places.auth_file, places.runtime) = (Some("/named.json".into()), Some("/run/user/1".into()));
        let all = ["/named.json", docker, "/run/user/1/containers/auth.json", podman];
        assert_eq!(places.credentials(), all.map(PathBuf::from));
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
