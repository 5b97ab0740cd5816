//! `coordinator register`: webhooks in a Gitea, made, found again and put right.

use std::{os::unix::fs::PermissionsExt, path::Path};

use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    gitea_server::{Fault, GiteaServer, NewIssue},
    process::Process,
    temp_dir,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const TARGET: &str = "http://hooks.example.com:8000/webhook/gitea";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A Gitea with an organisation, a repository in it, and an administrator's token.
struct Site {
    gitea: GiteaServer,
    token: String,
    widgets: i64,
}

impl Site {
    async fn start() -> Self {
        let gitea = GiteaServer::start().await;
        gitea.add_admin("maria");
        gitea.add_user("tom");
        gitea.add_organization("acme", &["maria"]);
        let widgets = gitea.add_repository("acme", "widgets");
        let token = gitea.add_token("all", "maria", &["all"]);
        Self { gitea, token, widgets }
    }

    fn process(&self, args: &[&str], more: &[(&str, &str)]) -> Process {
        let url = self.gitea.url();
        let mut environment = vec![
            ("GITEA_URL", &*url),
            ("GITEA_TOKEN", &*self.token),
            ("GITEA_WEBHOOK_SECRET", SECRET),
            ("WEBHOOK_URL", TARGET),
            ("GITEA_REQUESTS_PER_SECOND", "1000"),
            ("DATA_DIR", "/nonexistent"),
        ];
        environment.extend(more);
        Process::start(Path::new(EXE), "register", args, &environment)
    }

    /// Runs the command; returns its exit code and what it printed.
    async fn register_with(&self, args: &[&str], more: &[(&str, &str)]) -> (i32, String) {
        ended(self.process(args, more)).await
    }

    /// Runs the command, which must succeed; returns what it printed.
    async fn register(&self, args: &[&str]) -> String {
        let (code, output) = self.register_with(args, &[]).await;
        assert_eq!(code, 0, "{output}");
        output
    }

