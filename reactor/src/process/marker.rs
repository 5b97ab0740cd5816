//! What a run carries in its environment, so that it is found when nobody supervises it any more.
//!
//! Normally a supervisor ends everything of its run, also when the reactor was killed. Only if the
//! supervisor was killed too does something stay. The control group of the run has the marker as its
//! name, for what has another environment. The marker names reactor and supervisor by id and
//! start time, and the namespace in which the ids count: another reactor of this machine is told
//! from one that has ended, and a container's from one of this machine.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    process,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    group,
    tree::{self, Process},
};

/// Name of the variable.
pub(super) const VARIABLE: &str = "COORDINATOR_RUN_OWNER";
/// Time between two looks at all processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long processes that were killed may take to be gone. One that waits for a broken disk takes
/// for ever.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// Who looks after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Inode of the namespace of process ids.
    namespace: u64,
    /// Id and start time.
    reactor: (i32, u64),
    supervisor: (i32, u64),
}

impl Owner {
    /// A run of this reactor.
    pub(super) fn new(supervisor: &Process) -> io::Result<Self> {
        let (namespace, reactor) = parse_reactor(&reactor()?).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { namespace, reactor, supervisor: (supervisor.pid, supervisor.start) })
    }

    pub(super) fn parse(value: &str) -> Option<Self> {
        let (reactor, supervisor) = value.split_once('/')?;
        let (namespace, reactor) = parse_reactor(reactor)?;
        Some(Self { namespace, reactor, supervisor: parse_process(supervisor)? })
    }

    /// Whether nobody looks after it: in the namespace of this process, both have ended.
    fn is_gone(&self, namespace: u64) -> bool {
        self.namespace == namespace && find(self.reactor).or(find(self.supervisor)).is_none()
    }

    /// Whether its supervisor alone is left. It sees that by itself, unless it is suspended.
    fn is_left_alone(&self, namespace: u64) -> bool {
        self.namespace == namespace && find(self.reactor).is_none()
    }

    fn wake_supervisor(&self) {
        if let Some(supervisor) = find(self.supervisor) {
            supervisor.signal(Signal::CONT);
        }
    }
}

/// The process with this id and start time, if it has not ended.
fn find((pid, start): (i32, u64)) -> Option<Process> {
    Process::read(pid).filter(|process| process.start == start)
}

fn own() -> io::Result<Process> {
    let own = Process::read(process::id().cast_signed());
    own.ok_or_else(|| io::Error::other("this process is not in /proc"))
}

/// This process's part of the markers of its runs.
pub(super) fn reactor() -> io::Result<String> {
    let own = own()?;
    Ok(format!("{}.{}.{}", namespace("self")?, own.pid, own.start))
}

/// The value of a run's marker. `reactor` is as [`reactor`] gave it in the reactor.
pub(super) fn value(reactor: &str) -> io::Result<String> {
    let own = own()?;
    Ok(format!("{reactor}/{}.{}", own.pid, own.start))
}

/// Ends what carries `owner`, and what that has started. Returns how many processes it found.
pub(super) async fn end_run(owner: Owner) -> usize {
    end(move |found, _| *found == owner).await
}

/// Ends what reactors that have ended have left on this machine. What a supervisor still ends is its
/// affair. Returns how many processes it found.
pub(super) async fn end_former() -> usize {
    end(|found, namespace| {
        if found.is_left_alone(namespace) {
            found.wake_supervisor();
        }
        found.is_gone(namespace)
    })
    .await
}

