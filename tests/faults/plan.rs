//! The schedule of faults, drawn by seed before anything starts.

use std::{fmt, ops::RangeInclusive, time::Duration};

use fastrand::Rng;

/// What can be done to ingests, workers and their disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// SIGKILL of an ingest, and a start after a while.
    KillIngest,
    /// SIGSTOP of an ingest.
    StopIngest,
    /// SIGTERM of an ingest, and a start after its end.
    EndIngest,
    /// SIGKILL of a worker, and a start after a while.
    KillWorker,
    /// SIGSTOP of a worker, past `ack_wait`.
    StopWorker,
    /// SIGSTOP of two workers at once, past `ack_wait`. One sleeps longer than the other.
    StopTwoWorkers,
    /// SIGSTOP of a worker with messages in hand, until others have them in hand.
    StopWorkerInHand,
    /// SIGKILL of all workers while the broker answers nothing, so that each
    /// dies between change, state and ack.
    KillWorkersInTheMiddle,
    /// Another number of workers, and of ingests that receive deliveries.
    Rescale,
    /// No room on the disk of a journal.
    FullDisk,
    /// Each fsync of an ingest takes long.
    SlowFsync,
    /// Each fsync of an ingest fails.
    FailingFsync,
    /// SIGKILL of an ingest, and the end of its journal that was not yet synced is torn.
    TornJournal,
    /// The clock of ingests and workers jumps, and back.
    ClockJump,
}

/// What can be done to the broker and to the network before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broker {
    /// SIGKILL of a server, and a start at once.
    Kill,
    /// SIGSTOP of a server.
    Stop,
    /// No server for a while.
    Away,
    /// All connections are cut.
    Cut,
    /// All traffic is delayed.
    Delay,
    /// No traffic goes through, and then all of it.
    Stall,
    /// Connections are accepted, and incoming bytes are discarded.
    HalfOpen,
    /// Connections are throttled.
    Throttle,
    /// The stream of events takes nothing.
    FullEvents,
    /// The stream of changes takes nothing.
    FullChanges,
    /// The bucket of issue states takes no new issue.
    FullStates,
    /// An older copy of the store is put back while the server is down.
    TailLost,
    /// A hand edits some of the consumers of the partitions.
    EditConsumers,
    /// The consumer of one partition is deleted.
    DeleteConsumer,
    /// SIGKILL of the leader of the stream of events.
    KillEventsLeader,
    /// SIGKILL of the leader of the bucket of issue states.
    KillStatesLeader,
    /// SIGKILL of the leader of one partition's consumer.
    KillConsumerLeader,
    /// SIGSTOP of the leader of the stream of events.
    StopEventsLeader,
}

/// A fault of one of the two lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// See [`Service`].
    Service(Service),
    /// See [`Broker`].
    Broker(Broker),
}

/// One fault of the schedule.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number.
    pub n: usize,
    /// Time without a fault before it, in its lane.
    pub pause: Duration,
    /// What is done.
    pub kind: Kind,
    /// How long the fault lasts.
    pub lasts: Duration,
    /// Seed of its other random choices: which process, which byte.
    pub seed: u64,
}

/// What a run's machine and broker allow.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Three servers instead of one.
    pub cluster: bool,
    /// libfaketime is installed.
    pub clock: bool,
    /// strace is installed.
    pub strace: bool,
    /// A small file system is mounted, or strace can do the same.
    pub disk: bool,
}

/// The schedule: services and broker are two lanes that run concurrently.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many workers there are at the start.
    pub workers: usize,
    /// Faults of services.
    pub services: Vec<Step>,
    /// Faults of the broker.
    pub broker: Vec<Step>,
}

/// How many workers there are.
pub const WORKERS: RangeInclusive<usize> = 2..=4;

/// From this number of faults on, the broker is also away for minutes.
const LONG_RUN: usize = 300;

impl Plan {
    /// Draws `count` faults at random, of the kinds in `only` if there are any.
    pub fn draw(rng: &mut Rng, count: usize, means: Means, only: &[String]) -> Self {
        let named = |kind: Kind| only.is_empty() || only.iter().any(|name| name == kind.name());
        let (mut services, mut broker) = (Vec::new(), Vec::new());
        let mut service_kinds = service_kinds(means);
        service_kinds.retain(|kind| named(Kind::Service(*kind)));
        let mut broker_kinds = broker_kinds(means);
        broker_kinds.retain(|kind| named(Kind::Broker(*kind)));
        let (mut service_deck, mut broker_deck) = (Vec::new(), Vec::new());
        let (mut services_end, mut broker_end) = (Duration::ZERO, Duration::ZERO);
        for n in 1..=count {
            let seed = rng.u64(..);
            // It goes to the lane that is free first, so that both end at about the same time.
            if broker_kinds.is_empty() || !service_kinds.is_empty() && services_end <= broker_end {
                let Some(kind) = deal(rng, &mut service_deck, &service_kinds) else { break };
                let (pause, lasts) = (millis(rng, 200, 1500), service_lasts(rng, kind));
                services_end += pause + lasts;
                services.push(Step { n, pause, kind: Kind::Service(kind), lasts, seed });
            } else {
                let Some(kind) = deal(rng, &mut broker_deck, &broker_kinds) else { break };
                let long = count >= LONG_RUN && kind == Broker::Away && rng.u8(..3) == 0;
                let lasts =
                    if long { millis(rng, 60_000, 150_000) } else { broker_lasts(rng, kind) };
                let pause = millis(rng, 500, 2500);
                broker_end += pause + lasts;
                broker.push(Step { n, pause, kind: Kind::Broker(kind), lasts, seed });
            }
        }
        Self { workers: rng.usize(WORKERS), services, broker }
    }

