//! Builds and signs deliveries like those of Gitea 1.27, for `coordinator send`.

use anyhow::{Context, Result};
use contract::{event::State, timestamp::Timestamp};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use service::secret::Secret;
use sha2::Sha256;
use uuid::Uuid;

/// The recorded payload of an issue without assignees.
const TEMPLATE: &str = include_str!("delivery_template.json");
/// Owner and name of the template's repository.
const TEMPLATE_REPOSITORY: &str = "acme/widgets";
/// Title of the template's issue.
pub const TEMPLATE_TITLE: &str = "Login page returns 500";
const GITEA_URL: &str = "http://localhost:3000";

/// One HTTP request to ingest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its id, as in `X-Gitea-Delivery`.
    pub id: Uuid,
    /// All headers except those that an HTTP client sets itself.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// How the body holds the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// As plain JSON.
    Json,
    /// As the field `payload` of a form.
    Form,
}

impl Delivery {
    /// Signs a payload and wraps it as Gitea does. `action` is that of an issue event.
    pub fn sign(
        id: Uuid,
        action: &str,
        payload: &[u8],
        content_type: ContentType,
        secret: &Secret,
    ) -> Self {
        let event_type = event_type(action).to_owned();
        let signature = signature(payload, secret);
        let (content_type, body) = match content_type {
            ContentType::Json => ("application/json", payload.to_vec()),
            ContentType::Form => {
                let encoded: String = form_urlencoded::byte_serialize(payload).collect();
                ("application/x-www-form-urlencoded", format!("payload={encoded}").into_bytes())
            }
        };
        let target = "repository".to_owned();
        let headers = vec![
            ("Content-Type", content_type.to_owned()),
            ("X-GitHub-Delivery", id.to_string()),
            ("X-GitHub-Event", "issues".to_owned()),
            ("X-GitHub-Event-Type", event_type.clone()),
            ("X-GitHub-Hook-Installation-Target-Type", target.clone()),
            ("X-Gitea-Delivery", id.to_string()),
            ("X-Gitea-Event", "issues".to_owned()),
            ("X-Gitea-Event-Type", event_type.clone()),
            ("X-Gitea-Hook-Installation-Target-Type", target),
            ("X-Gitea-Signature", signature.clone()),
            ("X-Gogs-Delivery", id.to_string()),
            ("X-Gogs-Event", "issues".to_owned()),
            ("X-Gogs-Event-Type", event_type),
            ("X-Gogs-Signature", signature.clone()),
            ("X-Hub-Signature-256", format!("sha256={signature}")),
        ];
        Self { id, headers, body }
    }
}

/// The value of Gitea's header `X-Gitea-Event-Type` for an issue action.
fn event_type(action: &str) -> &'static str {
    match action {
        "assigned" | "unassigned" => "issue_assign",
        "label_updated" | "label_cleared" => "issue_label",
        "milestoned" | "demilestoned" => "issue_milestone",
        _ => "issues",
    }
}

fn signature(payload: &[u8], secret: &Secret) -> String {
    // HMAC takes a key of any length (RFC 2104), so the error cannot occur.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose())
        .unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(payload);
    hex::encode(mac.finalize().into_bytes())
}

/// An issue event, from which a payload is built.
#[derive(Clone, Debug)]
pub struct IssueEvent {
    /// Gitea's action: `assigned`, `closed`, …
    pub action: String,
    /// Login of the repository's owner.
    pub owner: String,
    /// Name of the repository.
    pub repository: String,
    /// Gitea's id of the repository: with the number it identifies the issue.
    pub repository_id: i64,
    /// Number of the issue.
    pub number: u64,
    /// Its title.
    pub title: String,
    /// Logins assigned after the event.
    pub assignees: Vec<String>,
    /// Its state after the event.
    pub state: State,
    /// Login of the user who did it.
    pub sender: String,
    /// Time of the event. Gitea sends it to the second.
    pub updated_at: Timestamp,
}

