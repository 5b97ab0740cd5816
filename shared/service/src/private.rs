//! Files and directories that only their owner can use.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{getegid, geteuid, getgroups, umask},
};
use tracing::{info, warn};

use crate::shell::quoted;

/// Mode of a directory that is made.
const DIRECTORY: u32 = 0o700;
/// Mode of a file that is made.
const FILE: u32 = 0o600;
/// What group and others may do.
const SHARED: u32 = 0o077;
/// What others may do.
const OTHERS: u32 = 0o007;
/// The bit of a directory in which several users have things, such as `/tmp`.
const STICKY: u32 = 0o1000;

/// Makes private what this process and its children make from now on, whatever they are started
/// with. Call it before there is a second thread: the setting belongs to the process.
pub fn restrict_new_files() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Makes a directory, and those above it that are missing. One that is there stays as it is.
///
/// # Errors
/// The error of mkdir(2).
pub fn make_directory(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(dir)
}

/// Opens a file for reading and writing. Makes it if it is missing. A link is not followed: whoever
/// could write to the directory before may have put it there.
///
/// # Errors
/// The error of open(2).
pub fn open(file: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE).custom_flags(flags);
    options.open(file)
}

/// Makes an empty file, unless something is there by that name.
///
/// # Errors
/// The error of open(2).
pub fn make_file(file: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(FILE).open(file) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file, which appears whole or not at all. One writer at a time.
///
/// # Errors
/// The error of the operation that failed.
pub fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    write_then(file, content, |_| Ok(()))
}

/// Like [`write()`], and what is written is on disk before the file appears.
///
/// # Errors
/// The error of the operation that failed.
pub fn write_synced(file: &Path, content: &[u8]) -> io::Result<()> {
    write_then(file, content, File::sync_all)
}

fn write_then(
    file: &Path,
    content: &[u8],
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let unfinished = file.with_extension("new");
    // A process that died may have left it.
    remove_if_there(&unfinished)?;
    let mut new = OpenOptions::new().write(true).create_new(true).mode(FILE).open(&unfinished)?;
    new.write_all(content)?;
    finish(&new)?;
    std::fs::rename(&unfinished, file)
}

/// Removes a file.
///
/// # Errors
/// The error of unlink(2), unless there is no such file.
pub fn remove_if_there(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a directory can be used as a private one, as [`put_right`] would say. Changes nothing.
/// A directory that is missing can be.
///
/// # Errors
/// The problem: a part of a sentence that begins with the directory's setting.
pub fn check(dir: &Path, ours: &[&str]) -> Result<(), String> {
    match dir.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("is {}, which cannot be looked at ({error})", dir.display())),
        Ok(metadata) => verdict_on_directory(dir, &metadata, ours).map(drop),
    }
}

/// The mode of a file or a directory that group or others can use; None if only its owner can.
/// Changes nothing.
///
/// # Errors
/// The error of stat(2).
pub fn shared_mode(path: &Path) -> io::Result<Option<u32>> {
    let mode = path.metadata()?.mode() & 0o7777;
    Ok((mode & SHARED != 0).then_some(mode))
}

/// What [`put_right`] would put right or leave: the directory, and the entries in it whose names
/// begin with one of `ours`, each with its mode. Changes nothing. A directory that is missing holds
/// nothing.
///
/// # Errors
/// The problem: a part of a sentence that begins with the directory's setting.
pub fn open_to_others(dir: &Path, ours: &[&str]) -> Result<Vec<String>, String> {
    check(dir, ours)?;
    let failed =
        |error: io::Error| format!("is {}, which cannot be looked at ({error})", dir.display());
    let entries = match dir.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut paths = vec![dir.to_owned()];
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if begins_with(&entry.file_name().to_string_lossy(), ours) {
            paths.push(entry.path());
        }
    }
    let mut open = Vec::new();
    for path in paths {
        let metadata = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed)?,
        };
        if judge(metadata.mode(), Access::of_us(&metadata)) != Verdict::Private {
            open.push(format!("{} ({:04o})", path.display(), metadata.mode() & 0o7777));
        }
    }
    Ok(open)
}

