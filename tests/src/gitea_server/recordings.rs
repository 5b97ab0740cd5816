//! Compares what this server answers with what a real one answered: a story of requests
//! is asked again, of a world that was made after that of the recordings.

use std::path::PathBuf;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::{GiteaServer, NewIssue};

/// The `ROOT_URL` of the recorded server.
const RECORDED_URL: &str = "http://localhost:3127";

struct Recorded {
    name: String,
    method: Method,
    path: String,
    request: Value,
    status: StatusCode,
    headers: Value,
    body: Option<String>,
}

fn recorded() -> Vec<Recorded> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/api-1.27-2026-05");
    let index = std::fs::read(dir.join("index.json")).expect("index.json");
    let rows: Vec<Value> = serde_json::from_slice(&index).expect("an array of rows");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let rows = rows.into_iter().map(|row| Recorded {
        name: text(&row["name"]),
        method: text(&row["method"]).parse().expect("a method"),
        path: text(&row["path"]),
        request: row["request"].clone(),
        status: StatusCode::from_u16(row["status"].as_u64().expect("a status") as u16)
            .expect("a status"),
        headers: row["headers"].clone(),
        body: std::fs::read_to_string(dir.join(format!("{}.body", text(&row["name"])))).ok(),
    });
    // The product does not ask for it.
    rows.filter(|recorded| recorded.name != "repos-search").collect()
}

/// The tokens of the story by name, each with a user and its scopes.
const TOKENS: [(&str, &str, &[&str]); 5] = [
    ("admin", "maria", &["all"]),
    ("bot", "bot", &["all"]),
    ("user-only", "bot", &["read:user"]),
    ("issue-only", "bot", &["read:issue"]),
    ("reader", "bot", &["read:issue", "read:repository", "read:user"]),
];

fn token_of(recording: &str) -> Option<&'static str> {
    match recording {
        "search-anonymous" => None,
        "search-bad-token" => Some("nonesuch"),
        "search-not-admin" | "hook-create-no-permission" => Some("bot"),
        "search-no-scope" => Some("user-only"),
        "hooks-of-repo-issue-scope-only" => Some("issue-only"),
        "org-repos" => Some("reader"),
        _ => Some("admin"),
    }
}

/// The world of the recordings, as far as their requests see it.
async fn world() -> GiteaServer {
    let gitea = GiteaServer::start().await;
    // 2026-11-26T11:42:30Z, within the window that was asked for.
    gitea.set_now(1_795_693_350);
    gitea.add_admin("maria");
    for login in ["tom", "bot", "li-wei"] {
        gitea.add_user(login);
    }
    gitea.add_organization("acme", &["maria"]);
    gitea.add_organization("Nord-Werk_7", &["maria"]);
    let widgets = gitea.add_repository("acme", "widgets");
    gitea.add_repository("acme", "docs.site");
    let core = gitea.add_repository("Nord-Werk_7", "api.v2-core");
    gitea.rename_repository(core, "core");
    gitea.transfer(core, "acme");
    let doomed = gitea.add_repository("acme", "doomed");
    for title in ["of core", "of doomed"] {
        let repository = if title == "of core" { core } else { doomed };
        gitea.create_issue(repository, "maria", &NewIssue { title, ..NewIssue::default() });
    }
    gitea.delete_repository(doomed);
    let bug = NewIssue { title: "\"Ü\"", assignees: &["bot"], ..NewIssue::default() };
    for _ in 1..=58 {
        gitea.create_issue(widgets, "maria", &bug);
    }
    gitea.delete_issue(widgets, 4, "maria");
    for number in [1, 12] {
        gitea.label(widgets, number, "bug", "maria");
        gitea.edit_title(widgets, number, "Login page returns 500", "maria");
        for _ in 0..4 {
            gitea.assign(widgets, number, "tom", "maria");
            gitea.unassign(widgets, number, "tom", "tom");
        }
        gitea.close(widgets, number, "tom");
        gitea.reopen(widgets, number, "maria");
    }
    gitea.close(widgets, 1, "tom");
    gitea.unassign(widgets, 1, "bot", "maria");
    gitea
}

