//! What Gitea's users do, and what happens behind their backs. A user is named by login,
//! a repository by id, an issue by repository and number; what is named must be there.

use serde_json::json;

use super::{
    GiteaServer,
    world::{Body, Entry, IdOf, Issue, Title, What, World},
};

/// An issue that somebody makes.
#[derive(Clone, Debug, Default)]
pub struct NewIssue<'a> {
    /// Its title.
    pub title: &'a str,
    /// Its text.
    pub body: &'a str,
    /// Logins of those assigned.
    pub assignees: &'a [&'a str],
    /// Names of its labels.
    pub labels: &'a [&'a str],
}

/// Many issues that were there before: without webhooks, with generated text.
#[derive(Clone, Debug)]
pub struct Many<'a> {
    /// Login of the repositories' owner.
    pub owner: &'a str,
    /// Number of repositories, named `many-1` and so on.
    pub repositories: usize,
    /// Number of issues, dealt out to the repositories one by one.
    pub issues: usize,
    /// Login of who made and assigned them.
    pub author: &'a str,
    /// Login of who is assigned to every so many of them, if anybody.
    pub assigned: Option<(&'a str, usize)>,
    /// Every so many of them are closed; none if it is 0.
    pub closed_every: usize,
    /// When the first one was made, in seconds since 1970.
    pub first: i64,
    /// Seconds between one and the next.
    pub apart: i64,
    /// Bytes of each body.
    pub body_bytes: usize,
}

/// Accounts and repositories.
impl GiteaServer {
    /// Adds a user. Returns its id.
    pub fn add_user(&self, login: &str) -> i64 {
        self.change(|world| world.add_account(login, false, false))
    }

    /// Adds a user who is an admin of the site. Returns its id.
    pub fn add_admin(&self, login: &str) -> i64 {
        self.change(|world| world.add_account(login, true, false))
    }

    /// Makes a user an admin of the site, or one no more.
    pub fn set_admin(&self, login: &str, is_admin: bool) {
        self.change(|world| {
            let id = world.id_of(login);
            world.accounts.get_mut(&id).expect("an account").is_admin = is_admin;
        });
    }

    /// Adds an organisation with these owners. Returns its id.
    pub fn add_organization(&self, login: &str, owners: &[&str]) -> i64 {
        self.change(|world| {
            let id = world.add_account(login, false, true);
            let members = owners.iter().map(|owner| world.id_of(owner)).collect();
            world.accounts.get_mut(&id).expect("just added").members = members;
            id
        })
    }

    /// Renames a user or an organisation. The old login is answered with 307.
    pub fn rename_user(&self, login: &str, new: &str) {
        self.change(|world| {
            let id = world.id_of(login);
            world.rename_account(id, new);
        });
    }

    /// Deletes a user. Their assignments end without a word: no event, no timeline entry,
    /// no update. What they wrote becomes the Ghost's.
    pub fn delete_user(&self, login: &str) {
        self.change(|world| {
            let id = world.id_of(login);
            for issue in world.issues.values_mut() {
                issue.assignees.retain(|assignee| *assignee != id);
            }
            for repository in world.repositories.values_mut() {
                repository.collaborators.remove(&id);
            }
            world.remove_account(id);
        });
    }

    /// Adds a public repository with a commit. Returns its id.
    pub fn add_repository(&self, owner: &str, name: &str) -> i64 {
        self.change(|world| {
            let owner = world.id_of(owner);
            world.add_repository(owner, name, false)
        })
    }

    /// Makes a repository private, or public.
    pub fn set_private(&self, repository: i64, private: bool) {
        self.change(|world| world.repository(repository).private = private);
    }

    /// Makes a repository one without a commit, or with one.
    pub fn set_empty(&self, repository: i64, empty: bool) {
        self.change(|world| world.repository(repository).empty = empty);
    }

    /// Switches a repository's issues off, or on again. They are kept, and a search still lists them.
    pub fn set_has_issues(&self, repository: i64, has_issues: bool) {
        self.change(|world| world.repository(repository).has_issues = has_issues);
    }

    /// Lets a user take part in a repository.
    pub fn add_collaborator(&self, repository: i64, login: &str) {
        self.change(|world| {
            let id = world.id_of(login);
            world.repository(repository).collaborators.insert(id);
        });
    }

    /// Ends a user's part in a repository. Their assignments there end without a word: no
    /// event, no timeline entry, no update.
    pub fn remove_collaborator(&self, repository: i64, login: &str) {
        self.change(|world| {
            let id = world.id_of(login);
            world.repository(repository).collaborators.remove(&id);
            let issues = world.issues.values_mut().filter(|issue| issue.repository == repository);
            issues.for_each(|issue| issue.assignees.retain(|assignee| *assignee != id));
        });
    }

