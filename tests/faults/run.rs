//! One run on one kind of broker: start, faults, recovery and check.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use fastrand::Rng;
use tokio::sync::Mutex;

use crate::{
    check, consumers,
    drain::{self, Drained},
    fleet::{ACK_WAIT, Fleet},
    fsync,
    history::History,
    lanes::{BrokerLane, Log, ServiceLane},
    plan::{Means, Plan},
    proxy::Line,
    reader::Subscriber,
    records::Records,
    senders::{Post, Senders, Tally},
    servers::{self, Servers},
};

/// Factor on a schedule's length, since processes take time to start and to end.
const STRETCH: f64 = 1.5;
/// Deliveries a second once there are no more faults.
const CALM_RATE: f64 = 200.0;

/// What a run has to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// Seed of deliveries and faults.
    pub seed: u64,
    /// Smallest number of deliveries.
    pub deliveries: usize,
    /// Number of faults.
    pub faults: usize,
    /// Three servers instead of one.
    pub cluster: bool,
    /// Journals do not keep what was published.
    pub forgetful: bool,
    /// Only faults of these kinds; faults of all kinds if empty.
    pub kinds: Vec<String>,
}

/// Result of a run.
#[derive(Debug)]
pub struct Result {
    /// What became of the deliveries.
    pub tally: Tally,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// What the broker holds at the end.
    pub drained: Drained,
    /// All that is wrong.
    pub violations: Vec<String>,
    /// The records, if they were kept.
    pub kept_in: Option<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

/// Executes a run.
pub async fn run(order: &Order, keep: bool) -> Result {
    let started = Instant::now();
    let name = if order.cluster { "cluster" } else { "single" };
    let prefix = format!("coordinator-faults-{}-{name}-", order.seed);
    let dir = tempfile::Builder::new().prefix(&prefix).tempdir().expect("create a directory");
    let mut rng = Rng::with_seed(order.seed ^ u64::from(order.cluster));
    let servers = Servers::start(order.cluster).await;
    let js = servers::connect(&servers.urls()).await;
    let fleet = Fleet::new(dir.path(), servers.to_broker(), order.forgetful);
    let means = means(&fleet, order.cluster);
    let plan = Plan::draw(&mut rng, order.faults, means, &order.kinds);
    tell(&plan, means, dir.path());
    let post = Post::new(History::new(rng.fork()), fleet.addresses(), dir.path());
    let log = Log::create(dir.path());
    let servers = Arc::new(Mutex::new(servers));
    let services = ServiceLane {
        fleet,
        post: Arc::clone(&post),
        servers: Arc::clone(&servers),
        js: js.clone(),
        log: log.clone(),
    };
    let stage = Stage {
        deliveries: order.deliveries,
        plan,
        services,
        post: Arc::clone(&post),
        servers,
        js,
        log,
    };
    let (mut stage, drained) = stage.play(dir.path()).await;
    let (faults, mut violations) = stage.log.result();
    match Records::read(dir.path()) {
        Ok(records) => violations.extend(check::violations(&records)),
        Err(error) => violations.push(format!("cannot read the records: {error}")),
    }
    let kept_in = (keep || !violations.is_empty()).then(|| {
        stage.services.fleet.keep();
        dir.path().to_owned()
    });
    drop(stage);
    if kept_in.is_some() {
        let _ = dir.keep();
    }
    Result { tally: post.tally(), faults, drained, violations, kept_in, took: started.elapsed() }
}

fn means(fleet: &Fleet, cluster: bool) -> Means {
    let strace = fsync::can_be_spoiled();
    let disk = strace || fleet.disks.iter().all(|disk| disk.is_small());
    Means { cluster, clock: fleet.clock.is_some(), strace, disk }
}

fn tell(plan: &Plan, means: Means, dir: &Path) {
    let steps = plan.services.iter().chain(&plan.broker);
    let schedule: String = steps.map(|step| format!("{step}\n")).collect();
    std::fs::write(dir.join("schedule.txt"), schedule).expect("write the schedule");
    println!("records and schedule in {}, means {means:?}", dir.display());
}

/// All that takes part in a run.
struct Stage {
    deliveries: usize,
    plan: Plan,
    services: ServiceLane,
    post: Arc<Post>,
    servers: Arc<Mutex<Servers>>,
    js: jetstream::Context,
    log: Log,
}

impl Stage {
    async fn play(mut self, dir: &Path) -> (Self, Drained) {
        if let Err(wrong) = self.start().await {
            self.log.wrong(wrong);
            return (self, Drained::default());
        }
        let subscriber = Subscriber::start(self.js.clone(), dir).await;
        let length = self.plan.duration().as_secs_f64() * STRETCH;
        let senders = Senders::start(&self.post, self.deliveries as f64 / length.max(10.0));
        self.spoil().await;
        self.send_the_rest(senders).await;
        self.post.flush();
        let mut drained = Drained::default();
        match self.heal().await {
            Ok(()) => {
                // Before the drain: the events of a partition whose consumer is made again all come
                // again.
                let right = consumers::put_right(&self.js, ACK_WAIT).await;
                right.unwrap_or_else(|wrong| self.log.wrong(wrong));
                let ingests = self.services.fleet.addresses();
                match drain::drain(&self.js, ingests, &self.post, &subscriber, dir).await {
                    Ok(done) => drained = done,
                    Err(wrong) => self.log.wrong(wrong),
                }
            }
            Err(wrong) => self.log.wrong(wrong),
        }
        subscriber.stop();
        (self, drained)
    }

    async fn start(&mut self) -> std::result::Result<(), String> {
        for n in 0..2 {
            self.services.fleet.start_ingest(n).await?;
        }
        for _ in 0..self.plan.workers {
            self.services.fleet.start_worker().await?;
        }
        Ok(())
    }

    /// Runs both lanes concurrently.
    async fn spoil(&mut self) {
        let broker = BrokerLane {
            servers: Arc::clone(&self.servers),
            js: self.js.clone(),
            log: self.log.clone(),
        };
        let (services, broker) =
            tokio::join!(self.services.run(&self.plan.services), broker.run(&self.plan.broker));
        for lane in [services, broker] {
            lane.unwrap_or_else(|wrong| self.log.wrong(wrong));
        }
    }

    async fn send_the_rest(&self, senders: Senders) {
        senders.stop().await;
        let left = self.deliveries.saturating_sub(self.post.tally().sent);
        let calm = Senders::start(&self.post, CALM_RATE);
        let target = self.post.tally().sent + left;
        while self.post.tally().sent < target {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        calm.stop().await;
    }

    /// Makes everything run without faults.
    async fn heal(&mut self) -> std::result::Result<(), String> {
        self.servers.lock().await.set_lines(true, true, Line::Good);
        if let Some(clock) = &self.services.fleet.clock {
            clock.jump(0);
        }
        if self.services.fleet.workers() == 0 {
            self.services.fleet.start_worker().await?;
        }
        Ok(())
    }
}
