//! The walls of the house: which module may know which, and where `unsafe` lives.
//!
//! The sources are read as Rust tokens, so comments and strings say nothing. Modules under `#[cfg(test)]` may use what they like.
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every top-level module and what it may import, itself apart. Imports point down: each line names earlier lines only.
const LAYERS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("ids", &["limits"]),
    ("identity", &["limits"]),
    ("proto", &["limits", "ids"]),
    ("mem", &["limits", "ids"]),
    ("metrics", &["limits", "ids"]),
    ("filter", &["limits", "ids", "proto"]),
    ("session", &["limits", "ids", "proto", "mem", "filter"]),
    ("sys", &["limits", "ids", "mem", "metrics"]),
    ("tls", &["limits", "mem"]),
    ("journal", &["limits", "ids", "sys"]),
    // The design draws bus and sys on one level. Of the two only bus knows the other, for the doorbell that wakes its receiver.
    ("bus", &["limits", "ids", "identity", "proto", "mem", "metrics", "session", "filter", "sys", "tls"]),
    (
        "shard",
        &["limits", "ids", "identity", "proto", "mem", "metrics", "session", "filter", "sys", "tls", "journal", "bus"],
    ),
    (
        "sim",
        &["limits", "ids", "proto", "mem", "metrics", "session", "filter", "sys", "tls", "journal", "bus", "shard"],
    ),
    (
        "config",
        &[
            "limits", "ids", "identity", "proto", "mem", "metrics", "session", "filter", "sys", "tls", "journal",
            "bus", "shard",
        ],
    ),
    ("logging", &["config"]),
    (
        "control",
        &[
            "limits", "ids", "identity", "proto", "mem", "metrics", "session", "filter", "sys", "tls", "journal",
            "bus", "shard", "config", "logging",
        ],
    ),
    // It looks at a node from outside: sharing a codec with it would hide the mistakes of both.
    ("load", &["limits"]),
    // A double of a foreign server: it must not share the node's own machinery, or it would share its mistakes.
    ("demo", &["limits", "proto", "config", "control", "logging", "load"]),
    ("ws_echo", &["limits", "ids", "proto", "mem", "metrics", "session", "filter", "sys", "tls", "bus", "shard"]),
    ("fuzzing", &["limits", "ids", "identity", "proto", "mem", "filter", "session", "sim"]),
];

/// Walls inside the protocol core: what may not know what.
const SEPARATE: &[(&str, &[&str])] = &[
    ("proto::ws", &["proto::signalr", "proto::dotnetify", "proto::http"]),
    ("proto::signalr", &["proto::ws", "proto::dotnetify", "proto::http"]),
    ("proto::http", &["proto::ws", "proto::signalr", "proto::dotnetify"]),
    ("proto::dotnetify", &["proto::ws", "proto::http"]),
    ("proto::proxy", &["proto::ws", "proto::signalr", "proto::dotnetify", "proto::http"]),
];

/// Only `demo::run`, which starts whole nodes, stands above the control plane; the app server itself does not.
const DEMO_ABOVE_CONTROL: &str = "src/demo/mod.rs";

const UNSAFE_LIVES_IN: [&str; 2] = ["sys", "mem"];

struct Source {
    /// Relative to the root, with slashes.
    path: String,
    /// `["proto", "ws"]` for src/proto/ws/mod.rs.
    module: Vec<String>,
    tokens: Vec<TokenTree>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every module's source, without lib.rs and main.rs: those see everything.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    files.sort();
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
    files
        .iter()
        .map(|file| (relative(file), file))
        .filter(|(path, _)| path != "src/lib.rs" && path != "src/main.rs")
        .map(|(path, file)| {
            let text = std::fs::read_to_string(file).unwrap();
            let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path} is not Rust: {error}"));
            let module = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
            Source {
                module: module.split('/').map(str::to_string).collect(),
                tokens: stream.into_iter().collect(),
                path,
            }
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Index after a `#[cfg(test)] mod name { … }` (or `mod name;`) that begins at `at`.
fn after_test_module(tokens: &[TokenTree], at: usize) -> Option<usize> {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), rest @ ..] = &tokens[at..] else { return None };
    if hash.as_char() != '#' || attribute.stream().to_string().replace(' ', "") != "cfg(test)" {
        return None;
    }
    let body = rest.iter().position(|token| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    })?;
    let is_module = rest[..body].iter().any(|token| is_word(token, "mod"));
    is_module.then_some(at + 2 + body + 1)
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

fn is_path_separator(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(a), TokenTree::Punct(b), ..] if a.as_char() == ':' && b.as_char() == ':')
}

/// Every path that begins with `crate`, `self` or `super`, as (line, segments from the crate's root).
/// `module` is the module the tokens stand in.
fn paths(tokens: &[TokenTree], module: &[String], found: &mut Vec<(usize, Vec<String>)>) {
    let mut at = 0;
    let mut opened_module: Option<String> = None;
    while at < tokens.len() {
        if let Some(after) = after_test_module(tokens, at) {
            at = after;
            continue;
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let mut inside = module.to_vec();
                inside.extend(opened_module.take());
                paths(&group.stream().into_iter().collect::<Vec<_>>(), &inside, found);
            }
            TokenTree::Ident(ident) => {
                let base = match ident.to_string().as_str() {
                    "crate" => Some(Vec::new()),
                    "self" => Some(module.to_vec()),
                    "super" => Some(module[..module.len().saturating_sub(1)].to_vec()),
                    "mod" => {
                        // `mod name { … }`: paths inside are relative to it.
                        if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(_))) =
                            (tokens.get(at + 1), tokens.get(at + 2))
                        {
                            opened_module = Some(name.to_string());
                            at += 1;
                        }
                        None
                    }
                    _ => None,
                };
                if let Some(base) = base
                    && is_path_separator(&tokens[at + 1..])
                {
                    at = expand(tokens, at + 3, base, ident.span().start().line, found);
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// Follows a path behind its `::` from `at`; groups of a `use` branch. Returns where it ends.
fn expand(
    tokens: &[TokenTree],
    mut at: usize,
    mut path: Vec<String>,
    line: usize,
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) if ident == "super" => {
                path.pop();
            }
            Some(TokenTree::Ident(ident)) => path.push(ident.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let branches: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in branches.split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','))
                {
                    if let Some(first) = branch.first() {
                        expand(branch, 0, path.clone(), first.span().start().line, found);
                    }
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if !is_path_separator(&tokens[at..]) {
            break;
        }
        at += 2;
    }
    found.push((line, path));
    at
}

