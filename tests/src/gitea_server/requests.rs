//! What was requested: how often, how much at once, with which token.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use axum::http::Method;

use super::{GiteaServer, lock};

/// So many of the last requests are kept.
const KEPT: usize = 10_000;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `/version`
    Version,
    /// `/settings/api`
    Settings,
    /// `/user`
    User,
    /// `/repos/issues/search`
    Search,
    /// `/repos/{owner}/{repo}/issues`
    RepositoryIssues,
    /// `/repos/{owner}/{repo}/issues/{number}`
    Issue,
    /// `/repos/{owner}/{repo}/issues/{number}/timeline`
    Timeline,
    /// `/repos/{owner}/{repo}`
    Repository,
    /// `/repositories/{id}`
    RepositoryById,
    /// `/orgs/{owner}/repos`, `/users/{owner}/repos`
    RepositoriesOf,
    /// Hooks of any owner, and their tests.
    Hooks,
    /// Something that this server does not have.
    Unknown,
}

/// A request that has arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it asks for.
    pub kind: Kind,
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: String,
    /// The name of its token, `unknown` if Gitea has no such token.
    pub token: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Requests(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    of_kind: BTreeMap<Kind, u64>,
    last: VecDeque<Seen>,
    under_way: usize,
    most_at_once: usize,
}

/// A request that is not yet answered.
pub(super) struct UnderWay(Arc<Requests>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.0.0).under_way -= 1;
    }
}

impl Requests {
    pub fn begin(self: &Arc<Self>, seen: Seen) -> UnderWay {
        let mut counts = lock(&self.0);
        *counts.of_kind.entry(seen.kind).or_default() += 1;
        counts.under_way += 1;
        counts.most_at_once = counts.most_at_once.max(counts.under_way);
        if counts.last.len() == KEPT {
            counts.last.pop_front();
        }
        counts.last.push_back(seen);
        UnderWay(Arc::clone(self))
    }
}

impl GiteaServer {
    /// Number of requests so far, of any kind.
    pub fn requests(&self) -> u64 {
        lock(&self.shared.requests.0).of_kind.values().sum()
    }

    /// Number of requests of a kind so far.
    pub fn requests_of(&self, kind: Kind) -> u64 {
        lock(&self.shared.requests.0).of_kind.get(&kind).copied().unwrap_or_default()
    }

    /// The last requests, the oldest first. 10,000 are kept.
    pub fn last_requests(&self) -> Vec<Seen> {
        lock(&self.shared.requests.0).last.iter().cloned().collect()
    }

    /// Number of requests that have no answer yet.
    pub fn requests_under_way(&self) -> usize {
        lock(&self.shared.requests.0).under_way
    }

    /// The most requests that were without an answer at once.
    pub fn most_requests_at_once(&self) -> usize {
        lock(&self.shared.requests.0).most_at_once
    }

    /// Counts anew from here.
    pub fn forget_requests(&self) {
        let mut counts = lock(&self.shared.requests.0);
        let under_way = counts.under_way;
        *counts = Counts { under_way, most_at_once: under_way, ..Counts::default() };
    }
}
