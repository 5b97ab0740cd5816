//! Speed, and the value of a 200, compared with alternatives: all on the same
//! machine, in turns, with the same deliveries.

use std::{
    collections::HashSet,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    contenders::{Contender, Kind, Left, Receiver},
    fastapi,
    figures::{median, megabytes, millis, rate},
    load::{self, Request, Run, Template},
    scenarios::{CONNECTIONS, ISSUES},
};

const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_secs(1);
const DURATION: Duration = Duration::from_secs(5);
/// Work of a handler in the test with SIGKILL: about one or two calls to Gitea.
const WORK: Duration = Duration::from_millis(100);

/// Result of one turn of one receiver.
struct Turn {
    one: Run,
    many: Run,
    memory: (u64, Option<u64>),
    left: Left,
}

/// Runs all receivers in turns and prints the table.
pub async fn run(exe: &Path) {
    let contenders = Contender::all(exe);
    let template = Template::recorded();
    let requests: Arc<Vec<_>> = Arc::new((0..ISSUES).map(|n| template.request(n + 1, 0)).collect());
    let mut turns: Vec<Vec<Turn>> = contenders.iter().map(|_| Vec::new()).collect();
    // In turns, so that other load of the machine affects all of them equally.
    for round in 1..=ROUNDS {
        for (contender, turns) in contenders.iter().zip(&mut turns) {
            let turn = turn(exe, contender, &requests).await;
            let (many, p99) = (turn.many.rate(), millis(turn.many.percentile(99.0)));
            eprintln!("round {round}: {}: {}, p99 {p99}", contender.name(), rate(many));
            turns.push(turn);
        }
    }
    caption().await;
    println!(
        "| receiver | 1 connection | p50 | p99 | {CONNECTIONS} connections | p50 | p99 | memory \
         | broker's | a 200 means | of {ISSUES} 200s, after kill -9 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (contender, turns) in contenders.iter().zip(&turns) {
        println!("{}", row(contender, turns));
    }
    println!();
    goals(&contenders, &turns);
}

async fn turn(exe: &Path, contender: &Contender, requests: &Arc<Vec<Request>>) -> Turn {
    let receiver = contender.start(Duration::ZERO).await;
    let load = |connections, duration| {
        load::closed_loop(receiver.address, Arc::clone(requests), connections, duration)
    };
    load(CONNECTIONS, WARM_UP).await;
    let one = load(1, DURATION).await;
    let many = load(CONNECTIONS, DURATION).await;
    let memory = receiver.peak_memory();
    drop(receiver);
    let left = left(exe, contender, requests).await;
    Turn { one, many, memory, left }
}

/// Sends one delivery of each issue as fast as possible, and kills after the last 200.
async fn left(exe: &Path, contender: &Contender, requests: &[Request]) -> Left {
    let mut receiver: Receiver = contender.start(WORK).await;
    let accepted: Arc<Mutex<HashSet<_>>> = Arc::default();
    let note = Arc::clone(&accepted);
    load::open_loop(
        receiver.address,
        requests.to_vec(),
        CONNECTIONS,
        f64::INFINITY,
        move |id, _| {
            note.lock().expect("no panic").insert(id);
        },
    )
    .await;
    let accepted = std::mem::take(&mut *accepted.lock().expect("no panic"));
    contender.killed(exe, &mut receiver, &accepted).await
}

fn row(contender: &Contender, turns: &[Turn]) -> String {
    let run = |run: fn(&Turn) -> &Run| {
        let percentile = |percent| millis(median(turns.iter().map(|t| run(t).percentile(percent))));
        let rate = rate(median(turns.iter().map(|t| run(t).rate())));
        format!("{rate} | {} | {}", percentile(50.0), percentile(99.0))
    };
    let memory = median(turns.iter().map(|turn| turn.memory.0));
    let broker = median(turns.iter().map(|turn| turn.memory.1));
    let worst = turns.iter().map(|turn| turn.left).min_by_key(|left| left.handled + left.found);
    let Left { handled, found } = worst.expect("a turn");
    let lost = ISSUES as usize - handled - found;
    format!(
        "| {} | {} | {} | {} | {} | {} | {handled} handled before, {found} found, {lost} lost |",
        contender.name(),
        run(|turn| &turn.one),
        run(|turn| &turn.many),
        megabytes(memory),
        broker.map_or("none".into(), megabytes),
        contender.promise(),
    )
}

/// Prints what is compared, and how.
async fn caption() {
    let version = |command: &mut Command| {
        let output = command.output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    println!(
        "Median of {ROUNDS} rounds in turns, {} s at each number of connections, kept alive; \
         left after kill -9: the worst of {ROUNDS}.",
        DURATION.as_secs()
    );
    println!(
        "{}; {}; {}; {}.\n",
        version(Command::new(tests::nats::binary().await).arg("--version")),
        version(Command::new("python3").arg("--version")),
        fastapi::PINNED.join(" "),
        version(Command::new("webhook").arg("-version")),
    );
}

fn goals(contenders: &[Contender], turns: &[Vec<Turn>]) {
    let of = |kind: Kind| {
        let at = contenders.iter().position(|contender| contender.kind == kind)?;
        let rate = median(turns[at].iter().map(|turn| turn.many.rate()));
        let p99 = median(turns[at].iter().map(|turn| turn.many.percentile(99.0)));
        Some((rate, p99.as_secs_f64()))
    };
    let goal = |what: &str, ratio: f64, least: f64| {
        let met = if ratio >= least { "met" } else { "missed" };
        println!("{what}: {ratio:.1} times, goal {least}: {met}");
    };
    let Some((rate, p99)) = of(Kind::Coordinator) else { return };
    if let Some((other, slow)) = of(Kind::FastApi { processes: 1 }) {
        goal("200s of Coordinator beside those of FastAPI", rate / other, 4.0);
        goal("p99 of FastAPI beside that of Coordinator", slow / p99, 5.0);
    }
    if let Some((other, _)) = of(Kind::Confirmed { fsync_each: true }) {
        goal("200s of Coordinator beside those with `sync_interval: always`", rate / other, 4.0);
    }
}