    /// How long the schedule takes, without the time that processes need to start.
    pub fn duration(&self) -> Duration {
        let sum = |steps: &[Step]| steps.iter().map(|step| step.pause + step.lasts).sum();
        Duration::max(sum(&self.services), sum(&self.broker))
    }
}

/// Deals from a shuffled deck, so that every kind comes once before one comes twice.
fn deal<T: Copy>(rng: &mut Rng, deck: &mut Vec<T>, all: &[T]) -> Option<T> {
    if deck.is_empty() {
        deck.extend(all);
        rng.shuffle(deck);
    }
    deck.pop()
}

fn service_kinds(means: Means) -> Vec<Service> {
    use Service::*;
    let mut kinds = vec![
        KillIngest,
        StopIngest,
        EndIngest,
        KillWorker,
        KillWorker,
        StopWorker,
        StopTwoWorkers,
        StopWorkerInHand,
        StopWorkerInHand,
        KillWorkersInTheMiddle,
        Rescale,
        TornJournal,
        TornJournal,
    ];
    kinds.extend(means.disk.then_some(FullDisk));
    kinds.extend(means.clock.then_some(ClockJump));
    if means.strace {
        kinds.extend([SlowFsync, FailingFsync]);
    }
    kinds
}

fn broker_kinds(means: Means) -> Vec<Broker> {
    use Broker::*;
    let mut kinds = vec![
        Kill,
        Stop,
        Away,
        Cut,
        Cut,
        Delay,
        Stall,
        HalfOpen,
        Throttle,
        FullEvents,
        FullChanges,
        FullStates,
        EditConsumers,
        DeleteConsumer,
    ];
    if means.cluster {
        kinds.extend([
            KillEventsLeader,
            KillEventsLeader,
            KillStatesLeader,
            KillConsumerLeader,
            KillConsumerLeader,
            StopEventsLeader,
        ]);
    } else {
        kinds.extend([Kill, Kill, TailLost, TailLost]);
    }
    kinds
}

fn service_lasts(rng: &mut Rng, kind: Service) -> Duration {
    use Service::*;
    match kind {
        Rescale | EndIngest => Duration::ZERO,
        KillIngest | KillWorker | KillWorkersInTheMiddle | TornJournal => millis(rng, 0, 1200),
        StopIngest => millis(rng, 500, 7000),
        StopWorker | StopTwoWorkers => millis(rng, 2500, 7000),
        // It is over as soon as others have the messages, which takes `ack_wait`.
        StopWorkerInHand => millis(rng, 3500, 6000),
        FullDisk | SlowFsync | FailingFsync | ClockJump => millis(rng, 800, 4000),
    }
}

fn broker_lasts(rng: &mut Rng, kind: Broker) -> Duration {
    use Broker::*;
    match kind {
        Kill | KillEventsLeader | KillStatesLeader | KillConsumerLeader => millis(rng, 0, 2500),
        Cut | EditConsumers | DeleteConsumer => Duration::ZERO,
        Stop | StopEventsLeader => millis(rng, 500, 8000),
        Away => millis(rng, 3000, 12_000),
        Delay | Throttle | FullEvents | FullChanges | FullStates => millis(rng, 1500, 6000),
        Stall | HalfOpen => millis(rng, 1500, 12_000),
        TailLost => millis(rng, 1500, 8000),
    }
}

fn millis(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.u64(low..=high))
}

impl Kind {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service(Service::KillIngest) => "ingest-killed",
            Self::Service(Service::StopIngest) => "ingest-stopped",
            Self::Service(Service::EndIngest) => "ingest-ended",
            Self::Service(Service::KillWorker) => "worker-killed",
            Self::Service(Service::StopWorker) => "worker-stopped",
            Self::Service(Service::StopTwoWorkers) => "two-workers-stopped",
            Self::Service(Service::StopWorkerInHand) => "worker-stopped-in-hand",
            Self::Service(Service::KillWorkersInTheMiddle) => "workers-killed-in-the-middle",
            Self::Service(Service::Rescale) => "rescaled",
            Self::Service(Service::FullDisk) => "disk-full",
            Self::Service(Service::SlowFsync) => "fsync-slow",
            Self::Service(Service::FailingFsync) => "fsync-failing",
            Self::Service(Service::TornJournal) => "journal-torn",
            Self::Service(Service::ClockJump) => "clock-jump",
            Self::Broker(Broker::Kill) => "server-killed",
            Self::Broker(Broker::Stop) => "server-stopped",
            Self::Broker(Broker::Away) => "broker-away",
            Self::Broker(Broker::Cut) => "line-cut",
            Self::Broker(Broker::Delay) => "line-delayed",
            Self::Broker(Broker::Stall) => "line-stalled",
            Self::Broker(Broker::HalfOpen) => "line-half-open",
            Self::Broker(Broker::Throttle) => "line-throttled",
            Self::Broker(Broker::FullEvents) => "events-full",
            Self::Broker(Broker::FullChanges) => "changes-full",
            Self::Broker(Broker::FullStates) => "states-full",
            Self::Broker(Broker::EditConsumers) => "consumer-edited",
            Self::Broker(Broker::DeleteConsumer) => "consumer-deleted",
            Self::Broker(Broker::TailLost) => crate::records::TAIL_LOST,
            Self::Broker(Broker::KillEventsLeader) => "events-leader-killed",
            Self::Broker(Broker::KillStatesLeader) => "states-leader-killed",
            Self::Broker(Broker::KillConsumerLeader) => "consumer-leader-killed",
            Self::Broker(Broker::StopEventsLeader) => "events-leader-stopped",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pause, lasts) = (self.pause.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{:>4} after {pause:.2} s: {} for {lasts:.2} s", self.n, self.kind.name())
    }
}
