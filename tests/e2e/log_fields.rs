//! The fields of log lines: each fact has one name, and `docs/OPERATIONS.md` lists them all.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const EVENTS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];
const SPANS: [&str; 5] = ["trace_span", "debug_span", "info_span", "warn_span", "error_span"];

/// Spans with this target are in no log line.
const TRACES_ONLY: &str = "TRACES_ONLY";

/// Fields that the formatter of lines adds.
const OF_THE_FORMATTER: [&str; 4] = ["timestamp", "level", "target", "message"];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Adds the fields of all lines and spans in `tokens` that are not of tests.
fn collect(tokens: TokenStream, found: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut of_tests = false;
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else { continue };
        let before = |n: usize| at.checked_sub(n).map(|at| tokens[at].to_string());
        let text = group.stream().to_string();
        if group.delimiter() == Delimiter::Bracket && text.replace(' ', "") == "cfg(test)" {
            of_tests = true;
            continue;
        }
        if group.delimiter() == Delimiter::Brace && std::mem::take(&mut of_tests) {
            continue;
        }
        if before(1).as_deref() == Some("!") {
            let name = before(2).unwrap_or_default();
            let is_span = SPANS.contains(&name.as_str());
            if is_span || EVENTS.contains(&name.as_str()) {
                found.extend(fields(group.stream(), is_span));
            }
        }
        collect(group.stream(), found);
    }
}

/// The fields of one line or span.
fn fields(arguments: TokenStream, is_span: bool) -> Vec<String> {
    let arguments: Vec<TokenTree> = arguments.into_iter().collect();
    let items: Vec<_> =
        arguments.split(|token| token.to_string() == ",").filter(|item| !item.is_empty()).collect();
    if is_span && items[0].iter().any(|token| token.to_string() == TRACES_ONLY) {
        return Vec::new();
    }
    let mut fields = Vec::new();
    for item in items {
        if matches!(item[0], TokenTree::Literal(_)) && !is_span {
            // What follows are the arguments of the message.
            break;
        }
        let sigils = usize::from(["%", "?"].contains(&item[0].to_string().as_str()));
        let texts: Vec<String> = item[sigils..].iter().map(ToString::to_string).collect();
        let end = texts.iter().position(|text| text == "=").unwrap_or(texts.len());
        let is_name = texts[..end].iter().enumerate().all(|(n, text)| match n % 2 {
            0 => text.starts_with(|c: char| c.is_alphabetic()),
            _ => text == ".",
        });
        // `target: x` is no field, and its tokens are no name.
        if is_name && end % 2 == 1 {
            fields.push(texts[..end].concat().replace("r#", ""));
        }
    }
    fields
}

/// What each field is, as the table says.
fn listed() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/OPERATIONS.md")).expect("it");
    let (_, section) = text.split_once("\n## Fields of log lines\n").expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let mut listed = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for name in cells[1].split(',').map(|name| name.trim().trim_matches('`')) {
            let before = listed.insert(name.to_owned(), cells[2].to_owned());
            assert_eq!(before, None, "{name} is listed twice");
        }
    }
    listed
}

#[test]
fn each_field_of_a_log_line_is_listed_and_each_listed_one_is_used() {
    let mut files = Vec::new();
    for package in [
        "shared/contract",
        "shared/service",
        "ingest",
        "worker",
        "gitea",
        "sync",
        "reactor",
        "coordinator",
    ] {
        sources(&Path::new(ROOT).join(package).join("src"), &mut files);
    }
    let mut used: BTreeSet<String> = OF_THE_FORMATTER.map(str::to_owned).into();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source");
        let tokens = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        collect(tokens, &mut used);
    }
    assert!(used.contains("gitea.delivery.id") && used.contains("verdict"), "{used:?}");
    let listed: BTreeSet<String> = listed().into_keys().collect();
    let (unlisted, unused) = (&used - &listed, &listed - &used);
    assert!(
        unlisted.is_empty() && unused.is_empty(),
        "docs/OPERATIONS.md does not list {unlisted:?}, and lists {unused:?}, which no line has"
    );
}

#[test]
fn fields_are_found_in_whatever_form_they_are_written() {
    let source = r#"
        fn f() {
            info!(gitea.delivery.id = %id, r#type, ?pause, %error, n = a == b, "x {}", y);
            tracing::warn!(parent: None, g(a, b), "text");
            let span = info_span!(parent: None, "process", otel.kind = "consumer");
            let span = info_span!(target: trace::TRACES_ONLY, "publish", hidden = 1);
            error(nothing = 1);
        }
        macro_rules! line { ($message:literal) => { info!(inside = 1, $message) }; }
        #[cfg(test)]
        mod tests { fn f() { info!(of_a_test = 1, "x"); } }
        fn g() { debug!(after = 1, "x"); }
    "#;
    let mut found = BTreeSet::new();
    collect(source.parse().expect("tokens"), &mut found);
    let expected =
        ["after", "error", "gitea.delivery.id", "inside", "n", "otel.kind", "pause", "type"];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
}
