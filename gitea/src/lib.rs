//! A client of Gitea's API, and nothing else.
//!
//! Each answer is read as a stream and within a limit, and what nobody asks for is not kept. Types
//! are tolerant: fields that Gitea leaves out or sets to `null` are accepted, and unknown ones
//! ignored. Nothing is repeated by itself: an error says what happened, and its receiver decides.
//!
//! *Architecture invariant:* the token goes to the origin of `GITEA_URL` alone, and never into an
//! error, a span, or what `Debug` prints.

mod address;
mod answer;
mod budget;
mod client;
mod connection;
mod error;
mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hooks;
mod issues;
mod json_values;
mod observer;
mod options;
mod refusal;
mod repositories;
mod server;
mod timeline;
mod times;
mod users;

#[cfg(test)]
mod responder;

pub use self::{
    answer::Answer,
    client::Client,
    error::{ApiError, ClientError, Unreadable},
    hooks::{ContentType, Hook, HookEdit, HookScope, NewHook},
    issues::{
        BODY_LIMIT, Issue, IssueLine, IssueQuery, IssueState, PageInfo, RepositoryRef, StateFilter,
    },
    observer::{NoObserver, Observer, Outcome},
    options::{Options, Token},
    repositories::Repository,
    server::Limits,
    timeline::{TIMELINE_LIMIT, TimelineEntry, TimelineKind},
    users::{Account, User},
};
