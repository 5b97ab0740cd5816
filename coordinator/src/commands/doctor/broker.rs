//! NATS, and what stands on it. Everything is only looked at.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    account::Account,
    consumer,
    context::GetStreamError,
    stream::{self, DiscardPolicy, Stream},
};
use contract::{
    names::{EVENTS, Lane, consumer_name},
    partitions::Partitions,
    timestamp::Timestamp,
};
use serde_json::Value;
use service::{
    broker::{
        Broker, Session,
        consumers::{answers_questions, compared_partition, is_consumer_missing},
        findings::Finding,
        repartition::Stored,
        streams::{Object, is_missing},
    },
    causes::Causes,
};
use tokio::time::{sleep, timeout};

use super::{
    clock::{self, Told},
    report::Check,
    settings::Read,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(3);
/// Pause between looks for a denial. A user that lacks a permission gets no answer.
const DENIAL: Duration = Duration::from_millis(20);
/// Waiting events from which on the workers are behind. An alert has the same.
const MANY_EVENTS: u64 = 500;
/// Waiting questions from which on Gitea is asked too slowly.
const MANY_QUESTIONS: u64 = 1000;

/// What is consumed on NATS needs these in this order. Names of checks.
const NAMES: [&str; 4] = ["partitions", "consumers", "workers", "lag"];

/// A connection, for what follows.
pub(super) struct Connected {
    pub(super) broker: Broker,
    pub(super) session: Session,
    /// Number of partitions of the stream of events.
    pub(super) partitions: Partitions,
}

/// Why there is no answer.
pub(super) enum Unanswered {
    /// Our user may not ask.
    Denied,
    /// The broker does not answer.
    Silent,
}

/// Waits for an answer, or until the broker denies the question.
pub(super) async fn ask<T>(
    broker: &Broker,
    question: impl Future<Output = T>,
) -> Result<T, Unanswered> {
    let since = Instant::now();
    let denied = async {
        while broker.denial_since(since).is_none() {
            sleep(DENIAL).await;
        }
    };
    tokio::select! {
        biased;
        answer = question => Ok(answer),
        () = denied => Err(Unanswered::Denied),
        () = sleep(ANSWER) => Err(Unanswered::Silent),
    }
}

impl Unanswered {
    /// The check `name` without an answer.
    pub(super) fn told(&self, name: impl Into<String>) -> Check {
        match self {
            Self::Denied => Check::skipped(name, "the user at NATS may not look at it"),
            Self::Silent => Check::wrong(
                name,
                format!("no answer of JetStream within {} s", ANSWER.as_secs()),
                "see whether JetStream is enabled at the server, and whether its cluster has a majority",
            ),
        }
    }
}

pub(super) async fn check(read: &Read, checks: &mut Vec<Check>) -> Option<Connected> {
    let Some((broker, session)) = connect(read, checks).await else {
        let names = ["nats version", "jetstream", "streams", "clock of NATS"];
        let more = ["dead letters", "questions"];
        let names = names.iter().chain(&NAMES).chain(&more);
        checks.extend(names.map(|name| Check::needs(*name, "nats")));
        return None;
    };
    let look = Look { read, broker, session };
    look.version(checks);
    look.all(checks).await
}

/// A connection, or the reason why there is none as a check.
async fn connect(read: &Read, checks: &mut Vec<Check>) -> Option<(Broker, Session)> {
    if !read.broker_is_good {
        checks.push(Check::needs("nats", "settings"));
        return None;
    }
    let settings = &read.common.broker;
    let remedy = "start it, or set NATS_URL; then user and password (NATS_USER, NATS_PASSWORD_FILE) and TLS (NATS_CA_FILE)";
    let (broker, keeper) = match Broker::new(settings, "coordinator-doctor").await {
        Ok(made) => made,
        Err(error) => {
            checks.push(Check::wrong("nats", Causes(&error).to_string(), remedy));
            return None;
        }
    };
    tokio::spawn(keeper);
    let Ok(session) = timeout(CONNECT, broker.connected()).await else {
        let found = format!("no connection to {} within {} s", settings.servers, CONNECT.as_secs());
        checks.push(Check::wrong("nats", found, remedy));
        return None;
    };
    checks.push(Check::ok("nats", format!("connected to {}", settings.servers)));
    Some((broker, session))
}

/// A look at all that stands on the broker.
struct Look<'a> {
    read: &'a Read,
    broker: Broker,
    session: Session,
}

