//! Docker's `config.json`: the credentials that `docker login`, `crane`, `oras` and `skopeo` share; and podman's
//! `auth.json`, which has the same form and entries for single repositories besides (containers-auth.json(5)).
//! Read whole, changed in one place, written in one step with mode 0600; what is not ours stays.
//!
//! <https://docs.docker.com/reference/cli/docker/login/#credential-stores>.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::credential::{Credential, Keychain};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;

/// The key under which Docker keeps the credentials of Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";
/// The user that a helper names when the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Docker's configuration file, and the credential helpers it names.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: PathBuf,
}

impl DockerConfig {
    /// The file at `path`, which need not exist: `$DOCKER_CONFIG/config.json`, or `config.json` in
    /// `.docker` in the home directory.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps a password for `host`: with the credential helper that the file names for it, else in the file.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] when the file or the helper does not take it.
    pub fn login(&self, host: &str, user: &str, password: &str) -> Result<()> {
        let mut config = self.read()?;
        let key = key_of(host);
        let entry = match helper_of(&config, host) {
            Some(helper) => {
                let secret = json!({ "ServerURL": key, "Username": user, "Secret": password });
                run(&helper, "store", &json::to_canonical(&secret))?;
                json!({})
            }
            None => json!({ "auth": BASE64_STANDARD.encode(format!("{user}:{password}")) }),
        };
        let mut auths = take_auths(&mut config);
        auths.retain(|name, _| !is_for(name, host));
        auths.insert(key, entry);
        config.insert("auths".to_owned(), Value::Object(auths));
        self.write(&config)
    }

    /// Forgets what is kept for `host`; says whether there was anything.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] when the file cannot be changed or the helper fails.
    pub fn logout(&self, host: &str) -> Result<bool> {
        let mut config = self.read()?;
        let mut known = false;
        if let Some(helper) = helper_of(&config, host)
            && from_helper(&helper, host)?.is_some()
        {
            run(&helper, "erase", key_of(host).as_bytes())?;
            known = true;
        }
        let mut auths = take_auths(&mut config);
        let before = auths.len();
        auths.retain(|name, _| !is_for(name, host));
        if auths.len() < before {
            known = true;
            config.insert("auths".to_owned(), Value::Object(auths));
            self.write(&config)?;
        }
        Ok(known)
    }

