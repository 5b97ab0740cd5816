//! `reactor-faults`: issues that are assigned, unassigned and closed at random, runners and a broker
//! that are killed meanwhile, and a check of what the agents wrote down. See docs/PROOF.md.

use std::{
    collections::{BTreeMap, HashMap},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::jetstream;
use clap::Parser;
use contract::{
    change::{Change, ChangeKind},
    names,
};
use fastrand::Rng;
use futures::StreamExt;
use tests::{
    bus,
    gitea::Issue,
    nats::Nats,
    process::Process,
    runners::{Agents, Note},
    services, system, temp_dir,
    usage::Usage,
};

/// An agent that holds a lock of its issue, as does whatever it starts: one that finds it taken is
/// live beside another.
const AGENT: &str = r#"
exec >/dev/null 2>&1
now=$(date +%s%N)
note() { echo "$1 $COORDINATOR_RULE $COORDINATOR_ISSUE $COORDINATOR_RUN $$ $2" >> "$LOG"; }
exec 9>>"$LOG.lock.$COORDINATOR_ISSUE_NUMBER"
flock -n 9 || note double $now
trap 'note term $(date +%s%N); exit 0' TERM
note start $now
# One process while it waits, so that a thousand of them leave the machine to what is measured.
while :; do sleep 1000 & wait $!; done
"#;

/// How long all may take to come to rest at the end.
const REST: Duration = Duration::from_secs(120);
/// The longest time from the last look at an issue's state to the first note of an agent, on a machine
/// that has much to do. The state is written before its change is told, so whatever begins later after
/// a stop was told is a violation.
const START_WINDOW: Duration = Duration::from_secs(1);

/// Kills runners and the broker while issues are assigned, unassigned and closed.
#[derive(Parser)]
#[command(name = "reactor-faults")]
struct Args {
    /// Seed of what happens; a run is repeated with the seed that it printed
    #[arg(long)]
    seed: Option<u64>,
    /// Number of issues
    #[arg(long, default_value_t = 1000)]
    issues: u64,
    /// Number of deliveries after the first one of each issue
    #[arg(long, default_value_t = 4000)]
    steps: usize,
    /// Runners
    #[arg(long, default_value_t = 4)]
    runners: usize,
    /// Most live runs of each runner
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// Deliveries a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Kills of runners, and a quarter as many of the broker
    #[arg(long, default_value_t = 40)]
    kills: usize,
    /// Lease of the runners, in seconds: short, so that what a killed one had is soon taken over
    #[arg(long, default_value_t = 4)]
    lease: u32,
    /// A run of a minute: 60 issues, 300 deliveries, 6 kills
    #[arg(long)]
    short: bool,
}

/// What was sent of an issue.
#[derive(Clone, Debug)]
struct Sent {
    issue: Issue,
    /// Whether the bot was assigned and the issue open, and since when, in nanoseconds since 1970.
    wanted: Vec<(bool, u128)>,
    is_deleted: bool,
}

fn main() -> ExitCode {
    // This program also runs as the services, so that the run tests what was just built.
    if let Some(ended) = services::named_by_first_argument() {
        return ended;
    }
    let mut args = Args::parse();
    if args.short {
        (args.issues, args.steps, args.kills) = (60, 300, 6);
        (args.concurrency, args.rate) = (20, 30);
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let violations = runtime.block_on(run(&args, seed));
    for violation in violations.iter().take(20) {
        println!("  {violation}");
    }
    println!("seed {seed}: {} violations", violations.len());
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is killed next.
enum Fault {
    Runner(usize),
    Broker,
}

async fn run(args: &Args, seed: u64) -> Vec<String> {
    let exe = std::env::current_exe().expect("our own executable");
    let mut rng = Rng::with_seed(seed);
    let (mut nats, data, agents) = (Nats::start().await, temp_dir(), Agents::default());
    let (concurrency, lease) = (args.concurrency, args.lease.to_string());
    let rule = format!(
        "[[rule]]\nname = \"fix\"\nwho = {{ login = \"bot\" }}\n\
         run = {{ argv = [\"/bin/sh\", \"-c\", '''{AGENT}'''], environment = [\"LOG\"], \
         grace_secs = 5 }}\non_restart = \"rerun\"\nmax_runs_per_hour = 1000\n"
    );
    agents.write_rules(&format!("concurrency = {concurrency}\n{rule}"));
    let ingest = services::ingest(&exe, &nats, data.path());
    let _worker = services::worker(&exe, &nats);
    let address = ingest.address_in("ingest listens").await;
    let mut runners: Vec<Process> = Vec::new();
    for _ in 0..args.runners {
        runners.push(agents.runner(&exe, &nats.url(), &lease));
    }
    for runner in &runners {
        runner.line_with("runner started").await;
    }
    let http = reqwest::Client::new();
    let mut all: Vec<Sent> = (1..=args.issues)
        .map(|number| Sent { issue: Issue::new(1, number), wanted: Vec::new(), is_deleted: false })
        .collect();
    let total = args.issues as usize + args.steps;
    let mut faults = faults(args, total, &mut rng);
    let mut broker_kills = Vec::new();
    let mut runner_kills = 0;
    let began = Instant::now();
    for step in 0..total {
        let due = began + Duration::from_secs_f64(step as f64 / f64::from(args.rate));
        tokio::time::sleep_until(due.into()).await;
        while faults.last().is_some_and(|(at, _)| *at <= step) {
            match faults.pop().map(|(_, fault)| fault) {
                Some(Fault::Runner(which)) => {
                    runner_kills += 1;
                    runners[which].kill().await;
                    runners[which] = agents.runner(&exe, &nats.url(), &lease);
                }
                Some(Fault::Broker) => {
                    let at = now();
                    nats.kill();
                    tokio::time::sleep(Duration::from_millis(rng.u64(100..1500))).await;
                    nats.restart().await;
                    broker_kills.push((at, now()));
                }
                None => {}
            }
        }
        let which = if step < all.len() { step } else { rng.usize(..all.len()) };
        let sent = &mut all[which];
        if sent.is_deleted {
            continue;
        }
        let action = next(&mut sent.issue, step < args.issues as usize, &mut rng);
        sent.is_deleted = action == "deleted";
        let is_wanted = !sent.is_deleted
            && sent.issue.state == "open"
            && sent.issue.assignees.iter().any(|login| login == "bot");
        let delivery = sent.issue.delivery(action);
        let at = now();
        let answer = system::send(&http, address, &delivery).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        if sent.wanted.last().is_none_or(|(was, _)| *was != is_wanted) {
            sent.wanted.push((is_wanted, at));
        }
    }
    let sent_in = began.elapsed();
    let js = jetstream::new(nats.client().await);
    let mut violations = Vec::new();
    // More than fit at once: the rest waits, so the bot goes from all but as many as fit.
    let fits = args.runners * args.concurrency;
    let waiting = all.iter().filter(|sent| is_wanted(sent)).count();
    if !at_rest(&agents, &all, fits).await {
        let expected = waiting.min(fits);
        let running = agents.running().len();
        violations.push(format!("at rest {running} runs and not {expected}"));
        for (number, line) in differences(&agents, &all).into_iter().take(10) {
            violations.push(format!("{line}; {}", entry(&js, number).await));
        }
        for runner in &runners {
            let address = runner.address_in("operator listens").await;
            let health = http.get(format!("http://{address}/health")).send().await;
            let health = health.expect("an answer").text().await.expect("a text");
            violations.push(format!("a runner says {health}"));
        }
    }
    let memory = runners.iter().map(|runner| Usage::of(runner.pid()).peak_memory / 1024).max();
    println!("{:<44}{:>8}", "most memory of a runner, kB", memory.unwrap_or(0));
    println!("{:<44}{:>8}", "wanted at rest", waiting);
    println!("{:<44}{:>8}", "running at rest", agents.running().len());
    let rested = Instant::now();
    // Everybody goes, and nothing is left.
    for sent in &mut all {
        if !sent.is_deleted {
            sent.issue.assignees.clear();
            sent.issue.second += 1;
            let at = now();
            let answer = system::send(&http, address, &sent.issue.delivery("unassigned")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            if sent.wanted.last().is_some_and(|(was, _)| *was) {
                sent.wanted.push((false, at));
            }
        }
    }
    let ended =
        tests::wait::try_until(|| async { agents.running().is_empty().then_some(()) }).await;
    if ended.is_none() {
        violations.push(format!(
            "{} runs are left: {:?}",
            agents.running().len(),
            agents.running()
        ));
    }
    println!(
        "{:<44}{:>8.0}",
        "seconds from the last unassign to nothing",
        rested.elapsed().as_secs_f64()
    );
    let notes = agents.notes();
    let told = told(&js).await;
    let (late, found) = check(&notes, &all, &told);
    violations.extend(found);
    let deliveries = bus::count(&js, names::EVENTS).await;
    for (name, count) in [
        ("deliveries", deliveries),
        ("runs started", notes.iter().filter(|note| note.what == "start").count() as u64),
        ("  of them within the window after a stop", late),
        ("runs told to stop", notes.iter().filter(|note| note.what == "term").count() as u64),
        ("kills of runners", runner_kills),
        ("kills of the broker", broker_kills.len() as u64),
        ("seconds of deliveries", sent_in.as_secs()),
    ] {
        println!("{name:<44}{count:>8}");
    }
    measure(&notes, &all, &broker_kills);
    for runner in &mut runners {
        runner.kill().await;
    }
    violations
}

fn faults(args: &Args, total: usize, rng: &mut Rng) -> Vec<(usize, Fault)> {
    let mut faults: Vec<(usize, Fault)> = (0..args.kills)
        .map(|number| {
            let fault = if number % 4 == 3 {
                Fault::Broker
            } else {
                Fault::Runner(rng.usize(..args.runners))
            };
            (rng.usize(total / 10..total), fault)
        })
        .collect();
    // Taken from the end.
    faults.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    faults
}

/// Changes the issue at random. Returns the action of the delivery.
fn next(issue: &mut Issue, is_first: bool, rng: &mut Rng) -> &'static str {
    issue.second += 1;
    let is_assigned = issue.assignees.iter().any(|login| login == "bot");
    match rng.u32(..100) {
        _ if is_first => {
            issue.assignees = vec!["bot".into()];
            "assigned"
        }
        0..2 => "deleted",
        2..20 if issue.state == "open" => {
            issue.state = "closed";
            "closed"
        }
        _ if issue.state == "closed" => {
            issue.state = "open";
            "reopened"
        }
        20..25 => "edited",
        _ if is_assigned => {
            issue.assignees.retain(|login| login != "bot");
            "unassigned"
        }
        _ => {
            issue.assignees.push("bot".into());
            "assigned"
        }
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

fn is_wanted(sent: &Sent) -> bool {
    sent.wanted.last().is_some_and(|(is_wanted, _)| *is_wanted)
}

fn name(sent: &Sent) -> String {
    format!("acme/r1#{}", sent.issue.number)
}

/// Issues that run, by the processes that there are.
fn running(agents: &Agents) -> HashMap<String, usize> {
    let mut running: HashMap<String, usize> = HashMap::new();
    for run in agents.running().keys() {
        // The id of a run: repository, number, rule, generation.
        let number = run.split('.').nth(1).unwrap_or_default();
        *running.entry(format!("acme/r1#{number}")).or_default() += 1;
    }
    running
}

/// The entry of an issue's run, for a violation.
async fn entry(js: &jetstream::Context, number: u64) -> String {
    let bucket = js.get_key_value(names::RUNS).await.expect("the bucket");
    let value = bucket.get(format!("1.{number}.fix")).await.expect("an answer");
    value.map_or("no entry".into(), |value| String::from_utf8_lossy(&value).into_owned())
}

fn differences(agents: &Agents, all: &[Sent]) -> Vec<(u64, String)> {
    let running = running(agents);
    let wrong = all.iter().filter(|sent| is_wanted(sent) != running.contains_key(&name(sent)));
    let tell = |sent: &Sent| {
        let (name, running) = (name(sent), running.get(&name(sent)));
        (sent.issue.number, format!("{name}: wanted {}, {running:?}", is_wanted(sent)))
    };
    wrong.map(tell).collect()
}

/// Whether what runs becomes what is wanted, as far as there is room.
async fn at_rest(agents: &Agents, all: &[Sent], fits: usize) -> bool {
    let wanted = all.iter().filter(|sent| is_wanted(sent)).count();
    let began = Instant::now();
    while began.elapsed() < REST {
        let running = running(agents);
        let unwanted = all.iter().any(|sent| !is_wanted(sent) && running.contains_key(&name(sent)));
        if !unwanted && running.len() == wanted.min(fits) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}

/// What was told of an issue, by the broker's clock: when, and whether it is wanted from then on.
type Told = HashMap<String, Vec<(u128, bool)>>;

/// All changes with the time at which they were in their stream.
async fn told(js: &jetstream::Context) -> Told {
    let stream = js.get_stream(names::CHANGES).await.expect("the stream");
    let count = stream.cached_info().state.messages;
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let consumer = stream.create_consumer(config).await.expect("a consumer");
    let mut messages = consumer.messages().await.expect("messages");
    let (mut told, mut kinds) = (Told::new(), HashMap::new());
    for _ in 0..count {
        let message = messages.next().await.expect("a message").expect("a message");
        let at = message.info().expect("its place").published.unix_timestamp_nanos();
        let change: Change = serde_json::from_slice(&message.payload).expect("a change");
        let is_open = kinds.entry(change.issue.number).or_insert(true);
        match change.kind {
            ChangeKind::Closed | ChangeKind::Deleted => *is_open = false,
            ChangeKind::Reopened => *is_open = true,
            _ => {}
        }
        let is_wanted = *is_open && change.assignees.iter().any(|login| login == "bot");
        let name = format!("acme/r1#{}", change.issue.number);
        told.entry(name).or_default().push((at as u128, is_wanted));
    }
    told
}

/// What the agents' notes contradict. Returns too how many runs began within the window after a stop
/// was told.
fn check(notes: &[Note], all: &[Sent], told: &Told) -> (u64, Vec<String>) {
    let (mut late, mut violations) = (0, Vec::new());
    let mut by_issue: BTreeMap<&str, Vec<&Note>> = BTreeMap::new();
    for note in notes {
        by_issue.entry(&note.issue).or_default().push(note);
    }
    for sent in all {
        let name = name(sent);
        let Some(notes) = by_issue.get_mut(name.as_str()) else { continue };
        notes.sort_by_key(|note| note.at);
        for note in notes.iter().filter(|note| note.what == "double") {
            violations.push(format!("{name}: {note:?} began while another was live: {notes:?}"));
        }
        let told = told.get(&name).map(Vec::as_slice).unwrap_or_default();
        for note in notes.iter().filter(|note| note.what == "start") {
            // Since when it has not been wanted, at the start.
            let before = told.iter().filter(|(at, _)| *at <= note.at);
            let since = before.fold(None, |since: Option<u128>, (at, is_wanted)| {
                (!is_wanted).then(|| since.unwrap_or(*at))
            });
            let Some(since) = since else { continue };
            let after = Duration::from_nanos(u64::try_from(note.at - since).unwrap_or(u64::MAX));
            if after > START_WINDOW {
                violations
                    .push(format!("{name}: {note:?} began {after:?} after the stop was told"));
            } else {
                late += 1;
            }
        }
    }
    (late, violations)
}

/// Prints the times from delivery to start and to TERM, but for those around the kills of the broker.
fn measure(notes: &[Note], all: &[Sent], broker_away: &[(u128, u128)]) {
    let mut by_issue: HashMap<&str, Vec<&Note>> = HashMap::new();
    for note in notes {
        by_issue.entry(&note.issue).or_default().push(note);
    }
    for (what, word, is_wanted) in
        [("assigned to started", "start", true), ("unassigned to TERM", "term", false)]
    {
        let mut took = Vec::new();
        for sent in all {
            let empty = Vec::new();
            let notes = by_issue.get(name(sent).as_str()).unwrap_or(&empty);
            for (place, (wanted, at)) in sent.wanted.iter().enumerate() {
                let until = sent.wanted.get(place + 1).map_or(u128::MAX, |(_, next)| *next);
                let is_away = broker_away
                    .iter()
                    .any(|(from, to)| *at + 5_000_000_000 > *from && *at < *to + 5_000_000_000);
                if *wanted != is_wanted || is_away {
                    continue;
                }
                let first = notes
                    .iter()
                    .filter(|note| note.what == word && note.at >= *at && note.at < until)
                    .map(|note| note.at - at)
                    .min();
                took.extend(first);
            }
        }
        took.sort_unstable();
        let share = |percent: usize| {
            let place = (took.len() * percent / 100).min(took.len().saturating_sub(1));
            took.get(place).map_or(0.0, |nanos| *nanos as f64 / 1e6)
        };
        println!(
            "{what:<28}{:>6} times, p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
            took.len(),
            share(50),
            share(99),
            share(100)
        );
    }
}
