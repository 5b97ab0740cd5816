//! The supervisor of a run: a process of its own, which sees to it that a run ends with everything
//! that it has started, also when the reactor is killed.
//!
//! It is the one that all orphans below it are given to, so nothing gets away by forking twice or by
//! a session of its own. Nothing is left exactly if it has no child any more.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::{self, Command, ExitCode, Stdio},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitOptions, WaitStatus, geteuid, getpid, kill_process_group,
        set_child_subreaper, setsid, wait,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{
    COMMAND, Ended, Limits,
    channel::{Description, Order, Report, monotonic},
    group::Group,
    launch::{self, LEASE_OVER, Preparation},
    marker, tree,
    user::{self, User},
};

/// Time between two looks at the memory of a run that has a limit.
const MEMORY_INTERVAL: Duration = Duration::from_millis(200);
/// Times between two rounds of KILL, for what was started during a round: the first, the longest.
const KILL_INTERVALS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// After this many rounds the whole process table is read for each.
const QUICK_ROUNDS: u32 = 3;
/// How much is read of the reason why a command did not start, in bytes.
const REASON: usize = 1024;

/// Does what the hidden command [`COMMAND`] asks for, if it stands first in `args` after the
/// program's name. It supervises the run that a reactor describes on standard input; with further
/// arguments it becomes the command of the run.
///
/// Call it before anything else. There is such a process for each run, so it has to be small.
pub fn main(args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.skip(1);
    if args.next()? != COMMAND {
        return None;
    }
    Some(match args.next() {
        Some(preparation) => launch::main(&preparation, &args.collect::<Vec<_>>()),
        None => supervised(),
    })
}

fn supervised() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the output of the run.
            eprintln!("{COMMAND}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    setsid()?;
    set_child_subreaper(Some(getpid()))?;
    // Keeps the pipe of the output readable once the reactor is gone. A command that says something
    // while it ends would get SIGPIPE otherwise, and what the pipe does not hold waits for KILL.
    let _output = File::open("/proc/self/fd/1");
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (description, stdin) = Description::read(&mut socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(&mut socket, description, stdin))
}

async fn supervise(
    socket: &mut UnixStream,
    description: Description,
    stdin: Vec<u8>,
) -> io::Result<()> {
    // Before the command is started, since its end must not be missed.
    let mut child = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    if monotonic() >= description.lease_until {
        return report(socket, &Report::LeaseOver);
    }
    let marker = marker::value(&description.reactor)?;
    let group = Group::create(&marker);
    let started = match start(&description, marker, group.as_ref()) {
        Ok(started) => started,
        Err(problem) => {
            group.iter().for_each(Group::remove);
            return report(socket, &Report::Refused(problem));
        }
    };
    let (limits, lease_until) = (description.limits, description.lease_until);
    drop(description);
    let (mut reason, mut feed) = (Some(started.reason), Some((started.stdin, stdin, 0)));
    let mut refused = Vec::new();
    let mut run = Run::new(started.command, limits, lease_until, group);
    socket.set_nonblocking(true)?;
    let orders = tokio::net::UnixStream::from_std(socket.try_clone()?)?;
    let (mut pending, mut is_open) = (Vec::new(), true);

    while run.goes_on() {
        let mut bytes = [0; REASON];
        tokio::select! {
            _ = child.recv() => {}
            _ = terminate.recv() => run.end(Cause::Stop),
            _ = interrupt.recv() => run.end(Cause::Stop),
            _ = hangup.recv() => run.end(Cause::Stop),
            _ = orders.readable(), if is_open => {
                match orders.try_read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(length @ 1..) => {
                        pending.extend_from_slice(&bytes[..length]);
                        while let Some(order) = Order::first(&pending) {
                            pending.drain(..Order::BYTES);
                            run.obey(order);
                        }
                    }
                    _ => {
                        is_open = false;
                        run.end(Cause::Alone);
                    }
                }
            }
            read = read(&mut reason, &mut bytes) => match read {
                Ok(length @ 1..) => refused.extend_from_slice(&bytes[..length]),
                _ => {
                    reason = None;
                    if refused.is_empty() {
                        report(socket, &Report::Started)?;
                    }
                }
            },
            written = write(&mut feed) => {
                let is_done = feed.as_ref().is_none_or(|(_, data, at)| *at >= data.len());
                if written.is_err() || is_done {
                    feed = None;
                }
            }
            () = sleep_until(run.wake_at()) => {}
        }
    }
    run.leave_group();
    if let Some(mut pipe) = reason {
        // Nobody is left to write into it.
        pipe.read_to_end(&mut refused).await?;
        if refused.is_empty() {
            report(socket, &Report::Started)?;
        }
    }
    let refused = String::from_utf8_lossy(&refused);
    report(
        socket,
        &match &*refused {
            "" => Report::Ended(run.ended()),
            LEASE_OVER => Report::LeaseOver,
            problem => Report::Refused(problem.to_owned()),
        },
    )
}

