//! Asking those who run a role, and how long to wait for them.

use std::{
    collections::HashSet,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, Message, StatusCode, Subscriber};
use futures::StreamExt;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{timeout, timeout_at},
};
use tracing::debug;

use super::{Answer, Instance, Question, known::Known, message};
use crate::{causes::Causes, log_limit::LogLimit};

/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);
/// How long answers that are late are listened for, so that whoever is slow is known.
const LATE: Duration = Duration::from_secs(4);
/// How long a publish may take that was asked for, and its confirmation.
const PATIENCE_FOR_DEEDS: Duration = Duration::from_secs(6);
/// Messages to an inbox after which no more are read. The server enforces it.
const MAX_MESSAGES: u64 = 256;
/// Bytes of messages to an inbox after which no more are read.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Asks the other processes over the broker.
#[derive(Debug, Default)]
pub(super) struct Asking {
    known: Arc<Known>,
    lines: Arc<LogLimit>,
}

impl Asking {
    /// What those who run `role` answer: each of them once, and `own` not at all. Ends once all have
    /// answered that are known, at once if there is nobody, or else after `patience`. With more of it
    /// than usual the silent ones are waited for, too.
    pub(super) async fn ask(
        &self,
        client: Client,
        role: &'static str,
        question: &Question,
        own: &str,
        patience: Duration,
    ) -> Vec<Answer> {
        let mut expected = if patience > PATIENCE {
            self.known.who_ran(role, Instant::now())
        } else {
            self.known.who_runs(role, Instant::now())
        };
        if expected.is_none() && matches!(question, Question::Redeliver { .. }) {
            // A publish takes its time, so that whoever refuses has to be told from who is at it.
            Box::pin(self.ask(client.clone(), role, &Question::Status, own, PATIENCE)).await;
            expected = self.known.who_runs(role, Instant::now());
            if expected.is_none() {
                return Vec::new();
            }
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let patience = if question.is_deed() { PATIENCE_FOR_DEEDS } else { patience };
        let until = tokio::time::Instant::now() + patience;
        let round = Round {
            role,
            question: question.clone(),
            patience,
            own: own.to_owned(),
            known: Arc::clone(&self.known),
            lines: Arc::clone(&self.lines),
            answers: sender,
        };
        // It goes on after the answers of all who are known, and so finds those who are new.
        tokio::spawn(round.run(client));
        received(receiver, question, expected, until).await
    }

    /// Those who have answered before and run one of `roles`, but for the ones that `answers` are of.
    pub(super) fn silent(&self, roles: &[&str], answers: &[Answer]) -> Vec<Instance> {
        let mut all = self.known.all(roles, Instant::now());
        all.retain(|one| answers.iter().all(|answer| answer.instance.id != one.id));
        all.sort_by(|one, other| (&one.host, one.pid).cmp(&(&other.host, other.pid)));
        all
    }
}

/// The answers until no more are expected, or until then.
async fn received(
    mut receiver: UnboundedReceiver<Answer>,
    question: &Question,
    expected: Option<Vec<String>>,
    until: tokio::time::Instant,
) -> Vec<Answer> {
    let mut waited_for: Option<HashSet<String>> = expected.map(|ids| ids.into_iter().collect());
    let mut answers = Vec::new();
    while let Ok(Some(answer)) = timeout_at(until, receiver.recv()).await {
        let all_answered = waited_for.as_mut().is_some_and(|waited_for| {
            waited_for.remove(&answer.instance.id) && waited_for.is_empty()
        });
        let is_done = all_answered
            || answer.reply.is_done()
            // One process alone gets it.
            || question.is_for_one();
        answers.push(answer);
        if is_done {
            break;
        }
    }
    answers
}

/// One question to those who run a role.
struct Round {
    role: &'static str,
    question: Question,
    patience: Duration,
    own: String,
    known: Arc<Known>,
    lines: Arc<LogLimit>,
    answers: UnboundedSender<Answer>,
}

impl Round {
    async fn run(self, client: Client) {
        let mut collecting = pin!(self.collect(client));
        let mut collected = timeout(self.patience, collecting.as_mut()).await;
        if collected.is_err() {
            self.known.round_over(self.role, Instant::now());
            if !self.question.is_deed() {
                collected = timeout(LATE, collecting).await;
            }
        }
        match collected {
            Ok(Ok(Collected::NobodyThere)) => self.known.round_over(self.role, Instant::now()),
            Ok(Ok(Collected::TooMuch)) => self.passed_over("too many answers"),
            Ok(Err(error)) => self.passed_over(&Causes(&*error).to_string()),
            Err(_) => {}
        }
    }

