//! Test deliveries: one of our own, followed to a change and taken back, and one that Gitea sends.

use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use contract::{
    change::ChangeKind,
    event::State,
    names::{CHANGES, CHANGES_PREFIX, EVENTS},
    subject::{EventSubject, escape},
    timestamp::Timestamp,
};
use gitea::{ApiError, Client, HookScope};
use serde_json::Value;
use service::{causes::Causes, secret::Secret};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    GiteaFound,
    broker::{Connected, Unanswered, ask},
    hooks::Found,
    http,
    ingest::Ingest,
    report::Check,
    settings::Read,
};
use crate::delivery::{ContentType, Delivery, IssueEvent};

/// How long an event and its change may take together.
const FOLLOW: Duration = Duration::from_secs(8);
/// How long a delivery of Gitea may take. Its queue looks for work every few seconds.
const GITEAS: Duration = Duration::from_secs(8);
/// Pauses between looks.
const LOOK: Duration = Duration::from_millis(10);

/// Owner of the repository in a test delivery. The name of the repository is made up each time.
const OWNER: &str = "coordinator";
const PERSON: &str = "coordinator-doctor";
const TITLE: &str = "Test delivery of coordinator doctor";
const TEXT: &str = "`coordinator doctor --deliver` has made this. Gitea has no such issue.";

/// Least id of a test repository. No Gitea counts so far, and JSON's readers keep twice as much
/// without loss.
const LEAST_ID: i64 = 1 << 52;

/// An issue that is none.
struct TestIssue {
    repository: String,
    repository_id: i64,
    opened: Timestamp,
}

impl TestIssue {
    fn new() -> Self {
        let random = Uuid::new_v4().as_u128();
        let low = (random as i64) & (LEAST_ID - 1);
        Self {
            repository: format!("doctor-{:08x}", random >> 96),
            repository_id: LEAST_ID | low,
            opened: Timestamp::now(),
        }
    }

    /// Somebody is assigned, or the issue is deleted, in the next second: two events of one second
    /// would leave a doubt.
    fn delivery(&self, is_deleted: bool, secret: &Secret) -> Result<(Uuid, Delivery)> {
        let action = if is_deleted { "deleted" } else { "assigned" };
        let later = if is_deleted { 1_000_000 } else { 0 };
        let event = IssueEvent {
            action: action.into(),
            owner: OWNER.into(),
            repository: self.repository.clone(),
            repository_id: self.repository_id,
            number: 1,
            title: TITLE.into(),
            assignees: vec![PERSON.into()],
            state: State::Open,
            sender: PERSON.into(),
            updated_at: Timestamp::from_unix_micros(self.opened.unix_micros() + later),
        };
        let id = Uuid::new_v4();
        let mut payload: Value = serde_json::from_slice(&event.payload()?)?;
        payload["issue"]["body"] = TEXT.into();
        let payload = serde_json::to_vec(&payload)?;
        Ok((id, Delivery::sign(id, action, &payload, ContentType::Json, secret)))
    }

    fn event_subject(&self, action: &str, connected: &Connected) -> String {
        let subject = EventSubject {
            action: action.into(),
            owner: OWNER.into(),
            repository: self.repository.clone(),
            number: 1,
            partition: connected.partitions.of(self.repository_id, 1),
        };
        subject.to_string()
    }

    fn change_subject(&self, kind: ChangeKind) -> String {
        format!("{CHANGES_PREFIX}.{kind}.{OWNER}.{}.1", escape(&self.repository))
    }
}

/// Sends a delivery to ingest, follows it to its change, and takes it back.
pub(super) async fn ours(
    read: &Read,
    ingest: Option<&Ingest>,
    broker: Option<&Connected>,
    checks: &mut Vec<Check>,
) {
    let url = ingest.and_then(|ingest| ingest.webhook.as_deref());
    match (url, &read.ingest) {
        (None, _) => checks.push(Check::needs("delivery", "ingest")),
        (_, None) => checks.push(Check::needs("delivery", "webhook secret")),
        (Some(url), Some(settings)) => {
            let issue = TestIssue::new();
            let run = Run { url, secret: &settings.secret, issue: &issue, broker };
            if let Err(error) = run.all(checks).await {
                let remedy = "report it: the delivery cannot be made";
                checks.push(Check::wrong("delivery", format!("{error:#}"), remedy));
            }
        }
    }
}

