//! House rules that no compiler checks: who may import whom, how long a file and a function may be, where `unsafe` may stand.
//!
//! Each rule is a function from a file to its offences and one test that holds the whole tree to it; each rule function is also
//! shown a bad sample, so that a rule which sees nothing cannot pass for a tree without fault. An offence prints as `file:line`.
//! Links no gateway code. That `config/kateway.toml` is what the table of keys generates is a unit test of `src/config/render.rs`.

use std::{
    collections::BTreeSet,
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
};

/// The import order: a module sees what stands in a line above its own. Modules of one line do not see each other.
const ORDER: &[&[&str]] = &[
    &["error", "limits", "within"],
    &["config"],
    &["metrics"],
    &["offload", "profile", "readiness"],
    &["proto"],
    &["store"],
    &["registry"],
    &["kafka"],
    &["mesh"],
    &["api"],
    &["server"],
    &["shard", "control"],
    &["boot"],
    &["main", "lib"],
];

/// What a module does not see although the order would let it: bytes of HTTP are no business of the stores, nor of the mesh,
/// and a parser has no call that may stall.
const BLIND: &[(&str, &str)] =
    &[("proto", "offload"), ("store", "proto"), ("registry", "proto"), ("kafka", "proto"), ("mesh", "proto")];

/// The only files and folders of the gateway in which `unsafe` may stand.
const UNSAFE_PLACES: &[&str] =
    &["src/control/host.rs", "src/kafka/native/", "src/profile/sampler.rs", "src/readiness.rs"];

const SRC_FILE_LINES_MAX: usize = 600;
const TESTS_FILE_LINES_MAX: usize = 900;
const FUNCTION_LINES_MAX: usize = 70;

/// The ratchet: functions that are longer, by file and name. It only ever gets shorter.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// What the top level of the repository holds, and nothing else.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "build.rs",
    "clippy.toml",
    "config",
    "deny.toml",
    "flamegraphs",
    "perf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
];

// === the tree is held to the rules ===

#[test]
fn modules_import_only_what_stands_below_them() {
    hold(&files(&["src"], "rs"), foreign_imports);
}

#[test]
fn files_open_with_a_module_doc() {
    hold(&files(&["src", "tests", "perf"], "rs"), no_module_doc);
}

#[test]
fn files_are_short_enough_to_read() {
    hold(&files(&["src", "tests", "perf"], "rs"), too_long);
}

#[test]
fn functions_are_short_enough_to_read() {
    hold(&files(&["src"], "rs"), long_functions);
}

#[test]
fn the_ratchet_of_long_functions_is_tight() {
    let sources = files(&["src"], "rs");
    let slack = LONG_FUNCTIONS.iter().filter(|(path, name)| {
        let source = sources.iter().find(|source| source.path == *path);
        !source.is_some_and(|source| {
            functions(&source.code).iter().any(|f| f.name == *name && f.lines > FUNCTION_LINES_MAX)
        })
    });
    let slack: Vec<_> = slack.collect();
    assert!(slack.is_empty(), "no longer long, take out of LONG_FUNCTIONS: {slack:?}");
}

#[test]
fn nothing_unwraps_outside_tests() {
    hold(&files(&["src"], "rs"), unwraps);
}

#[test]
fn unsafe_stands_in_the_named_places_only() {
    hold(&files(&["src"], "rs"), stray_unsafe);
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    hold(&files(&["src", "tests", "perf"], "rs"), unexplained_unsafe);
}

#[test]
fn every_allowed_lint_gives_its_reason() {
    hold(&files(&["src", "tests"], "rs"), unexplained_allow);
}

#[test]
fn no_marker_of_unfinished_work_is_left() {
    let mut sources = files(&["src", "tests", "perf", "config", "flamegraphs", ".ci"], "");
    sources.extend(top_level_files());
    hold(&sources, unfinished);
}

