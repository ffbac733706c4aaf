//! The walls between the rooms. `docs/architecture.md` has the table; this reads it, parses every file of
//! `src/`, and fails with file, line and the import that no row allows. Unit tests count: a room that needs
//! another one to be tested is not apart from it.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// What every room may import without the table saying so.
const VOCABULARY: [&str; 3] = ["error", "progress", "json"];
/// The only rooms that print, read the environment or end the process.
const OUTERMOST: [&str; 2] = ["cli", "main"];
/// What of `std::env` the others may use: neither is a setting.
const ENVIRONMENT: [&str; 2] = ["consts", "temp_dir"];

/// The table of `docs/architecture.md`: the rooms in their order, each with what it may import.
struct Table {
    rooms: Vec<(String, BTreeSet<String>)>,
    /// Where `unsafe` may be, and where `async` may be: paths below the project, folders with their slash.
    unsafe_files: Vec<String>,
    async_files: Vec<String>,
}

impl Table {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let rows = text.lines().skip_while(|line| !line.starts_with("| room |")).skip(2);
        let rooms = rows.take_while(|line| line.starts_with('|')).map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 3, "a row has three cells: {row}");
            let room = names(cells[0]).remove(0).trim_end_matches('/').trim_end_matches(".rs").to_owned();
            let mut allowed: BTreeSet<String> = names(cells[2]).into_iter().collect();
            if !cells[2].starts_with("only ") {
                allowed.extend(VOCABULARY.map(str::to_owned));
            }
            (room, allowed)
        });
        let listed = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            names(line.unwrap_or_else(|| panic!("no line starts with `{start}`")))
        };
        Self {
            rooms: rooms.collect(),
            unsafe_files: listed("Files with `unsafe`").split_off(1),
            async_files: listed("Files with `async`").split_off(1),
        }
    }

    fn allows(&self, room: &str, other: &str) -> bool {
        let row = self.rooms.iter().find(|(name, _)| name == room);
        room == other || row.is_some_and(|(_, allowed)| allowed.contains(other))
    }
}

/// One thing a file names: where, and what.
#[derive(Debug)]
struct Found {
    line: usize,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    /// A room, by a path that starts at the root of the crate.
    Room(String),
    /// Printing, the environment, the end of the process.
    Outside(String),
    Unsafe,
    Async,
}

/// Reads one file. `module` is its path in the crate, room first; it is empty for a root.
struct Reader<'a> {
    module: Vec<String>,
    /// The room each name that `lib.rs` re-exports comes from.
    reexports: &'a BTreeMap<String, String>,
    found: Vec<Found>,
}