    fn read(&self) -> Result<Map<String, Value>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(cause) => return Err(Error::io(ErrorKind::Unauthorized, "read the credentials", &self.path, cause)),
        };
        let malformed =
            || Error::new(ErrorKind::Unauthorized, format!("Not a Docker configuration: `{}`", self.path.display()));
        if text.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        match json::parse(&text).map_err(|cause| malformed().caused_by(cause))? {
            Value::Object(config) => Ok(config),
            _ => Err(malformed()),
        }
    }

    fn write(&self, config: &Map<String, Value>) -> Result<()> {
        let failed = |cause| Error::io(ErrorKind::Unauthorized, "save the credentials", &self.path, cause);
        // A file that is a link stays one.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(failed)?;
        // A temporary file is made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        serde::Serialize::serialize(config, &mut serde_json::Serializer::with_formatter(&mut text, formatter))
            .map_err(|cause| failed(cause.into()))?;
        text.push(b'\n');
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

impl Keychain for DockerConfig {
    fn credential(&self, host: &str) -> Result<Option<Credential>> {
        self.credential_for(host, "")
    }

    fn credential_for(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        let config = self.read()?;
        let none = Map::new();
        let entries = config.get("auths").and_then(Value::as_object).unwrap_or(&none);
        let credential = |entry: &Value| {
            from_entry(entry).ok_or_else(|| {
                let message = format!("The credentials for `{host}` are not readable: `{}`", self.path.display());
                Error::new(ErrorKind::Unauthorized, message).hint(format!("kiln login {host}"))
            })
        };
        // The nearest namespace first, and only then what holds for the whole registry.
        let mut namespace = repository;
        while !namespace.is_empty() {
            let key = format!("{host}/{namespace}");
            if let Some(entry) = entries.iter().find(|(name, _)| names_namespace(name, &key)).map(|(_, entry)| entry) {
                return credential(entry);
            }
            namespace = namespace.rsplit_once('/').map_or("", |(outer, _)| outer);
        }
        if let Some(helper) = helper_of(&config, host)
            && let Some(credential) = from_helper(&helper, host)?
        {
            return Ok(Some(credential));
        }
        let entry = entries
            .get(&key_of(host))
            .or_else(|| entries.iter().find(|(name, _)| is_for(name, host)).map(|(_, entry)| entry));
        entry.map_or(Ok(None), credential)
    }
}

/// The credential in an entry of `auths`; `Some(None)` for an empty one, `None` for a damaged one.
fn from_entry(entry: &Value) -> Option<Option<Credential>> {
    let field = |name: &str| entry[name].as_str().filter(|text| !text.is_empty());
    if let Some(token) = field("identitytoken") {
        return Some(Some(Credential::IdentityToken(token.to_owned())));
    }
    if let Some(auth) = field("auth") {
        let decoded = String::from_utf8(BASE64_STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        // Old versions of Docker padded the password.
        let password = password.trim_end_matches('\0');
        return Some(Some(Credential::Basic { user: user.to_owned(), password: password.to_owned() }));
    }
    let (Some(user), Some(password)) = (field("username"), field("password")) else { return Some(None) };
    Some(Some(Credential::Basic { user: user.to_owned(), password: password.to_owned() }))
}

/// The key of a registry, in `auths` and for helpers.
fn key_of(host: &str) -> String {
    if is_hub(host) { HUB.to_owned() } else { host.to_owned() }
}

fn is_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether the key `name` is one of those that mean `host`: older files have URLs.
fn is_for(name: &str, host: &str) -> bool {
    let bare = without_scheme(name);
    let bare = match bare.split_once('/') {
        // A path names one namespace of a registry, except those of the old API.
        Some((bare, "" | "v1/" | "v2/" | "v1" | "v2")) => bare,
        Some(_) => return false,
        None => bare,
    };
    bare == host || is_hub(bare) && is_hub(host)
}

/// Whether the key `name` is that of the namespace `host/path`.
fn names_namespace(name: &str, namespace: &str) -> bool {
    let bare = without_scheme(name);
    bare.strip_suffix('/').unwrap_or(bare) == namespace
}

fn without_scheme(name: &str) -> &str {
    name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name)
}

/// The helper for `host`: its own, or that for all.
fn helper_of(config: &Map<String, Value>, host: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(Value::as_object);
    let own = own.and_then(|own| own.iter().find(|(name, _)| is_for(name, host))).map(|(_, helper)| helper);
    own.or_else(|| config.get("credsStore")).and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
}

fn from_helper(helper: &str, host: &str) -> Result<Option<Credential>> {
    let Some(answer) = run(helper, "get", key_of(host).as_bytes())? else { return Ok(None) };
    from_answer(&answer).ok_or_else(|| helper_error(helper, "answers in a form that is not understood"))
}

/// The credential in a helper's answer; `Some(None)` for an empty one.
fn from_answer(answer: &[u8]) -> Option<Option<Credential>> {
    let answer = json::parse(answer).ok()?;
    let (user, secret) = (answer["Username"].as_str()?.to_owned(), answer["Secret"].as_str()?.to_owned());
    Some(match user.as_str() {
        _ if secret.is_empty() => None,
        TOKEN_USER => Some(Credential::IdentityToken(secret)),
        _ => Some(Credential::Basic { user, password: secret }),
    })
}

/// Runs `docker-credential-<helper> <action>`; `None` when it says that it has no such credential.
fn run(helper: &str, action: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    if !helper.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.')) {
        return Err(helper_error(helper, "is not the name of one"));
    }
    let mut program = Command::new(format!("docker-credential-{helper}"));
    let output = feed(program.arg(action), input)
        .map_err(|cause| helper_error(helper, &format!("could not be asked to `{action}`")).caused_by(cause))?;
    if output.status.success() {
        return Ok(Some(output.stdout));
    }
    if says_not_found(&output) {
        return Ok(None);
    }
    Err(helper_error(helper, &format!("failed to `{action}` ({})", output.status)))
}

