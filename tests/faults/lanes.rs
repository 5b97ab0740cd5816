//! Two lanes of faults that run concurrently: one for the services, one for the broker.

mod broker;
mod services;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

pub use broker::BrokerLane;
pub use services::ServiceLane;

use crate::{
    clock,
    plan::Step,
    records::{Fault, Lines},
};

/// The log of both lanes.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Inner>>);

struct Inner {
    lines: Lines,
    by_kind: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

impl Log {
    /// Writes `faults.jsonl` into `dir`.
    pub fn create(dir: &Path) -> Self {
        let lines = Lines::create(&dir.join("faults.jsonl")).expect("create faults.jsonl");
        Self(Arc::new(Mutex::new(Inner { lines, by_kind: BTreeMap::new(), wrong: Vec::new() })))
    }

    /// Records a fault that is over.
    fn add(&self, step: &Step, began_at: i64, told: String) {
        let mut inner = self.0.lock().expect("no panic");
        println!("{step}; {told}");
        *inner.by_kind.entry(step.kind.name()).or_default() += 1;
        let ended_at = clock::now();
        let kind = step.kind.name().to_owned();
        inner.lines.add(&Fault { n: step.n, kind, began_at, ended_at, told }).expect("write");
        inner.lines.flush().expect("write faults.jsonl");
    }

    /// Records a violation that the checker cannot see in the records.
    pub fn wrong(&self, what: String) {
        println!("WRONG: {what}");
        self.0.lock().expect("no panic").wrong.push(what);
    }

    /// How many faults of each kind there were, and what was wrong.
    pub fn result(&self) -> (BTreeMap<&'static str, usize>, Vec<String>) {
        let inner = self.0.lock().expect("no panic");
        (inner.by_kind.clone(), inner.wrong.clone())
    }
}
