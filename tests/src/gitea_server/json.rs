//! What there is, in the API's JSON: the fields of Gitea 1.27 in their order.

use contract::timestamp::Timestamp;
use serde_json::{Value, json};

use super::{
    access::Viewer,
    hooks::Hook,
    world::{Account, Entry, Issue, Repository, What, World},
};

/// How much of an account is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// To an admin, and to oneself.
    All,
    /// To somebody who is signed in.
    WithEmail,
    /// To anybody.
    Public,
}

impl World {
    /// An account as the viewer sees it.
    pub fn user_json(&self, id: i64, viewer: &Viewer) -> String {
        self.account_json(
            id,
            match viewer.user {
                Some(user) if user.is_admin || user.id == id => Shown::All,
                Some(_) => Shown::WithEmail,
                None => Shown::Public,
            },
        )
    }

    /// An account as anybody sees it. So it is in lists of assignees, and in timelines.
    fn public_json(&self, id: i64) -> String {
        self.account_json(id, Shown::Public)
    }

    fn account_json(&self, id: i64, shown: Shown) -> String {
        let ghost;
        let account = match self.accounts.get(&id) {
            Some(account) => account,
            // In place of somebody who was deleted.
            None => {
                ghost = Account {
                    id: -1,
                    login: "Ghost".into(),
                    is_admin: false,
                    is_organization: false,
                    created: 0,
                    members: Default::default(),
                };
                &ghost
            }
        };
        let Account { id, login, .. } = account;
        let (root, created) = (&self.root_url, time(account.created));
        let all = shown == Shown::All && !account.is_organization;
        let email = match shown {
            _ if account.is_organization => String::new(),
            Shown::Public => format!("{id}+{login}@noreply.localhost"),
            Shown::All | Shown::WithEmail => format!("{login}@example.org"),
        };
        let is_admin = all && account.is_admin;
        let last_login = if all { "1970-01-01T00:00:00Z" } else { "0001-01-01T00:00:00Z" };
        format!(
            r#"{{"id":{id},"login":"{login}","login_name":"","source_id":0,"full_name":"","email":"{email}","avatar_url":"{root}/avatars/{id:032x}","html_url":"{root}/{login}","language":"","is_admin":{is_admin},"last_login":"{last_login}","created":"{created}","restricted":false,"active":{all},"prohibit_login":false,"location":"","website":"","description":"","visibility":"public","followers_count":0,"following_count":0,"starred_repos_count":0,"username":"{login}"}}"#
        )
    }

    /// A repository as the viewer sees it.
    pub fn repository_json(&self, repository: &Repository, viewer: &Viewer) -> String {
        let Repository { id, name, private, empty, has_issues, .. } = repository;
        let (root, full) = (&self.root_url, self.full_name(repository));
        let owner = self.user_json(repository.owner, viewer);
        let created = time(repository.created);
        let open = repository.issues.values().filter(|id| self.issues[id].closed.is_none()).count();
        let admin = viewer.administers(self, repository);
        let branches = u8::from(!empty);
        format!(
            r#"{{"id":{id},"owner":{owner},"name":"{name}","full_name":"{full}","description":"","empty":{empty},"private":{private},"fork":false,"template":false,"mirror":false,"size":26,"language":"","languages_url":"{root}/api/v1/repos/{full}/languages","html_url":"{root}/{full}","url":"{root}/api/v1/repos/{full}","link":"","ssh_url":"git@localhost:{full}.git","clone_url":"{root}/{full}.git","original_url":"","website":"","stars_count":0,"forks_count":0,"watchers_count":1,"branch_count":{branches},"open_issues_count":{open},"open_pr_counter":0,"release_counter":0,"default_branch":"main","archived":false,"created_at":"{created}","updated_at":"{created}","archived_at":"1970-01-01T00:00:00Z","permissions":{{"admin":{admin},"push":{admin},"pull":true}},"has_code":true,"has_issues":{has_issues},"internal_tracker":{{"enable_time_tracker":false,"allow_only_contributors_to_track_time":true,"enable_issue_dependencies":true}},"has_wiki":true,"has_pull_requests":true,"has_projects":true,"projects_mode":"all","has_releases":true,"has_packages":true,"has_actions":true,"ignore_whitespace_conflicts":false,"allow_merge_commits":true,"allow_rebase":true,"allow_rebase_explicit":true,"allow_squash_merge":true,"allow_fast_forward_only_merge":true,"allow_rebase_update":true,"allow_manual_merge":false,"autodetect_manual_merge":false,"default_delete_branch_after_merge":false,"default_merge_style":"merge","default_allow_maintainer_edit":true,"avatar_url":"","internal":false,"mirror_interval":"","object_format_name":"sha1","mirror_updated":"0001-01-01T00:00:00Z","topics":[],"licenses":[]}}"#
        )
    }

