//! What the processes of a deployment ask each other over the broker, so that the page of one
//! shows what the others know. Nothing else depends on an answer.

mod answer;
mod answering;
mod asking;
mod known;
mod message;
mod own;
mod question;
mod series;

pub use self::{
    answer::{
        Answer, Answered, Instance, Journaled, Reply, RunDetail, RunList, RunSummary, Series,
        Status,
    },
    question::{Asked, Question},
};

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, join_all};

use self::asking::Asking;
pub(crate) use self::{own::Own, series::Measured};
use crate::{
    broker::{Broker, BrokerSettings, ConnectError},
    tasks::Tasks,
};

/// Name of the connection to the broker.
const CLIENT: &str = "coordinator-peers";

/// Time between two looks at what the broker has denied.
const DENIALS_EVERY: Duration = Duration::from_millis(20);

/// Answers the questions that a role can answer.
pub trait Responder: Send + Sync {
    /// The answer, or None if the question is not for this role.
    fn answer(&self, question: Question) -> BoxFuture<'_, Option<Reply>>;
}

/// All processes of the deployment, this one among them. Clones share the connection.
#[derive(Clone)]
pub struct Peers {
    broker: Broker,
    own: Arc<Own>,
    asking: Arc<Asking>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("instance", self.instance()).finish_non_exhaustive()
    }
}

impl Peers {
    /// Connects to the broker, which may be down, and answers what others ask. `tasks` gets what
    /// does so.
    ///
    /// # Errors
    /// If the broker's files cannot be read.
    pub(crate) async fn start(
        settings: &BrokerSettings,
        own: Own,
        tasks: &mut Tasks,
    ) -> Result<Self, ConnectError> {
        let (broker, keeper) = Broker::quiet(settings, CLIENT).await?;
        tasks.spawn("the keeper of the connection to other processes", keeper);
        let own = Arc::new(own);
        let prefix = settings.inbox_prefix.clone().unwrap_or_else(|| "_INBOX".into());
        let answering = answering::answer(broker.clone(), Arc::clone(&own), prefix);
        tasks.spawn("the answers to other processes", answering);
        Ok(Self { broker, own, asking: Arc::default() })
    }

    /// Asks, and returns what was answered in time: this process always answers, the others over
    /// the broker. Each process answers once. What one process is to do is asked of the others only
    /// if this one cannot do it.
    pub async fn ask(&self, asked: Asked, question: &Question) -> Vec<Answer> {
        self.ask_within(asked, question, asking::PATIENCE).await.answers
    }

    /// Like [`Peers::ask`], with so much time for the answers, and with those who gave none. What is
    /// to be done has its own time.
    pub async fn ask_within(
        &self,
        asked: Asked,
        question: &Question,
        patience: Duration,
    ) -> Answered {
        let answers = if question.is_deed() {
            let mut answers: Vec<_> = self.own.answer(asked, question).await.into_iter().collect();
            if !answers.iter().any(|answer| answer.reply.is_done()) {
                let since = Instant::now();
                tokio::select! {
                    others = self.ask_others(asked, question, patience) => answers.extend(others),
                    // The broker drops what it denies, so that nobody would answer.
                    () = self.denied(asked, question, since) => {
                        answers.push(self.not_from_here());
                        return Answered { answers, silent: Vec::new() };
                    }
                }
            }
            answers
        } else {
            let others = self.ask_others(asked, question, patience);
            let (own, others) = tokio::join!(self.own.answer(asked, question), others);
            own.into_iter().chain(others).collect()
        };
        let roles: Vec<_> = roles(asked, question).collect();
        Answered { silent: self.asking.silent(&roles, &answers), answers }
    }

    async fn ask_others(
        &self,
        asked: Asked,
        question: &Question,
        patience: Duration,
    ) -> Vec<Answer> {
        let Some(session) = self.broker.session() else { return Vec::new() };
        let own = &*self.own.instance.id;
        let rounds = roles(asked, question)
            .map(|role| self.asking.ask(session.client.clone(), role, question, own, patience));
        let mut answers: Vec<Answer> = Vec::new();
        for answer in join_all(rounds).await.into_iter().flatten() {
            // A process of both roles answers for both.
            if answers.iter().all(|other| other.instance.id != answer.instance.id) {
                answers.push(answer);
            }
        }
        answers
    }

    /// Waits until the broker has denied this question.
    async fn denied(&self, asked: Asked, question: &Question, since: Instant) {
        let subjects = asked.roles().iter().map(|role| message::subject(role, question.name()));
        let subjects: Vec<_> = subjects.map(|subject| format!("\"{subject}\"")).collect();
        let is_of = |denial: &String| subjects.iter().any(|subject| denial.contains(subject));
        while self.broker.denial_since(since).filter(is_of).is_none() {
            tokio::time::sleep(DENIALS_EVERY).await;
        }
    }

    fn not_from_here(&self) -> Answer {
        let why = "NATS does not let this process ask for it. Do it on a worker's page.";
        Answer { instance: self.own.instance.clone(), reply: Reply::Refused(why.into()) }
    }

    /// This process.
    pub fn instance(&self) -> &Instance {
        &self.own.instance
    }

    /// The connection to the broker that pages use. It has the rights of the process.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }
}

/// The roles that are asked and can answer.
fn roles(asked: Asked, question: &Question) -> impl Iterator<Item = &'static str> {
    let name = question.name();
    asked.roles().iter().copied().filter(move |role| message::questions(role).contains(&name))
}
