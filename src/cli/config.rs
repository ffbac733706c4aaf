//! The configuration file: TOML with the words of the options. What it says holds where neither an option nor
//! a variable says otherwise. A key that nobody knows is an error: a mistyped one would be a setting that is
//! silently not there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::arguments::ProgressMode;
use super::transport::BytesPerSecond;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::Reference;

/// What a file says; everything may be absent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Config {
    pub(super) store: Option<PathBuf>,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) json: Option<bool>,
    pub(super) progress: Option<ProgressMode>,
    pub(super) quiet: Option<bool>,
    pub(super) verbose: Option<bool>,
    pub(super) plain_http: Option<bool>,
    pub(super) ca: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) timeout: Option<NonZeroU32>,
    pub(super) connect_timeout: Option<NonZeroU32>,
    pub(super) concurrency: Option<NonZeroUsize>,
    pub(super) limit_rate: Option<BytesPerSecond>,
    /// What is different for one registry, by its name as references have it.
    pub(super) registry: BTreeMap<Spanned<String>, Registry>,
}

/// What is different for one registry.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Registry {
    pub(super) plain_http: Option<bool>,
    pub(super) ca: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    /// Where to pull from first, as `host[:port][/path]`.
    pub(super) mirrors: Vec<Spanned<String>>,
}

impl Config {
    /// Reads the file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when it cannot be read or understood; the error names the line.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io(ErrorKind::Usage, "read", path, cause)),
        };
        let mut config = Self::parse(path, &text)?;
        config.settle(path.parent().unwrap_or(Path::new("")));
        Ok(Some(config))
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |span: Range<usize>, sentence: String| {
            let line = 1 + text.bytes().take(span.start).filter(|&byte| byte == b'\n').count();
            let path = quoted(&path.display().to_string());
            Error::new(ErrorKind::Usage, format!("Line {line} of the configuration {path} is wrong"))
                .caused_by(Error::new(ErrorKind::Usage, sentence))
        };
        let config: Self = toml::from_str(text).map_err(|cause| {
            let sentence = cause.message().lines().collect::<Vec<_>>().join(", ");
            wrong(cause.span().unwrap_or_default(), sentence)
        })?;
        if config.quiet == Some(true) && config.verbose == Some(true) {
            return Err(wrong(0..0, "`quiet` and `verbose` exclude each other".to_owned()));
        }
        let is_alone = |key: &Option<PathBuf>, certificate: &Option<PathBuf>| key.is_some() && certificate.is_none();
        if is_alone(&config.client_key, &config.client_cert)
            || config.registry.values().any(|own| is_alone(&own.client_key, &own.client_cert))
        {
            return Err(wrong(0..0, "`client-key` needs `client-cert`".to_owned()));
        }
        for (host, own) in &config.registry {
            if !is_registry(host.get_ref()) {
                let sentence = format!("Not a registry: {}", quoted(host.get_ref()));
                return Err(
                    wrong(host.span(), sentence).hint("write `host` or `host:port`, as in `registry.example:5000`")
                );
            }
            if let Some(mirror) = own.mirrors.iter().find(|mirror| !is_mirror(mirror.get_ref())) {
                let sentence = format!("Not a mirror: {}", quoted(mirror.get_ref()));
                return Err(wrong(mirror.span(), sentence)
                    .hint("write `host`, `host:port` or either with a path, as in `mirror.example/hub`"));
            }
        }
        Ok(config)
    }

    /// Paths are relative to the directory of the file that names them.
    fn settle(&mut self, directory: &Path) {
        let own = self.registry.values_mut();
        let own = own.flat_map(|own| [&mut own.ca, &mut own.client_cert, &mut own.client_key]);
        let all = [&mut self.store, &mut self.ca, &mut self.client_cert, &mut self.client_key];
        for path in all.into_iter().chain(own).flatten() {
            *path = directory.join(&*path);
        }
    }
}

/// Whether a name behind this is a reference with a host.
fn is_mirror(mirror: &str) -> bool {
    let names_one = |reference: Reference| reference.host().is_some_and(|host| mirror.starts_with(host));
    format!("{mirror}/path").parse().is_ok_and(names_one)
}

