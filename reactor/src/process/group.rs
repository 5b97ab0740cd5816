//! The control group of a run (cgroups(7), version 2), where this process may make one. Whatever the
//! run starts is in it, also what has left its parent, its session and its environment.
//!
//! It comes beside the process tree and the marker, and a system without it loses nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::marker::Owner;

/// First part of the name of a run's group. The rest is the marker of the run.
const PREFIX: &str = "coordinator-run-";
/// Stands in a name for the slash of a marker.
const SLASH: &str = "_";

/// The control group of a run. It is removed once nothing is in it.
#[derive(Debug)]
pub(super) struct Group(PathBuf);

impl Group {
    /// Makes the group of the run with this marker, below the group of this process. None where there
    /// are no groups, or where this process may make none.
    pub(super) fn create(marker: &str) -> Option<Self> {
        let path = own()?.join(format!("{PREFIX}{}", marker.replace('/', SLASH)));
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        // Some other file system may be mounted there.
        if group.0.join("cgroup.procs").exists() {
            return Some(group);
        }
        group.remove();
        None
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Kills everything in it at once, so that nothing gets away by forking. A kernel older than 5.14
    /// cannot.
    pub(super) fn kill(&self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
    }

    /// Removes it. It stays while something is in it.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.0);
    }

    fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// Puts this process into a group. It has one thread.
pub(super) fn join(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.procs"), "0")
}

/// Kills what is in the groups whose owner is to end, and removes those that are empty. Returns the
/// processes that were in them.
pub(super) fn look(is_to_end: impl Fn(&Owner) -> bool) -> Vec<i32> {
    let entries = own().and_then(|own| fs::read_dir(own).ok());
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(owner);
        if owner.is_some_and(|owner| is_to_end(&owner)) {
            let group = Group(entry.path());
            let processes = group.processes();
            if processes.is_empty() {
                group.remove();
            } else {
                group.kill();
                found.extend(processes);
            }
        }
    }
    found
}

fn owner(name: &str) -> Option<Owner> {
    Owner::parse(&name.strip_prefix(PREFIX)?.replace(SLASH, "/"))
}

/// The directory of this process's own group.
fn own() -> Option<PathBuf> {
    let read = |name| fs::read_to_string(format!("/proc/self/{name}")).ok();
    directory(&read("mountinfo")?, &read("cgroup")?)
}

/// `mounts` and `groups` are as proc_pid_mountinfo(5) and cgroups(7) say.
fn directory(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        // What is mounted may be a part of all groups.
        let below = Path::new(group).strip_prefix(root).ok()?;
        rest.starts_with("cgroup2 ").then(|| Path::new(mount_point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_below_its_mount() {
        let mount = |root: &str, at: &str, kind: &str| {
            format!("30 23 0:26 {root} {at} rw,nosuid shared:9 - {kind} cgroup rw\n")
        };
        let v1 = mount("/", "/sys/fs/cgroup/memory", "cgroup");
        for (mounts, groups, expected) in [
            (mount("/", "/sys/fs/cgroup", "cgroup2"), "0::/\n", Some("/sys/fs/cgroup/")),
            (
                mount("/", "/sys/fs/cgroup", "cgroup2"),
                "0::/system.slice/coordinator.service\n",
                Some("/sys/fs/cgroup/system.slice/coordinator.service"),
            ),
            (
                v1.clone() + &mount("/", "/sys/fs/cgroup/unified", "cgroup2"),
                "4:memory:/a\n0::/b\n",
                Some("/sys/fs/cgroup/unified/b"),
            ),
            (mount("/a", "/sys/fs/cgroup", "cgroup2"), "0::/a/b\n", Some("/sys/fs/cgroup/b")),
            (mount("/a", "/sys/fs/cgroup", "cgroup2"), "0::/c\n", None),
            (v1, "4:memory:/a\n", None),
            (String::new(), "0::/\n", None),
        ] {
            let found = directory(&mounts, groups);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{mounts}{groups}");
        }
    }

    #[test]
    fn a_name_says_whose_it_is() {
        let marker = "4026531836.12.345/67.890";
        let name = format!("{PREFIX}{}", marker.replace('/', SLASH));
        assert_eq!(owner(&name), Owner::parse(marker));
        assert!(owner(&name).is_some());
        for name in
            ["coordinator-run-", "coordinator-run-1.2.3", "other", "coordinator-run-1.2.3_x"]
        {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