#[test]
fn no_path_of_somebody_s_machine_is_left() {
    let mut sources = files(&["src", "tests", "config", "flamegraphs", ".ci"], "");
    sources.extend(files(&["perf"], "rs"));
    sources.extend(top_level_files());
    hold(&sources, home_paths);
}

#[test]
fn every_dependency_and_lint_gives_its_reason() {
    hold(&[Source::read("Cargo.toml"), Source::read("tests/Cargo.toml")], unexplained_manifest_lines);
}

#[test]
fn the_top_level_holds_what_the_layout_says() {
    let entries = fs::read_dir(root())
        .expect("the repository can be listed")
        .map(|entry| entry.expect("the repository can be listed").file_name().to_string_lossy().into_owned());
    let stray: Vec<String> = entries.filter(|name| !TOP_LEVEL.contains(&name.as_str())).collect();
    assert!(stray.is_empty(), "not in the layout: {stray:?}");
}

#[test]
fn every_top_level_folder_says_what_belongs_there() {
    for folder in ["src", "tests", "perf", "config", "flamegraphs"] {
        assert!(root().join(folder).join("README.md").is_file(), "{folder}/README.md is missing");
    }
}

// === the rules ===

/// Imports, or paths in the code, of a module that does not stand below the file's own.
fn foreign_imports(source: &Source) -> Vec<Offence> {
    let own = source.module();
    let Some(rank) = rank_of(own) else {
        return vec![source.offence(1, format!("module `{own}` has no place in ORDER"))];
    };
    let is_foreign = |other: &str| {
        other != own && (rank_of(other).is_some_and(|seen| seen >= rank) || BLIND.contains(&(own, other)))
    };
    let imports = crate_paths(&source.code).into_iter().filter(|(_, other)| is_foreign(other));
    imports.map(|(at, other)| source.offence_at(at, format!("`{own}` must not see `{other}`"))).collect()
}

fn no_module_doc(source: &Source) -> Vec<Offence> {
    if source.text.starts_with("//! ") { Vec::new() } else { vec![source.offence(1, "no `//!` module doc".into())] }
}

fn too_long(source: &Source) -> Vec<Offence> {
    let max = if source.path.starts_with("tests/") { TESTS_FILE_LINES_MAX } else { SRC_FILE_LINES_MAX };
    let lines = source.text.lines().count();
    if lines > max { vec![source.offence(lines, format!("{lines} lines, at most {max}"))] } else { Vec::new() }
}

fn long_functions(source: &Source) -> Vec<Offence> {
    let is_long =
        |f: &Function| f.lines > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.contains(&(source.path.as_str(), &f.name));
    let long = functions(&source.code).into_iter().filter(is_long);
    long.map(|f| source.offence_at(f.at, format!("fn {} has {} lines, at most {FUNCTION_LINES_MAX}", f.name, f.lines)))
        .collect()
}

fn unwraps(source: &Source) -> Vec<Offence> {
    let found = source.code.match_indices(".unwrap()");
    found.map(|(at, _)| source.offence_at(at, "`.unwrap()`: say with `expect` which invariant holds".into())).collect()
}

fn stray_unsafe(source: &Source) -> Vec<Offence> {
    if UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place)) {
        return Vec::new();
    }
    let found = words(&source.code, "unsafe");
    found.map(|at| source.offence_at(at, "`unsafe` outside the named places".into())).collect()
}

/// An `unsafe` block or impl without a comment with `SAFETY:` directly above its statement.
fn unexplained_unsafe(source: &Source) -> Vec<Offence> {
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let is_comment = |line: &&&str| line.starts_with("//");
    let is_explained = |line: usize| {
        // The statement may have begun lines above: `let taken =`.
        let begun_above = |line: &&&str| !is_comment(line) && !line.is_empty() && !line.ends_with([';', '{', '}', ',']);
        let above = lines[..line - 1].iter().rev().skip_while(begun_above).take_while(is_comment);
        above.into_iter().any(|line| line.contains("SAFETY:"))
    };
    let mut offences = Vec::new();
    for at in words(&source.code, "unsafe") {
        let after = source.code[at + "unsafe".len()..].trim_start();
        let line = source.line_of(at);
        if (after.starts_with('{') || after.starts_with("impl")) && !is_explained(line) {
            offences.push(source.offence(line, "`unsafe` without a SAFETY sentence above it".into()));
        }
    }
    offences
}