/// Whether a reference can have this host.
fn is_registry(host: &str) -> bool {
    format!("{host}/path").parse().is_ok_and(|reference: Reference| reference.host() == Some(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(Path::new("/etc/kiln.toml"), text)
    }

    #[test]
    fn a_file_has_the_words_of_the_options() {
        let config = parse(
            r#"
            store = "models"
            threads = 3
            progress = "plain"
            quiet = true
            concurrency = 8
            limit-rate = "10M"

            [registry."127.0.0.1:5000"]
            plain-http = true
            ca = "/ca.pem"
            mirrors = ["mirror.example", "127.0.0.1:5001/hub/all"]
            "#,
        );
        let mut config = config.unwrap();
        config.settle(Path::new("/etc"));
        assert_eq!(config.store, Some("/etc/models".into()));
        assert_eq!((config.threads, config.concurrency), (NonZeroUsize::new(3), NonZeroUsize::new(8)));
        assert_eq!((config.progress, config.quiet, config.json), (Some(ProgressMode::Plain), Some(true), None));
        let (host, own) = config.registry.first_key_value().unwrap();
        assert_eq!(host.get_ref(), "127.0.0.1:5000");
        assert_eq!((own.plain_http, &own.ca), (Some(true), &Some("/ca.pem".into())));
        let mirrors: Vec<_> = own.mirrors.iter().map(Spanned::get_ref).collect();
        assert_eq!(mirrors, ["mirror.example", "127.0.0.1:5001/hub/all"]);
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_told_with_file_and_line() {
        for (text, line, says) in [
            ("threads = 2\nconcurency = 8\n", 2, "unknown field `concurency`, expected one of `store`, `threads`"),
            ("\n\n[registry.\"r.example\"]\nplain_http = true\n", 4, "unknown field `plain_http`"),
            ("threads = 0\n", 1, "invalid value: integer `0`, expected a nonzero usize"),
            ("json = \"yes\"\n", 1, "invalid type: string \"yes\", expected a boolean"),
            ("progress = \"loud\"\n", 1, "unknown variant `loud`, expected one of `auto`, `plain`"),
            ("ca = \"a\"\nca = \"b\"\n", 2, "duplicate key"),
            ("limit-rate = \"fast\"\n", 1, "Not a number of bytes per second: `fast`"),
            ("[registry.\"r.example\"]\nclient-key = \"k\"\n", 1, "`client-key` needs `client-cert`"),
            ("quiet = true\nverbose = true\n", 1, "`quiet` and `verbose` exclude each other"),
            ("\n[registry.\"https://r.example\"]\n", 2, "Not a registry: `https://r.example`"),
            ("[registry.\"r.example\"]\nmirrors = [\"m.example\",\n\"team\"]\n", 3, "Not a mirror: `team`"),
            ("[registry.\"r.example\"]\nmirrors = [\"http://m.example\"]\n", 2, "Not a mirror: `http://m.example`"),
            ("mirrors = [\"m.example\"]\n", 1, "unknown field `mirrors`"),
            ("[registry.team]\n", 1, "Not a registry: `team`"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert_eq!(error.to_string(), format!("Line {line} of the configuration `/etc/kiln.toml` is wrong"));
            let cause = error.causes().next().unwrap().to_string();
            assert!(cause.starts_with(says), "{text}: {cause}");
        }
    }

    #[test]
    fn the_manual_has_every_key() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
        let manual = fs::read_to_string(path).unwrap();
        let keys = |text: &str| {
            let refusal = toml::from_str::<Config>(text).unwrap_err().message().to_owned();
            let keys = refusal.split('`').skip(3).step_by(2).map(str::to_owned);
            keys.collect::<Vec<_>>()
        };
        let (all, own) = (keys("unknown = 1"), keys("[registry.x]\nunknown = 1"));
        assert!(all.len() > 9 && own.len() > 1, "{all:?} {own:?}");
        for key in all.iter().filter(|key| *key != "registry") {
            let mark = if own.contains(key) { "*" } else { "" };
            let variable = format!("KILN_{}", key.to_uppercase().replace('-', "_"));
            let row = |line: &&str| line.contains(&format!("| `{key}`{mark} |"));
            let row = manual.lines().find(row).unwrap_or_else(|| panic!("no row for {key}"));
            assert!(row.contains(&format!("| `{variable}` |")) && row.contains(&format!("| `--{key}")), "{row}");
        }
    }

    #[test]
    fn no_file_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Config::read(&directory.path().join("config.toml")).unwrap(), None);
        assert_eq!(Config::read(directory.path()).unwrap_err().kind(), ErrorKind::Usage);
    }
}