/// Makes a directory private, and the entries in it whose names begin with one of `ours`. What lies
/// deeper is out of reach then.
///
/// A directory that holds other things and none of `ours` is left alone: it may be one that several
/// users need.
///
/// # Errors
/// The problem: a part of a sentence that begins with the directory's setting.
pub fn put_right(dir: &Path, ours: &[&str]) -> Result<Outcome, String> {
    let failed =
        |error: io::Error| format!("is {}, which cannot be made private ({error})", dir.display());
    let metadata = dir.metadata().map_err(failed)?;
    let mut outcome = Outcome::default();
    let verdict = verdict_on_directory(dir, &metadata, ours)?;
    outcome.apply(dir, &metadata, verdict).map_err(failed)?;
    for entry in dir.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !begins_with(&entry.file_name().to_string_lossy(), ours) {
            continue;
        }
        let path = entry.path();
        // What it leads to would be put right, with our rights.
        let link = path.symlink_metadata().ok().filter(Metadata::is_symlink);
        if link.is_some_and(|link| link.uid() != geteuid().as_raw()) {
            return Err(format!(
                "holds {}, a link that another user has made; remove it",
                path.display()
            ));
        }
        let metadata = match path.metadata() {
            // A server that still ends takes its files away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed)?,
        };
        let verdict = judge(metadata.mode(), Access::of_us(&metadata));
        if verdict == Verdict::Refused {
            let holds = format!("holds {}, which others can use", path.display());
            return Err(format!("{holds} and {}", owned_by_another(&path, &metadata, FILE)));
        }
        outcome.apply(&path, &metadata, verdict).map_err(failed)?;
    }
    Ok(outcome)
}

/// Makes a directory that is ours private.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if it belongs to another user; else the error of stat(2) or
/// chmod(2).
pub fn own(dir: &Path) -> io::Result<()> {
    let metadata = dir.metadata()?;
    if metadata.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Outcome::default().apply(dir, &metadata, judge(metadata.mode(), Access::Owner))
}

/// What [`put_right`] has found.
#[derive(Debug, Default)]
#[must_use = "what was found is to be logged"]
pub struct Outcome {
    directories: Vec<String>,
    files: Vec<String>,
    left: Vec<String>,
}

impl Outcome {
    fn apply(&mut self, path: &Path, metadata: &Metadata, verdict: Verdict) -> io::Result<()> {
        let found = || format!("{} ({:04o})", path.display(), metadata.mode() & 0o7777);
        match verdict {
            Verdict::Private | Verdict::Refused => {}
            Verdict::Left => self.left.push(found()),
            Verdict::PutRight => {
                let mode = metadata.mode() & 0o7777 & !SHARED;
                std::fs::set_permissions(path, Permissions::from_mode(mode))?;
                // A file system without modes of its own takes the change and does nothing.
                let list = if path.metadata()?.mode() & SHARED != 0 {
                    &mut self.left
                } else if metadata.is_dir() {
                    &mut self.directories
                } else {
                    &mut self.files
                };
                list.push(found());
            }
        }
        Ok(())
    }

    /// Logs what was found: nothing, or one line of each kind.
    pub fn log(&self) {
        let paths = [&self.directories[..], &self.files].concat().join(", ");
        if !self.files.is_empty() {
            warn!(paths, "others could use what is kept here; from now on only its owner can");
        } else if !self.directories.is_empty() {
            info!(paths, "made private");
        }
        if !self.left.is_empty() {
            let paths = self.left.join(", ");
            warn!(paths, "others can look in here, and only another user can change that");
        }
    }
}

/// By which bits of a mode we have access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// As the owner, or as root: we may change the mode.
    Owner,
    /// As a member of the group, as Kubernetes arranges it with `fsGroup`.
    Group,
    /// As anybody.
    Others,
}

