//! What there is in a Gitea: accounts, repositories, issues, tokens, hooks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::SystemTime,
};

use super::{access::Token, deliveries::Outgoing, hooks::Hook};

/// All of a Gitea. Times are in seconds since 1970.
#[derive(Debug)]
pub(super) struct World {
    pub root_url: String,
    /// None for this machine's clock.
    pub clock: Option<i64>,
    pub accounts: BTreeMap<i64, Account>,
    pub repositories: BTreeMap<i64, Repository>,
    /// Boxed, since a tree has room for as many again.
    pub issues: BTreeMap<i64, Box<Issue>>,
    /// Time of the last update and id of every issue.
    pub by_update: BTreeSet<(i64, i64)>,
    /// Tokens by their secret.
    pub tokens: HashMap<String, Token>,
    pub hooks: BTreeMap<i64, Hook>,
    /// Whether `GET /admin/hooks` shows what there is.
    pub lists_site_hooks: bool,
    /// Address and secret for all events of all repositories.
    pub receiver: Option<(String, String)>,
    /// Whether changes are delivered at all.
    pub delivers: bool,
    /// What is to be delivered and not yet queued.
    pub outbox: Vec<Outgoing>,
    logins: HashMap<String, i64>,
    old_logins: HashMap<String, i64>,
    names: HashMap<(i64, String), i64>,
    old_names: HashMap<(i64, String), i64>,
    last_ids: HashMap<IdOf, i64>,
}

/// What has ids of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum IdOf {
    Account,
    Repository,
    Issue,
    TimelineEntry,
    Hook,
}

/// A user or an organisation.
#[derive(Debug)]
pub(super) struct Account {
    pub id: i64,
    pub login: String,
    pub is_admin: bool,
    pub is_organization: bool,
    pub created: i64,
    /// An organisation's owners.
    pub members: BTreeSet<i64>,
}

#[derive(Debug)]
pub(super) struct Repository {
    pub id: i64,
    pub owner: i64,
    pub name: String,
    pub private: bool,
    /// Without a commit.
    pub empty: bool,
    /// Whether it shows its issues.
    pub has_issues: bool,
    pub created: i64,
    pub collaborators: BTreeSet<i64>,
    /// Ids of its issues by number.
    pub issues: BTreeMap<u64, i64>,
    pub last_number: u64,
}

#[derive(Debug)]
pub(super) struct Issue {
    pub id: i64,
    pub repository: i64,
    pub number: u64,
    pub author: i64,
    pub title: Title,
    pub body: Body,
    pub assignees: Vec<i64>,
    pub labels: Vec<String>,
    pub created: i64,
    pub updated: i64,
    pub closed: Option<i64>,
    pub timeline: Vec<Entry>,
}

/// A title; one in bulk takes no memory.
#[derive(Debug)]
pub(super) enum Title {
    Own(Box<str>),
    Generated,
}

/// A body; a long one takes no memory.
#[derive(Debug)]
pub(super) enum Body {
    Own(Box<str>),
    /// Of so many bytes.
    Generated(usize),
}

/// An entry of a timeline.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: i64,
    pub by: i64,
    pub at: i64,
    pub what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Assigned(i64),
    Unassigned(i64),
    Closed,
    Reopened,
    Labelled(Box<str>),
    Title { old: Box<str>, new: Box<str> },
}

