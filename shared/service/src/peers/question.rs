//! What a process can be asked.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The processes that a question is for, by the role that they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Every process that receives webhooks.
    Ingest,
    /// Every process that handles events.
    Worker,
    /// Every process that runs what rules say.
    Reactor,
    /// Every process.
    All,
}

impl Asked {
    /// Names of the roles.
    pub(super) fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Ingest => &["ingest"],
            Self::Worker => &["worker"],
            Self::Reactor => &["reactor"],
            Self::All => &["ingest", "worker", "reactor"],
        }
    }
}

/// A question, as it is sent in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "question")]
pub enum Question {
    /// How the process is: its health, and how much it did lately.
    Status,
    /// The spans of a trace that the process still keeps.
    Spans {
        /// The trace id, 32 hexadecimal digits.
        trace_id: String,
    },
    /// What the journal holds of a delivery. For ingest.
    Delivery {
        /// The delivery's id.
        id: Uuid,
        /// Whether the payload is wanted, too.
        payload: bool,
    },
    /// Publish the event of a delivery once more, under another message id. For ingest.
    Redeliver {
        /// The delivery's id.
        id: Uuid,
    },
    /// Publish the event of a dead letter once more. It stays in its stream. For ingest.
    Redrive {
        /// The dead letter's sequence.
        sequence: u64,
    },
    /// The runs that go on, that wait, and the last ones that are over. For reactors.
    Runs,
    /// One run, with the end of its output. For reactors.
    Run {
        /// The run's key.
        key: String,
    },
    /// End a run. It begins no more until somebody is assigned anew. For a reactor.
    StopRun {
        /// The run's key.
        key: String,
        /// Which run of the key is meant: another one is not stopped.
        generation: u64,
    },
    /// Begin a run that is over once more, if its issue is still assigned. For a reactor.
    RunAgain {
        /// The run's key.
        key: String,
        /// Which run of the key is meant: after another one nothing begins.
        generation: u64,
    },
}
