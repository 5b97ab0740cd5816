//! The process of a run: started in a session of its own, with limits, and ended with everything
//! that it has started.

mod channel;
mod group;
mod launch;
mod marker;
mod supervise;
mod tail;
mod tree;
mod user;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    process::{self, Child},
    sync::watch,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

pub use supervise::main as supervise;

use self::{
    channel::{Description, Order, Report},
    marker::Owner,
    tail::Tail,
    tree::Process,
};

/// Name of the hidden command that supervises a run.
pub const COMMAND: &str = "supervise";

/// This executable, also after its file was replaced.
const PROGRAM: &str = "/proc/self/exe";
/// How long the start of a command may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a supervisor may take beyond the grace period.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to read what is left in the pipe when a run has ended.
const REST_TIMEOUT: Duration = Duration::from_millis(500);
/// Output that is read at once, in bytes, and the time between two reads. Who writes faster waits.
const READ_BYTES: usize = 16 * 1024;
const READ_INTERVAL: Duration = Duration::from_millis(1);

/// How many open files commands may have, if this process may have more.
static FORMER_DESCRIPTORS: OnceLock<u64> = OnceLock::new();

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments. There is no shell, and no title or body of an issue is among them.
    pub argv: Vec<String>,
    /// Working directory. None: the role's own.
    pub directory: Option<PathBuf>,
    /// Login of the user that it runs as. None: the role's own.
    pub user: Option<String>,
    /// The whole environment: nothing is inherited.
    pub environment: Vec<(String, String)>,
    /// What it reads from standard input.
    pub stdin: Vec<u8>,
    /// What it may take.
    pub limits: Limits,
    /// It is not started after this time, and ended as by [`Running::stop`] once the time has come,
    /// unless [`Running::renew`] has set a later one. What supervises the run watches it, so that it
    /// holds while this process is paused.
    pub lease_until: Instant,
}

/// What a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long it may run. It is told to stop then.
    pub time: Option<Duration>,
    /// Memory of all its processes, in bytes.
    pub memory_bytes: Option<u64>,
    /// How much of the end of its output is kept, in bytes.
    pub output_bytes: usize,
    /// Time from TERM to KILL.
    pub grace: Duration,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It ended by itself, with this exit code.
    Exited(i32),
    /// A signal ended it that the role did not send.
    Signaled(i32),
    /// It had run for as long as it may, and was ended.
    TimeLimit,
    /// It took more memory than it may, and was ended.
    MemoryLimit,
    /// It was ended because [`Running::stop`] was called. True: only KILL ended it.
    Stopped {
        /// Whether it had not ended within the grace period.
        killed: bool,
    },
    /// It was ended because nobody had renewed its lease.
    LeaseOver,
    /// What supervises it ended before it, and nothing of it is left.
    Lost,
}

/// The end of what a run has written to standard output and standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The text. Bytes that are no UTF-8 are replaced.
    pub tail: String,
    /// How many bytes were written in all.
    pub written: u64,
    /// Whether the beginning is not kept.
    pub truncated: bool,
}

/// Why a run could not be started. Nothing of it runs then.
#[derive(Debug, Error)]
pub enum StartError {
    /// What supervises it could not be started.
    #[error("start the supervisor of a run")]
    Supervisor(#[source] std::io::Error),
    /// The command could not be started: no such program, directory or user, or no permission.
    #[error("start {program}: {problem}")]
    Command {
        /// The program.
        program: String,
        /// What the system said.
        problem: String,
    },
    /// Its lease was over before it began.
    #[error("the lease was over before the start")]
    LeaseOver,
}

/// A run that was started. Dropped, it is ended as by [`Running::stop`].
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    lease: watch::Sender<Instant>,
    ended: watch::Receiver<Option<Ended>>,
    tail: Arc<Mutex<Tail>>,
}

/// Starts `command`. It returns once the command itself has been started.
///
/// # Errors
/// If it could not be started. Nothing of it runs then.
pub async fn start(command: &Command) -> Result<Running, StartError> {
    start_by(Path::new(PROGRAM), command).await
}