    /// An issue as the viewer sees it.
    pub fn issue_json(&self, issue: &Issue, viewer: &Viewer) -> String {
        let Issue { id, number, .. } = issue;
        let repository = &self.repositories[&issue.repository];
        let (root, full) = (&self.root_url, self.full_name(repository));
        let (repository_id, name) = (repository.id, &repository.name);
        let owner = &self.accounts[&repository.owner].login;
        let author = self.user_json(issue.author, viewer);
        let (title, body) = (text(&issue.title()), text(&issue.body()));
        let labels: Vec<String> = issue.labels.iter().map(|l| self.label_json(l, &full)).collect();
        let labels = labels.join(",");
        let assignees: Vec<String> =
            issue.assignees.iter().map(|user| self.public_json(*user)).collect();
        let first = assignees.first().map_or("null", String::as_str);
        let assignees = match assignees.is_empty() {
            true => "null".to_owned(),
            false => format!("[{}]", assignees.join(",")),
        };
        let state = issue.state();
        let (created, updated) = (time(issue.created), time(issue.updated));
        let closed = issue.closed.map_or("null".into(), |at| format!("\"{}\"", time(at)));
        format!(
            r#"{{"id":{id},"url":"{root}/api/v1/repos/{full}/issues/{number}","html_url":"{root}/{full}/issues/{number}","number":{number},"user":{author},"original_author":"","original_author_id":0,"title":{title},"body":{body},"ref":"","assets":[],"labels":[{labels}],"milestone":null,"projects":null,"assignee":{first},"assignees":{assignees},"state":"{state}","is_locked":false,"comments":0,"created_at":"{created}","updated_at":"{updated}","closed_at":{closed},"due_date":null,"time_estimate":0,"pull_request":null,"repository":{{"id":{repository_id},"name":"{name}","owner":"{owner}","full_name":"{full}"}},"pin_order":0,"content_version":0}}"#
        )
    }

    fn label_json(&self, name: &str, full: &str) -> String {
        let (root, label) = (&self.root_url, text(name));
        format!(
            r#"{{"id":1,"name":{label},"exclusive":false,"is_archived":false,"color":"ee0701","description":"","url":"{root}/api/v1/repos/{full}/labels/1"}}"#
        )
    }

