//! Names, as they are typed.

use std::fs;

use crate::trial::{Effect, Row};

/// Words that are no reference, in every place that takes one.
fn refused(id: &'static str, name: &str) -> Vec<Row> {
    let quoted = format!("`{}`", name.escape_debug().to_string().chars().take(40).collect::<String>());
    let says = quoted.trim_end_matches('`').to_owned();
    ["show", "pull", "rm", "verify"]
        .map(|command| {
            Row::new(id, format!("{command} {name}"), format!("{command} -- {name}"), 2).says([says.as_str()])
        })
        .into()
}

pub(crate) fn rows() -> Vec<Row> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let mut rows: Vec<Row> = [
        format!("a:{}", "x".repeat(129)),
        "a/Upper".to_owned(),
        "Upper/a".to_owned(),
        "a/../b".to_owned(),
        "../a".to_owned(),
        "a//b".to_owned(),
        "/a".to_owned(),
        "a/".to_owned(),
        format!("a@{digest}@{digest}"),
        format!("a@{}", &digest[..70]),
        format!("a@{digest}0"),
        format!("a@{}", digest.to_uppercase()),
        "a@md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        "a@sha256-00".to_owned(),
        // Cyrillic.
        "\u{430}".to_owned(),
        "a:\u{430}".to_owned(),
        "host.example/\u{ff41}".to_owned(),
        "[::1]:5000/a".to_owned(),
        "-a".to_owned(),
        "a:-b".to_owned(),
        "a:b:c".to_owned(),
        "user@host/a".to_owned(),
        "https://host.example/a".to_owned(),
        "a?b".to_owned(),
        "a#b".to_owned(),
        "a%2e%2e".to_owned(),
        format!("{}/a", "x".repeat(100_000)),
    ]
    .iter()
    .flat_map(|name| refused("R1", name))
    .collect();
    rows.extend(refused("R5", "latest/"));
    rows.extend([
        Row::new("R1", "a port that is none", "pull host.example:99999/a --connect-timeout 2 --timeout 2", 2),
        Row::new("R1", "an option in a name's place", "show --store=/nowhere --version=1", 2),
        Row::new("R1", "no name", "show", 2),
        Row::new("R2", "another digest", format!("show demo:int4@{digest}"), 6).says(["demo:int4"]),
        Row::new("R2", "another digest, to verify", format!("verify demo:int4@{digest}"), 6).says(["demo:int4"]),
        Row::new("R2", "another digest, to push", format!("push demo:int4@{digest} 127.0.0.1:1/a"), 6)
            .says(["demo:int4"]),
        // Nothing listens there: neither is spoken, and the one that was tried is told.
        Row::new("R3", "this machine", "pull localhost:1/a --connect-timeout 2", 8).says(["localhost:1"]),
        Row::new("R3", "elsewhere it is HTTPS", "pull 192.0.2.1:1/a --connect-timeout 1 --timeout 1", 8)
            .says(["192.0.2.1:1"]),
        Row::new(
            "R4",
            "the machine's own metadata",
            "pull 169.254.169.254/latest/meta-data --connect-timeout 1 --timeout 1",
            8,
        )
        .says(["169.254.169.254"]),
        Row::new("R4", "a path that is no repository", "pull 127.0.0.1:1/a/../../v2/_catalog", 2),
        Row::new("R5", "a name of git", "tag demo:int4 head", 0).effect(Effect::Any).check(|place, _| {
            assert_eq!(place.digest("show head"), place.digest("show demo:int4"));
        }),
        Row::new("R5", "HEAD", "show HEAD", 2).says(["`HEAD`"]),
        Row::new("R5", "a digest's beginning is a name, too", "tag demo:int4 0123456789ab", 0)
            .effect(Effect::Any)
            .check(|place, _| {
                assert_eq!(place.digest("show 0123456789ab"), place.digest("show demo:int4"));
            }),
        // A digest is said in full, or it is a name: there is nothing that could be ambiguous.
        Row::new("R6", "a short digest names nothing", "show 00000000", 6).says(["00000000"]),
        Row::new("R6", "a short digest behind @", "show demo@sha256:00000000", 2),
        Row::new("R6", "an empty digest", "show demo@sha256:", 2),
        Row::new("R6", "a Modelfile that is a directory", "create evil checkpoint --modelfile checkpoint", 6).lay(
            |place| {
                crate::files::sound(&place.path("checkpoint"));
                fs::write(place.path("unrelated"), "").unwrap();
            },
        ),
    ]);
    rows
}
