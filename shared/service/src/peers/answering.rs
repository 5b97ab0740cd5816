//! Answers what other processes ask over the broker. A few questions at a time, in a task of its own,
//! so that whoever asks much does not slow the roles.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Message, SubscribeError};
use futures::{StreamExt, future::try_join_all, stream::FuturesUnordered, stream::select_all};
use tracing::{debug, warn};

use super::{Answer, Own, Question, Reply, message};
use crate::{
    backoff::Backoff,
    broker::{Broker, Session},
    causes::Causes,
    log_limit::LogLimit,
    telemetry::budget::Budget,
};

/// Questions that are answered at the same time. More are refused.
const MAX_AT_ONCE: usize = 8;
/// Questions that are answered in a second. More are refused.
const MAX_PER_SECOND: u32 = 1000;
/// Deeds that are done at the same time. More wait, since a refusal would end what an operator wants
/// done with a thousand dead letters.
const MAX_DEEDS: usize = 8;
/// Bytes of a question. A longer one is none.
const MAX_QUESTION: usize = 1024;
/// Pauses between attempts to subscribe.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
/// Group of those who can do the same: one of them gets each message.
const GROUP: &str = "coordinator";
/// How long the server may take to say what it denies, after it has confirmed all else.
const DENIAL: Duration = Duration::from_millis(100);

/// Answers on each connection, for ever.
pub(super) async fn answer(broker: Broker, own: Arc<Own>, inbox_prefix: String) {
    if own.instance.roles.is_empty() {
        return pending().await;
    }
    let per_second = Budget::new(MAX_PER_SECOND);
    let answering = Answering { own, inbox_prefix, per_second, lines: LogLimit::new() };
    let (mut pause, mut told) = (PAUSE, false);
    loop {
        let session = broker.connected().await;
        let since = Instant::now();
        tokio::select! {
            result = answering.answer_all(&session) => match result {
                Ok(()) => pause.reset(),
                Err(error) => {
                    debug!(error = %Causes(&error), "cannot be asked by other processes, trying on");
                }
            },
            () = session.ended() => pause.reset(),
            // Without the permission nothing is asked, and only pages show less.
            () = denied(&broker, &session, since, &mut told) => {}
        }
        pause.wait().await;
    }
}

/// Tells once what the broker denies, and never returns.
async fn denied(broker: &Broker, session: &Session, since: Instant, told: &mut bool) {
    if session.client.flush().await.is_ok() {
        tokio::time::sleep(DENIAL).await;
        if let Some(denial) = broker.denial_since(since).filter(|_| !*told) {
            *told = true;
            warn!(denial, "NATS does not let processes ask each other; a page shows its own alone");
        }
    }
    pending().await
}

struct Answering {
    own: Arc<Own>,
    inbox_prefix: String,
    per_second: Budget,
    lines: LogLimit,
}

impl Answering {
    /// Answers until the subscriptions end with their connection.
    async fn answer_all(&self, session: &Session) -> Result<(), SubscribeError> {
        let client = &session.client;
        let roles = self.own.instance.roles.iter();
        let subjects = roles.flat_map(|role| {
            message::questions(role).iter().map(move |question| (role.as_str(), *question))
        });
        let subscribed = try_join_all(subjects.map(async |(role, question)| {
            let subject = message::subject(role, question);
            let messages = if message::is_for_one(question) {
                client.queue_subscribe(subject, GROUP.into()).await?
            } else {
                client.subscribe(subject).await?
            };
            let is_deed = message::is_deed(question);
            Ok::<_, SubscribeError>((is_deed, messages.map(move |message| (question, message))))
        }));
        let (deeds, others): (Vec<_>, Vec<_>) =
            subscribed.await?.into_iter().partition(|(is_deed, _)| *is_deed);
        let [mut deeds, mut others] =
            [deeds, others].map(|messages| select_all(messages.into_iter().map(|(_, m)| m)));
        let [mut done, mut answered] = [FuturesUnordered::new(), FuturesUnordered::new()];
        loop {
            tokio::select! {
                message = others.next() => {
                    let Some((name, message)) = message else { return Ok(()) };
                    let Some((reply_to, question)) = self.question(name, message) else { continue };
                    if answered.len() < MAX_AT_ONCE && self.per_second.take() {
                        answered.push(self.reply(session, reply_to, question));
                    } else {
                        let refused = Reply::Refused("it is asked too much at once".into());
                        self.send(session, reply_to, refused).await;
                    }
                }
                // There are none where no role has any.
                Some((name, message)) = deeds.next(), if done.len() < MAX_DEEDS => {
                    if let Some((reply_to, question)) = self.question(name, message) {
                        done.push(self.reply(session, reply_to, question));
                    }
                }
                Some(()) = answered.next() => {}
                Some(()) = done.next() => {}
            }
        }
    }

    /// The question in a message, and where to answer it. The subject says what the asker may ask,
    /// so that the question has to be of its subject.
    fn question(&self, name: &str, message: Message) -> Option<(String, Question)> {
        let read = || {
            let reply_to =
                message.reply.as_deref().filter(|to| is_inbox(to, &self.inbox_prefix))?;
            if message.payload.len() > MAX_QUESTION {
                return None;
            }
            let question: Question = serde_json::from_slice(&message.payload).ok()?;
            (question.name() == name).then(|| (reply_to.to_owned(), question))
        };
        let question = read();
        if question.is_none()
            && let Some(line) = self.lines.line(name)
        {
            let (question, left_out) = (name, line.left_out);
            debug!(question, left_out, "what another process asks is not understood");
        }
        question
    }

    async fn reply(&self, session: &Session, reply_to: String, question: Question) {
        self.send(session, reply_to, self.own.reply(&question).await).await;
    }

    async fn send(&self, session: &Session, reply_to: String, reply: Reply) {
        let answer = Answer { instance: self.own.instance.clone(), reply };
        match message::encode(answer, session.max_payload()) {
            Ok(json) => {
                // Without a connection nobody waits for it.
                let _ = session.client.publish(reply_to, json.into()).await;
            }
            Err(error) => debug!(%error, "cannot write an answer"),
        }
    }
}

/// Whether a subject is one that a client waits at for answers, or of another account. Whoever asks
/// must not have this process write elsewhere.
fn is_inbox(subject: &str, prefix: &str) -> bool {
    let first = subject.split('.').next().unwrap_or_default();
    first.starts_with("_INBOX") || first == "_R_" || subject.starts_with(&format!("{prefix}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_inboxes_alone() {
        for (subject, good) in [
            ("_INBOX.abc", true),
            ("_INBOX_worker.abc.1", true),
            ("_R_.abc.def", true),
            ("mine.here.abc", true),
            ("mine.elsewhere", false),
            ("gitea.issues.closed.a.w.1.1", false),
            ("$JS.API.STREAM.DELETE.GITEA_ISSUES", false),
            ("$KV.GITEA_ISSUE_STATE.1.1", false),
            ("coordinator.ask.ingest.redrive", false),
            ("", false),
        ] {
            assert_eq!(is_inbox(subject, "mine.here"), good, "{subject}");
        }
    }
}