impl Look<'_> {
    fn version(&self, checks: &mut Vec<Check>) {
        let client = &self.session.client;
        checks.push(version_told(
            &client.server_info().version,
            client.is_server_compatible(2, 10, 0),
            self.session.knows_priorities(),
        ));
    }

    async fn ask<T>(&self, question: impl Future<Output = T>) -> Result<T, Unanswered> {
        ask(&self.broker, question).await
    }

    /// Looks at one thing after the other. The first that has no answer ends the look.
    async fn all(self, checks: &mut Vec<Check>) -> Option<Connected> {
        let account = self.ask(self.session.jetstream.query_account()).await;
        let is_silent = matches!(account, Err(Unanswered::Silent));
        checks.push(match account {
            Ok(Ok(account)) => account_told(&account, self.read.common.streams.partitions),
            Ok(Err(error)) => Check::wrong(
                "jetstream",
                Causes(&error).to_string(),
                "enable JetStream at the server, and for the account of our user",
            ),
            Err(unanswered) => unanswered.told("jetstream"),
        });
        if is_silent {
            let names = ["streams", "clock of NATS", "dead letters", "questions"];
            let names = names.iter().chain(&NAMES);
            checks.extend(names.map(|name| Check::needs(*name, "jetstream")));
            return None;
        }
        let mut events = None;
        for object in Object::ALL {
            let found = self.object(object, checks).await;
            match (object, found) {
                (Object::Events, found) => events = found,
                (Object::DeadLetters, Some(stream)) => {
                    checks.push(dead_letters_told(stream.cached_info().state.messages));
                }
                (Object::DeadLetters, None) => {
                    checks.push(Check::needs("dead letters", &object.to_string()));
                }
                (Object::Questions, Some(stream)) => checks.push(self.questions(&stream).await),
                (Object::Questions, None) => {
                    checks.push(Check::needs("questions", &object.to_string()));
                }
                _ => {}
            }
        }
        checks.push(self.clock().await);
        let Some(events) = events else {
            let needed = Object::Events.to_string();
            checks.extend(NAMES.iter().map(|name| Check::needs(*name, &needed)));
            let (broker, session) = (self.broker, self.session);
            let partitions = self.read.common.streams.partitions;
            return Some(Connected { broker, session, partitions });
        };
        let stored = Stored::of(&events.cached_info().config);
        checks.push(partitions_told(stored, self.read.common.streams.partitions));
        self.consumers(&events, stored.partitions, checks).await;
        let (broker, session) = (self.broker, self.session);
        Some(Connected { broker, session, partitions: stored.partitions })
    }

    /// Looks at a stream or a bucket. None if it cannot be seen.
    async fn object(&self, object: Object, checks: &mut Vec<Check>) -> Option<Stream> {
        let name = object.to_string();
        let stream = object.stream();
        let asked = self.ask(self.session.jetstream.get_stream(&stream)).await;
        let found: Result<Stream, GetStreamError> = match asked {
            Ok(found) => found,
            Err(unanswered) => {
                checks.push(unanswered.told(name));
                return None;
            }
        };
        let is_of_sync = matches!(object, Object::Questions | Object::Sync);
        match found {
            Ok(stream) => {
                let info = stream.cached_info();
                let findings = object.compared(&self.read.common.streams, &info.config);
                checks.push(stream_told(name, info, &findings));
                Some(stream)
            }
            Err(error) if is_missing(&error) && is_of_sync && self.read.access.token.is_none() => {
                checks.push(Check::skipped(name, "only made where there is a GITEA_TOKEN"));
                None
            }
            Err(error) if is_missing(&error) && is_of_sync => {
                let remedy = "run a worker with GITEA_TOKEN, which makes it";
                checks.push(Check::warning(name, "there is none, so no worker asks Gitea", remedy));
                None
            }
            Err(error) if is_missing(&error) && object == Object::Runs => {
                checks.push(Check::skipped(name, "only made where there is a runner"));
                None
            }
            Err(error) if is_missing(&error) => {
                let remedy = "start ingest and a worker, which make it, or run `coordinator create-streams` as a user that may";
                checks.push(Check::wrong(name, "there is none", remedy));
                None
            }
            Err(error) => {
                checks.push(failed(name, &error));
                None
            }
        }
    }

    async fn clock(&self) -> Check {
        let asked = Timestamp::now();
        let name = "clock of NATS";
        let subject = format!("STREAM.INFO.{EVENTS}");
        let question = self.session.jetstream.request::<_, _, Value>(subject, &());
        match self.ask(question).await {
            Err(unanswered) => unanswered.told(name),
            Ok(Err(error)) => failed(name, &error),
            Ok(Ok(info)) => {
                // Servers before 2.10 and answers without a stream have none.
                let time = info["ts"].as_str().and_then(|time| Timestamp::parse(time).ok());
                let Some(time) = time else {
                    return Check::skipped(name, "its answer names no time");
                };
                let answered = Timestamp::now();
                clock::check("NATS", Told { asked, answered, time, resolution: Duration::ZERO })
            }
        }
    }

    async fn questions(&self, questions: &Stream) -> Check {
        let (name, mut all) = ("questions", 0);
        for lane in Lane::ALL {
            match self.ask(questions.consumer_info(lane.consumer())).await {
                Err(unanswered) => return unanswered.told(name),
                Ok(Err(error)) if is_consumer_missing(&error) => {
                    let messages = questions.cached_info().state.messages;
                    return questions_told(messages, self.asks_gitea());
                }
                Ok(Err(error)) => return failed(name, &error),
                Ok(Ok(info)) if !answers_questions(&info.config, lane) => {
                    return Check::wrong(
                        name,
                        format!("consumer {} cannot be used", lane.consumer()),
                        "delete it, and a worker with GITEA_TOKEN makes it again",
                    );
                }
                Ok(Ok(info)) => all += waiting(&info),
            }
        }
        questions_told(all, self.asks_gitea())
    }

    fn asks_gitea(&self) -> bool {
        self.read.access.token.is_some()
    }

    /// The consumers of all partitions: what they are, who asks them, and what waits in them.
    async fn consumers(&self, events: &Stream, partitions: Partitions, checks: &mut Vec<Check>) {
        let prioritize = self.session.knows_priorities();
        let mut seen = Seen::default();
        for partition in partitions.all() {
            let name = consumer_name(partition);
            match self.ask(events.consumer_info(&name)).await {
                Err(unanswered) => {
                    checks.push(unanswered.told("consumers"));
                    let names = ["workers", "lag"];
                    checks.extend(names.map(|name| Check::needs(name, "consumers")));
                    return;
                }
                Ok(Err(error)) if is_consumer_missing(&error) => seen.missing += 1,
                Ok(Err(error)) => seen.failed.push(format!("{name}: {}", Causes(&error))),
                Ok(Ok(info)) => {
                    let (ack_wait, config) = (self.read.ack_wait, &info.config);
                    for finding in compared_partition(config, ack_wait, partition, prioritize) {
                        seen.findings.push((name.clone(), finding));
                    }
                    seen.lag += waiting(&info);
                    seen.at_work += u64::from(info.num_waiting > 0 || info.num_ack_pending > 0);
                }
            }
        }
        checks.push(seen.consumers(partitions));
        checks.push(seen.workers(partitions));
        checks.push(if seen.lag > MANY_EVENTS {
            let remedy = "see docs/OPERATIONS.md, CoordinatorLag";
            Check::warning("lag", format!("{} events wait for the workers", seen.lag), remedy)
        } else {
            Check::ok("lag", format!("{} events wait for the workers", seen.lag))
        });
    }
}