/// Runs `program` with `input`, and gives back what it says on its standard output.
fn feed(program: &mut Command, input: &[u8]) -> io::Result<Output> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // It may know its answer without reading.
            Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => return Err(cause),
            _ => {}
        }
    }
    child.wait_with_output()
}

/// The helpers' protocol has no other way to say so than this sentence.
fn says_not_found(output: &Output) -> bool {
    output.stdout.trim_ascii().starts_with(b"credentials not found")
}

fn helper_error(helper: &str, what: &str) -> Error {
    Error::new(ErrorKind::Unauthorized, format!("The credential helper {} {what}", quoted(helper)))
}

/// The entries of `auths`, taken out to be changed.
fn take_auths(config: &mut Map<String, Value>) -> Map<String, Value> {
    match config.remove("auths") {
        Some(Value::Object(auths)) => auths,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, DockerConfig) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, text).unwrap();
        (directory, DockerConfig::at(path))
    }

    fn basic(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic { user: user.into(), password: password.into() })
    }

    #[test]
    fn an_entry_is_found_under_each_of_its_spellings() {
        // `alice:s3:cret`, once plain and once padded as old versions of Docker did.
        let text = r#"{"auths":{
            "r.example": {"auth":"YWxpY2U6czM6Y3JldA=="},
            "https://old.example/v1/": {"auth":"YWxpY2U6czM6Y3JldAAA"},
            "https://index.docker.io/v1/": {"username":"alice","password":"s3:cret"},
            "token.example:5000": {"auth":"YWxpY2U6","identitytoken":"t0ken"},
            "space.example/team": {"auth":"YWxpY2U6czM6Y3JldA=="},
            "helper.example": {}
        }}"#;
        let (_directory, config) = config(text);
        for (host, expected) in [
            ("r.example", basic("alice", "s3:cret")),
            ("r.example:5000", None),
            ("old.example", basic("alice", "s3:cret")),
            ("docker.io", basic("alice", "s3:cret")),
            ("registry-1.docker.io", basic("alice", "s3:cret")),
            ("token.example:5000", Some(Credential::IdentityToken("t0ken".into()))),
            ("space.example", None),
            ("helper.example", None),
            ("unknown.example", None),
        ] {
            assert_eq!(config.credential(host).unwrap(), expected, "{host}");
        }
    }

    #[test]
    fn the_nearest_namespace_of_a_repository_has_its_credential() {
        let entry = |user: &str| format!(r#"{{"username":"{user}","password":"p"}}"#);
        let text = format!(
            r#"{{"auths":{{"r.example":{},"r.example/team":{},"r.example/team/model":{},"r.example:5000/team":{}}}}}"#,
            entry("all"),
            entry("team"),
            entry("model"),
            entry("port")
        );
        let (_directory, config) = config(&text);
        for (host, repository, user) in [
            ("r.example", "team/model", Some("model")),
            ("r.example", "team/model/large", Some("model")),
            ("r.example", "team/models", Some("team")),
            ("r.example", "teams/model", Some("all")),
            ("r.example", "", Some("all")),
            ("r.example:5000", "team", Some("port")),
            ("r.example:5000", "other", None),
        ] {
            let found = config.credential_for(host, repository).unwrap();
            assert_eq!(found, user.and_then(|user| basic(user, "p")), "{host} {repository}");
        }
        let files = vec![DockerConfig::at("/nowhere/auth.json"), config];
        assert_eq!(files.credential_for("r.example", "team").unwrap(), basic("team", "p"));
        assert_eq!(files.credential("r.example:5000").unwrap(), None);
    }

    #[test]
    fn a_damaged_entry_is_an_error_and_does_not_print() {
        for auth in ["!", "YWxpY2U=", "/w=="] {
            let (_directory, config) = config(&format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}"}}}}}}"#));
            let error = config.credential("r.example").unwrap_err();
            assert_eq!((error.kind(), error.hint_text()), (ErrorKind::Unauthorized, Some("kiln login r.example")));
            assert!(!error.to_string().contains(auth), "{error}");
        }
    }

    #[test]
    fn no_file_is_no_credential_and_login_makes_one() {
        let directory = tempfile::tempdir().unwrap();
        let config = DockerConfig::at(directory.path().join("new/config.json"));
        assert_eq!(config.credential("r.example").unwrap(), None);
        assert!(!config.logout("r.example").unwrap());
        config.login("r.example", "alice", "s3cret").unwrap();
        assert_eq!(config.credential("r.example").unwrap(), basic("alice", "s3cret"));
    }

    #[test]
    fn login_and_logout_leave_the_rest_as_it_was() {
        let (_directory, config) = config(
            r#"{"credHelpers":{"gcr.io":"gcloud"},"auths":{"https://r.example":{"auth":"eDp5"},"b":{}},"x":[1,{"y":null}]}"#,
        );
        let read = || json::parse(&fs::read(config.path()).unwrap()).unwrap();
        let rest = |mut value: Value| {
            value["auths"].as_object_mut().unwrap().retain(|name, _| name == "b");
            value
        };
        let before = rest(read());
        config.login("r.example", "alice", "s3cret").unwrap();
        assert_eq!(config.credential("r.example").unwrap(), basic("alice", "s3cret"));
        assert_eq!(read()["auths"].as_object().unwrap().len(), 2, "the old spelling is gone");
        assert_eq!(rest(read()), before);
        assert!(config.logout("r.example").unwrap());
        assert_eq!(config.credential("r.example").unwrap(), None);
        assert_eq!(rest(read()), before);
        assert!(!config.logout("r.example").unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_reads_the_file_and_a_link_stays_a_link() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let (directory, config) = config("{}");
        fs::set_permissions(config.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let link = directory.path().join("link.json");
        symlink(config.path(), &link).unwrap();
        DockerConfig::at(&link).login("r.example", "alice", "s3cret").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(config.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(config.credential("r.example").unwrap(), basic("alice", "s3cret"));
    }

    #[test]
    fn a_file_that_is_not_a_configuration_is_not_overwritten() {
        for text in ["[]", "{", r#"{"auths":{},"auths":{}}"#] {
            let (_directory, config) = config(text);
            assert!(config.login("r.example", "alice", "s3cret").is_err(), "{text}");
            assert_eq!(fs::read_to_string(config.path()).unwrap(), text);
        }
    }

    #[test]
    fn a_helper_of_its_own_comes_before_the_common_one() {
        let helper = |text: &str, host: &str| match json::parse(text.as_bytes()).unwrap() {
            Value::Object(config) => helper_of(&config, host),
            _ => None,
        };
        let text = r#"{"credsStore":"pass","credHelpers":{"r.example":"own","https://index.docker.io/v1/":"hub"}}"#;
        assert_eq!(helper(text, "r.example").as_deref(), Some("own"));
        assert_eq!(helper(text, "docker.io").as_deref(), Some("hub"));
        assert_eq!(helper(text, "other.example").as_deref(), Some("pass"));
        assert_eq!(helper("{}", "r.example"), None);
        assert!(run("../../bin/x", "get", b"").is_err());
    }

    #[test]
    fn a_helpers_answer_is_understood() {
        let answer = |text: &str| from_answer(text.as_bytes());
        assert_eq!(answer(r#"{"ServerURL":"x","Username":"alice","Secret":"s3cret"}"#), Some(basic("alice", "s3cret")));
        let token = Some(Credential::IdentityToken("t".into()));
        assert_eq!(answer(r#"{"Username":"<token>","Secret":"t"}"#), Some(token));
        assert_eq!(answer(r#"{"Username":"","Secret":""}"#), Some(None));
        assert_eq!(answer("alice"), None);
        assert_eq!(answer(r#"{"Username":"alice"}"#), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_helper_is_fed_and_heard() {
        let shell = |script: &str| feed(Command::new("sh").args(["-c", script, "get"]), b"r.example").unwrap();
        assert_eq!(shell("echo $0; cat").stdout, b"get\nr.example");
        let silent = shell("echo credentials not found in native keychain; exit 1");
        assert!(!silent.status.success() && says_not_found(&silent));
        assert!(!says_not_found(&shell("echo locked; exit 1")));
    }
}