impl IssueEvent {
    /// The payload, laid out as Gitea does.
    ///
    /// # Errors
    /// Never with the template that is compiled in.
    pub fn payload(&self) -> Result<Vec<u8>> {
        let mut payload: Value =
            serde_json::from_str(TEMPLATE).context("read the template of a delivery")?;
        let full_name = format!("{}/{}", self.owner, self.repository);
        replace_in_strings(&mut payload, TEMPLATE_REPOSITORY, &full_name);
        let user_template = payload["sender"].clone();
        let user = |login: &str| user(&user_template, login);
        let updated_at = whole_seconds(self.updated_at);

        payload["action"] = json!(self.action);
        payload["number"] = json!(self.number);
        payload["sender"] = user(&self.sender);
        if self.action == "edited" {
            payload["changes"] = json!({
                "title": { "from": TEMPLATE_TITLE }, "added_labels": null, "removed_labels": null
            });
        }
        let assignees: Vec<Value> = self.assignees.iter().map(|login| user(login)).collect();
        let issue = &mut payload["issue"];
        issue["id"] = json!(id_of(&format!("{}#{}", self.repository_id, self.number)));
        issue["number"] = json!(self.number);
        issue["url"] =
            json!(format!("{GITEA_URL}/api/v1/repos/{full_name}/issues/{}", self.number));
        issue["html_url"] = json!(format!("{GITEA_URL}/{full_name}/issues/{}", self.number));
        issue["title"] = json!(self.title);
        issue["state"] = json!(self.state);
        issue["updated_at"] = json!(updated_at);
        if self.state == State::Closed {
            issue["closed_at"] = json!(updated_at);
        }
        issue["assignee"] = assignees.first().cloned().unwrap_or_default();
        // Gitea writes null for an empty list.
        issue["assignees"] = if assignees.is_empty() { Value::Null } else { assignees.into() };
        issue["repository"]["id"] = json!(self.repository_id);
        issue["repository"]["name"] = json!(self.repository);
        issue["repository"]["owner"] = json!(self.owner);

        let repository = &mut payload["repository"];
        repository["id"] = json!(self.repository_id);
        repository["name"] = json!(self.repository);
        repository["owner"] = user(&self.owner);
        Ok(serde_json::to_vec_pretty(&payload)?)
    }
}

/// An id that is always the same for a name: the id in the recordings, else a
/// positive hash that is far above those.
pub fn id_of(name: &str) -> i64 {
    match name {
        "maria" | "acme/widgets" | "1#1" => 1,
        "tom" => 2,
        "bot" => 3,
        "acme" => 5,
        _ => {
            let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            1000 + i64::from(hash)
        }
    }
}

fn user(template: &Value, login: &str) -> Value {
    let id = id_of(login);
    let mut user = template.clone();
    user["id"] = json!(id);
    user["login"] = json!(login);
    user["username"] = json!(login);
    user["email"] = json!(format!("{id}+{login}@noreply.localhost"));
    user["html_url"] = json!(format!("{GITEA_URL}/{login}"));
    user
}

fn whole_seconds(time: Timestamp) -> String {
    Timestamp::from_unix_micros(time.unix_micros() / 1_000_000 * 1_000_000).to_string()
}