/// What was seen of the consumers.
#[derive(Default)]
struct Seen {
    missing: u64,
    failed: Vec<String>,
    findings: Vec<(String, Finding)>,
    lag: u64,
    /// Partitions that somebody asks for messages, or has one of in hand.
    at_work: u64,
}

impl Seen {
    fn consumers(&self, partitions: Partitions) -> Check {
        let name = "consumers";
        let unfit = self.findings.iter().filter(|(_, finding)| finding.unfit).count();
        // They are alike, so one of them tells.
        let example = self.findings.iter().find(|(_, finding)| finding.unfit || unfit == 0);
        let example = example.map(|(name, finding)| format!("{name}: {finding}"));
        if let Some(failed) = self.failed.first() {
            let found = format!("{} cannot be looked at ({failed})", self.failed.len());
            return Check::wrong(name, found, "see the server's log");
        }
        if self.missing > 0 {
            let found = format!("{} of {partitions} are missing", self.missing);
            let remedy = "start a worker, which makes them, or run `coordinator create-streams` as a user that may; an account may allow too few";
            return Check::wrong(name, found, remedy);
        }
        let remedy = "a worker puts them right, or `coordinator create-streams`; delete those that cannot be changed";
        match example {
            None => Check::ok(name, format!("{partitions}, all as needed")),
            Some(example) if unfit > 0 => Check::wrong(
                name,
                format!("{unfit} of {partitions} are unfit, as {example}"),
                remedy,
            ),
            Some(example) => {
                let found = format!("{} of {partitions} differ, as {example}", self.findings.len());
                Check::warning(name, found, remedy)
            }
        }
    }