    async fn api(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let url = format!("{}/api/v1/{path}", self.gitea.url());
        let mut request = http.request(method, &url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("an answer");
        assert!(response.status().is_success(), "{url}: {}", response.status());
        response.json().await.unwrap_or_default()
    }

    /// Makes a hook as somebody would by hand, and returns its id.
    async fn add_hook(&self, path: &str, hook: Value) -> i64 {
        self.api(Method::POST, path, Some(hook)).await["id"].as_i64().expect("an id")
    }

    /// Id, address, content type, events and activity of each hook.
    async fn hooks(&self, path: &str) -> Vec<(i64, String, String, Vec<String>, bool)> {
        let hooks = self.api(Method::GET, path, None).await;
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let read = |hook: &Value| {
            let mut events: Vec<_> =
                hook["events"].as_array().expect("events").iter().map(text).collect();
            events.sort();
            (
                hook["id"].as_i64().expect("an id"),
                text(&hook["config"]["url"]),
                text(&hook["config"]["content_type"]),
                events,
                hook["active"].as_bool().expect("a flag"),
            )
        };
        hooks.as_array().expect("hooks").iter().map(read).collect()
    }
}

async fn ended(mut process: Process) -> (i32, String) {
    let code = process.exited().await.code().expect("an exit code");
    let output = process.output();
    assert!(!output.contains(SECRET), "{output}");
    (code, output)
}

const WIDGETS: &str = "repos/acme/widgets/hooks";

fn good(id: i64) -> (i64, String, String, Vec<String>, bool) {
    let events = ["issue_assign", "issues"].map(Into::into).into();
    (id, TARGET.into(), "json".into(), events, true)
}

fn hook(url: &str, content_type: &str, events: &[&str], active: bool) -> Value {
    json!({
        "type": "gitea", "active": active, "events": events,
        "config": { "url": url, "content_type": content_type, "secret": SECRET },
    })
}

#[tokio::test]
async fn a_hook_is_made_once_for_each_whose_it_may_be() {
    let site = Site::start().await;
    for (args, path) in [
        (&["--repo", "acme/widgets"][..], WIDGETS),
        (&["--org", "acme"], "orgs/acme/hooks"),
        (&["--user"], "user/hooks"),
        (&["--system"], "admin/hooks"),
    ] {
        let dry = site.register(&[args, &["--dry-run"]].concat()).await;
        assert!(dry.contains("a hook would be made"), "{dry}");
        assert_eq!(site.hooks(path).await, []);
        let made = site.register(args).await;
        let hooks = site.hooks(path).await;
        let id = hooks.first().expect("a hook").0;
        assert_eq!(hooks, [good(id)]);
        assert_eq!(site.gitea.hook_secret(id).as_deref(), Some(SECRET));
        assert!(made.contains(&format!("hook {id} was made")), "{made}");
        site.gitea.forget_requests();
        let again = site.register(args).await;
        assert!(again.contains(&format!("hook {id} is as wanted")), "{again}");
        assert!(again.contains("neither the secret nor the HTTP method"), "{again}");
        let only_reads = site.gitea.last_requests().iter().all(|seen| seen.method == Method::GET);
        assert!(only_reads, "{:?}", site.gitea.last_requests());
    }
    assert_eq!(site.gitea.hook_ids().len(), 4);
}

#[tokio::test]
async fn a_hook_is_known_in_other_forms_and_put_right() {
    let form_of_people = "HTTP://Hooks.Example.com:8000/webhook/gitea";
    let slashed = format!("{TARGET}/");
    let good_events = &["issues_only", "issue_assign"][..];
    for (made, told) in [
        (
            hook(form_of_people, "json", &["push"], true),
            "without issues_only, issue_assign, with push",
        ),
        (hook(TARGET, "form", good_events, true), "content type was not application/json"),
        (hook(TARGET, "json", good_events, false), "it was inactive"),
        (hook(&slashed, "json", good_events, true), "its address had another form"),
    ] {
        let site = Site::start().await;
        let elsewhere = hook("http://elsewhere.example.com/", "form", &["push"], false);
        site.add_hook(WIDGETS, elsewhere).await;
        let id = site.add_hook(WIDGETS, made).await;
        let before = site.hooks(WIDGETS).await;
        let dry = site.register(&["--repo", "acme/widgets", "--dry-run"]).await;
        assert!(dry.contains(&format!("hook {id} would be put right")), "{dry}");
        assert_eq!(site.hooks(WIDGETS).await, before);
        let output = site.register(&["--repo", "acme/widgets"]).await;
        assert!(output.contains(told) && output.contains("was put right"), "{output}");
        let (mut hooks, mut expected) = (site.hooks(WIDGETS).await, good(id));
        let ours = hooks.pop().expect("our hook");
        expected.1 = if ours.1 == form_of_people { form_of_people.into() } else { TARGET.into() };
        assert_eq!((ours, hooks), (expected, vec![before[0].clone()]));
    }
}

#[tokio::test]
async fn labels_that_somebody_reads_go_on_coming_unless_events_are_named() {
    let site = Site::start().await;
    let args = ["--repo", "acme/widgets"];
    site.add_hook(WIDGETS, hook(TARGET, "json", &["issues", "push"], true)).await;
    site.register(&args).await;
    let events = async || site.hooks(WIDGETS).await.remove(0).3;
    assert_eq!(events().await, ["issue_assign", "issue_label", "issue_milestone", "issues"]);
    site.register(&[&args[..], &["--events", "issues_only,issue_assign"]].concat()).await;
    assert_eq!(events().await, ["issue_assign", "issues"]);
    let (code, output) =
        site.register_with(&[&args[..], &["--events", "push"]].concat(), &[]).await;
    assert_eq!(code, 2, "{output}");
}

#[tokio::test]
async fn a_hook_is_found_behind_many_others() {
    let site = Site::start().await;
    for number in 0..60 {
        let url = format!("http://elsewhere.example.com/{number}");
        site.add_hook(WIDGETS, hook(&url, "json", &["push"], true)).await;
    }
    let id = site.add_hook(WIDGETS, hook(TARGET, "json", &["push"], true)).await;
    let output = site.register(&["--repo", "acme/widgets"]).await;
    assert!(output.contains(&format!("hook {id} was put right")), "{output}");
    assert_eq!(site.gitea.hook_ids().len(), 61);
}

#[tokio::test]
async fn several_runs_at_once_leave_one_hook() {
    let site = Site::start().await;
    // All of them list the hooks before the first one makes its own.
    site.gitea.fail(Fault::Slow(std::time::Duration::from_millis(300)), "hooks");
    for args in [&["--repo", "acme/widgets"][..], &["--repo", "acme/widgets", "--replace"]] {
        let processes: Vec<_> = (0..4).map(|_| site.process(args, &[])).collect();
        let mut outputs = Vec::new();
        for process in processes {
            outputs.push(ended(process).await);
        }
        let hooks = site.hooks(WIDGETS).await;
        assert_eq!(hooks.len(), 1, "{outputs:?}");
        assert_eq!(hooks, [good(hooks[0].0)]);
        let id = format!("hook {}", hooks[0].0);
        let succeeded: Vec<_> = outputs.iter().filter(|(code, _)| *code == 0).collect();
        assert!(!succeeded.is_empty(), "{outputs:?}");
        assert!(succeeded.iter().any(|(_, output)| output.contains(&id)), "{outputs:?}");
    }
}

#[tokio::test]
async fn a_hook_is_made_anew_before_the_old_ones_go() {
    let site = Site::start().await;
    let old = site.add_hook(WIDGETS, hook(TARGET, "form", &["push"], true)).await;
    let mut guarded = hook(&format!("{TARGET}/"), "json", &["issues_only"], true);
    guarded["authorization_header"] = json!("Bearer of-the-proxy");
    let other = site.add_hook(WIDGETS, guarded).await;
    let elsewhere = site
        .add_hook(WIDGETS, hook("http://elsewhere.example.com/", "form", &["push"], true))
        .await;

    let output = site.register(&["--repo", "acme/widgets"]).await;
    assert!(output.contains(&format!("hook {other} sends to the same address too")), "{output}");
    assert_eq!(site.gitea.hook_ids(), [old, other, elsewhere]);

    site.gitea.forget_requests();
    let output = site.register(&["--repo", "acme/widgets", "--replace"]).await;
    let hooks = site.hooks(WIDGETS).await;
    let new = hooks.last().expect("a hook").0;
    assert!(output.contains(&format!("hook {new} was made")), "{output}");
    assert_eq!(hooks.iter().map(|hook| hook.0).collect::<Vec<_>>(), [elsewhere, new]);
    let made = site.api(Method::GET, &format!("{WIDGETS}/{new}"), None).await;
    assert_eq!(made["authorization_header"], "Bearer of-the-proxy");
    let changes: Vec<_> = site
        .gitea
        .last_requests()
        .into_iter()
        .map(|seen| seen.method)
        .filter(|method| *method != Method::GET)
        .collect();
    assert_eq!(changes, [Method::POST, Method::DELETE, Method::DELETE]);
}

#[tokio::test]
async fn every_repository_of_an_owner_is_registered_though_one_fails() {
    let site = Site::start().await;
    for number in 0..55 {
        site.gitea.add_repository("acme", &format!("many-{number:02}"));
    }
    site.gitea.fail(Fault::ServerError, "many-07");
    let args = ["--all-repos-of", "acme"];
    let (code, output) = site.register_with(&args, &[]).await;
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("acme/many-07: failed: list the hooks of acme/many-07"), "{output}");
    assert!(output.contains("56 repositories of acme: 55 made, 1 failed"), "{output}");
    assert!(output.contains("coordinator: 1 of 56 repositories failed"), "{output}");
    assert_eq!(site.gitea.hook_ids().len(), 55);
    assert!(!output.contains('\x1b'), "no progress bar where there is no terminal: {output}");