fn replace_in_strings(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) => *text = text.replace(from, to),
        Value::Array(values) => {
            values.iter_mut().for_each(|value| replace_in_strings(value, from, to));
        }
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| replace_in_strings(value, from, to));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> IssueEvent {
        IssueEvent {
            action: "assigned".into(),
            owner: "acme".into(),
            repository: "widgets".into(),
            repository_id: 1,
            number: 1,
            title: TEMPLATE_TITLE.into(),
            assignees: vec!["bot".into()],
            state: State::Open,
            sender: "maria".into(),
            updated_at: Timestamp::parse("2026-11-23T23:57:18.9Z").expect("time"),
        }
    }

    fn payload(event: &IssueEvent) -> Value {
        serde_json::from_slice(&event.payload().expect("payload")).expect("JSON")
    }

    /// Covers what the pipeline reads of a payload, and the layout.
    #[test]
    fn a_payload_is_that_of_the_recording_it_is_made_after() {
        let recorded = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures/gitea-1.27/0002-issues-assigned.body");
        let recorded = std::fs::read_to_string(recorded).expect("the recording");
        let recorded: Value =
            serde_json::from_str(&recorded.replace(":3127", ":3000")).expect("JSON");
        let mut made = payload(&event());
        // Built accounts do not have the avatars, emails and dates of the recording.
        for user in ["/issue/assignee", "/issue/assignees/0", "/repository/owner"] {
            for field in ["avatar_url", "email", "created"] {
                let original = recorded.pointer(&format!("{user}/{field}")).cloned();
                *made.pointer_mut(&format!("{user}/{field}")).expect(field) =
                    original.expect(field);
            }
        }
        assert_eq!(made["issue"], recorded["issue"]);
        assert_eq!(made["repository"], recorded["repository"]);
        assert_eq!(made, recorded);
    }

    #[test]
    fn everything_that_is_asked_for_is_in_it() {
        let made = payload(&IssueEvent {
            action: "closed".into(),
            owner: "li-wei".into(),
            repository: "docs.site".into(),
            repository_id: 7,
            number: 12,
            title: "T".into(),
            assignees: Vec::new(),
            state: State::Closed,
            sender: "tom".into(),
            ..event()
        });
        for (pointer, expected) in [
            ("/action", json!("closed")),
            ("/number", json!(12)),
            ("/issue/number", json!(12)),
            ("/issue/title", json!("T")),
            ("/issue/state", json!("closed")),
            ("/issue/assignee", Value::Null),
            ("/issue/assignees", Value::Null),
            ("/issue/closed_at", json!("2026-11-23T23:57:18Z")),
            ("/issue/updated_at", json!("2026-11-23T23:57:18Z")),
            ("/issue/html_url", json!("http://localhost:3000/li-wei/docs.site/issues/12")),
            ("/issue/repository/full_name", json!("li-wei/docs.site")),
            ("/repository/id", json!(7)),
            ("/repository/owner/login", json!("li-wei")),
            ("/repository/clone_url", json!("http://localhost:3000/li-wei/docs.site.git")),
            ("/sender/login", json!("tom")),
        ] {
            assert_eq!(made.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert_eq!(made.get("changes"), None);
        let edited = payload(&IssueEvent { action: "edited".into(), ..event() });
        assert_eq!(edited["changes"]["title"]["from"], TEMPLATE_TITLE);
    }

    /// RFC 4231, test case 2.
    #[test]
    fn the_signature_is_hmac_sha256_of_the_payload_whatever_the_content_type() {
        let secret = Secret::new("Jefe");
        let payload = b"what do ya want for nothing?";
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        for (content_type, body) in [
            (ContentType::Json, "what do ya want for nothing?"),
            (ContentType::Form, "payload=what+do+ya+want+for+nothing%3F"),
        ] {
            let delivery = Delivery::sign(Uuid::nil(), "assigned", payload, content_type, &secret);
            assert_eq!(String::from_utf8_lossy(&delivery.body), body);
            let header = |name| delivery.headers.iter().find(|h| h.0 == name).map(|h| &*h.1);
            assert_eq!(header("X-Gitea-Signature"), Some(expected));
            assert_eq!(header("X-Hub-Signature-256"), Some(&*format!("sha256={expected}")));
            assert_eq!(header("X-Gitea-Event-Type"), Some("issue_assign"));
        }
    }

    #[test]
    fn a_name_has_one_id_and_another_name_another() {
        assert_eq!((id_of("acme/widgets"), id_of("bot")), (1, 3));
        assert!(id_of("acme/docs") > 1000);
        assert_ne!(id_of("acme/docs"), id_of("acme/docs.site"));
    }
}
