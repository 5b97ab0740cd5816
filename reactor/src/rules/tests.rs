//! Rules as people write them, good and wrong.

use std::sync::Arc;

use contract::issue_state::{KnownIssue, Lifecycle, Person};

use super::{
    OnRestart, Rule, Want, Wanted, Work,
    file::{RulesError, read},
    parse::parse,
};

/// A rule with one line more, or with another one in place of one of its own.
fn with(line: &str) -> String {
    format!(
        "[[rule]]\nname = \"fix\"\nwho = {{ login = \"bot\" }}\nrun = {{ argv = [\"/bin/sh\"] }}\n{line}\n"
    )
}

fn who(text: &str) -> String {
    format!("[[rule]]\nname = \"fix\"\nwho = {text}\nrun = {{ argv = [\"/bin/sh\"] }}\n")
}

fn run(text: &str) -> String {
    format!("[[rule]]\nname = \"fix\"\nwho = {{ login = \"bot\" }}\nrun = {text}\n")
}

fn call(text: &str) -> String {
    format!("[[rule]]\nname = \"fix\"\nwho = {{ login = \"bot\" }}\ncall = {text}\n")
}

fn named(name: &str) -> String {
    format!(
        "[[rule]]\nname = {name}\nwho = {{ login = \"bot\" }}\nrun = {{ argv = [\"/bin/sh\"] }}\n"
    )
}

/// A rule of a command with this line.
pub(crate) fn example(line: &str) -> Arc<Rule> {
    let text = format!("[[rule]]\nname = \"fix\"\nrun = {{ argv = [\"/bin/sh\"] }}\n{line}\n");
    Arc::clone(parse(&text).expect("a rule").get("fix").expect("the rule"))
}