/// Reports to the reactor. That it has ended is noticed elsewhere.
fn report(socket: &mut UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let _ = socket.write_all(&line);
    Ok(())
}

async fn read(pipe: &mut Option<pipe::Receiver>, bytes: &mut [u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(bytes).await,
        None => std::future::pending().await,
    }
}

/// Writes the next piece of what the command reads. It may never read it.
async fn write(feed: &mut Option<(pipe::Sender, Vec<u8>, usize)>) -> io::Result<()> {
    let Some((pipe, data, at)) = feed else { return std::future::pending().await };
    if *at < data.len() {
        *at += pipe.write(&data[*at..]).await?;
    }
    Ok(())
}

struct Started {
    command: Pid,
    stdin: pipe::Sender,
    /// Why it did not become the command. Ends empty once it has.
    reason: pipe::Receiver,
}

fn start(
    description: &Description,
    marker: String,
    group: Option<&Group>,
) -> Result<Started, String> {
    let user = description.user.as_deref().map(user_of).transpose()?;
    let preparation = Preparation {
        supervisor: process::id(),
        directory: description.directory.clone(),
        user: user.flatten(),
        lease_until: description.lease_until,
        group: group.map(|group| group.path().to_owned()),
        descriptors: description.descriptors,
    };
    let preparation = serde_json::to_string(&preparation).map_err(|error| error.to_string())?;
    let mut child = Command::new(super::PROGRAM)
        .args([COMMAND, &preparation])
        .args(&description.argv)
        .env_clear()
        .envs(description.environment.iter().map(|(name, value)| (name, value)))
        .env(marker::VARIABLE, marker)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let pipes = (child.stdin.take(), child.stderr.take());
    let (Some(stdin), Some(reason)) = pipes else { return Err("it has no pipes".into()) };
    let fail = |error: io::Error| error.to_string();
    Ok(Started {
        command: Pid::from_child(&child),
        stdin: pipe::Sender::from_owned_fd(stdin.into()).map_err(fail)?,
        reason: pipe::Receiver::from_owned_fd(reason.into()).map_err(fail)?,
    })
}

/// None if the supervisor is that user's already, and cannot change.
fn user_of(login: &str) -> Result<Option<User>, String> {
    let user = user::find(login)?;
    match geteuid() {
        own if own.is_root() => Ok(Some(user)),
        own if own.as_raw() == user.id => Ok(None),
        _ => Err(format!("only root can run it as user {login:?}")),
    }
}

/// Why a run is ended before its command ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Stop,
    TimeLimit,
    MemoryLimit,
    LeaseOver,
    /// The reactor has ended.
    Alone,
}

struct Run {
    command: Pid,
    /// How the command ended.
    status: Option<WaitStatus>,
    limits: Limits,
    lease_until: u64,
    lease_is_over: bool,
    time_over: Option<Instant>,
    look_at_memory: Option<Instant>,
    cause: Option<Cause>,
    /// When KILL begins.
    kill_at: Option<Instant>,
    kill_wait: Duration,
    kill_rounds: u32,
    was_killed: bool,
    /// Whether all that the command left was asked to end.
    rest_asked: bool,
    group: Option<Group>,
    /// Processes that were asked to end. A second TERM means "at once" to some.
    asked: HashSet<(i32, u64)>,
}

impl Run {
    fn new(command: Pid, limits: Limits, lease_until: u64, group: Option<Group>) -> Self {
        let now = Instant::now();
        Self {
            command,
            status: None,
            limits,
            lease_until,
            lease_is_over: false,
            // A time that the clock cannot reach is none.
            time_over: limits.time.and_then(|time| now.checked_add(time)),
            look_at_memory: limits.memory_bytes.map(|_| now + MEMORY_INTERVAL),
            cause: None,
            kill_at: None,
            kill_wait: KILL_INTERVALS.0,
            kill_rounds: 0,
            was_killed: false,
            rest_asked: false,
            group,
            asked: HashSet::new(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Stop => self.end(Cause::Stop),
            // An order that took long must not shorten it.
            Order::Renew(until) => self.lease_until = self.lease_until.max(until),
        }
    }

    /// Does what is due. Returns false once nothing of the run is left.
    fn goes_on(&mut self) -> bool {
        if !self.reap() {
            return false;
        }
        let now = Instant::now();
        if self.status.is_some() && !self.rest_asked {
            self.rest_asked = true;
            self.ask_all();
            self.kill_within(self.limits.grace);
        }
        if self.time_limit().is_some_and(|at| now >= at) {
            self.end(Cause::TimeLimit);
        }
        if !self.lease_is_over && monotonic() >= self.lease_until {
            self.lease_is_over = true;
            self.end(Cause::LeaseOver);
        }
        self.look_at_memory(now);
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill(now);
        }
        true
    }

