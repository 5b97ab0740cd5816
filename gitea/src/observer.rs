//! How requests ended, for metrics.

use std::{fmt::Debug, time::Duration};

use strum::{EnumIter, IntoStaticStr};

/// Is told of each request.
pub trait Observer: Send + Sync + Debug {
    /// A request of `operation` ended after `took`. A redirect that is followed is a request of
    /// its own. Waiting for a place in the budget is not part of `took`.
    fn asked(&self, operation: &'static str, outcome: Outcome, took: Duration);
}

/// Observes nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn asked(&self, _: &'static str, _: Outcome, _: Duration) {}
}

/// How a request ended. As text it is a label for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// An answer that could be read.
    Ok,
    /// 404, or what stands for it.
    NotFound,
    /// A redirect, followed or not.
    Moved,
    /// 401: the token is refused.
    Unauthorized,
    /// 403: the token lacks a scope, or its user a permission.
    Forbidden,
    /// 429.
    TooMany,
    /// 5xx.
    ServerError,
    /// Another status.
    Unexpected,
    /// An answer that is not what Gitea's API answers.
    Unreadable,
    /// An answer beyond the limit.
    TooLarge,
    /// No complete answer within the deadline.
    TimedOut,
    /// No connection, or one that broke.
    Unreachable,
    /// Its asker went away before the end.
    Abandoned,
}

impl Outcome {
    /// The label for metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