#[test]
fn each_mistake_is_named_with_its_line_and_a_remedy() {
    let two = format!("{}\n{}", with(""), with(""));
    let argv = |rest: &str| run(&format!("{{ argv = [\"/bin/sh\"], {rest} }}"));
    let long = format!("\"{}\"", "a".repeat(41));
    let cases = [
        // The file as a whole.
        ("concurrency = \"2".to_owned(), 1, "this is not TOML"),
        ("concurrency = 1\nconcurrency = 2\n".into(), 2, "this is not TOML"),
        (String::new(), 1, "there is no rule; begin one with [[rule]]"),
        ("concurrency = 3\n".into(), 1, "there is no rule"),
        ("[rule]\nname = \"fix\"\n".into(), 1, "write [[rule]] with two brackets"),
        ("rule = [1]\n".into(), 1, "a rule is no table"),
        ("[[rules]]\nname = \"fix\"\n".into(), 1, "rules is not known; write rule"),
        (
            format!("concurrency = 0\n{}", with("")),
            1,
            "concurrency is 0; write a number from 1 to 1000",
        ),
        (
            format!("concurrency = 2.5\n{}", with("")),
            1,
            "concurrency is float; write a whole number",
        ),
        (
            format!("concurrency = \"2\"\n{}", with("")),
            1,
            "is string; write a whole number without quotes",
        ),
        // Names.
        (named("\"\""), 2, "rule.name is empty"),
        (named("7"), 2, "rule.name is integer; write a text in quotes"),
        (named("\"Fix it\""), 2, "write it with a-z, 0-9, - and _ alone"),
        (named("\"a.b\""), 2, "write it with a-z"),
        (named(&long), 2, "has 41 characters; 40 are the most"),
        (two, 8, "name \"fix\" is taken by a rule above"),
        (
            "[[rule]]\nwho = { login = \"b\" }\nrun = { argv = [\"/bin/sh\"] }\n".into(),
            1,
            "rule.name is missing",
        ),
        // Who.
        (
            "[[rule]]\nname = \"fix\"\nrun = { argv = [\"/bin/sh\"] }\n".into(),
            1,
            "who is missing; set who",
        ),
        (who("\"bot\""), 3, "who is string; write a table: who = { … }"),
        (who("{}"), 3, "login or id is missing"),
        (who("{ login = \"bot\", id = 4 }"), 3, "login and id are both set"),
        (who("{ login = \"@bot\" }"), 3, "write the login as Gitea shows it, without @"),
        (who("{ login = \"the bot\" }"), 3, "write the login as Gitea shows it"),
        (who("{ id = 0 }"), 3, "id is 0; write a number from 1"),
        (who("{ id = \"4\" }"), 3, "id is string; write a whole number without quotes"),
        (who("{ login = \"bot\", repository = \"widgets\" }"), 3, "set owner too"),
        (
            who("{ login = \"bot\", repository = \"acme/widgets\" }"),
            3,
            "write owner = \"acme\", repository = \"widgets\"",
        ),
        (who("{ login = \"bot\", label = \"\" }"), 3, "label is empty; leave it out"),
        (who("{ login = \"bot\", labels = [\"x\"] }"), 3, "labels is not known; write label"),
        (who("{ login = \"bot\", repo = \"x\" }"), 3, "repo is not known; write repository"),
        // What.
        ("[[rule]]\nname = \"fix\"\nwho = { login = \"b\" }\n".into(), 1, "run or call is missing"),
        (
            with("call = { url = \"http://h\", secret_file = \"/bin/sh\" }"),
            1,
            "make two rules of it",
        ),
        (run("\"agent\""), 4, "run is string; write a table"),
        (run("{}"), 4, "run.argv is missing; set the program"),
        (run("{ argv = \"agent --fast\" }"), 4, "there is no shell, so write a list"),
        (run("{ argv = [] }"), 4, "argv is empty; the first item is the program"),
        (run("{ argv = [\"/bin/sh\", 7] }"), 4, "argv holds integer; each item is a text"),
        (run("{ argv = [\"agent --fast\"] }"), 4, "make each argument an item"),
        (run("{ argv = [\"./agent\"] }"), 4, "begin the program's path with /"),
        (run("{ argv = [\"/not/there\"] }"), 4, "which is no program here"),
        (
            run("{ argv = [\"/etc/passwd\"] }"),
            4,
            "which is no program here; check path and permissions",
        ),
        (run("{ command = [\"/bin/sh\"] }"), 4, "command is not known; write argv"),
        (argv("directory = \"here\""), 4, "directory is not absolute"),
        (argv("directory = \"/not/there\""), 4, "directory is no directory here"),
        (argv("environment = \"HOME\""), 4, "write a list of names"),
        (argv("environment = [\"TOKEN=x\"]"), 4, "write \"TOKEN\" alone"),
        (argv("environment = [\"COORDINATOR_RULE\"]"), 4, "which each run gets from the runner"),
        (argv("environment = [\"MY_*\"]"), 4, "there are no wildcards"),
        (argv("time_limit_secs = 0"), 4, "time_limit_secs is 0; write a number from 1"),
        (argv("time_limit_secs = \"1h\""), 4, "write a whole number without quotes"),
        (argv("timeout = 9"), 4, "timeout is not known; write time_limit_secs"),
        (
            argv("memory_limit_bytes = 1024"),
            4,
            "memory_limit_bytes is 1024; write a number from 4194304",
        ),
        (argv("output_limit_bytes = 99999999"), 4, "from 1 to 16777216"),
        (argv("grace_secs = -1"), 4, "grace_secs is -1; write a number from 0 to 3600"),
        (argv("grace_seconds = 1"), 4, "grace_seconds is not known; write grace_secs"),
        (argv("user = \"\""), 4, "user is empty"),
        (with("concurrency = 1001"), 5, "rule \"fix\".concurrency is 1001"),
        (with("on_restart = \"again\""), 5, "write \"stop\" or \"rerun\""),
        (with("on_restart = true"), 5, "on_restart is boolean"),
        (with("max_runs_per_hour = 0"), 5, "max_runs_per_hour is 0"),
        (with("max_runs = 3"), 5, "max_runs is not known"),
        (call("{ secret_file = \"/bin/sh\" }"), 4, "call.url is missing"),
        (
            call("{ url = \"ftp://h\", secret_file = \"/bin/sh\" }"),
            4,
            "write it as https://host/path",
        ),
        (call("{ url = \"http://u:p@h\", secret_file = \"/bin/sh\" }"), 4, "take it out"),
        (call("{ url = \"http://h\" }"), 4, "secret_file is missing; name a file"),
        (call("{ url = \"http://h\", secret_file = \"/not/there\" }"), 4, "which does not exist"),
        (
            call("{ url = \"http://h\", secret_file = \"/bin/sh\", timeout_secs = 301 }"),
            4,
            "from 1 to 300",
        ),
        (
            call("{ url = \"http://h\", secret = \"abc\" }"),
            4,
            "secret is not known; write secret_file",
        ),
    ];
    assert!(cases.len() >= 40, "{}", cases.len());
    for (text, line, part) in cases {
        let mistakes = parse(&text).expect_err(&text);
        let is_told = mistakes.iter().any(|one| one.line == line && one.text.contains(part));
        assert!(is_told, "{text}\n{line}: {part}\n{mistakes:#?}");
        // A remedy follows what is wrong.
        assert!(mistakes.iter().all(|one| one.text.contains(';')), "{mistakes:#?}");
    }
}

#[test]
fn all_mistakes_are_named_at_once_in_the_order_of_their_lines() {
    let text = "concurrency = 0\n\n[[rule]]\nname = \"A\"\nwho = { id = 0 }\nrun = { argv = [] }\n";
    let mistakes = parse(text).expect_err("four");
    assert_eq!(mistakes.iter().map(|one| one.line).collect::<Vec<_>>(), [1, 4, 5, 6]);
}