/// Where a name leads.
pub(super) enum Found<'a, T> {
    Here(&'a T),
    /// To something that has another name now.
    Moved(&'a T),
    Missing,
}

impl World {
    pub fn new(root_url: String) -> Self {
        Self {
            root_url,
            clock: None,
            accounts: BTreeMap::new(),
            repositories: BTreeMap::new(),
            issues: BTreeMap::new(),
            by_update: BTreeSet::new(),
            tokens: HashMap::new(),
            hooks: BTreeMap::new(),
            lists_site_hooks: true,
            receiver: None,
            delivers: true,
            outbox: Vec::new(),
            logins: HashMap::new(),
            old_logins: HashMap::new(),
            names: HashMap::new(),
            old_names: HashMap::new(),
            last_ids: HashMap::new(),
        }
    }

    pub fn now(&self) -> i64 {
        let since_1970 = || SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
        self.clock.unwrap_or_else(|| since_1970().as_secs() as i64)
    }

    pub fn next_id(&mut self, of: IdOf) -> i64 {
        let last = self.last_ids.entry(of).or_default();
        *last += 1;
        *last
    }

    pub fn add_account(&mut self, login: &str, is_admin: bool, is_organization: bool) -> i64 {
        assert!(!self.logins.contains_key(&key(login)), "there is a {login} already");
        let (id, created) = (self.next_id(IdOf::Account), self.now());
        let (login, members) = (login.to_owned(), BTreeSet::new());
        self.logins.insert(key(&login), id);
        let account = Account { id, login, is_admin, is_organization, created, members };
        self.accounts.insert(id, account);
        id
    }

    pub fn find_account(&self, login: &str) -> Found<'_, Account> {
        match (self.logins.get(&key(login)), self.old_logins.get(&key(login))) {
            (Some(id), _) => Found::Here(&self.accounts[id]),
            (None, Some(id)) => Found::Moved(&self.accounts[id]),
            (None, None) => Found::Missing,
        }
    }

    /// The id of an account that must be there.
    pub fn id_of(&self, login: &str) -> i64 {
        *self.logins.get(&key(login)).unwrap_or_else(|| panic!("no user {login}"))
    }

    pub fn rename_account(&mut self, id: i64, login: &str) {
        assert!(!self.logins.contains_key(&key(login)), "there is a {login} already");
        let account = self.accounts.get_mut(&id).expect("an account");
        let old = std::mem::replace(&mut account.login, login.to_owned());
        self.logins.remove(&key(&old));
        self.old_logins.insert(key(&old), id);
        self.logins.insert(key(login), id);
    }

    pub fn remove_account(&mut self, id: i64) {
        let owns = self.repositories.values().any(|repository| repository.owner == id);
        assert!(!owns, "Gitea deletes nobody who owns a repository");
        let account = self.accounts.remove(&id).expect("an account");
        self.logins.remove(&key(&account.login));
        self.old_logins.retain(|_, to| *to != id);
        self.tokens.retain(|_, token| token.user != id);
        for other in self.accounts.values_mut() {
            other.members.remove(&id);
        }
    }

    pub fn add_repository(&mut self, owner: i64, name: &str, private: bool) -> i64 {
        let (id, created) = (self.next_id(IdOf::Repository), self.now());
        let known = self.names.insert((owner, key(name)), id);
        assert_eq!(known, None, "there is a {name} already");
        let repository = Repository {
            id,
            owner,
            name: name.to_owned(),
            private,
            empty: false,
            has_issues: true,
            created,
            collaborators: BTreeSet::new(),
            issues: BTreeMap::new(),
            last_number: 0,
        };
        self.repositories.insert(id, repository);
        id
    }

    pub fn find_repository(&self, owner: i64, name: &str) -> Found<'_, Repository> {
        let key = (owner, key(name));
        match (self.names.get(&key), self.old_names.get(&key)) {
            (Some(id), _) => Found::Here(&self.repositories[id]),
            (None, Some(id)) => Found::Moved(&self.repositories[id]),
            (None, None) => Found::Missing,
        }
    }

    /// A repository that must be there.
    pub fn repository(&mut self, id: i64) -> &mut Repository {
        self.repositories.get_mut(&id).unwrap_or_else(|| panic!("no repository {id}"))
    }

    /// Renames a repository or gives it to another owner. Its old name leads to it.
    pub fn move_repository(&mut self, id: i64, owner: i64, name: &str) {
        let repository = self.repository(id);
        let old = (repository.owner, key(&repository.name));
        (repository.owner, repository.name) = (owner, name.to_owned());
        self.names.remove(&old);
        self.old_names.insert(old, id);
        let known = self.names.insert((owner, key(name)), id);
        assert_eq!(known, None, "there is a {name} already");
    }

    /// Removes a repository with its issues and hooks. Nothing leads to it any more.
    pub fn remove_repository(&mut self, id: i64) {
        let issues: Vec<i64> = self.repository(id).issues.values().copied().collect();
        issues.into_iter().for_each(|issue| self.remove_issue(issue));
        self.names.retain(|_, to| *to != id);
        self.old_names.retain(|_, to| *to != id);
        self.hooks.retain(|_, hook| !hook.is_of_repository(id));
        self.repositories.remove(&id);
    }

    /// `owner/name` of a repository.
    pub fn full_name(&self, repository: &Repository) -> String {
        format!("{}/{}", self.accounts[&repository.owner].login, repository.name)
    }

    pub fn add_issue(&mut self, issue: Issue) {
        self.repository(issue.repository).issues.insert(issue.number, issue.id);
        self.by_update.insert((issue.updated, issue.id));
        self.issues.insert(issue.id, Box::new(issue));
    }

    pub fn remove_issue(&mut self, id: i64) {
        let issue = self.issues.remove(&id).expect("an issue");
        self.by_update.remove(&(issue.updated, id));
        self.repository(issue.repository).issues.remove(&issue.number);
    }

    /// The id of an issue that must be there.
    pub fn issue_id(&mut self, repository: i64, number: u64) -> i64 {
        let id = self.repository(repository).issues.get(&number).copied();
        id.unwrap_or_else(|| panic!("no issue {number} in repository {repository}"))
    }

    /// Edits an issue. The index of updates follows.
    pub fn edit<T>(&mut self, id: i64, edit: impl FnOnce(&mut Issue) -> T) -> T {
        let issue = self.issues.get_mut(&id).expect("an issue");
        let before = issue.updated;
        let result = edit(issue);
        if issue.updated != before {
            self.by_update.remove(&(before, id));
            self.by_update.insert((issue.updated, id));
        }
        result
    }
}

impl Issue {
    pub fn title(&self) -> String {
        match &self.title {
            Title::Own(title) => title.to_string(),
            Title::Generated => format!("Issue number {}", self.number),
        }
    }

    pub fn body(&self) -> String {
        const SENTENCE: &str = "The page loads for a minute, then it is blank.\n";
        match &self.body {
            Body::Own(body) => body.to_string(),
            Body::Generated(bytes) => {
                let mut body = SENTENCE.repeat(bytes / SENTENCE.len() + 1);
                body.truncate(*bytes);
                body
            }
        }
    }

    pub fn state(&self) -> &'static str {
        if self.closed.is_some() { "closed" } else { "open" }
    }
}

/// Gitea compares names without regard to case.
fn key(name: &str) -> String {
    name.to_lowercase()
}