/// A test delivery on its way.
struct Run<'a> {
    url: &'a str,
    secret: &'a Secret,
    issue: &'a TestIssue,
    broker: Option<&'a Connected>,
}

impl Run<'_> {
    async fn all(&self, checks: &mut Vec<Check>) -> Result<()> {
        let (id, delivery) = self.issue.delivery(false, self.secret)?;
        let sent = Instant::now();
        let answer = http::post(self.url, &delivery).await;
        let (accepted, is_kept) = answer_told(answer, self.url, sent.elapsed());
        checks.push(accepted);
        if !is_kept {
            let names = ["delivery's event", "delivery's change"];
            checks.extend(names.map(|name| Check::needs(name, "delivery")));
            return Ok(());
        }
        let is_told = self.follow(id, checks).await;
        // Always, so that nothing is left as an open issue.
        checks.push(self.take_back(is_told).await?);
        Ok(())
    }

    /// Waits for the event and the change of the delivery. Says whether the change came.
    async fn follow(&self, id: Uuid, checks: &mut Vec<Check>) -> bool {
        let Some(connected) = self.broker else {
            let names = ["delivery's event", "delivery's change"];
            checks.extend(names.map(|name| Check::needs(name, "nats")));
            return false;
        };
        let began = Instant::now();
        let subject = self.issue.event_subject("assigned", connected);
        let event = stored(connected, EVENTS, &subject, &id.to_string(), began).await;
        checks.push(event_told(&event, began.elapsed()));
        if matches!(event, Ok(false)) {
            checks.push(Check::needs("delivery's change", "delivery's event"));
            return false;
        }
        let kind = ChangeKind::Assigned;
        let message_id = format!("{id}:{kind}");
        let subject = self.issue.change_subject(kind);
        let change = stored(connected, CHANGES, &subject, &message_id, began).await;
        checks.push(match &change {
            Ok(true) => {
                Check::ok("delivery's change", format!("stored after {}", millis(began.elapsed())))
            }
            Ok(false) => Check::wrong(
                "delivery's change",
                format!("none within {} s", FOLLOW.as_secs()),
                "start a worker, or see its log: the event waits for it",
            ),
            Err(unanswered) => unanswered.told("delivery's change"),
        });
        matches!(change, Ok(true))
    }

    async fn take_back(&self, is_told: bool) -> Result<Check> {
        let name = "delivery taken back";
        let (id, delivery) = self.issue.delivery(true, self.secret)?;
        let (began, remedy) = (Instant::now(), "run doctor --deliver again, or ignore that issue");
        let place = format!("{OWNER}/{}#1", self.issue.repository);
        match http::post(self.url, &delivery).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => {
                let found = format!("{place} stays, since its deletion got {}", answer.status);
                return Ok(Check::warning(name, found, remedy));
            }
            Err(problem) => {
                let found = format!("{place} stays, since its deletion was not sent: {problem}");
                return Ok(Check::warning(name, found, remedy));
            }
        }
        let Some(connected) = self.broker.filter(|_| is_told) else {
            return Ok(Check::ok(name, format!("the deletion of {place} is kept, and follows it")));
        };
        let kind = ChangeKind::Deleted;
        let (subject, message_id) = (self.issue.change_subject(kind), format!("{id}:{kind}"));
        Ok(match stored(connected, CHANGES, &subject, &message_id, began).await {
            Ok(true) => {
                Check::ok(name, format!("{place} was deleted after {}", millis(began.elapsed())))
            }
            Ok(false) => Check::warning(
                name,
                format!("no change within {} s; the deletion of {place} is kept", FOLLOW.as_secs()),
                "see the worker's log",
            ),
            Err(unanswered) => unanswered.told(name),
        })
    }
}

fn answer_told(answer: Result<http::Answer, String>, url: &str, took: Duration) -> (Check, bool) {
    let name = "delivery";
    let check = match answer {
        Err(problem) => Check::wrong(name, format!("{url}: {problem}"), "see ingest's log"),
        Ok(answer) => {
            let body = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
            let message = body["message"].as_str().unwrap_or("no answer of ingest");
            match answer.status {
                200 if body["status"] == "accepted" => {
                    return (Check::ok(name, format!("kept after {}", millis(took))), true);
                }
                401 => Check::wrong(
                    name,
                    format!("401: {message}"),
                    "give ingest and Gitea's hooks the secret that is set here (GITEA_WEBHOOK_SECRET), or set theirs here",
                ),
                status => {
                    let remedy = "see ingest's log, and README.md, HTTP, for what the answer means";
                    Check::wrong(name, format!("{status}: {message}"), remedy)
                }
            }
        }
    };
    (check, false)
}

