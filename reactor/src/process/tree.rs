//! The processes of this machine, as `/proc` shows them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};

/// A process that has not ended. Its first thread may have ended before others, which the system shows
/// as a zombie too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// Id of its process group.
    pub(super) group: i32,
    /// When it was started, in clock ticks since the system's start. Tells it from a later process
    /// with the same id.
    pub(super) start: u64,
}

impl Process {
    /// Process `pid`. None if there is none, or it has ended and is only to be waited for.
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `stat` is as proc_pid_stat(5) says. The name in it may hold anything.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let threads: u64 = fields.nth(14)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        let has_ended = state == "X" || (state == "Z" && threads <= 1);
        (!has_ended).then_some(Self { pid, parent, group, start })
    }

    /// Whether it is still there.
    pub(super) fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start == self.start)
    }

    /// Sends it a signal. Does nothing if it has ended, also if another process has its id by now.
    pub(super) fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) if self.is_alive() => {
                let _ = pidfd_send_signal(process, signal);
            }
            Err(Errno::NOSYS | Errno::PERM) if self.is_alive() => {
                let _ = kill_process(pid, signal);
            }
            _ => {}
        }
    }
}

/// All processes that can be seen.
///
/// # Errors
/// If they cannot be looked at, for want of descriptors for example: then there may be others.
pub(super) fn all() -> io::Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => all.extend(Process::parse(pid, &stat)),
            Err(error) if has_ended(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Whether a file of a process cannot be read because the process has ended.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// The processes among `all` that those in `roots` have started, and so on.
pub(super) fn below(roots: impl IntoIterator<Item = i32>, all: &[Process]) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut next: Vec<i32> = roots.into_iter().collect();
    let mut seen: HashSet<i32> = next.iter().copied().collect();
    let mut found = Vec::new();
    while let Some(pid) = next.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if seen.insert(child.pid) {
                found.push(**child);
                next.push(child.pid);
            }
        }
    }
    found
}

/// What process `root` has started, and so on. Costs little on a machine with many processes, but
/// may miss some while processes end.
pub(super) fn below_quickly(root: i32) -> Vec<Process> {
    // A kernel may be built without these files.
    if fs::metadata("/proc/thread-self/children").is_err() {
        return below([root], &all().unwrap_or_default());
    }
    let (mut next, mut seen, mut found) = (vec![root], HashSet::from([root]), Vec::new());
    while let Some(pid) = next.pop() {
        for child in children(pid) {
            if seen.insert(child) {
                found.extend(Process::read(child));
                next.push(child);
            }
        }
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids =
        |list: String| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>();
    lists.flat_map(pids).collect()
}

/// Memory of processes, in bytes, swapped out or not. Memory that several share counts once, as far
/// as it shows; files that are mapped do not count.
pub(super) fn memory_bytes(processes: &[Process]) -> u64 {
    let (mut own, mut shared) = (0, 0);
    for process in processes {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", process.pid)) else {
            continue;
        };
        own += field(&status, "RssAnon:") + field(&status, "VmSwap:");
        shared = shared.max(field(&status, "RssShmem:"));
    }
    own + shared
}

fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let rest = "S 7 8 9 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4242 1000 1";
        for name in ["sh", "a b", "x) S 1 1 1 (", ""] {
            let read = Process::parse(3, &format!("3 ({name}) {rest}"));
            assert_eq!(read, Some(Process { pid: 3, parent: 7, group: 8, start: 4242 }));
        }
        assert_eq!(Process::parse(3, &format!("3 (sh) Z{}", &rest[1..])), None);
        // Its first thread alone has ended.
        let threads = rest[1..].replace(" 20 0 1 0 4242", " 20 0 2 0 4242");
        assert!(Process::parse(3, &format!("3 (sh) Z{threads}")).is_some());
        assert_eq!(Process::parse(3, &format!("3 (sh) X{threads}")), None);
        for broken in ["", "3 (sh", "3 (sh) S 7", "3 (sh) S x y z"] {
            assert_eq!(Process::parse(3, broken), None, "{broken}");
        }
    }

    #[test]
    fn what_a_process_has_started_is_found_through_all_generations() {
        let process = |pid, parent| Process { pid, parent, group: 1, start: 1 };
        let all = [process(2, 1), process(3, 2), process(4, 3), process(5, 1), process(6, 6)];
        let pids = |root| {
            let mut pids: Vec<_> = below([root], &all).iter().map(|found| found.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(pids(2), [3, 4]);
        assert_eq!(pids(1), [2, 3, 4, 5]);
        assert_eq!(pids(6), [0; 0]);
    }

    #[test]
    fn this_process_is_there_and_takes_memory() {
        let own = i32::try_from(std::process::id()).expect("an id");
        let process = Process::read(own).expect("this process");
        assert!(process.is_alive() && all().expect("processes").contains(&process));
        assert!(memory_bytes(&[process]) > 100_000);
        let later = Process { start: process.start + 1, ..process };
        assert!(!later.is_alive());
        // Would end this process if it were taken for it.
        later.signal(Signal::KILL);
    }
}
