//! Reads the rules from the text of their file. All that is wrong with it is found at once.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use service::{
    secret::Secret,
    settings::{http_address, read_file},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    CommandRule, OnRestart, Rule, Rules, Wanted, Who, Work,
    values::{Mistake, Mistakes, Table},
};
use crate::{call::Call, process::Limits};

/// Runs at once, where the file does not say.
const CONCURRENCY: usize = 4;
/// Most runs at once that the file may ask for.
const MAX_CONCURRENCY: i64 = 1000;
/// Runs of an issue within an hour, where the rule does not say.
const RUNS_PER_HOUR: usize = 20;
/// How much of the end of the output is kept, where the rule does not say.
const OUTPUT_BYTES: i64 = 64 * 1024;
/// Time from TERM to KILL, where the rule does not say, in seconds.
const GRACE_SECS: i64 = 10;
/// How long an answer to a call may take, where the rule does not say, in seconds.
const CALL_TIMEOUT_SECS: i64 = 15;
/// Least memory with which a program starts.
const LEAST_MEMORY: i64 = 4 * 1024 * 1024;
/// Longest name of a rule. It is a part of keys on the broker.
const MAX_NAME: usize = 40;
/// Most rules in a file: each is compared with each change.
const MAX_RULES: usize = 1000;
const YEAR_SECS: i64 = 366 * 24 * 3600;

/// Reads rules.
///
/// # Errors
/// All mistakes, in the order of their lines.
pub(super) fn parse(text: &str) -> Result<Rules, Vec<Mistake>> {
    let mut mistakes = Mistakes::new(text);
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            let message = error.message().replace('\n', ", ");
            mistakes.add(
                &at,
                format!("this is not TOML: {message}; texts go in quotes, tables in {{ }}"),
            );
            return Err(mistakes.into_found());
        }
    };
    let mut file = Table::new(String::new(), 0..0, table.get_ref());
    let bounds = (1, MAX_CONCURRENCY);
    let concurrency = file.number("concurrency", bounds, &mut mistakes);
    let concurrency = concurrency.map_or(CONCURRENCY, as_usize);
    let mut by_name = BTreeMap::new();
    let mut lines: BTreeMap<String, Range<usize>> = BTreeMap::new();
    let rules = file.get("rule");
    let listed = rules.and_then(|rules| rules.get_ref().as_array());
    match (rules, listed) {
        (None, _) => mistakes.add(&(0..0), "there is no rule; begin one with [[rule]]"),
        (Some(rules), None) => mistakes.add(
            &rules.span(),
            "rule is one table; write [[rule]] with two brackets for each rule",
        ),
        (Some(at), Some(rules)) if rules.len() > MAX_RULES => {
            let text = format!("there are {} rules; {MAX_RULES} are the most", rules.len());
            mistakes.add(&at.span(), text);
        }
        (_, Some(rules)) => {
            for value in rules.iter() {
                let Some(table) = value.get_ref().as_table() else {
                    mistakes
                        .add(&value.span(), "a rule is no table; write [[rule]] above its keys");
                    continue;
                };
                let Some((rule, named_at)) = rule(table, value.span(), concurrency, &mut mistakes)
                else {
                    continue;
                };
                if lines.insert(rule.name.clone(), named_at.clone()).is_some() {
                    let text =
                        format!("name {:?} is taken by a rule above; give it another", rule.name);
                    mistakes.add(&named_at, text);
                }
                by_name.insert(rule.name.clone(), Arc::new(rule));
            }
        }
    }
    file.finish(&mut mistakes);
    if mistakes.is_empty() {
        Ok(Rules { concurrency, by_name })
    } else {
        Err(mistakes.into_found())
    }
}