async fn end<F>(is_to_end: F) -> usize
where
    F: Fn(&Owner, u64) -> bool + Clone + Send + 'static,
{
    let deadline = Instant::now() + GONE_TIMEOUT;
    let mut ended = HashSet::new();
    loop {
        let is_to_end = is_to_end.clone();
        let look = tokio::task::spawn_blocking(move || look(is_to_end)).await;
        // Whoever cannot look does not know that nothing is left.
        let found = look.map_err(io::Error::other).flatten();
        let is_done = found.as_ref().is_ok_and(Vec::is_empty);
        let found = found.unwrap_or_default();
        ended.extend(found.iter().map(|process| (process.pid, process.start)));
        if is_done || Instant::now() > deadline {
            return ended.len();
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Looks once at all processes and control groups, and kills what is to be ended.
fn look(is_to_end: impl Fn(&Owner, u64) -> bool) -> io::Result<Vec<Process>> {
    let here = namespace("self")?;
    let all = tree::all()?;
    let own = process::id().cast_signed();
    let grouped = group::look(|owner| is_to_end(owner, here));
    let is_found = |process: &&Process| {
        process.pid != own
            && (grouped.contains(&process.pid)
                || owner_of(process.pid).is_some_and(|owner| is_to_end(&owner, here)))
            // Another namespace's process may carry ids that mean something else there.
            && namespace(&process.pid.to_string()).is_ok_and(|namespace| namespace == here)
    };
    let mut found: Vec<_> = all.iter().filter(is_found).copied().collect();
    let below = tree::below(found.iter().map(|process| process.pid), &all);
    found.extend(below.into_iter().filter(|process| process.pid != own));
    found.iter().for_each(|process| process.signal(Signal::KILL));
    Ok(found)
}

/// The owner that a process names in its environment.
fn owner_of(pid: i32) -> Option<Owner> {
    // Those of other users cannot be read.
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    owner_in(&environment)
}

fn owner_in(environment: &[u8]) -> Option<Owner> {
    let mut variables = environment.split(|byte| *byte == 0);
    let value = variables
        .find_map(|variable| variable.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"="))?;
    Owner::parse(str::from_utf8(value).ok()?)
}

fn namespace(pid: &str) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/pid"))?.ino())
}

fn parse_reactor(text: &str) -> Option<(u64, (i32, u64))> {
    let (namespace, process) = text.split_once('.')?;
    Some((namespace.parse().ok()?, parse_process(process)?))
}

fn parse_process(text: &str) -> Option<(i32, u64)> {
    let (pid, start) = text.split_once('.')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_in_an_environment() {
        let owner = Owner { namespace: 1, reactor: (2, 3), supervisor: (4, 5) };
        for (environment, expected) in [
            (&b"A=1\0COORDINATOR_RUN_OWNER=1.2.3/4.5\0B=2\0"[..], Some(owner)),
            (b"COORDINATOR_RUN_OWNER=1.2.3/4.5", Some(owner)),
            (b"XCOORDINATOR_RUN_OWNER=1.2.3/4.5\0", None),
            (b"A=COORDINATOR_RUN_OWNER=1.2.3/4.5\0", None),
            (b"COORDINATOR_RUN_OWNER=1.2.3\0", None),
            (b"COORDINATOR_RUN_OWNER=1.2.3/4.x\0", None),
            (b"COORDINATOR_RUN_OWNER=\xff\0", None),
            (b"", None),
        ] {
            assert_eq!(owner_in(environment), expected, "{}", environment.escape_ascii());
        }
    }

    #[test]
    fn only_what_nobody_looks_after_is_gone() {
        let here = namespace("self").expect("a namespace");
        let own =
            Owner::parse(&value(&reactor().expect("reactor")).expect("value")).expect("owner");
        let past = |(pid, start): (i32, u64)| (pid, start - 1);
        for (owner, is_gone) in [
            (own, false),
            (Owner { reactor: past(own.reactor), ..own }, false),
            (Owner { supervisor: past(own.supervisor), ..own }, false),
            (Owner { reactor: past(own.reactor), supervisor: past(own.supervisor), ..own }, true),
            (Owner { namespace: 1, reactor: (1, 0), supervisor: (1, 0) }, false),
        ] {
            assert_eq!(owner.is_gone(here), is_gone, "{owner:?}");
        }
    }
}