    fn workers(&self, partitions: Partitions) -> Check {
        let found = format!("{} of {partitions} partitions are consumed", self.at_work);
        if self.at_work == 0 {
            Check::wrong("workers", found, "start a worker: nobody is told of changes meanwhile")
        } else {
            Check::ok("workers", found)
        }
    }
}

/// Messages that nobody has settled yet.
fn waiting(info: &consumer::Info) -> u64 {
    info.num_pending + info.num_ack_pending as u64
}

fn failed(name: impl Into<String>, error: &(dyn Error + 'static)) -> Check {
    Check::wrong(name, Causes(error).to_string(), "see the server's log")
}

fn version_told(version: &str, is_known: bool, has_priorities: bool) -> Check {
    let name = "nats version";
    if !is_known {
        Check::wrong(name, format!("{version}, which is too old"), "use nats-server 2.10 or newer")
    } else if !has_priorities {
        let found = format!("{version}: a partition may change its worker with each message");
        Check::warning(name, found, "use nats-server 2.12 or newer")
    } else {
        Check::ok(name, version)
    }
}

fn account_told(account: &Account, partitions: Partitions) -> Check {
    let (name, limits) = ("jetstream", &account.limits);
    let mib = |bytes: u64| bytes >> 20;
    let limit = |limit: Option<i64>| limit.map_or_else(|| "any".into(), |limit| limit.to_string());
    let found = format!(
        "{} streams of {}, {} consumers of {}, {} MiB stored of {}",
        account.streams,
        limit(limits.max_streams),
        account.consumers,
        limit(limits.max_consumers),
        mib(account.storage),
        limits.max_storage.map_or_else(
            || "what the server has".into(),
            |bytes| format!("{} MiB", mib(bytes.unsigned_abs()))
        ),
    );
    let too_few = |most: Option<i64>, needed: usize| {
        most.is_some_and(|most| usize::try_from(most).unwrap_or_default() < needed)
    };
    let needed = usize::from(partitions.count());
    let is_near = limits.max_storage.is_some_and(|most| {
        let used = account.storage.max(account.reserved_storage);
        used / 4 > most.unsigned_abs() / 5
    });
    if too_few(limits.max_consumers, needed) || too_few(limits.max_streams, Object::ALL.len()) {
        let remedy = format!(
            "let the account have {needed} consumers and {} streams, or set a smaller PARTITIONS",
            Object::ALL.len()
        );
        Check::wrong(name, found, remedy)
    } else if is_near {
        Check::warning(name, found, "raise the account's limit, or set a smaller STREAM_MAX_BYTES")
    } else {
        Check::ok(name, found)
    }
}

fn stream_told(name: String, info: &stream::Info, findings: &[Finding]) -> Check {
    let (config, state) = (&info.config, &info.state);
    let mut found = format!("{} messages, {} MiB", state.messages, state.bytes >> 20);
    if config.max_bytes > 0 {
        found = format!("{found} of {} MiB", config.max_bytes >> 20);
    }
    if !findings.is_empty() {
        let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let remedy = "edit it (`nats stream edit`): a stream that is there is never changed by a role (docs/OPERATIONS.md, What stands on the broker)";
        return if findings.iter().any(|finding| finding.unfit) {
            Check::wrong(name, text, remedy)
        } else {
            Check::warning(name, text, remedy)
        };
    }
    // Others drop their oldest message.
    let refuses = config.discard == DiscardPolicy::New && config.max_bytes > 0;
    if refuses && state.bytes / 4 > config.max_bytes.unsigned_abs() / 5 {
        let remedy = "raise its limit (`nats stream edit --max-bytes`), see docs/OPERATIONS.md, CoordinatorStreamNearLimit";
        return Check::warning(name, found, remedy);
    }
    Check::ok(name, found)
}

fn partitions_told(stored: Stored, wanted: Partitions) -> Check {
    let name = "partitions";
    if stored.next.is_some() {
        let remedy =
            "let `coordinator create-streams` run to its end; nothing is published until then";
        Check::warning(name, stored.to_string(), remedy)
    } else if stored.partitions != wanted {
        let found = format!("the stream of events has {stored}, and PARTITIONS is {wanted}");
        let remedy = "set PARTITIONS to what the stream has, or see docs/OPERATIONS.md, The number of partitions";
        Check::wrong(name, found, remedy)
    } else {
        Check::ok(name, stored.partitions.to_string())
    }
}

fn dead_letters_told(waiting: u64) -> Check {
    let name = "dead letters";
    if waiting == 0 {
        return Check::ok(name, "none");
    }
    let remedy =
        "see why with `coordinator dead-letters`, then `coordinator dead-letters redrive --all`";
    Check::warning(name, format!("{waiting} wait to be redriven"), remedy)
}

fn questions_told(waiting: u64, asks_gitea: bool) -> Check {
    let (name, found) = ("questions", format!("{waiting} wait for an answer of Gitea"));
    if waiting > MANY_QUESTIONS {
        let remedy = "see the checks of Gitea, and GITEA_REQUESTS_PER_SECOND";
        Check::warning(name, found, remedy)
    } else if waiting > 0 && !asks_gitea {
        Check::warning(name, found, "run a worker with GITEA_TOKEN")
    } else {
        Check::ok(name, found)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::Outcome, *};

    #[test]
    fn a_server_is_new_enough() {
        for (is_known, has_priorities, expected) in [
            (true, true, Outcome::Ok),
            (true, false, Outcome::Warning),
            (false, false, Outcome::Wrong),
        ] {
            assert_eq!(version_told("2.x", is_known, has_priorities).outcome, expected);
        }
    }

    #[test]
    fn what_waits_is_told() {
        assert_eq!(dead_letters_told(0).outcome, Outcome::Ok);
        assert_eq!(dead_letters_told(1).outcome, Outcome::Warning);
        for (waiting, asks, expected) in [
            (0, false, Outcome::Ok),
            (3, true, Outcome::Ok),
            (3, false, Outcome::Warning),
            (5000, true, Outcome::Warning),
        ] {
            assert_eq!(questions_told(waiting, asks).outcome, expected, "{waiting} {asks}");
        }
    }

    #[test]
    fn all_roles_have_the_number_of_partitions_that_is_stored() {
        let number = |text: &str| text.parse::<Partitions>().expect("a number");
        for (partitions, next, expected) in [
            ("64", None, Outcome::Ok),
            ("32", None, Outcome::Wrong),
            ("64", Some("32"), Outcome::Warning),
        ] {
            let stored = Stored { partitions: number(partitions), next: next.map(number) };
            assert_eq!(partitions_told(stored, Partitions::DEFAULT).outcome, expected, "{stored}");
        }
    }

    #[test]
    fn consumers_are_judged_together() {
        let one = |finding: Finding| Seen {
            findings: vec![("worker-00".into(), finding)],
            at_work: 1,
            ..Seen::default()
        };
        for (seen, consumers, workers) in [
            (Seen { at_work: 3, ..Seen::default() }, Outcome::Ok, Outcome::Ok),
            (Seen::default(), Outcome::Ok, Outcome::Wrong),
            (Seen { missing: 1, at_work: 1, ..Seen::default() }, Outcome::Wrong, Outcome::Ok),
            (one(Finding::unfit("a", "b")), Outcome::Wrong, Outcome::Ok),
            (one(Finding::danger("a", "b")), Outcome::Warning, Outcome::Ok),
        ] {
            assert_eq!(seen.consumers(Partitions::DEFAULT).outcome, consumers);
            assert_eq!(seen.workers(Partitions::DEFAULT).outcome, workers);
        }
    }
}