    /// An entry of an issue's timeline.
    pub fn entry_json(&self, issue: &Issue, entry: &Entry) -> String {
        let (root, full) = (&self.root_url, self.full_name(&self.repositories[&issue.repository]));
        let page = format!("{root}/{full}/issues/{}", issue.number);
        let (id, user, at) = (entry.id, self.public_json(entry.by), time(entry.at));
        let (mut old, mut new) = (text(""), text(""));
        let (mut body, mut label, mut assignee) = ("", "null".to_owned(), "null".to_owned());
        let kind = match &entry.what {
            What::Assigned(user) | What::Unassigned(user) => {
                assignee = self.public_json(*user);
                "assignees"
            }
            What::Closed => "close",
            What::Reopened => "reopen",
            What::Labelled(name) => {
                (body, label) = ("1", self.label_json(name, &full));
                "label"
            }
            What::Title { old: from, new: to } => {
                (old, new) = (text(from), text(to));
                "change_title"
            }
        };
        let removed = matches!(entry.what, What::Unassigned(_));
        format!(
            r#"{{"id":{id},"type":"{kind}","html_url":"{page}#issuecomment-{id}","pull_request_url":"","issue_url":"{page}","user":{user},"body":"{body}","created_at":"{at}","updated_at":"{at}","old_project_id":0,"project_id":0,"old_milestone":null,"milestone":null,"tracked_time":null,"old_title":{old},"new_title":{new},"old_ref":"","new_ref":"","ref_issue":null,"ref_comment":null,"ref_action":"none","ref_commit_sha":"","review_id":0,"label":{label},"assignee":{assignee},"assignee_team":null,"removed_assignee":{removed},"resolve_doer":null,"dependent_issue":null}}"#
        )
    }

    /// The payload of an event about an issue, laid out as Gitea does.
    pub fn payload(&self, action: &str, issue: &Issue, by: i64, changes: Option<Value>) -> Vec<u8> {
        let reader = Viewer::reader(self.accounts.get(&by));
        let parsed = |json: &str| -> Value { serde_json::from_str(json).expect("our own JSON") };
        let mut payload = json!({ "action": action, "number": issue.number });
        if let Some(changes) = changes {
            payload["changes"] = changes;
        }
        payload["issue"] = parsed(&self.issue_json(issue, &reader));
        let repository = &self.repositories[&issue.repository];
        payload["repository"] = parsed(&self.repository_json(repository, &reader));
        payload["sender"] = parsed(&self.public_json(by));
        payload["commit_id"] = "".into();
        serde_json::to_vec_pretty(&payload).expect("JSON")
    }

    /// The payload of the push that a hook's test sends.
    pub fn push_payload(&self, repository: &Repository, by: &Account) -> Vec<u8> {
        let parsed = |json: &str| -> Value { serde_json::from_str(json).expect("our own JSON") };
        let (id, full) = ("f0e910de9560c64c51269c3a19f9e02b73d87b5d", self.full_name(repository));
        let person = json!({
            "name": by.login, "email": format!("{}@example.org", by.login), "username": by.login
        });
        let commit = json!({
            "id": id,
            "message": "Initial commit\n",
            "url": format!("{}/{full}/commit/{id}", self.root_url),
            "author": person,
            "committer": person,
            "verification": null,
            "timestamp": time(repository.created),
            "added": null,
            "removed": null,
            "modified": null
        });
        let user = parsed(&self.public_json(by.id));
        let payload = json!({
            "ref": "refs/heads/main",
            "before": id,
            "after": id,
            "compare_url": format!("{}/{full}/compare/{id}...{id}", self.root_url),
            "commits": [commit],
            "total_commits": 1,
            "head_commit": commit,
            "repository": parsed(&self.repository_json(repository, &Viewer::reader(Some(by)))),
            "pusher": user,
            "sender": user
        });
        serde_json::to_vec_pretty(&payload).expect("JSON")
    }
}

/// A hook. Its secret is never shown.
pub(super) fn hook(hook: &Hook) -> String {
    json!({
        "id": hook.id,
        "name": "",
        "type": hook.kind,
        "branch_filter": hook.branch_filter,
        "config": { "content_type": hook.content_type, "url": hook.url },
        "events": hook.events,
        "authorization_header": hook.authorization_header,
        "active": hook.active,
        "updated_at": time(hook.updated),
        "created_at": time(hook.created),
    })
    .to_string()
}

/// A time in seconds since 1970 as Gitea writes it.
fn time(seconds: i64) -> String {
    Timestamp::from_unix_micros(seconds * 1_000_000).to_string()
}

fn text(text: &str) -> String {
    serde_json::to_string(text).expect("a text")
}