fn rule(
    table: &DeTable<'_>,
    at: Range<usize>,
    in_all: usize,
    mistakes: &mut Mistakes<'_>,
) -> Option<(Rule, Range<usize>)> {
    let mut rule = Table::new("rule".into(), at.clone(), table);
    let name = name(&mut rule, mistakes);
    if let Some((name, _)) = &name {
        rule.path = format!("rule {name:?}");
    }
    let who = match rule.table("who", mistakes) {
        Some(table) => who(table, mistakes),
        None => {
            if !table.contains_key("who") {
                mistakes.add(&at, rule.named("who", "is missing; set who = { login = \"…\" }"));
            }
            None
        }
    };
    let run = rule.table("run", mistakes);
    let call = rule.table("call", mistakes);
    if table.contains_key("run") && table.contains_key("call") {
        mistakes.add(&at, rule.named("run", "and call stand in one rule; make two rules of it"));
    } else if !table.contains_key("run") && !table.contains_key("call") {
        let text = "or call is missing; set run = { argv = [\"…\"] } or call = { url = \"…\", … }";
        mistakes.add(&at, rule.named("run", text));
    }
    let is_call = call.is_some();
    let work = match (run, call) {
        (Some(run), _) => command(run, mistakes).map(Work::Command),
        (None, Some(call)) => self::call(call, mistakes).map(Work::Call),
        (None, None) => None,
    };
    let concurrency = rule.number("concurrency", (1, MAX_CONCURRENCY), mistakes);
    let on_restart = match rule.text("on_restart", mistakes) {
        // A call is told once more anyway.
        None => Some(if is_call { OnRestart::Rerun } else { OnRestart::Stop }),
        Some((text, _)) if text == "stop" && !is_call => Some(OnRestart::Stop),
        Some((text, _)) if text == "rerun" => Some(OnRestart::Rerun),
        Some((_, at)) if is_call => {
            let text = "is for commands; leave it out, a call is tried until it is taken";
            mistakes.add(&at, rule.named("on_restart", text));
            None
        }
        Some((text, at)) => {
            let text = format!("is {text:?}; write \"stop\" or \"rerun\"");
            mistakes.add(&at, rule.named("on_restart", &text));
            None
        }
    };
    let per_hour = rule.number("max_runs_per_hour", (1, 1000), mistakes);
    rule.finish(mistakes);
    let (name, named_at) = name?;
    let rule = Rule {
        name,
        who: who?,
        work: work?,
        concurrency: concurrency.map_or(in_all, as_usize),
        on_restart: on_restart?,
        max_runs_per_hour: per_hour.map_or(RUNS_PER_HOUR, as_usize),
    };
    Some((rule, named_at))
}

/// Whether a text can be the name of a rule.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && has_name_characters(text)
}

