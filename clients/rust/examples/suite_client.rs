//! The Rust client under the common suite (`clients/suite/README.md`).

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use coordinator_client::{
    BoxError, Failure, Handled, Memory, Received, Settings, change::Change, changes,
};
use futures::future::{BoxFuture, FutureExt, ready};
use tokio::time::sleep;

/// The record is the effect and holds the ids: one write keeps both.
#[derive(Clone)]
struct Record(Arc<Mutex<(File, HashSet<String>)>>);

impl Record {
    fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let text = std::fs::read_to_string(path)?;
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let ids = whole.filter_map(|line| line.split_whitespace().last().map(str::to_owned));
        Ok(Self(Arc::new(Mutex::new((file, ids.collect())))))
    }

    fn write(&self, change: &Received<Change>) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let (repository, number) = (change.repository.id, change.issue.number);
        let (sequence, id) = (change.message.sequence, &change.message.id);
        let line = format!("{now} {sequence} {repository}.{number} {id}\n");
        let (file, ids) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())?;
        ids.insert(id.clone());
        Ok(())
    }
}

impl Memory for Record {
    fn seen<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, BoxError>> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner).1.contains(id);
        ready(Ok(seen)).boxed()
    }

    fn keep<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
        ready(Ok(())).boxed()
    }
}

/// Some take long, and some fail at first.
async fn handle(draw: f64, record: Record, change: Received<Change>) -> Handled {
    if draw < 0.01 {
        sleep(Duration::from_secs_f64(draw * 10.0)).await;
    } else if draw < 0.015 {
        return Err(Failure::Again(Duration::from_millis(20)));
    } else if draw < 0.5 {
        tokio::task::yield_now().await;
    }
    Ok(record.write(&change)?)
}

fn argument(name: &str) -> Result<String> {
    let found = std::env::args().skip_while(|argument| argument != name).nth(1);
    found.with_context(|| format!("{name} is missing"))
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let record = Record::open(&argument("--record")?)?;
    let ack_wait = Duration::from_secs_f64(argument("--ack-wait")?.parse()?);
    let chance = Mutex::new(fastrand::Rng::with_seed(argument("--seed")?.parse()?));
    let memory = record.clone();
    let subscription = changes(argument("--durable")?, move |change| {
        let draw = chance.lock().unwrap_or_else(PoisonError::into_inner).f64();
        handle(draw, record.clone(), change)
    })
    .memory(memory)
    .ack_wait(ack_wait)
    .on_consuming(|| println!("consuming"));
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin().read_line(&mut line).is_ok_and(|length| length > 0) {
            if line == "stop\n" {
                break;
            }
            line.clear();
        }
        let _ = stop.send(());
    });
    let settings = Settings::new(argument("--nats-url")?);
    subscription.serve(settings, async { drop(stopped.await) }).await?;
    println!("stopped");
    Ok(())
}