/// An `allow` or `expect` of a lint without `reason = ".."` in it, or a comment behind it or above it.
fn unexplained_allow(source: &Source) -> Vec<Offence> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut offences = Vec::new();
    for marker in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
        for (at, _) in source.code.match_indices(marker) {
            let line = source.line_of(at);
            let own = lines[line - 1];
            let is_commented_above = line > 1 && lines[line - 2].trim_start().starts_with("//");
            if !own.contains("//") && !own.contains("reason") && !is_commented_above {
                offences.push(source.offence(line, format!("`{marker}..)` without a reason")));
            }
        }
    }
    offences
}

fn unfinished(source: &Source) -> Vec<Offence> {
    // Put together here, so that this file does not offend itself.
    let markers = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
    ];
    source.lines_with(&markers, "marker of unfinished work")
}

fn home_paths(source: &Source) -> Vec<Offence> {
    let markers = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("/wo", "rk/"),
        concat!("/tmp", "/x/"),
    ];
    source.lines_with(&markers, "path of one machine")
}

/// A dependency or a lint set without a comment behind it.
fn unexplained_manifest_lines(source: &Source) -> Vec<Offence> {
    let (mut is_explained_section, mut offences) = (false, Vec::new());
    for (n, line) in source.text.lines().enumerate() {
        if line.starts_with('[') {
            is_explained_section = line.contains("dependencies") || line.contains("lints");
        } else if is_explained_section && line.contains('=') && !line.contains(" # ") && !line.contains(".workspace") {
            offences.push(source.offence(n + 1, format!("no reason behind `{}`", line.trim())));
        }
    }
    offences
}

// === sources ===

/// A file: as it is, and as code alone (comments, literals and test modules blanked, every position kept).
struct Source {
    path: String,
    text: String,
    code: String,
}

struct Offence {
    place: String,
    says: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.says)
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let is_rust = Path::new(path).extension().is_some_and(|extension| extension == "rs");
        // Files named so are declared `#[cfg(test)] mod tests;`.
        let is_code = is_rust && !path.ends_with("/tests.rs");
        let code = if is_code { without_tests(&without_prose(text)) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    fn read(path: &str) -> Self {
        let bytes = fs::read(root().join(path)).unwrap_or_else(|error| panic!("{path} can be read: {error}"));
        Self::new(path, &String::from_utf8_lossy(&bytes))
    }

    /// The top-level module: `config` of `src/config/check.rs`.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().map_or("", |first| first.trim_end_matches(".rs"))
    }

    fn line_of(&self, at: usize) -> usize {
        1 + self.code[..at].matches('\n').count()
    }

    fn offence(&self, line: usize, says: String) -> Offence {
        Offence { place: format!("{}:{line}", self.path), says }
    }

    fn offence_at(&self, at: usize, says: String) -> Offence {
        self.offence(self.line_of(at), says)
    }

    fn lines_with(&self, markers: &[&str], what: &str) -> Vec<Offence> {
        let lines = self.text.lines().enumerate();
        let hits = lines
            .filter_map(|(n, line)| markers.iter().find(|&&marker| line.contains(marker)).map(|marker| (n, marker)));
        hits.map(|(n, marker)| self.offence(n + 1, format!("{what}: {marker}"))).collect()
    }
}

/// Fails with every offence of every file.
fn hold(sources: &[Source], rule: fn(&Source) -> Vec<Offence>) {
    assert!(!sources.is_empty(), "there is something to look at");
    let offences: Vec<String> = sources.iter().flat_map(rule).map(|offence| offence.to_string()).collect();
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the repository")
}