fn event_told(event: &Result<bool, Unanswered>, took: Duration) -> Check {
    let name = "delivery's event";
    match event {
        Ok(true) => Check::ok(name, format!("stored after {}", millis(took))),
        Ok(false) => Check::wrong(
            name,
            format!("none within {} s", FOLLOW.as_secs()),
            "see the check of the journal and ingest's log: it is kept, and not published",
        ),
        Err(unanswered) => unanswered.told(name),
    }
}

/// Waits until the last message on `subject` has this id, until [`FOLLOW`] after `began`.
async fn stored(
    connected: &Connected,
    stream: &str,
    subject: &str,
    id: &str,
    began: Instant,
) -> Result<bool, Unanswered> {
    let Connected { broker, session, .. } = connected;
    loop {
        let last = async {
            let stream = session.jetstream.get_stream_no_info(stream).await.ok()?;
            match stream.get_last_raw_message_by_subject(subject).await {
                Ok(message) => Some(message.headers.get("Nats-Msg-Id").map(ToString::to_string)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
                Err(_) => None,
            }
        };
        if ask(broker, last).await?.flatten().as_deref() == Some(id) {
            return Ok(true);
        }
        if began.elapsed() > FOLLOW {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

fn millis(took: Duration) -> String {
    format!("{} ms", took.as_millis())
}

/// Lets Gitea test a hook of a repository, and sees whether that arrives. Returns the hook's target
/// if it does.
pub(super) async fn giteas(
    ingest: Option<&Ingest>,
    gitea: Option<&GiteaFound>,
    checks: &mut Vec<Check>,
) -> Option<String> {
    let name = "delivery of gitea";
    let Some(gitea) = gitea else {
        checks.push(Check::needs(name, "token"));
        return None;
    };
    let testable = gitea.hooks.iter().filter_map(|found| match &found.scope {
        HookScope::Repository { owner, repo } if found.hook.active => {
            Some(Testable { owner, repo, found })
        }
        _ => None,
    });
    let testable: Vec<Testable> = testable.collect();
    if testable.is_empty() {
        let why = "no active hook of ours of a repository is seen, and Gitea tests no others";
        checks.push(Check::skipped(name, why));
        return None;
    }
    // Gitea takes any hook for a test, and says 204 also where it sends nothing.
    let sends_pushes = |it: &&Testable| it.found.hook.events.iter().any(|event| event == "push");
    let Some(testable) = testable.iter().find(sends_pushes) else {
        let why = "Gitea tests with a push, which our hooks do not ask for; change an issue, and see the hook's recent deliveries in Gitea";
        checks.push(Check::skipped(name, why));
        return None;
    };
    let metrics = ingest.and_then(|ingest| ingest.metrics.as_deref());
    let (check, arrived) = testable.test(&gitea.client, metrics).await;
    checks.push(check);
    arrived.then(|| testable.found.hook.url.clone())
}

/// A hook that Gitea can test.
struct Testable<'a> {
    owner: &'a str,
    repo: &'a str,
    found: &'a Found,
}

impl Testable<'_> {
    /// Says also whether the test arrived.
    async fn test(&self, client: &Client, metrics: Option<&str>) -> (Check, bool) {
        let (name, Self { owner, repo, found }) = ("delivery of gitea", self);
        let of = format!("hook {} of {owner}/{repo}", found.hook.id);
        if client.repository_by_name(owner, repo).await.is_ok_and(|answer| answer.value.is_empty) {
            let why = format!("{owner}/{repo} is empty, and Gitea sends nothing then");
            return (Check::skipped(name, why), false);
        }
        let before = counts(metrics).await;
        match client.test_hook(&found.scope, found.hook.id).await {
            Ok(_) => {}
            Err(ApiError::Forbidden { required, message, .. }) => {
                let why = if required.is_empty() { message } else { required.join(" or ") };
                let why = format!("the token may not have {of} tested: {why}");
                return (Check::skipped(name, why), false);
            }
            Err(error) => {
                let found = format!("{of} cannot be tested: {}", Causes(&error));
                return (Check::warning(name, found, "test it on its page in Gitea"), false);
            }
        }
        let Some(before) = before else {
            let found = format!("{of} was tested; whether it arrived is not known here");
            let remedy = "see its recent deliveries in Gitea, or run doctor where ingest's operator's listener is";
            return (Check::warning(name, found, remedy), false);
        };
        let began = Instant::now();
        while began.elapsed() < GITEAS {
            sleep(10 * LOOK).await;
            let Some(now) = counts(metrics).await else { continue };
            if now.ignored > before.ignored {
                let found = format!("{of}: a push arrived after {}", millis(began.elapsed()));
                return (Check::ok(name, found), true);
            }
            if now.unsigned > before.unsigned {
                let found = format!("{of}: a push arrived, and not with a secret that ingest has");
                let remedy = format!(
                    "run `coordinator register --repo {owner}/{repo} --replace`: a hook's secret cannot be edited"
                );
                return (Check::wrong(name, found, remedy), true);
            }
        }
        let found = format!("{of}: nothing has arrived within {} s", GITEAS.as_secs());
        let remedy = "see its recent deliveries in Gitea: ALLOWED_HOST_LIST ([webhook], or [security] in newer versions), the name, the network; another ingest may have got it";
        (Check::wrong(name, found, remedy), false)
    }
}

/// Deliveries that ingest has answered.
struct Counts {
    ignored: f64,
    /// Without a signature of ours.
    unsigned: f64,
}

async fn counts(metrics: Option<&str>) -> Option<Counts> {
    let answer = http::get(metrics?).await.ok().filter(|answer| answer.status == 200)?;
    Some(counted(&answer.body))
}

fn counted(metrics: &str) -> Counts {
    let mut counts = Counts { ignored: 0.0, unsigned: 0.0 };
    for line in metrics.lines().filter(|line| line.starts_with("coordinator_deliveries_total{")) {
        let number = line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok());
        let number = number.unwrap_or_default();
        if line.contains("outcome=\"ignored\"") {
            counts.ignored += number;
        } else if line.contains("outcome=\"signature_") {
            counts.unsigned += number;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_issue_is_none_that_gitea_has() {
        let (one, other) = (TestIssue::new(), TestIssue::new());
        assert!(one.repository_id >= LEAST_ID && one.repository.starts_with("doctor-"));
        assert_ne!((one.repository_id, &one.repository), (other.repository_id, &other.repository));
        let secret = Secret::new("s");
        for (is_deleted, action) in [(false, "assigned"), (true, "deleted")] {
            let (id, delivery) = one.delivery(is_deleted, &secret).expect("a delivery");
            let payload: Value = serde_json::from_slice(&delivery.body).expect("JSON");
            assert_eq!((id, payload["action"].as_str()), (delivery.id, Some(action)));
            assert_eq!(payload["repository"]["id"], one.repository_id);
            assert_eq!(payload["repository"]["owner"]["login"], OWNER);
        }
    }

    #[test]
    fn only_what_ingest_says_it_has_kept_is_kept() {
        let answer = |status, body: &str| Ok(http::Answer { status, body: body.into() });
        for (answer, kept, part) in [
            (answer(200, r#"{"status":"accepted"}"#), true, "kept"),
            (answer(200, "hello"), false, "200: no answer of ingest"),
            (answer(401, r#"{"error":"e","message":"wrong"}"#), false, "401: wrong"),
            (answer(503, r#"{"error":"e","message":"full"}"#), false, "503: full"),
            (Err("refused".into()), false, "refused"),
        ] {
            let (check, is_kept) = answer_told(answer, "http://h", Duration::ZERO);
            assert_eq!(is_kept, kept, "{}", check.found);
            assert!(check.found.contains(part), "{}", check.found);
        }
    }

    #[test]
    fn deliveries_are_counted_by_their_outcome() {
        let metrics = "# TYPE coordinator_deliveries_total counter\n\
            coordinator_deliveries_total{outcome=\"ignored\"} 3\n\
            coordinator_deliveries_total{outcome=\"accepted\"} 7\n\
            coordinator_deliveries_total{outcome=\"signature_missing\"} 1\n\
            coordinator_deliveries_total{outcome=\"signature_mismatch\"} 2\n";
        let counts = counted(metrics);
        assert_eq!((counts.ignored, counts.unsigned), (3.0, 3.0));
    }
}
