//! Deliveries: recorded from real Gitea servers, or generated to look like
//! recorded ones. They are signed here, not by the product's own code.

use std::path::PathBuf;

use coordinator::delivery::id_of;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

/// The secret of every hook in the tests.
pub const SECRET: &str = "s3cr3t-of-every-test";
/// The secret of every hook in the recordings. It is shorter than a secret may be.
pub const RECORDED_SECRET: &str = "s3cr3t";

/// One HTTP request as Gitea sends it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Headers, without those that the HTTP client sets.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// A recorded delivery and its row in the index.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// File name, `0001-issues-opened`.
    pub name: String,
    /// The hook it came from: `/webhook/gitea`, `/form`, `/nosecret`, `/org`, `/redeliver`.
    pub path: String,
    /// Whether its signature is good.
    pub signed: bool,
    /// The index's row.
    pub row: Value,
    /// The request.
    pub delivery: Delivery,
}

/// All deliveries of a recording such as `gitea-1.25`, in order of arrival.
pub fn recorded(recording: &str) -> Vec<Recorded> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(recording);
    let index = std::fs::read(dir.join("index.json")).expect("index.json");
    let rows: Vec<Value> = serde_json::from_slice(&index).expect("an array of rows");
    rows.into_iter()
        .map(|row| {
            let name = row["file"].as_str().expect("file").to_owned();
            let head = std::fs::read_to_string(dir.join(format!("{name}.head"))).expect("head");
            let body = std::fs::read(dir.join(format!("{name}.body"))).expect("body");
            let own = ["host", "content-length", "accept-encoding", "user-agent"];
            let headers = head
                .lines()
                .skip(1)
                .filter_map(|line| {
                    line.split_once(": ").or(line.strip_suffix(':').map(|n| (n, "")))
                })
                .filter(|(name, _)| !own.contains(&name.to_ascii_lowercase().as_str()))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            Recorded {
                path: row["path"].as_str().expect("path").to_owned(),
                signed: row["signed"].as_bool().expect("signed"),
                name,
                row,
                delivery: Delivery { headers, body },
            }
        })
        .collect()
}

/// One recorded delivery by the start of its name.
pub fn recorded_one(recording: &str, name: &str) -> Recorded {
    recorded(recording)
        .into_iter()
        .find(|recorded| recorded.name.starts_with(name))
        .unwrap_or_else(|| panic!("no {name} in {recording}"))
}

/// HMAC-SHA256 in hex.
pub fn sign(secret: &str, text: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any key fits");
    mac.update(text);
    hex::encode(mac.finalize().into_bytes())
}

impl Delivery {
    /// The delivery's id.
    pub fn id(&self) -> &str {
        self.header("X-Gitea-Delivery").expect("X-Gitea-Delivery")
    }

    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Sets a header, in place of any header of that name.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self = self.without_header(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a header.
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| !header.eq_ignore_ascii_case(name));
        self
    }

    /// Signed JSON with all headers that Gitea sends for an issue event.
    pub fn signed(payload: &Value, event_type: &str) -> Self {
        Self::signed_text(serde_json::to_vec_pretty(payload).expect("json"), event_type)
    }

    /// A signed text of any kind, as Gitea would send it.
    pub fn signed_text(body: Vec<u8>, event_type: &str) -> Self {
        Self::signed_with(SECRET, body, "issues", event_type)
    }

    /// A text that is signed with this secret. The signature is empty if the secret is, as
    /// Gitea has it.
    pub fn signed_with(secret: &str, body: Vec<u8>, event: &str, event_type: &str) -> Self {
        let signature = if secret.is_empty() { String::new() } else { sign(secret, &body) };
        let headers = [
            ("Content-Type", "application/json"),
            ("X-Gitea-Delivery", &Uuid::new_v4().to_string()),
            ("X-Gitea-Event", event),
            ("X-Gitea-Event-Type", event_type),
            ("X-Gitea-Hook-Installation-Target-Type", "repository"),
            ("X-Gitea-Signature", &signature),
            ("X-Hub-Signature-256", &format!("sha256={signature}")),
            ("X-GitHub-Event", event),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { headers: headers.into(), body }
    }
}

/// An issue, from which events are built.
#[derive(Clone, Debug)]
pub struct Issue {
    /// Repository id; its name is `r<id>`.
    pub repository: i64,
    /// Number.
    pub number: u64,
    /// Text.
    pub body: String,
    /// Title.
    pub title: String,
    /// `open` or `closed`.
    pub state: &'static str,
    /// Logins, each with an id of its own; or a login with this id: `bot:7`.
    pub assignees: Vec<String>,
    /// Seconds after a fixed instant.
    pub second: u64,
}

impl Issue {
    /// An open issue that nobody is assigned to.
    pub fn new(repository: i64, number: u64) -> Self {
        Self {
            repository,
            number,
            body: "Steps: open `/login`.".into(),
            title: "Login page returns 500".into(),
            state: "open",
            assignees: Vec::new(),
            second: 0,
        }
    }

    /// With these assignees.
    pub fn assigned(mut self, logins: &[&str]) -> Self {
        self.assignees = logins.iter().map(|login| (*login).to_owned()).collect();
        self
    }

    /// With this state.
    pub fn state(mut self, state: &'static str) -> Self {
        self.state = state;
        self
    }

    /// Updated this many seconds after a fixed instant.
    pub fn at(mut self, second: u64) -> Self {
        self.second = second;
        self
    }

    /// The payload of an event about the issue.
    pub fn payload(&self, action: &str) -> Value {
        let user = |id: i64, login: &str| json!({"id": id, "login": login, "full_name": "", "email": format!("{login}@example.com")});
        let assignees: Vec<Value> = self
            .assignees
            .iter()
            .map(|login| match login.split_once(':') {
                Some((login, id)) => user(id.parse().expect("an id"), login),
                None => user(id_of(login), login),
            })
            .collect();
        let (hours, minutes, seconds) =
            (self.second / 3600, self.second / 60 % 60, self.second % 60);
        let updated_at =
            format!("2026-11-{:02}T{:02}:{minutes:02}:{seconds:02}Z", 1 + hours / 24, hours % 24);
        let name = format!("r{}", self.repository);
        json!({
            "action": action,
            "number": self.number,
            "issue": {
                "id": self.repository * 1_000_000 + self.number as i64,
                "html_url": format!("http://localhost:3000/acme/{name}/issues/{}", self.number),
                "number": self.number,
                "user": user(1, "maria"),
                "title": self.title,
                "body": self.body,
                "labels": [],
                "milestone": null,
                "assignee": assignees.first(),
                "assignees": if assignees.is_empty() { Value::Null } else { assignees.clone().into() },
                "state": self.state,
                "created_at": "2026-11-01T00:00:00Z",
                "updated_at": updated_at,
                "closed_at": null,
                "due_date": null,
                "pull_request": null
            },
            "repository": {
                "id": self.repository,
                "owner": user(5, "acme"),
                "name": name,
                "full_name": format!("acme/{name}"),
                "html_url": format!("http://localhost:3000/acme/{name}"),
                "clone_url": format!("http://localhost:3000/acme/{name}.git"),
                "default_branch": "main"
            },
            "sender": user(1, "maria"),
            "commit_id": ""
        })
    }

    /// A signed delivery of an event about the issue.
    pub fn delivery(&self, action: &str) -> Delivery {
        let event_type = match action {
            "assigned" | "unassigned" => "issue_assign",
            _ => "issues",
        };
        Delivery::signed(&self.payload(action), event_type)
    }
}