fn has_name_characters(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

fn name(rule: &mut Table<'_, '_>, mistakes: &mut Mistakes<'_>) -> Option<(String, Range<usize>)> {
    let value = rule.required("name", "give each rule a name of its own", mistakes)?;
    let (name, at) = rule.as_text("name", value, mistakes)?;
    if name.len() > MAX_NAME {
        let text = format!("has {} characters; {MAX_NAME} are the most", name.len());
        mistakes.add(&at, rule.named("name", &text));
        return None;
    }
    if !has_name_characters(&name) {
        let text = format!("is {name:?}; write it with a-z, 0-9, - and _ alone");
        mistakes.add(&at, rule.named("name", &text));
        return None;
    }
    Some((name, at))
}

fn who(mut table: Table<'_, '_>, mistakes: &mut Mistakes<'_>) -> Option<Who> {
    let (has_login, at) = (table.get("login").is_some(), table.at.clone());
    let login = table.text("login", mistakes);
    let has_id = table.get("id").is_some();
    let id = table.number("id", (1, i64::MAX), mistakes);
    if has_login && has_id {
        mistakes.add(&at, table.named("login", "and id are both set; keep the one that is meant"));
    } else if !has_login && !has_id {
        mistakes.add(&at, table.named("login", "or id is missing; say who has to be assigned"));
    }
    let person = match (login, id) {
        (Some((login, at)), _) => {
            if login.starts_with('@') || login.chars().any(char::is_whitespace) {
                let text = format!("is {login:?}; write the login as Gitea shows it, without @");
                mistakes.add(&at, table.named("login", &text));
                None
            } else {
                Some(Wanted::Login(login))
            }
        }
        (None, Some(id)) => Some(Wanted::Id(id)),
        (None, None) => None,
    };
    let owner = table.text("owner", mistakes);
    let repository = table.text("repository", mistakes);
    for (key, value) in [("owner", &owner), ("repository", &repository)] {
        if let Some((text, at)) = value
            && let Some((one, other)) = text.split_once('/')
        {
            let text = format!("is {text:?}; write owner = {one:?}, repository = {other:?}");
            mistakes.add(at, table.named(key, &text));
        }
    }
    if let (None, Some((_, at))) = (&owner, &repository) {
        mistakes.add(at, table.named("repository", "has no owner beside it; set owner too"));
    }
    let label = table.text("label", mistakes).map(|(label, _)| label);
    table.finish(mistakes);
    let (owner, repository) = (owner.map(|(text, _)| text), repository.map(|(text, _)| text));
    Some(Who { person: person?, owner, repository, label })
}

fn command(mut table: Table<'_, '_>, mistakes: &mut Mistakes<'_>) -> Option<CommandRule> {
    let remedy = "set the program and its arguments: argv = [\"/path/to/agent\", \"--flag\"]";
    let argv = table.required("argv", remedy, mistakes);
    let argv = argv.and_then(|argv| self::argv(&table, argv, mistakes));
    let directory = table.text("directory", mistakes).and_then(|(text, at)| {
        let path = PathBuf::from(&text);
        let wrong = if !path.is_absolute() {
            "is not absolute; begin it with /"
        } else if !path.is_dir() {
            "is no directory here; make it, or name another"
        } else {
            return Some(path);
        };
        mistakes.add(&at, table.named("directory", &format!("{wrong} ({text:?})")));
        None
    });
    let user = table.text("user", mistakes).map(|(user, _)| user);
    let environment = environment(&mut table, mistakes);
    let time = table.number("time_limit_secs", (1, YEAR_SECS), mistakes);
    let memory = table.number("memory_limit_bytes", (LEAST_MEMORY, i64::MAX), mistakes);
    let output = table.number("output_limit_bytes", (1, 16 * 1024 * 1024), mistakes);
    let grace = table.number("grace_secs", (0, 3600), mistakes);
    table.finish(mistakes);
    let limits = Limits {
        time: time.map(as_secs),
        memory_bytes: memory.and_then(|bytes| u64::try_from(bytes).ok()),
        output_bytes: as_usize(output.unwrap_or(OUTPUT_BYTES)),
        grace: as_secs(grace.unwrap_or(GRACE_SECS)),
    };
    Some(CommandRule { argv: argv?, directory, user, environment, limits })
}

fn argv(
    table: &Table<'_, '_>,
    value: &Spanned<DeValue<'_>>,
    mistakes: &mut Mistakes<'_>,
) -> Option<Vec<String>> {
    let Some(items) = value.get_ref().as_array() else {
        let kind = value.get_ref().type_str();
        let text = format!(
            "is {kind}; there is no shell, so write a list: argv = [\"program\", \"argument\"]"
        );
        mistakes.add(&value.span(), table.named("argv", &text));
        return None;
    };
    let mut argv = Vec::new();
    for item in items.iter() {
        match item.get_ref().as_str() {
            Some(text) if !text.contains('\0') => argv.push(text.to_owned()),
            _ => {
                let kind = item.get_ref().type_str();
                let text = format!("holds {kind}; each item is a text in quotes, without NUL");
                mistakes.add(&item.span(), table.named("argv", &text));
                return None;
            }
        }
    }
    let wrong = match argv.first().map(String::as_str) {
        None => "is empty; the first item is the program".to_owned(),
        Some(program) if program.trim().is_empty() => {
            "begins with an empty text; the first item is the program".into()
        }
        Some(program)
            if argv.len() == 1 && program.contains(' ') && !Path::new(program).exists() =>
        {
            "is one text with spaces; there is no shell, so make each argument an item".into()
        }
        Some(program) if program.contains('/') && !program.starts_with('/') => {
            format!("begins with {program:?}; begin the program's path with /, or name one on PATH")
        }
        Some(program) if program.starts_with('/') && !is_executable(Path::new(program)) => {
            format!("begins with {program:?}, which is no program here; check path and permissions")
        }
        Some(_) => return Some(argv),
    };
    mistakes.add(&value.span(), table.named("argv", &wrong));
    None
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn environment(table: &mut Table<'_, '_>, mistakes: &mut Mistakes<'_>) -> Vec<String> {
    let Some(value) = table.get("environment") else { return Vec::new() };
    let Some(items) = value.get_ref().as_array() else {
        let kind = value.get_ref().type_str();
        let text = format!("is {kind}; write a list of names: environment = [\"HOME\"]");
        mistakes.add(&value.span(), table.named("environment", &text));
        return Vec::new();
    };
    let mut names = Vec::new();
    for item in items.iter() {
        let wrong = match item.get_ref().as_str() {
            None => "holds what is no text; write names of variables in quotes".to_owned(),
            Some(text) if text.contains('=') => {
                let name = text.split('=').next().unwrap_or_default();
                format!("holds a value; write {name:?} alone and set it where the runner starts")
            }
            Some(text) if text.starts_with("COORDINATOR_") || text == "TRACEPARENT" => {
                format!("holds {text:?}, which each run gets from the runner; leave it out")
            }
            Some(text)
                if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '\0') =>
            {
                format!("holds {text:?}, which is no name of a variable; write one such as HOME")
            }
            Some(text) if text.contains('*') => {
                format!("holds {text:?}; there are no wildcards, name each variable")
            }
            Some(text) => {
                names.push(text.to_owned());
                continue;
            }
        };
        mistakes.add(&item.span(), table.named("environment", &wrong));
    }
    names
}

fn call(mut table: Table<'_, '_>, mistakes: &mut Mistakes<'_>) -> Option<Call> {
    let url = table.required("url", "set the address to call", mistakes);
    let url = url.and_then(|value| table.as_text("url", value, mistakes)).and_then(|(url, at)| {
        match http_address(&url) {
            Ok(url) => Some(url),
            Err(wrong) => {
                let text = format!("{wrong}; write it as https://host/path");
                mistakes.add(&at, table.named("url", &text));
                None
            }
        }
    });
    let remedy =
        "name a file with the secret of the signature, made with `openssl rand -base64 32`";
    let secret = table.required("secret_file", remedy, mistakes);
    let secret = secret.and_then(|value| table.as_text("secret_file", value, mistakes));
    let secret = secret.and_then(|(path, at)| {
        let wrong = match read_file(Path::new(&path)) {
            Ok(bytes) => {
                let bytes = bytes.trim_ascii();
                if bytes.len() >= 24 {
                    return Some(Secret::new(bytes));
                }
                "is a file with less than 24 characters; make one with `openssl rand -base64 32`"
                    .to_owned()
            }
            Err(wrong) => format!("{wrong}; make it, or name another"),
        };
        mistakes.add(&at, table.named("secret_file", &wrong));
        None
    });
    let timeout = table.number("timeout_secs", (1, 300), mistakes).unwrap_or(CALL_TIMEOUT_SECS);
    table.finish(mistakes);
    Some(Call { url: url?, secret: secret?, timeout: as_secs(timeout) })
}

fn as_usize(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn as_secs(secs: i64) -> Duration {
    Duration::from_secs(u64::try_from(secs).unwrap_or(0))
}