/// Starts `command` by a program that takes the hidden command [`COMMAND`].
///
/// # Errors
/// As for [`start`].
pub async fn start_by(program: &Path, command: &Command) -> Result<Running, StartError> {
    let mut supervisor = Supervisor::spawn(program).map_err(StartError::Supervisor)?;
    let started = timeout(START_TIMEOUT, supervisor.describe(command)).await;
    let problem = match started.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(Report::Started) => return Ok(supervisor.running(command)),
        Ok(Report::LeaseOver) => return Err(StartError::LeaseOver),
        Ok(Report::Refused(problem)) => {
            let program = command.argv.first().cloned().unwrap_or_default();
            return Err(StartError::Command { program, problem });
        }
        Ok(Report::Ended(_)) => io::ErrorKind::InvalidData.into(),
        Err(error) => error,
    };
    supervisor.lost().await;
    Err(StartError::Supervisor(problem))
}

/// Raises the limit of open files of this process as far as the system lets it: each run takes three.
/// Its commands get the former limit.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let (Some(former), Ok(())) = (limit.current, setrlimit(Resource::Nofile, raised)) {
        let _ = FORMER_DESCRIPTORS.set(former);
    }
}

/// Ends what a former life of a reactor has left on this machine, and returns how many processes
/// it found. Runs of other reactors that are alive are left alone.
pub async fn end_former() -> usize {
    marker::end_former().await
}

impl Running {
    /// Waits until nothing of the run is left. Safe to be cancelled; the same answer each time.
    pub async fn ended(&mut self) -> Ended {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|ended| ended.clone()).unwrap_or(Ended::Lost)
    }

    /// Asks it to end: TERM to everything of it, KILL to what is left after the grace period.
    /// The second call does nothing. It does not wait.
    pub fn stop(&mut self) {
        self.stop.cancel();
    }

    /// Sets a later end of its lease.
    pub fn renew(&self, until: Instant) {
        self.lease.send_replace(until);
    }

    /// What it has written so far.
    pub fn output(&self) -> Output {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).output()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A supervisor, as the reactor sees it.
struct Supervisor {
    child: Child,
    owner: Owner,
    reports: BufReader<OwnedReadHalf>,
    orders: OwnedWriteHalf,
    output: pipe::Receiver,
}

