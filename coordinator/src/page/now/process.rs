//! A process that answered: what it says of its health.

use contract::timestamp::Timestamp;
use serde_json::Value;
use service::peers::{Answer, Reply, Series};

use super::super::text;

/// A process, as its health says it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Process {
    pub(super) roles: Vec<String>,
    pub(super) host: String,
    pub(super) pid: u32,
    pub(super) version: String,
    pub(super) started_at: Timestamp,
    pub(super) status: String,
    pub(super) ready: bool,
    pub(super) broker: Option<String>,
    /// Why the broker does not serve it.
    pub(super) broker_problem: Option<String>,
    /// What on the broker is not as needed.
    pub(super) unfit: Vec<String>,
    /// What is wrong with its rules, so that the former ones stay in place.
    pub(super) wrong_rules: Option<String>,
    pub(super) journal: Option<Journal>,
    pub(super) partitions_consumed: Option<u64>,
    pub(super) asks_gitea: Option<bool>,
    /// How Gitea answers: `ok`, or an operation and its outcome.
    pub(super) gitea: Option<String>,
}

/// The journal of an ingest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Journal {
    pub(super) writable: bool,
    pub(super) depth: u64,
    pub(super) oldest_secs: f64,
    pub(super) used_bytes: u64,
    pub(super) set_aside: u64,
}

/// The processes, and the measures of all of them.
pub(super) fn read(answers: Vec<Answer>) -> (Vec<Process>, Vec<Series>) {
    let (mut processes, mut series) = (Vec::new(), Vec::new());
    for answer in answers {
        if let Reply::Status(status) = answer.reply {
            let instance = answer.instance;
            processes.push(Process {
                roles: instance.roles,
                host: instance.host,
                pid: instance.pid,
                version: instance.version,
                started_at: instance.started_at,
                ..Process::of(&status.health)
            });
            series.extend(status.series);
        }
    }
    processes.sort_by(|one, other| {
        (&one.roles, &one.host, one.pid).cmp(&(&other.roles, &other.host, other.pid))
    });
    (processes, series)
}

impl Process {
    fn of(health: &Value) -> Self {
        let text = |name: &str| health.get(name).and_then(Value::as_str).map(str::to_owned);
        let journal = health.get("journal").map(|journal| {
            let number = |name: &str| journal.get(name).and_then(Value::as_u64).unwrap_or(0);
            Journal {
                writable: journal.get("writable").and_then(Value::as_bool).unwrap_or(true),
                depth: number("depth"),
                oldest_secs: journal
                    .get("oldest_unpublished_age_secs")
                    .and_then(Value::as_f64)
                    .unwrap_or(0.0),
                used_bytes: number("used_bytes"),
                set_aside: number("set_aside"),
            }
        });
        let unfit = health.get("unfit").and_then(Value::as_array).into_iter().flatten();
        Self {
            roles: Vec::new(),
            host: String::new(),
            pid: 0,
            version: String::new(),
            started_at: Timestamp::from_unix_micros(0),
            status: text("status").unwrap_or_else(|| "unknown".into()),
            ready: health.get("ready").and_then(Value::as_bool).unwrap_or(false),
            broker: text("broker"),
            broker_problem: text("broker_problem"),
            unfit: unfit.filter_map(Value::as_str).map(str::to_owned).collect(),
            wrong_rules: text("wrong_rules"),
            journal,
            partitions_consumed: health.get("partitions_consumed").and_then(Value::as_u64),
            asks_gitea: health.get("asks_gitea").and_then(Value::as_bool),
            gitea: text("gitea"),
        }
    }

    /// Whether it says that all is well.
    pub(super) fn is_well(&self) -> bool {
        self.status == "ok" && self.ready
    }

    /// Whether it runs a role.
    pub(super) fn is(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own == role)
    }

    /// What it says besides its health.
    pub(super) fn details(&self) -> String {
        let mut details = Vec::new();
        if let Some(broker) = &self.broker {
            details.push(format!("broker {}", text::line(broker, text::NAME)));
        }
        if let Some(journal) = &self.journal {
            let Journal { depth, used_bytes, writable, .. } = journal;
            let used = text::bytes(*used_bytes);
            let not = if *writable { "" } else { ", not writable" };
            details.push(format!("journal {} unpublished, {used}{not}", text::number(*depth)));
        }
        if let Some(consumed) = self.partitions_consumed {
            details.push(format!("{consumed} partitions"));
        }
        if self.asks_gitea == Some(true) {
            let gitea = self.gitea.as_deref().unwrap_or("ok");
            details.push(format!("asks Gitea: {}", text::line(gitea, text::NAME)));
        }
        details.join("; ")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A process that runs one role.
    pub(in super::super) fn process(role: &str, health: &Value) -> Process {
        let host = "h".into();
        Process { roles: vec![role.into()], host, ..Process::of(health) }
    }

    #[test]
    fn health_is_read_whatever_it_lacks() {
        let ingest = process(
            "ingest",
            &json!({"status": "ok", "ready": true, "broker": "connected", "unfit": [],
                "journal": {"writable": true, "depth": 3, "oldest_unpublished_age_secs": 1.5,
                    "used_bytes": 4096, "set_aside": 0}}),
        );
        assert!(ingest.is_well() && ingest.is("ingest") && !ingest.is("worker"));
        assert_eq!(ingest.details(), "broker connected; journal 3 unpublished, 4.1 kB");
        let nothing = process("worker", &json!([]));
        assert_eq!((nothing.status.as_str(), nothing.ready), ("unknown", false));
        assert_eq!(nothing.details(), "");
        let worker = process(
            "worker",
            &json!({"partitions_consumed": 64, "asks_gitea": true, "gitea": "search: unauthorized"}),
        );
        assert_eq!(worker.details(), "64 partitions; asks Gitea: search: unauthorized");
    }
}