    site.gitea.repair();
    let dry = site.register(&["--all-repos-of", "acme", "--dry-run"]).await;
    assert!(dry.contains("56 repositories of acme: 1 to make, 55 as wanted"), "{dry}");
    let output = site.register(&args).await;
    assert!(output.contains("56 repositories of acme: 1 made, 55 as wanted"), "{output}");
    assert_eq!(site.gitea.hook_ids().len(), 56);
}

#[tokio::test]
async fn a_repository_that_may_not_be_changed_is_named() {
    let site = Site::start().await;
    site.gitea.add_repository("tom", "own");
    let hidden = site.gitea.add_repository("maria", "hidden");
    site.gitea.set_private(hidden, true);
    let toms = site.gitea.add_token("toms", "tom", &["all"]);
    let issues = site.gitea.add_token("issues", "maria", &["read:issue"]);
    let reads = site.gitea.add_token("reads", "maria", &["read:repository"]);
    for (args, token, expected) in [
        (&["--repo", "acme/widgets"][..], &*toms, "has to own the repository or to administer it"),
        (&["--repo", "maria/hidden"], &toms, "there is no repository maria/hidden, or the token's"),
        (&["--org", "acme"], &toms, "has to be an owner of the organisation"),
        (&["--org", "nobody"], &toms, "there is no organisation nobody"),
        (&["--system"], &toms, "has to be an administrator of Gitea"),
        (
            &["--repo", "acme/widgets"],
            &issues,
            "needs the scope write:repository, and has read:issue",
        ),
        (
            &["--repo", "acme/widgets"],
            &reads,
            "needs the scope write:repository, and has read:repo",
        ),
        (&["--org", "acme"], &issues, "needs the scope write:organization"),
        (&["--user"], &issues, "needs the scope write:user"),
        (&["--system"], &issues, "needs the scope write:admin"),
        (&["--all-repos-of", "acme"], &issues, "needs the scopes read:user and write:repository"),
        (&["--all-repos-of", "acme"], &toms, "acme/widgets: failed"),
        (&["--user"], "0123456789012345678901234567890123456789", "no token of this Gitea"),
    ] {
        let (code, output) = site.register_with(args, &[("GITEA_TOKEN", token)]).await;
        assert_eq!(code, 1, "{output}");
        assert!(output.contains(expected) && !output.contains(token), "{args:?}: {output}");
    }
    assert_eq!(site.gitea.hook_ids(), [0; 0]);
    let (code, output) =
        site.register_with(&["--all-repos-of", "tom"], &[("GITEA_TOKEN", &toms)]).await;
    assert_eq!(code, 0, "{output}");
}