    /// Takes the control group away, with whatever may be in it.
    fn leave_group(&self) {
        if let Some(group) = &self.group {
            group.kill();
            group.remove();
        }
    }

    /// Takes note of what has ended. Returns false if there is nothing to end any more.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.command => self.status = Some(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Begins to end the run. The first cause counts; a later one never gives more time.
    fn end(&mut self, cause: Cause) {
        let grace = match cause {
            // Memory is needed by others at once.
            Cause::MemoryLimit => Duration::ZERO,
            _ => self.limits.grace,
        };
        self.kill_within(grace);
        if self.cause.is_none() && self.status.is_none() {
            self.cause = Some(cause);
            // Looked at before: what is started in between is asked twice rather than never.
            let found = tree::below_quickly(process::id().cast_signed());
            // All in the group at once. It is there until the command has been waited for.
            let _ = kill_process_group(self.command, Signal::TERM);
            let _ = kill_process_group(self.command, Signal::CONT);
            let group = self.command.as_raw_pid();
            let in_group = found.iter().filter(|process| process.group == group);
            self.asked.extend(in_group.map(|process| (process.pid, process.start)));
            self.ask(&found);
        }
    }

    fn kill_within(&mut self, grace: Duration) {
        if let Some(at) = Instant::now().checked_add(grace) {
            self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        }
    }

    fn ask_all(&mut self) {
        self.ask(&tree::below_quickly(process::id().cast_signed()));
    }

    /// Asks processes to end, each once. One that is stopped is let go on, to see it.
    fn ask(&mut self, processes: &[tree::Process]) {
        for process in processes {
            if self.asked.insert((process.pid, process.start)) {
                process.signal(Signal::TERM);
                process.signal(Signal::CONT);
            }
        }
    }

    /// One round of KILL. What was started meanwhile is left for the next one.
    fn kill(&mut self, now: Instant) {
        let own = process::id().cast_signed();
        let found = match self.kill_rounds < QUICK_ROUNDS {
            true => tree::below_quickly(own),
            // What cannot be seen now is left for the next round.
            false => tree::below([own], &tree::all().unwrap_or_default()),
        };
        self.was_killed |= !found.is_empty();
        self.group.iter().for_each(Group::kill);
        // A group as a whole: nobody in it can start another process meanwhile. None of these
        // groups has others in it, since each session below began there.
        let own_group = tree::Process::read(own).map(|own| own.group);
        let groups: HashSet<_> = found.iter().map(|process| process.group).collect();
        for group in groups.into_iter().filter(|group| Some(*group) != own_group) {
            if let Some(group) = Pid::from_raw(group) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        for process in &found {
            process.signal(Signal::KILL);
        }
        self.kill_rounds += 1;
        self.kill_at = Some(now + self.kill_wait);
        self.kill_wait = (self.kill_wait * 2).min(KILL_INTERVALS.1);
    }

    fn look_at_memory(&mut self, now: Instant) {
        let (Some(most), Some(at)) = (self.limits.memory_bytes, self.look_at_memory) else {
            return;
        };
        if now < at {
            return;
        }
        self.look_at_memory = Some(now + MEMORY_INTERVAL);
        let found = tree::below_quickly(process::id().cast_signed());
        if tree::memory_bytes(&found) > most {
            self.look_at_memory = None;
            self.end(Cause::MemoryLimit);
        }
    }

    /// When the command has run for as long as it may. What it has left behind has its grace.
    fn time_limit(&self) -> Option<Instant> {
        self.time_over.filter(|_| self.cause.is_none() && self.status.is_none())
    }

    /// When something is due next.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let lease = Duration::from_nanos(self.lease_until.saturating_sub(monotonic()));
        let lease = now.checked_add(lease).filter(|_| !self.lease_is_over);
        let due = [lease, self.time_limit(), self.look_at_memory, self.kill_at];
        due.into_iter().flatten().min().unwrap_or(now + Duration::from_secs(60))
    }

    fn ended(&self) -> Ended {
        match self.cause {
            Some(Cause::Stop | Cause::Alone) => Ended::Stopped { killed: self.was_killed },
            Some(Cause::TimeLimit) => Ended::TimeLimit,
            Some(Cause::MemoryLimit) => Ended::MemoryLimit,
            Some(Cause::LeaseOver) => Ended::LeaseOver,
            None => match self.status {
                Some(status) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Exited(code),
                    (_, Some(signal)) => Ended::Signaled(signal),
                    _ => Ended::Lost,
                },
                None => Ended::Lost,
            },
        }
    }
}
