//! Directories that want something from whoever opens them: to block, to publish another file, to
//! change under the reader. Built here, because a repository cannot carry them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use kiln::inventory::Inventory;
use kiln::source::Checkpoint;
use kiln::{Error, ErrorKind};
use tempfile::TempDir;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A safetensors file with one tensor of four bytes, called `name`.
fn weights(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(b"\x01\x02\x03\x04");
    bytes
}

/// A small checkpoint: `config.json`, `tokenizer.json`, `model.safetensors`.
fn checkpoint() -> Outcome<TempDir> {
    let root = TempDir::new()?;
    fill(root.path())?;
    Ok(root)
}

fn fill(root: &Path) -> Outcome {
    fs::create_dir_all(root)?;
    fs::write(root.join("config.json"), "{}")?;
    fs::write(root.join("tokenizer.json"), "{}")?;
    fs::write(root.join("model.safetensors"), weights("w"))?;
    Ok(())
}

#[track_caller]
fn refused(root: &Path, words: &str) -> Error {
    match Checkpoint::open(root) {
        Ok(_) => panic!("opened, but expected: {words}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Input, "{error}");
            assert!(error.to_string().contains(words), "`{words}` is not in: {error}");
            error
        }
    }
}

#[test]
fn pipes_and_devices_are_refused_without_waiting() -> Outcome {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        for name in ["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"] {
            let root = checkpoint().unwrap();
            let _ = fs::remove_file(root.path().join(name));
            let made = Command::new("mkfifo").arg(root.path().join(name)).status().unwrap();
            assert!(made.success());
            refused(root.path(), &format!("{name}` is not a regular file"));
        }
        let root = checkpoint().unwrap();
        fs::remove_file(root.path().join("model.safetensors")).unwrap();
        symlink("/dev/zero", root.path().join("model.safetensors")).unwrap();
        refused(root.path(), "is not a regular file");
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(20))?;
    Ok(())
}

#[test]
fn a_directory_or_a_file_that_cannot_be_opened_is_named() -> Outcome {
    let root = checkpoint()?;
    fs::remove_file(root.path().join("config.json"))?;
    fs::create_dir(root.path().join("config.json"))?;
    refused(root.path(), "config.json` is missing");
    Ok(())
}

#[test]
fn a_sidecar_may_not_link_out_of_the_checkpoint() -> Outcome {
    let outside = TempDir::new()?;
    fs::write(outside.path().join("secret"), "{}")?;
    for name in ["LICENSE", "config.json", "vocab.json"] {
        let root = checkpoint()?;
        let _ = fs::remove_file(root.path().join(name));
        symlink(outside.path().join("secret"), root.path().join(name))?;
        let error = refused(root.path(), &format!("`{name}` is a symbolic link that leads out of the checkpoint"));
        assert!(error.hint_text().is_some_and(|hint| hint.contains("copy")));
    }
    // Inside, and into the contents of a cache, a link is followed; so is one to weights on another disk.
    let root = checkpoint()?;
    let blobs = outside.path().join("models--a--b/blobs");
    fs::create_dir_all(&blobs)?;
    fs::write(blobs.join("0a"), "{}")?;
    symlink(blobs.join("0a"), root.path().join("vocab.json"))?;
    symlink("tokenizer.json", root.path().join("added_tokens.json"))?;
    fs::rename(root.path().join("model.safetensors"), outside.path().join("w"))?;
    symlink(outside.path().join("w"), root.path().join("model.safetensors"))?;
    let opened = Checkpoint::open(root.path())?;
    assert_eq!(opened.sidecars().len(), 4);
    // The checkpoint itself may be reached through a link.
    symlink(root.path(), outside.path().join("link"))?;
    Checkpoint::open(&outside.path().join("link"))?;
    Ok(())
}

