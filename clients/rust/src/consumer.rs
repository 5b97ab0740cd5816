//! The durable consumer: found, checked, created or put right, and asked how it stands.

use std::time::Duration;

use async_nats::{Client, RequestErrorKind};
use contract::timestamp::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::{Error, Start, connection::Trouble, filter::covers, hand::Standing};

const NO_CONSUMER: u64 = 10014;
const NO_STREAM: u64 = 10059;
/// How long an answer may take. While a cluster elects a leader there is none.
const PATIENCE: Duration = Duration::from_secs(1);
const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// The broker cannot do it now. It is asked again.
#[derive(Debug)]
pub(crate) struct NotNow {
    pub(crate) text: String,
    /// It did not answer at all.
    pub(crate) silent: bool,
}

impl NotNow {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), silent: false }
    }
}

/// What the consumer should be like.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) stream: &'static str,
    pub(crate) durable: String,
    pub(crate) subjects: Vec<String>,
    pub(crate) start: Start,
    pub(crate) ack_wait: Duration,
    pub(crate) ahead: usize,
}

impl Wanted {
    fn subject(&self, question: &str) -> String {
        format!("CONSUMER.{question}.{}.{}", self.stream, self.durable)
    }
}

/// What the consumer is like.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) standing: Standing,
    pub(crate) ack_wait: Duration,
    /// Most messages that the broker gives out before the first of them is acked.
    pub(crate) most_unacked: usize,
    /// Most messages of one request, 0 for any.
    pub(crate) most_batch: usize,
    /// Longest wait of one request, 0 for any.
    pub(crate) most_expires: Duration,
    /// When the consumer was created, as the broker writes it.
    created: String,
    /// The stream is another one than at the last time.
    pub(crate) new_stream: bool,
}

#[derive(Deserialize)]
struct Info {
    config: Map<String, Value>,
    delivered: Pair,
    ack_floor: Pair,
    num_ack_pending: u64,
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    num_waiting: u64,
    created: String,
}

#[derive(Deserialize)]
struct Pair {
    consumer_seq: u64,
    stream_seq: u64,
}

/// What the broker refuses.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

async fn ask(
    client: &Client,
    subject: &str,
    question: Option<&Value>,
    patience: Duration,
) -> Result<Result<Value, Refusal>, NotNow> {
    let payload = question.map(Value::to_string).unwrap_or_default();
    let request = client.request(format!("$JS.API.{subject}"), payload.into());
    let answer = match timeout(patience, request).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
            return Err(NotNow::new("JetStream does not answer"));
        }
        Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => {
            return Err(NotNow::new(error.to_string()));
        }
        Ok(Err(_)) | Err(_) => {
            return Err(NotNow { text: "JetStream is silent".into(), silent: true });
        }
    };
    let mut answer: Value = serde_json::from_slice(&answer.payload)
        .map_err(|_| NotNow::new("the answer of JetStream is no JSON"))?;
    match answer.get_mut("error").map(Value::take) {
        None => Ok(Ok(answer)),
        Some(refusal) => match serde_json::from_value(refusal) {
            Ok(refusal) => Ok(Err(refusal)),
            Err(_) => Err(NotNow::new("JetStream refuses without a reason")),
        },
    }
}

fn read(answer: Value) -> Result<Info, NotNow> {
    serde_json::from_value(answer).map_err(|_| NotNow::new("the answer of JetStream is no info"))
}

/// How the consumer stands; none if there is none.
pub(crate) async fn look(
    client: &Client,
    wanted: &Wanted,
    patience: Duration,
) -> Result<Option<Standing>, NotNow> {
    match ask(client, &wanted.subject("INFO"), None, patience).await? {
        Ok(answer) => Ok(Some(found(&read(answer)?).standing)),
        Err(refusal) if refusal.err_code == NO_CONSUMER => Ok(None),
        Err(refusal) => Err(NotNow::new(refusal.description)),
    }
}