fn imports(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    paths(&source.tokens, &source.module, &mut found);
    found
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for source in sources() {
        let home = source.module[0].as_str();
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == home) else {
            wrong.push(format!("{}: module {home} has no layer; give it a line in LAYERS of tests/architecture.rs and in the diagram of lib.rs", source.path));
            continue;
        };
        for (line, path) in imports(&source) {
            let Some(target) = path.first().map(String::as_str) else { continue };
            // Names that are no module of the crate's root are macros and re-exports of lib.rs.
            if target == home || !LAYERS.iter().any(|(name, _)| *name == target) {
                continue;
            }
            if !allowed.contains(&target) {
                wrong.push(format!(
                    "{}:{line}: {home} may not know {target} (allowed: {}); move what is shared down a layer, or hand it in as an argument",
                    source.path,
                    allowed.join(", ")
                ));
            } else if home == "demo" && matches!(target, "control" | "config") && source.path != DEMO_ABOVE_CONTROL {
                wrong.push(format!(
                    "{}:{line}: only {DEMO_ABOVE_CONTROL} may start nodes; the app server is a double of a foreign one",
                    source.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_protocols_do_not_know_each_other() {
    let mut wrong = Vec::new();
    for source in sources() {
        let home = source.module.join("::");
        for (module, forbidden) in SEPARATE {
            if home != *module && !home.starts_with(&format!("{module}::")) {
                continue;
            }
            for (line, path) in imports(&source) {
                let target = path.join("::");
                if let Some(other) =
                    forbidden.iter().find(|other| target == **other || target.starts_with(&format!("{other}::")))
                {
                    wrong.push(format!("{}:{line}: {module} may not know {other}; the session joins them, or hand over bytes and ranges", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn layers_name_earlier_layers_only() {
    for (index, (name, allowed)) in LAYERS.iter().enumerate() {
        for other in *allowed {
            assert!(LAYERS[..index].iter().any(|(earlier, _)| earlier == other), "{name} -> {other} points up");
        }
    }
}

#[test]
fn unsafe_has_an_address() {
    fn find(tokens: TokenStream, lines: &mut Vec<usize>) {
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if ident == "unsafe" => lines.push(ident.span().start().line),
                TokenTree::Group(group) => find(group.stream(), lines),
                _ => {}
            }
        }
    }
    let mut wrong = Vec::new();
    for source in sources().into_iter().filter(|source| !UNSAFE_LIVES_IN.contains(&source.module[0].as_str())) {
        let mut lines = Vec::new();
        find(source.tokens.iter().cloned().collect(), &mut lines);
        wrong.extend(lines.iter().map(|line| {
            format!("{}:{line}: unsafe lives in src/sys and src/mem; give it a safe function there", source.path)
        }));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_scanner_sees_what_it_is_there_for() {
    let text = r#"
        //! crate::commented
        use crate::{limits::{A, B as C}, shard::Turn};
        use super::super::session as life;
        const TEXT: &str = "crate::quoted";
        fn f() { let x = crate::sys::now(); self::g(); $crate::bus::send!(); }
        mod inner { use super::sibling; }
        #[cfg(test)]
        mod tests { use crate::config; fn f() { crate::control::x() } }
        fn after() -> crate::mem::Slab { todo!() }
    "#;
    let tokens: Vec<TokenTree> = text.parse::<TokenStream>().unwrap().into_iter().collect();
    let mut found = Vec::new();
    paths(&tokens, &["proto".into(), "ws".into()], &mut found);
    let found: Vec<String> = found.iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    assert_eq!(
        found,
        [
            "3 limits::A",
            "3 limits::B",
            "3 shard::Turn",
            "4 session",
            "6 sys::now",
            "6 proto::ws::g",
            "6 bus::send",
            "7 proto::ws::sibling",
            "10 mem::Slab",
        ]
    );
}

#[test]
fn the_protocol_core_builds_without_std() {
    // A target directory of its own: the outer cargo holds the lock of the usual one.
    let output = Command::new(env!("CARGO"))
        .args(["check", "--lib", "--no-default-features", "--offline", "--quiet"])
        .current_dir(root())
        .env("CARGO_TARGET_DIR", root().join("target/no-std"))
        .output()
        .expect("cargo runs: this test needs the cargo that built it");
    assert!(
        output.status.success(),
        "proto, ids and limits use core and alloc only; replace std:: by core:: or alloc::, or move what needs an operating system up a layer\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_http_refusal_has_a_counter() {
    use signalring::metrics::Counter;
    for error in signalring::proto::http::HttpError::ALL {
        let label = error.label();
        assert!(
            Counter::labelled("refusals", label).is_some(),
            "add {label} to the family \"refusals\" in src/metrics/table.rs"
        );
    }
}
