//! Who can read what is kept here, and how much room there is.

use std::path::Path;

use rustix::fs::statvfs;
use service::{private, shell::quoted};

use super::{report::Check, settings::Read};
use crate::local::data_dir::FILES;

/// Below this much room a disk counts as full, in bytes: SQLite and the logs need some.
const LEAST_ROOM: u64 = 64 << 20;

pub(super) fn check(read: &Read, checks: &mut Vec<Check>) {
    checks.push(data_dir(&read.data_dir));
    checks.extend(secret_files(&read.secret_files, &read.data_dir));
    checks.push(match &read.ingest {
        None => Check::needs("disk", "ingest's settings"),
        Some(ingest) => disk(&ingest.journal.dir, ingest.journal.max_bytes),
    });
}

fn data_dir(dir: &Path) -> Check {
    let name = "data directory";
    if !dir.exists() {
        return Check::skipped(name, format!("there is no {} here", dir.display()));
    }
    match private::open_to_others(dir, &FILES) {
        Ok(open) if open.is_empty() => {
            Check::ok(name, format!("{} is its owner's alone", dir.display()))
        }
        Ok(open) => {
            let remedy = format!("run chmod -R go= {}; ingest does it at its start", quoted(dir));
            Check::wrong(name, format!("others can use {}", open.join(", ")), remedy)
        }
        Err(problem) => Check::wrong(
            name,
            format!("DATA_DIR {problem}"),
            "make it private, or name another in DATA_DIR",
        ),
    }
}

/// Files that settings name. Container engines hand secrets to a container with a mode for all in
/// it, so this is a warning. What is in the data directory was looked at with it.
fn secret_files(files: &[(&'static str, std::path::PathBuf)], data_dir: &Path) -> Vec<Check> {
    let name = "secret files";
    let mut checks = Vec::new();
    for (setting, file) in files.iter().filter(|(_, file)| !file.starts_with(data_dir)) {
        match private::shared_mode(file) {
            Ok(None) => {}
            Ok(Some(mode)) => checks.push(Check::warning(
                name,
                format!("others can use {}, which {setting} names ({mode:04o})", file.display()),
                format!("run chmod 600 {}", quoted(file)),
            )),
            // The settings say so.
            Err(_) => {}
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(name, "none that others can use"));
    }
    checks
}

/// The room of the volume against the journal's limit.
fn disk(dir: &Path, limit: u64) -> Check {
    let Some(there) = dir.ancestors().find(|dir| dir.exists()).or(Some(Path::new("."))) else {
        return Check::skipped("disk", "there is no such directory");
    };
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    match statvfs(there) {
        Err(error) => Check::wrong(
            "disk",
            format!("the volume of {} cannot be looked at ({error})", dir.display()),
            "see whether it is mounted",
        ),
        Ok(volume) => {
            let used = dir.join("journal.db").metadata().map_or(0, |file| file.len());
            room(volume.f_bavail.saturating_mul(volume.f_frsize), used, limit)
        }
    }
}

fn room(free: u64, used: u64, limit: u64) -> Check {
    let (mib, name) = (|bytes: u64| bytes >> 20, "disk");
    let found = format!(
        "{} MiB free for the journal, which has {} MiB and may have {} MiB",
        mib(free),
        mib(used),
        mib(limit)
    );
    if free < LEAST_ROOM {
        Check::wrong(
            name,
            found,
            "make room: what cannot be kept gets 503, and Gitea never repeats it",
        )
    } else if used.saturating_add(free) < limit {
        let remedy =
            "make room, or set a smaller JOURNAL_MAX_BYTES, so that the disk is not full first";
        Check::warning(name, found, remedy)
    } else {
        Check::ok(name, found)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::{super::report::Outcome, *};

    #[test]
    fn a_disk_is_to_be_larger_than_the_journal_may_be() {
        const GIB: u64 = 1 << 30;
        for (free, used, expected) in [
            (5 * GIB, 0, Outcome::Ok),
            (2 * GIB, 3 * GIB, Outcome::Ok),
            (2 * GIB, GIB, Outcome::Warning),
            (1 << 20, 4 * GIB, Outcome::Wrong),
        ] {
            let check = room(free, used, 4 * GIB);
            assert_eq!(check.outcome, expected, "{}", check.found);
        }
        let here = tempfile::tempdir().expect("directory");
        let missing = here.path().join("not/there/yet");
        assert_eq!(disk(&missing, 0).outcome, Outcome::Ok);
    }

    #[test]
    fn what_others_can_read_is_named_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("chmod");
        let secret = dir.path().join("webhook-secret");
        std::fs::write(&secret, "s").expect("write");
        for (mode, in_directory, elsewhere) in
            [(0o600, Outcome::Ok, Outcome::Ok), (0o644, Outcome::Wrong, Outcome::Warning)]
        {
            std::fs::set_permissions(&secret, Permissions::from_mode(mode)).expect("chmod");
            let check = data_dir(dir.path());
            assert_eq!(check.outcome, in_directory, "{}", check.found);
            let file = [("GITEA_TOKEN_FILE", secret.clone())];
            let check = &secret_files(&file, Path::new("/elsewhere"))[0];
            assert_eq!(check.outcome, elsewhere, "{}", check.found);
            let found = secret.metadata().expect("metadata").permissions().mode() & 0o777;
            assert_eq!(found, mode);
        }
    }
}