/// What is different in shape: the fields of objects and the types of values. What is null
/// or empty on either side has no shape.
fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(ours), Value::Object(theirs)) => {
            if !ours.keys().eq(theirs.keys()) {
                let (ours, theirs): (Vec<_>, Vec<_>) =
                    (ours.keys().collect(), theirs.keys().collect());
                found.push(format!("{path} has {ours:?}, not {theirs:?}"));
            }
            for (field, theirs) in theirs {
                if let Some(ours) = ours.get(field) {
                    differences(&format!("{path}/{field}"), ours, theirs, found);
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            for (ours, theirs) in ours.iter().zip(theirs) {
                differences(&format!("{path}/-"), ours, theirs, found);
            }
        }
        _ if std::mem::discriminant(ours) != std::mem::discriminant(theirs) => {
            found.push(format!("{path} is {ours}, not like {theirs}"));
        }
        _ => {}
    }
}

#[tokio::test]
async fn answers_are_those_of_the_recordings() {
    let gitea = world().await;
    let secrets: Vec<(&str, String)> = TOKENS
        .iter()
        .map(|(name, login, scopes)| (*name, gitea.add_token(name, login, scopes)))
        .collect();
    let secret_of = |name| secrets.iter().find(|(known, _)| *known == name).map(|(_, s)| &**s);
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("an HTTP client");
    let make_hook = async |path: &str, hook: &Value| {
        let request = http.post(format!("{}{path}", gitea.url())).json(hook);
        let admin = secret_of("admin").expect("a token");
        let made = request.header("Authorization", format!("token {admin}")).send().await;
        assert_eq!(made.expect("an answer").status(), StatusCode::CREATED);
    };
    // The hooks that were there before: the story goes on with the sixth.
    let rows = recorded();
    let hook = rows.iter().find(|row| row.name == "hook-create-repo").expect("a hook");
    for _ in 0..5 {
        make_hook("/api/v1/repos/acme/widgets/hooks", &hook.request).await;
    }

    let mut wrong = Vec::new();
    for recorded in &rows {
        let name = &recorded.name;
        let url = format!("{}{}", gitea.url(), recorded.path);
        let mut request = http.request(recorded.method.clone(), url);
        if let Some(token) = token_of(name) {
            let secret = secret_of(token).unwrap_or("0000");
            request = request.header("Authorization", format!("token {secret}"));
        }
        if !recorded.request.is_null() {
            request = request.json(&recorded.request);
        }
        let response = request.send().await.expect("an answer");

        let (status, headers) = (response.status(), response.headers().clone());
        let header = |name: &str| headers.get(name).map(|value| value.to_str().expect("a text"));
        if status != recorded.status {
            wrong.push(format!("{name}: {status}, not {}", recorded.status));
        }
        for exact in ["Content-Type", "Location"] {
            if header(exact) != recorded.headers[exact].as_str() {
                wrong.push(format!("{name}: {exact} is {:?}", header(exact)));
            }
        }
        let total = recorded.headers["X-Total-Count"].as_str();
        if header("X-Total-Count").is_some() != total.is_some() {
            wrong.push(format!("{name}: X-Total-Count is {:?}", header("X-Total-Count")));
        }
        if header("Date") != Some("Thu, 26 Nov 2026 11:42:30 GMT") {
            wrong.push(format!("{name}: Date is {:?}", header("Date")));
        }

        let ours = response.text().await.expect("a text");
        let Some(theirs) = &recorded.body else { continue };
        let theirs = theirs.replace(RECORDED_URL, &gitea.url());
        if !status.is_success() || ours.is_empty() || name == "settings-api" {
            if ours != theirs {
                wrong.push(format!("{name}: {ours}"));
            }
        } else {
            let parsed = |text: &str| serde_json::from_str(text).expect("JSON");
            differences(name, &parsed(&ours), &parsed(&theirs), &mut wrong);
        }
        if ours.ends_with('\n') != theirs.ends_with('\n') {
            wrong.push(format!("{name}: ends otherwise"));
        }
    }
    assert_eq!(rows.len(), 48);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