impl Access {
    fn of_us(metadata: &Metadata) -> Self {
        let (user, group) = (geteuid(), metadata.gid());
        if user.is_root() || user.as_raw() == metadata.uid() {
            return Self::Owner;
        }
        let is_member = || {
            let groups = getgroups().unwrap_or_default();
            groups.iter().chain([&getegid()]).any(|ours| ours.as_raw() == group)
        };
        let for_group = metadata.mode() & SHARED & !OTHERS;
        if for_group != 0 && is_member() { Self::Group } else { Self::Others }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Private,
    PutRight,
    /// Others can look at it, and we can neither change that nor do without it.
    Left,
    Refused,
}

/// Judges a file or a directory by its mode.
fn judge(mode: u32, access: Access) -> Verdict {
    match access {
        _ if mode & SHARED == 0 => Verdict::Private,
        Access::Owner if mode & STICKY != 0 => Verdict::Refused,
        Access::Owner => Verdict::PutRight,
        Access::Group | Access::Others if mode & OTHERS == 0 => Verdict::Private,
        Access::Group => Verdict::Left,
        Access::Others => Verdict::Refused,
    }
}

fn verdict_on_directory(dir: &Path, metadata: &Metadata, ours: &[&str]) -> Result<Verdict, String> {
    let access = Access::of_us(metadata);
    let verdict = judge(metadata.mode(), access);
    let is = || format!("is {}, which others can use", dir.display());
    match (verdict, access) {
        (Verdict::Refused, Access::Owner) => {
            Err(format!("{} and several users share; name one of its own", is()))
        }
        (Verdict::Refused, _) => {
            let owned = owned_by_another(dir, metadata, DIRECTORY);
            Err(format!("{} and {owned}, or name another", is()))
        }
        (Verdict::PutRight, _) if holds_only_other_things(dir, ours) => Err(format!(
            "{} and which holds other things; run chmod 700 {}, or name another",
            is(),
            quoted(dir)
        )),
        (verdict, _) => Ok(verdict),
    }
}

/// What to do about a path that another user owns.
fn owned_by_another(path: &Path, metadata: &Metadata, mode: u32) -> String {
    let (owner, us, path) = (metadata.uid(), geteuid().as_raw(), quoted(path));
    format!("user {owner} owns; run chown {us} {path} && chmod {mode:o} {path} as root")
}

/// Whether a directory is in use for something else. One that cannot be read is none.
fn holds_only_other_things(dir: &Path, ours: &[&str]) -> bool {
    let names = dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut others = false;
    for name in names {
        let name = name.to_string_lossy();
        if begins_with(&name, ours) {
            return false;
        }
        // Of a file system that was made for it.
        others |= name != "lost+found";
    }
    others
}

fn begins_with(name: &str, ours: &[&str]) -> bool {
    ours.iter().any(|ours| name.starts_with(ours))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("metadata").mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) -> PathBuf {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
        path.to_owned()
    }

    #[test]
    fn a_mode_is_judged_by_whose_it_is() {
        use Access::{Group, Others, Owner};
        use Verdict::{Left, Private, PutRight, Refused};
        for (mode, access, expected) in [
            (0o040700, Owner, Private),
            (0o100600, Owner, Private),
            (0o042700, Owner, Private),
            (0o040755, Owner, PutRight),
            (0o040750, Owner, PutRight),
            (0o042770, Owner, PutRight),
            (0o100644, Owner, PutRight),
            (0o100660, Owner, PutRight),
            (0o041777, Owner, Refused),
            // Kubernetes, with fsGroup: root:65532.
            (0o042770, Group, Private),
            (0o042775, Group, Left),
            (0o042777, Group, Left),
            (0o100660, Group, Private),
            (0o100664, Group, Left),
            // Another user's.
            (0o040777, Others, Refused),
            (0o041777, Others, Refused),
            (0o040755, Others, Refused),
            (0o100644, Others, Refused),
            (0o040770, Others, Private),
            (0o040700, Others, Private),
        ] {
            assert_eq!(judge(mode, access), expected, "{mode:o} {access:?}");
        }
    }