#[tokio::test]
async fn a_hook_of_the_site_is_a_system_hook_or_it_is_said() {
    let site = Site::start().await;
    // Without `is_system_webhook` it is a default hook, which sends nothing.
    let default = site
        .add_hook("admin/hooks", hook(TARGET, "json", &["issues_only", "issue_assign"], true))
        .await;
    let output = site.register(&["--system"]).await;
    let told = format!("hook {default} with the same address is a default hook");
    assert!(output.contains(&told) && output.contains("was made"), "{output}");
    let [system] = &site.hooks("admin/hooks").await[..] else { panic!("one system hook") };
    assert_eq!(system, &good(system.0));

    site.gitea.list_site_hooks(false);
    let output = site.register(&["--system"]).await;
    assert!(output.contains("Gitea does not list hook"), "{output}");
}

#[tokio::test]
async fn what_cannot_be_seen_is_warned_of() {
    let site = Site::start().await;
    let args = ["--repo", "acme/widgets", "--dry-run"];
    for (target, parts) in [
        (TARGET, &[][..]),
        ("http://10.0.0.7:8000/webhook/gitea", &["ALLOWED_HOST_LIST in its app.ini has private"]),
        ("http://127.0.0.1:8000/", &["ALLOWED_HOST_LIST", "another path than /webhook/gitea"]),
    ] {
        let (code, output) = site.register_with(&args, &[("WEBHOOK_URL", target)]).await;
        assert_eq!(code, 0, "{output}");
        assert_eq!(output.matches("warning: ").count(), parts.len(), "{output}");
        assert!(parts.iter().all(|part| output.contains(part)), "{output}");
    }
}

#[tokio::test]
async fn a_setting_that_lacks_is_told_before_gitea_is_asked() {
    let site = Site::start().await;
    for (unset, expected) in [
        (&["GITEA_URL"][..], "GITEA_URL is required"),
        (&["GITEA_TOKEN"], "GITEA_TOKEN, or GITEA_TOKEN_FILE, is required"),
        (&["WEBHOOK_URL"], "WEBHOOK_URL (--url), the address"),
        (&["GITEA_WEBHOOK_SECRET"], "no secret in /nonexistent/webhook-secret"),
        (&["GITEA_URL", "WEBHOOK_URL"], "GITEA_URL is required; GITEA_TOKEN"),
    ] {
        let mut more: Vec<_> = unset.iter().map(|name| (*name, "")).collect();
        if unset.len() > 1 {
            more.push(("GITEA_TOKEN", ""));
        }
        let (code, output) = site.register_with(&["--user"], &more).await;
        assert_eq!(code, 64, "{output}");
        assert!(output.contains(expected), "{output}");
    }
    let args = ["--user", "--gitea-token", &site.token];
    let (code, output) = site.register_with(&args, &[]).await;
    assert_eq!(code, 64, "{output}");
    assert_eq!(site.gitea.requests(), 0);
}

#[tokio::test]
async fn a_delivery_arrives_through_the_hook_that_was_made() {
    let site = Site::start().await;
    let dir = temp_dir();
    let data = dir.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let ports = ["--port", "0", "--operator-port", "0", "--nats-port", "0"];
    let up =
        Process::start(Path::new(EXE), "up", &[&["--data-dir", data], &ports[..]].concat(), &[]);
    up.line_with("\"coordinator runs\"").await;

    let token_file = dir.path().join("token");
    std::fs::write(&token_file, format!("{}\n", site.token)).expect("write");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&token_file, private).expect("chmod");
    let args = ["--repo", "acme/widgets", "--data-dir", data];
    let (url, token_file) = (site.gitea.url(), token_file.to_str().expect("UTF-8"));
    let environment = [("GITEA_URL", &*url), ("GITEA_TOKEN_FILE", token_file)];
    let register = || Process::start(Path::new(EXE), "register", &args, &environment);
    let (code, output) = ended(register()).await;
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("ALLOWED_HOST_LIST in its app.ini has loopback"), "{output}");

    let number = site.gitea.create_issue(site.widgets, "maria", &NewIssue::default());
    site.gitea.assign(site.widgets, number, "tom", "maria");
    site.gitea.all_delivered().await;
    assert_eq!(site.gitea.delivered(), (2, 0));
    let tail = Process::start(Path::new(EXE), "tail", &["--all", "--data-dir", data], &[]);
    tail.line_with("+tom").await;

    let (code, output) = ended(register()).await;
    assert!(code == 0 && output.contains("is as wanted"), "{output}");
}
