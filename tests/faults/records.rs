//! The records of a run, one JSON object per line. The harness writes these
//! files and the checker reads them. They share nothing else.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The snapshot that a delivery carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Repository id.
    pub repository: i64,
    /// Issue number.
    pub number: u64,
    /// SHA-256 of the body, in hex.
    pub digest: String,
    /// Gitea's action.
    pub action: String,
    /// Logins, in Gitea's order.
    pub assignees: Vec<String>,
    /// `open` or `closed`.
    pub state: String,
    /// Seconds since 1970. None where Gitea sends a zero value.
    pub updated_at: Option<i64>,
}

/// A delivery that was sent. Times are microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// `X-Gitea-Delivery`.
    pub id: String,
    /// Content of the delivery.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// The body was sent before under another id.
    pub again: bool,
    /// Which ingest it went to.
    pub ingest: usize,
    /// When the request began.
    pub sent_at: i64,
    /// When it was answered or given up.
    pub ended_at: i64,
    /// The answer's status; 0 when there was none.
    pub status: u16,
}

/// A message of the events stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Sequence in the stream.
    pub seq: u64,
    /// When the broker stored it.
    pub stored_at: i64,
    /// Its subject.
    pub subject: String,
    /// `Nats-Msg-Id`.
    pub message_id: String,
    /// Id of the delivery that the event names.
    pub delivery: String,
    /// Content of the event.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

/// A message of the changes stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Sequence in the stream.
    pub seq: u64,
    /// `Nats-Msg-Id`.
    pub message_id: String,
    /// Id of the delivery that the change names as its cause.
    pub delivery: String,
    /// Repository id.
    pub repository: i64,
    /// Issue number.
    pub number: u64,
    /// `unassigned`, `closed`, `reopened`, `assigned` or `deleted`.
    pub kind: String,
    /// Logins that the change adds.
    pub added: Vec<String>,
    /// Logins that the change removes.
    pub removed: Vec<String>,
    /// Logins that are assigned after the change.
    pub assignees: Vec<String>,
    /// Whether it is marked as in doubt.
    pub in_doubt: bool,
    /// Whether it is marked as first seen.
    pub first_seen: bool,
}

/// A change as a subscriber received it during the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When the subscriber received it.
    pub at: i64,
    /// Sequence in the stream.
    pub seq: u64,
    /// `Nats-Msg-Id`.
    pub message_id: String,
}

/// An entry of the bucket of issue states at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its key, `<repository>.<number>`.
    pub key: String,
    /// Logins.
    pub assignees: Vec<String>,
    /// `open`, `closed` or `deleted`.
    pub state: String,
    /// Seconds since 1970.
    pub updated_at: Option<i64>,
    /// Whether it is marked as in doubt.
    pub in_doubt: bool,
}

/// A fault that was injected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its number in the schedule.
    pub n: usize,
    /// Its kind.
    pub kind: String,
    /// When it began.
    pub began_at: i64,
    /// When it was over.
    pub ended_at: i64,
    /// Description of the fault, for people.
    pub told: String,
}

/// The kind of the fault after which stored messages may be gone and may come again.
pub const TAIL_LOST: &str = "tail-lost";

/// All records of one run.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// `sent.jsonl`
    pub sent: Vec<Sent>,
    /// `events.jsonl`, in order of the stream.
    pub events: Vec<Event>,
    /// `changes.jsonl`, in order of the stream.
    pub changes: Vec<Change>,
    /// `seen.jsonl`, in order of arrival.
    pub seen: Vec<Seen>,
    /// `states.jsonl`
    pub states: Vec<State>,
    /// `dead.jsonl`: the delivery ids of dead letters.
    pub dead: Vec<String>,
    /// `faults.jsonl`
    pub faults: Vec<Fault>,
}

impl Records {
    /// Reads a run's directory.
    pub fn read(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            sent: read(&dir.join("sent.jsonl"))?,
            events: read(&dir.join("events.jsonl"))?,
            changes: read(&dir.join("changes.jsonl"))?,
            seen: read(&dir.join("seen.jsonl"))?,
            states: read(&dir.join("states.jsonl"))?,
            dead: read(&dir.join("dead.jsonl"))?,
            faults: read(&dir.join("faults.jsonl"))?,
        })
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> io::Result<Vec<T>> {
    let lines = BufReader::new(File::open(file)?).lines();
    lines.map(|line| serde_json::from_str(&line?).map_err(io::Error::other)).collect()
}

/// A file of records that is being written.
pub struct Lines(BufWriter<File>);

impl Lines {
    /// Creates the file.
    pub fn create(file: &Path) -> io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(file)?)))
    }

    /// Adds a record.
    pub fn add(&mut self, record: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, record)?;
        self.0.write_all(b"\n")
    }

    /// Hands all buffered records to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
