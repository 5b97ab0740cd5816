//! Faults of the broker and of the lines to it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::partitions::Partitions;
use fastrand::Rng;
use tests::process::signal;
use tokio::{sync::Mutex, time::sleep};

use super::Log;
use crate::{
    clock, consumers,
    consumers::Edit,
    plan::{Broker, Kind, Step},
    proxy::Line,
    servers::{self, CHANGES, EVENTS, STATES, Servers},
};

/// How long an election, or a limit that must be lifted, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lane of the broker.
pub struct BrokerLane {
    /// The servers and the lines to them.
    pub servers: Arc<Mutex<Servers>>,
    /// A connection that does not use the proxies.
    pub js: jetstream::Context,
    /// Log of the faults.
    pub log: Log,
}

impl BrokerLane {
    /// Injects the faults, one after the other.
    pub async fn run(&self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            let Kind::Broker(kind) = step.kind else { continue };
            sleep(step.pause).await;
            let servers = Arc::clone(&self.servers);
            let mut servers = servers.lock().await;
            let mut began_at = clock::now();
            let told = self.fault(kind, step, &mut servers, &mut began_at).await?;
            self.log.add(step, began_at, told);
        }
        Ok(())
    }

    async fn fault(
        &self,
        kind: Broker,
        step: &Step,
        servers: &mut Servers,
        began_at: &mut i64,
    ) -> Result<String, String> {
        let (rng, lasts) = (&mut Rng::with_seed(step.seed), step.lasts);
        let any = rng.usize(..servers.nodes.len());
        match kind {
            Broker::Kill => Ok(kill(servers, any, lasts).await),
            Broker::Stop => Ok(stop(servers, any, lasts).await),
            Broker::Away => {
                servers.kill();
                sleep(lasts).await;
                servers.restart().await;
                Ok("all servers".into())
            }
            Broker::Cut => {
                let (ingests, workers, sides) = sides(rng);
                servers.cut_lines(ingests, workers);
                Ok(sides.into())
            }
            Broker::Delay => {
                let by = Duration::from_millis(rng.u64(20..400));
                Ok(bad_line(servers, rng, Line::Delayed(by), lasts).await)
            }
            Broker::Stall => Ok(bad_line(servers, rng, Line::Stalled, lasts).await),
            Broker::HalfOpen => Ok(bad_line(servers, rng, Line::HalfOpen, lasts).await),
            Broker::Throttle => {
                let rate = rng.u32(20_000..200_000);
                Ok(bad_line(servers, rng, Line::Thin(rate), lasts).await)
            }
            Broker::FullEvents => self.full(EVENTS, lasts).await,
            Broker::FullChanges => self.full(CHANGES, lasts).await,
            Broker::FullStates => self.full(STATES, lasts).await,
            Broker::EditConsumers => self.edit_consumers(rng).await,
            Broker::DeleteConsumer => self.delete_consumer(rng).await,
            Broker::TailLost => self.tail_lost(servers, lasts, began_at).await,
            Broker::KillEventsLeader => {
                let leader = self.leader(|js| servers::stream_leader(js, EVENTS)).await?;
                Ok(kill(servers, leader, lasts).await)
            }
            Broker::KillStatesLeader => {
                let leader = self.leader(|js| servers::stream_leader(js, STATES)).await?;
                Ok(kill(servers, leader, lasts).await)
            }
            Broker::KillConsumerLeader => {
                let partition = rng.u8(..64);
                let leader = self.leader(|js| servers::consumer_leader(js, partition)).await?;
                let told = kill(servers, leader, lasts).await;
                Ok(format!("{told}, for partition {partition}"))
            }
            Broker::StopEventsLeader => {
                let leader = self.leader(|js| servers::stream_leader(js, EVENTS)).await?;
                Ok(stop(servers, leader, lasts).await)
            }
        }
    }

    async fn leader<'a, F: Future<Output = Option<usize>>>(
        &'a self,
        find: impl Fn(&'a jetstream::Context) -> F,
    ) -> Result<usize, String> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(leader) = find(&self.js).await {
                return Ok(leader);
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(format!("no leader within {PATIENCE:?}"))
    }

    async fn full(&self, stream: &'static str, lasts: Duration) -> Result<String, String> {
        if let Err(error) = servers::limit(&self.js, stream, true).await {
            return Ok(format!("{stream} could not be limited: {error}"));
        }
        sleep(lasts).await;
        let started = Instant::now();
        while let Err(error) = servers::limit(&self.js, stream, false).await {
            if started.elapsed() > PATIENCE {
                return Err(format!("the limit of {stream} cannot be lifted: {error}"));
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(stream.into())
    }

    async fn edit_consumers(&self, rng: &mut Rng) -> Result<String, String> {
        let count = if rng.bool() { 1 } else { rng.usize(2..=16) };
        let partitions = rng.choose_multiple(Partitions::DEFAULT.all(), count);
        let edit = Edit::draw(rng);
        let mut edited = 0;
        for partition in partitions {
            edited += usize::from(self.insist(|| edit.apply(&self.js, partition)).await?);
        }
        Ok(format!("{edit}, {edited} of {count} consumers"))
    }

    async fn delete_consumer(&self, rng: &mut Rng) -> Result<String, String> {
        let partition = rng.u8(..Partitions::DEFAULT.count());
        let deleted = self.insist(|| consumers::delete(&self.js, partition)).await?;
        let told = if deleted { "deleted" } else { "not there" };
        Ok(format!("partition {partition}, {told}"))
    }

    /// Repeats a request while servers elect a leader.
    async fn insist<T, F: Future<Output = Result<T, String>>>(
        &self,
        request: impl Fn() -> F,
    ) -> Result<T, String> {
        let started = Instant::now();
        loop {
            match request().await {
                Err(error) if started.elapsed() > PATIENCE => return Err(error),
                Err(_) => sleep(Duration::from_millis(200)).await,
                done => return done,
            }
        }
    }

    /// Puts back an older copy of the store. What was stored after the copy is lost.
    async fn tail_lost(
        &self,
        servers: &mut Servers,
        lasts: Duration,
        began_at: &mut i64,
    ) -> Result<String, String> {
        let node = &mut servers.nodes[0];
        let store = node.store().to_owned();
        let older = store.with_extension("older");
        node.kill();
        servers::copy(&store, &older);
        node.restart().await;
        sleep(lasts).await;
        let before = self.last_event().await;
        *began_at = clock::now();
        node.kill();
        std::fs::remove_dir_all(&store).map_err(|e| format!("remove the store: {e}"))?;
        std::fs::rename(&older, &store).map_err(|e| format!("put the older one there: {e}"))?;
        node.restart().await;
        let after = self.last_event().await;
        Ok(format!("events from {after} to {before}"))
    }

    async fn last_event(&self) -> u64 {
        for _ in 0..20 {
            if let Ok(stream) = self.js.get_stream(EVENTS).await {
                return stream.cached_info().state.last_sequence;
            }
            sleep(Duration::from_millis(100)).await;
        }
        0
    }
}

async fn kill(servers: &mut Servers, n: usize, lasts: Duration) -> String {
    servers.nodes[n].kill();
    sleep(lasts).await;
    servers.nodes[n].restart().await;
    format!("server {n}")
}

async fn stop(servers: &Servers, n: usize, lasts: Duration) -> String {
    let pid = servers.nodes[n].pid();
    signal(pid, "STOP");
    sleep(lasts).await;
    signal(pid, "CONT");
    format!("server {n}")
}

async fn bad_line(servers: &Servers, rng: &mut Rng, line: Line, lasts: Duration) -> String {
    let (ingests, workers, sides) = sides(rng);
    servers.set_lines(ingests, workers, line);
    sleep(lasts).await;
    servers.set_lines(true, true, Line::Good);
    format!("{sides}: {line:?}")
}

/// Draws whose lines are affected.
fn sides(rng: &mut Rng) -> (bool, bool, &'static str) {
    match rng.u8(..3) {
        0 => (true, false, "of ingests"),
        1 => (false, true, "of workers"),
        _ => (true, true, "of all"),
    }
}
