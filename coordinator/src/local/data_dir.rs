//! The directory that holds everything of one Coordinator on one machine:
//! journal, nats-server's store, the webhook's secret, and the addresses of
//! the Coordinator while it runs.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use service::settings::SettingsError;

/// Default data directory.
pub(crate) const DEFAULT_DATA_DIR: &str = "data";

const LOCK_FILE: &str = "coordinator.lock";
const SECRET_FILE: &str = "webhook-secret";
const INSTANCE_FILE: &str = "coordinator.json";
const SECRET_BYTES: usize = 32;

/// A data directory that is locked for this process as long as this value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if it is not there, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| unusable(path, "made", &error))?;
        // An absolute path: nats-server has the same working directory, but its configuration
        // stays on disk after this process.
        let path = path
            .canonicalize()
            .with_context(|| format!("open the data directory {}", path.display()))?;
        let lock_file = path.join(LOCK_FILE);
        let lock = File::create(&lock_file).map_err(|error| unusable(&path, "used", &error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "the data directory {} is in use by another instance; stop that one, or set DATA_DIR (--data-dir)",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("lock {}", lock_file.display()))
            }
        }
    }

    /// Absolute path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the webhook's secret, which the first call generates.
    pub(crate) fn secret_file(&self) -> Result<PathBuf> {
        let file = secret_file(&self.path);
        if !file.try_exists().with_context(|| format!("look for {}", file.display()))? {
            write_secret(&file).with_context(|| format!("create {}", file.display()))?;
        }
        Ok(file)
    }
}

fn unusable(path: &Path, verb: &str, error: &io::Error) -> SettingsError {
    SettingsError(vec![format!("DATA_DIR is {}, which cannot be {verb} ({error})", path.display())])
}

/// Where the secret of a data directory is kept.
pub(crate) fn secret_file(data_dir: &Path) -> PathBuf {
    data_dir.join(SECRET_FILE)
}

fn write_secret(file: &Path) -> io::Result<()> {
    let mut secret = [0_u8; SECRET_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    // The rename makes the file appear whole or not at all. The lock keeps other processes away.
    let unfinished = file.with_extension("new");
    remove_if_there(&unfinished)?;
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    new.write_all(hex::encode(secret).as_bytes())?;
    new.write_all(b"\n")?;
    new.sync_all()?;
    std::fs::rename(&unfinished, file)
}

/// Addresses of a running Coordinator, for the commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// URL that Gitea has to post to.
    pub(crate) webhook_url: String,
    /// Health and metrics.
    pub(crate) operator_url: String,
    /// NATS, without user and password.
    pub(crate) nats_url: String,
    /// The webhook's secret, unless it was given in the environment.
    pub(crate) secret_file: Option<PathBuf>,
    /// Process id of the Coordinator.
    pub(crate) pid: u32,
}

impl Instance {
    /// What the instance running in `data_dir` wrote, if there is one.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>> {
        let file = data_dir.join(INSTANCE_FILE);
        match std::fs::read(&file) {
            Ok(json) => Ok(Some(
                serde_json::from_slice(&json)
                    .with_context(|| format!("read {}", file.display()))?,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Writes the file that the commands read.
    pub(crate) async fn write(&self, data_dir: &Path) -> Result<()> {
        let file = data_dir.join(INSTANCE_FILE);
        let unfinished = file.with_extension("new");
        let json = serde_json::to_vec_pretty(self)?;
        tokio::fs::write(&unfinished, json)
            .await
            .with_context(|| format!("write {}", unfinished.display()))?;
        tokio::fs::rename(&unfinished, &file)
            .await
            .with_context(|| format!("write {}", file.display()))
    }

    /// Removes the file, if it was written.
    pub(crate) fn remove(data_dir: &Path) -> Result<()> {
        let file = data_dir.join(INSTANCE_FILE);
        remove_if_there(&file).with_context(|| format!("remove {}", file.display()))
    }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_is_private_and_belongs_to_one_instance() {
        let parent = tempfile::tempdir().expect("directory");
        let path = parent.path().join("a").join("data");
        let data = DataDir::open(&path).expect("first");
        assert_eq!(mode(&path), 0o700);
        let error = DataDir::open(&path).expect_err("second");
        assert!(error.to_string().contains("in use by another instance"), "{error}");
        drop(data);
        DataDir::open(&path).expect("after the first");
    }

    #[test]
    fn the_secret_is_made_once_and_only_its_owner_reads_it() {
        let parent = tempfile::tempdir().expect("directory");
        let data = DataDir::open(parent.path()).expect("open");
        // Left by a process that died before the rename.
        std::fs::write(parent.path().join("webhook-secret.new"), "half").expect("write");
        let file = data.secret_file().expect("secret");
        let secret = std::fs::read_to_string(&file).expect("read");
        assert_eq!((mode(&file), secret.trim_end().len()), (0o600, 64));
        assert!(secret.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
        data.secret_file().expect("again");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), secret);
    }

    #[tokio::test]
    async fn an_instance_is_found_while_it_runs() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(Instance::read(dir.path()).expect("none"), None);
        let instance = Instance {
            webhook_url: "http://127.0.0.1:8000/webhook/gitea".into(),
            operator_url: "http://127.0.0.1:8001".into(),
            nats_url: "nats://127.0.0.1:4222".into(),
            secret_file: None,
            pid: 1,
        };
        instance.write(dir.path()).await.expect("write");
        assert_eq!(Instance::read(dir.path()).expect("one"), Some(instance));
        Instance::remove(dir.path()).expect("remove");
        assert_eq!(Instance::read(dir.path()).expect("none"), None);
    }
}
