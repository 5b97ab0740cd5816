//! Resource usage of a process, as Linux reports it.

use std::{path::PathBuf, time::Duration};

use rustix::{
    param::clock_ticks_per_second,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Resource usage of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory, in bytes.
    pub memory: u64,
    /// Peak of the resident memory, in bytes.
    pub peak_memory: u64,
    /// Processor time so far, in the process and in the kernel. In steps of 10 ms.
    pub cpu: Duration,
}

impl Usage {
    /// Usage of the process `pid` now.
    pub fn of(pid: u32) -> Self {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = std::fs::read_to_string(proc.join("status")).expect("its status");
        let number = |name: &str| -> u64 {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            let digits = value.trim().trim_end_matches(" kB");
            digits.parse().expect("a number")
        };
        Self {
            descriptors: std::fs::read_dir(proc.join("fd")).expect("its descriptors").count(),
            threads: number("Threads:") as usize,
            memory: number("VmRSS:") * 1024,
            peak_memory: number("VmHWM:") * 1024,
            cpu: cpu(&std::fs::read_to_string(proc.join("stat")).expect("its times")),
        }
    }

    /// Usage of `pid` and all its descendants together. Shared memory counts once for each.
    pub fn of_tree(pid: u32) -> Self {
        let mut all = Self::of(pid);
        for child in descendants(pid) {
            let one = Self::of(child);
            all.descriptors += one.descriptors;
            all.threads += one.threads;
            all.memory += one.memory;
            all.peak_memory += one.peak_memory;
            all.cpu += one.cpu;
        }
        all
    }
}

/// `utime` and `stime`, fields 14 and 15. Field 2 is a name that may hold any character.
fn cpu(stat: &str) -> Duration {
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
}

/// All descendants of the process `pid`.
pub fn descendants(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: Vec<u32> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|pids| pids.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter().flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// Lets this process, and processes that it starts from now on, open this many files.
///
/// # Panics
/// If the system does not allow that many.
pub fn allow_descriptors(count: u64) {
    let allowed = allow_descriptors_up_to(count);
    assert!(allowed >= count, "{count} open files need another `ulimit -Hn`: it is {allowed}");
}

/// Like [`allow_descriptors`], for as many as the system allows. Returns that number.
///
/// # Panics
/// If the system refuses a limit that it promises.
pub fn allow_descriptors_up_to(count: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let current = limit.current.unwrap_or(most).max(count.min(most));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum })
        .expect("a limit below the hard one");
    current
}