/// Files under `folders` with this extension (any, if empty) that a person wrote.
fn files(folders: &[&str], extension: &str) -> Vec<Source> {
    let mut paths = BTreeSet::new();
    for folder in folders {
        walk(&root().join(folder), &mut paths);
    }
    let wanted = |path: &PathBuf| extension.is_empty() || path.extension().is_some_and(|found| found == extension);
    paths.iter().filter(|path| wanted(path)).map(|path| Source::read(&relative(path))).collect()
}

fn top_level_files() -> Vec<Source> {
    let names = TOP_LEVEL.iter().filter(|name| root().join(name).is_file() && **name != "Cargo.lock");
    names.map(|name| Source::read(name)).collect()
}

fn walk(folder: &Path, paths: &mut BTreeSet<PathBuf>) {
    /// Built, fetched or measured, not written.
    const PASSED_OVER: [&str; 5] = [".git", "target", ".cache", "results", "Cargo.lock"];
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_drawing = path.extension().is_some_and(|extension| extension == "svg");
        if PASSED_OVER.contains(&name.as_ref()) || is_drawing {
            continue;
        }
        if path.is_dir() {
            walk(&path, paths);
        } else {
            paths.insert(path.clone());
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("the file stands in the repository").to_string_lossy().into_owned()
}

fn rank_of(module: &str) -> Option<usize> {
    ORDER.iter().position(|line| line.contains(&module))
}

// === reading Rust ===

/// The text with comments and the insides of literals blanked. Bytes keep their positions, lines their numbers.
fn without_prose(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (end, keep) = match (bytes[at], bytes.get(at + 1)) {
            (b'/', Some(b'/')) => (find_from(bytes, at, b"\n"), 0),
            (b'/', Some(b'*')) => (end_of_block_comment(bytes, at), 0),
            (b'"', _) => (end_of_string(bytes, at), 1),
            (b'r', Some(b'"' | b'#')) if !is_word_before(bytes, at) => match end_of_raw_string(bytes, at) {
                Some(end) => (end, 1),
                None => (at + 1, 1),
            },
            (b'\'', Some(_)) => (end_of_char(bytes, at), 1),
            _ => (at + 1, 1),
        };
        for byte in &mut code[(at + keep).min(end)..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(code).unwrap_or_default()
}

fn find_from(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    bytes[from..].windows(what.len()).position(|window| window == what).map_or(bytes.len(), |n| from + n)
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') && bytes[at - 1] != b'b'
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0_usize, start);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return at + 2,
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn end_of_raw_string(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|&&b| b == b'#').count();
    let open = start + 1 + hashes;
    (bytes.get(open) == Some(&b'"')).then(|| {
        let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
        (find_from(bytes, open + 1, &close) + close.len()).min(bytes.len())
    })
}

/// The end of a character literal; of the quote alone where it opens a lifetime.
fn end_of_char(bytes: &[u8], start: usize) -> usize {
    if bytes[start + 1] == b'\\' {
        return (find_from(bytes, start + 3, b"'") + 1).min(bytes.len());
    }
    let is_literal = (2..=5).find(|n| bytes.get(start + n) == Some(&b'\''));
    match is_literal {
        Some(n) if n == 2 || !bytes[start + 1].is_ascii() => start + n + 1,
        _ => start + 1,
    }
}

/// The code with `#[cfg(test)]` modules blanked.
fn without_tests(code: &str) -> String {
    let mut rest = code.to_owned();
    let mut from = 0;
    while let Some(at) = rest[from..].find("#[cfg(test)]").map(|n| from + n) {
        let end = match rest[at..].find(['{', ';']).map(|n| at + n) {
            Some(open) if rest.as_bytes()[open] == b'{' => end_of_block(&rest, open),
            Some(semicolon) => semicolon,
            None => rest.len(),
        };
        let blank: String = rest[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        rest.replace_range(at..end, &blank);
        from = end;
    }
    rest
}

/// The position behind the brace that closes the one at `open`.
fn end_of_block(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (n, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return n + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Positions of `word` as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let bytes = code.as_bytes();
        !is_part(at.checked_sub(1).and_then(|before| bytes.get(before))) && !is_part(bytes.get(at + word.len()))
    })
}

/// Top-level modules named behind `crate::`, with the position of each: one, or the first names of a group in braces.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    for at in words(code, "crate") {
        let Some(rest) = code[at..].strip_prefix("crate::") else { continue };
        let start = at + "crate::".len();
        if rest.starts_with('{') {
            for name in group_heads(code, start..end_of_block(code, start)) {
                paths.push((name.start, code[name].to_owned()));
            }
        } else {
            paths.push((at, word_at(code, start).to_owned()));
        }
    }
    paths
}

