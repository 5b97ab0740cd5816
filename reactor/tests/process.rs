//! Real processes that do as they like, each ended and told as it was.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process,
    time::{Duration, Instant},
};

use reactor::process::{Command, Ended, Limits, Running, StartError, end_former, start_by};
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// How long anything may take before it counts as stuck.
const DEADLINE: Duration = Duration::from_secs(30);
/// Long enough for a command to begin.
const SOON: Duration = Duration::from_secs(1);
/// Longer than a test.
const LONG: Duration = Duration::from_secs(600);

fn supervisor() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_supervisor-under-test"))
}

fn script(script: &str) -> Command {
    Command {
        argv: ["sh", "-c", script].map(str::to_owned).into(),
        directory: None,
        user: None,
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        stdin: Vec::new(),
        limits: Limits {
            time: None,
            memory_bytes: None,
            output_bytes: 10_000,
            grace: Duration::from_millis(200),
        },
        lease_until: Instant::now() + LONG,
    }
}

async fn started(command: &Command) -> Running {
    start_by(supervisor(), command).await.expect("start")
}

async fn ended(running: &mut Running) -> Ended {
    tokio::time::timeout(DEADLINE, running.ended()).await.expect("it ends")
}

/// Waits until `probe` returns something.
async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The numbers in the first whole line with as many of them.
async fn numbers(running: &Running, count: usize) -> Vec<i32> {
    until("numbers", || {
        let output = running.output().tail;
        let whole = &output[..output.rfind('\n')?];
        let numbers: Vec<_> =
            whole.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers.len() >= count).then_some(numbers)
    })
    .await
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("a signal");
}

/// Starts a process that ignores TERM in a session of its own, and whose parent ends. Prints its id
/// once it is so far.
const DAEMON: &str = "echo $(setsid sh -c 'trap \"\" TERM; echo $$; exec >/dev/null; \
                      while :; do sleep 600; done' &)";

#[tokio::test]
async fn a_command_that_ends_by_itself_is_told_as_it_was() {
    for (text, expected, output) in [
        ("", Ended::Exited(0), ""),
        ("exit 75", Ended::Exited(75), ""),
        ("echo out; echo err >&2; exit 3", Ended::Exited(3), "out\nerr\n"),
        ("kill -9 $$", Ended::Signaled(9), ""),
        ("kill -TERM $$", Ended::Signaled(15), ""),
        ("exec >&- 2>&-; exit 4", Ended::Exited(4), ""),
        ("printf '\\303\\377'", Ended::Exited(0), "\u{fffd}\u{fffd}"),
    ] {
        let mut running = started(&script(text)).await;
        assert_eq!(ended(&mut running).await, expected, "{text}");
        assert_eq!(ended(&mut running).await, expected, "{text}, again");
        assert_eq!(running.output().tail, output, "{text}");
        // Too late.
        running.stop();
        assert_eq!(ended(&mut running).await, expected, "{text}, stopped");
    }
}

