//! Directories of stores.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use axum::http::Method;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::files::sound;
use crate::place::Place;
use crate::registries::taking;
use crate::scripted::{Server, answer};
use crate::trial::{Effect, Row, measured, tree};

/// The file of the layer that every row damages.
fn layer(place: &Place) -> PathBuf {
    place.blob(&place.layer("lm_head.weight"))
}

fn replace(place: &Place, bytes: &[u8]) {
    let path = layer(place);
    fs::remove_file(&path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn changed(place: &Place, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(layer(place)).unwrap();
    change(&mut bytes);
    replace(place, &bytes);
}

type Damage = (&'static str, fn(&Place));

const DAMAGES: [Damage; 11] = [
    ("a bit flipped", |place| changed(place, |bytes| bytes[4000] ^= 1)),
    ("cut", |place| changed(place, |bytes| bytes.truncate(100))),
    ("one byte less", |place| changed(place, |bytes| bytes.truncate(bytes.len() - 1))),
    ("one byte more", |place| changed(place, |bytes| bytes.push(0))),
    ("zeros of the same length", |place| changed(place, |bytes| bytes.fill(0))),
    ("empty", |place| replace(place, b"")),
    ("another blob's bytes", |place| {
        let other = fs::read(place.blob(&place.layer("model.norm.weight"))).unwrap();
        replace(place, &other);
    }),
    ("a link to /dev/zero", |place| {
        let path = layer(place);
        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", path).unwrap();
    }),
    ("a link to its own bytes", |place| {
        let (path, moved) = (layer(place), place.path("moved"));
        fs::rename(&path, &moved).unwrap();
        symlink(moved, path).unwrap();
    }),
    ("a directory", |place| {
        let path = layer(place);
        fs::remove_file(&path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    ("a pipe", |place| {
        let path = layer(place);
        fs::remove_file(&path).unwrap();
        mknodat(CWD, path, FileType::Fifo, Mode::from(0o644), 0).unwrap();
    }),
];

/// A store whose file `name` is these bytes.
fn with_file(id: &'static str, what: &str, words: &str, code: i32, name: &'static str, bytes: &'static [u8]) -> Row {
    Row::new(id, what, words, code).lay(move |place| {
        let path = place.path("store").join(name);
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        fs::write(path, bytes).unwrap();
    })
}

pub(crate) async fn rows() -> Vec<Row> {
    let registry = Server::start(|seen, _| taking(seen).unwrap_or_else(|| answer(200))).await;
    let mut rows = Vec::new();
    for (what, damage) in DAMAGES {
        for (words, code) in [
            ("verify demo:int4 --level digests", 3),
            ("verify demo:int4", 3),
            ("checkout demo:int4 out", 3),
            ("gc --dry-run", 0),
            ("list", 0),
        ] {
            let row = Row::new("D1", format!("{what}: {words}"), words, code).lay(damage);
            rows.push(if code == 3 { row.says(["lm_head.weight"]) } else { row });
        }
        // A registry that takes whatever comes must not get a name for it.
        let registry = registry.clone();
        let words = format!("push demo:int4 {}/team/model", registry.host());
        let row = Row::new("D1", format!("{what}: push"), words, 3).lay(damage).effect(Effect::Unnamed);
        rows.push(row.says(["`lm_head.weight`"]).check(move |_, _| {
            let named = registry.seen("/manifests/").into_iter().find(|seen| seen.method == Method::PUT);
            assert!(named.is_none(), "{named:?}");
        }));
    }
    rows.extend([
        Row::new("D2", "mode 0", "list", 0)
            .effect(Effect::Any)
            .lay(|place| fs::set_permissions(layer(place), Permissions::from_mode(0o000)).unwrap())
            .check(|place, _| {
                // Root reads it all the same.
                let run = place.kiln("verify demo:int4");
                assert!([0, 3, 9].contains(&run.code()), "{run}");
            }),
        Row::new("D2", "mode 666", "verify demo:int4", 0).lay(|place| {
            fs::set_permissions(layer(place), Permissions::from_mode(0o666)).unwrap();
        }),
        Row::new("D2", "mode 777 and a bit of another user", "verify demo:int4", 0).lay(|place| {
            fs::set_permissions(layer(place), Permissions::from_mode(0o4777)).unwrap();
        }),
        Row::new("D3", "a blob is missing", "verify demo:int4", 3)
            .says(["lm_head.weight"])
            .lay(|place| fs::remove_file(layer(place)).unwrap()),
        Row::new("D3", "a blob is missing, at the lowest level", "verify demo:int4 --level structure", 3)
            .says(["lm_head.weight"])
            .lay(|place| fs::remove_file(layer(place)).unwrap()),
        Row::new("D3", "the manifest is missing", "verify demo:int4", 3).lay(|place| {
            fs::remove_file(place.blob(&place.digest("show demo:int4"))).unwrap();
        }),
        Row::new("D3", "the manifest is missing, to show", "show demo:int4", 3).lay(|place| {
            fs::remove_file(place.blob(&place.digest("show demo:int4"))).unwrap();
        }),
        Row::new("D3", "the manifest is missing, to collect", "gc", 3).lay(|place| {
            fs::remove_file(place.blob(&place.digest("show demo:int4"))).unwrap();
        }),
    ]);
    let names: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("binary", b"\xff\xfe\0\x01"),
        ("half", b"{\"schemaVersion\":2,\"manif"),
        ("an array", b"[]"),
        ("a key twice", b"{\"schemaVersion\":2,\"manifests\":[],\"manifests\":[]}"),
        ("a digest that is a path", b"{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"a\",\"digest\":\"sha256:../../../etc/passwd\",\"size\":1}]}"),
    ];
    for (what, bytes) in names {
        for words in ["list", "show demo:int4", "rm demo:int4", "gc"] {
            rows.push(
                with_file("D3", &format!("names {what}: {words}"), words, 3, "index.json", bytes).says(["index.json"]),
            );
        }
    }
    let strange: [(&str, &[u8]); 6] = [
        (".DS_Store", b"\0\0\0\x01Bud1"),
        ("notes.txt", b"mine"),
        ("blobs/sha256/readme~", b"an editor's"),
        ("blobs/sha256/.nfs0001", b""),
        ("ingest/mine.txt", b"mine"),
        ("blobs/md5", b""),
    ];
    for (name, bytes) in strange {
        for words in ["list", "verify demo:int4", "gc"] {
            rows.push(with_file("D4", &format!("{name}: {words}"), words, 0, name, bytes).effect(Effect::Any).check(
                move |place, _| {
                    assert_eq!(fs::read(place.path("store").join(name)).unwrap(), bytes, "{name} is the user's");
                },
            ));
        }
    }
    let formats: [(&str, &[u8]); 5] = [
        ("a newer store", b"{\"compatible\":[],\"format\":2,\"incompatible\":[]}"),
        ("a feature of later", b"{\"compatible\":[],\"format\":1,\"incompatible\":[\"chunks\"]}"),
        ("no version", b"{}"),
        ("no JSON", b"1"),
        ("an empty file", b""),
    ];
    for (what, bytes) in formats {
        for words in ["list", "gc", "rm demo:int4"] {
            rows.push(with_file("D4", &format!("{what}: {words}"), words, 9, "kiln.json", bytes));
        }
    }
    rows.extend([
        Row::new("D5", "/", "list --store /", 9).says(["`/`"]),
        Row::new("D5", "/proc", "list --store /proc/1", 9),
        Row::new("D5", "a device", "list --store /dev/null", 9).says(["/dev/null"]),
        Row::new("D5", "a full disk's device", "create evil checkpoint --store /dev/full", 9)
            .lay(|place| sound(&place.path("checkpoint"))),
        Row::new("D5", "a directory of somebody's", "gc --store home", 9)
            .lay(|place| {
                fs::create_dir_all(place.path("home/blobs/sha256")).unwrap();
                fs::write(place.path("home/blobs/sha256").join("0".repeat(64)), "mine").unwrap();
            })
            .check(|place, _| assert!(place.path("home/blobs/sha256").join("0".repeat(64)).exists())),
        Row::new("D5", "a git repository", "create evil checkpoint --store repository", 9).lay(|place| {
            sound(&place.path("checkpoint"));
            fs::create_dir_all(place.path("repository/.git")).unwrap();
        }),
        // A name is given by renaming, which no other file system takes part in.
        Row::new("D6", "ingest is on another file system", "create evil checkpoint", 9)
            .says(["are on different file systems"])
            .lay(|place| {
                sound(&place.path("checkpoint"));
                fs::remove_dir_all(place.path("store/ingest")).unwrap();
                symlink("/dev/shm", place.path("store/ingest")).unwrap();
            }),
        Row::new("D6", "the directory of blobs is a link", "gc", 9)
            .lay(|place| {
                fs::rename(place.path("store/blobs/sha256"), place.path("elsewhere")).unwrap();
                symlink("../../elsewhere", place.path("store/blobs/sha256")).unwrap();
                fs::write(place.path("elsewhere").join("0".repeat(64)), "mine").unwrap();
            })
            .check(|place, _| assert!(place.path("elsewhere").join("0".repeat(64)).exists())),
        Row::new("D7", "all locks deleted", "verify demo:int4", 0).effect(Effect::Any).lay(|place| {
            for entry in fs::read_dir(place.path("store/locks")).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }),
        Row::new("D7", "a collection after a clock that was a day ahead", "gc", 0)
            .effect(Effect::Any)
            .lay(|place| {
                let tomorrow = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
                let file = File::open(layer(place)).unwrap();
                file.set_modified(tomorrow).unwrap();
            })
            .check(|place, _| {
                place.kiln("verify demo:int4").expect(0);
            }),
        Row::new("D8", "a standard output that is full", "show demo:int4", 0),
        Row::new("D9", "what a kill left in ingest", "verify demo:int4", 0).effect(Effect::Any).lay(|place| {
            fs::write(place.path("store/ingest/tmp-half"), vec![7; 5000]).unwrap();
        }),
        Row::new("D10", "a hard link that was written to", "verify demo:int4", 3).says(["lm_head.weight"]).lay(
            |place| {
                fs::hard_link(layer(place), place.path("linked")).unwrap();
                fs::set_permissions(place.path("linked"), Permissions::from_mode(0o644)).unwrap();
                let mut bytes = fs::read(place.path("linked")).unwrap();
                bytes[5000] ^= 1;
                fs::write(place.path("linked"), bytes).unwrap();
            },
        ),
        Row::new("D11", "a blob that is as old as before", "verify demo:int4", 3).says(["lm_head.weight"]).lay(
            |place| {
                let path = layer(place);
                let modified = fs::metadata(&path).unwrap().modified().unwrap();
                changed(place, |bytes| bytes[5000] ^= 1);
                File::open(path).unwrap().set_modified(modified).unwrap();
            },
        ),
        Row::new("D11", "notes that claim anything", "verify demo:int4", 3).says(["lm_head.weight"]).lay(|place| {
            changed(place, |bytes| bytes[5000] ^= 1);
            for entry in fs::read_dir(place.path("store/notes")).unwrap().map(|entry| entry.unwrap()) {
                fs::remove_file(entry.path()).unwrap();
                fs::write(entry.path(), r#"{"verified":true,"verified_at":99999999999}"#).unwrap();
            }
        }),
        Row::new("D11", "stamps that are right for wrong bytes", "verify demo:int4", 3).says(["lm_head.weight"]).lay(
            |place| {
                changed(place, |bytes| bytes[5000] ^= 1);
                let (path, found) = (layer(place), fs::metadata(layer(place)).unwrap());
                let stamp = format!(
                    r#"{{"dev":{},"ino":{},"size":{},"mtime":[{},{}],"ctime":[{},{}]}}"#,
                    found.dev(),
                    found.ino(),
                    found.size(),
                    found.mtime(),
                    found.mtime_nsec(),
                    found.ctime(),
                    found.ctime_nsec()
                );
                let stamps = format!(r#"{{"sha256:{}":{stamp}}}"#, path.file_name().unwrap().to_str().unwrap());
                fs::create_dir(place.path("store/stamps")).unwrap();
                for entry in fs::read_dir(place.path("store/notes")).unwrap().map(|entry| entry.unwrap()) {
                    fs::write(place.path("store/stamps").join(entry.file_name()), &stamps).unwrap();
                }
            },
        ),
        Row::new("D12", "a blob in quarantine and in no place else", "verify demo:int4", 3)
            .says(["lm_head.weight"])
            .effect(Effect::Any)
            .lay(|place| {
                fs::create_dir_all(place.path("store/quarantine")).unwrap();
                let path = layer(place);
                fs::rename(&path, place.path("store/quarantine").join(path.file_name().unwrap())).unwrap();
            }),
        // The command line names it, so it is the command line that is wrong.
        Row::new("D15", "a destination with another model's file", "checkout demo:int4 out", 2)
            .lay(|place| {
                fs::create_dir(place.path("out")).unwrap();
                fs::write(place.path("out/config.json"), "mine").unwrap();
            })
            .check(|place, _| assert_eq!(fs::read(place.path("out/config.json")).unwrap(), b"mine")),
        Row::new("D15", "a destination that is a file", "checkout demo:int4 out", 2)
            .lay(|place| fs::write(place.path("out"), "mine").unwrap())
            .check(|place, _| assert_eq!(fs::read(place.path("out")).unwrap(), b"mine")),
        Row::new("D15", "a destination that is a dangling link", "checkout demo:int4 out", 2)
            .lay(|place| symlink("/nonexistent/kiln", place.path("out")).unwrap()),
        Row::new("D15", "a destination with links in it", "checkout demo:int4 out", 2)
            .lay(|place| {
                fs::create_dir(place.path("out")).unwrap();
                fs::write(place.path("mine"), "mine").unwrap();
                symlink("../mine", place.path("out/config.json")).unwrap();
            })
            .check(|place, _| assert_eq!(fs::read(place.path("mine")).unwrap(), b"mine")),
    ]);
    for umask in ["000", "077"] {
        rows.push(Row::new("D14", umask, "list", 0).effect(Effect::Any).check(move |place, _| {
            place.checkpoint("qwen3-moe-12e-bf16", "again");
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_kiln")]);
            command
                .args(["create", "again", "again", "--quantize", "int4", "--store", "other"])
                .current_dir(place.path(""));
            let ran = measured(command.env_clear());
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            let digest = place.digest("show demo:int4");
            assert!(ran.stdout.contains(&digest), "{} {digest}", ran.stdout);
        }));
    }
    let many: u32 = if std::env::var_os("KILN_HOSTILE_LONG").is_some() { 1_000_000 } else { 20_000 };
    for words in ["verify demo:int4", "gc --dry-run", "list"] {
        rows.push(Row::new("D13", format!("{many} blobs: {words}"), words, 0).effect(Effect::Any).lay(move |place| {
            let blobs = place.path("store/blobs/sha256");
            for n in 0..many {
                File::create(blobs.join(format!("{n:064x}"))).unwrap();
            }
            assert!(tree(&place.path("store/notes")).len() < 100);
        }));
    }
    rows
}
