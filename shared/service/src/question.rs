//! Questions: issues that Gitea's API is to be asked about. A worker raises one where an event
//! leaves a doubt; the jobs of `sync` raise and answer them.
//!
//! There is one question an issue and lane at most, since each is the last message on its own subject. A new
//! one takes the place of the old one and is answered no sooner than that, so the events of a burst
//! end in one question.

use async_nats::jetstream::context::PublishError;
use contract::{
    envelope::{Envelope, Headers},
    event::{IssueEvent, SyncCause},
    names::{Lane, QUESTIONS, QUESTIONS_PREFIX},
    timestamp::Timestamp,
    traceparent::{TRACEPARENT, Traceparent},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::broker::{Session, refusal::Refusal};

/// An issue that Gitea's API is to be asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Gitea's id of the repository.
    pub repository_id: i64,
    /// Owner of the repository, as last seen.
    pub owner: String,
    /// Name of the repository, as last seen.
    pub repository: String,
    /// Number of the issue.
    pub number: u64,
    /// Why it is asked.
    pub cause: SyncCause,
    /// The delivery whose event raised it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raised_by: Option<String>,
    /// When Gitea first said that the issue is not there, by the clock of the worker that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Timestamp>,
}

/// Why a question could not be raised.
#[derive(Debug, Error)]
pub enum QuestionError {
    /// It cannot be written as JSON.
    #[error("encode a question")]
    Encode(#[from] serde_json::Error),
    /// The broker did not take it.
    #[error("raise a question")]
    Publish(#[from] PublishError),
}

impl Question {
    /// A question that no delivery raised, about an issue of the repository with this id, owner and name.
    pub fn new(
        (repository_id, owner, repository): (i64, &str, &str),
        number: u64,
        cause: SyncCause,
    ) -> Self {
        Self {
            repository_id,
            owner: owner.to_owned(),
            repository: repository.to_owned(),
            number,
            cause,
            raised_by: None,
            missing_since: None,
        }
    }

    /// The doubt that `event` leaves.
    pub fn doubt(event: &IssueEvent) -> Self {
        let asked_before = event.synced.as_deref();
        let raised_by = asked_before.and_then(|synced| synced.raised_by.clone());
        // An issue that was taken for gone, and of which a delivery came meanwhile, may be there. An
        // answer that shows it must not say that it is gone.
        let asked_before = asked_before.filter(|synced| synced.cause != SyncCause::Gone);
        let repository = &event.repository;
        let place = (repository.id, repository.owner.as_str(), repository.name.as_str());
        let cause = asked_before.map_or(SyncCause::Doubt, |synced| synced.cause);
        let raised_by = raised_by.or_else(|| Some(event.delivery.id.clone()));
        Self { raised_by, ..Self::new(place, event.issue.number, cause) }
    }

    /// `gitea.questions.<lane>.<repository id>.<number>`.
    pub fn subject(&self) -> String {
        let lane = self.lane().consumer();
        format!("{QUESTIONS_PREFIX}.{lane}.{}.{}", self.repository_id, self.number)
    }

    fn lane(&self) -> Lane {
        if self.cause == SyncCause::Doubt { Lane::Doubts } else { Lane::Sweeps }
    }

    /// The issue as people write it: `acme/widgets#7`.
    pub fn issue_ref(&self) -> String {
        format!("{}/{}#{}", self.owner, self.repository, self.number)
    }

    /// Raises the question, in the trace of `traceparent`. It takes the place of the issue's last one.
    ///
    /// # Errors
    /// If the broker does not confirm it.
    pub async fn raise(
        &self,
        session: &Session,
        traceparent: Option<&Traceparent>,
    ) -> Result<(), QuestionError> {
        session.publish(self.envelope(traceparent)?, QUESTIONS).await?;
        Ok(())
    }

    /// Raises the question if none waits about the issue. One that waits is asked later than this,
    /// and would be put off by a new one for as long as somebody keeps raising it.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn raise_if_none_waits(&self, session: &Session) -> Result<(), QuestionError> {
        match session.publish_after(self.envelope(None)?, QUESTIONS, 0).await {
            Err(error) if Refusal::of(&error) != Refusal::NotLast => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The message, without an id: an equal question later is another one.
    pub fn envelope(&self, traceparent: Option<&Traceparent>) -> Result<Envelope, QuestionError> {
        let mut headers = Headers::default();
        if let Some(traceparent) = traceparent {
            headers.push(TRACEPARENT, traceparent.to_string());
        }
        let payload = serde_json::to_vec(self)?;
        Ok(Envelope { subject: self.subject(), headers, payload })
    }
}

#[cfg(test)]
mod tests {
    use contract::event::{self, Synced};

    use super::*;

    #[test]
    fn a_doubt_names_its_issue_and_the_delivery_that_raised_it_also_when_it_is_raised_again() {
        let mut event = event::example();
        let question = Question::doubt(&event);
        assert_eq!(question.subject(), "gitea.questions.doubts.1.1");
        assert_eq!(
            (question.cause, question.issue_ref().as_str()),
            (SyncCause::Doubt, "acme/widgets#1")
        );
        assert_eq!(question.raised_by.as_ref(), Some(&event.delivery.id));
        event.synced = Some(Box::new(Synced {
            cause: SyncCause::Repair,
            known: String::new(),
            answered_at: None,
            raised_by: Some("first".into()),
            history: false,
            acts: Vec::new(),
        }));
        let again = Question::doubt(&event);
        assert_eq!((again.cause, again.raised_by.as_deref()), (SyncCause::Repair, Some("first")));
        event.synced.as_deref_mut().expect("an answer").cause = SyncCause::Gone;
        assert_eq!(Question::doubt(&event).cause, SyncCause::Doubt, "it may be there");
        let json = serde_json::to_vec(&again).expect("json");
        assert_eq!(serde_json::from_slice::<Question>(&json).expect("own json"), again);
    }
}