#[test]
fn a_secret_that_is_short_and_a_file_that_is_no_text_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("write");
        path
    };
    let secret = file("secret", b"too short\n");
    let text = call(&format!("{{ url = \"http://h\", secret_file = {secret:?} }}"));
    let mistakes = parse(&text).expect_err("short");
    assert!(mistakes[0].text.contains("less than 24 characters"), "{mistakes:?}");
    let secret = file("secret", &[b'x'; 24]);
    let text = call(&format!("{{ url = \"http://h/hook/\", secret_file = {secret:?} }}"));
    let rules = parse(&text).expect("good");
    let rule = rules.get("fix").expect("the rule");
    assert!(rule.is_call() && rule.on_restart == OnRestart::Rerun);
    assert!(matches!(&rule.work, Work::Call(call) if call.url == "http://h/hook/"));
    let rules = file("rules.toml", b"# one\n# two\n\xff\n");
    match read(&rules).expect_err("no text") {
        RulesError::Mistakes { mistakes, .. } => assert_eq!(mistakes[0].line, 3),
        other => panic!("{other}"),
    }
    let error = read(&dir.path().join("none.toml")).expect_err("missing").to_string();
    assert!(error.starts_with("REACTOR_RULES is ") && error.contains("does not exist"), "{error}");
}

#[test]
fn good_rules_have_defaults() {
    let text = "concurrency = 8\n[[rule]]\nname = \"fix\"\nwho = { id = 4, owner = \"acme\" }\n\
                run = { argv = [\"sh\", \"-c\", \"true\"], grace_secs = 3 }\n\
                on_restart = \"rerun\"\n[[rule]]\nname = \"log\"\nwho = { login = \"bot\" }\n\
                run = { argv = [\"/bin/sh\"] }\nconcurrency = 2\nmax_runs_per_hour = 6\n";
    let rules = parse(text).expect("good rules");
    let [fix, log] = ["fix", "log"].map(|name| rules.get(name).expect("a rule"));
    assert_eq!((rules.concurrency, rules.count()), (8, 2));
    assert_eq!((fix.concurrency, fix.on_restart, fix.grace_secs()), (8, OnRestart::Rerun, 3));
    assert_eq!((log.concurrency, log.max_runs_per_hour, log.grace_secs()), (2, 6, 10));
    assert_eq!(fix.who.person, Wanted::Id(4));
    assert!(matches!(&log.work, Work::Command(c) if c.limits.output_bytes == 64 * 1024));
}

#[test]
fn whom_a_rule_is_for() {
    let issue = |login: &str, state| KnownIssue {
        assignees: vec![Person { id: 4, login: login.into() }],
        state,
        issue: "Acme/Widgets#7".into(),
        ..KnownIssue::default()
    };
    let labels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let want = |who_text: &str, issue: &KnownIssue, labels: Option<&[String]>, begun| {
        let rules = parse(&who(who_text)).expect("a rule");
        match rules.get("fix").expect("a rule").wants(issue, labels, begun) {
            Want::Yes(_) => "yes",
            Want::No(why) => why,
            Want::Unknown => "unknown",
        }
    };
    let open = issue("Bot", Lifecycle::Open);
    for (rule, expected) in [
        ("{ login = \"bot\" }", "yes"),
        ("{ login = \"tom\" }", "unassigned"),
        ("{ id = 4 }", "yes"),
        ("{ id = 5 }", "unassigned"),
        ("{ login = \"bot\", owner = \"acme\" }", "yes"),
        ("{ login = \"bot\", owner = \"acme\", repository = \"widgets\" }", "yes"),
        ("{ login = \"bot\", owner = \"acme\", repository = \"other\" }", "elsewhere"),
        ("{ login = \"bot\", owner = \"other\" }", "elsewhere"),
    ] {
        assert_eq!(want(rule, &open, None, false), expected, "{rule}");
    }
    let bot = "{ login = \"bot\" }";
    assert_eq!(want(bot, &issue("bot", Lifecycle::Closed), None, false), "closed");
    assert_eq!(want(bot, &issue("bot", Lifecycle::Deleted), None, true), "deleted");
    let labelled = "{ login = \"bot\", label = \"agent\" }";
    assert_eq!(want(labelled, &open, None, false), "unknown");
    assert_eq!(want(labelled, &open, Some(&labels(&["Agent", "x"])), false), "yes");
    assert_eq!(want(labelled, &open, Some(&labels(&["x"])), false), "without the label");
    assert_eq!(want(labelled, &open, Some(&labels(&[])), true), "yes", "it goes on");
    let nowhere = KnownIssue { issue: String::new(), ..open };
    assert_eq!(want("{ login = \"bot\", owner = \"acme\" }", &nowhere, None, true), "unknown");
}