impl Supervisor {
    fn spawn(program: &Path) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (reports, orders) = UnixStream::from_std(ours)?.into_split();
        let (output, writer) = io::pipe()?;
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        let child = process::Command::new(program)
            .arg(COMMAND)
            // No secret of the role is for a run to find in a process of its own user.
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        let process = child.id().and_then(|pid| Process::read(pid.cast_signed()));
        let process = process.ok_or_else(|| io::Error::other("it ended at its start"))?;
        let owner = Owner::new(&process)?;
        Ok(Self { child, owner, reports: BufReader::with_capacity(256, reports), orders, output })
    }

    /// Says what is to be run, and waits for the first report.
    async fn describe(&mut self, command: &Command) -> io::Result<Report> {
        let description = Description {
            argv: command.argv.clone(),
            directory: command.directory.clone(),
            user: command.user.clone(),
            environment: command.environment.clone(),
            limits: command.limits,
            lease_until: channel::to_monotonic(command.lease_until),
            stdin_bytes: command.stdin.len(),
            reactor: marker::reactor()?,
            descriptors: FORMER_DESCRIPTORS.get().copied(),
        };
        self.orders.write_all(&description.to_bytes()?).await?;
        self.orders.write_all(&command.stdin).await?;
        next_report(&mut self.reports).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn running(self, command: &Command) -> Running {
        let tail = Arc::new(Mutex::new(Tail::new(command.limits.output_bytes)));
        let stop = CancellationToken::new();
        let (lease, renewed) = watch::channel(command.lease_until);
        let (sender, ended) = watch::channel(None);
        let running = Running { stop: stop.clone(), lease, ended, tail: Arc::clone(&tail) };
        let limits = command.limits;
        tokio::spawn(async move {
            let ended = self.tend(limits, stop, renewed, &tail).await;
            sender.send_replace(Some(ended));
        });
        running
    }

    /// Passes on orders and reads the output until nothing of the run is left.
    async fn tend(
        mut self,
        limits: Limits,
        stop: CancellationToken,
        mut renewed: watch::Receiver<Instant>,
        tail: &Mutex<Tail>,
    ) -> Ended {
        let mut buffer = vec![0; READ_BYTES];
        let mut output_at = Some(Instant::now());
        let mut overdue = None;
        // When a supervisor must have ended the run. One that is suspended does not.
        let allowed = limits.grace.saturating_add(STOP_TIMEOUT);
        let limit = limits.time.unwrap_or(Duration::MAX).saturating_add(allowed);
        let time_over = Instant::now().checked_add(limit);
        let mut line = Vec::new();
        let told = loop {
            let lease_over = renewed.borrow().checked_add(allowed);
            let read = async {
                match output_at {
                    Some(at) => {
                        sleep_until(at.into()).await;
                        self.output.read(&mut buffer).await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What it reports counts, also if this process has slept past the times below.
                biased;
                report = read_report(&mut self.reports, &mut line) => break Ok(report),
                Ok(()) = renewed.changed() => {
                    let until = channel::to_monotonic(*renewed.borrow_and_update());
                    self.order(Order::Renew(until));
                }
                () = stop.cancelled(), if overdue.is_none() => {
                    self.order(Order::Stop);
                    overdue = Some(Instant::now().checked_add(allowed));
                }
                () = overdue_at(overdue.flatten()) => break Err(Ended::Stopped { killed: true }),
                () = overdue_at(lease_over) => break Err(Ended::LeaseOver),
                () = overdue_at(time_over) => break Err(Ended::TimeLimit),
                length = read => match length {
                    Ok(length @ 1..) => {
                        push(tail, &buffer[..length]);
                        output_at = Some(Instant::now() + READ_INTERVAL);
                    }
                    // All who could write have closed it, which does not mean that they ended.
                    _ => output_at = None,
                },
            }
        };
        let ended = match told {
            Ok(Ok(Some(Report::Ended(ended)))) => {
                let _ = self.child.wait().await;
                ended
            }
            // It was killed.
            Ok(_) => {
                self.lost().await;
                if overdue.is_some() { Ended::Stopped { killed: true } } else { Ended::Lost }
            }
            Err(ended) => {
                self.lost().await;
                ended
            }
        };
        // A process that is none of the run's may have been given the pipe.
        let rest = async {
            while let Ok(length @ 1..) = self.output.read(&mut buffer).await {
                push(tail, &buffer[..length]);
            }
        };
        let _ = timeout(REST_TIMEOUT, rest).await;
        ended
    }

    /// Orders something. One that the supervisor does not take in time has no use later.
    fn order(&self, order: Order) {
        let _ = self.orders.try_write(&order.to_bytes());
    }

    /// Ends a run whose supervisor has ended, or does not do what it should.
    async fn lost(&mut self) {
        let _ = self.child.kill().await;
        marker::end_run(self.owner).await;
    }
}

fn push(tail: &Mutex<Tail>, bytes: &[u8]) {
    tail.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
}

async fn overdue_at(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn next_report(reports: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Report>> {
    read_report(reports, &mut Vec::new()).await
}

/// The next report, or None if there is none any more. Safe to be cancelled with the same `line`.
async fn read_report(
    reports: &mut BufReader<OwnedReadHalf>,
    line: &mut Vec<u8>,
) -> io::Result<Option<Report>> {
    reports.read_until(b'\n', line).await?;
    if !line.ends_with(b"\n") {
        return Ok(None);
    }
    let report = serde_json::from_slice(line)?;
    line.clear();
    Ok(Some(report))
}