/// The consumer, which is created if there is none. If there was a `former` one of that name, it
/// goes on at the sequence `resume_at`, or at the beginning if the stream is another one.
pub(crate) async fn ensure(
    client: &Client,
    wanted: &Wanted,
    former: Option<&Found>,
    resume_at: u64,
) -> Result<Found, Trouble> {
    let there = match ask(client, &wanted.subject("INFO"), None, PATIENCE).await? {
        Ok(answer) => Some(read(answer)?),
        Err(refusal) if refusal.err_code == NO_CONSUMER => None,
        Err(refusal) if refusal.err_code == NO_STREAM => {
            return Err(NotNow::new(format!("there is no stream {} yet", wanted.stream)).into());
        }
        Err(refusal) => return Err(NotNow::new(refusal.description).into()),
    };
    let new_stream = match former {
        Some(former) if there.as_ref().is_none_or(|info| info.created != former.created) => {
            is_newer(client, wanted.stream, &former.created).await?
        }
        _ => false,
    };
    let info = match there {
        Some(info) => {
            check(wanted, &info.config).map_err(Trouble::Fatal)?;
            widen_if_narrower(client, wanted, &info.config).await?;
            info
        }
        None => {
            let start = match former {
                Some(_) if new_stream => &Start::All,
                Some(_) => &Start::Sequence(resume_at),
                None => &wanted.start,
            };
            create(client, wanted, start).await?
        }
    };
    Ok(Found { new_stream, ..found(&info) })
}

/// Whether the stream was created after that time. Where that is not known, it is asked again: in a
/// new stream the consumer must not go on where it was in the former one.
async fn is_newer(client: &Client, stream: &str, than: &str) -> Result<bool, NotNow> {
    let answer = ask(client, &format!("STREAM.INFO.{stream}"), None, PATIENCE).await;
    let answer = answer.map_err(|NotNow { text, silent }| {
        let text = format!(
            "whether {stream} is the same stream as before is not known ({text}); the user has to \
             be allowed $JS.API.STREAM.INFO.{stream}"
        );
        NotNow { text, silent }
    })?;
    let answer = answer.map_err(|refusal| NotNow::new(refusal.description))?;
    let time = |text: &str| Timestamp::parse(text).map(Timestamp::unix_micros).ok();
    match (answer.get("created").and_then(Value::as_str).and_then(time), time(than)) {
        (Some(created), Some(than)) => Ok(created > than),
        _ => Err(NotNow::new("the answer of JetStream is no info")),
    }
}

fn check(wanted: &Wanted, config: &Map<String, Value>) -> Result<(), Error> {
    let name = format!("the consumer {} of {}", wanted.durable, wanted.stream);
    let wrong = |text: String| Err(Error::Consumer(format!("{name} {text}")));
    if config.contains_key("deliver_subject") {
        return wrong("pushes its messages; delete it, or take another durable name".into());
    }
    if config.get("ack_policy").and_then(Value::as_str) != Some("explicit") {
        return wrong("wants no ack of each message; delete it, or take another name".into());
    }
    if config.get("headers_only").and_then(Value::as_bool) == Some(true) {
        return wrong("leaves the payloads out; set its headers_only to false".into());
    }
    match config.get("max_deliver").and_then(Value::as_i64) {
        Some(most) if most > 0 => {
            wrong(format!("gives messages up after {most} deliveries; set its max_deliver to -1"))
        }
        _ => Ok(()),
    }
}