/// The first name of each item of `{a::b, c::{d, e}}`.
fn group_heads(code: &str, group: Range<usize>) -> Vec<Range<usize>> {
    let (mut heads, mut depth, mut is_head) = (Vec::new(), 0_usize, false);
    for at in group {
        match code.as_bytes()[at] {
            b'{' => (depth, is_head) = (depth + 1, depth == 0),
            b'}' => depth -= 1,
            b',' if depth == 1 => is_head = true,
            byte if is_head && !byte.is_ascii_whitespace() => {
                heads.push(at..at + word_at(code, at).len());
                is_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn word_at(code: &str, at: usize) -> &str {
    let rest = &code[at..];
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    &rest[..end]
}

struct Function {
    name: String,
    at: usize,
    lines: usize,
}

/// Every function with a body.
fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let name_at = at + "fn".len() + code[at + 2..].len() - code[at + 2..].trim_start().len();
        let name = word_at(code, name_at);
        // A pointer type `fn(..)` has no name, a method without a body ends before any brace.
        let Some(open) = body_of(code, name_at).filter(|_| !name.is_empty()) else { continue };
        let lines = 1 + code[at..end_of_block(code, open)].matches('\n').count();
        found.push(Function { name: name.to_owned(), at, lines });
    }
    found
}

/// The brace that opens the body of the function whose name stands at `from`.
fn body_of(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (n, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' if depth == 0 => return Some(n),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

// === the rules are held to bad samples ===

#[cfg(test)]
mod samples {
    use super::*;

    fn offences(rule: fn(&Source) -> Vec<Offence>, path: &str, text: &str) -> Vec<String> {
        rule(&Source::new(path, text)).iter().map(|offence| offence.place.clone()).collect()
    }

    #[test]
    fn foreign_imports_are_seen_in_every_form() {
        let text = "//! Doc.\nuse crate::{\n    limits,\n    store::{Group, kafka},\n    proto::Head,\n};\nfn f() { crate::api::g(); }\n";
        let found = offences(foreign_imports, "src/proto/h1.rs", text);
        assert_eq!(found, ["src/proto/h1.rs:4", "src/proto/h1.rs:7"], "its own module and lower ones are fine");
        assert_eq!(offences(foreign_imports, "src/store/mod.rs", "use crate::proto::Head;"), ["src/store/mod.rs:1"]);
        assert_eq!(offences(foreign_imports, "src/shard/mod.rs", "use crate::control::host;"), ["src/shard/mod.rs:1"]);
        assert_eq!(
            offences(foreign_imports, "src/control/mod.rs", "use crate::shard::Shard;"),
            ["src/control/mod.rs:1"]
        );
        assert_eq!(offences(foreign_imports, "src/new.rs", ""), ["src/new.rs:1"], "a new module needs a place");
        assert!(offences(foreign_imports, "src/boot.rs", "use crate::{shard, control}; // crate::main\n").is_empty());
    }

    #[test]
    fn missing_docs_and_long_files_are_seen() {
        assert_eq!(offences(no_module_doc, "src/a.rs", "use std::fmt;\n").len(), 1);
        assert!(offences(no_module_doc, "src/a.rs", "//! A.\n").is_empty());
        assert_eq!(offences(too_long, "src/a.rs", &"\n".repeat(601)).len(), 1);
        assert!(offences(too_long, "tests/a.rs", &"\n".repeat(601)).is_empty());
    }

    #[test]
    fn long_functions_are_seen_and_long_signatures_are_not_misread() {
        let body = "    let a = '}'; let b = \"}\"; // }\n".repeat(70);
        let text = format!(
            "trait T {{ fn none(a: [u8; 2]); }}\ntype P = fn(u8) -> u8;\nfn long<'a>(a: &'a str) {{\n{body}}}\nfn short() {{}}\n"
        );
        assert_eq!(offences(long_functions, "src/a.rs", &text), ["src/a.rs:3"]);
    }

    #[test]
    fn unwraps_are_seen_outside_tests_only() {
        let text = "fn f() {\n    g().unwrap(); // .unwrap()\n}\n#[cfg(test)]\nmod tests {\n    fn t() { g().unwrap(); }\n}\nfn h() { \".unwrap()\"; }\n";
        assert_eq!(offences(unwraps, "src/a.rs", text), ["src/a.rs:2"]);
        assert!(offences(unwraps, "src/a/tests.rs", text).is_empty());
    }

    #[test]
    fn unsafe_is_seen() {
        let bare = "#![deny(unsafe_code)]\nfn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(offences(stray_unsafe, "src/a.rs", bare), ["src/a.rs:3"]);
        assert!(offences(stray_unsafe, "src/control/host.rs", bare).is_empty());
        assert_eq!(offences(unexplained_unsafe, "src/a.rs", bare), ["src/a.rs:3"]);
        let explained = "fn f() {\n    // SAFETY: g only\n    // reads.\n    unsafe { g() }\n}\n";
        assert!(offences(unexplained_unsafe, "src/a.rs", explained).is_empty());
        let begun_above = "fn f() {\n    // SAFETY: g reads.\n    let h =\n        unsafe { g() };\n}\n";
        assert!(offences(unexplained_unsafe, "src/a.rs", begun_above).is_empty());
        let another_s = "fn f() {\n    // SAFETY: g reads.\n    unsafe { g() };\n    unsafe { h() };\n}\n";
        assert_eq!(offences(unexplained_unsafe, "src/a.rs", another_s), ["src/a.rs:4"]);
    }

    #[test]
    fn allowed_lints_without_a_reason_are_seen() {
        assert_eq!(offences(unexplained_allow, "src/a.rs", "#[allow(dead_code)]\nfn f() {}\n"), ["src/a.rs:1"]);
        assert!(offences(unexplained_allow, "src/a.rs", "#[allow(dead_code)] // the peer reads it\n").is_empty());
        let manifest = "[dependencies]\na = \"1\" # saves us b\nc = \"1\"\n[lints]\nworkspace = true\n[profile.dev]\nopt-level = 1\n";
        let found = offences(unexplained_manifest_lines, "Cargo.toml", manifest);
        assert_eq!(found, ["Cargo.toml:3", "Cargo.toml:5"]);
    }

    #[test]
    fn markers_and_paths_are_seen() {
        assert_eq!(offences(unfinished, "src/a.rs", concat!("a\n// TO", "DO: b\n")), ["src/a.rs:2"]);
        assert_eq!(offences(home_paths, "Makefile", concat!("cd /ho", "me/me\n")), ["Makefile:1"]);
    }

    #[test]
    fn literals_and_comments_are_blanked_and_nothing_else() {
        let text = "a /* b /* c */ d */ e 'f' g \"h\\\"i\" r#\"j\"k\"# b\"l\" 'static m '\\'' n";
        let blanked = without_prose(text);
        assert_eq!(blanked.len(), text.len());
        let left: Vec<&str> = blanked.split_whitespace().collect();
        assert_eq!(left, ["a", "e", "'", "g", "\"", "r", "b\"", "'static", "m", "'", "n"]);
    }
}
