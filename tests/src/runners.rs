//! Runners as processes, and agents that write down when they begin and end.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use async_nats::jetstream;
use contract::names;
use serde_json::Value;

use crate::{process::Process, wait};

/// An agent: a shell that writes its lines into the file `LOG` and runs until TERM.
///
/// A start is noted once TERM is, too.
pub const AGENT: &str = r#"
# What it writes after its runner was killed would end it before it notes anything.
exec >/dev/null 2>&1
cat > "$LOG.$COORDINATOR_RUN.json"
note() { echo "$1 $COORDINATOR_RULE $COORDINATOR_ISSUE $COORDINATOR_RUN $$ $(date +%s%N)" >> "$LOG"; }
trap 'note term; exit 0' TERM
note start
# A shell that is told while it starts a command hears of it only after that command.
while :; do sleep 0.1; done
"#;

/// A directory with rules, and with what agents write down.
pub struct Agents {
    dir: tempfile::TempDir,
}

/// One line that an agent has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `start`, `term` or `end`.
    pub what: String,
    /// Name of the rule.
    pub rule: String,
    /// `owner/name#number`.
    pub issue: String,
    /// Id of the run.
    pub run: String,
    /// Its process.
    pub pid: u32,
    /// When, in nanoseconds since 1970.
    pub at: u128,
}

impl Default for Agents {
    fn default() -> Self {
        Self { dir: crate::temp_dir() }
    }
}

impl Agents {
    /// The file of the rules.
    pub fn rules(&self) -> PathBuf {
        self.dir.path().join("rules.toml")
    }

    /// The file that agents write to.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Writes the file of the rules.
    pub fn write_rules(&self, text: &str) {
        fs::write(self.rules(), text).expect("write the rules");
    }

    /// A rule for the login `bot` that runs this shell script, with more keys of the rule.
    pub fn rule(name: &str, script: &str, more: &str) -> String {
        Self::rule_for("login = \"bot\"", name, script, more)
    }

    /// The same for somebody else: keys of `who`.
    pub fn rule_for(who: &str, name: &str, script: &str, more: &str) -> String {
        format!(
            "[[rule]]\nname = \"{name}\"\nwho = {{ {who} }}\n\
             run = {{ argv = [\"/bin/sh\", \"-c\", '''{script}'''], environment = [\"LOG\"], \
             grace_secs = 1 }}\n{more}\n"
        )
    }

    /// Starts a runner whose leases last this long.
    pub fn runner(&self, exe: &Path, nats_url: &str, lease_secs: &str) -> Process {
        self.runner_with(exe, nats_url, lease_secs, &[])
    }

    /// The same with more settings.
    pub fn runner_with(
        &self,
        exe: &Path,
        nats_url: &str,
        lease_secs: &str,
        more: &[(&str, &str)],
    ) -> Process {
        let (rules, log) = (self.rules(), self.log());
        let environment = [
            ("GITEA_URL", "http://localhost:3000"),
            ("NATS_URL", nats_url),
            ("OPERATOR_PORT", "0"),
            ("REACTOR_RULES", rules.to_str().expect("UTF-8")),
            ("REACTOR_LEASE_SECS", lease_secs),
            ("LOG", log.to_str().expect("UTF-8")),
            ("NOT_PASSED_ON", "secret"),
        ];
        Process::start(exe, "react", &[], &[&environment[..], more].concat())
    }

    /// What the agents have written so far.
    pub fn notes(&self) -> Vec<Note> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter_map(note).collect()
    }

    /// How often each word was written of an issue.
    pub fn count(&self, issue: &str, what: &str) -> usize {
        let notes = self.notes();
        notes.iter().filter(|note| note.issue == issue && note.what == what).count()
    }

    /// Waits until a word was written so often of an issue.
    ///
    /// # Panics
    /// At the deadline.
    pub async fn noted(&self, issue: &str, what: &str, times: usize) {
        let what_for = format!("{times} {what} of {issue}");
        wait::until_equal(&what_for, times, || async { self.count(issue, what) }).await;
    }

    /// What the run read from its standard input.
    pub fn input(&self, run: &str) -> Option<Value> {
        let path = self.dir.path().join(format!("log.{run}.json"));
        serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
    }

    /// Agents that run now, by the marks of their runs: their processes.
    pub fn running(&self) -> BTreeMap<String, Vec<u32>> {
        let mark = format!("LOG={}", self.log().display());
        let mut running: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            let environment = String::from_utf8_lossy(&environment).into_owned();
            let mut variables = environment.split('\0');
            if !variables.clone().any(|variable| variable == mark) {
                continue;
            }
            // Runners have the variable too.
            if let Some(run) = variables.find_map(|v| v.strip_prefix("COORDINATOR_RUN=")) {
                running.entry(run.to_owned()).or_default().push(pid);
            }
        }
        running
    }
}

/// The entry of a run. Null while there is none.
pub async fn run_entry(js: &jetstream::Context, key: &str) -> Value {
    let Ok(bucket) = js.get_key_value(names::RUNS).await else {
        return Value::Null;
    };
    let value = bucket.get(key).await.expect("an answer");
    value.map_or(Value::Null, |value| serde_json::from_slice(&value).expect("JSON"))
}

fn note(line: &str) -> Option<Note> {
    let mut words = line.split(' ');
    let mut next = || words.next().map(str::to_owned);
    Some(Note {
        what: next()?,
        rule: next()?,
        issue: next()?,
        run: next()?,
        pid: next()?.parse().ok()?,
        at: next()?.parse().ok()?,
    })
}