    async fn collect(
        &self,
        client: Client,
    ) -> Result<Collected, Box<dyn std::error::Error + Send + Sync>> {
        let payload = serde_json::to_vec(&self.question)?;
        let subject = message::subject(self.role, self.question.name());
        let inbox = client.new_inbox();
        let mut messages = client.subscribe(inbox.clone()).await?;
        messages.unsubscribe_after(MAX_MESSAGES).await?;
        client.publish_with_reply(subject, inbox, payload.into()).await?;
        Ok(self.read(&mut messages).await)
    }

    async fn read(&self, messages: &mut Subscriber) -> Collected {
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        while let Some(message) = messages.next().await {
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Collected::NobodyThere;
            }
            bytes += message.length;
            if bytes > MAX_BYTES {
                break;
            }
            let Some(answer) = self.answer(&message) else {
                self.passed_over("not an answer");
                continue;
            };
            if answer.instance.id == self.own || !seen.insert(answer.instance.id.clone()) {
                continue;
            }
            self.known.answered(&answer.instance, Instant::now());
            let _ = self.answers.send(answer);
        }
        Collected::TooMuch
    }

    /// The answer in a message, if it is one to this question.
    fn answer(&self, received: &Message) -> Option<Answer> {
        let answer = message::read(&received.payload)?;
        let is_asked = answer.instance.roles.iter().any(|role| role == self.role);
        (is_asked && self.question.is_answered_by(&answer.reply)).then_some(answer)
    }

    fn passed_over(&self, reason: &str) {
        if let Some(line) = self.lines.line(reason) {
            let (role, question, left_out) = (self.role, self.question.name(), line.left_out);
            debug!(reason, role, question, left_out, "an answer of another process is passed over");
        }
    }
}

/// Why a round ended before its time.
enum Collected {
    NobodyThere,
    TooMuch,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Instance, Reply};

    fn answer(id: &str, reply: Reply) -> Answer {
        let instance = Instance { id: id.into(), ..Instance::this(vec!["ingest".into()]) };
        Answer { instance, reply }
    }

    /// Sends answers and keeps the channel open: what is returned was not waited for longer.
    async fn received_of(question: Question, expected: &[&str], answers: Vec<Answer>) -> usize {
        let (sender, receiver) = mpsc::unbounded_channel();
        answers.into_iter().for_each(|answer| sender.send(answer).expect("a receiver"));
        let expected = expected.iter().map(|id| (*id).to_owned()).collect();
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        let received = received(receiver, &question, Some(expected), until);
        let received = timeout(Duration::from_secs(5), received).await.expect("an end");
        drop(sender);
        received.len()
    }

    #[tokio::test]
    async fn it_ends_with_the_last_one_that_is_known_or_with_a_deed_that_is_done() {
        let refused = |id: &str| answer(id, Reply::Refused("busy".into()));
        let all = vec![refused("new"), refused("a"), refused("b"), refused("late")];
        assert_eq!(received_of(Question::Status, &["a", "b"], all).await, 3);
        let done = Reply::Published { subject: "s".into(), sequence: 1 };
        let id = uuid::Uuid::from_u128(1);
        let all = vec![refused("a"), answer("b", done), refused("c")];
        assert_eq!(received_of(Question::Redeliver { id }, &["a", "c"], all).await, 2);
        let all = vec![refused("a"), refused("b")];
        assert_eq!(received_of(Question::Redeliver { id }, &["a", "b"], all).await, 2);
        let all = vec![refused("a"), refused("b")];
        assert_eq!(received_of(Question::Redrive { sequence: 1 }, &["a", "b"], all).await, 1);
    }
}