#[tokio::test]
async fn a_command_has_the_environment_directory_and_input_that_it_was_given() {
    let mut command = script("");
    command.argv = vec!["env".into()];
    command.environment.push(("A".into(), "b c\n=".into()));
    let mut running = started(&command).await;
    assert_eq!(ended(&mut running).await, Ended::Exited(0));
    let output = running.output().tail;
    let mut names: Vec<_> = output.split('\n').filter_map(|line| line.split_once('=')).collect();
    // A program that is instrumented for coverage sets one in itself before it becomes the command.
    names.retain(|(name, _)| !name.starts_with("__LLVM_PROFILE"));
    names.sort_unstable();
    let [(_, "b c"), ("COORDINATOR_RUN_OWNER", _), ("PATH", _)] = names[1..] else {
        panic!("{output}")
    };

    let mut command = script("pwd; wc -c; ps -o sid= -p $$; echo $$");
    command.directory = Some("/usr".into());
    command.stdin = vec![b'x'; 3_000_000];
    let mut running = started(&command).await;
    assert_eq!(ended(&mut running).await, Ended::Exited(0));
    let output = running.output().tail;
    let words: Vec<_> = output.split_whitespace().collect();
    assert_eq!(words[..2], ["/usr", "3000000"]);
    assert_eq!(words[2], words[3], "a session of its own");

    // Nobody reads it.
    let mut running = started(&Command { stdin: vec![b'x'; 3_000_000], ..script("exit 5") }).await;
    assert_eq!(ended(&mut running).await, Ended::Exited(5));
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).expect("an instant");
    for (command, expected) in [
        (Command { argv: vec!["no-such-program".into()], ..script("") }, "No such file"),
        (Command { argv: vec!["/etc/passwd".into()], ..script("") }, "Permission denied"),
        (Command { argv: vec!["/".into()], ..script("") }, "Permission denied"),
        (Command { argv: vec!["a\0b".into()], ..script("") }, "nul byte"),
        (Command { argv: vec![], ..script("") }, "no program"),
        (Command { directory: Some("/no/such".into()), ..script("") }, "directory /no/such"),
        (Command { user: Some("no-such-user".into()), ..script("") }, "no user \"no-such-user\""),
        (Command { lease_until: long_ago, ..script("") }, "lease"),
    ] {
        let error = start_by(supervisor(), &command).await.expect_err("no start");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(matches!(error, StartError::LeaseOver), expected == "lease", "{error}");
    }
    let error = start_by(Path::new("/no/such"), &script("")).await.expect_err("no supervisor");
    assert!(matches!(error, StartError::Supervisor(_)), "{error}");
    let error = start_by(Path::new("/bin/true"), &script("")).await.expect_err("no supervisor");
    assert!(matches!(error, StartError::Supervisor(_)), "{error}");
}

#[tokio::test]
async fn a_command_that_obeys_is_stopped_and_may_tidy_up() {
    // Without a child, which would lose a signal that comes between fork and exec.
    let text = "trap 'echo bye; exit 0' TERM; echo 1; while :; do :; done";
    let mut command = script(text);
    command.limits.grace = LONG;
    let mut running = started(&command).await;
    numbers(&running, 1).await;
    running.stop();
    running.stop();
    assert_eq!(ended(&mut running).await, Ended::Stopped { killed: false });
    let output = running.output().tail;
    assert!(output.starts_with("1\n") && output.ends_with("bye\n"), "{output}");

    // One that is stopped as by Ctrl-Z, and one that is stopped before it has begun.
    let mut running = started(&command).await;
    running.stop();
    assert!(matches!(ended(&mut running).await, Ended::Stopped { killed: false }));
    let mut running = started(&Command { argv: script("kill -STOP $$").argv, ..command }).await;
    running.stop();
    assert_eq!(ended(&mut running).await, Ended::Stopped { killed: false });
}