#[test]
fn a_change_under_the_reader_is_noticed() -> Outcome {
    type Change = fn(&Path) -> std::io::Result<()>;
    let table: [(&str, &str, Change); 7] = [
        ("a write", "model.safetensors", |root| {
            File::options().append(true).open(root.join("model.safetensors"))?.write_all(b"x")
        }),
        ("a cut", "model.safetensors", |root| {
            File::options().write(true).open(root.join("model.safetensors"))?.set_len(20)
        }),
        ("a replacement", "model.safetensors", |root| {
            fs::write(root.join("new"), weights("w"))?;
            fs::rename(root.join("new"), root.join("model.safetensors"))
        }),
        ("a removal", "model.safetensors", |root| fs::remove_file(root.join("model.safetensors"))),
        ("a touch", "model.safetensors", |root| {
            let file = File::options().write(true).open(root.join("model.safetensors"))?;
            file.set_modified(std::time::UNIX_EPOCH)
        }),
        ("another sidecar", "tokenizer.json", |root| {
            fs::write(root.join("new"), "[]")?;
            fs::rename(root.join("new"), root.join("tokenizer.json"))
        }),
        ("no sidecar", "tokenizer.json", |root| fs::remove_file(root.join("tokenizer.json"))),
    ];
    for (what, name, change) in table {
        let root = checkpoint()?;
        let opened = Checkpoint::open(root.path())?;
        opened.check_unchanged()?;
        change(root.path())?;
        let error = opened.check_unchanged().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Input, "{what}");
        assert!(error.to_string().contains(&format!("{name}` was changed while it was read")), "{what}: {error}");
        if name == "tokenizer.json" {
            assert!(opened.read_sidecar(name).is_err(), "{what}");
        }
    }
    Ok(())
}

#[test]
fn a_link_that_points_elsewhere_later_is_noticed() -> Outcome {
    let root = checkpoint()?;
    let name = root.path().join("model.safetensors");
    fs::rename(&name, root.path().join("one"))?;
    fs::write(root.path().join("two"), weights("w"))?;
    symlink("one", &name)?;
    let opened = Checkpoint::open(root.path())?;
    opened.check_unchanged()?;
    fs::remove_file(&name)?;
    symlink("two", &name)?;
    let error = opened.check_unchanged().unwrap_err();
    assert!(error.to_string().contains("model.safetensors` was changed while it was read"), "{error}");
    Ok(())
}

#[test]
fn a_file_that_became_shorter_is_an_error_when_read() -> Outcome {
    let root = checkpoint()?;
    let opened = Checkpoint::open(root.path())?;
    File::options().write(true).open(root.path().join("model.safetensors"))?.set_len(30)?;
    let error = opened.read_at(&opened.tensors()["w"], 0, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("was changed while it was read"), "{error}");
    Ok(())
}