    #[test]
    fn what_others_can_use_is_put_right_once() {
        let dir = tempfile::tempdir().expect("directory");
        let data = dir.path().join("data");
        make_directory(&data).expect("make");
        assert_eq!(mode(&data), 0o700);
        let at = |name: &str| data.join(name);
        for (name, mode) in [("journal.db", 0o644), ("journal.db-wal", 0o666), ("README", 0o644)] {
            std::fs::write(at(name), "").expect("write");
            set(&at(name), mode);
        }
        std::fs::create_dir(at("journal.d")).expect("make");
        set(&at("journal.d"), 0o2755);
        set(&data, 0o755);
        check(&data, &["journal."]).expect("it can be put right");
        assert_eq!(mode(&data), 0o755, "a check changes nothing");
        let outcome = put_right(&data, &["journal."]).expect("put right");
        let Outcome { directories, files, left } = &outcome;
        assert_eq!((directories.len(), files.len(), left.len()), (2, 2, 0), "{outcome:?}");
        for (name, expected) in [
            ("", 0o700),
            ("journal.db", 0o600),
            ("journal.db-wal", 0o600),
            ("journal.d", 0o2700),
            ("README", 0o644),
        ] {
            assert_eq!(mode(&at(name)), expected, "{name}");
        }
        let outcome = put_right(&data, &["journal."]).expect("again");
        assert!(outcome.directories.is_empty() && outcome.files.is_empty(), "{outcome:?}");
    }

    #[test]
    fn a_directory_that_may_be_needed_by_others_is_left_alone() {
        for (entries, mode, problem) in [
            (&[][..], 0o755, None),
            (&["lost+found"], 0o755, None),
            (&["journal.db", "other"], 0o755, None),
            (&["other"], 0o700, None),
            (&["other"], 0o755, Some("which holds other things; run chmod 700 ")),
            (&[], 0o1777, Some("several users share")),
            (&["journal.db"], 0o1777, Some("several users share")),
        ] {
            let dir = tempfile::tempdir().expect("directory");
            for entry in entries {
                std::fs::write(dir.path().join(entry), "").expect("write");
            }
            set(dir.path(), mode);
            let told = check(dir.path(), &["journal."]).err();
            let is = told.as_deref().map(|told| told.starts_with("is /"));
            let same = told.as_deref().zip(problem).map(|(told, part)| told.contains(part));
            assert_eq!((is, same), (problem.map(|_| true), problem.map(|_| true)), "{told:?}");
            assert_eq!(put_right(dir.path(), &["journal."]).err(), told);
            if problem.is_some() {
                assert_eq!(super::tests::mode(dir.path()), mode);
            }
        }
        check(Path::new("/not/there"), &[]).expect("it can be made");
    }

    #[test]
    fn files_are_private_and_whole_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |name: &str| dir.path().join(name);
        for content in ["one", "another"] {
            // Left by a process that died before the rename.
            std::fs::write(at("file.new"), "half").expect("write");
            write(&at("file"), content.as_bytes()).expect("write");
            assert_eq!(std::fs::read_to_string(at("file")).expect("read"), content);
        }
        write_synced(&at("synced"), b"x").expect("write");
        open(&at("opened")).expect("make");
        make_file(&at("made")).expect("make");
        std::fs::write(at("opened"), "kept").expect("write");
        open(&at("opened")).expect("open");
        make_file(&at("opened")).expect("it is there");
        assert_eq!(std::fs::read_to_string(at("opened")).expect("read"), "kept");
        for name in ["file", "synced", "opened", "made"] {
            assert_eq!(mode(&at(name)), 0o600, "{name}");
        }
        std::os::unix::fs::symlink(at("opened"), at("link")).expect("link");
        open(&at("link")).expect_err("a link");
    }

    #[test]
    fn a_directory_of_another_user_is_not_ours() {
        let dir = tempfile::tempdir().expect("directory");
        own(&set(dir.path(), 0o755)).expect("ours");
        assert_eq!(mode(dir.path()), 0o700);
        if !geteuid().is_root() {
            let error = own(Path::new("/")).expect_err("root's");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        } else {
            std::os::unix::fs::chown(dir.path(), Some(1), None).expect("chown");
            let error = own(dir.path()).expect_err("another's");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