    /// Renames a repository. The old name is answered with 301.
    pub fn rename_repository(&self, repository: i64, name: &str) {
        self.change(|world| {
            let owner = world.repository(repository).owner;
            world.move_repository(repository, owner, name);
        });
    }

    /// Gives a repository to another owner. The old name is answered with 301.
    pub fn transfer(&self, repository: i64, owner: &str) {
        self.change(|world| {
            let (owner, name) = (world.id_of(owner), world.repository(repository).name.clone());
            world.move_repository(repository, owner, &name);
        });
    }

    /// Deletes a repository with all in it. Gitea sends no event about its issues.
    pub fn delete_repository(&self, repository: i64) {
        self.change(|world| world.remove_repository(repository));
    }
}

/// Issues.
impl GiteaServer {
    /// Makes an issue. Returns its number.
    pub fn create_issue(&self, repository: i64, by: &str, issue: &NewIssue) -> u64 {
        self.change(|world| {
            let (author, now) = (world.id_of(by), world.now());
            let ids = issue.assignees.iter().map(|login| world.id_of(login));
            let assignees: Vec<i64> = ids.collect();
            let id = world.make_issue(repository, author, now);
            world.edit(id, |made| {
                made.title = Title::Own(issue.title.into());
                made.body = Body::Own(issue.body.into());
                made.labels = issue.labels.iter().map(|label| (*label).to_owned()).collect();
                made.assignees = assignees.clone();
            });
            for user in &assignees {
                world.record(id, author, What::Assigned(*user));
            }
            world.notify("opened", id, author, None);
            for _ in &assignees {
                world.notify("assigned", id, author, None);
            }
            world.issues[&id].number
        })
    }

    /// Makes the issues. Returns the ids of their repositories.
    pub fn create_many(&self, many: &Many) -> Vec<i64> {
        self.change(|world| {
            let (owner, author) = (world.id_of(many.owner), world.id_of(many.author));
            let assigned = many.assigned.map(|(login, every)| (world.id_of(login), every));
            let repositories: Vec<i64> = (1..=many.repositories)
                .map(|n| world.add_repository(owner, &format!("many-{n}"), false))
                .collect();
            for n in 0..many.issues {
                let repository = repositories[n % repositories.len()];
                let at = many.first + many.apart * n as i64;
                let id = world.make_issue(repository, author, at);
                let issue = world.issues.get_mut(&id).expect("just made");
                issue.body = Body::Generated(many.body_bytes);
                issue.closed = many.is_closed(n).then_some(at);
                if let Some((user, every)) = assigned
                    && n.is_multiple_of(every)
                {
                    issue.assignees.push(user);
                    world.record_at(id, author, at, What::Assigned(user));
                }
            }
            repositories
        })
    }

    /// Changes an issue's title.
    pub fn edit_title(&self, repository: i64, number: u64, title: &str, by: &str) {
        self.change(|world| {
            let (id, by) = (world.issue_id(repository, number), world.id_of(by));
            let old = world.issues[&id].title();
            world.edit(id, |issue| issue.title = Title::Own(title.into()));
            world.touch(id);
            let what = What::Title { old: old.as_str().into(), new: title.into() };
            world.record(id, by, what);
            let changes =
                json!({ "title": { "from": old }, "added_labels": null, "removed_labels": null });
            world.notify("edited", id, by, Some(changes));
        });
    }

    /// Makes an issue's body one of so many bytes, without a word.
    pub fn set_body_bytes(&self, repository: i64, number: u64, bytes: usize) {
        self.change(|world| {
            let id = world.issue_id(repository, number);
            world.edit(id, |issue| issue.body = Body::Generated(bytes));
        });
    }

    /// Puts a label on an issue.
    pub fn label(&self, repository: i64, number: u64, label: &str, by: &str) {
        self.change(|world| {
            let (id, by) = (world.issue_id(repository, number), world.id_of(by));
            world.edit(id, |issue| issue.labels.push(label.to_owned()));
            world.touch(id);
            world.record(id, by, What::Labelled(label.into()));
            world.notify("label_updated", id, by, None);
        });
    }

    /// Assigns somebody. Nothing happens if they are assigned already.
    pub fn assign(&self, repository: i64, number: u64, login: &str, by: &str) {
        self.reassign(repository, number, by, |assignees, user| {
            if !assignees.contains(&user(login)) {
                assignees.push(user(login));
            }
        });
    }

    /// Ends somebody's assignment. Nothing happens if they are not assigned.
    pub fn unassign(&self, repository: i64, number: u64, login: &str, by: &str) {
        self.reassign(repository, number, by, |assignees, user| {
            assignees.retain(|assignee| *assignee != user(login));
        });
    }