#[tokio::test]
async fn whatever_does_not_want_to_end_is_killed() {
    let many = "trap '' TERM; for i in 1 2 3 4 5 6 7 8 9; do setsid sh -c 'trap \"\" TERM; \
                while :; do (sleep 600)& sleep 0.01; done' & done; echo $$; exec sleep 600";
    for text in [
        "trap '' TERM; echo $$; while :; do sleep 600; done",
        "exec 2>&-; trap '' TERM; (trap '' TERM; sleep 600)& echo $!; exec >&-; wait; sleep 600",
        &format!("trap '' TERM; {DAEMON}; exec sleep 600"),
        many,
    ] {
        let mut running = started(&script(text)).await;
        let pids = numbers(&running, 1).await;
        running.stop();
        assert_eq!(ended(&mut running).await, Ended::Stopped { killed: true }, "{text}");
        assert!(pids.into_iter().all(|pid| !is_there(pid)), "{text}");
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_ended_and_does_not_change_how_it_ended() {
    for text in [
        // Holds the pipe of the output.
        "sleep 600 & echo $!; exit 6".to_owned(),
        format!("{DAEMON}; exit 6"),
        "echo $(setsid setsid sh -c 'echo $$; exec sleep 600 >/dev/null 2>&1' &); exit 6"
            .to_owned(),
    ] {
        let mut running = started(&script(&text)).await;
        assert_eq!(ended(&mut running).await, Ended::Exited(6), "{text}");
        let pids = numbers(&running, 1).await;
        assert!(pids.into_iter().all(|pid| !is_there(pid)), "{text}");
    }
}

#[tokio::test]
async fn a_flood_of_output_takes_no_memory_and_does_not_hinder_the_end() {
    let mut command = script("yes abcdefg");
    command.limits.output_bytes = 1_000;
    let mut running = started(&command).await;
    until("a flood", || (running.output().written > 500_000).then_some(())).await;
    running.stop();
    assert_eq!(ended(&mut running).await, Ended::Stopped { killed: false });
    let output = running.output();
    assert!(output.truncated && output.tail.len() <= 1_000 && output.tail.len() > 900);
    assert!(output.tail.contains("abcdefg\nabcdefg\n"));
}

#[tokio::test]
async fn limits_hold_and_are_told() {
    let mut command = script("sleep 600");
    command.limits.time = Some(Duration::from_millis(50));
    assert_eq!(ended(&mut started(&command).await).await, Ended::TimeLimit);

    // Two processes with some memory each, which only together have too much.
    let mut command =
        script("for i in 1 2; do (head -c 60M /dev/zero; sleep 600) | tail & done; wait");
    command.limits.grace = LONG;
    command.limits.memory_bytes = Some(80 << 20);
    assert_eq!(ended(&mut started(&command).await).await, Ended::MemoryLimit);
    command.limits.memory_bytes = Some(800 << 20);
    command.limits.time = Some(Duration::from_millis(700));
    assert_eq!(ended(&mut started(&command).await).await, Ended::TimeLimit);
}

#[tokio::test]
async fn a_run_goes_on_as_long_as_its_lease_is_renewed() {
    let mut command = script("trap '' TERM; while :; do sleep 600; done");
    command.lease_until = Instant::now() + Duration::from_millis(300);
    command.limits.time = Some(Duration::from_millis(1_000));
    let mut running = started(&command).await;
    running.renew(Instant::now() + LONG);
    assert_eq!(ended(&mut running).await, Ended::TimeLimit);

    command.limits.time = None;
    command.lease_until = Instant::now() + Duration::from_millis(300);
    assert_eq!(ended(&mut started(&command).await).await, Ended::LeaseOver);
}

#[tokio::test]
async fn a_run_that_is_dropped_ends() {
    let running = started(&script(&format!("{DAEMON}; sleep 600"))).await;
    let pid = numbers(&running, 1).await[0];
    drop(running);
    until("the end of the run", || (!is_there(pid)).then_some(())).await;
}

#[tokio::test]
async fn nothing_is_left_if_the_supervisor_is_killed() {
    let mut running = started(&script(&format!("echo $PPID $$; {DAEMON}; sleep 600"))).await;
    let pids = numbers(&running, 3).await;
    signal(pids[0], Signal::KILL);
    assert_eq!(ended(&mut running).await, Ended::Lost);
    assert!(pids.into_iter().all(|pid| !is_there(pid)));

    // By its own command, and while the supervisor is paused.
    match start_by(supervisor(), &script("kill -9 $PPID; sleep 600")).await {
        Ok(mut running) => assert_eq!(ended(&mut running).await, Ended::Lost),
        // It was faster.
        Err(error) => assert!(matches!(error, StartError::Supervisor(_)), "{error}"),
    }
    let mut running = started(&script("echo $PPID $$; sleep 600")).await;
    let pids = numbers(&running, 2).await;
    signal(pids[0], Signal::STOP);
    running.stop();
    assert_eq!(ended(&mut running).await, Ended::Stopped { killed: true });
    assert!(pids.into_iter().all(|pid| !is_there(pid)));
}

#[tokio::test]
async fn a_run_whose_supervisor_is_suspended_ends_with_its_lease_and_its_time() {
    let lease =
        Command { lease_until: Instant::now() + SOON, ..script("echo $PPID $$; sleep 600") };
    let mut time = lease.clone();
    (time.lease_until, time.limits.time) = (Instant::now() + LONG, Some(SOON));
    for (command, expected) in [(lease, Ended::LeaseOver), (time, Ended::TimeLimit)] {
        let mut running = started(&command).await;
        let pids = numbers(&running, 2).await;
        signal(pids[0], Signal::STOP);
        assert_eq!(ended(&mut running).await, expected);
        assert!(pids.into_iter().all(|pid| !is_there(pid)));
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_costs_no_time_of_the_processor_past_its_limit() {
    let mut command = script(&format!("echo $PPID; {DAEMON}; sleep 0.5"));
    (command.limits.time, command.limits.grace) = (Some(SOON), SOON * 2);
    let mut running = started(&command).await;
    let supervisor = numbers(&running, 2).await[0];
    let mut used = 0;
    let watched = async {
        while let Some(ticks) = ticks(supervisor) {
            used = ticks;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let (ended, ()) = tokio::join!(ended(&mut running), watched);
    assert_eq!(ended, Ended::Exited(0));
    assert!(used < 50, "{used} hundredths of a second");
}

/// Processor time of a process, in clock ticks.
fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
}

/// A reactor of its own. Killed when dropped.
struct Reactor(process::Child);

impl Reactor {
    fn kill(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A reactor of its own, which runs a script, and the first numbers that this prints.
fn reactor(script: &str, count: usize) -> (Reactor, Vec<i32>) {
    let mut child = process::Command::new(supervisor())
        .arg(supervisor())
        .arg(script)
        .stdout(process::Stdio::piped())
        .spawn()
        .expect("a reactor");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let line = lines.next().expect("a line").expect("a line");
        numbers.extend(line.split_whitespace().map(|word| word.parse::<i32>().expect("a number")));
    }
    (Reactor(child), numbers)
}

#[tokio::test]
async fn nothing_is_left_if_the_reactor_is_killed() {
    let text = format!("trap '' TERM; echo $PPID $$; {DAEMON}; while :; do sleep 600; done");
    let gone = |pids: Vec<i32>| {
        until("the end", move || (!pids.iter().any(|pid| is_there(*pid))).then_some(()))
    };
    let (mut killed, pids) = reactor(&text, 3);
    killed.kill();
    gone(pids).await;

    // While its supervisor is suspended: the next reactor wakes it.
    let (mut killed, pids) = reactor(&text, 3);
    signal(pids[0], Signal::STOP);
    killed.kill();
    end_former().await;
    gone(pids).await;

    // With its supervisor: the next reactor ends it, and leaves alone what is another's.
    let (_other, others) = reactor(&text, 3);
    let (mut killed, pids) = reactor(&text, 3);
    killed.kill();
    signal(pids[0], Signal::KILL);
    gone(vec![pids[0]]).await;
    assert!(is_there(pids[2]));
    assert!(end_former().await >= 1);
    assert!(pids.iter().all(|pid| !is_there(*pid)));
    assert!(others.iter().all(|pid| is_there(*pid)));
}

/// Whether this process may make control groups, and kill what is in them.
fn has_groups() -> bool {
    let group = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|at| {
        let group = Path::new(at).join(format!("coordinator-test-{}", process::id()));
        let is_made = fs::create_dir(&group).is_ok() && group.join("cgroup.kill").exists();
        let _ = fs::remove_dir(&group);
        is_made
    });
    group.contains(&true)
}

#[tokio::test]
async fn what_has_left_its_parent_and_its_environment_is_found_by_its_control_group() {
    if !has_groups() {
        eprintln!("skipped: this process may make no control groups");
        return;
    }
    let text = format!("echo $PPID $$; {}; sleep 600", DAEMON.replace("setsid", "setsid env -i"));
    let (mut killed, pids) = reactor(&text, 3);
    let group = fs::read_to_string(format!("/proc/{}/cgroup", pids[2])).expect("its groups");
    assert!(group.contains("/coordinator-run-"), "{group}");
    killed.kill();
    signal(pids[0], Signal::KILL);
    until("the end of the supervisor", || (!is_there(pids[0])).then_some(())).await;
    assert!(is_there(pids[2]));
    assert!(end_former().await >= 1);
    assert!(!is_there(pids[2]));
}

#[tokio::test]
async fn root_gives_a_command_to_its_user_with_nothing_of_its_own() {
    let command =
        Command { user: Some("nobody".into()), ..script("id -u; id -g; id -G; kill $PPID") };
    if !geteuid().is_root() {
        let error = start_by(supervisor(), &command).await.expect_err("not root");
        assert!(error.to_string().contains("only root"), "{error}");
        return;
    }
    let mut running = started(&command).await;
    assert_eq!(ended(&mut running).await, Ended::Exited(1), "{:?}", running.output());
    let output = running.output().tail;
    let words: Vec<_> = output.split_whitespace().collect();
    assert_eq!(words[0], "65534", "{output}");
    assert_eq!(words[1], words[2], "{output}");
    assert!(output.to_lowercase().contains("not permitted"), "{output}");

    // Root can still end it.
    let mut running = started(&Command { user: Some("nobody".into()), ..script(DAEMON) }).await;
    assert_eq!(ended(&mut running).await, Ended::Exited(0));
}

/// `cargo test -p reactor --release --test process -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn memory_and_latency_of_a_hundred_runs() {
    const RUNS: usize = 100;
    // The program under measurement may be another: the whole binary of the product.
    #[expect(clippy::disallowed_methods, reason = "not a setting")]
    let program =
        std::env::var_os("SUPERVISOR").map_or(supervisor().into(), std::path::PathBuf::from);
    let text = "trap 'date +%s%N; exit' TERM; echo $PPID; sleep 600 & wait";
    let mut command = script(text);
    command.limits.grace = LONG;
    let (mut runs, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let began = Instant::now();
        runs.push(start_by(&program, &command).await.expect("start"));
        starts.push(began.elapsed());
    }
    let (mut pss, mut private, mut rss) = (0, 0, 0);
    for running in &runs {
        let pid = numbers(running, 1).await[0];
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("memory");
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        pss += field("Pss:");
        rss += field("Rss:");
        private += field("Private_Dirty:");
    }
    println!("{RUNS} supervisors: PSS {pss} kB, private {private} kB, RSS {rss} kB in all");
    starts.sort_unstable();
    println!("start: p50 {:?}, p99 {:?}", starts[RUNS / 2], starts[RUNS * 99 / 100]);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time");
    let mut all = Vec::new();
    let mut stops = Vec::new();
    for running in &mut runs {
        stops.push(now());
        running.stop();
    }
    for (running, stop) in runs.iter_mut().zip(stops) {
        assert_eq!(ended(running).await, Ended::Stopped { killed: false });
        let output = running.output().tail;
        let at: u64 = output.lines().last().expect("a line").parse().expect("a time");
        all.push(Duration::from_nanos(at).saturating_sub(stop));
    }
    all.sort_unstable();
    println!(
        "stop to the command's handler, all {RUNS} at once: p50 {:?}, p99 {:?}",
        all[RUNS / 2],
        all[RUNS * 99 / 100]
    );
}