#[test]
fn reads_stay_inside_of_the_tensor() -> Outcome {
    let root = checkpoint()?;
    let opened = Checkpoint::open(root.path())?;
    let tensor = &opened.tensors()["w"];
    let mut two = [0; 2];
    opened.read_at(tensor, 1, &mut two)?;
    assert_eq!((two, tensor.len()), ([2, 3], 4));
    opened.read_at(tensor, 4, &mut [])?;
    for (offset, length) in [(3, 2), (0, 5), (5, 0), (u64::MAX, 1)] {
        let error = opened.read_at(tensor, offset, &mut vec![0; length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unexpected, "{offset}+{length}");
    }
    assert_eq!(opened.read_sidecar("model.safetensors").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(opened.read_sidecar("../x").unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}

#[test]
fn shards_must_agree() -> Outcome {
    let root = TempDir::new()?;
    fs::write(root.path().join("config.json"), "{}")?;
    fs::write(root.path().join("model-1-of-2.safetensors"), weights("w"))?;
    fs::write(root.path().join("model-2-of-2.safetensors"), weights("w"))?;
    refused(root.path(), "`w` is in two shards, `model-1-of-2.safetensors` and `model-2-of-2.safetensors`");
    let root = checkpoint()?;
    fs::write(root.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}")?;
    refused(root.path(), "has no tensors");
    let root = checkpoint()?;
    let index = r#"{"weight_map":{"w":"model.safetensors","v":"nope.safetensors"}}"#;
    fs::write(root.path().join("model.safetensors.index.json"), index)?;
    refused(root.path(), "nope.safetensors` is missing");
    Ok(())
}

#[test]
fn what_is_too_large_is_refused_when_opened() -> Outcome {
    for (name, size, words) in [
        ("vocab.json", 65 << 20, "`vocab.json` has 68157440 bytes"),
        ("config.json", 17 << 20, "`config.json` has 17825792 bytes"),
        ("model.safetensors.index.json", 129 << 20, "`model.safetensors.index.json` has 135266304 bytes"),
    ] {
        let root = checkpoint()?;
        File::create(root.path().join(name))?.set_len(size)?;
        refused(root.path(), words);
    }
    Ok(())
}

#[test]
fn text_in_place_of_weights_is_named() -> Outcome {
    for (text, words) in [
        ("{\"error\":\"Invalid credentials\"}", "`model.safetensors` is text, not a safetensors file"),
        ("<!DOCTYPE html><html>", "`model.safetensors` is a web page"),
        ("../../blobs/0a1b", "`model.safetensors` is the text of a symbolic link"),
    ] {
        let root = checkpoint()?;
        fs::write(root.path().join("model.safetensors"), text)?;
        refused(root.path(), words);
    }
    let root = checkpoint()?;
    fs::write(root.path().join("config.json"), "version https://git-lfs.github.com/spec/v1\noid")?;
    refused(root.path(), "`config.json` is a git-lfs pointer");
    Ok(())
}

#[test]
fn a_cache_entry_names_its_snapshot() -> Outcome {
    let cache = TempDir::new()?;
    let entry = cache.path().join("models--a--b");
    fs::create_dir_all(entry.join("refs"))?;
    fill(&entry.join("snapshots/one"))?;
    assert_eq!(Checkpoint::open(&entry)?.root(), entry.join("snapshots/one"));
    fill(&entry.join("snapshots/two"))?;
    refused(&entry, "holds several revisions");
    fs::write(entry.join("refs/main"), "two\n")?;
    assert_eq!(Checkpoint::open(&entry)?.root(), entry.join("snapshots/two"));
    for revision in ["../../..", "/", "", "one/../two", "..", ".", "a\u{1b}b"] {
        fs::write(entry.join("refs/main"), revision)?;
        refused(&entry, "does not name a revision");
    }
    fs::write(entry.join("refs/main"), "three")?;
    refused(&entry, "does not hold the revision `three`");
    fs::create_dir(cache.path().join("models--c--d"))?;
    let error = refused(cache.path(), "is a cache of several models");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("models--a--b")));
    Ok(())
}

#[test]
fn a_file_name_that_cannot_be_shown_is_left_with_a_note() -> Outcome {
    let root = checkpoint()?;
    fs::write(root.path().join("a\nb.json"), "{}")?;
    let opened = Checkpoint::open(root.path())?;
    assert_eq!(opened.sidecars().len(), 2);
    assert_eq!(opened.notes(), [r"`a\nb.json` is not used: it is not a usable file name"]);
    Ok(())
}

#[test]
fn the_template_is_the_tokenizers_or_its_own_file() -> Outcome {
    let root = checkpoint()?;
    let template = || -> Outcome<Option<String>> { Ok(Inventory::of(&Checkpoint::open(root.path())?)?.template) };
    assert_eq!(template()?, None);
    fs::write(root.path().join("chat_template.jinja"), "own")?;
    assert_eq!(template()?.as_deref(), Some("own"));
    fs::write(root.path().join("tokenizer_config.json"), r#"{"chat_template":[{"name":"default"}]}"#)?;
    assert_eq!(template()?.as_deref(), Some("own"));
    fs::write(root.path().join("tokenizer_config.json"), r#"{"chat_template":"tokenizer's"}"#)?;
    assert_eq!(template()?.as_deref(), Some("tokenizer's"));
    fs::write(root.path().join("tokenizer_config.json"), "{")?;
    assert!(template().is_err_and(|error| error.to_string().contains("`tokenizer_config.json` is malformed")));
    Ok(())
}

#[test]
fn a_checkpoint_is_read_from_many_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
}