    /// Assigns these and nobody else, in one request. Every change is an event, and all of
    /// them have the final list, as since 2026-06.
    pub fn set_assignees(&self, repository: i64, number: u64, logins: &[&str], by: &str) {
        self.reassign(repository, number, by, |assignees, user| {
            *assignees = logins.iter().map(|login| user(login)).collect();
        });
    }

    /// Closes an issue. Nothing happens if it is closed.
    pub fn close(&self, repository: i64, number: u64, by: &str) {
        self.change(|world| world.set_closed(repository, number, true, by));
    }

    /// Reopens an issue. Nothing happens if it is open.
    pub fn reopen(&self, repository: i64, number: u64, by: &str) {
        self.change(|world| world.set_closed(repository, number, false, by));
    }

    /// Deletes an issue.
    pub fn delete_issue(&self, repository: i64, number: u64, by: &str) {
        self.change(|world| {
            let (id, by) = (world.issue_id(repository, number), world.id_of(by));
            world.notify("deleted", id, by, None);
            world.remove_issue(id);
        });
    }

    /// Sets `updated_at` alone, in seconds since 1970, as an importer may.
    pub fn set_updated_at(&self, repository: i64, number: u64, seconds: i64) {
        self.change(|world| {
            let id = world.issue_id(repository, number);
            world.edit(id, |issue| issue.updated = seconds);
        });
    }

    /// Logins of those assigned to an issue, and whether it is open. None if it is gone.
    pub fn state_of(&self, repository: i64, number: u64) -> Option<(Vec<String>, bool)> {
        self.read(|world| {
            let id = world.repositories.get(&repository)?.issues.get(&number)?;
            let issue = &world.issues[id];
            let logins = issue.assignees.iter().map(|id| world.accounts[id].login.clone());
            Some((logins.collect(), issue.closed.is_none()))
        })
    }

    fn reassign(
        &self,
        repository: i64,
        number: u64,
        by: &str,
        change: impl FnOnce(&mut Vec<i64>, &dyn Fn(&str) -> i64),
    ) {
        self.change(|world| {
            let (id, by) = (world.issue_id(repository, number), world.id_of(by));
            let before = world.issues[&id].assignees.clone();
            let mut after = before.clone();
            change(&mut after, &|login| world.id_of(login));
            world.edit(id, |issue| issue.assignees = after.clone());
            let removed = before.iter().filter(|user| !after.contains(user));
            let added = after.iter().filter(|user| !before.contains(user));
            let changes: Vec<(What, &str)> = removed
                .map(|user| (What::Unassigned(*user), "unassigned"))
                .chain(added.map(|user| (What::Assigned(*user), "assigned")))
                .collect();
            if !changes.is_empty() {
                world.touch(id);
            }
            let mut actions = Vec::new();
            for (what, action) in changes {
                world.record(id, by, what);
                actions.push(action);
            }
            for action in actions {
                world.notify(action, id, by, None);
            }
        });
    }
}

impl Many<'_> {
    fn is_closed(&self, n: usize) -> bool {
        self.closed_every > 0 && n.is_multiple_of(self.closed_every)
    }
}

impl World {
    /// Makes an issue without a body, and returns its id.
    fn make_issue(&mut self, repository: i64, author: i64, at: i64) -> i64 {
        let id = self.next_id(IdOf::Issue);
        let of = self.repository(repository);
        of.last_number += 1;
        let number = of.last_number;
        self.add_issue(Issue {
            id,
            repository,
            number,
            author,
            title: Title::Generated,
            body: Body::Generated(0),
            assignees: Vec::new(),
            labels: Vec::new(),
            created: at,
            updated: at,
            closed: None,
            timeline: Vec::new(),
        });
        id
    }

    fn set_closed(&mut self, repository: i64, number: u64, closed: bool, by: &str) {
        let (id, by, now) = (self.issue_id(repository, number), self.id_of(by), self.now());
        if self.issues[&id].closed.is_some() == closed {
            return;
        }
        self.edit(id, |issue| issue.closed = closed.then_some(now));
        self.touch(id);
        self.record(id, by, if closed { What::Closed } else { What::Reopened });
        self.notify(if closed { "closed" } else { "reopened" }, id, by, None);
    }

    fn touch(&mut self, issue: i64) {
        let now = self.now();
        self.edit(issue, |issue| issue.updated = now);
    }

    fn record(&mut self, issue: i64, by: i64, what: What) {
        self.record_at(issue, by, self.now(), what);
    }

    fn record_at(&mut self, issue: i64, by: i64, at: i64, what: What) {
        let id = self.next_id(IdOf::TimelineEntry);
        self.edit(issue, |issue| issue.timeline.push(Entry { id, by, at, what }));
    }
}