async fn create(client: &Client, wanted: &Wanted, start: &Start) -> Result<Info, Trouble> {
    let mut config = json!({
        "name": wanted.durable,
        "durable_name": wanted.durable,
        "ack_policy": "explicit",
        "ack_wait": nanos(wanted.ack_wait),
        "max_deliver": -1,
        "max_ack_pending": wanted.ahead,
        "replay_policy": "instant",
        "filter_subjects": wanted.subjects,
    });
    match start {
        Start::All => config["deliver_policy"] = "all".into(),
        Start::New => config["deliver_policy"] = "new".into(),
        Start::Time(time) => {
            config["deliver_policy"] = "by_start_time".into();
            config["opt_start_time"] = time.to_string().into();
        }
        Start::Sequence(sequence) => {
            config["deliver_policy"] = "by_start_sequence".into();
            config["opt_start_seq"] = (*sequence).max(1).into();
        }
    }
    let question = json!({"stream_name": wanted.stream, "config": config, "action": "create"});
    let durable = &wanted.durable;
    match ask(client, &wanted.subject("CREATE"), Some(&question), LONG_PATIENCE).await {
        Ok(Ok(answer)) => {
            info!(durable, stream = wanted.stream, "created the durable consumer");
            Ok(read(answer)?)
        }
        Ok(Err(refusal)) => Err(Trouble::Fatal(Error::Consumer(format!(
            "the broker refuses the consumer {durable}: {}",
            refusal.description
        )))),
        Err(error) => Err(NotNow::new(format!(
            "there is no consumer {durable}, and it cannot be created ({}); if this user may not, \
             its admin does: coordinator create-streams --reader {durable}",
            error.text
        ))
        .into()),
    }
}

/// Gives a consumer the wanted filters, where it has narrower ones.
async fn widen_if_narrower(
    client: &Client,
    wanted: &Wanted,
    config: &Map<String, Value>,
) -> Result<(), Trouble> {
    let given: Vec<&str> = match config.get("filter_subjects").and_then(Value::as_array) {
        Some(many) if !many.is_empty() => many.iter().filter_map(Value::as_str).collect(),
        _ => match config.get("filter_subject").and_then(Value::as_str) {
            Some(one) if !one.is_empty() => vec![one],
            _ => vec![">"],
        },
    };
    let missing: Vec<&str> = wanted
        .subjects
        .iter()
        .map(String::as_str)
        .filter(|subject| !given.iter().any(|given| covers(given, subject)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut changed = config.clone();
    changed.remove("filter_subject");
    changed.insert("filter_subjects".into(), json!(wanted.subjects));
    let question = json!({"stream_name": wanted.stream, "config": changed, "action": "update"});
    let durable = &wanted.durable;
    let why = format!("the consumer {durable} does not deliver {}", missing.join(", "));
    match ask(client, &wanted.subject("CREATE"), Some(&question), LONG_PATIENCE).await {
        Ok(Ok(_)) => {
            warn!(durable, "the durable consumer has the filters of this program now");
            Ok(())
        }
        Ok(Err(refusal)) => Err(Trouble::Fatal(Error::Consumer(format!(
            "{why}, and the broker refuses to change it: {}",
            refusal.description
        )))),
        Err(error) => {
            Err(NotNow::new(format!("{why}, and cannot be changed ({})", error.text)).into())
        }
    }
}

fn found(info: &Info) -> Found {
    let number = |name: &str| info.config.get(name).and_then(Value::as_i64).unwrap_or(0);
    let positive = |name: &str| u64::try_from(number(name)).unwrap_or(0);
    Found {
        standing: Standing {
            delivered: info.delivered.consumer_seq,
            last_sequence: info.delivered.stream_seq,
            floor: info.ack_floor.stream_seq,
            unacked: info.num_ack_pending,
            undelivered: info.num_pending,
            waiting: info.num_waiting,
        },
        ack_wait: match positive("ack_wait") {
            0 => Duration::from_secs(30),
            nanos => Duration::from_nanos(nanos),
        },
        most_unacked: match positive("max_ack_pending") {
            0 => 10_000,
            most => usize::try_from(most).unwrap_or(usize::MAX),
        },
        most_batch: usize::try_from(positive("max_batch")).unwrap_or(usize::MAX),
        most_expires: Duration::from_nanos(positive("max_expires")),
        created: info.created.clone(),
        new_stream: false,
    }
}

/// A duration as the broker reads it.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
