//! Faults of ingests, workers and their disks.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use fastrand::Rng;
use tests::process::signal;
use tokio::{sync::Mutex, task::JoinSet, time::sleep};

use super::Log;
use crate::{
    clock, consumers,
    fleet::{ACK_WAIT, Fleet},
    fsync::{self, Spoiled, Spoiler},
    plan::{Kind, Service, Step, WORKERS},
    proxy::Line,
    senders::Post,
    servers::Servers,
    torn,
};

/// Deliveries that are in flight when a journal is torn.
const BURST: usize = 24;
/// How long an fsync takes if the ingest is to be killed in it, in microseconds.
const FSYNC_MICROS: u32 = 200_000;
/// How far the clock jumps at most: less than half of the journal's retention.
const JUMP_SECS: i64 = 60;

/// The lane of the services.
pub struct ServiceLane {
    /// The processes.
    pub fleet: Fleet,
    /// The senders.
    pub post: Arc<Post>,
    /// The broker, which this lane may stop for a moment.
    pub servers: Arc<Mutex<Servers>>,
    /// A connection that does not use the proxies.
    pub js: jetstream::Context,
    /// Log of the faults.
    pub log: Log,
}

impl ServiceLane {
    /// Injects the faults, one after the other. Err if a service does not start.
    pub async fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            let Kind::Service(kind) = step.kind else { continue };
            sleep(step.pause).await;
            let began_at = clock::now();
            let told = self.fault(kind, step).await?;
            self.log.add(step, began_at, told);
        }
        Ok(())
    }

    async fn fault(&mut self, kind: Service, step: &Step) -> Result<String, String> {
        let (rng, lasts) = (&mut Rng::with_seed(step.seed), step.lasts);
        let both = self.post.both.load(Ordering::Relaxed);
        // Mostly an ingest that receives deliveries.
        let n = usize::from(rng.u8(..8) < if both { 4 } else { 1 });
        let told = format!("ingest {n}");
        match kind {
            Service::KillIngest => {
                self.fleet.kill_ingest(n).await;
                sleep(lasts).await;
                self.fleet.start_ingest(n).await?;
            }
            Service::StopIngest => {
                self.fleet.signal_ingest(n, "STOP");
                sleep(lasts).await;
                self.fleet.signal_ingest(n, "CONT");
            }
            Service::EndIngest => {
                let ended = self.fleet.end_ingest(n).await;
                ended.unwrap_or_else(|wrong| self.log.wrong(wrong));
                self.fleet.start_ingest(n).await?;
            }
            Service::KillWorker => return self.kill_worker(rng, lasts).await,
            Service::StopWorker => return Ok(self.stop_worker(rng, lasts).await),
            Service::StopTwoWorkers => return Ok(self.stop_two_workers(rng, lasts).await),
            Service::StopWorkerInHand => return Ok(self.stop_worker_in_hand(rng, lasts).await),
            Service::KillWorkersInTheMiddle => return self.kill_in_the_middle(rng, lasts).await,
            Service::Rescale => return self.rescale(rng).await,
            Service::FullDisk => self.full_disk(n, lasts).await,
            Service::SlowFsync => {
                let slow = rng.u32(20_000..400_000);
                self.spoiled(n, Spoiled::Slow(slow), lasts).await;
                return Ok(format!("{told}: {slow} microseconds each"));
            }
            Service::FailingFsync => self.spoiled(n, Spoiled::Failing, lasts).await,
            Service::TornJournal => {
                let torn = self.torn_journal(n, rng, lasts).await?;
                return Ok(format!("{told}: {torn}"));
            }
            Service::ClockJump => {
                let seconds = rng.i64(-JUMP_SECS..=JUMP_SECS);
                let clock = self.fleet.clock.as_ref().expect("planned only where there is one");
                clock.jump(seconds);
                sleep(lasts).await;
                clock.jump(0);
                return Ok(format!("{seconds:+} s, and back"));
            }
        }
        Ok(told)
    }

    async fn kill_worker(&mut self, rng: &mut Rng, lasts: Duration) -> Result<String, String> {
        let n = rng.usize(..self.fleet.workers());
        self.fleet.kill_worker(n).await;
        sleep(lasts).await;
        self.fleet.start_worker().await?;
        Ok(format!("worker {n}"))
    }

    async fn stop_worker(&mut self, rng: &mut Rng, lasts: Duration) -> String {
        let n = rng.usize(..self.fleet.workers());
        self.fleet.signal_worker(n, "STOP");
        sleep(lasts).await;
        self.fleet.signal_worker(n, "CONT");
        format!("worker {n}")
    }

    async fn stop_two_workers(&mut self, rng: &mut Rng, lasts: Duration) -> String {
        let chosen = rng.choose_multiple(0..self.fleet.workers(), 2);
        let slept: Vec<u32> = chosen.iter().map(|n| self.fleet.worker_pid(*n)).collect();
        slept.iter().for_each(|pid| signal(*pid, "STOP"));
        sleep(lasts).await;
        for pid in slept {
            signal(pid, "CONT");
            // Sometimes both resume at once, mostly one by one.
            sleep(Duration::from_millis([0, 300, 1500, 3000][rng.usize(..4)])).await;
        }
        format!("workers {chosen:?}")
    }

    /// The line to the broker is slow meanwhile. So a worker has many messages in hand when it is
    /// stopped, in any step of their handling, and others still have them in hand when it resumes.
    async fn stop_worker_in_hand(&mut self, rng: &mut Rng, lasts: Duration) -> String {
        let n = rng.usize(..self.fleet.workers());
        let servers = Arc::clone(&self.servers);
        let servers = servers.lock().await;
        let slow = Duration::from_millis(rng.u64(100..400));
        servers.set_lines(false, true, Line::Delayed(slow));
        sleep(Duration::from_millis(rng.u64(500..1500))).await;
        self.fleet.signal_worker(n, "STOP");
        let stopped = Instant::now();
        sleep(ACK_WAIT).await;
        let mut again = 0;
        while stopped.elapsed() < lasts && again == 0 {
            sleep(Duration::from_millis(50)).await;
            again = consumers::in_hand(&self.js).await.unwrap_or_default().1;
        }
        // In any step of what the others do.
        sleep(Duration::from_millis(rng.u64(0..800))).await;
        let (in_hand, again) = consumers::in_hand(&self.js).await.unwrap_or_default();
        self.fleet.signal_worker(n, "CONT");
        let slept = stopped.elapsed().as_secs_f64();
        sleep(Duration::from_millis(rng.u64(0..1500))).await;
        servers.set_lines(true, true, Line::Good);
        format!(
            "worker {n}, slept {slept:.1} s, {in_hand} messages in hand then, {again} of them again"
        )
    }

    async fn kill_in_the_middle(
        &mut self,
        rng: &mut Rng,
        lasts: Duration,
    ) -> Result<String, String> {
        let count = self.fleet.workers();
        {
            let servers = self.servers.lock().await;
            let pids: Vec<u32> = servers.nodes.iter().map(|node| node.pid()).collect();
            pids.iter().for_each(|pid| signal(*pid, "STOP"));
            sleep(Duration::from_millis(rng.u64(5..80))).await;
            while self.fleet.workers() > 0 {
                self.fleet.kill_worker(0).await;
            }
            pids.iter().for_each(|pid| signal(*pid, "CONT"));
        }
        sleep(lasts).await;
        for _ in 0..count {
            self.fleet.start_worker().await?;
        }
        Ok(format!("{count} workers"))
    }

    async fn rescale(&mut self, rng: &mut Rng) -> Result<String, String> {
        let (workers, both) = (rng.usize(WORKERS), rng.bool());
        while self.fleet.workers() < workers {
            self.fleet.start_worker().await?;
        }
        while self.fleet.workers() > workers {
            let ended = self.fleet.end_worker(0).await;
            ended.unwrap_or_else(|wrong| self.log.wrong(wrong));
        }
        self.post.both.store(both, Ordering::Relaxed);
        Ok(format!("{workers} workers, {} ingests", 1 + usize::from(both)))
    }

    async fn full_disk(&self, n: usize, lasts: Duration) {
        let disk = &self.fleet.disks[n];
        if !disk.is_small() {
            return self.spoiled(n, Spoiled::NoRoom, lasts).await;
        }
        disk.fill();
        sleep(lasts).await;
        disk.free();
    }

    async fn spoiled(&self, n: usize, how: Spoiled, lasts: Duration) {
        let _spoiler = Spoiler::start(self.fleet.ingest_pid(n), how);
        sleep(lasts).await;
    }

    async fn torn_journal(
        &mut self,
        n: usize,
        rng: &mut Rng,
        lasts: Duration,
    ) -> Result<String, String> {
        // Mostly the ingest is killed during an fsync, so that there is something to tear.
        let waits = fsync::can_be_spoiled() && rng.u8(..3) > 0;
        let spoiler =
            waits.then(|| Spoiler::start(self.fleet.ingest_pid(n), Spoiled::Slow(FSYNC_MICROS)));
        sleep(Duration::from_millis(if waits { 200 } else { 0 })).await;
        let mut burst = JoinSet::new();
        for _ in 0..BURST {
            let post = Arc::clone(&self.post);
            burst.spawn(async move { post.send_next_to(n).await });
        }
        sleep(Duration::from_millis(rng.u64(2..if waits { 400 } else { 30 }))).await;
        self.fleet.kill_ingest(n).await;
        drop(spoiler);
        burst.join_all().await;
        // An answer that is still in a socket counts as sent.
        self.post.nothing_in_flight(n).await;
        let torn = torn::tear(&self.fleet.disks[n].data(), &self.post.kept(n), rng);
        let torn = torn.map_err(|error| format!("tear the journal: {error}"))?;
        sleep(lasts).await;
        self.fleet.start_ingest(n).await.map_err(|wrong| format!("{torn}: {wrong}"))?;
        Ok(torn)
    }
}