impl Reader<'_> {
    /// Takes in a path, written from its first segment: `crate::a::b`, `super::super::a`, `std::env::var`.
    fn path(&mut self, segments: &[&Ident]) {
        let Some(first) = segments.first() else { return };
        let words: Vec<String> = segments.iter().map(ToString::to_string).collect();
        self.words(first.span().start().line, &words);
    }

    fn words(&mut self, line: usize, words: &[String]) {
        self.outside(line, words);
        let mut at = self.module.clone();
        let mut rest = words.iter().map(String::as_str).peekable();
        match rest.next_if(|word| ["crate", "self", "super"].contains(word)) {
            Some("crate") => at.clear(),
            Some("super") => drop(at.pop()),
            Some(_) => {}
            // The binary sees the library under the name of the package.
            None if words[0] == "kiln" => {
                rest.next();
                at.clear();
            }
            None => return,
        }
        while rest.next_if_eq(&"super").is_some() {
            at.pop();
        }
        let room = at.first().map(String::as_str).or_else(|| rest.next());
        let room = room.unwrap_or("the whole crate");
        let room = self.reexports.get(room).map_or(room, String::as_str).to_owned();
        self.found.push(Found { line, what: What::Room(room) });
    }

    fn outside(&mut self, line: usize, words: &[String]) {
        let is_allowed = |pair: &[String]| match (pair[0].as_str(), pair[1].as_str()) {
            ("env", name) => ENVIRONMENT.contains(&name),
            ("process", "exit" | "abort") | ("io", "stdout" | "stderr") => false,
            _ => true,
        };
        let whole = words.len() == 2 && words[0] == "std" && words[1] == "env";
        if whole || !words.windows(2).all(is_allowed) {
            self.found.push(Found { line, what: What::Outside(words.join("::")) });
        }
    }

    fn tree<'t>(&mut self, before: &mut Vec<&'t Ident>, tree: &'t syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(&path.ident);
                self.tree(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Name(name) => self.leaf(before, &name.ident),
            syn::UseTree::Rename(rename) => self.leaf(before, &rename.ident),
            syn::UseTree::Glob(_) => self.path(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
        }
    }

    /// The end of an import; `{self}` is the path before it.
    fn leaf<'t>(&mut self, before: &mut Vec<&'t Ident>, last: &'t Ident) {
        if last == "self" && !before.is_empty() {
            return self.path(before);
        }
        before.push(last);
        self.path(before);
        before.pop();
    }

    /// The paths and words in tokens that are not parsed: what macros are given, and what they make.
    fn tokens(&mut self, tokens: &TokenStream) {
        let trees: Vec<TokenTree> = tokens.clone().into_iter().collect();
        let mut at = 0;
        while let Some(tree) = trees.get(at) {
            at += 1;
            match tree {
                TokenTree::Group(group) => self.tokens(&group.stream()),
                TokenTree::Literal(literal) => {
                    // `#[serde(with = "crate::room")]` is a path too.
                    let text = literal.to_string();
                    let words: Vec<String> = text.trim_matches('"').split("::").map(str::to_owned).collect();
                    if words.len() > 1 && ["crate", "super"].contains(&words[0].as_str()) {
                        self.words(literal.span().start().line, &words);
                    }
                }
                TokenTree::Ident(first) => {
                    let (start, mut path) = (at - 1, vec![first]);
                    while let [TokenTree::Punct(one), TokenTree::Punct(two), TokenTree::Ident(next), ..] = &trees[at..]
                        && one.as_char() == ':'
                        && two.as_char() == ':'
                    {
                        path.push(next);
                        at += 3;
                    }
                    if trees.get(at).is_some_and(|next| matches!(next, TokenTree::Punct(mark) if mark.as_char() == '!'))
                    {
                        self.macro_name(first);
                    }
                    // What follows a point is a field or a method, and what follows two is anything.
                    let is_point = |tree: &TokenTree| matches!(tree, TokenTree::Punct(mark) if mark.as_char() == '.');
                    let before = &trees[..start];
                    if before.iter().rev().take_while(|tree| is_point(tree)).count() != 1 {
                        self.path(&path);
                    }
                }
                TokenTree::Punct(_) => {}
            }
        }
    }

    fn macro_name(&mut self, name: &Ident) {
        if ["print", "println", "eprint", "eprintln", "dbg"].iter().any(|printing| name == printing) {
            self.found.push(Found { line: name.span().start().line, what: What::Outside(format!("{name}!")) });
        }
    }

    /// `unsafe` and `async`, wherever they stand.
    fn keywords(&mut self, tokens: TokenStream) {
        for tree in tokens {
            match tree {
                TokenTree::Group(group) => self.keywords(group.stream()),
                TokenTree::Ident(word) if word == "unsafe" || word == "async" => {
                    let what = if word == "unsafe" { What::Unsafe } else { What::Async };
                    self.found.push(Found { line: word.span().start().line, what });
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&mut Vec::new(), &item.tree);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<&Ident> = path.segments.iter().map(|segment| &segment.ident).collect();
        // A word alone is a local name or an import; `pub(crate)` and `pub(super)` open a door for no one.
        if segments.len() > 1 {
            self.path(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if let Some(name) = call.path.segments.last() {
            self.macro_name(&name.ident);
        }
        self.tokens(&call.tokens);
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        // Documentation may point anywhere.
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(&list.tokens);
        }
    }
}

/// Everything that `source`, the file at `file` below `src/`, names.
fn read(file: &str, source: &str, reexports: &BTreeMap<String, String>) -> Vec<Found> {
    let module = file.trim_end_matches(".rs").split('/').filter(|word| !["mod", "lib", "main"].contains(word));
    let mut reader = Reader { module: module.map(str::to_owned).collect(), reexports, found: Vec::new() };
    let parsed = syn::parse_file(source).unwrap_or_else(|error| panic!("{file}: {error}"));
    reader.visit_file(&parsed);
    reader.keywords(source.parse().unwrap());
    reader.found.sort_by_key(|found| found.line);
    reader.found
}

/// Every sentence there is to say against `source`.
fn violations(table: &Table, file: &str, source: &str, reexports: &BTreeMap<String, String>) -> Vec<String> {
    let room = file.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let covered = |files: &[String]| {
        let full = format!("src/{file}");
        files.iter().any(|named| *named == full || named.ends_with('/') && full.starts_with(named.as_str()))
    };
    let mut complaints: Vec<String> = read(file, source, reexports)
        .into_iter()
        .filter_map(|Found { line, what }| {
            let complaint = match what {
                What::Room(other) if room == "lib" || table.allows(room, &other) => return None,
                What::Room(other) => format!("`{room}` may not import `{other}`"),
                What::Outside(_) if OUTERMOST.contains(&room) => return None,
                What::Outside(what) => format!("`{what}` belongs to `cli`"),
                What::Unsafe if covered(&table.unsafe_files) => return None,
                What::Unsafe => "`unsafe` has no place here".to_owned(),
                What::Async if covered(&table.async_files) => return None,
                What::Async => "`async` has no place in the import half".to_owned(),
            };
            Some(format!("src/{file}:{line}: {complaint}"))
        })
        .collect();
    complaints.dedup();
    complaints
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `*.rs` below `src/`, by its path from there.
fn sources() -> BTreeMap<String, String> {
    fn walk(folder: &Path, before: &str, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = format!("{before}{}", entry.file_name().unwrap().to_str().unwrap());
            if entry.is_dir() {
                walk(&entry, &format!("{name}/"), files);
            } else if name.ends_with(".rs") {
                files.insert(name, fs::read_to_string(entry).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(&root().join("src"), "", &mut files);
    files
}

/// The room behind each name that `lib.rs` re-exports at the root: `crate::Error` is `error`'s.
fn reexports(lib: &str) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for item in syn::parse_file(lib).unwrap().items {
        let syn::Item::Use(item) = item else { continue };
        let syn::UseTree::Path(path) = item.tree else { panic!("`lib.rs` re-exports from rooms only") };
        let mut add = |tree: &syn::UseTree| match tree {
            syn::UseTree::Name(name) => drop(names.insert(name.ident.to_string(), path.ident.to_string())),
            _ => panic!("`lib.rs` re-exports names only"),
        };
        match &*path.tree {
            syn::UseTree::Group(group) => group.items.iter().for_each(&mut add),
            tree => add(tree),
        }
    }
    names
}

#[test]
fn every_import_is_in_the_table() {
    let (table, sources) = (Table::read(), sources());
    let reexports = reexports(&sources["lib.rs"]);
    assert_eq!(reexports.get("ErrorKind").map(String::as_str), Some("error"));
    let found: Vec<String> =
        sources.iter().flat_map(|(file, source)| violations(&table, file, source, &reexports)).collect();
    assert!(found.is_empty(), "docs/architecture.md does not allow this:\n{}", found.join("\n"));
}

#[test]
fn every_room_has_its_row_and_every_row_its_room() {
    let rows: BTreeSet<String> = Table::read().rooms.into_iter().map(|(room, _)| room).collect();
    let files = sources();
    let rooms = files.keys().map(|file| file.split('/').next().unwrap_or_default().trim_end_matches(".rs"));
    let rooms: BTreeSet<String> = rooms.filter(|room| *room != "lib").map(str::to_owned).collect();
    assert_eq!(rows, rooms);
}

#[test]
fn a_room_imports_only_what_stands_above_it() {
    let table = Table::read();
    for (index, (room, allowed)) in table.rooms.iter().enumerate() {
        for other in allowed.iter().filter(|other| !VOCABULARY.contains(&other.as_str())) {
            let above = table.rooms[..index].iter().any(|(name, _)| name == other);
            assert!(above, "`{other}` does not stand above `{room}`");
        }
    }
    for file in table.unsafe_files.iter().chain(&table.async_files) {
        assert!(root().join(file).exists(), "{file}");
    }
}

const PLANTED: &str = "\
| room | what lives there | may import |
|---|---|---|
| `error` | - | only - |
| `json` | - | only - |
| `oci/` | - | only `error`, `json` |
| `progress` | - | only `oci` |
| `storage/` | - | `oci` |
| `store/` | - | `oci`, `storage` |
| `registry/` | - | `oci`, `storage` |
| `copy` | - | `storage` |
| `cli/` | - | `store` |
| `main.rs` | - | only `cli` |

Files with `unsafe`: `src/store/simd.rs`.
Files with `async`: `src/copy.rs`, `src/registry/`.
";

#[test]
fn what_is_forbidden_is_caught_however_it_is_written() {
    let table = Table::parse(PLANTED);
    let reexports = BTreeMap::from([("Error".to_owned(), "error".to_owned())]);
    for (file, source, complaint) in [
        ("store/read.rs", "use crate::registry::Remote;", "`store` may not import `registry`"),
        ("store/read.rs", "use crate::registry;", "`store` may not import `registry`"),
        ("store/read.rs", "pub use crate::registry::*;", "`store` may not import `registry`"),
        ("store/read.rs", "use crate::registry as elsewhere;", "`store` may not import `registry`"),
        ("store/read.rs", "use crate::{oci::{Digest, self}, registry::{self, Remote}};", "import `registry`"),
        ("store/read.rs", "use crate::{oci::Digest, registry};", "`store` may not import `registry`"),
        ("store/read.rs", "use crate as all;", "import `the whole crate`"),
        ("store/read.rs", "use crate::*;", "import `the whole crate`"),
        ("store/read.rs", "fn f() { crate::registry::ping() }", "`store` may not import `registry`"),
        ("store/read.rs", "fn f(r: &crate::registry::Remote) {}", "`store` may not import `registry`"),
        ("store/read.rs", "impl crate::registry::Keychain for Vec<u8> {}", "`store` may not import `registry`"),
        ("store/read.rs", "fn f(x: u8) { matches!(x, crate::registry::X); }", "`store` may not import `registry`"),
        ("store/read.rs", "macro_rules! m { () => { $crate::registry::ping() } }", "import `registry`"),
        ("store/read.rs", "fn f() { vec![0..kiln::registry::LAST]; }", "import `registry`"),
        ("store/read.rs", "#[serde(with = \"crate::registry\")] struct S;", "import `registry`"),
        ("store/read.rs", "fn f() { super::super::registry::ping() }", "`store` may not import `registry`"),
        ("store/read.rs", "use super::super::registry::Remote;", "`store` may not import `registry`"),
        ("store/mod.rs", "use super::registry::Remote;", "`store` may not import `registry`"),
        ("store/mod.rs", "use self::super::registry::Remote;", "`store` may not import `registry`"),
        ("store/mod.rs", "mod tests { use super::super::registry::Remote; }", "import `registry`"),
        ("store/mod.rs", "#[cfg(test)] mod tests { use crate::registry::Remote; }", "import `registry`"),
        ("store/mod.rs", "fn f() { use super::registry; }", "`store` may not import `registry`"),
        ("copy.rs", "use crate::oci::Digest;", "`copy` may not import `oci`"),
        ("copy.rs", "use super::store::Store;", "`copy` may not import `store`"),
        ("oci/digest.rs", "use crate::progress::Progress;", "`oci` may not import `progress`"),
        ("store/mod.rs", "use crate::nowhere::X;", "`store` may not import `nowhere`"),
        ("main.rs", "fn main() { kiln::store::open() }", "`main` may not import `store`"),
        ("store/mod.rs", "fn f() { println!(\"\"); }", "`println!` belongs to `cli`"),
        ("store/mod.rs", "fn f() { g(|| vec![eprint!(\"\")]); }", "`eprint!` belongs to `cli`"),
        ("store/mod.rs", "fn f() { std::env::var_os(\"X\"); }", "`std::env::var_os` belongs to `cli`"),
        ("store/mod.rs", "use std::env::{temp_dir, var};", "`std::env::var` belongs to `cli`"),
        ("store/mod.rs", "use std::env;", "`std::env` belongs to `cli`"),
        ("store/mod.rs", "use std::{env::{self}, fs};", "`std::env` belongs to `cli`"),
        ("store/mod.rs", "fn f() { process::exit(1) }", "`process::exit` belongs to `cli`"),
        ("store/mod.rs", "fn f() { std::io::stderr(); }", "`std::io::stderr` belongs to `cli`"),
        ("store/mod.rs", "fn f() { unsafe { g() } }", "`unsafe` has no place here"),
        ("store/mod.rs", "fn f() { m!(unsafe { g() }) }", "`unsafe` has no place here"),
        ("store/mod.rs", "async fn f() {}", "`async` has no place in the import half"),
        ("store/mod.rs", "fn f() { g(async move { 1 }) }", "`async` has no place in the import half"),
    ] {
        let found = violations(&table, file, &format!("\n{source}\n"), &reexports);
        assert_eq!(found.len(), 1, "{file}: {source}: {found:?}");
        assert!(found[0].starts_with(&format!("src/{file}:2: ")), "{found:?}");
        assert!(found[0].ends_with(complaint), "{found:?}");
    }
}

#[test]
fn what_is_allowed_is_let_through() {
    let table = Table::parse(PLANTED);
    let reexports = BTreeMap::from([("Error".to_owned(), "error".to_owned())]);
    for (file, source) in [
        ("store/read.rs", "use crate::{error::Result, json, oci::{self, Digest}, storage::*};"),
        ("store/read.rs", "use super::layout::Layout; use crate::store::Store; use super::super::storage::Fetch;"),
        ("store/read.rs", "fn f() -> crate::Error { crate::progress::Progress::silent(); crate::json::parse() }"),
        ("store/read.rs", "mod tests { use super::*; use super::super::lock::Lock; pub(in super::super) fn f() {} }"),
        ("store/read.rs", "fn f(x: X) { vec![x.kiln, x.kiln()]; }"),
        ("store/read.rs", "//! See [`crate::registry`].\n/// As [`crate::registry::Remote`].\nfn f() {}"),
        ("store/read.rs", "fn f() { std::env::temp_dir(); env!(\"X\"); std::process::id(); std::env::consts::OS; }"),
        ("store/read.rs", "use registry_fixtures::registry; fn registry() {} fn g() { registry(); }"),
        ("store/simd.rs", "fn f() { unsafe { g() } }"),
        ("registry/mod.rs", "pub(super) async fn f() {}"),
        ("copy.rs", "async fn f() { use crate::storage::Fetch; }"),
        ("cli/mod.rs", "fn f() { println!(\"{}\", std::env::var(\"X\")); std::process::exit(1) }"),
        ("main.rs", "fn main() { kiln::cli::main() }"),
    ] {
        assert_eq!(violations(&table, file, source, &reexports), Vec::<String>::new(), "{file}: {source}");
    }
}
